//! The token that the API wants: loaded at the start, and again when its file changes.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::sync::watch;

use crate::config::file::FileRead;
use crate::config::{Problem, token_from_file};
use crate::domain::signature::Secret;

/// What was made of the file.
pub(super) type Outcome = Result<Secret, String>;

/// Reads the file, and says what was read.
pub(super) fn reader(path: PathBuf) -> impl FnMut() -> (Outcome, Vec<FileRead>) {
    move || {
        let mut files = Vec::new();
        let outcome = read(&path, &mut files);
        (outcome, files)
    }
}

fn read(path: &Path, files: &mut Vec<FileRead>) -> Outcome {
    let bytes = token_from_file(path, files)?;
    let shown = path.display();
    Secret::new(format!("file:{shown}"), &bytes).ok_or_else(|| format!("{shown} is empty"))
}

/// The token in force.
pub(super) struct Tokens {
    token: watch::Sender<Secret>,
    /// What it rests on.
    in_force: Vec<FileRead>,
    refused: Option<Refused>,
}

/// What could not be taken over.
struct Refused {
    files: Vec<FileRead>,
    error: String,
}

impl Tokens {
    /// With the first one.
    pub(super) fn new(token: Secret, in_force: Vec<FileRead>) -> Self {
        Self { token: watch::Sender::new(token), in_force, refused: None }
    }

    /// The one in force, now and later.
    pub(super) fn subscribe(&self) -> watch::Receiver<Secret> {
        self.token.subscribe()
    }

    /// Takes over a content that is at rest; the one before it is refused from then on.
    pub(super) fn take(&mut self, outcome: Outcome, files: Vec<FileRead>, asked: bool) {
        let before = self.refused.take();
        match outcome {
            Ok(_) if files == self.in_force => {
                if before.is_some() {
                    tracing::info!("The admin token's file is as it is in force.");
                }
            }
            Ok(token) => {
                self.in_force = files;
                self.token.send_replace(token);
                tracing::info!("A new admin token is in force.");
            }
            Err(error) => {
                if asked || before.is_none_or(|before| before.files != files) {
                    tracing::error!(
                        error,
                        "The admin token can't be renewed: the one from before is wanted."
                    );
                }
                self.refused = Some(Refused { files, error });
            }
        }
    }

    /// What is wrong with what is there, as the API says it.
    pub(super) fn problem(&self) -> Option<Value> {
        let refused = self.refused.as_ref()?;
        let file = refused.files.first()?.path();
        Some(Problem::of_file(file, &*refused.error).json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_good_token_stays_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut read = reader(path.clone());
        let mut next = |content: &str| {
            std::fs::write(&path, content).unwrap();
            read()
        };
        let (first, files) = next("one\n");
        let mut tokens = Tokens::new(first.unwrap(), files);
        let token = tokens.subscribe();
        assert!(token.borrow().is(b"one"));
        for bad in ["", "\n", "a b"] {
            let (outcome, files) = next(bad);
            tokens.take(outcome, files, false);
            assert!(token.borrow().is(b"one"), "{bad:?}");
            assert!(tokens.problem().is_some(), "{bad:?}");
        }
        let (outcome, files) = next("two");
        tokens.take(outcome, files, false);
        assert!(token.borrow().is(b"two") && !token.borrow().is(b"one"));
        assert!(tokens.problem().is_none());
    }
}
