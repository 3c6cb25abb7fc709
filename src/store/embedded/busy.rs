//! Since when the committer has been in the disk: a disk that hangs answers nobody, so that
//! somebody else has to say so.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::limit::ANSWER_WAIT_MAX;
use crate::store::embedded::failing::Failing;
use crate::store::{CommitError, Pulse};

/// Since when the committer has been doing something that it waits for.
#[derive(Debug, Default)]
pub struct Busy(Mutex<Option<Instant>>);

impl Busy {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work begins.
    pub fn begin(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// Work is done.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// How commits get through, as far as this and `failing` know.
    pub fn pulse(&self, failing: &Failing) -> Pulse {
        let held_up_for =
            self.lock().map_or(Duration::ZERO, |since| Instant::now().duration_since(since));
        let held_up = (held_up_for > ANSWER_WAIT_MAX).then_some(CommitError::Unavailable);
        Pulse { failing: failing.get().or(held_up), held_up_for }
    }
}
