//! Reading a delivery back from the log.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use crate::domain::webhook::Header;
use crate::store::embedded::index::queries::DueRow;
use crate::store::embedded::log::Log;
use crate::store::embedded::offer::Body;
use crate::store::embedded::record::{Record, decode, left_out};
use crate::store::embedded::segment::Position;
use crate::store::listing::ReadError;

/// What became of reading.
#[derive(Debug)]
pub enum Readback {
    /// As it was committed.
    Whole(Body),
    /// The record there is not what was written.
    Damaged(Position),
    /// A sound record is there, and another one than the index says.
    Misplaced(Position),
    /// The segment is gone: the record was copied forward.
    Moved,
    /// The disk refused to read there.
    Failed(Position, io::Error),
}

/// Reads what an attempt needs.
pub fn read_back(log: &Log, row: &DueRow) -> Readback {
    let record = match read_record(log, row.webhook_at) {
        Ok(record) => record,
        Err(unfit) => return unfit.at(row.webhook_at),
    };
    let Record::Webhook(mut webhook, _) = record else {
        return Readback::Misplaced(row.webhook_at);
    };
    if webhook.id.key() != row.key.webhook {
        return Readback::Misplaced(row.webhook_at);
    }
    let mut deliveries = std::mem::take(&mut webhook.deliveries);
    let headers: Option<Arc<[Header]>> = match row.defined_at {
        None => {
            let number = usize::from(row.key.number);
            (number < deliveries.len()).then(|| deliveries.swap_remove(number).headers.into())
        }
        Some(at) => match read_record(log, at) {
            Ok(Record::Deliveries(id, added) | Record::State(id, added)) => added
                .into_iter()
                .filter(|_| id.key() == row.key.webhook)
                .find(|full| full.number == row.key.number)
                .map(|full| full.delivery.headers.into()),
            Ok(_) => None,
            Err(unfit) => return unfit.at(at),
        },
    };
    match headers {
        Some(headers) => Readback::Whole(Body { webhook: Arc::new(webhook), headers }),
        None => Readback::Misplaced(row.defined_at.unwrap_or(row.webhook_at)),
    }
}

/// Why a position has no record to offer.
#[derive(Debug)]
pub enum Unfit {
    /// The record is not what was written.
    Damaged,
    /// A sound record is there, and another one than the index says.
    Misplaced,
    /// The segment is gone: the record was copied forward. Or its body was given up.
    Moved,
    /// The disk refused.
    Failed(io::Error),
}

impl From<Unfit> for ReadError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Damaged => Self::Damaged,
            Unfit::Failed(_) | Unfit::Moved | Unfit::Misplaced => Self::Unavailable,
        }
    }
}

impl Unfit {
    fn at(self, position: Position) -> Readback {
        match self {
            Self::Damaged => Readback::Damaged(position),
            Self::Misplaced => Readback::Misplaced(position),
            Self::Moved => Readback::Moved,
            Self::Failed(error) => Readback::Failed(position, error),
        }
    }
}

/// Reads the record at a position.
pub fn read_record(log: &Log, at: Position) -> Result<Record, Unfit> {
    let Some(segment) = log.get(at.segment) else {
        // One that could not be opened is still there: the next start may be able to.
        let moved = !log.is_unread(at.segment);
        return Err(if moved { Unfit::Moved } else { Unfit::Failed(Errno::IO.into()) });
    };
    match segment.read(at) {
        Ok(Some(frame)) => {
            let record = decode(frame.kind, frame.version, &frame.payload);
            match record.map_err(|_| Unfit::Damaged)? {
                // Whoever reads wants the body: the index knows that there is none any more.
                Record::Webhook(webhook, _) if left_out(&webhook, &frame.payload).is_some() => {
                    Err(Unfit::Moved)
                }
                record => Ok(record),
            }
        }
        Ok(None) => Err(Unfit::Damaged),
        Err(error) => Err(Unfit::Failed(error)),
    }
}
