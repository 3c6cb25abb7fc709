//! The recent past, read back from the log: the newest segments first.

use std::io;
use std::sync::Arc;

use crate::domain::limit::SENDER_RETRIES_SPAN;
use crate::domain::time::Timestamp;
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::log::Log;
use crate::store::embedded::recent::Known;
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::{LogPoint, Segment};

/// What a start wants to know of a webhook before it accepts the next one.
#[derive(Debug, Clone)]
pub struct Recalled {
    /// To know duplicates by.
    pub known: Known,
    /// Its source.
    pub source: Arc<str>,
    /// When it was received.
    pub received_at: Timestamp,
    /// Whether it is durable: only then a second one is a duplicate.
    pub durable: bool,
}

impl Recalled {
    fn of(row: &WebhookRow) -> Self {
        let known = Known { key: row.duplicate_key, id: row.id, activity_id: row.activity_id };
        let (source, received_at) = (Arc::clone(&row.source), row.received_at);
        Self { known, source, received_at, durable: row.durable }
    }
}

/// Goes back through the segments behind a point, from the newest one on.
#[derive(Debug)]
pub struct Recall {
    // What is left, the next one at the end.
    segments: Vec<Arc<Segment>>,
    from: LogPoint,
    webhooks_max: usize,
    bytes_min: u64,
    count: usize,
    bytes: u64,
    // What was received before is no retry of the sender's any more.
    retries_since: Timestamp,
    has_all_retries: bool,
    latest: Timestamp,
}

impl Recall {
    /// Of what is behind `from`: no more than about `webhooks_max`, and no less than `bytes_min` of
    /// the records, however old they are.
    pub fn new(log: &Log, from: LogPoint, webhooks_max: usize, bytes_min: u64) -> Self {
        let mut segments = log.all();
        // The newest segment was made before now, whatever the clock shows now.
        let made = segments.iter().map(|segment| segment.header.created_at).max();
        segments.retain(|segment| segment.header.number >= from.segment);
        let retries_since = made.unwrap_or_default().minus(SENDER_RETRIES_SPAN);
        Self {
            segments,
            from,
            webhooks_max,
            bytes_min,
            count: 0,
            bytes: 0,
            retries_since,
            has_all_retries: false,
            latest: Timestamp::default(),
        }
    }

    /// The latest moment that any record tells of that was read so far.
    pub fn latest(&self) -> Timestamp {
        self.latest
    }

    /// Whether nothing more can be recalled.
    pub fn is_over(&self) -> bool {
        self.segments.is_empty() || self.count >= self.webhooks_max
    }

    /// Whether all is recalled without which no webhook may be taken for a new one: what the sender
    /// itself may send again, and some more.
    pub fn is_enough(&self) -> bool {
        self.is_over() || (self.has_all_retries && self.bytes >= self.bytes_min)
    }

    /// What the next older segment says of webhooks, from old to new. What can't be read is left
    /// out.
    pub fn step(&mut self, log: &Log) -> Vec<Recalled> {
        let mut rows = Vec::new();
        let Some(segment) = self.segments.pop() else { return rows };
        let number = segment.header.number;
        let made = segment.header.created_at;
        let start = if number == self.from.segment { self.from.offset } else { 0 };
        let durable = log.is_durable(number);
        let mut latest = self.latest;
        let pass = |change: &Change| {
            latest = latest.max(change.latest());
            if let Change::Webhook(row) = change {
                rows.push(Recalled::of(row));
            }
        };
        let read = read(segment, start, durable, pass);
        self.latest = latest;
        match read {
            Ok(bytes) => self.bytes += bytes,
            Err(error) => tracing::warn!(%error, segment = number, "duplicates may be missed"),
        }
        self.count += rows.len();
        // What is in the segments before it was received before it was made. A header that was made
        // again does not know when that was.
        self.has_all_retries |= made > Timestamp::default() && made < self.retries_since;
        rows
    }
}

/// Passes on what the records of a segment say; how many bytes they have.
fn read(
    segment: Arc<Segment>,
    start: u64,
    durable: bool,
    mut pass: impl FnMut(&Change),
) -> io::Result<u64> {
    let mut bytes = 0;
    let mut scanner = Scanner::new(segment, start, u64::MAX)?;
    while let Some(frame) = scanner.next_frame()? {
        bytes += frame.position.length;
        // What can't be read is counted when the index takes it in.
        if let Ok(entry) = Entry::of_frame(&frame, durable) {
            pass(&entry.change);
        }
    }
    Ok(bytes)
}
