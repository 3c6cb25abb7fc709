//! What a transaction adds up, and how a delivery's state is written.
//!
//! What a target *pins* is, for each of its pending deliveries, the length of the record of its
//! webhook: the one that the index points at, whatever else needs it. The same webhook pending to two
//! targets, or twice to one, counts for each. What unrouted webhooks take is the same sum of theirs.
//!
//! A dead letter pins as much until it is *spared*: those of a full backlog are from the beginning, the
//! oldest others when their target pins more than it may. The log does not say of which: after the index
//! is made again they pin what is still there, until that is found to be too much once more.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use rusqlite::params;

use crate::domain::delivery::{Cause, State};
use crate::domain::time::Timestamp;
use crate::store::embedded::change::WebhookRow;
use crate::store::embedded::index::{Index, int, uint};
use crate::store::embedded::record::{cause_code, cause_of};
use crate::store::embedded::segment::Position;

/// The name of what unrouted webhooks take.
pub(super) const LATEST: &str = "latest";
pub(super) const UNROUTED_BYTES: &str = "unrouted_bytes";

/// A webhook's body is needed no more, but its record still has it: of what lives in its segment it is
/// no part. Copied forward, it is left out. The column `bare` says so; 0 where all of it is needed.
pub(super) const NOT_NEEDED: i64 = 1;

/// Its record has no body any more.
pub(super) const LEFT_OUT: i64 = 2;

/// So many more or fewer, and the bytes of their webhooks' records.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Amount {
    pub(super) n: i64,
    pub(super) bytes: i64,
}

impl Amount {
    /// So many more, or fewer, of this length each.
    pub(super) fn add(&mut self, n: i64, length: u64) {
        self.n += n;
        self.bytes += n * int(length);
    }
}

/// What a transaction adds up before it writes it.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) counts: HashMap<(i64, i64, i64), Amount>,
    pub(super) unrouted: Amount,
    pub(super) live: BTreeMap<u64, i64>,
    pub(super) span: BTreeMap<u64, (u64, u64)>,
    pub(super) newest: HashMap<i64, u64>,
    // The latest moment that any record tells of.
    pub(super) latest: Timestamp,
    pub(super) known: Vec<u8>,
    // The newest of them: so long all of them are kept, and an old copy shortens that for none.
    pub(super) known_last: Option<u64>,
}

impl Sums {
    /// A webhook that is new in the index.
    pub(super) fn add(&mut self, row: &WebhookRow, at: Position, source: i64) {
        *self.live.entry(at.segment).or_default() += int(at.length);
        if row.deliveries.is_empty() {
            self.unrouted.add(1, at.length);
        }
        let newest = self.newest.entry(source).or_default();
        *newest = (*newest).max(row.received_at.as_millis());
        if row.durable {
            self.known_last = self.known_last.max(Some(row.id.key()));
            self.known.extend_from_slice(row.duplicate_key.as_bytes());
            self.known.extend_from_slice(row.id.as_bytes());
            self.known.push(u8::from(row.activity_id));
        }
    }

    /// So many more, or fewer, deliveries to a target are in this state, and spared or not. `length` is
    /// that of the record of their webhook.
    pub(super) fn count(
        &mut self,
        target: i64,
        (state, spared): (State, bool),
        by: i64,
        length: u64,
    ) {
        if let Some(amount) = self.amount(target, state) {
            amount.add(by, if spared { 0 } else { length });
        }
    }

    /// Only what is shown is counted: not what is delivered or discarded.
    fn amount(&mut self, target: i64, state: State) -> Option<&mut Amount> {
        let is_shown = matches!(state, State::Pending | State::DeadLetter(_));
        let (state, cause) = state_columns(state);
        is_shown.then(|| self.counts.entry((target, state, cause)).or_default())
    }
}

impl Index {
    /// A webhook's record takes so many more bytes, or fewer, than the one before it.
    pub(super) fn resize(&self, key: u64, by: i64, sums: &mut Sums) -> rusqlite::Result<()> {
        if by == 0 {
            return Ok(());
        }
        for (target, (state, spared)) in self.states(key)? {
            if let Some(amount) = sums.amount(target, state).filter(|_| !spared) {
                amount.bytes += by;
            }
        }
        if self.is_unrouted(key)? {
            sums.unrouted.bytes += by;
        }
        Ok(())
    }

    /// A webhook has deliveries, whether it had some before or not.
    pub(super) fn routed(&self, key: u64, length: u64, sums: &mut Sums) -> rusqlite::Result<()> {
        let changed = self
            .connection
            .prepare_cached("UPDATE webhook SET unrouted=0 WHERE id=?1 AND unrouted=1")?
            .execute([int(key)])?;
        if changed > 0 {
            sums.unrouted.add(-1, length);
        }
        Ok(())
    }

    /// Where a webhook's record is, and what of it lives: all but a body that is not needed.
    fn living(&self, key: u64) -> rusqlite::Result<(u64, i64)> {
        self.connection
            .prepare_cached(
                "SELECT segment, length - IIF(bare = ?2, body_bytes, 0) FROM webhook WHERE id=?1",
            )?
            .query_row([int(key), NOT_NEEDED], |row| Ok((uint(row.get(0)?), row.get(1)?)))
    }

    /// What of a webhook's record has to be kept.
    pub fn live_bytes(&self, key: u64) -> rusqlite::Result<u64> {
        self.living(key).map(|(_, bytes)| uint(bytes))
    }

    /// Counts what of a webhook's record lives. `by` is 1, or -1 before it changes or goes.
    pub(super) fn count_live(&self, key: u64, by: i64, sums: &mut Sums) -> rusqlite::Result<()> {
        let (segment, bytes) = self.living(key)?;
        *sums.live.entry(segment).or_default() += by * bytes;
        Ok(())
    }

    /// A webhook's body is needed no more, if its record has it.
    pub(super) fn spare_body(&self, key: u64, sums: &mut Sums) -> rusqlite::Result<()> {
        self.set_bare(key, [0, NOT_NEEDED], sums)
    }

    /// A webhook's body is needed again, if its record still has it.
    pub(super) fn needs_body(&self, key: u64, sums: &mut Sums) -> rusqlite::Result<()> {
        self.set_bare(key, [NOT_NEEDED, 0], sums)
    }

    fn set_bare(&self, key: u64, [from, to]: [i64; 2], sums: &mut Sums) -> rusqlite::Result<()> {
        let is_it = self
            .connection
            .prepare_cached("SELECT 1 FROM webhook WHERE id=?1 AND bare=?2 AND body_bytes > 0")?
            .exists([int(key), from])?;
        if is_it {
            self.count_live(key, -1, sums)?;
            self.connection
                .prepare_cached("UPDATE webhook SET bare=?2 WHERE id=?1")?
                .execute([int(key), to])?;
            self.count_live(key, 1, sums)?;
        }
        Ok(())
    }

    /// The dead letters of a webhook whose body is gone pin nothing any more.
    pub(super) fn spare_all_of(
        &self,
        key: u64,
        length: u64,
        sums: &mut Sums,
    ) -> rusqlite::Result<()> {
        for (target, (state, spared)) in self.states(key)? {
            if let State::DeadLetter(_) = state
                && !spared
            {
                sums.count(target, (state, false), -1, length);
                sums.count(target, (state, true), 1, length);
            }
        }
        self.connection
            .prepare_cached("UPDATE delivery SET spared=1 WHERE webhook=?1 AND state=2")?
            .execute([int(key)])?;
        Ok(())
    }

    /// The targets of a webhook's deliveries, what they are at, and whether they are spared.
    pub(super) fn states(&self, key: u64) -> rusqlite::Result<Vec<(i64, (State, bool))>> {
        self.connection
            .prepare_cached("SELECT target, state, cause, spared FROM delivery WHERE webhook=?1")?
            .query_map([int(key)], |row| {
                Ok((row.get(0)?, (state_of(row.get(1)?, row.get(2)?), row.get(3)?)))
            })?
            .collect()
    }

    pub(super) fn is_unrouted(&self, key: u64) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("SELECT unrouted FROM webhook WHERE id=?1")?
            .query_row([int(key)], |row| row.get(0))
    }

    pub(super) fn write_sums(&self, sums: Sums) -> rusqlite::Result<()> {
        let connection = &self.connection;
        for ((target, state, cause), Amount { n, bytes }) in sums.counts {
            connection
                .prepare_cached(
                    "INSERT INTO counts VALUES (?1,?2,?3,?4,?5) ON CONFLICT DO UPDATE
                     SET n = n + ?4, bytes = bytes + ?5",
                )?
                .execute([target, state, cause, n, bytes])?;
        }
        if sums.unrouted.bytes != 0 {
            connection
                .prepare_cached(
                    "INSERT INTO meta VALUES (?1,?2) ON CONFLICT DO UPDATE SET value = value + ?2",
                )?
                .execute(params![UNROUTED_BYTES, sums.unrouted.bytes])?;
        }
        for (segment, live) in sums.live {
            let (first, last) = sums.span.get(&segment).copied().unwrap_or((u64::MAX, 0));
            connection
                .prepare_cached(
                    "INSERT INTO segment VALUES (?1,?2,?3,?4) ON CONFLICT DO UPDATE
                     SET live = live + ?2, first = MIN(first, ?3), last = MAX(last, ?4)",
                )?
                .execute([int(segment), live, int(first), int(last)])?;
        }
        if sums.latest > Timestamp::default() {
            connection
                .prepare_cached(
                    "INSERT INTO meta VALUES (?1,?2) ON CONFLICT DO UPDATE
                     SET value = MAX(value, ?2)",
                )?
                .execute(params![LATEST, int(sums.latest.as_millis())])?;
        }
        for (source, at) in sums.newest {
            connection
                .prepare_cached(
                    "INSERT INTO newest VALUES (?1,?2) ON CONFLICT DO UPDATE SET at = MAX(at, ?2)",
                )?
                .execute([source, int(at)])?;
        }
        if let Some(last) = sums.known_last {
            connection
                .prepare_cached("INSERT OR REPLACE INTO recent VALUES (?1,?2)")?
                .execute(params![int(last), sums.known])?;
        }
        Ok(())
    }
}

/// Whether a delivery in this state is a dead letter that pins no bytes, given whether it was one before.
pub(super) fn is_spared(state: State, before: bool) -> bool {
    match state {
        State::DeadLetter(Cause::BacklogFull) => true,
        State::DeadLetter(_) => before,
        State::Pending | State::Delivered | State::Discarded => false,
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
