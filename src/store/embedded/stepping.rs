//! A store without threads: what its threads do is done a turn at a time by whoever says whose turn it is,
//! so that one seed can stand for all that happens.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::time::Clock;
use crate::store::embedded::aside::Aside;
use crate::store::embedded::committer::Committer;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::lock::DirectoryLock;
use crate::store::embedded::opening::Workers;
use crate::store::embedded::past::Rest;
use crate::store::embedded::{EmbeddedStore, OpenError, Settings, Shared};

/// The threads of one store.
pub struct Stepper {
    shared: Arc<Shared>,
    committer: Option<Committer>,
    indexer: Option<Indexer>,
    rest: Option<Rest>,
    has_begun: bool,
    lock: Option<DirectoryLock>,
    stop: watch::Sender<bool>,
    is_caught_up: watch::Receiver<bool>,
}

impl fmt::Debug for Stepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepper").finish_non_exhaustive()
    }
}

impl Drop for Stepper {
    /// What waits holds the lanes, which hold what it waits in.
    fn drop(&mut self) {
        drop(self.shared.queue.take_now());
        drop(self.shared.inbox.take_now());
    }
}

impl EmbeddedStore {
    /// Opens a store in which nothing goes on but by its stepper.
    pub fn open_stepped(
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Stepper), OpenError> {
        let (store, workers) = Self::assemble(settings, clock, Instant::now(), Aside::Here)?;
        let Workers { committer, indexer, rest, lock, stop, is_caught_up, .. } = workers;
        let stepper = Stepper {
            shared: Arc::clone(&store.shared),
            committer: Some(committer),
            indexer: Some(indexer),
            rest: Some(rest),
            has_begun: false,
            lock: Some(lock),
            stop,
            is_caught_up,
        };
        Ok((store, stepper))
    }
}

impl Stepper {
    /// A turn of the thread that commits.
    pub fn commit(&mut self) {
        let Some(committer) = &mut self.committer else { return };
        if committer.is_far_ahead() {
            return;
        }
        if committer.turn(self.shared.queue.take_now()) {
            self.committer = None;
        }
    }

    /// A turn of the thread that indexes.
    pub fn index(&mut self) {
        let Some(indexer) = &mut self.indexer else { return };
        let is_over = if self.has_begun {
            indexer.turn(self.shared.inbox.take_now())
        } else {
            self.has_begun = true;
            indexer.begin()
        };
        if is_over {
            self.indexer = None;
            self.lock = None;
            self.stop.send_replace(true);
        }
    }

    /// The thread that reads what has to be known of the past.
    pub fn recall(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.read(&self.shared.log, &self.shared.queue, &self.shared.past_memory());
        }
    }

    /// Whether all from before this start is in the index.
    pub fn is_caught_up(&self) -> bool {
        *self.is_caught_up.borrow()
    }

    /// Whether the store was closed and all of it is written.
    pub fn is_over(&self) -> bool {
        self.indexer.is_none()
    }
}
