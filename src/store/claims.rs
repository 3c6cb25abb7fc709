//! Duplicates: who is the first with some bytes, and who only repeats them.
//!
//! What is known of the past is a [`Recent`] set that the store fills; what is being committed
//! right now is kept here. A claim is the right to commit: while one is held, others with the same
//! key wait.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use tokio::sync::oneshot;

use crate::domain::source::DuplicateWindows;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::{DuplicateKey, WebhookId};

/// The answer to a claim.
#[derive(Debug)]
pub enum Claim {
    /// The same bytes were committed inside the window, as this webhook.
    Duplicate(WebhookId),
    /// Nobody has these bytes: commit them.
    First(Claimed),
}

/// What is known of committed webhooks.
pub trait Recent: Send {
    /// The webhook with this key and whether its body carried an activity's id.
    fn find(&self, key: &DuplicateKey) -> Option<(WebhookId, bool)>;

    /// Remembers a committed webhook.
    fn insert(&mut self, key: DuplicateKey, id: WebhookId, activity_id: bool);
}

/// The claims of one store.
pub struct Claims<R> {
    inner: Arc<Inner<R>>,
}

struct Inner<R> {
    clock: Arc<dyn Clock>,
    state: Mutex<State<R>>,
}

struct State<R> {
    recent: R,
    held: HashTable<Held>,
}

struct Held {
    key: DuplicateKey,
    // Nothing is ever sent: they are dropped when the claim ends, one way or the other.
    waiting: Vec<oneshot::Sender<()>>,
}

/// The hash of eight bytes of a key. That is a digest already, and a sender who could choose it
/// could also choose the HMAC.
pub fn hash_of(bytes: u64) -> u64 {
    bytes.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn hash(key: &DuplicateKey) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    hash_of(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

impl<R: Recent + 'static> Claims<R> {
    /// No claims, and what is known of the past.
    pub fn new(recent: R, clock: Arc<dyn Clock>) -> Self {
        let state = Mutex::new(State { recent, held: HashTable::new() });
        Self { inner: Arc::new(Inner { clock, state }) }
    }

    /// Looks into what is known of the past.
    pub fn recent<T>(&self, look: impl FnOnce(&mut R) -> T) -> T {
        look(&mut self.inner.lock().recent)
    }

    /// Asks for the right to commit; waits while somebody else holds it for the same key.
    pub async fn claim(&self, key: DuplicateKey, windows: DuplicateWindows) -> Claim {
        loop {
            let ended = match self.inner.try_claim(key, windows, self.inner.clock.now()) {
                Ok(claim) => return claim,
                Err(ended) => ended,
            };
            // An error, always: it was dropped.
            ended.await.unwrap_or_default();
        }
    }
}

impl<R: Recent + 'static> Inner<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_claim(
        self: &Arc<Self>,
        key: DuplicateKey,
        windows: DuplicateWindows,
        now: Timestamp,
    ) -> Result<Claim, oneshot::Receiver<()>> {
        let mut state = self.lock();
        let State { recent, held } = &mut *state;
        match held.entry(hash(&key), |held| held.key == key, |held| hash(&held.key)) {
            Entry::Occupied(mut held) => {
                let (ended, receiver) = oneshot::channel();
                held.get_mut().waiting.push(ended);
                return Err(receiver);
            }
            Entry::Vacant(place) => {
                if let Some((id, activity_id)) = recent.find(&key) {
                    let window = if activity_id { windows.activities } else { windows.bare };
                    if now.since(id.timestamp()) < window {
                        return Ok(Claim::Duplicate(id));
                    }
                }
                place.insert(Held { key, waiting: Vec::new() });
            }
        }
        drop(state);
        let owner = Arc::clone(self) as Arc<dyn Owner>;
        Ok(Claim::First(Claimed { key, owner: Some(owner) }))
    }
}

trait Owner: Send + Sync {
    /// Ends claims: with what was committed, if so.
    fn end(&self, ended: &mut dyn Iterator<Item = (DuplicateKey, Option<(WebhookId, bool)>)>);
}

impl<R: Recent + 'static> Owner for Inner<R> {
    fn end(&self, ended: &mut dyn Iterator<Item = (DuplicateKey, Option<(WebhookId, bool)>)>) {
        let mut waiting = Vec::new();
        let mut state = self.lock();
        for (key, committed) in ended {
            if let Some((id, activity_id)) = committed {
                state.recent.insert(key, id, activity_id);
            }
            if let Ok(held) = state.held.find_entry(hash(&key), |held| held.key == key) {
                waiting.append(&mut held.remove().0.waiting);
            }
        }
        drop(state);
        // Only now, so that whoever waits finds the outcome.
        drop(waiting);
    }
}

/// The right to commit a webhook with some key. Dropped, it lets the next claimant go on.
pub struct Claimed {
    key: DuplicateKey,
    owner: Option<Arc<dyn Owner>>,
}

impl Claimed {
    /// The webhook is durable: from here on the same bytes are its duplicate.
    pub fn committed(self, id: WebhookId, activity_id: bool) {
        Self::all_committed(std::iter::once((self, id, activity_id)));
    }

    /// The same for the claims of one store, all of them at once: those who claim meanwhile wait
    /// once, not once for each.
    pub fn all_committed(claims: impl IntoIterator<Item = (Self, WebhookId, bool)>) {
        let mut claims = claims.into_iter().peekable();
        let Some(owner) = claims.peek_mut().and_then(|(first, ..)| first.owner.clone()) else {
            return;
        };
        owner.end(&mut claims.map(|(mut claimed, id, activity_id)| {
            claimed.owner = None;
            (claimed.key, Some((id, activity_id)))
        }));
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.end(&mut std::iter::once((self.key, None)));
        }
    }
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claimed")
    }
}

impl<R> fmt::Debug for Claims<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claims")
    }
}
