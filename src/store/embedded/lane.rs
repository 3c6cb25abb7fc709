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

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::{HashMap, HashSet};
use tokio::sync::Notify;

use crate::domain::delivery::{Cause, Settlement};
use crate::domain::outcome::Attempt;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Header, Webhook, WebhookId};
use crate::store::embedded::change::{Change, Entry as IndexEntry};
use crate::store::embedded::index::queries::{Count, DueKey, DueRow};
use crate::store::embedded::index::stories::DeadRow;
use crate::store::embedded::indexer::{Inbox, Request};
use crate::store::embedded::memory::{Hold, Share};
use crate::store::embedded::offer::{Body, Offer};
use crate::store::embedded::queue::Queue;
use crate::store::{Delivery, LaneCounts, LeaseOwner, Pick};

/// How many deliveries a window takes from the index; it holds twice as many at most.
pub const WINDOW: usize = 512;
// What a webhook in memory takes besides its body, roughly.
const WEBHOOK_BYTES: usize = 1024;

/// One target's.
#[derive(Debug)]
pub struct Lane {
    name: Arc<str>,
    share: Arc<Share>,
    state: Mutex<State>,
    changed: Notify,
    queue: Arc<Queue>,
    inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
struct State {
    window: BTreeMap<DueKey, Entry>,
    // None: nothing is only in the index.
    bound: Option<DueKey>,
    leased: HashMap<(u64, u16), Leased>,
    // What is leased of them ends with its lease.
    erased: HashMap<u64, WebhookId>,
    refill: Option<Refill>,
    base_pending: i64,
    base_dead: HashMap<Cause, i64>,
    pending: i64,
    dead: HashMap<Cause, i64>,
    // Grows with each change of what is counted.
    revision: u64,
    index_oldest: Option<Timestamp>,
    index_bytes: u64,
}

#[derive(Debug, Default)]
struct Refill {
    arrived: BTreeMap<DueKey, Entry>,
    arrived_bound: Option<DueKey>,
    touched: HashSet<(u64, u16)>,
}

/// What a lane counts.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// Another one if anything has changed.
    pub(super) revision: u64,
    /// Due, now or later, and leased.
    pub(super) pending: i64,
    /// Dead letters.
    pub(super) dead: HashMap<Cause, i64>,
    /// Pending ones that are neither in memory nor asked for: there must be none.
    pub(super) without_next_step: i64,
}

/// A delivery in a window.
#[derive(Debug)]
pub struct Entry {
    /// What the index knows of it.
    pub row: DueRow,
    /// The webhook, if there is memory for it.
    pub body: Option<Body>,
    hold: Option<Hold>,
}

#[derive(Debug)]
struct Leased {
    row: DueRow,
    body: Option<Body>,
    hold: Option<Hold>,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Lane {
    /// A new one believes that all of its deliveries are in the index.
    pub(super) fn new(
        name: Arc<str>,
        share: Arc<Share>,
        queue: Arc<Queue>,
        inbox: Arc<Inbox>,
    ) -> Self {
        let state = State { bound: Some(DueKey::FIRST), ..State::default() };
        Self { name, share, state: Mutex::new(state), changed: Notify::new(), queue, inbox }
    }

    /// Nothing was counted up to this start.
    pub(super) fn forget_base(&self) {
        let mut state = self.lock();
        state.revision += 1;
        (state.base_pending, state.base_dead) = (0, HashMap::new());
    }

    /// What the index counted up to this start.
    pub(super) fn set_base(&self, count: &Count) {
        let mut state = self.lock();
        state.revision += 1;
        match count.cause {
            None => state.base_pending = signed(count.n),
            Some(cause) => {
                state.base_dead.insert(cause, signed(count.n));
            }
        }
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
        state.count(1, None);
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
        state.count(1, None);
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
                hold = self.make_room(&mut state, key, usize::try_from(bytes).unwrap_or(0));
                if hold.is_none() {
                    break;
                }
            }
            let Some(entry) = state.window.remove(&key) else { break };
            let leased =
                Leased { row: entry.row, body: entry.body.clone(), hold: entry.hold.or(hold) };
            let replaced = state.leased.insert((key.webhook, key.number), leased);
            debug_assert!(replaced.is_none(), "a delivery was leased twice");
            taken.push((entry.row, entry.body));
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
            Some((key, _)) if key.due_at <= now => Offer::Nothing,
            Some((key, _)) => Offer::At(key.due_at),
            None => {
                self.ask_for_refill(&mut state);
                Offer::Nothing
            }
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

    /// Memory for a body that is to be leased, taken from those that are due last.
    fn make_room(&self, state: &mut State, key: DueKey, bytes: usize) -> Option<Hold> {
        let bytes = bytes + WEBHOOK_BYTES;
        if let Some(hold) = self.share.hold(bytes) {
            return Some(hold);
        }
        for (_, entry) in state.window.range_mut(key..).rev() {
            if entry.hold.take().is_some() {
                entry.body = None;
                if let Some(hold) = self.share.hold(bytes) {
                    return Some(hold);
                }
            }
        }
        None
    }

    /// Takes in what the index has from `asked` on; `rest` is where it goes on, if it does.
    pub fn refilled(&self, asked: DueKey, rows: Vec<DueRow>, rest: Option<DueKey>) {
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
        drop(state);
        self.changed.notify_one();
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
        let Leased { mut row, body, hold } = leased;
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
                state.count(-1, Some((cause, 1)));
            }
            Settlement::Delivered | Settlement::Discarded => state.count(-1, None),
        }
    }

    /// Puts back what was leased.
    pub fn give_back(&self, webhook: u64, number: u16) {
        let mut state = self.lock();
        if let Some(leased) = state.leased.remove(&(webhook, number)) {
            if let Some(id) = state.erased.get(&webhook).copied() {
                self.settle_row(&mut state, id, leased, None, Settlement::Discarded);
            } else {
                let Leased { row, body, hold } = leased;
                state.put(Entry { row, body, hold });
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Ends a pending delivery that nobody has leased; answers whether it was one.
    pub fn end(&self, row: DueRow, id: WebhookId, cause: Cause) -> bool {
        let mut state = self.lock();
        let key = row.key;
        if state.leased.contains_key(&(key.webhook, key.number)) {
            return false;
        }
        let in_window = state.window.remove(&key).is_some();
        // Below the bound and not in the window: it was settled since the index was asked.
        if !in_window && state.bound.is_none_or(|bound| key < bound) {
            return false;
        }
        if let Some(refill) = &mut state.refill {
            refill.arrived.remove(&key);
        }
        let leased = Leased { row, body: None, hold: None };
        self.settle_row(&mut state, id, leased, None, Settlement::DeadLetter(cause));
        true
    }

    /// Ends a delivery of a webhook that is being erased; `row` is what the index has of it if it is
    /// pending there. What is leased ends with its lease.
    pub(super) fn erase(&self, id: WebhookId, number: u16, row: Option<DueRow>) {
        let mut state = self.lock();
        state.erased.insert(id.key(), id);
        if state.leased.contains_key(&(id.key(), number)) {
            return;
        }
        let bound = state.bound;
        let is_only_in_index = |row: &DueRow| bound.is_some_and(|bound| row.key >= bound);
        let in_memory = state.take_out((id.key(), number));
        let Some(row) = in_memory.or(row.filter(is_only_in_index)) else { return };
        let leased = Leased { row, body: None, hold: None };
        self.settle_row(&mut state, id, leased, None, Settlement::Discarded);
    }

    /// It is erased. What is leased of it is remembered: nobody is told of it any more.
    pub(super) fn erased(&self, id: WebhookId) {
        let mut state = self.lock();
        if !state.leased.keys().any(|(webhook, _)| *webhook == id.key()) {
            state.erased.remove(&id.key());
        }
    }

    /// Settles a dead letter by an operator's word. The index has that already.
    pub fn settle_dead(&self, dead: &DeadRow, settlement: Settlement) {
        let DeadRow { row, id, cause, .. } = *dead;
        let mut state = self.lock();
        state.count(1, Some((cause, -1)));
        let leased = Leased { row, body: None, hold: None };
        self.settle_row(&mut state, id, leased, None, settlement);
        drop(state);
        self.changed.notify_one();
    }

    /// A dead letter's time is over.
    pub fn forget_dead(&self, cause: Cause, n: i64) {
        self.lock().count(0, Some((cause, -n)));
    }

    /// What the index says of the oldest pending one, and of the bytes that all of them pin.
    pub fn set_index(&self, oldest: Option<Timestamp>, bytes: u64) {
        let mut state = self.lock();
        (state.index_oldest, state.index_bytes) = (oldest, bytes);
    }

    /// What it counts, to be held against what the index does.
    pub(super) fn standing(&self) -> Standing {
        let state = self.lock();
        let pending = state.base_pending + state.pending;
        let mut dead = state.base_dead.clone();
        for (cause, n) in &state.dead {
            *dead.entry(*cause).or_default() += n;
        }
        let in_memory = state.window.len() + state.leased.len();
        let is_all_in_memory = state.bound.is_none() && state.refill.is_none();
        let elsewhere = pending - signed(in_memory as u64);
        Standing {
            revision: state.revision,
            pending,
            dead,
            without_next_step: if is_all_in_memory { elsewhere } else { elsewhere.min(0) },
        }
    }

    /// What it holds.
    pub fn counts(&self) -> LaneCounts {
        let state = self.lock();
        let waiting = state.window.values().map(|entry| entry.row.started_at);
        let leased = state.leased.values().map(|leased| leased.row.started_at);
        let index = state.index_oldest.filter(|_| state.bound.is_some());
        let dead = |cause: Cause| {
            let base = state.base_dead.get(&cause).copied().unwrap_or(0);
            u64::try_from(base + state.dead.get(&cause).copied().unwrap_or(0)).unwrap_or(0)
        };
        let pending = u64::try_from(state.base_pending + state.pending).unwrap_or(0);
        LaneCounts {
            target: self.name.as_ref().into(),
            pending,
            oldest: waiting.chain(leased).chain(index).min().filter(|_| pending > 0),
            backlog_bytes: if pending > 0 { state.index_bytes } else { 0 },
            dead: Cause::ALL
                .into_iter()
                .map(|cause| (cause, dead(cause)))
                .filter(|(_, n)| *n > 0)
                .collect(),
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

impl State {
    fn count(&mut self, pending: i64, dead: Option<(Cause, i64)>) {
        self.revision += 1;
        self.pending += pending;
        if let Some((cause, n)) = dead {
            *self.dead.entry(cause).or_default() += n;
        }
    }

    /// The one in the window whose turn it is.
    fn first(&self, pick: Pick, now: Timestamp) -> Option<(&DueKey, &Entry)> {
        let mut due = self.window.iter().take_while(|(key, _)| key.due_at <= now);
        let untried = match pick {
            Pick::LongestDue => None,
            Pick::UntriedFirst => due.find(|(_, entry)| entry.row.attempts == 0),
        };
        untried.or_else(|| self.window.first_key_value())
    }

    /// Puts a delivery where it belongs; answers whether it is now the first.
    fn put(&mut self, entry: Entry) -> bool {
        let key = entry.row.key;
        debug_assert!(
            !self.leased.contains_key(&(key.webhook, key.number)),
            "what is leased is nowhere else"
        );
        if self.bound.is_none_or(|bound| key < bound) {
            self.window.insert(key, entry);
            self.trim();
            return self.window.first_key_value().is_some_and(|(first, _)| *first == key);
        }
        if let Some(refill) = &mut self.refill {
            refill.arrived.insert(key, entry);
            if refill.arrived.len() > WINDOW
                && let Some((last, _)) = refill.arrived.pop_last()
            {
                let bound = refill.arrived_bound.map_or(last, |bound| bound.min(last));
                refill.arrived_bound = Some(bound);
            }
        }
        false
    }

    /// Takes a delivery out of memory. It may be due at another time by now than the index knows.
    fn take_out(&mut self, id: (u64, u16)) -> Option<DueRow> {
        let arrived = self.refill.as_mut().map(|refill| &mut refill.arrived);
        let mut taken = None;
        for entries in std::iter::once(&mut self.window).chain(arrived) {
            let key = entries.keys().find(|key| (key.webhook, key.number) == id).copied();
            let entry = key.and_then(|key| entries.remove(&key));
            taken = taken.or(entry.map(|entry| entry.row));
        }
        taken
    }

    fn trim(&mut self) {
        while self.window.len() > 2 * WINDOW
            && let Some((last, _)) = self.window.pop_last()
        {
            debug_assert!(self.bound.is_none_or(|bound| last < bound), "invariant 2");
            self.bound = Some(last);
        }
    }
}

impl LeaseOwner for Lane {
    fn lapse(&self, delivery: &Delivery) {
        self.give_back(delivery.webhook.id.key(), delivery.number);
    }
}
