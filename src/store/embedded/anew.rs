//! An index that is made again while the relay runs, and lanes that begin anew, as after a restart, while
//! deliveries of theirs are on their way.

use std::sync::Arc;

use crate::domain::delivery::State;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::lane::Lane;
use crate::store::embedded::lane::gone::Known;

impl Indexer {
    /// The index knows more than the lanes were told. Answers whether all have begun.
    pub(super) fn begin_all_anew(&mut self) -> bool {
        self.sweep.recount();
        for lane in self.parts.lanes.all() {
            if let Err(error) = self.begin_anew(&lane) {
                self.failed(&error);
                return false;
            }
        }
        true
    }

    /// A lane asks the index for everything again, and learns what that knows of what it has leased.
    pub(super) fn begin_anew(&self, lane: &Arc<Lane>) -> rusqlite::Result<()> {
        let mut known = Vec::new();
        for (webhook, number) in lane.leased_now() {
            // What was committed just now is not in the index yet.
            let Some((_, standing)) = self.index.standing(webhook, number.into())? else {
                continue;
            };
            let of_it = match (standing.state, self.index.due_one(webhook, number)?) {
                (State::Pending, Some(row)) => Known::Pending(row),
                (State::Pending, None) => continue,
                _ => Known::Ended,
            };
            known.push(((webhook, number), of_it));
        }
        lane.begin_anew(known);
        Ok(())
    }

    /// Makes the index again if a part of the log that it misses can be read now; answers whether it does.
    pub(super) fn fill_gaps(&mut self) -> bool {
        let parts = match self.index.unread() {
            Ok(parts) => parts,
            Err(error) => {
                self.failed(&error);
                return true;
            }
        };
        if !parts.iter().any(|part| self.parts.log.can_read(*part)) {
            return false;
        }
        tracing::warn!("what could not be read can be read now: the index is made again");
        self.make_again();
        true
    }

    /// Begins an empty index, into which the log is read.
    pub(super) fn make_again(&mut self) {
        self.behind = true;
        if let Err(error) = self.index.make_again() {
            tracing::error!(%error, "the index can't be made again");
        }
    }
}
