//! What a lane counts: what the index counted up to the start, and what has changed since.

use std::collections::BTreeMap;

use crate::domain::delivery::Cause;

/// Pending deliveries and dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::store::embedded) struct Counted {
    /// Due, now or later, and leased.
    pub(in crate::store::embedded) pending: i64,
    /// By their cause.
    pub(in crate::store::embedded) dead: BTreeMap<Cause, i64>,
}

/// A lane's own count.
#[derive(Debug, Default)]
pub(super) struct Tally {
    base: Counted,
    since: Counted,
    revision: u64,
}

impl Tally {
    /// Another one if anything has changed.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Nothing was counted up to this start.
    pub(super) fn forget_base(&mut self) {
        self.revision += 1;
        self.base = Counted::default();
    }

    /// What the index counted up to this start: dead letters of a cause, or pending deliveries.
    pub(super) fn set_base(&mut self, cause: Option<Cause>, n: i64) {
        self.revision += 1;
        match cause {
            None => self.base.pending = n,
            Some(cause) => {
                self.base.dead.insert(cause, n);
            }
        }
    }

    /// So many more, or less.
    pub(super) fn count(&mut self, pending: i64, dead: Option<(Cause, i64)>) {
        self.revision += 1;
        self.since.pending += pending;
        if let Some((cause, n)) = dead {
            *self.since.dead.entry(cause).or_default() += n;
        }
    }

    /// There are so many by now.
    pub(super) fn recount(&mut self, counted: &Counted) {
        self.revision += 1;
        (self.base, self.since) = (counted.clone(), Counted::default());
    }

    /// How many there are.
    pub(super) fn counted(&self) -> Counted {
        let mut counted = self.base.clone();
        counted.pending += self.since.pending;
        for (cause, n) in &self.since.dead {
            *counted.dead.entry(*cause).or_default() += n;
        }
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_up_to_the_start_and_since_is_added_up_whichever_comes_first() {
        let mut tally = Tally::default();
        tally.count(2, None);
        tally.count(-1, Some((Cause::Expired, 1)));
        tally.set_base(None, 10);
        tally.set_base(Some(Cause::Expired), 3);
        let dead = BTreeMap::from([(Cause::Expired, 4)]);
        assert_eq!(tally.counted(), Counted { pending: 11, dead });
        tally.forget_base();
        let dead = BTreeMap::from([(Cause::Expired, 1)]);
        assert_eq!(tally.counted(), Counted { pending: 1, dead });
    }

    #[test]
    fn each_change_is_another_revision() {
        let mut tally = Tally::default();
        let changes: [fn(&mut Tally); 4] = [
            |tally| tally.recount(&Counted { pending: 7, ..Counted::default() }),
            |tally| tally.count(0, Some((Cause::Damaged, 1))),
            |tally| tally.set_base(None, 0),
            Tally::forget_base,
        ];
        for change in changes {
            let before = tally.revision();
            change(&mut tally);
            assert_ne!(tally.revision(), before);
        }
    }
}
