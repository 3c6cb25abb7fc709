//! What is asked of the index.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, params};

use crate::domain::delivery::{Cause, Settlement, State};
use crate::domain::outcome::Attempt;
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::embedded::index::apply::unpack;
use crate::store::embedded::index::sums::{LATEST, UNROUTED_BYTES, state_of};
use crate::store::embedded::index::{Index, int, uint};
use crate::store::embedded::recent::Known;
use crate::store::embedded::record::Settled;
use crate::store::embedded::scanner::Unread;
use crate::store::embedded::segment::Position;

/// In which order a target's deliveries are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DueKey {
    /// When.
    pub due_at: Timestamp,
    /// The key of the webhook.
    pub webhook: u64,
    /// Which of its deliveries.
    pub number: u16,
}

impl DueKey {
    /// Before all others.
    pub const FIRST: Self = Self { due_at: Timestamp::from_millis(0), webhook: 0, number: 0 };
}

/// A pending delivery, without its webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueRow {
    /// When it is due.
    pub key: DueKey,
    /// Which repeat on purpose.
    pub again: u32,
    /// How often it was settled.
    pub version: u32,
    /// Attempts so far.
    pub attempts: u32,
    /// When its time began.
    pub started_at: Timestamp,
    /// The record of its webhook.
    pub webhook_at: Position,
    /// The record that holds its headers, if that is another.
    pub defined_at: Option<Position>,
}

impl DueRow {
    /// Its next settlement.
    pub fn settled(
        &self,
        webhook: WebhookId,
        attempt: Option<Attempt>,
        settlement: Settlement,
    ) -> Settled {
        Settled {
            webhook,
            number: self.key.number,
            version: self.version.saturating_add(1),
            attempts: self.attempts.saturating_add(u32::from(attempt.is_some())),
            attempt,
            settlement,
        }
    }
}

/// What a webhook is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its whole id.
    pub id: WebhookId,
    /// Its activity.
    pub activity: Option<Arc<str>>,
}

/// A stored webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// Its id.
    pub id: WebhookId,
    /// Its record.
    pub at: Position,
    /// The records of deliveries that were added to it, in the order of their numbers.
    pub added: Vec<Position>,
}

/// How many deliveries of a target are pending or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The target.
    pub target: Arc<str>,
    /// None: pending.
    pub cause: Option<Cause>,
    /// How many.
    pub n: u64,
}

/// What [`due_row`] reads.
pub(super) const DUE_COLUMNS: &str =
    "d.due_at, d.webhook, d.number, d.again, d.version, d.attempts,
    d.started_at, w.segment, w.start, w.length, d.segment, d.start, d.length";

fn position(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Position>> {
    let segment: Option<i64> = row.get(at)?;
    let (offset, length): (Option<i64>, Option<i64>) = (row.get(at + 1)?, row.get(at + 2)?);
    Ok(segment.zip(offset).zip(length).map(|((segment, offset), length)| Position {
        segment: uint(segment),
        offset: uint(offset),
        length: uint(length),
    }))
}

pub(super) fn due_row(row: &Row<'_>) -> rusqlite::Result<DueRow> {
    let time = |at| row.get(at).map(|ms| Timestamp::from_millis(uint(ms)));
    Ok(DueRow {
        key: DueKey { due_at: time(0)?, webhook: uint(row.get(1)?), number: row.get(2)? },
        again: row.get(3)?,
        version: row.get(4)?,
        attempts: row.get(5)?,
        started_at: time(6)?,
        webhook_at: position(row, 7)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?,
        defined_at: position(row, 10)?,
    })
}

impl Index {
    /// Where a webhook's record is.
    pub fn position(&self, key: u64) -> rusqlite::Result<Option<Position>> {
        self.connection
            .prepare_cached("SELECT segment, start, length FROM webhook WHERE id=?1")?
            .query_row([int(key)], |row| position(row, 0))
            .optional()
            .map(Option::flatten)
    }

    /// The length of a webhook's body, if that is not needed or gone.
    pub fn spared_body(&self, key: u64) -> rusqlite::Result<Option<u64>> {
        self.connection
            .prepare_cached("SELECT body_bytes FROM webhook WHERE id=?1 AND bare <> 0")?
            .query_row([int(key)], |row| row.get(0).map(uint))
            .optional()
    }

    /// Webhooks with a greater key than this one, in order; none whose body is not needed or gone.
    pub fn stored(&self, after: u64, max: usize) -> rusqlite::Result<Vec<StoredRow>> {
        let mut stored: Vec<StoredRow> = self
            .connection
            .prepare_cached(
                "SELECT webhook_id, segment, start, length FROM webhook WHERE id > ?1 AND bare = 0
                 ORDER BY id LIMIT ?2",
            )?
            .query_map([int(after), int(max as u64)], |row| {
                let at = position(row, 1)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
                let id = WebhookId::from_bytes(row.get(0)?);
                Ok(StoredRow { id, at, added: Vec::new() })
            })?
            .collect::<rusqlite::Result<_>>()?;
        let (Some(first), Some(last)) = (stored.first(), stored.last()) else {
            return Ok(stored);
        };
        let span = [int(first.id.key()), int(last.id.key())];
        let mut statement = self.connection.prepare_cached(
            "SELECT segment, start, length, webhook FROM delivery
             WHERE webhook BETWEEN ?1 AND ?2 AND segment IS NOT NULL ORDER BY webhook, number",
        )?;
        let mut rows = statement.query(span)?;
        while let Some(row) = rows.next()? {
            let key = uint(row.get(3)?);
            if let Some(at) = position(row, 0)?
                && let Ok(nth) = stored.binary_search_by_key(&key, |row| row.id.key())
                && let Some(of) = stored.get_mut(nth)
                && !of.added.contains(&at)
            {
                of.added.push(at);
            }
        }
        Ok(stored)
    }

    /// Where one webhook is stored.
    pub fn stored_one(&self, key: u64) -> rusqlite::Result<Option<StoredRow>> {
        let mut found = self.stored(key.saturating_sub(1), 1)?;
        Ok(found.pop().filter(|row| row.id.key() == key))
    }

    /// What a webhook is called.
    pub fn identity(&self, key: u64) -> rusqlite::Result<Option<Identity>> {
        let found = self
            .connection
            .prepare_cached("SELECT webhook_id, activity FROM webhook WHERE id=?1")?
            .query_row([int(key)], |row| {
                let activity: Option<i64> = row.get(1)?;
                Ok((WebhookId::from_bytes(row.get(0)?), activity))
            })
            .optional()?;
        let named = |activity: Option<i64>| activity.and_then(|name| self.name_of(name));
        Ok(found.map(|(id, activity)| Identity { id, activity: named(activity) }))
    }

    /// A target's pending deliveries from `bound` on, in order.
    pub fn due(&self, target: &str, bound: DueKey, max: usize) -> rusqlite::Result<Vec<DueRow>> {
        let Some(target) = self.names.get(target) else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT {DUE_COLUMNS} FROM delivery d INDEXED BY due
             JOIN webhook w ON w.id = d.webhook
             WHERE d.state = 0 AND d.target = ?1 AND (d.due_at, d.webhook, d.number) >= (?2,?3,?4)
             ORDER BY d.due_at, d.webhook, d.number LIMIT ?5"
        );
        self.connection
            .prepare_cached(&sql)?
            .query_map(
                params![
                    target,
                    int(bound.due_at.as_millis()),
                    int(bound.webhook),
                    bound.number,
                    int(max as u64)
                ],
                due_row,
            )?
            .collect()
    }

    /// Where a delivery is now, if it is pending.
    pub fn due_one(&self, webhook: u64, number: u16) -> rusqlite::Result<Option<DueRow>> {
        let sql = format!(
            "SELECT {DUE_COLUMNS} FROM delivery d JOIN webhook w ON w.id = d.webhook
             WHERE d.state = 0 AND d.webhook = ?1 AND d.number = ?2"
        );
        self.connection
            .prepare_cached(&sql)?
            .query_row(params![int(webhook), number], due_row)
            .optional()
    }

    /// A target's pending deliveries that began before a moment, the oldest first, with the ids of
    /// their webhooks.
    pub fn started_before(
        &self,
        target: &str,
        before: Timestamp,
        max: usize,
    ) -> rusqlite::Result<Vec<(DueRow, WebhookId)>> {
        let Some(target) = self.names.get(target) else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT {DUE_COLUMNS}, w.webhook_id FROM delivery d INDEXED BY age
             JOIN webhook w ON w.id = d.webhook
             WHERE d.state = 0 AND d.target = ?1 AND d.started_at < ?2
             ORDER BY d.started_at LIMIT ?3"
        );
        self.connection
            .prepare_cached(&sql)?
            .query_map(params![target, int(before.as_millis()), int(max as u64)], |row| {
                Ok((due_row(row)?, WebhookId::from_bytes(row.get(13)?)))
            })?
            .collect()
    }

    /// When the time of a target's oldest pending delivery began.
    pub fn oldest(&self, target: &str) -> rusqlite::Result<Option<Timestamp>> {
        let Some(target) = self.names.get(target) else { return Ok(None) };
        self.connection
            .prepare_cached(
                "SELECT started_at FROM delivery INDEXED BY age WHERE state = 0 AND target = ?1
                 ORDER BY started_at LIMIT 1",
            )?
            .query_row([target], |row| row.get(0).map(|ms| Timestamp::from_millis(uint(ms))))
            .optional()
    }

    /// What a target pins: the bytes of the records that its pending deliveries need.
    pub fn backlog_bytes(&self, target: &str) -> rusqlite::Result<u64> {
        let Some(target) = self.names.get(target) else { return Ok(0) };
        let found = self
            .connection
            .prepare_cached("SELECT bytes FROM counts WHERE target = ?1 AND state = 0")?
            .query_row([target], |row| row.get(0))
            .optional()?;
        Ok(found.map_or(0, uint))
    }

    /// What a target pins, for its lane: when the oldest pending delivery began, and the bytes of those
    /// that are pending and of those that are dead.
    pub fn pinned(&self, target: &str) -> rusqlite::Result<(Option<Timestamp>, [u64; 2])> {
        let bytes = [self.backlog_bytes(target)?, self.dead_letters_bytes(target)?];
        Ok((self.oldest(target)?, bytes))
    }

    /// What a target's dead letters pin: the bytes of the records that are kept for them.
    pub fn dead_letters_bytes(&self, target: &str) -> rusqlite::Result<u64> {
        let Some(target) = self.names.get(target) else { return Ok(0) };
        self.connection
            .prepare_cached(
                "SELECT COALESCE(SUM(bytes), 0) FROM counts WHERE target = ?1 AND state = 2",
            )?
            .query_row([target], |row| row.get(0).map(uint))
    }

    /// What the records of webhooks without a delivery take.
    pub fn unrouted_bytes(&self) -> rusqlite::Result<u64> {
        Ok(self.meta(UNROUTED_BYTES)?.map_or(0, uint))
    }

    /// How many deliveries are pending and dead, by target.
    pub fn counts(&self) -> rusqlite::Result<Vec<Count>> {
        let mut statement =
            self.connection.prepare("SELECT target, state, cause, n FROM counts WHERE n > 0")?;
        let mut rows = statement.query(())?;
        let mut counts = Vec::new();
        while let Some(row) = rows.next()? {
            let cause = match state_of(row.get(1)?, row.get(2)?) {
                State::Pending => None,
                State::DeadLetter(cause) => Some(cause),
                State::Delivered | State::Discarded => continue,
            };
            if let Some(target) = self.name_of(row.get(0)?) {
                counts.push(Count { target, cause, n: uint(row.get(3)?) });
            }
        }
        Ok(counts)
    }

    /// The keys of duplicates since a moment, at most `max` of them, passed on from old to new.
    pub fn known_since(
        &self,
        since: Timestamp,
        max: usize,
        mut reserve: impl FnMut(usize),
        mut pass: impl FnMut(Known),
    ) -> rusqlite::Result<()> {
        // From the newest back: how many pieces are wanted.
        let (mut count, mut first) = (0, i64::MAX);
        {
            let mut statement = self.connection.prepare(
                "SELECT first, length(keys) / 33 FROM recent WHERE first >= ?1
                 ORDER BY first DESC",
            )?;
            let mut rows = statement.query([int(since.as_millis() << 12)])?;
            while count < max
                && let Some(row) = rows.next()?
            {
                first = row.get(0)?;
                count += usize::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            }
        }
        reserve(count);
        let mut statement =
            self.connection.prepare("SELECT keys FROM recent WHERE first >= ?1 ORDER BY first")?;
        let mut rows = statement.query([first])?;
        while let Some(row) = rows.next()? {
            let keys = row.get_ref(0)?.as_blob().map_err(|_| rusqlite::Error::InvalidQuery)?;
            unpack(keys).for_each(&mut pass);
        }
        Ok(())
    }

    /// The newest webhook of each source.
    pub fn newest_by_source(&self) -> rusqlite::Result<Vec<(Arc<str>, Timestamp)>> {
        let mut statement = self.connection.prepare("SELECT source, at FROM newest")?;
        let mut rows = statement.query(())?;
        let mut newest = Vec::new();
        while let Some(row) = rows.next()? {
            if let Some(source) = self.name_of(row.get(0)?) {
                newest.push((source, Timestamp::from_millis(uint(row.get(1)?))));
            }
        }
        Ok(newest)
    }

    /// What of the log could not be read and is missing here.
    pub fn unread(&self) -> rusqlite::Result<Vec<Unread>> {
        self.connection
            .prepare_cached("SELECT segment, start, length FROM unread")?
            .query_map((), |row| {
                Ok(Unread {
                    segment: uint(row.get(0)?),
                    offset: uint(row.get(1)?),
                    bytes: uint(row.get(2)?),
                })
            })?
            .collect()
    }

    /// The latest moment that any record tells of that was taken in.
    pub fn latest(&self) -> rusqlite::Result<Timestamp> {
        Ok(Timestamp::from_millis(self.meta(LATEST)?.map_or(0, uint)))
    }

    /// The greatest key of a webhook.
    pub fn newest_key(&self) -> rusqlite::Result<Option<u64>> {
        let key: Option<i64> =
            self.connection.query_row("SELECT MAX(id) FROM webhook", (), |row| row.get(0))?;
        Ok(key.map(uint))
    }
}
