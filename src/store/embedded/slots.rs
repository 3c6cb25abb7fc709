//! A hash table of numbers that is small: four bytes for an entry, and three of four are in use.
//!
//! A slot holds the low bits of a number and, in what is left of it, some bits of the hash, so that
//! nearly all that is not looked for is passed over without looking at what the number stands for.

/// Numbers by the hash of what they stand for. A number is known by its low bits alone: whoever
/// uses it has no more than `max` of them at a time, and they follow each other.
#[derive(Debug)]
pub(super) struct Slots {
    // Zero is empty: a tag never is.
    slots: Vec<u32>,
    len: usize,
    number_bits: u32,
    slots_max: usize,
}

const SLOTS_MIN: usize = 16;

impl Slots {
    /// None yet, and never more than `max`, which is below 2^31.
    pub(super) fn new(max: usize) -> Self {
        let number_bits = usize::BITS - max.leading_zeros();
        let slots_max = (max + max / 3 + 2).max(SLOTS_MIN);
        Self { slots: Vec::new(), len: 0, number_bits: number_bits.min(31), slots_max }
    }

    /// The bits of a number that are known.
    pub(super) fn low(&self, number: u32) -> u32 {
        number & ((1 << self.number_bits) - 1)
    }

    fn entry(&self, hash: u64, number: u32) -> u32 {
        self.tag(hash) | self.low(number)
    }

    fn tag(&self, hash: u64) -> u32 {
        let [a, b, c, d, ..] = hash.to_le_bytes();
        let tag = u32::from_le_bytes([a, b, c, d]) >> self.number_bits;
        tag.max(1) << self.number_bits
    }

    /// Where a hash belongs if nothing is in its way.
    fn home(&self, hash: u64) -> usize {
        let place = (hash >> 32) * self.slots.len() as u64;
        usize::try_from(place >> 32).unwrap_or(0)
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn at(&self, at: usize) -> u32 {
        self.slots.get(at).copied().unwrap_or(0)
    }

    fn set(&mut self, at: usize, entry: u32) {
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = entry;
        }
    }

    /// The number with this hash that `is` agrees to, by its low bits.
    pub(super) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = self.tag(hash);
        let mut at = self.home(hash);
        loop {
            let entry = self.at(at);
            if entry == 0 {
                return None;
            }
            let low = self.low(entry);
            if entry ^ low == tag && is(low) {
                return Some(low);
            }
            at = self.after(at);
        }
    }

    /// Makes room for that many at once; `hash_of` tells the hashes of those that are in it.
    pub(super) fn reserve(&mut self, count: usize, hash_of: impl Fn(u32) -> u64) {
        let wanted = (count + count / 3 + 2).min(self.slots_max);
        if wanted <= self.slots.len() {
            return;
        }
        // Halves of the greatest, so that the last step leads to it.
        let mut size = self.slots_max;
        while size.div_ceil(2) >= wanted.max(SLOTS_MIN) {
            size = size.div_ceil(2);
        }
        let old = std::mem::replace(&mut self.slots, vec![0; size]);
        for entry in old.into_iter().filter(|entry| *entry != 0) {
            let low = self.low(entry);
            self.place(hash_of(low), low);
        }
    }

    /// Adds a number that is not in it.
    pub(super) fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        self.reserve(self.len + 1, hash_of);
        self.place(hash, number);
        self.len += 1;
    }

    fn place(&mut self, hash: u64, number: u32) {
        let mut at = self.home(hash);
        while self.at(at) != 0 {
            at = self.after(at);
        }
        self.set(at, self.entry(hash, number));
    }

    /// Takes a number out, if it is in it.
    pub(super) fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        let entry = self.entry(hash, number);
        let mut hole = self.home(hash);
        while self.at(hole) != entry {
            if self.at(hole) == 0 {
                return;
            }
            hole = self.after(hole);
        }
        self.len -= 1;
        // What follows moves up, unless it is between its home and where it is already.
        let mut at = self.after(hole);
        while self.at(at) != 0 {
            let entry = self.at(at);
            let home = self.home(hash_of(self.low(entry)));
            let stays =
                if hole <= at { hole < home && home <= at } else { hole < home || home <= at };
            if !stays {
                self.set(hole, entry);
                hole = at;
            }
            at = self.after(at);
        }
        self.set(hole, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn hash_of(number: u32) -> u64 {
        u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    }

    #[test]
    fn what_is_in_it_is_found_and_nothing_else_while_numbers_come_and_go() {
        for (max, hash_of) in
            [(1usize, hash_of as fn(u32) -> u64), (7, hash_of), (1000, hash_of), (40, |_| 7)]
        {
            let mut random = fastrand::Rng::with_seed(max as u64);
            let mut slots = Slots::new(max);
            let mut inside: VecDeque<u32> = VecDeque::new();
            // Numbers wrap around.
            let mut next = u32::MAX - 5000;
            for _ in 0..10_000 {
                if inside.len() == max || (random.u8(..) < 60 && !inside.is_empty()) {
                    let nth = if random.bool() { 0 } else { random.usize(..inside.len()) };
                    let gone = inside.remove(nth).unwrap();
                    let hashes: Vec<(u32, u64)> =
                        inside.iter().map(|n| (slots.low(*n), hash_of(*n))).collect();
                    let look = |low: u32| hashes.iter().find(|(n, _)| *n == low).unwrap().1;
                    slots.remove(hash_of(gone), gone, look);
                }
                // They follow each other closely enough to be told apart.
                if inside.front().is_some_and(|first| next.wrapping_sub(*first) as usize >= max) {
                    continue;
                }
                let hashes: Vec<(u32, u64)> =
                    inside.iter().map(|n| (slots.low(*n), hash_of(*n))).collect();
                let look = |low: u32| hashes.iter().find(|(n, _)| *n == low).unwrap().1;
                slots.insert(hash_of(next), next, look);
                inside.push_back(next);
                next = next.wrapping_add(1);
                assert_eq!(slots.len, inside.len());
                let probe = inside[random.usize(..inside.len())];
                let found = slots.find(hash_of(probe), |low| low == slots.low(probe));
                assert_eq!(found, Some(slots.low(probe)));
            }
            for number in &inside {
                assert!(slots.find(hash_of(*number), |low| low == slots.low(*number)).is_some());
            }
            let used = slots.slots.iter().filter(|entry| **entry != 0).count();
            assert_eq!(used, inside.len());
        }
    }
}
