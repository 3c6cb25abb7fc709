//! What lanes say of themselves, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::domain::lane::LaneState;
use crate::domain::outcome::Attempt;
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;

/// How a lane is.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Where it stands.
    pub state: LaneState,
    /// Until when its target asked to be left alone, by `Retry-After`; in the past, it does not.
    pub held_until: Option<Timestamp>,
    /// What ended last, since this start.
    pub last: Option<(WebhookId, Attempt)>,
}

/// All lanes that run.
#[derive(Debug)]
pub struct Board {
    posts: Mutex<BTreeMap<Arc<str>, Arc<Post>>>,
    // How often a state has changed.
    changed: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self { posts: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Board {
    fn posts(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Post>>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of all lanes that run, by target.
    pub fn all(&self) -> BTreeMap<Arc<str>, Status> {
        let posts = self.posts();
        posts.iter().map(|(name, post)| (Arc::clone(name), post.status())).collect()
    }

    /// Changes whenever the state of a lane does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Where a lane writes.
    pub(super) fn post(&self, name: &Arc<str>) -> Arc<Post> {
        Arc::clone(self.posts().entry(Arc::clone(name)).or_default())
    }

    /// It does not run any more.
    pub(super) fn remove(&self, name: &str) {
        self.posts().remove(name);
    }

    pub(super) fn state_changed(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// One lane's place on the board.
#[derive(Debug, Default)]
pub(super) struct Post(Mutex<Status>);

impl Post {
    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn status(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
