//! What a transaction adds up, and how a delivery's state is written.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use crate::domain::delivery::State;
use crate::store::embedded::change::WebhookRow;
use crate::store::embedded::index::int;
use crate::store::embedded::record::{cause_code, cause_of};
use crate::store::embedded::segment::Position;

/// What a transaction adds up before it writes it.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) counts: HashMap<(i64, i64, i64), i64>,
    pub(super) live: BTreeMap<u64, i64>,
    pub(super) span: BTreeMap<u64, (u64, u64)>,
    pub(super) newest: HashMap<i64, u64>,
    pub(super) known: Vec<u8>,
    // The newest of them: so long all of them are kept, and an old copy shortens that for none.
    pub(super) known_last: Option<u64>,
}

impl Sums {
    /// A webhook that is new in the index.
    pub(super) fn add(&mut self, row: &WebhookRow, at: Position, source: i64) {
        *self.live.entry(at.segment).or_default() += int(at.length);
        let newest = self.newest.entry(source).or_default();
        *newest = (*newest).max(row.received_at.as_millis());
        if row.durable {
            self.known_last = self.known_last.max(Some(row.id.key()));
            self.known.extend_from_slice(row.duplicate_key.as_bytes());
            self.known.extend_from_slice(row.id.as_bytes());
            self.known.push(u8::from(row.activity_id));
        }
    }

    /// So many more, or fewer, deliveries to a target are in this state.
    pub(super) fn count(&mut self, target: i64, state: State, by: i64) {
        // Only what is shown is counted: not what is delivered or discarded.
        if matches!(state, State::Pending | State::DeadLetter(_)) {
            let (state, cause) = state_columns(state);
            *self.counts.entry((target, state, cause)).or_default() += by;
        }
    }
}

/// The columns of a status.
pub(super) fn state_columns(state: State) -> (i64, i64) {
    match state {
        State::Pending => (0, 0),
        State::Delivered => (1, 0),
        State::DeadLetter(cause) => (2, i64::from(cause_code(cause))),
        State::Discarded => (3, 0),
    }
}

/// The status of the columns.
pub(super) fn state_of(state: i64, cause: i64) -> State {
    let cause = u8::try_from(cause).ok().and_then(cause_of);
    match (state, cause) {
        (0, _) => State::Pending,
        (1, _) => State::Delivered,
        (2, Some(cause)) => State::DeadLetter(cause),
        _ => State::Discarded,
    }
}
