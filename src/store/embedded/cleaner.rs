//! Retention: what is past its time goes, in small steps that stall nobody.
//!
//! A segment of which little lives is copied forward and unlinked. Nothing that a rebuild of the
//! index would need may go with it: of settlements in it, those of webhooks in earlier segments are
//! written down again as states; webhooks that are over, but whose record an earlier segment still
//! has, are written down as gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{Webhook, WebhookId};
use crate::store::embedded::Settings;
use crate::store::embedded::change::{Change, WebhookRow};
use crate::store::embedded::index::trim::{Expiry, Holding};
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::log::Log;
use crate::store::embedded::queue::{Own, OwnRecord, Queue};
use crate::store::embedded::record::{
    FullDelivery, Kind, Record, Standing, decode, encode_deliveries, encode_gone, encode_webhook,
};
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::{Frame, HEADER_BYTES, LogPoint, Position, Segment};

const ROWS_PER_STEP: usize = 200;
const BYTES_PER_STEP: usize = 1 << 20;
const PASS_WAIT_MAX: Duration = Duration::from_secs(60);
// Duplicate keys older than this are of no window.
const KNOWN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
// A segment that could not be cleaned is not looked at again for so long.
const STAYS_FOR: Duration = Duration::from_secs(3600);
// Between passes while room is short, of which each halves the time that settled webhooks are kept, but
// not below what an operator who looks at once may want to see.
const SHORT_PASS_WAIT: Duration = Duration::from_secs(5);
const HALVINGS_MAX: u32 = 16;
const SHORTEST: Duration = Duration::from_secs(300);
const REPLY_WAIT: Duration = Duration::from_secs(10);

/// The state between two steps.
#[derive(Debug, Default)]
pub struct Cleaner {
    settings: Option<Retention>,
    queue: Arc<Queue>,
    stage: Stage,
    next_pass: Option<Instant>,
    // Segments that could not be cleaned, and until when they are left alone. They are told of once.
    staying: HashMap<u64, Instant>,
    // How often what is settled has been given half the time, because room is short.
    halvings: u32,
    segment_bytes: u64,
    // Segments of which the disk did not take what is to be copied: after another one is freed, or in
    // the next pass, they are tried again.
    without_room: HashSet<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Retention {
    settled: Duration,
    unrouted: Duration,
    dead: Duration,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Expiring(u64),
    Copying(Box<Job>),
}

/// A segment on its way out.
#[derive(Debug)]
struct Job {
    segment: Arc<Segment>,
    scanner: Scanner,
    scanned: bool,
    // Segments before it, by the keys that they hold.
    earlier: Vec<(u64, u64)>,
    // What was copied, at which versions.
    copied: HashMap<u64, Vec<u32>>,
    stated: HashSet<u64>,
    gone: HashSet<u64>,
    written: LogPoint,
}

enum Problem {
    Index(rusqlite::Error),
    // Not now: the next pass tries again.
    Later,
    // The disk does not take what must be written first: others may need nothing written.
    NoRoom,
    // The segment holds what can't be copied: others may go.
    Stays,
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        Self::Index(error)
    }
}

impl Cleaner {
    /// A cleaner for these settings.
    pub fn new(settings: &Settings, queue: Arc<Queue>) -> Self {
        Self {
            settings: Some(Retention {
                settled: settings.retain,
                unrouted: settings.retain_unrouted,
                dead: settings.retain_dead_letters,
            }),
            queue,
            segment_bytes: settings.segment_bytes,
            ..Self::default()
        }
    }

    /// Whether there is more to do at once.
    pub fn is_busy(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Does a little.
    pub fn step(&mut self, indexer: &mut Indexer) -> rusqlite::Result<()> {
        let Some(retention) = self.settings else { return Ok(()) };
        let now = indexer.clock.now();
        match std::mem::take(&mut self.stage) {
            Stage::Idle => {
                if self.may_begin(retention, &indexer.parts.log) {
                    self.stage = Stage::Expiring(0);
                }
                Ok(())
            }
            Stage::Expiring(cursor) => {
                // The clock is in doubt: the next pass tries again.
                let Some(certain) = indexer.clock.certain() else { return Ok(()) };
                let expiry = Expiry {
                    settled: certain.minus(self.kept_for(retention)),
                    unrouted: certain.minus(retention.unrouted),
                    dead: certain.minus(retention.dead),
                };
                let (next, dead) = indexer.index.expire_some(cursor, ROWS_PER_STEP, expiry)?;
                for (target, cause, n) in dead {
                    indexer.parts.lanes.lane(&target).forget_dead(cause, n);
                }
                match next {
                    Some(cursor) => self.stage = Stage::Expiring(cursor),
                    None => {
                        indexer.index.forget_known(certain.minus(KNOWN_KEPT))?;
                        self.choose(indexer, now, retention)?;
                    }
                }
                Ok(())
            }
            Stage::Copying(mut job) => match job.step(indexer, &self.queue) {
                Ok(true) => {
                    self.without_room.clear();
                    self.choose(indexer, now, retention)
                }
                Ok(false) => {
                    self.stage = Stage::Copying(job);
                    Ok(())
                }
                Err(Problem::Later) => Ok(()),
                Err(Problem::NoRoom) => {
                    self.without_room.insert(job.segment.header.number);
                    self.choose(indexer, now, retention)
                }
                Err(Problem::Stays) => {
                    let number = job.segment.header.number;
                    if self.staying.insert(number, Instant::now() + STAYS_FOR).is_none() {
                        tracing::warn!(segment = number, "a segment can't be cleaned: it stays");
                    }
                    self.choose(indexer, now, retention)
                }
                Err(Problem::Index(error)) => Err(error),
            },
        }
    }

    /// Whether a pass may begin: not too often.
    fn may_begin(&mut self, retention: Retention, log: &Log) -> bool {
        let present = Instant::now();
        if self.next_pass.is_some_and(|next| present < next) {
            return false;
        }
        let mut wait = (retention.settled / 64).min(PASS_WAIT_MAX);
        if log.is_short(self.segment_bytes) {
            if self.halve(retention) {
                wait = wait.min(SHORT_PASS_WAIT);
            }
        } else {
            self.halvings = self.halvings.saturating_sub(1);
        }
        self.next_pass = Some(present + wait);
        self.without_room.clear();
        true
    }

    /// Room is short: what is delivered goes sooner rather than that a new webhook is refused. Answers
    /// whether it went sooner than before.
    fn halve(&mut self, retention: Retention) -> bool {
        let before = self.kept_for(retention);
        self.halvings = (self.halvings + 1).min(HALVINGS_MAX);
        let now = self.kept_for(retention);
        if self.halvings == 1 && now < before {
            tracing::warn!(
                retain_secs = retention.settled.as_secs(),
                "room is short: settled webhooks go before --retain is over, the oldest first"
            );
        }
        now < before
    }

    /// For how long settled webhooks are kept now.
    fn kept_for(&self, retention: Retention) -> Duration {
        let shortest = SHORTEST.min(retention.settled);
        (retention.settled / (1 << self.halvings)).max(shortest)
    }

    /// Finds a segment of which less than a quarter lives.
    fn choose(
        &mut self,
        indexer: &Indexer,
        now: Timestamp,
        retention: Retention,
    ) -> rusqlite::Result<()> {
        let holdings = indexer.index.holdings()?;
        let present = Instant::now();
        self.staying.retain(|number, _| indexer.parts.log.exists(*number));
        let current = indexer.parts.log.end().segment;
        let log = &indexer.parts.log;
        let segments = log.all();
        // What later ones say of webhooks in a part that could not be read is needed if it can be.
        let unread = indexer.index.unread()?;
        let unread = unread.iter().map(|part| part.segment).filter(|number| log.exists(*number));
        let needed_behind = unread.min().unwrap_or(u64::MAX);
        for segment in &segments {
            let number = segment.header.number;
            if number >= current {
                let old = now.since(segment.header.created_at) > retention.settled / 8;
                if old && indexer.parts.log.end().offset > HEADER_BYTES {
                    self.queue.roll();
                }
                continue;
            }
            if self.staying.get(&number).is_none_or(|until| present >= *until)
                && !self.without_room.contains(&number)
                && number <= needed_behind
                && is_removable(segment, log, &holdings)
                && indexer.index.applied().segment > number
                && let Some(job) = Job::new(segment, log, &holdings)
            {
                self.stage = Stage::Copying(Box::new(job));
                return Ok(());
            }
        }
        Ok(())
    }
}

fn is_removable(segment: &Segment, log: &Log, holdings: &BTreeMap<u64, Holding>) -> bool {
    let bytes = |segment: &Segment| segment.file.bytes().unwrap_or(u64::MAX);
    let live = holdings.get(&segment.header.number).map_or(0, |holding| holding.live);
    // It says where an earlier one ends, which still has more.
    let needed = segment.header.previous_end.is_some_and(|end| {
        log.get(end.segment).is_some_and(|other| bytes(&other) > end.offset)
            || log.is_unread(end.segment)
    });
    live.saturating_mul(4) < bytes(segment) && !needed
}

impl Job {
    fn new(segment: &Arc<Segment>, log: &Log, holdings: &BTreeMap<u64, Holding>) -> Option<Self> {
        let scanner = Scanner::new(Arc::clone(segment), 0, u64::MAX).ok()?;
        let before = holdings.range(..segment.header.number);
        Some(Self {
            segment: Arc::clone(segment),
            scanner,
            scanned: false,
            earlier: before.filter(|(n, _)| log.exists(**n)).map(|(_, h)| h.span).collect(),
            copied: HashMap::new(),
            stated: HashSet::new(),
            gone: HashSet::new(),
            written: LogPoint::default(),
        })
    }

    /// Answers whether the segment is gone.
    fn step(&mut self, indexer: &Indexer, queue: &Queue) -> Result<bool, Problem> {
        if !self.scanned {
            self.copy_some(indexer, queue)?;
            return Ok(false);
        }
        // What was written must be in the index before anybody looks there again.
        if indexer.index.applied() < self.written {
            return Ok(false);
        }
        if self.state_again(indexer, queue)? {
            return Ok(false);
        }
        let number = self.segment.header.number;
        let live = indexer.index.holdings()?.get(&number).map_or(0, |holding| holding.live);
        if live > 0 {
            return Err(Problem::Stays);
        }
        self.sync_voided(&indexer.parts.log)?;
        if !indexer.index.before_unlink()? {
            return Err(Problem::Later);
        }
        if let Err(error) = indexer.parts.log.remove(number) {
            tracing::warn!(%error, segment = number, "a segment could not be removed");
            return Err(Problem::Later);
        }
        indexer.index.forget_segment(number)?;
        Ok(true)
    }

    /// Makes durable that the segment before was cut to its sound part: so far this one's header said
    /// where that ends, and a power cut would give back what was refused.
    fn sync_voided(&self, log: &Log) -> Result<(), Problem> {
        let end = self.segment.header.previous_end;
        let Some(before) = end.and_then(|end| log.get(end.segment)) else { return Ok(()) };
        before.file.sync_all().map_err(|error| {
            let segment = before.header.number;
            tracing::warn!(%error, segment, "a segment's end can't be made durable");
            Problem::Stays
        })
    }

    /// Copies what lives, a little of it.
    fn copy_some(&mut self, indexer: &Indexer, queue: &Queue) -> Result<(), Problem> {
        let (mut records, mut bytes, mut looked) = (Vec::new(), 0, 0);
        while bytes < BYTES_PER_STEP && looked < ROWS_PER_STEP {
            looked += 1;
            let frame = match self.scanner.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.scanned = true;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "a segment can't be read");
                    return Err(Problem::Stays);
                }
            };
            let before = records.len();
            self.look_at(&frame, indexer, &mut records)?;
            let added = records.iter().skip(before);
            bytes += added.map(|r: &OwnRecord| r.meta.len() + r.body.len()).sum::<usize>();
        }
        if self.scanned && !self.gone.is_empty() {
            let keys: Vec<u64> = self.gone.drain().collect();
            let (meta, change) = (encode_gone(&keys), Change::Gone(keys));
            records.push(OwnRecord {
                kind: Kind::Gone,
                meta,
                body: Bytes::new(),
                change,
                due: Vec::new(),
            });
        }
        self.write(records, queue)
    }

    fn write(&mut self, records: Vec<OwnRecord>, queue: &Queue) -> Result<(), Problem> {
        if records.is_empty() {
            return Ok(());
        }
        let (reply, answer) = sync_channel(1);
        queue.write(Own { records, reply });
        let positions = answer.recv_timeout(REPLY_WAIT).map_err(|error| match error {
            RecvTimeoutError::Disconnected => Problem::NoRoom,
            // The disk hangs: nobody is to wait for another one.
            RecvTimeoutError::Timeout => Problem::Later,
        })?;
        for position in positions {
            self.written = self.written.max(position.end());
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        frame: &Frame,
        indexer: &Indexer,
        records: &mut Vec<OwnRecord>,
    ) -> Result<(), Problem> {
        // Whole, but not understood: another version wrote it, and may read it again.
        let record =
            decode(frame.kind, frame.version, &frame.payload).map_err(|_| Problem::Stays)?;
        match record {
            Record::Webhook(webhook, _) => {
                let key = webhook.id.key();
                match indexer.index.position(key)? {
                    Some(at) if at == frame.position => {
                        let (webhook, standings) = full(indexer, webhook)?;
                        self.copied.insert(key, standings.iter().map(|s| s.version).collect());
                        records.push(copy_of(webhook, standings));
                        Ok(())
                    }
                    // A copy whose original stayed must not leave it behind as if it were new. And it
                    // may be older than settlements before it, which go with the original.
                    Some(at) if at.segment > self.segment.header.number => {
                        self.state(key, at, indexer, records)
                    }
                    _ => self.look_at_state(key, indexer, records),
                }
            }
            Record::Settlement(settled) => {
                self.look_at_state(settled.webhook.key(), indexer, records)
            }
            Record::Deliveries(id, _) | Record::State(id, _) => {
                self.look_at_state(id.key(), indexer, records)
            }
            Record::Erase(id) => self.look_at_state(id.key(), indexer, records),
            Record::Gone(keys) => {
                for key in keys {
                    self.look_at_state(key, indexer, records)?;
                }
                Ok(())
            }
            Record::Close => Ok(()),
        }
    }

    fn look_at_state(
        &mut self,
        key: u64,
        indexer: &Indexer,
        records: &mut Vec<OwnRecord>,
    ) -> Result<(), Problem> {
        match indexer.index.position(key)? {
            Some(at) if at.segment < self.segment.header.number => {
                self.state(key, at, indexer, records)
            }
            // It was copied forward, and the original stayed, perhaps: then the copy may be older than
            // what is said of it here.
            Some(at) if at.segment > self.segment.header.number && self.may_be_earlier(key) => {
                self.state(key, at, indexer, records)
            }
            Some(_) => Ok(()),
            None => {
                if self.may_be_earlier(key) {
                    self.gone.insert(key);
                }
                Ok(())
            }
        }
    }

    /// Whether an earlier segment may have a webhook's record.
    fn may_be_earlier(&self, key: u64) -> bool {
        self.earlier.iter().any(|(first, last)| (*first..=*last).contains(&key))
    }

    /// Writes down where a webhook's deliveries stand, once.
    fn state(
        &mut self,
        key: u64,
        at: Position,
        indexer: &Indexer,
        records: &mut Vec<OwnRecord>,
    ) -> Result<(), Problem> {
        if self.stated.insert(key) {
            records.push(self.state_of(key, at, indexer)?);
        }
        Ok(())
    }

    fn state_of(
        &mut self,
        key: u64,
        at: Position,
        indexer: &Indexer,
    ) -> Result<OwnRecord, Problem> {
        let (webhook, standings) = full(indexer, read_webhook(indexer, at)?)?;
        self.copied.insert(key, standings.iter().map(|s| s.version).collect());
        Ok(state_record(webhook.id, webhook, standings))
    }

    /// Writes down again what was settled while it was copied; answers whether something was.
    fn state_again(&mut self, indexer: &Indexer, queue: &Queue) -> Result<bool, Problem> {
        let mut records = Vec::new();
        let keys: Vec<u64> = self.copied.keys().copied().collect();
        for key in keys {
            let standings = indexer.index.standings(key)?;
            let versions: Vec<u32> = standings.iter().map(|(_, s, _)| s.version).collect();
            if self.copied.get(&key) == Some(&versions) {
                continue;
            }
            if let Some(at) = indexer.index.position(key)? {
                records.push(self.state_of(key, at, indexer)?);
            } else {
                self.copied.remove(&key);
            }
        }
        let any = !records.is_empty();
        self.write(records, queue)?;
        Ok(any)
    }
}

fn read_webhook(indexer: &Indexer, at: Position) -> Result<Webhook, Problem> {
    match read_record(indexer, at)? {
        Record::Webhook(webhook, _) => Ok(webhook),
        _ => Err(Problem::Stays),
    }
}

fn read_record(indexer: &Indexer, at: Position) -> Result<Record, Problem> {
    let segment = indexer.parts.log.get(at.segment).ok_or(Problem::Stays)?;
    let frame = segment.read(at).ok().flatten().ok_or(Problem::Stays)?;
    decode(frame.kind, frame.version, &frame.payload).map_err(|_| Problem::Stays)
}

/// A webhook with all its deliveries, also those that were added to it, and where they stand.
fn full(indexer: &Indexer, mut webhook: Webhook) -> Result<(Webhook, Vec<Standing>), Problem> {
    let mut standings = Vec::new();
    for (number, standing, defined_at) in indexer.index.standings(webhook.id.key())? {
        if usize::from(number) != standings.len() {
            return Err(Problem::Stays);
        }
        standings.push(standing);
        if webhook.deliveries.len() < standings.len() {
            let record = read_record(indexer, defined_at.ok_or(Problem::Stays)?)?;
            let (Record::Deliveries(_, added) | Record::State(_, added)) = record else {
                return Err(Problem::Stays);
            };
            let found = added.into_iter().find(|full| full.number == number);
            webhook.deliveries.push(found.ok_or(Problem::Stays)?.delivery);
        }
    }
    if webhook.deliveries.len() == standings.len() {
        Ok((webhook, standings))
    } else {
        Err(Problem::Stays)
    }
}

fn copy_of(mut webhook: Webhook, standings: Vec<Standing>) -> OwnRecord {
    let meta = encode_webhook(&webhook, Some(&standings));
    let row = WebhookRow::new(&webhook, Some(standings));
    let body = std::mem::take(&mut webhook.body);
    OwnRecord {
        kind: Kind::Webhook,
        meta,
        body,
        change: Change::Webhook(Box::new(row)),
        due: Vec::new(),
    }
}

fn state_record(id: WebhookId, webhook: Webhook, standings: Vec<Standing>) -> OwnRecord {
    let deliveries: Vec<FullDelivery> = (0u16..)
        .zip(webhook.deliveries.into_iter().zip(standings))
        .map(|(number, (delivery, standing))| FullDelivery { number, delivery, standing })
        .collect();
    let meta = encode_deliveries(id, &deliveries);
    let change = Change::Deliveries(id, deliveries);
    OwnRecord { kind: Kind::State, meta, body: Bytes::new(), change, due: Vec::new() }
}
