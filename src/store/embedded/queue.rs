//! What waits for the committer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::webhook::{NewDelivery, Webhook};
use crate::store::CommitError;
use crate::store::claims::Claimed;
use crate::store::embedded::change::Change;
use crate::store::embedded::index::queries::DueRow;
use crate::store::embedded::indexer::Request;
use crate::store::embedded::record::{Kind, Settled};
use crate::store::embedded::segment::Position;

const WEBHOOKS_MAX: usize = 4096;
const BYTES_MAX: usize = 512 << 20;
// One write: more waits for the next.
const BATCH_BYTES_MAX: usize = 16 << 20;
// Beyond this the disk has failed for long; what is forgotten is delivered again after a restart.
const SETTLED_MAX: usize = 65_536;

/// A webhook that waits to become durable.
#[derive(Debug)]
pub struct Waiting {
    /// The webhook, without its deliveries.
    pub webhook: Arc<Webhook>,
    /// Its deliveries.
    pub deliveries: Vec<NewDelivery>,
    /// Its record but for the body.
    pub meta: Vec<u8>,
    /// The CRC-32 of the record with the body.
    pub crc: u32,
    /// The right to commit it.
    pub claimed: Claimed,
    /// Who waits.
    pub reply: oneshot::Sender<Result<(), CommitError>>,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.meta.len() + self.webhook.body.len() + 64
    }
}

/// Records that the store itself writes.
#[derive(Debug)]
pub struct Own {
    /// The records.
    pub records: Vec<OwnRecord>,
    /// Where they are, once durable.
    pub reply: oneshot::Sender<Vec<Position>>,
}

/// A record of the store's own.
#[derive(Debug)]
pub struct OwnRecord {
    /// Its kind.
    pub kind: Kind,
    /// Its payload but for the body.
    pub meta: Vec<u8>,
    /// The body, if it has one.
    pub body: Bytes,
    /// What it means to the index.
    pub change: Change,
    /// What of it is due: into the lanes of these targets, once it is durable.
    pub due: Vec<(Arc<str>, DueRow)>,
}

/// All that waits.
#[derive(Debug, Default)]
pub struct Work {
    /// Webhooks.
    pub webhooks: Vec<Waiting>,
    /// Settlements.
    pub settled: Vec<Settled>,
    /// The store's own records.
    pub own: Vec<Own>,
    /// To be passed on to the indexer behind all of these.
    pub requests: Vec<Request>,
    /// The current segment is to be closed.
    pub roll: bool,
    /// Nothing follows.
    pub closing: bool,
}

#[derive(Debug, Default)]
struct State {
    webhooks: VecDeque<Waiting>,
    bytes: usize,
    settled: Vec<Settled>,
    settled_since: Option<Instant>,
    own: Vec<Own>,
    requests: Vec<Request>,
    roll: bool,
    closing: bool,
    // Nobody takes anything out any more.
    is_over: bool,
    // How many webhooks are worth waking the committer for.
    wake_at: usize,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

/// How long the committer waits for more.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How many webhooks it hopes for.
    pub linger_for: usize,
    /// How long at most.
    pub linger: Duration,
    /// How long settlements wait for a webhook to be written with.
    pub settled: Duration,
    /// When it has something to do without being asked.
    pub until: Option<Instant>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a webhook.
    pub fn commit(&self, waiting: Waiting) -> Result<(), (CommitError, Waiting)> {
        let mut state = self.lock();
        let bytes = waiting.bytes();
        if state.closing {
            return Err((CommitError::Closed, waiting));
        }
        let full = state.webhooks.len() >= WEBHOOKS_MAX || state.bytes + bytes > BYTES_MAX;
        if full && !state.webhooks.is_empty() {
            return Err((CommitError::Overloaded, waiting));
        }
        state.bytes += bytes;
        state.webhooks.push_back(waiting);
        let wake = state.webhooks.len() >= state.wake_at;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Adds a settlement; answers false if it can't be kept.
    pub fn settle(&self, settled: Settled) -> bool {
        let mut state = self.lock();
        if state.settled.len() >= SETTLED_MAX || state.closing {
            return false;
        }
        state.settled.push(settled);
        let first = state.settled_since.is_none();
        if first {
            state.settled_since = Some(Instant::now());
        }
        drop(state);
        // It is woken once and knows from then on when to come back.
        if first {
            self.wake.notify_one();
        }
        true
    }

    /// Adds records of the store's own. While it closes they are dropped, and with them the reply:
    /// nobody may be left who would write them, and whoever waits for that would hold up the stop.
    pub fn write(&self, own: Own) {
        let mut state = self.lock();
        if state.closing {
            return;
        }
        state.own.push(own);
        drop(state);
        self.wake.notify_one();
    }

    /// Passes a request on to the indexer, behind everything that waits now. Dropped, and with it whoever
    /// waits for the answer, when nobody takes it out any more.
    pub fn request(&self, request: Request) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        state.requests.push(request);
        drop(state);
        self.wake.notify_one();
    }

    /// Asks for a new segment.
    pub fn roll(&self) {
        self.lock().roll = true;
        self.wake.notify_one();
    }

    /// Takes nothing more.
    pub fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// Whether it takes nothing more.
    pub fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Whether the store's own records wait.
    pub fn has_own(&self) -> bool {
        let state = self.lock();
        !state.own.is_empty() || state.closing
    }

    /// Waits for something to do.
    pub fn next(&self, patience: Patience) -> Work {
        let lingers_until = Instant::now() + patience.linger;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let urgent = !state.own.is_empty()
                || !state.requests.is_empty()
                || state.roll
                || state.closing
                || patience.until.is_some_and(|until| until <= now);
            let lingering = now < lingers_until && state.webhooks.len() < patience.linger_for;
            let settled_until = state.settled_since.map(|since| since + patience.settled);
            if urgent
                || (!state.webhooks.is_empty() && !lingering)
                || settled_until.is_some_and(|until| until <= now)
            {
                return Self::take(&mut state);
            }
            state.wake_at = if lingering { patience.linger_for.max(1) } else { 1 };
            let linger = lingering.then_some(lingers_until);
            let until = [linger, settled_until, patience.until].into_iter().flatten().min();
            state = match until {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    self.wake
                        .wait_timeout(state, until.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// What there is to do now, if anything.
    #[cfg(any(test, feature = "test-util"))]
    pub fn take_now(&self) -> Work {
        Self::take(&mut self.lock())
    }

    fn take(state: &mut State) -> Work {
        let (mut count, mut bytes) = (0, 0);
        for waiting in &state.webhooks {
            if count > 0 && bytes + waiting.bytes() > BATCH_BYTES_MAX {
                break;
            }
            bytes += waiting.bytes();
            count += 1;
        }
        state.bytes -= bytes;
        // Busy: whoever comes now is found when this is done.
        state.wake_at = usize::MAX;
        state.settled_since = None;
        let all = count == state.webhooks.len();
        state.is_over = state.closing && all;
        Work {
            webhooks: state.webhooks.drain(..count).collect(),
            settled: std::mem::take(&mut state.settled),
            own: std::mem::take(&mut state.own),
            requests: if all { std::mem::take(&mut state.requests) } else { Vec::new() },
            roll: std::mem::take(&mut state.roll),
            closing: state.closing && all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    #[test]
    fn who_asks_when_it_is_over_is_not_left_waiting() {
        let queue = Queue::default();
        let (before, mut answer) = Request::ask(|_| Ok(()));
        queue.close();
        queue.request(before);
        let work = queue.take_now();
        assert_eq!((work.closing, work.requests.len()), (true, 1));
        assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
        let (after, mut answer) = Request::ask(|_| Ok(()));
        queue.request(after);
        assert_eq!(answer.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn who_has_something_written_while_it_closes_is_not_left_waiting() {
        let queue = Queue::default();
        queue.close();
        let (reply, mut answer) = oneshot::channel();
        queue.write(Own { records: Vec::new(), reply });
        assert_eq!(answer.try_recv(), Err(TryRecvError::Closed));
    }
}
