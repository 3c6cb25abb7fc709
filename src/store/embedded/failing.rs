//! Whether anything can be committed: said once, and once when it can be again.

use std::sync::{Mutex, PoisonError};

use crate::store::CommitError;

/// Why nothing can be committed now, if so.
#[derive(Debug, Default)]
pub struct Failing(Mutex<Option<CommitError>>);

impl Failing {
    /// Why, if so.
    pub fn get(&self) -> Option<CommitError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why from now on; told if that is news.
    pub fn set(&self, error: Option<CommitError>) {
        let before =
            std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), error);
        match (before, error) {
            (None, Some(error)) => tracing::error!(%error, "nothing can be committed"),
            (Some(_), None) => tracing::warn!("the store takes webhooks again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}
