//! What a lane holds under its lock, and where a delivery belongs in it.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};

use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::Pick;
use crate::store::embedded::index::queries::{DueKey, DueRow};
use crate::store::embedded::lane::WINDOW;
use crate::store::embedded::lane::tally::Tally;
use crate::store::embedded::memory::Hold;
use crate::store::embedded::offer::Body;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) window: BTreeMap<DueKey, Entry>,
    // None: nothing is only in the index.
    pub(super) bound: Option<DueKey>,
    pub(super) leased: HashMap<(u64, u16), Leased>,
    // What is leased of them ends with its lease.
    pub(super) erased: HashMap<u64, WebhookId>,
    // They ended while only the index had them, and it does not know yet: nothing ends them again.
    pub(super) ended: HashSet<(u64, u16)>,
    pub(super) refill: Option<Refill>,
    // After this refill all is asked for again.
    pub(super) anew: bool,
    pub(super) tally: Tally,
    pub(super) index_oldest: Option<Timestamp>,
    pub(super) index_bytes: [u64; 2],
}

#[derive(Debug, Default)]
pub(super) struct Refill {
    pub(super) arrived: BTreeMap<DueKey, Entry>,
    pub(super) arrived_bound: Option<DueKey>,
    pub(super) touched: HashSet<(u64, u16)>,
}

/// A delivery in a window.
#[derive(Debug)]
pub(super) struct Entry {
    /// What the index knows of it.
    pub(super) row: DueRow,
    /// The webhook, if there is memory for it.
    pub(super) body: Option<Body>,
    pub(super) hold: Option<Hold>,
}

#[derive(Debug)]
pub(super) struct Leased {
    pub(super) row: DueRow,
    pub(super) body: Option<Body>,
    pub(super) hold: Option<Hold>,
    // The index has it no more: how it ends is nobody's business.
    pub(super) is_gone: bool,
}

impl Leased {
    /// What the index knows of it, and nothing else.
    pub(super) fn bare(row: DueRow) -> Self {
        Self { row, body: None, hold: None, is_gone: false }
    }
}

impl State {
    /// What is leased and counts.
    pub(super) fn not_gone(&self) -> impl Iterator<Item = &Leased> {
        self.leased.values().filter(|leased| !leased.is_gone)
    }

    /// The index has it no more: it counts no more.
    pub(super) fn lose(&mut self, delivery: (u64, u16)) {
        if let Some(leased) = self.leased.get_mut(&delivery).filter(|leased| !leased.is_gone) {
            leased.is_gone = true;
            self.tally.count(-1, None);
        }
    }

    /// The index knows more of it.
    pub(super) fn renew(&mut self, delivery: (u64, u16), row: DueRow) {
        if let Some(leased) = self.leased.get_mut(&delivery)
            && leased.row.version < row.version
        {
            leased.row = DueRow { key: leased.row.key, ..row };
        }
    }

    /// The one in the window whose turn it is.
    pub(super) fn first(&self, pick: Pick, now: Timestamp) -> Option<(&DueKey, &Entry)> {
        let mut due = self.window.iter().take_while(|(key, _)| key.due_at <= now);
        let untried = match pick {
            Pick::LongestDue => None,
            Pick::UntriedFirst => due.find(|(_, entry)| entry.row.attempts == 0),
        };
        untried.or_else(|| self.window.first_key_value())
    }

    /// All that wait in memory, in the order in which they are due.
    pub(super) fn waiting(&mut self) -> impl DoubleEndedIterator<Item = &mut Entry> {
        let arrived = self.refill.iter_mut().flat_map(|refill| refill.arrived.values_mut());
        self.window.values_mut().chain(arrived)
    }

    /// Puts a delivery where it belongs; answers whether it is now the first.
    pub(super) fn put(&mut self, entry: Entry) -> bool {
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
    pub(super) fn take_out(&mut self, id: (u64, u16)) -> Option<DueRow> {
        let arrived = self.refill.as_mut().map(|refill| &mut refill.arrived);
        let mut taken = None;
        for entries in std::iter::once(&mut self.window).chain(arrived) {
            let key = entries.keys().find(|key| (key.webhook, key.number) == id).copied();
            let entry = key.and_then(|key| entries.remove(&key));
            taken = taken.or(entry.map(|entry| entry.row));
        }
        taken
    }

    pub(super) fn trim(&mut self) {
        while self.window.len() > 2 * WINDOW
            && let Some((last, _)) = self.window.pop_last()
        {
            debug_assert!(self.bound.is_none_or(|bound| last < bound), "invariant 2");
            self.bound = Some(last);
        }
    }
}
