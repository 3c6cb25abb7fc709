//! The token that the API wants: loaded at the start, and again when its file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::app::followed::{Held, Reading};
use crate::config::file::FileRead;
use crate::config::token_from_file;
use crate::domain::signature::Secret;
use crate::telemetry::metrics::{Metrics, SavedFile};

/// Reads the file, and says what was read.
pub(super) fn reader(path: PathBuf) -> impl FnMut() -> Reading<Tokens> {
    move || {
        let mut files = Vec::new();
        let outcome = read(&path, &mut files);
        (outcome, files)
    }
}

fn read(path: &Path, files: &mut Vec<FileRead>) -> Result<Secret, String> {
    let bytes = token_from_file(path, files)?;
    let shown = path.display();
    Secret::new(format!("file:{shown}"), &bytes).ok_or_else(|| format!("{shown} is empty"))
}

/// The token in force.
pub(super) struct Tokens {
    token: watch::Sender<Secret>,
    metrics: Arc<Metrics>,
}

impl Tokens {
    /// With the first one.
    pub(super) fn new(token: Secret, metrics: Arc<Metrics>) -> Self {
        Self { token: watch::Sender::new(token), metrics }
    }

    /// The one in force, now and later.
    pub(super) fn subscribe(&self) -> watch::Receiver<Secret> {
        self.token.subscribe()
    }
}

impl Held for Tokens {
    type Content = Secret;
    type Error = String;

    /// The one before it is refused from then on.
    fn put_in_force(&mut self, token: Secret) -> Result<(), String> {
        self.token.send_replace(token);
        tracing::info!("A new admin token is in force.");
        Ok(())
    }

    fn say_unchanged(&self) {
        tracing::info!("The admin token's file is as it is in force.");
    }

    fn say_refused(&self, error: &String) {
        tracing::error!(error, "The admin token can't be renewed: the one from before is wanted.");
    }

    fn show_refused(&self, is_refused: bool) {
        self.metrics.file_refused(SavedFile::AdminToken, is_refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::followed::Followed;

    #[test]
    fn the_last_good_token_stays_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let write = |content: &str| std::fs::write(&path, content).unwrap();
        write("one\n");
        let metrics = Arc::<Metrics>::default();
        let hold = |token: Result<_, String>| Ok(Tokens::new(token?, Arc::clone(&metrics)));
        let mut tokens = Followed::<Tokens>::begin::<String>(reader(path.clone()), hold).unwrap();
        let token = tokens.held.subscribe();
        let mut read = reader(path.clone());
        let mut next = |content: &str| {
            write(content);
            let (outcome, files) = read();
            tokens.take(outcome, files, false);
            let page = metrics.render();
            let is_refused = page.contains("relay_files_refused{file=\"admin_token\"} 1\n");
            assert_eq!(is_refused, tokens.problems().len() == 1);
            is_refused
        };
        assert!(token.borrow().is(b"one"));
        for bad in ["", "\n", "a b"] {
            assert!(next(bad), "{bad:?}");
            assert!(token.borrow().is(b"one"), "{bad:?}");
        }
        assert!(!next("two"));
        assert!(token.borrow().is(b"two") && !token.borrow().is(b"one"));
    }
}
