//! A segment on its way out: what lives in it is copied forward, and it is unlinked.
//!
//! Nothing that a rebuild of the index would need may go with it: of settlements in it, those of
//! webhooks in earlier segments are written down again as states; webhooks that are over, but whose
//! record an earlier segment still has, or of which a later one may have a copy, are written down as
//! gone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};
use tokio::time::Instant;

use crate::domain::webhook::{Webhook, WebhookId};
use crate::store::embedded::change::{Change, WebhookRow};
use crate::store::embedded::cleaner::ROWS_PER_STEP;
use crate::store::embedded::index::trim::Holding;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::log::Log;
use crate::store::embedded::queue::{Own, OwnRecord, Queue};
use crate::store::embedded::record::{
    FullDelivery, Kind, Record, Standing, decode, encode_bare, encode_deliveries, encode_gone,
    encode_webhook,
};
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::{Frame, LogPoint, Position, Segment};

const BYTES_PER_STEP: usize = 1 << 20;
const REPLY_WAIT: Duration = Duration::from_secs(10);
// What a delivery takes in a record besides its attempts, roughly.
const DELIVERY_BYTES: u64 = 256;

/// A segment on its way out.
#[derive(Debug)]
pub(super) struct Job {
    segment: Arc<Segment>,
    scanner: Scanner,
    scanned: bool,
    // None once it is known that more goes than has to be written for it.
    weight: Option<Weight>,
    // Segments before it and behind it, by the keys that they hold.
    earlier: Vec<(u64, u64)>,
    later: Vec<(u64, u64)>,
    // What was copied, at which versions.
    copied: BTreeMap<u64, Vec<u32>>,
    stated: HashSet<u64>,
    gone: BTreeSet<u64>,
    written: LogPoint,
    under_way: Option<UnderWay>,
}

/// Records on their way into the log: where they will be, and until when that is waited for.
#[derive(Debug)]
struct UnderWay {
    answer: Receiver<Vec<Position>>,
    until: Instant,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to do at once.
    More,
    /// What was to be written is on its way: until then at most.
    Waits(Instant),
    /// The segment is gone.
    Gone,
}

/// What has to be written before a segment may go, as far as it is known.
#[derive(Debug)]
struct Weight {
    scanner: Scanner,
    keys: HashSet<u64>,
    bytes: u64,
    bytes_max: u64,
}

/// Why a segment stays for now.
pub(super) enum Problem {
    /// The index failed.
    Index(rusqlite::Error),
    /// Not now: the next pass tries again.
    Later,
    /// The disk does not take what must be written first: others may need nothing written.
    NoRoom,
    /// As much would have to be written as it takes: when more of it is over it is worth it.
    NoGain,
    /// The segment holds what can't be copied: others may go.
    Stays,
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        Self::Index(error)
    }
}

impl Job {
    /// Nothing is done yet.
    pub(super) fn new(
        segment: &Arc<Segment>,
        log: &Log,
        holdings: &BTreeMap<u64, Holding>,
    ) -> Option<Self> {
        let scanner = Scanner::new(Arc::clone(segment), 0, u64::MAX).ok()?;
        let number = segment.header.number;
        let spans = |range: (Bound<u64>, Bound<u64>)| {
            let held = holdings.range(range).filter(|(n, _)| log.exists(**n));
            held.map(|(_, holding)| holding.span).collect()
        };
        let weight = Weight {
            scanner: Scanner::new(Arc::clone(segment), 0, u64::MAX).ok()?,
            keys: HashSet::new(),
            bytes: 0,
            bytes_max: segment.file.bytes().ok()? / 2,
        };
        Some(Self {
            segment: Arc::clone(segment),
            scanner,
            scanned: false,
            weight: Some(weight),
            earlier: spans((Bound::Unbounded, Bound::Excluded(number))),
            later: spans((Bound::Excluded(number), Bound::Unbounded)),
            copied: BTreeMap::new(),
            stated: HashSet::new(),
            gone: BTreeSet::new(),
            written: LogPoint::default(),
            under_way: None,
        })
    }

    /// However much has to be written for it.
    pub(super) fn at_any_cost(self) -> Self {
        Self { weight: None, ..self }
    }

    /// Which segment.
    pub(super) fn number(&self) -> u64 {
        self.segment.header.number
    }

    /// Does a little, unless what was to be written is still on its way: nobody is to wait for that.
    pub(super) fn step(&mut self, indexer: &Indexer, queue: &Queue) -> Result<Progress, Problem> {
        if let Some(until) = self.waits_until()? {
            return Ok(Progress::Waits(until));
        }
        if let Some(weight) = self.weight.take() {
            self.weight = self.weigh_some(weight, indexer)?;
            return Ok(Progress::More);
        }
        if !self.scanned {
            self.copy_some(indexer, queue)?;
            return Ok(Progress::More);
        }
        // What was written must be in the index before anybody looks there again.
        if indexer.index.applied() < self.written {
            return Ok(Progress::More);
        }
        if self.state_again(indexer, queue)? {
            return Ok(Progress::More);
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
        Ok(Progress::Gone)
    }

    /// Until when what was to be written is waited for; none if it is written.
    fn waits_until(&mut self) -> Result<Option<Instant>, Problem> {
        let Some(UnderWay { answer, until }) = &mut self.under_way else { return Ok(None) };
        let until = *until;
        match answer.try_recv() {
            Ok(positions) => {
                let ends = positions.iter().map(Position::end);
                self.written = ends.fold(self.written, LogPoint::max);
            }
            Err(TryRecvError::Closed) => return Err(Problem::NoRoom),
            Err(TryRecvError::Empty) if Instant::now() < until => return Ok(Some(until)),
            // The disk hangs.
            Err(TryRecvError::Empty) => return Err(Problem::Later),
        }
        self.under_way = None;
        Ok(None)
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

    /// Adds up what would have to be written, a little of it. A state takes the place of one settlement
    /// at times, and of another state at others, and each is larger than a settlement: without a bound
    /// the log would grow by what is to make it smaller, and be written again for ever.
    fn weigh_some(&self, mut weight: Weight, indexer: &Indexer) -> Result<Option<Weight>, Problem> {
        for _ in 0..ROWS_PER_STEP {
            // What can't be read is told of when it is to be copied.
            let Ok(Some(frame)) = weight.scanner.next_frame() else { return Ok(None) };
            let Ok(record) = decode(frame.kind, frame.version, &frame.payload) else {
                return Ok(None);
            };
            let key = match record {
                Record::Webhook(webhook, _) => webhook.id.key(),
                Record::Settlement(settled) => settled.webhook.key(),
                Record::Deliveries(id, _) | Record::State(id, _) | Record::Erase(id) => id.key(),
                Record::Gone(_) | Record::Close => continue,
            };
            let Some(at) = indexer.index.position(key)? else { continue };
            let number = self.number();
            let is_needed = match at.segment.cmp(&number) {
                Ordering::Less => true,
                Ordering::Equal => at == frame.position,
                Ordering::Greater => self.may_be_earlier(key),
            };
            if !is_needed || !weight.keys.insert(key) {
                continue;
            }
            let (deliveries, attempts) = indexer.index.standings_bytes(key)?;
            let record = if at.segment == number { indexer.index.live_bytes(key)? } else { 0 };
            weight.bytes += record + deliveries * DELIVERY_BYTES + attempts;
            if weight.bytes > weight.bytes_max {
                return Err(Problem::NoGain);
            }
        }
        Ok(Some(weight))
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
            let keys: Vec<u64> = std::mem::take(&mut self.gone).into_iter().collect();
            let (meta, change) = (encode_gone(&keys), Change::Gone(keys));
            records.push(OwnRecord {
                kind: Kind::Gone,
                meta,
                body: Bytes::new(),
                change,
                due: Vec::new(),
            });
        }
        self.write(records, queue);
        Ok(())
    }

    fn write(&mut self, records: Vec<OwnRecord>, queue: &Queue) {
        if records.is_empty() {
            return;
        }
        let (reply, answer) = oneshot::channel();
        queue.write(Own { records, reply });
        self.under_way = Some(UnderWay { answer, until: Instant::now() + REPLY_WAIT });
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
                        records.push(match indexer.index.spared_body(key)? {
                            Some(body_bytes) => bare_copy_of(webhook, body_bytes, standings),
                            None => copy_of(webhook, standings),
                        });
                        Ok(())
                    }
                    // A copy whose original stayed must not leave it behind as if it were new. And it
                    // may be older than settlements before it, which go with the original.
                    Some(at) if at.segment > self.segment.header.number => {
                        self.state(key, at, indexer, records)
                    }
                    // The same of one that is over: without its original it would be as it was then.
                    None if may_be_in(&self.later, key) => {
                        self.gone.insert(key);
                        Ok(())
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
        may_be_in(&self.earlier, key)
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
        self.write(records, queue);
        Ok(any)
    }
}

fn may_be_in(spans: &[(u64, u64)], key: u64) -> bool {
    spans.iter().any(|(first, last)| (*first..=*last).contains(&key))
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

/// A copy of a webhook, whose deliveries stand so.
pub(super) fn copy_of(mut webhook: Webhook, standings: Vec<Standing>) -> OwnRecord {
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

/// Without its body, which was so long.
fn bare_copy_of(mut webhook: Webhook, body_bytes: u64, standings: Vec<Standing>) -> OwnRecord {
    webhook.body = Bytes::new();
    let meta = encode_bare(&webhook, body_bytes, &standings);
    let row = WebhookRow { bare: true, body_bytes, ..WebhookRow::new(&webhook, Some(standings)) };
    let change = Change::Webhook(Box::new(row));
    OwnRecord { kind: Kind::Webhook, meta, body: Bytes::new(), change, due: Vec::new() }
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
