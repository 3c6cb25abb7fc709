//! What was committed lately, to know duplicates by: bounded, the oldest go first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, WebhookId};
use crate::store::claims::{Recent, hash_of};
use crate::store::embedded::slots::Slots;

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

/// What is remembered of a key: a million of them are most of the memory that the relay takes. Of
/// the key 70 bits of a digest are enough: that a new webhook is taken for one of a million others has a
/// chance of less than one in 10^15, which is less than that of the disk misreading it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    key: u64,
    // Six more bits of the key, then those of the id.
    rest: [u8; 16],
}

const ID_BITS: u32 = 122;

impl Entry {
    fn new(key: &DuplicateKey, id: WebhookId) -> Self {
        let [a, b, c, d, e, f, g, h, more, ..] = *key.as_bytes();
        let rest = (u128::from(more) << ID_BITS) | id.to_bits();
        Self { key: u64::from_le_bytes([a, b, c, d, e, f, g, h]), rest: rest.to_le_bytes() }
    }

    fn has_key_of(&self, other: &Self) -> bool {
        let more = |entry: &Self| u128::from_le_bytes(entry.rest) >> ID_BITS;
        self.key == other.key && more(self) == more(other)
    }

    fn id(&self) -> WebhookId {
        WebhookId::from_bits(u128::from_le_bytes(self.rest))
    }

    fn hash(&self) -> u64 {
        hash_of(self.key)
    }
}

/// Entries in order of arrival, in pieces, so that growing never copies them.
#[derive(Debug, Default)]
struct Ring {
    chunks: VecDeque<Vec<Entry>>,
    // The number of the first entry of the first piece, and of the oldest one.
    base: u32,
    first: u32,
    next: u32,
}

impl Ring {
    fn push(&mut self, entry: Entry) -> u32 {
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

    fn get(&self, number: u32) -> Option<&Entry> {
        let at = usize::try_from(number.wrapping_sub(self.base)).ok()?;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    fn oldest(&self) -> Option<&Entry> {
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

/// Entries in order, and how to find them by their key.
#[derive(Debug)]
struct Keys {
    ring: Ring,
    slots: Slots,
}

impl Keys {
    fn new(max: usize) -> Self {
        Self { ring: Ring::default(), slots: Slots::new(max) }
    }

    fn get(&self, low: u32) -> Option<&Entry> {
        let first = self.ring.first;
        self.ring.get(first.wrapping_add(self.slots.low(low.wrapping_sub(first))))
    }

    fn find(&self, key: &DuplicateKey) -> Option<WebhookId> {
        let entry = Entry::new(key, WebhookId::from_key(0));
        let is = |low| self.get(low).is_some_and(|other| other.has_key_of(&entry));
        let low = self.slots.find(entry.hash(), is)?;
        self.get(low).map(Entry::id)
    }

    fn reserve(&mut self, count: usize) {
        self.edit(|slots, hash_of| slots.reserve(count, hash_of));
    }

    fn insert(&mut self, key: &DuplicateKey, id: WebhookId) {
        let entry = Entry::new(key, id);
        let hash = entry.hash();
        // An earlier one with the same key stays in the ring, but is not found any more.
        let is = |low| self.get(low).is_some_and(|other| other.has_key_of(&entry));
        if let Some(low) = self.slots.find(hash, is) {
            self.edit(|slots, hash_of| slots.remove(hash, low, hash_of));
        }
        let number = self.ring.push(entry);
        self.edit(|slots, hash_of| slots.insert(hash, number, hash_of));
    }

    /// Looks at all of them: for what hardly ever happens.
    fn forget(&mut self, id: WebhookId) {
        let mut number = self.ring.first;
        while number != self.ring.next {
            if let Some(hash) = self.ring.get(number).filter(|e| e.id() == id).map(Entry::hash) {
                self.edit(|slots, hash_of| slots.remove(hash, number, hash_of));
            }
            number = number.wrapping_add(1);
        }
    }

    fn drop_oldest(&mut self) {
        let first = self.ring.first;
        if let Some(hash) = self.ring.oldest().map(Entry::hash) {
            self.edit(|slots, hash_of| slots.remove(hash, first, hash_of));
            self.ring.pop();
        }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Slots, &dyn Fn(u32) -> u64)) {
        let Self { ring, slots } = self;
        let (first, mask) = (ring.first, slots.low(u32::MAX));
        let hash_of = |low: u32| {
            let number = first.wrapping_add(low.wrapping_sub(first) & mask);
            ring.get(number).map_or(0, Entry::hash)
        };
        edit(slots, &hash_of);
    }
}

/// The duplicates that the store knows of.
#[derive(Debug)]
pub struct RecentSet {
    max: usize,
    activities: Keys,
    bare: Keys,
    dropped: bool,
}

impl RecentSet {
    /// Room for `max` keys.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, 1 << 30);
        Self { max, activities: Keys::new(max), bare: Keys::new(max), dropped: false }
    }

    /// Makes room for that many at once, so that the table is not built in steps.
    pub fn reserve(&mut self, count: usize) {
        self.activities.reserve(count.min(self.max));
    }

    /// Remembers one from the past, unless a later one is known, or the only room for it is that of
    /// a later one.
    pub fn insert_old(&mut self, known: Known) {
        let newer = self.find(&known.key).is_some_and(|(id, _)| id.key() >= known.id.key());
        if newer {
            return;
        }
        let keys = if known.activity_id { &self.activities } else { &self.bare };
        let oldest = keys.ring.oldest().filter(|_| self.len() >= self.max);
        if oldest.is_some_and(|oldest| known.id.key() < oldest.id().key()) {
            self.dropped |= known.activity_id;
            return;
        }
        self.insert(known.key, known.id, known.activity_id);
    }

    /// A webhook that can't be delivered is no first one: its copy is to be taken for new.
    pub fn forget(&mut self, id: WebhookId) {
        self.activities.forget(id);
        self.bare.forget(id);
    }

    /// How far back activities are known, if some had to be dropped.
    pub fn reach(&self, now: Timestamp) -> Option<Duration> {
        let oldest = self.activities.ring.oldest().filter(|_| self.dropped)?;
        Some(now.since(oldest.id().timestamp()))
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.activities.ring.len() + self.bare.ring.len()
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
            .ring
            .oldest()
            .is_some_and(|entry| newest.timestamp().since(entry.id().timestamp()) > BARE_KEPT);
        if stale || self.activities.ring.len() * 2 < self.max {
            self.bare.drop_oldest();
        } else {
            self.activities.drop_oldest();
            self.dropped = true;
        }
    }
}

impl Recent for RecentSet {
    fn find(&self, key: &DuplicateKey) -> Option<(WebhookId, bool)> {
        let activity = self.activities.find(key).map(|id| (id, true));
        let bare = self.bare.find(key).map(|id| (id, false));
        match (activity, bare) {
            (Some(a), Some(b)) => Some(if a.0.key() >= b.0.key() { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    fn insert(&mut self, key: DuplicateKey, id: WebhookId, activity_id: bool) {
        self.make_room(id);
        if activity_id {
            self.activities.insert(&key, id);
        } else {
            self.bare.insert(&key, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::webhook::WebhookIds;

    #[test]
    fn an_entry_is_small_and_gives_back_what_it_was_made_of() {
        assert_eq!(size_of::<Entry>(), 24);
        let mut random = fastrand::Rng::with_seed(7);
        let ids = WebhookIds::default();
        for n in 0..1000 {
            let key = DuplicateKey::from_bytes(random.u128(..).to_le_bytes());
            let id =
                ids.next(Timestamp::from_millis(random.u64(..1 << 48) >> (n % 48)), random.u64(..));
            let entry = Entry::new(&key, id);
            assert_eq!(entry.id(), id);
            assert!(entry.has_key_of(&Entry::new(&key, WebhookId::from_key(0))));
            // All of the first 70 bits count.
            for bit in 0..70 {
                let mut other = *key.as_bytes();
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(!entry.has_key_of(&Entry::new(&DuplicateKey::from_bytes(other), id)));
            }
        }
    }

    #[test]
    fn the_last_max_keys_are_known_and_none_before_them() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut set, ids) = (RecentSet::new(1000), WebhookIds::default());
        let mut order: Vec<(DuplicateKey, WebhookId)> = Vec::new();
        for n in 0..20_000u64 {
            // Some come again.
            let again = order.len() > 10 && random.u8(..) < 20;
            let key = if again {
                order[order.len() - 1 - random.usize(..10)].0
            } else {
                DuplicateKey::from_bytes(random.u128(..).to_le_bytes())
            };
            let id = ids.next(Timestamp::from_millis(n), 5);
            set.insert(key, id, true);
            order.push((key, id));
            assert_eq!(set.find(&key), Some((id, true)));
            assert!(set.len() <= 1000);
            if n % 997 == 0 {
                let (gone, kept) = order.split_at(order.len().saturating_sub(1000));
                for (nth, (key, id)) in kept.iter().enumerate() {
                    let later = kept[nth + 1..].iter().any(|(other, _)| other == key);
                    assert_eq!(set.find(key) == Some((*id, true)), !later);
                }
                let is_kept = |key| kept.iter().any(|(other, _)| other == key);
                assert!(gone.iter().all(|(key, _)| is_kept(key) || set.find(key).is_none()));
            }
        }
        assert!(set.reach(Timestamp::from_millis(20_000)).is_some());
    }

    #[test]
    fn what_is_forgotten_is_not_known_and_all_others_are() {
        let (mut set, ids) = (RecentSet::new(50), WebhookIds::default());
        let known: Vec<_> = (0..50_u8)
            .map(|n| {
                let id = ids.next(Timestamp::from_millis(u64::from(n)), 5);
                (DuplicateKey::from_bytes([n; 16]), id)
            })
            .collect();
        known.iter().for_each(|(key, id)| set.insert(*key, *id, id.key() % 2 == 0));
        for (nth, (key, id)) in known.iter().enumerate().step_by(7) {
            set.forget(*id);
            assert_eq!(set.find(key), None);
            let others = known.iter().enumerate().filter(|(n, _)| n % 7 != 0 || *n > nth);
            assert!(
                others
                    .into_iter()
                    .all(|(_, (key, id))| { set.find(key).is_some_and(|(found, _)| found == *id) })
            );
        }
        // Its place in the order is given up as all others are.
        for n in 50..150_u8 {
            let id = ids.next(Timestamp::from_millis(u64::from(n)), 5);
            set.insert(DuplicateKey::from_bytes([n; 16]), id, true);
            assert!(set.len() <= 50);
        }
        set.forget(known[1].1);
    }

    #[test]
    fn what_is_read_back_late_takes_no_room_from_what_is_newer() {
        let (mut set, ids) = (RecentSet::new(10), WebhookIds::default());
        let known: Vec<Known> = (0..20u8)
            .map(|n| Known {
                key: DuplicateKey::from_bytes([n; 16]),
                id: ids.next(Timestamp::from_millis(u64::from(n)), 5),
                activity_id: true,
            })
            .collect();
        let (old, new) = known.split_at(10);
        new.iter().chain(old).for_each(|known| set.insert_old(*known));
        assert!(new.iter().all(|known| set.find(&known.key).is_some()));
        assert_eq!(set.reach(Timestamp::from_millis(30)), Some(Duration::from_millis(20)));
    }
}
