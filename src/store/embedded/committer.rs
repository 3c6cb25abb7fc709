//! Group commit: one thread writes what waits, syncs once, and only then tells anybody.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::time::Clock;
use crate::store::CommitError;
use crate::store::claims::Claimed;
use crate::store::embedded::assembly::Assembly;
use crate::store::embedded::busy::Busy;
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::current::{Current, Demand, commit_error};
use crate::store::embedded::failing::Failing;
use crate::store::embedded::indexer::Inbox;
use crate::store::embedded::lanes::Lanes;
use crate::store::embedded::log::Log;
use crate::store::embedded::newest::Newest;
use crate::store::embedded::observer::Observer;
use crate::store::embedded::offer::Routed;
use crate::store::embedded::queue::{Own, OwnRecord, Patience, Queue, Waiting, Work};
use crate::store::embedded::record::{Kind, Settled, SettledPayloads};
use crate::store::embedded::segment::{FRAME_BYTES_MAX, HEADER_BYTES, LogPoint, Position};

// How long settlements wait for a webhook's sync to go with.
const SETTLED_WAIT: Duration = Duration::from_millis(5);
// How long a settlement may be written and not synced.
const UNSYNCED_MAX: Duration = Duration::from_millis(200);
const LINGER_MAX: Duration = Duration::from_millis(1);
// What a start would have to read.
const UNINDEXED_BYTES_MAX: u64 = 64 << 20;
const THROTTLE_WAIT: Duration = Duration::from_millis(10);
// Settlements that no segment would take: beyond this the oldest are forgotten.
const KEPT_MAX: usize = 65_536;

/// What the committer works with.
#[derive(Debug)]
pub struct Parts {
    /// Where work comes from.
    pub queue: Arc<Queue>,
    /// Where it is written.
    pub log: Arc<Log>,
    /// Who delivers it.
    pub lanes: Arc<Lanes>,
    /// Who makes it findable.
    pub inbox: Arc<Inbox>,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
    /// How it is.
    pub failing: Arc<Failing>,
    /// Since when it waits for the disk.
    pub busy: Arc<Busy>,
    /// The newest webhooks.
    pub newest: Arc<Newest>,
    /// The age at which a segment is closed.
    pub segment_age: Duration,
    /// The size at which a segment is closed.
    pub segment_bytes: u64,
}

/// What was written.
#[derive(Default)]
struct Written {
    webhooks: Vec<Waiting>,
    // Of the settlements, the webhooks and the own records.
    positions: Vec<Position>,
}

/// The thread's state.
pub struct Committer {
    parts: Parts,
    clock: Arc<dyn Clock>,
    current: Current,
    assembly: Assembly,
    // Settlements that are in no segment, and those that are in one but not synced.
    kept: Vec<Settled>,
    unsynced: Vec<Settled>,
    unsynced_since: Option<Instant>,
    kept_again: Option<Instant>,
    average_batch: usize,
    average_sync: Duration,
    last_batch: usize,
}

impl Committer {
    /// A committer that has no segment yet.
    pub fn new(parts: Parts, clock: Arc<dyn Clock>) -> Self {
        let log = Arc::clone(&parts.log);
        let current = Current::new(log, parts.segment_bytes, parts.segment_age);
        Self {
            parts,
            clock,
            current,
            assembly: Assembly::default(),
            kept: Vec::new(),
            unsynced: Vec::new(),
            unsynced_since: None,
            kept_again: None,
            average_batch: 0,
            average_sync: Duration::ZERO,
            last_batch: 0,
        }
    }

    /// Makes the first segment. If that fails the store is failing, but it runs: what is stored
    /// can still be delivered.
    pub fn begin(&mut self) {
        if let Err(error) = self.make_room(Demand::default()) {
            tracing::error!(%error, "no segment could be made");
        }
    }

    /// Works until the queue is closed and empty.
    pub fn run(mut self) {
        loop {
            let work = self.parts.queue.next(self.patience());
            self.parts.busy.begin();
            let is_over = self.turn(work);
            while !is_over && self.is_far_ahead() {
                self.parts.inbox.wait_for_progress(THROTTLE_WAIT);
            }
            self.parts.busy.end();
            if is_over {
                break;
            }
        }
    }

    /// Does what there is to do; answers whether that was the last of it.
    pub(super) fn turn(&mut self, work: Work) -> bool {
        let closing = work.closing;
        self.cycle(work);
        if closing {
            self.finish();
            self.parts.inbox.close();
        }
        closing
    }

    fn patience(&self) -> Patience {
        let synced_by = self.unsynced_since.map(|since| since + UNSYNCED_MAX);
        let trial = self.current.next_trial().filter(|_| self.parts.failing.get().is_some());
        let kept = self.kept_again.filter(|_| self.current.exists() && !self.kept.is_empty());
        Patience {
            // A lone sender never waits.
            linger_for: if self.last_batch > 1 { self.average_batch } else { 0 },
            linger: (self.average_sync / 2).min(LINGER_MAX),
            settled: SETTLED_WAIT,
            until: synced_by.into_iter().chain(trial).chain(kept).min(),
        }
    }

    /// Whether the indexer is to get on first: a start would take too long.
    pub(super) fn is_far_ahead(&self) -> bool {
        self.parts.inbox.unindexed_bytes() > UNINDEXED_BYTES_MAX && !self.parts.queue.has_own()
    }

    fn cycle(&mut self, work: Work) {
        let Work { mut webhooks, settled, mut own, requests, roll, .. } = work;
        let mut first_new = self.kept.len();
        self.kept.extend(settled);
        if roll {
            self.roll();
        }
        self.last_batch = webhooks.len();
        let has_own = !own.is_empty();
        loop {
            let began = Instant::now();
            match self.write(&mut webhooks, &own) {
                Ok(written) => {
                    self.committed(written, std::mem::take(&mut own), began);
                    first_new = 0;
                }
                Err(error) => {
                    self.refuse(webhooks, commit_error(&error));
                    self.index_unlogged(first_new);
                    self.forget_oldest();
                    break;
                }
            }
            // Where the disk is nearly full, only some of them had room.
            if webhooks.is_empty() {
                break;
            }
        }
        // Who had them written may be the indexer.
        drop(own);
        if has_own {
            self.parts.inbox.hurry();
        }
        for request in requests {
            self.parts.inbox.request(request);
        }
    }

    fn refuse(&mut self, webhooks: Vec<Waiting>, error: CommitError) {
        if let Some(first) = webhooks.first()
            && let Some(problem) = self.current.problem()
        {
            self.current.refused(record_bytes(first));
            self.parts.failing.set(Some(problem));
        }
        for waiting in webhooks {
            // The claim first: who is told to come again must find it free.
            drop(waiting.claimed);
            // Nobody may wait any more.
            waiting.reply.send(Err(error)).unwrap_or_default();
        }
    }

    /// What could not be written is nevertheless so: the index may know it first.
    fn index_unlogged(&self, first_new: usize) {
        let news = self.kept.iter().skip(first_new);
        let entries =
            news.map(|s| Entry { position: None, change: Change::Settled(s.clone()) }).collect();
        self.parts.inbox.push(entries, 0);
    }

    fn forget_oldest(&mut self) {
        if let Some(surplus) = self.kept.len().checked_sub(KEPT_MAX).filter(|n| *n > 0) {
            tracing::error!(surplus, "settlements are forgotten and will be delivered again");
            self.kept.drain(..surplus);
        }
    }

    /// Writes settlements, own records and as many of the webhooks as there is room for, which it
    /// takes out; syncs if it must.
    fn write(&mut self, webhooks: &mut Vec<Waiting>, own: &[Own]) -> io::Result<Written> {
        let must_sync = !webhooks.is_empty() || !own.is_empty();
        let due = self.unsynced_since.is_some_and(|since| since.elapsed() >= UNSYNCED_MAX);
        let idle = !must_sync && !due && self.kept.is_empty() && self.current.exists();
        if idle && !self.current.is_to_be_tried() {
            return Ok(Written::default());
        }
        let encoded = SettledPayloads::of(&self.kept);
        let settled = encoded.iter().map(<[u8]>::len);
        let owned = own.iter().flat_map(|own| &own.records).map(|r| r.meta.len() + r.body.len());
        let demand = Demand {
            firm: settled.chain(owned).map(|n| (n + FRAME_BYTES_MAX) as u64).sum(),
            first: webhooks.first().map_or(0, record_bytes),
            webhooks: webhooks.iter().map(record_bytes).sum(),
        };
        let mut left = self.make_room(demand)?;
        let fits = |waiting: &&Waiting| {
            let rest = left.checked_sub(record_bytes(waiting));
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let count = webhooks.iter().take_while(fits).count();
        if count == 0 && demand.firm == 0 && !webhooks.is_empty() {
            return Err(self.current.refusal());
        }
        let rest = webhooks.split_off(count);
        let webhooks = std::mem::replace(webhooks, rest);
        match self.write_and_sync(&encoded, &webhooks, own, must_sync || due) {
            Ok(positions) => Ok(Written { webhooks, positions }),
            Err(error) => {
                self.fail(&error);
                self.refuse(webhooks, commit_error(&error));
                Err(error)
            }
        }
    }

    fn write_and_sync(
        &mut self,
        settled: &SettledPayloads,
        webhooks: &[Waiting],
        own: &[Own],
        sync: bool,
    ) -> io::Result<Vec<Position>> {
        let Some(writer) = self.current.writer() else {
            return Err(io::Error::other("there is no segment"));
        };
        let assembly = &mut self.assembly;
        // What a write that failed left behind.
        assembly.finish();
        let none = Bytes::new();
        for meta in settled.iter() {
            assembly.add(writer, Kind::Settlement, crc32fast::hash(meta), meta, &none);
        }
        for waiting in webhooks {
            let body = &waiting.webhook.body;
            assembly.add(writer, Kind::Webhook, waiting.crc, &waiting.meta, body);
        }
        for OwnRecord { kind, meta, body, .. } in own.iter().flat_map(|own| &own.records) {
            assembly.add(writer, *kind, crc_of(meta, body), meta, body);
        }
        if assembly.bytes > 0 {
            assembly.write(writer)?;
            writer.offset += assembly.bytes;
        }
        if !settled.is_empty() {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        let positions = assembly.finish();
        let offset = writer.offset;
        let number = writer.segment.header.number;
        if sync {
            self.sync()?;
        }
        // Only now may anybody read it: a webhook that is found in the log counts as durable.
        self.parts.log.publish(LogPoint { segment: number, offset });
        Ok(positions)
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(writer) = self.current.writer() else { return Ok(()) };
        if writer.offset > writer.synced {
            let began = Instant::now();
            writer.segment.file.sync_data()?;
            // What no start finds is not durable, however well it was synced.
            self.parts.log.is_in_place(writer.segment.header.number, writer.file)?;
            self.average_sync = (self.average_sync * 7 + began.elapsed()) / 8;
            writer.synced = writer.offset;
            writer.batch = writer.batch.saturating_add(1);
        }
        self.unsynced.clear();
        self.unsynced_since = None;
        Ok(())
    }

    /// Tells everybody what became durable: the claims, the senders, the lanes, the index.
    fn committed(&mut self, written: Written, own: Vec<Own>, began: Instant) {
        let Written { webhooks, positions } = written;
        let mut positions = positions.into_iter();
        let mut entries = Vec::with_capacity(positions.len());
        for settled in self.kept.drain(..) {
            let position = positions.next();
            if self.unsynced_since.is_some() {
                self.unsynced.push(settled.clone());
            }
            entries.push(Entry { position, change: Change::Settled(settled) });
        }
        if !webhooks.is_empty() {
            self.parts.failing.set(None);
            self.average_batch = (self.average_batch * 3 + webhooks.len()).div_ceil(4);
            self.parts.observer.commit_batch(webhooks.len(), began.elapsed());
        }
        let mut replies = Vec::with_capacity(webhooks.len());
        let mut routed = Vec::with_capacity(webhooks.len());
        Claimed::all_committed(webhooks.into_iter().map(|waiting| {
            let Waiting { webhook, deliveries, claimed, reply, .. } = waiting;
            let claim = (claimed, webhook.id, webhook.activity_id);
            replies.push(reply);
            if let Some(position) = positions.next() {
                routed.push(Routed { webhook, deliveries, position });
            }
            claim
        }));
        for reply in replies {
            reply.send(Ok(())).unwrap_or_default();
        }
        let mut lane = None;
        for routed in routed {
            let row = row_of(&routed);
            entries.push(Entry {
                position: Some(routed.position),
                change: Change::Webhook(Box::new(row)),
            });
            self.parts.newest.saw(&routed.webhook.source, routed.webhook.received_at);
            self.parts.lanes.push(routed, &mut lane);
        }
        let mut own_replies = Vec::with_capacity(own.len());
        for Own { records, reply } in own {
            let written: Vec<Position> = positions.by_ref().take(records.len()).collect();
            for (OwnRecord { change, due, .. }, at) in records.into_iter().zip(&written) {
                entries.push(Entry { position: Some(*at), change });
                self.parts.lanes.add(due, *at);
            }
            own_replies.push((reply, written));
        }
        let bytes = entries.iter().filter_map(|entry| entry.position).map(|at| at.length).sum();
        if !entries.is_empty() {
            self.parts.inbox.push(entries, bytes);
        }
        for (reply, written) in own_replies {
            // Whoever wrote it may have given up.
            reply.send(written).unwrap_or_default();
        }
    }

    /// Makes sure that there is a segment, with room for all of it if the disk has that. Answers
    /// how many bytes of webhooks may be written to it.
    fn make_room(&mut self, demand: Demand) -> io::Result<u64> {
        let now = self.clock.now();
        if self.current.is_to_change(demand, now) {
            if let Err(error) = self.sync() {
                self.fail(&error);
                return Err(error);
            }
            match self.current.change(demand, now) {
                Ok(()) => self.parts.failing.set(self.current.problem()),
                Err(error) if self.current.exists() => {
                    tracing::debug!(%error, "no further segment could be made");
                }
                Err(error) => {
                    self.parts.failing.set(Some(commit_error(&error)));
                    return Err(error);
                }
            }
        }
        self.current.left(demand)
    }

    /// Closes the current segment.
    fn roll(&mut self) {
        if self.current.writer().is_none_or(|writer| writer.offset <= HEADER_BYTES) {
            return;
        }
        match self.sync() {
            Ok(()) => self.current.close(),
            Err(error) => self.fail(&error),
        }
    }

    /// A write or a sync failed: the settlements that were not synced are written again.
    fn fail(&mut self, error: &io::Error) {
        if !self.current.fail(error) {
            return;
        }
        self.parts.failing.set(Some(commit_error(error)));
        let mut kept = std::mem::take(&mut self.unsynced);
        kept.append(&mut self.kept);
        self.kept = kept;
        self.unsynced_since = None;
        self.kept_again = Some(Instant::now() + UNSYNCED_MAX);
        if let Err(error) = self.make_room(Demand::default()) {
            tracing::error!(%error, "no new segment could be made");
        }
    }

    fn finish(&mut self) {
        let own = Own {
            records: vec![OwnRecord {
                kind: Kind::Close,
                meta: Vec::new(),
                body: Bytes::new(),
                change: Change::None,
                due: Vec::new(),
            }],
            reply: oneshot::channel().0,
        };
        self.current.try_at_once();
        let own = vec![own];
        match self.write(&mut Vec::new(), &own) {
            Ok(written) => {
                self.committed(written, own, Instant::now());
                self.roll();
            }
            Err(error) => {
                let settlements = self.kept.len();
                tracing::error!(%error, settlements, "the last settlements could not be written");
            }
        }
    }
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}

/// What a webhook's record takes at most.
fn record_bytes(waiting: &Waiting) -> u64 {
    (waiting.meta.len() + waiting.webhook.body.len() + FRAME_BYTES_MAX) as u64
}

/// The CRC-32 of a payload in two parts.
pub fn crc_of(meta: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(meta);
    crc.update(body);
    crc.finalize()
}

fn row_of(routed: &Routed) -> WebhookRow {
    let mut row = WebhookRow::new(&routed.webhook, None);
    let received_at = routed.webhook.received_at;
    row.deliveries = routed
        .deliveries
        .iter()
        .map(|delivery| {
            let standing = crate::store::embedded::record::Standing::new(received_at);
            (Arc::clone(&delivery.target), standing)
        })
        .collect();
    row
}
