//! What became of webhooks, as the index knows it.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Row};

use crate::domain::delivery::Cause;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Resource, WebhookId};
use crate::store::embedded::index::queries::{DUE_COLUMNS, DueRow, due_row};
use crate::store::embedded::index::sums::state_of;
use crate::store::embedded::index::{Index, int, uint};
use crate::store::embedded::record::decode_history;
use crate::store::story::{DeliveryStory, Filter, Order, Story};

// More than 4,096 webhooks in a millisecond borrow ids from the next ones: a second of that.
const SLACK: u64 = 1000 << 12;

/// So many webhooks are looked at for one answer: others wait for the index too.
pub const LOOKED_AT_MAX: usize = 2000;

/// What was found, and up to where it was looked.
#[derive(Debug)]
pub struct Found {
    /// What the filter wants.
    pub stories: Vec<Story>,
    /// The key up to which it was looked; none if nothing follows.
    pub upto: Option<u64>,
}

/// A dead letter, as its lane takes it back.
#[derive(Debug, Clone)]
pub struct DeadRow {
    /// The delivery as it was due last.
    pub row: DueRow,
    /// The webhook's id.
    pub id: WebhookId,
    /// The target's name.
    pub target: Arc<str>,
    /// Why nobody tries it.
    pub cause: Cause,
}

impl Index {
    /// Webhooks that a filter wants, behind a key in this order, at most `max`.
    pub fn stories(
        &self,
        filter: &Filter,
        behind: Option<u64>,
        order: Order,
        max: usize,
    ) -> rusqlite::Result<Found> {
        let moment = |moment: Timestamp| moment.as_millis() << 12;
        let mut from = filter.since.map_or(0, moment);
        // The moment of an id may be a little later than that of its webhook.
        let mut upto = filter.until.map_or(i64::MAX.unsigned_abs(), |until| moment(until) + SLACK);
        let direction = match order {
            Order::OldestFirst => {
                from = behind.map_or(from, |key| from.max(key + 1));
                "ASC"
            }
            Order::NewestFirst => {
                upto = behind.map_or(upto, |key| upto.min(key));
                "DESC"
            }
        };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT id, webhook_id, received_at, source, activity, resource_type, resource_id,
               body_bytes, bare
             FROM webhook WHERE id >= ?1 AND id < ?2 ORDER BY id {direction} LIMIT ?3"
        ))?;
        let mut rows = statement.query([int(from), int(upto), int(LOOKED_AT_MAX as u64)])?;
        let mut found = Found { stories: Vec::new(), upto: None };
        let mut looked_at = 0;
        while let Some(row) = rows.next()? {
            looked_at += 1;
            if let Some(story) = self.told(row, filter)? {
                found.stories.push(story);
            }
            if found.stories.len() >= max || looked_at == LOOKED_AT_MAX {
                found.upto = Some(uint(row.get(0)?));
                break;
            }
        }
        Ok(found)
    }

    /// One webhook and how far it has come.
    pub fn story(&self, key: u64) -> rusqlite::Result<Option<Story>> {
        let behind = key.checked_sub(1);
        let mut found = self.stories(&Filter::default(), behind, Order::OldestFirst, 1)?.stories;
        Ok(found.pop().filter(|story| story.id.key() == key))
    }

    fn told(&self, row: &Row<'_>, filter: &Filter) -> rusqlite::Result<Option<Story>> {
        let name = |at: usize| -> rusqlite::Result<Option<Arc<str>>> {
            Ok(row.get::<_, Option<i64>>(at)?.and_then(|id| self.name_of(id)))
        };
        let mut story = Story {
            id: WebhookId::from_bytes(row.get(1)?),
            received_at: Timestamp::from_millis(uint(row.get(2)?)),
            source: name(3)?.unwrap_or_default(),
            activity: name(4)?,
            resource: Resource {
                object: name(5)?.as_deref().map(Box::from),
                id: row.get::<_, Option<String>>(6)?.map(Box::from),
            },
            body_bytes: uint(row.get(7)?),
            bytes_gone: row.get(8)?,
            deliveries: Vec::new(),
        };
        if !filter.wants_before_deliveries(&story) {
            return Ok(None);
        }
        story.deliveries = self.deliveries(uint(row.get(0)?))?;
        Ok(Some(story).filter(|story| filter.wants(story)))
    }

    fn deliveries(&self, key: u64) -> rusqlite::Result<Vec<DeliveryStory>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT number, target, again, state, cause, attempts, started_at, due_at, history
             FROM delivery WHERE webhook = ?1 ORDER BY number",
        )?;
        let mut rows = statement.query([int(key)])?;
        let mut deliveries = Vec::new();
        while let Some(row) = rows.next()? {
            let history: Option<Vec<u8>> = row.get(8)?;
            let history = history.map_or(Ok(Vec::new()), |bytes| decode_history(&bytes));
            let time = |at| row.get(at).map(|ms| Timestamp::from_millis(uint(ms)));
            deliveries.push(DeliveryStory {
                number: row.get(0)?,
                target: self.name_of(row.get(1)?).unwrap_or_default(),
                again: row.get(2)?,
                state: state_of(row.get(3)?, row.get(4)?),
                attempts: row.get(5)?,
                started_at: time(6)?,
                due_at: time(7)?,
                history: history.map_err(|_| rusqlite::Error::InvalidQuery)?,
            });
        }
        Ok(deliveries)
    }

    /// A delivery, if it is a dead letter.
    pub fn dead_one(&self, webhook: u64, number: u16) -> rusqlite::Result<Option<DeadRow>> {
        let found = self
            .connection
            .prepare_cached(&format!(
                "SELECT {DUE_COLUMNS}, w.webhook_id, d.target, d.cause
                 FROM delivery d JOIN webhook w ON w.id = d.webhook
                 WHERE d.state = 2 AND d.webhook = ?1 AND d.number = ?2"
            ))?
            .query_row((int(webhook), number), |row| {
                let (target, state) = (self.name_of(row.get(14)?), state_of(2, row.get(15)?));
                Ok((due_row(row)?, WebhookId::from_bytes(row.get(13)?), target, state.cause()))
            })
            .optional()?;
        Ok(found.and_then(|(row, id, target, cause)| {
            Some(DeadRow { row, id, target: target?, cause: cause? })
        }))
    }
}
