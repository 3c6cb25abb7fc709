//! A target's lane: of its backlog the part that is due first, in memory.
//!
//! What must hold, under a lane's lock:
//!
//! 1. A pending delivery is in exactly one place: leased, in the window, or only in the index.
//! 2. All keys in the window are below `bound`; everything that is only in the index is not.
//! 3. While a refill is under way, what arrives at or above `bound` is kept in `arrived`; what does
//!    not fit there lowers `arrived_bound`. So the new bound leaves nothing out.
//! 4. A refill is asked for through the committer's queue, behind all that was written before, so
//!    that the index has taken in every key that was left to it. What is settled after that is
//!    `touched`, and what the index still says of it is not believed.
//!
//! Whoever is offered nothing is woken, by `changed` or at a time:
//!
//! - The first of the window is due later: at that time, or by whatever is due before it (`put`).
//! - The window is empty: by what comes into it, if the index has nothing beyond `bound`; and if it has,
//!   a refill is under way, whose end wakes (`refilled`). Where the index fails it is asked again.
//! - There is no memory for what was picked: only what is leased has it, for what waits gives way
//!   (`make_room`). The end of each lease wakes, whether it is settled, given back, or gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::delivery::{Cause, Settlement};
use crate::domain::outcome::Attempt;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Header, Webhook, WebhookId};
use crate::store::embedded::change::{Change, Entry as IndexEntry};
use crate::store::embedded::index::queries::{Count, DueKey, DueRow};
use crate::store::embedded::index::stories::DeadRow;
use crate::store::embedded::indexer::{Inbox, Request};
use crate::store::embedded::lane::state::{Entry, Leased, Refill, State};
use crate::store::embedded::lane::tally::Counted;
use crate::store::embedded::memory::{Hold, Memory, Share};
use crate::store::embedded::offer::{Body, Offer};
use crate::store::embedded::queue::Queue;
use crate::store::{Delivery, LaneCounts, LeaseOwner, Pick};

pub(super) mod gone;
mod state;
pub(super) mod tally;

/// How many deliveries a window takes from the index; it holds twice as many at most.
pub const WINDOW: usize = 512;
// With fewer it asks for more. What is due next must not wait for the index, which may be busy for a
// tenth of a second just then.
const REFILL_BELOW: usize = WINDOW / 2;
// What a webhook in memory takes besides its body, roughly.
const WEBHOOK_BYTES: usize = 1024;

/// One target's.
#[derive(Debug)]
pub struct Lane {
    name: Arc<str>,
    share: Arc<Share>,
    state: Mutex<State>,
    changed: Arc<Notify>,
    queue: Arc<Queue>,
    inbox: Arc<Inbox>,
}

/// What a lane counts.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// Another one if anything has changed.
    pub(super) revision: u64,
    /// How many there are.
    pub(super) counted: Counted,
    /// Pending ones that are neither in memory nor asked for: there must be none.
    pub(super) without_next_step: i64,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Lane {
    /// A new one believes that all of its deliveries are in the index.
    pub(super) fn new(
        name: Arc<str>,
        memory: &Arc<Memory>,
        queue: Arc<Queue>,
        inbox: Arc<Inbox>,
    ) -> Self {
        let state = State { bound: Some(DueKey::FIRST), ..State::default() };
        let changed = Arc::new(Notify::new());
        let share = memory.share(Arc::clone(&changed));
        Self { name, share, state: Mutex::new(state), changed, queue, inbox }
    }

    /// Nothing was counted up to this start.
    pub(super) fn forget_base(&self) {
        self.lock().tally.forget_base();
    }

    /// What the index counted up to this start.
    pub(super) fn set_base(&self, count: &Count) {
        self.lock().tally.set_base(count.cause, signed(count.n));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Is notified when there is more to offer.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// A delivery of a webhook that was just committed.
    pub(super) fn push(&self, row: DueRow, webhook: &Arc<Webhook>, headers: Vec<Header>) {
        let mut state = self.lock();
        state.tally.count(1, None);
        let wanted = state.refill.is_some() || state.bound.is_none_or(|bound| row.key < bound);
        if !wanted {
            return;
        }
        let hold = self.share.hold(webhook.body.len() + WEBHOOK_BYTES);
        let body =
            hold.is_some().then(|| Body { webhook: Arc::clone(webhook), headers: headers.into() });
        let wake = state.put(Entry { row, body, hold });
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// A delivery that was added to a webhook.
    pub(super) fn add(&self, row: DueRow) {
        let mut state = self.lock();
        state.tally.count(1, None);
        let wake = state.put(Entry { row, body: None, hold: None });
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Leases what is due, at most `max`, or says when to come again.
    pub fn offer(self: &Arc<Self>, now: Timestamp, max: usize, pick: Pick) -> Offer {
        let mut state = self.lock();
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((key, entry)) = state.first(pick, now)
            && key.due_at <= now
        {
            let (key, bytes) = (*key, entry.row.webhook_at.length);
            let mut hold = None;
            if entry.hold.is_none() {
                hold = self.make_room(&mut state, usize::try_from(bytes).unwrap_or(0));
                if hold.is_none() {
                    break;
                }
            }
            let Some(entry) = state.window.remove(&key) else { break };
            let leased = Leased {
                row: entry.row,
                body: entry.body.clone(),
                hold: entry.hold.or(hold),
                is_gone: false,
            };
            let replaced = state.leased.insert((key.webhook, key.number), leased);
            debug_assert!(replaced.is_none(), "a delivery was leased twice");
            taken.push((entry.row, entry.body));
        }
        if state.window.len() < REFILL_BELOW {
            self.ask_for_refill(&mut state);
        }
        if !taken.is_empty() {
            let more = state.window.first_key_value().is_some_and(|(key, _)| key.due_at <= now);
            drop(state);
            if more {
                self.changed.notify_one();
            }
            return Offer::Due(taken);
        }
        match state.window.first_key_value() {
            // No memory: what is leased gives some back.
            Some((key, _)) if key.due_at <= now => {
                debug_assert!(!state.leased.is_empty(), "nobody will give memory back");
                Offer::Nothing
            }
            Some((key, _)) => Offer::At(key.due_at),
            // What was asked for comes, or nothing is pending.
            None => Offer::Nothing,
        }
    }

    fn ask_for_refill(self: &Arc<Self>, state: &mut State) {
        if state.refill.is_none()
            && let Some(bound) = state.bound
        {
            state.refill = Some(Refill::default());
            self.queue.request(Request::Refill { lane: Arc::clone(self), bound });
        }
    }

    /// Memory for a body that is to be leased, taken from all that wait, those first that are due last.
    /// None only where what is leased leaves no room: then the end of a lease is heard of.
    fn make_room(&self, state: &mut State, bytes: usize) -> Option<Hold> {
        let bytes = bytes + WEBHOOK_BYTES;
        if let Some(hold) = self.share.hold(bytes) {
            return Some(hold);
        }
        let leased = state.leased.values().filter_map(|leased| leased.hold.as_ref());
        // What waits is not asked in vain.
        if self.share.fits(bytes, leased.map(Hold::bytes).sum()) {
            for entry in state.waiting().rev() {
                entry.body = None;
                if entry.hold.take().is_some()
                    && let Some(hold) = self.share.hold(bytes)
                {
                    return Some(hold);
                }
            }
        }
        self.share.refuse();
        None
    }

    /// Keeps no body in memory of webhooks that wait and were received before that: the place of a
    /// backlog is the disk.
    pub fn forget_bodies(&self, before: Timestamp) {
        let mut state = self.lock();
        for entry in state.waiting() {
            if entry.body.as_ref().is_some_and(|body| body.webhook.received_at < before) {
                (entry.body, entry.hold) = (None, None);
            }
        }
    }

    /// Takes in what the index has from `asked` on; `rest` is where it goes on, if it does.
    pub fn refilled(self: &Arc<Self>, asked: DueKey, rows: Vec<DueRow>, rest: Option<DueKey>) {
        let mut state = self.lock();
        let Some(refill) = state.refill.take() else { return };
        // The window overflowed in the meantime: what is below the old bound may be in the index.
        if state.bound == Some(asked) {
            let bound = rest.into_iter().chain(refill.arrived_bound).min();
            let is_new = |key: &DueKey| bound.is_none_or(|bound| *key < bound);
            state.bound = bound;
            for (key, entry) in refill.arrived.into_iter().filter(|(key, _)| is_new(key)) {
                state.window.insert(key, entry);
            }
            for row in rows.into_iter().filter(|row| is_new(&row.key)) {
                let id = (row.key.webhook, row.key.number);
                if !refill.touched.contains(&id) && !state.leased.contains_key(&id) {
                    let entry = Entry { row, body: None, hold: None };
                    state.window.entry(row.key).or_insert(entry);
                }
            }
            state.trim();
        }
        if std::mem::take(&mut state.anew) {
            self.forget_window(&mut state);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Bytes of bodies that it has in memory.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.share.held()
    }

    /// Whether something is due and nothing is leased: whoever leases is at it this moment, or late.
    #[cfg(test)]
    pub fn is_idle(&self, now: Timestamp) -> bool {
        let state = self.lock();
        let is_due = state.window.first_key_value().is_some_and(|(key, _)| key.due_at <= now);
        is_due && state.leased.is_empty()
    }

    /// A body that was read is kept until its lease ends.
    pub fn keep(&self, row: &DueRow, body: &Body) {
        let id = (row.key.webhook, row.key.number);
        if let Some(leased) = self.lock().leased.get_mut(&id) {
            leased.body = Some(body.clone());
        }
    }

    /// Ends a lease.
    pub fn settle(
        &self,
        webhook: WebhookId,
        number: u16,
        attempt: Option<Attempt>,
        settlement: Settlement,
    ) {
        let mut state = self.lock();
        let Some(leased) = state.leased.remove(&(webhook.key(), number)) else {
            debug_assert!(false, "what is settled was leased");
            return;
        };
        if leased.is_gone {
            return;
        }
        let is_erased = state.erased.contains_key(&webhook.key());
        let (attempt, settlement) = match settlement {
            // What the target answered is not kept either.
            _ if !is_erased => (attempt, settlement),
            Settlement::Delivered => (None, Settlement::Delivered),
            _ => (None, Settlement::Discarded),
        };
        self.settle_row(&mut state, webhook, leased, attempt, settlement);
        drop(state);
        // There may be memory again, too.
        self.changed.notify_one();
    }

    fn settle_row(
        &self,
        state: &mut State,
        webhook: WebhookId,
        leased: Leased,
        attempt: Option<Attempt>,
        settlement: Settlement,
    ) {
        let Leased { mut row, body, hold, .. } = leased;
        let settled = row.settled(webhook, attempt, settlement);
        (row.version, row.attempts) = (settled.version, settled.attempts);
        if let Some(refill) = &mut state.refill {
            refill.touched.insert((row.key.webhook, row.key.number));
        }
        // First to be written, then into the lane: a refill must find it (invariant 4).
        if !self.queue.settle(settled.clone()) {
            self.inbox
                .push(vec![IndexEntry { position: None, change: Change::Settled(settled) }], 0);
        }
        match settlement {
            Settlement::Retry { at } => {
                row.key.due_at = at;
                state.put(Entry { row, body, hold });
            }
            Settlement::Redriven { at } => {
                row.key.due_at = at;
                row.started_at = at;
                state.put(Entry { row, body, hold });
            }
            Settlement::DeadLetter(cause) => {
                state.tally.count(-1, Some((cause, 1)));
            }
            Settlement::Delivered | Settlement::Discarded => state.tally.count(-1, None),
        }
    }

    /// Puts back what was leased.
    pub fn give_back(&self, webhook: u64, number: u16) {
        let mut state = self.lock();
        if let Some(leased) =
            state.leased.remove(&(webhook, number)).filter(|leased| !leased.is_gone)
        {
            if let Some(id) = state.erased.get(&webhook).copied() {
                self.settle_row(&mut state, id, leased, None, Settlement::Discarded);
            } else {
                let Leased { row, body, hold, .. } = leased;
                state.put(Entry { row, body, hold });
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Ends a pending delivery that nobody has leased; answers whether it was one. Followed by
    /// [`forget_ended`](Self::forget_ended).
    pub fn end(&self, row: DueRow, id: WebhookId, cause: Cause) -> bool {
        let mut state = self.lock();
        let key = row.key;
        let is_ending = state.erased.contains_key(&key.webhook);
        if is_ending || state.leased.contains_key(&(key.webhook, key.number)) {
            return false;
        }
        let in_window = state.window.remove(&key).is_some();
        // Below the bound and not in the window: it was settled since the index was asked.
        if !in_window && state.bound.is_none_or(|bound| key < bound) {
            return false;
        }
        // What the index goes on to say of it until it has taken that in is not believed.
        if !in_window && !state.ended.insert((key.webhook, key.number)) {
            return false;
        }
        if let Some(refill) = &mut state.refill {
            refill.arrived.remove(&key);
        }
        let leased = Leased::bare(row);
        self.settle_row(&mut state, id, leased, None, Settlement::DeadLetter(cause));
        true
    }

    /// Forgets what was ended so far when the index has taken that in.
    pub(super) fn forget_ended(self: &Arc<Self>) {
        let ended: Vec<_> = self.lock().ended.iter().copied().collect();
        if ended.is_empty() {
            return;
        }
        let lane = Arc::clone(self);
        // Behind what was settled.
        self.queue.request(Request::Ask(Box::new(move |_| {
            let mut state = lane.lock();
            for id in &ended {
                state.ended.remove(id);
            }
            Ok(())
        })));
    }

    /// Settles a dead letter by an operator's word. The index has that already.
    pub fn settle_dead(&self, dead: &DeadRow, settlement: Settlement) {
        let DeadRow { row, id, cause, .. } = *dead;
        let mut state = self.lock();
        state.tally.count(1, Some((cause, -1)));
        self.settle_row(&mut state, id, Leased::bare(row), None, settlement);
        drop(state);
        self.changed.notify_one();
    }

    /// A dead letter's time is over.
    pub fn forget_dead(&self, cause: Cause, n: i64) {
        self.lock().tally.count(0, Some((cause, -n)));
    }

    /// What the index says of the oldest pending one, and of the bytes that all of them pin, and the
    /// dead letters.
    pub fn set_index(&self, oldest: Option<Timestamp>, bytes: [u64; 2]) {
        let mut state = self.lock();
        (state.index_oldest, state.index_bytes) = (oldest, bytes);
    }

    /// What it counts, to be held against what the index does.
    pub(super) fn standing(&self) -> Standing {
        let state = self.lock();
        let counted = state.tally.counted();
        let in_memory = state.window.len() + state.not_gone().count();
        let is_all_in_memory = state.bound.is_none() && state.refill.is_none();
        let elsewhere = counted.pending - signed(in_memory as u64);
        Standing {
            revision: state.tally.revision(),
            without_next_step: if is_all_in_memory { elsewhere } else { elsewhere.min(0) },
            counted,
        }
    }

    /// What it holds.
    pub fn counts(&self) -> LaneCounts {
        let state = self.lock();
        let waiting = state.window.values().map(|entry| entry.row.started_at);
        let leased = state.not_gone().map(|leased| leased.row.started_at);
        let index = state.index_oldest.filter(|_| state.bound.is_some());
        let counted = state.tally.counted();
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        let pending = number(counted.pending);
        let dead = counted.dead.into_iter().map(|(cause, n)| (cause, number(n)));
        let dead: Vec<_> = dead.filter(|(_, n)| *n > 0).collect();
        let [backlog_bytes, dead_letters_bytes] = state.index_bytes;
        LaneCounts {
            target: self.name.as_ref().into(),
            pending,
            oldest: waiting.chain(leased).chain(index).min().filter(|_| pending > 0),
            backlog_bytes: if pending > 0 { backlog_bytes } else { 0 },
            dead_letters_bytes: if dead.is_empty() { 0 } else { dead_letters_bytes },
            dead,
        }
    }

    /// How many deliveries are leased.
    pub fn leased(&self) -> usize {
        self.lock().leased.len()
    }

    /// How many deliveries are in memory.
    pub fn in_memory(&self) -> usize {
        let state = self.lock();
        state.window.len() + state.leased.len()
    }
}

impl LeaseOwner for Lane {
    fn lapse(&self, delivery: &Delivery) {
        self.give_back(delivery.webhook.id.key(), delivery.number);
    }
}
