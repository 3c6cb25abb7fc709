//! What was committed lately, to know duplicates by: bounded, the oldest go first.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashTable;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, WebhookId};
use crate::store::claims::Recent;

/// A key as remembered and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What makes a second one the same.
    pub key: DuplicateKey,
    /// The webhook that had it.
    pub id: WebhookId,
    /// Whether its body carried an activity's id.
    pub activity_id: bool,
}

// Old enough that no retry of the sender's can still come.
const BARE_KEPT: Duration = Duration::from_secs(3600);
const CHUNK: usize = 4096;

/// Entries in order of arrival, in pieces, so that growing never copies them.
#[derive(Debug, Default)]
struct Ring {
    chunks: VecDeque<Vec<(DuplicateKey, WebhookId)>>,
    // The number of the first entry of the first piece, and of the oldest one.
    base: u32,
    first: u32,
    next: u32,
}

impl Ring {
    fn push(&mut self, entry: (DuplicateKey, WebhookId)) -> u32 {
        if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push_back(Vec::with_capacity(CHUNK));
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.push(entry);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }

    fn get(&self, number: u32) -> Option<&(DuplicateKey, WebhookId)> {
        let at = usize::try_from(number.wrapping_sub(self.base)).ok()?;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    fn oldest(&self) -> Option<&(DuplicateKey, WebhookId)> {
        if self.first == self.next { None } else { self.get(self.first) }
    }

    fn pop(&mut self) {
        self.first = self.first.wrapping_add(1);
        if usize::try_from(self.first.wrapping_sub(self.base)).is_ok_and(|n| n >= CHUNK) {
            self.chunks.pop_front();
            self.base = self.first;
        }
    }

    fn len(&self) -> usize {
        usize::try_from(self.next.wrapping_sub(self.first)).unwrap_or(usize::MAX)
    }
}

/// The duplicates that the store knows of.
#[derive(Debug)]
pub struct RecentSet {
    max: usize,
    activities: Ring,
    bare: Ring,
    // The number of an entry, and whether it is in the ring of activities.
    table: HashTable<u32>,
    bare_table: HashTable<u32>,
    dropped: bool,
}

impl RecentSet {
    /// Room for `max` keys.
    pub fn new(max: usize) -> Self {
        Self {
            max: max.clamp(1, 1 << 30),
            activities: Ring::default(),
            bare: Ring::default(),
            table: HashTable::new(),
            bare_table: HashTable::new(),
            dropped: false,
        }
    }

    /// Makes room for that many at once, so that the table is not built in steps.
    pub fn reserve(&mut self, count: usize) {
        let count = count.min(self.max);
        self.table.reserve(count, |_| 0);
    }

    /// Remembers one from the past, unless a later one is known.
    pub fn insert_old(&mut self, known: Known) {
        let newer = self.find(&known.key).is_some_and(|(id, _)| id.key() >= known.id.key());
        if !newer {
            self.insert(known.key, known.id, known.activity_id);
        }
    }

    /// How far back activities are known, if some had to be dropped.
    pub fn reach(&self, now: Timestamp) -> Option<Duration> {
        let oldest = self.activities.oldest().filter(|_| self.dropped)?;
        Some(now.since(oldest.1.timestamp()))
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.activities.len() + self.bare.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn make_room(&mut self, newest: WebhookId) {
        if self.len() < self.max {
            return;
        }
        let stale = self
            .bare
            .oldest()
            .is_some_and(|(_, id)| newest.timestamp().since(id.timestamp()) > BARE_KEPT);
        if stale || self.activities.len() * 2 < self.max {
            drop_oldest(&mut self.bare, &mut self.bare_table);
        } else {
            drop_oldest(&mut self.activities, &mut self.table);
            self.dropped = true;
        }
    }
}

impl Recent for RecentSet {
    fn find(&self, key: &DuplicateKey) -> Option<(WebhookId, bool)> {
        let look = |ring: &Ring, table: &HashTable<u32>| {
            let number = *table.find(hash(key), |n| ring.get(*n).is_some_and(|e| e.0 == *key))?;
            ring.get(number).map(|entry| entry.1)
        };
        let activity = look(&self.activities, &self.table).map(|id| (id, true));
        let bare = look(&self.bare, &self.bare_table).map(|id| (id, false));
        match (activity, bare) {
            (Some(a), Some(b)) => Some(if a.0.key() >= b.0.key() { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    fn insert(&mut self, key: DuplicateKey, id: WebhookId, activity_id: bool) {
        self.make_room(id);
        let (ring, table) = if activity_id {
            (&mut self.activities, &mut self.table)
        } else {
            (&mut self.bare, &mut self.bare_table)
        };
        // An earlier one with the same key stays in the ring, but is not found any more.
        if let Ok(entry) =
            table.find_entry(hash(&key), |n| ring.get(*n).is_some_and(|e| e.0 == key))
        {
            entry.remove();
        }
        let number = ring.push((key, id));
        table.insert_unique(hash(&key), number, |n| ring.get(*n).map_or(0, |e| hash(&e.0)));
    }
}

fn drop_oldest(ring: &mut Ring, table: &mut HashTable<u32>) {
    let first = ring.first;
    if let Some((key, _)) = ring.oldest().copied() {
        if let Ok(entry) = table.find_entry(hash(&key), |n| *n == first) {
            entry.remove();
        }
        ring.pop();
    }
}

// The key is a digest already. A sender who could choose it could also choose the HMAC.
fn hash(key: &DuplicateKey) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}
