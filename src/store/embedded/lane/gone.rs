//! What a lane holds and the index has otherwise: a webhook that is erased, and an index that knows more.

use std::sync::Arc;

use crate::domain::delivery::Settlement;
use crate::domain::webhook::WebhookId;
use crate::store::embedded::index::queries::{DueKey, DueRow};
use crate::store::embedded::lane::Lane;
use crate::store::embedded::lane::state::{Leased, State};
use crate::store::embedded::lane::tally::Counted;

/// What the index knows of a delivery that is leased.
#[derive(Debug)]
pub(in crate::store::embedded) enum Known {
    /// It is pending.
    Pending(DueRow),
    /// It came to its end.
    Ended,
}

impl Lane {
    /// Ends a delivery of a webhook that is being erased; `row` is what the index has of it if it is
    /// pending there. What is leased ends with its lease.
    pub(in crate::store::embedded) fn erase(
        &self,
        id: WebhookId,
        number: u16,
        row: Option<DueRow>,
    ) {
        let mut state = self.lock();
        state.erased.insert(id.key(), id);
        let key = (id.key(), number);
        if state.leased.contains_key(&key) || state.ended.contains(&key) {
            return;
        }
        let bound = state.bound;
        let is_only_in_index = |row: &DueRow| bound.is_some_and(|bound| row.key >= bound);
        let in_memory = state.take_out((id.key(), number));
        let Some(row) = in_memory.or(row.filter(is_only_in_index)) else { return };
        self.settle_row(&mut state, id, Leased::bare(row), None, Settlement::Discarded);
    }

    /// Its deliveries are ended. If the log has it that it is erased, so has the index: what is still
    /// leased of it counts no more, and nobody is told how that ends.
    pub(in crate::store::embedded) fn erased(&self, id: WebhookId, is_written: bool) {
        let mut state = self.lock();
        let leased: Vec<_> =
            state.leased.keys().copied().filter(|(webhook, _)| *webhook == id.key()).collect();
        if is_written {
            for delivery in &leased {
                state.lose(*delivery);
            }
        }
        if is_written || leased.is_empty() {
            state.erased.remove(&id.key());
        }
    }

    /// What is leased now, by webhook and number.
    pub(in crate::store::embedded) fn leased_now(&self) -> Vec<(u64, u16)> {
        self.lock().leased.keys().copied().collect()
    }

    /// The index has learnt of deliveries that it did not know: asks it for all that is not leased. What
    /// is leased goes on from what the index knows of it: how that ends must count as later than that.
    pub(in crate::store::embedded) fn begin_anew(
        self: &Arc<Self>,
        known: Vec<((u64, u16), Known)>,
    ) {
        let mut state = self.lock();
        for (delivery, known) in known {
            match known {
                Known::Pending(row) => state.renew(delivery, row),
                Known::Ended => state.lose(delivery),
            }
        }
        if state.refill.is_some() {
            state.anew = true;
        } else {
            self.forget_window(&mut state);
        }
    }

    /// What is settled by now is in the index before it is asked (invariant 4).
    pub(super) fn forget_window(self: &Arc<Self>, state: &mut State) {
        state.window.clear();
        state.bound = Some(DueKey::FIRST);
        self.ask_for_refill(state);
    }

    /// Counts as the index does, unless something has changed since it was asked; answers whether it does.
    pub(in crate::store::embedded) fn recount(&self, revision: u64, by_index: &Counted) -> bool {
        let mut state = self.lock();
        let is_as_it_was = state.tally.revision() == revision;
        if is_as_it_was {
            state.tally.recount(by_index);
        }
        is_as_it_was
    }
}
