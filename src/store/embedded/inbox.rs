//! What waits for the indexer.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::store::embedded::change::Entry;
use crate::store::embedded::index::queries::DueKey;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::lane::Lane;

// More than this is read from the log instead.
const ENTRIES_MAX: usize = 16_384;
// So many are applied without waiting for more. The more at once, the fewer pages are written again,
// and the more deliveries are over before they are in the index at all.
const ENTRIES_ENOUGH: usize = 2048;
// Or so many bytes of the log: a start would have to read them.
const BYTES_ENOUGH: u64 = 16 << 20;

/// A question to the index.
pub enum Request {
    /// A lane wants more.
    Refill {
        /// Which.
        lane: Arc<Lane>,
        /// From where on.
        bound: DueKey,
    },
    /// Anything else.
    Ask(Ask),
}

/// Asks; where it fails it is asked again when the index is sound.
pub type Ask = Box<dyn FnMut(&mut Indexer) -> rusqlite::Result<()> + Send>;

impl Request {
    /// A question, and who gets the answer to it: an error there means that nobody answers any more.
    pub fn ask<T: Send + 'static>(
        mut ask: impl FnMut(&mut Indexer) -> rusqlite::Result<T> + Send + 'static,
    ) -> (Self, oneshot::Receiver<T>) {
        let (reply, answer) = oneshot::channel();
        let mut reply = Some(reply);
        let ask = move |indexer: &mut Indexer| {
            let found = ask(indexer)?;
            // Whoever asked may have gone.
            reply.take().map(|reply| reply.send(found));
            Ok(())
        };
        (Self::Ask(Box::new(ask)), answer)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refill { lane, .. } => write!(f, "Refill({})", lane.name()),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    requests: Vec<Request>,
    // Some were dropped: the log has them.
    behind: bool,
    closed: bool,
    // The last of it was taken out.
    is_over: bool,
    // The indexer was woken for that already.
    was_enough: bool,
    // What it had written is answered.
    hurries: bool,
}

/// What the indexer finds.
#[derive(Debug, Default)]
pub struct News {
    /// Changes in the order of the log.
    pub entries: Vec<Entry>,
    /// Questions, behind the changes.
    pub requests: Vec<Request>,
    /// Changes were dropped.
    pub behind: bool,
    /// Nothing follows.
    pub closed: bool,
}

/// The queue before the indexer. Whoever adds to it never waits.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
    progress: Condvar,
    unindexed: AtomicU64,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds changes that take so many bytes of the log.
    pub fn push(&self, entries: Vec<Entry>, bytes: u64) {
        let mut state = self.lock();
        self.unindexed.fetch_add(bytes, Ordering::Relaxed);
        let before = state.entries.len();
        if state.behind || before + entries.len() > ENTRIES_MAX {
            state.behind = true;
            // What is in no log can't be read from it.
            state.entries.retain(|entry| entry.position.is_none());
            let unlogged = entries.into_iter().filter(|entry| entry.position.is_none());
            state.entries.extend(unlogged);
        } else {
            state.entries.extend(entries);
        }
        let enough = self.is_enough(&state);
        let first = before == 0 || (enough && !state.was_enough);
        state.was_enough = enough;
        drop(state);
        if first {
            self.wake.notify_one();
        }
    }

    fn is_enough(&self, state: &State) -> bool {
        let many = state.entries.len() >= ENTRIES_ENOUGH;
        many || (!state.entries.is_empty() && self.unindexed_bytes() >= BYTES_ENOUGH)
    }

    /// Asks something; when nobody answers any more, it is dropped.
    pub fn request(&self, request: Request) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        state.requests.push(request);
        drop(state);
        self.wake.notify_one();
    }

    /// Has the indexer look at once whether what it waits for is there.
    pub fn hurry(&self) {
        self.lock().hurries = true;
        self.wake.notify_one();
    }

    /// Says that nothing follows.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Waits for enough changes, a question, or until `until`; once there are any changes, no
    /// longer than `patience`.
    pub fn next(&self, patience: Duration, until: Instant) -> News {
        let mut state = self.lock();
        let mut deadline = until;
        let mut waiting_for_more = false;
        loop {
            let now = Instant::now();
            if !state.entries.is_empty() && !waiting_for_more {
                waiting_for_more = true;
                deadline = deadline.min(now + patience);
            }
            let hurries = std::mem::take(&mut state.hurries);
            let asked = !state.requests.is_empty() || hurries;
            let enough = self.is_enough(&state) || asked;
            if enough || state.behind || state.closed || now >= deadline {
                return Self::take(&mut state);
            }
            let wait = deadline.saturating_duration_since(now);
            state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What there is now, if anything.
    #[cfg(any(test, feature = "test-util"))]
    pub fn take_now(&self) -> News {
        Self::take(&mut self.lock())
    }

    fn take(state: &mut State) -> News {
        state.was_enough = false;
        state.is_over = state.closed;
        News {
            entries: std::mem::take(&mut state.entries),
            requests: std::mem::take(&mut state.requests),
            behind: std::mem::take(&mut state.behind),
            closed: state.closed,
        }
    }

    /// Bytes of the log that are not in the index, roughly.
    pub fn unindexed_bytes(&self) -> u64 {
        self.unindexed.load(Ordering::Relaxed)
    }

    /// So many bytes are in the index now; none: all of them.
    pub fn indexed(&self, bytes: Option<u64>) {
        let update = |now: u64| Some(bytes.map_or(0, |bytes| now.saturating_sub(bytes)));
        self.unindexed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).unwrap_or(0);
        self.progress.notify_all();
    }

    /// Waits until the indexer got on, or a while.
    pub fn wait_for_progress(&self, wait: Duration) {
        let state = self.lock();
        drop(self.progress.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
    }
}
