//! Two indices of one log, held against each other.

use std::path::Path;

use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::embedded::index::{Index, int, uint};
use crate::store::embedded::segment::LogPoint;

/// In what an index differs from another one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Webhooks that only this one has, and where their records are to be.
    pub only_here: Vec<(WebhookId, LogPoint)>,
    /// How many there are of those.
    pub only_here_count: u64,
    /// Deliveries that are pending in the other one, and of which this one does not know.
    pub pending_only_there: u64,
    /// Deliveries that are pending in only one of the two.
    pub otherwise_pending: u64,
    /// Webhooks whose records are elsewhere in the other one.
    pub elsewhere: u64,
}

/// How many webhooks, and when the first and the last of them were received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many.
    pub webhooks: u64,
    /// How many have no delivery.
    pub unrouted: u64,
    /// The oldest.
    pub oldest: Option<Timestamp>,
    /// The newest.
    pub newest: Option<Timestamp>,
}

impl Index {
    /// Holds it against the one in another file; names `max` of what only this one has.
    pub fn compare(&self, other: &Path, max: usize) -> rusqlite::Result<Difference> {
        let connection = &self.connection;
        connection.execute("ATTACH ?1 AS other", [other.to_string_lossy()])?;
        let count = |sql: &str| connection.query_row(sql, (), |row| row.get(0)).map(uint);
        let only_here = "FROM main.webhook AS w
             WHERE NOT EXISTS (SELECT 1 FROM other.webhook AS o WHERE o.id = w.id)";
        let mut statement = connection
            .prepare(&format!("SELECT w.webhook_id, w.segment, w.start {only_here} LIMIT ?1"))?;
        let named = statement.query_map([int(max as u64)], |row| {
            let point = LogPoint { segment: uint(row.get(1)?), offset: uint(row.get(2)?) };
            Ok((WebhookId::from_bytes(row.get(0)?), point))
        })?;
        Ok(Difference {
            only_here: named.collect::<rusqlite::Result<_>>()?,
            only_here_count: count(&format!("SELECT COUNT(*) {only_here}"))?,
            pending_only_there: count(
                "SELECT COUNT(*) FROM other.delivery AS o WHERE o.state = 0 AND NOT EXISTS
                 (SELECT 1 FROM main.delivery AS d
                  WHERE d.webhook = o.webhook AND d.number = o.number)",
            )?,
            otherwise_pending: count(
                "SELECT COUNT(*) FROM main.delivery AS d JOIN other.delivery AS o
                 USING (webhook, number) WHERE (d.state = 0) <> (o.state = 0)",
            )?,
            elsewhere: count(
                "SELECT COUNT(*) FROM main.webhook AS w JOIN other.webhook AS o USING (id)
                 WHERE (w.segment, w.start, w.length) <> (o.segment, o.start, o.length)",
            )?,
        })
    }

    /// Webhooks whose records are in segments that are gone, how many, and how many of their deliveries are
    /// pending; `max` of them are named. Only in segments that this index knows: what a flipped bit names
    /// was never there.
    pub fn in_gone_segments(
        &self,
        exists: impl Fn(u64) -> bool,
        max: usize,
    ) -> rusqlite::Result<(u64, u64, Vec<WebhookId>)> {
        let (mut count, mut pending, mut named) = (0, 0, Vec::new());
        for (number, _) in self.holdings()?.into_iter().filter(|(number, _)| !exists(*number)) {
            let mut statement = self.connection.prepare_cached(
                "SELECT webhook_id, (SELECT COUNT(*) FROM delivery AS d
                 WHERE d.webhook = w.id AND d.state = 0) FROM webhook AS w WHERE w.segment = ?1",
            )?;
            let mut rows = statement.query([int(number)])?;
            while let Some(row) = rows.next()? {
                count += 1;
                pending += uint(row.get(1)?);
                if named.len() < max {
                    named.push(WebhookId::from_bytes(row.get(0)?));
                }
            }
        }
        Ok((count, pending, named))
    }

    /// The webhook whose record begins at a point. Looks at all of them.
    pub fn webhook_at(&self, at: LogPoint) -> rusqlite::Result<Option<WebhookId>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT webhook_id FROM webhook WHERE segment = ?1 AND start = ?2")?;
        let mut rows = statement.query([int(at.segment), int(at.offset)])?;
        Ok(rows.next()?.map(|row| row.get(0)).transpose()?.map(WebhookId::from_bytes))
    }

    /// How much is in it.
    pub fn extent(&self) -> rusqlite::Result<Extent> {
        self.connection.query_row(
            "SELECT COUNT(*), COALESCE(SUM(unrouted), 0), MIN(received_at), MAX(received_at)
             FROM webhook",
            (),
            |row| {
                let time = |at| {
                    let ms: Option<i64> = row.get(at)?;
                    Ok::<_, rusqlite::Error>(ms.map(|ms| Timestamp::from_millis(uint(ms))))
                };
                Ok(Extent {
                    webhooks: uint(row.get(0)?),
                    unrouted: uint(row.get(1)?),
                    oldest: time(2)?,
                    newest: time(3)?,
                })
            },
        )
    }
}
