//! What is in force and rests on files: follows them, takes over what is good in them, and remembers what
//! is not, once for everything that is held so.
//!
//! Files are read on threads for blocking work: a file system that hangs holds up reloads and nothing
//! else.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::time::Instant;

use crate::app::follower::{Follower, Look};
use crate::config::file::FileRead;
use crate::config::{Problem, Problems};
use crate::net::tls::TlsError;

/// Something that can be replaced while the relay runs.
pub(super) trait Held {
    /// What is made of its files.
    type Content: Send + 'static;
    /// Why nothing could be made of them.
    type Error: Wrong + Send + 'static;

    /// Puts it in the place of what is in force, and says so; where that can't be, nothing changes.
    fn put_in_force(&mut self, content: Self::Content) -> Result<(), Self::Error>;

    /// Logs that the files are as they are in force.
    fn say_unchanged(&self);

    /// Logs that what is in the files can't be used.
    fn say_refused(&self, error: &Self::Error);

    /// Shows in the metrics that what is in the files can't be used, or can again.
    fn show_refused(&self, is_refused: bool);
}

/// Why what is in files can't be used.
pub(super) trait Wrong {
    /// All that is wrong, as the API says it; `file` is the first of them.
    fn problems(&self, file: &Path) -> Vec<Value>;
}

impl Wrong for Problems {
    fn problems(&self, _file: &Path) -> Vec<Value> {
        self.iter().map(Problem::json).collect()
    }
}

impl Wrong for String {
    fn problems(&self, file: &Path) -> Vec<Value> {
        vec![Problem::of_file(file, self.as_str()).json()]
    }
}

impl Wrong for TlsError {
    fn problems(&self, file: &Path) -> Vec<Value> {
        self.to_string().problems(file)
    }
}

/// What was made of the files.
pub(super) type Outcome<H> = Result<<H as Held>::Content, <H as Held>::Error>;

/// That, and what was read for it.
pub(super) type Reading<H> = (Outcome<H>, Vec<FileRead>);

/// What the last content that was at rest came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in force since then.
    Changed,
    /// It can't be used.
    Refused,
    /// It was in force already.
    Unchanged,
}

/// What could not be taken over.
struct Refused<E> {
    files: Vec<FileRead>,
    error: E,
}

/// What is in force, and what its files came to last.
pub(super) struct Followed<H: Held> {
    pub(super) held: H,
    pub(super) last: Taken,
    /// What it rests on.
    in_force: Vec<FileRead>,
    refused: Option<Refused<H::Error>>,
    follower: Arc<Mutex<Follower<Outcome<H>>>>,
}

impl<H: Held> Followed<H> {
    /// Reads the files, holds what is made of them, and follows them from then on.
    pub(super) fn begin<E>(
        mut read: impl FnMut() -> Reading<H> + Send + 'static,
        hold: impl FnOnce(Outcome<H>) -> Result<H, E>,
    ) -> Result<Self, E> {
        let (outcome, files) = read();
        Ok(Self::follow(hold(outcome)?, None, files, read))
    }

    /// Follows files that have been read just now: `held` was made of them or, where they were refused,
    /// waits for something that can be used.
    pub(super) fn follow(
        held: H,
        refused: Option<H::Error>,
        files: Vec<FileRead>,
        read: impl FnMut() -> Reading<H> + Send + 'static,
    ) -> Self {
        let follower = Arc::new(Mutex::new(Follower::new(files.clone(), read)));
        let Some(error) = refused else {
            let last = Taken::Unchanged;
            return Self { held, last, in_force: files, refused: None, follower };
        };
        held.show_refused(true);
        let refused = Some(Refused { files, error });
        // No reading is equal to nothing: whatever can be used is taken.
        Self { held, last: Taken::Refused, in_force: Vec::new(), refused, follower }
    }

    /// Says why what was there at first can't be used, if it can't.
    pub(super) fn say_refused(&self) {
        if let Some(Refused { error, .. }) = &self.refused {
            self.held.say_refused(error);
        }
    }

    /// Looks at the files, `closely` in any case, and takes over what has settled. Answers when to look
    /// again, where something is about to settle. `asked`: somebody wants to hear of it.
    pub(super) async fn look(&mut self, closely: bool, asked: bool) -> Option<Instant> {
        let follower = Arc::clone(&self.follower);
        let looked = tokio::task::spawn_blocking(move || {
            let mut follower = follower.lock().unwrap_or_else(PoisonError::into_inner);
            if closely { follower.look_closely() } else { follower.look() }
        });
        match looked.await {
            Ok(Look::AtRest) => None,
            Ok(Look::Moving(at)) => Some(at),
            Ok(Look::Settled(outcome, files)) => {
                self.take(outcome, files, asked);
                None
            }
            Err(error) => {
                // It has forgotten what it was about, and looks again when the files change.
                tracing::error!(%error, "Reading a file broke off: what was in force stays.");
                None
            }
        }
    }

    /// Takes over a content that is at rest. What is refused is told once, or whenever it is asked for.
    pub(super) fn take(&mut self, outcome: Outcome<H>, files: Vec<FileRead>, asked: bool) {
        let before = self.refused.take();
        let taken = outcome.and_then(|content| {
            // It may have been read while it was something else: the files are what counts.
            if files == self.in_force {
                return Ok(Taken::Unchanged);
            }
            self.held.put_in_force(content).map(|()| Taken::Changed)
        });
        if taken.is_err() != before.is_some() {
            self.held.show_refused(taken.is_err());
        }
        self.last = match taken {
            Ok(taken) => {
                if taken == Taken::Unchanged && (asked || before.is_some()) {
                    self.held.say_unchanged();
                }
                self.in_force = files;
                taken
            }
            Err(error) => {
                if asked || before.is_none_or(|before| before.files != files) {
                    self.held.say_refused(&error);
                }
                self.refused = Some(Refused { files, error });
                Taken::Refused
            }
        };
    }

    /// What is wrong with what is there, as the API says it; nothing where it is in force.
    pub(super) fn problems(&self) -> Vec<Value> {
        let of = |refused: &Refused<H::Error>| {
            let file = refused.files.first().map_or(Path::new(""), FileRead::path);
            refused.error.problems(file)
        };
        self.refused.as_ref().map(of).unwrap_or_default()
    }
}
