//! Pages of what is stored: the index says where, the segments say what.

use bytes::Bytes;

use crate::domain::webhook::{Webhook, WebhookId};
use crate::store::embedded::Shared;
use crate::store::embedded::index::queries::StoredRow;
use crate::store::embedded::indexer::Request;
use crate::store::embedded::log::Log;
use crate::store::embedded::reader::{Unfit, read_record};
use crate::store::embedded::record::Record;
use crate::store::embedded::segment::Position;
use crate::store::embedded::suspicion::MISPLACED;
use crate::store::listing::{Page, Place, ReadError, Routed, Summary};

// What the index is asked for at once: nobody waits for it longer than milliseconds.
const PAGE_MAX: usize = 1024;
// Segments that are cleaned away meanwhile: their webhooks are somewhere else by then.
pub(super) const TRIALS: usize = 4;

impl Shared {
    /// The webhooks behind a place.
    pub(super) async fn page(&self, after: Place, max: usize) -> Result<Page, ReadError> {
        let max = max.clamp(1, PAGE_MAX);
        let mut trial = 1;
        loop {
            let rows = self.stored(after.key(), max).await?;
            let next = rows.last().filter(|_| rows.len() == max).map(|row| row.id);
            let next = next.map(Place::behind);
            let log = std::sync::Arc::clone(&self.log);
            let read = self.aside.run(move || read_page(&log, rows));
            let Read { webhooks, left_out, moved, misplaced } =
                read.await.ok_or(ReadError::Closed)?;
            if let Some((webhook, at)) = misplaced {
                self.suspect(webhook, at, MISPLACED);
            }
            if moved == 0 || trial == TRIALS {
                return Ok(Page { webhooks, next, left_out: left_out + moved });
            }
            trial += 1;
        }
    }

    /// A webhook's exact bytes, if it is still stored.
    pub(super) async fn body(&self, summary: Summary) -> Result<Option<Bytes>, ReadError> {
        let key = summary.id.key();
        let [segment, offset, length] = summary.kept_at;
        let mut at = Position { segment, offset, length };
        for _ in 0..TRIALS {
            let log = std::sync::Arc::clone(&self.log);
            let read = self.aside.run(move || read_webhook(&log, at));
            match read.await.ok_or(ReadError::Closed)? {
                Ok(webhook) if webhook.id == summary.id => return Ok(Some(webhook.body)),
                Err(Unfit::Moved) => {}
                other => {
                    let unfit = other.err().unwrap_or(Unfit::Misplaced);
                    self.note_unfit(summary.id, at, &unfit);
                    return Err(unfit.into());
                }
            }
            let found = self.stored(key.saturating_sub(1), 1).await?;
            match found.first().filter(|row| row.id == summary.id) {
                Some(row) => at = row.at,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Counts a place and names it; an index that is wrong about it is made again.
    pub(super) fn note_unfit(&self, id: WebhookId, at: Position, unfit: &Unfit) {
        if matches!(unfit, Unfit::Misplaced) {
            self.suspect(id.key(), at, MISPLACED);
        }
        note_unfit(&self.log, id, at, unfit);
    }

    async fn stored(&self, after: u64, max: usize) -> Result<Vec<StoredRow>, ReadError> {
        let (request, answer) = Request::ask(move |indexer| indexer.index.stored(after, max));
        // Behind all that waits: what was acknowledged before is in the answer.
        self.queue.request(request);
        answer.await.map_err(|_| ReadError::Closed)
    }
}

pub(super) fn read_webhook(log: &Log, at: Position) -> Result<Webhook, Unfit> {
    match read_record(log, at)? {
        Record::Webhook(webhook, _) => Ok(webhook),
        _ => Err(Unfit::Misplaced),
    }
}

/// What was read of a page.
#[derive(Debug, Default)]
struct Read {
    webhooks: Vec<Summary>,
    // So many can't be read.
    left_out: u64,
    // So many are no longer where they were.
    moved: u64,
    // One that is not where the index says.
    misplaced: Option<(u64, Position)>,
}

fn read_page(log: &Log, rows: Vec<StoredRow>) -> Read {
    let mut read = Read::default();
    for row in rows {
        match read_summary(log, &row) {
            Ok(summary) => read.webhooks.push(summary),
            Err(Unfit::Moved) => read.moved += 1,
            Err(unfit) => {
                if matches!(unfit, Unfit::Misplaced) {
                    read.misplaced = Some((row.id.key(), row.at));
                }
                note_unfit(log, row.id, row.at, &unfit);
                read.left_out += 1;
            }
        }
    }
    read
}

/// Counts a place and names it, unless that was done before.
pub(super) fn note_unfit(log: &Log, id: WebhookId, at: Position, unfit: &Unfit) {
    let Position { segment, offset, .. } = at;
    // Nothing of the log is damaged by that.
    if matches!(unfit, Unfit::Misplaced) {
        return;
    }
    if !log.damage.add(segment, offset) || !log.damage.may_name() {
        return;
    }
    let (webhook_id, received_at) = (id, id.timestamp());
    match unfit {
        Unfit::Failed(error) => {
            tracing::error!(%error, %webhook_id, %received_at, segment, offset, "a record can't be read");
        }
        Unfit::Damaged | Unfit::Misplaced | Unfit::Moved => {
            tracing::error!(%webhook_id, %received_at, segment, offset, "a record is damaged");
        }
    }
}

/// A webhook with all its deliveries, also those that were added later.
pub(super) fn read_webhook_and_added(log: &Log, row: &StoredRow) -> Result<Webhook, Unfit> {
    let mut webhook = read_webhook(log, row.at)?;
    if webhook.id != row.id {
        return Err(Unfit::Misplaced);
    }
    for at in &row.added {
        let (Record::Deliveries(_, added) | Record::State(_, added)) = read_record(log, *at)?
        else {
            return Err(Unfit::Misplaced);
        };
        for full in added {
            // Their numbers go on where the webhook's own end; a state repeats the earlier ones.
            if usize::from(full.number) == webhook.deliveries.len() {
                webhook.deliveries.push(full.delivery);
            }
        }
    }
    Ok(webhook)
}

fn read_summary(log: &Log, row: &StoredRow) -> Result<Summary, Unfit> {
    let webhook = read_webhook_and_added(log, row)?;
    let routed = |delivery: crate::domain::webhook::NewDelivery| Routed {
        target: delivery.target,
        routes: delivery.routes,
    };
    Ok(Summary {
        id: webhook.id,
        received_at: webhook.received_at,
        source: webhook.source,
        path: webhook.path,
        activity: webhook.activity,
        resource: webhook.resource,
        table: webhook.table,
        body_bytes: webhook.body.len() as u64,
        deliveries: webhook.deliveries.into_iter().map(routed).collect(),
        kept_at: [row.at.segment, row.at.offset, row.at.length],
    })
}
