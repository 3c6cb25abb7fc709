//! What is remembered of a target's lane beside its deliveries: an operator's pause, a suspension.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::domain::lane::Suspension;
use crate::domain::time::Timestamp;

/// What an operator said last of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Keep everything, send nothing; said then.
    Pause(Timestamp),
    /// Go on, and take the target for one that is back; said then.
    Resume(Timestamp),
}

/// What is remembered of one target's lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// What an operator said last.
    pub word: Option<Word>,
    /// The target keeps failing.
    pub suspension: Option<Suspension>,
}

impl Mark {
    /// Since when an operator has it paused, if so.
    pub fn paused_at(&self) -> Option<Timestamp> {
        match self.word {
            Some(Word::Pause(at)) => Some(at),
            Some(Word::Resume(_)) | None => None,
        }
    }
}

/// Of all lanes, by target. Who is not in it has nothing to be remembered.
pub type Marks = BTreeMap<Box<str>, Mark>;

/// Why a mark could not be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Closed, or closing.
    #[error("the store is closed")]
    Closed,
    /// The disk refused.
    #[error("the disk does not take it: {0}")]
    Unavailable(String),
}

/// Remembers what is said of lanes.
///
/// # What every store promises
///
/// - **Durable before `Ok`.** What [`mark`](Self::mark) answered `Ok` to is there after `kill -9`
///   and a power cut. What it answered an error to is not in force.
/// - **One after the other.** Each change sees what all before it made.
pub trait MarkKeeper: Send + Sync + 'static {
    /// All marks, now and whenever they change.
    fn marks(&self) -> watch::Receiver<Arc<Marks>>;

    /// Changes them.
    fn mark(
        &self,
        change: impl FnOnce(&mut Marks) + Send + 'static,
    ) -> impl Future<Output = Result<(), MarkError>> + Send;
}
