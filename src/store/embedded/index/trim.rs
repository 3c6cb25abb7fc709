//! What retention ends, and what a segment still holds.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use rusqlite::OptionalExtension;

use crate::domain::delivery::{Cause, State};
use crate::domain::time::Timestamp;
use crate::store::embedded::index::sums::{Sums, state_of};
use crate::store::embedded::index::{Index, int, uint};
use crate::store::embedded::record::Standing;
use crate::store::embedded::segment::Position;

/// Up to when webhooks are deleted, by what they are.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// Settled ones received before, and the bodies of those whose dead letters pin none.
    pub settled: Timestamp,
    /// Unrouted ones.
    pub unrouted: Timestamp,
    /// Those with a dead letter.
    pub dead: Timestamp,
}

/// What is known of a webhook when its time is looked at.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a column")]
struct Held {
    key: u64,
    // Its body is not needed, or gone.
    is_bare: bool,
    is_routed: bool,
    is_pending: bool,
    // With a dead letter that can be redriven for as long as it is kept.
    has_dead: bool,
    // With one that pins no body: of a full backlog, or beyond what its target may pin.
    has_spared: bool,
}

/// What becomes of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Its body goes, what became of it stays.
    Bare,
    Goes,
}

impl Held {
    fn fate(&self, expiry: Expiry) -> Fate {
        let is_before = |limit: Timestamp| self.key >> 12 < limit.as_millis();
        if self.is_pending {
            return Fate::Stays;
        }
        let limit = match (self.is_routed, self.has_dead || self.has_spared) {
            (false, _) => expiry.unrouted,
            (true, true) => expiry.dead,
            (true, false) => expiry.settled,
        };
        // Whoever has it delivered, or ended it, does not need its bytes for longer than that.
        let may_be_bare = self.has_spared && !self.has_dead && !self.is_bare;
        if is_before(limit) {
            Fate::Goes
        } else if may_be_bare && is_before(expiry.settled) {
            Fate::Bare
        } else {
            Fate::Stays
        }
    }
}

/// So many dead letters of a target are over.
pub type Ended = (Arc<str>, Cause, i64);

/// What a segment still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Bytes of webhooks that are in the index.
    pub live: u64,
    /// The smallest and the greatest key of a webhook written to it.
    pub span: (u64, u64),
}

impl Index {
    /// Looks at no more than `max` webhooks from `cursor` on and deletes what is past its time, or gives
    /// up its body, but for those that are `in_use`. Answers where to go on, none at the end.
    pub fn expire_some(
        &mut self,
        cursor: u64,
        max: usize,
        expiry: Expiry,
        in_use: &HashSet<u64>,
    ) -> rusqlite::Result<(Option<u64>, Vec<Ended>)> {
        let end = expiry.settled.max(expiry.unrouted).max(expiry.dead).as_millis() << 12;
        let looked = self.looked_at(cursor, end, max)?;
        let Some(last) = looked.last().map(|held| held.key + 1) else {
            return Ok((None, Vec::new()));
        };
        let mut dead = Vec::new();
        let over: Vec<(u64, Fate)> = looked
            .iter()
            .filter(|held| !in_use.contains(&held.key))
            .map(|held| (held.key, held.fate(expiry)))
            .filter(|(_, fate)| *fate != Fate::Stays)
            .collect();
        if !over.is_empty() {
            self.transaction(|index| {
                let mut sums = Sums::default();
                for (key, fate) in over {
                    match fate {
                        Fate::Stays => {}
                        Fate::Bare => index.spare_body(key, &mut sums)?,
                        Fate::Goes => index.delete(key, &mut sums)?,
                    }
                }
                for ((target, state, cause), amount) in &sums.counts {
                    if let (State::DeadLetter(cause), Some(target)) =
                        (state_of(*state, *cause), index.name_of(*target))
                    {
                        dead.push((target, cause, -amount.n));
                    }
                }
                index.write_sums(sums)
            })?;
        }
        Ok(((looked.len() == max).then_some(last), dead))
    }

    fn looked_at(&self, from: u64, end: u64, max: usize) -> rusqlite::Result<Vec<Held>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT w.id, w.bare, COUNT(d.webhook), MAX(d.state = 0),
                    MAX(d.state = 2 AND d.spared = 0), MAX(d.state = 2 AND d.spared = 1)
             FROM webhook w LEFT JOIN delivery d ON d.webhook = w.id
             WHERE w.id >= ?1 AND w.id < ?2 GROUP BY w.id ORDER BY w.id LIMIT ?3",
        )?;
        let is = |flag: Option<bool>| flag.unwrap_or(false);
        statement
            .query_map([int(from), int(end), int(max as u64)], |row| {
                Ok(Held {
                    key: uint(row.get(0)?),
                    is_bare: row.get(1)?,
                    is_routed: row.get(2)?,
                    is_pending: is(row.get(3)?),
                    has_dead: is(row.get(4)?),
                    has_spared: is(row.get(5)?),
                })
            })?
            .collect()
    }

    /// Spares the oldest dead letters of a target until they pin `over` bytes less, but at most `max` of
    /// them. Answers how many, and how many bytes less that is.
    pub fn spare_dead(
        &mut self,
        target: &str,
        over: u64,
        max: usize,
    ) -> rusqlite::Result<(usize, u64)> {
        let Some(target) = self.names.get(target).copied() else { return Ok((0, 0)) };
        let mut bytes = 0;
        let mut found = Vec::new();
        {
            let mut statement = self.connection.prepare_cached(
                "SELECT d.webhook, d.number, d.cause, w.length FROM delivery d INDEXED BY pinning
                 JOIN webhook w ON w.id = d.webhook
                 WHERE d.state = 2 AND d.spared = 0 AND d.target = ?1
                 ORDER BY d.webhook, d.number LIMIT ?2",
            )?;
            let mut rows = statement.query([target, int(max as u64)])?;
            while bytes < over
                && let Some(row) = rows.next()?
            {
                let (key, number): (i64, i64) = (row.get(0)?, row.get(1)?);
                let length = uint(row.get(3)?);
                found.push((key, number, state_of(2, row.get(2)?), length));
                bytes += length;
            }
        }
        if found.is_empty() {
            return Ok((0, 0));
        }
        self.transaction(|index| {
            let mut sums = Sums::default();
            for (key, number, state, length) in &found {
                index
                    .connection
                    .prepare_cached("UPDATE delivery SET spared=1 WHERE webhook=?1 AND number=?2")?
                    .execute([*key, *number])?;
                sums.count(target, (*state, false), -1, *length);
                sums.count(target, (*state, true), 1, *length);
            }
            index.write_sums(sums)
        })?;
        Ok((found.len(), bytes))
    }

    /// Deletes the oldest webhooks without a delivery until they take `over` bytes less, but at most
    /// `max` of them, and none that is `in_use`. Answers how many.
    pub fn remove_unrouted(
        &mut self,
        over: u64,
        max: usize,
        in_use: &HashSet<u64>,
    ) -> rusqlite::Result<usize> {
        let mut left = over;
        let mut keys = Vec::new();
        {
            let mut statement = self.connection.prepare_cached(
                "SELECT id, length FROM webhook INDEXED BY unrouted WHERE unrouted = 1
                 ORDER BY id LIMIT ?1",
            )?;
            let mut rows = statement.query([int((max + in_use.len()) as u64)])?;
            while left > 0
                && keys.len() < max
                && let Some(row) = rows.next()?
            {
                let key = uint(row.get(0)?);
                if in_use.contains(&key) {
                    continue;
                }
                keys.push(key);
                left = left.saturating_sub(uint(row.get(1)?));
            }
        }
        if keys.is_empty() {
            return Ok(0);
        }
        self.transaction(|index| {
            let mut sums = Sums::default();
            for key in &keys {
                index.delete(*key, &mut sums)?;
            }
            index.write_sums(sums)
        })?;
        Ok(keys.len())
    }

    /// Deletes duplicate keys from before a moment, a few pieces at a time.
    pub fn forget_known(&self, before: Timestamp) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "DELETE FROM recent WHERE first IN
                 (SELECT first FROM recent WHERE first < ?1 ORDER BY first LIMIT 50)",
            )?
            .execute([int(before.as_millis() << 12)])?;
        Ok(())
    }

    /// What each segment holds.
    pub fn holdings(&self) -> rusqlite::Result<BTreeMap<u64, Holding>> {
        let mut statement =
            self.connection.prepare_cached("SELECT number, live, first, last FROM segment")?;
        let mut rows = statement.query(())?;
        let mut holdings = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let span = (uint(row.get(2)?), uint(row.get(3)?));
            holdings.insert(uint(row.get(0)?), Holding { live: uint(row.get(1)?), span });
        }
        Ok(holdings)
    }

    /// A segment was unlinked.
    pub fn forget_segment(&self, number: u64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM segment WHERE number = ?1")?
            .execute([int(number)])?;
        Ok(())
    }

    /// Where all deliveries of a webhook stand, with the record that defines each if it is another.
    pub fn standings(&self, key: u64) -> rusqlite::Result<Vec<(u16, Standing, Option<Position>)>> {
        let numbers: Vec<(i64, Option<Position>)> = self
            .connection
            .prepare_cached(
                "SELECT number, segment, start, length FROM delivery WHERE webhook = ?1
                 ORDER BY number",
            )?
            .query_map([int(key)], |row| {
                let segment: Option<i64> = row.get(1)?;
                let position = match segment {
                    Some(segment) => Some(Position {
                        segment: uint(segment),
                        offset: uint(row.get(2)?),
                        length: uint(row.get(3)?),
                    }),
                    None => None,
                };
                Ok((row.get(0)?, position))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut standings = Vec::with_capacity(numbers.len());
        for (number, defined_at) in numbers {
            if let Some((_, standing)) = self.standing(key, number)? {
                standings.push((u16::try_from(number).unwrap_or(u16::MAX), standing, defined_at));
            }
        }
        Ok(standings)
    }

    /// How many deliveries a webhook has, and what their attempts take.
    pub fn standings_bytes(&self, key: u64) -> rusqlite::Result<(u64, u64)> {
        self.connection
            .prepare_cached(
                "SELECT COUNT(*), COALESCE(SUM(LENGTH(history)), 0) FROM delivery
                 WHERE webhook = ?1",
            )?
            .query_row([int(key)], |row| Ok((uint(row.get(0)?), uint(row.get(1)?))))
    }

    /// Whether anything of the index is kept for this webhook.
    pub fn knows(&self, key: u64) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM webhook WHERE id = ?1")?
            .query_row([int(key)], |_| Ok(()))
            .optional()
            .map(|found| found.is_some())
    }
}
