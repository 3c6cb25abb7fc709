//! Group commit: one thread writes what waits, syncs once, and only then tells anybody.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::time::Instant;

use crate::domain::time::{Clock, Timestamp};
use crate::store::CommitError;
use crate::store::embedded::assembly::{Assembly, Writer};
use crate::store::embedded::busy::Busy;
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::indexer::Inbox;
use crate::store::embedded::lanes::Lanes;
use crate::store::embedded::log::Log;
use crate::store::embedded::newest::Newest;
use crate::store::embedded::observer::Observer;
use crate::store::embedded::offer::Routed;
use crate::store::embedded::queue::{Own, OwnRecord, Patience, Queue, Waiting, Work};
use crate::store::embedded::record::{Kind, Settled, encode_settled};
use crate::store::embedded::segment::{HEADER_BYTES, LogPoint, Position};

// How long settlements wait for a webhook's sync to go with.
const SETTLED_WAIT: Duration = Duration::from_millis(5);
// How long a settlement may be written and not synced.
const UNSYNCED_MAX: Duration = Duration::from_millis(200);
const LINGER_MAX: Duration = Duration::from_millis(1);
const TRIAL_WAIT: Duration = Duration::from_secs(1);
// What a start would have to read.
const UNINDEXED_BYTES_MAX: u64 = 64 << 20;
const THROTTLE_WAIT: Duration = Duration::from_millis(10);
// Settlements that no segment would take: beyond this the oldest are forgotten.
const KEPT_MAX: usize = 65_536;

/// Why nothing can be committed now, if so.
#[derive(Debug, Default)]
pub struct Failing(Mutex<Option<CommitError>>);

impl Failing {
    /// Why, if so.
    pub fn get(&self) -> Option<CommitError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, error: Option<CommitError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

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

/// The thread's state.
pub struct Committer {
    parts: Parts,
    clock: Arc<dyn Clock>,
    writer: Option<Writer>,
    // Where the log ended when a write or a sync failed: the next segment says so.
    void: Option<LogPoint>,
    // Settlements that are in no segment, and those that are in one but not synced.
    kept: Vec<Settled>,
    unsynced: Vec<Settled>,
    unsynced_since: Option<Instant>,
    next_trial: Option<Instant>,
    kept_again: Option<Instant>,
    average_batch: usize,
    average_sync: Duration,
    last_batch: usize,
}

/// What an error of the disk means to those who commit.
pub fn commit_error(error: &io::Error) -> CommitError {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => CommitError::DiskFull,
        _ => CommitError::Unavailable,
    }
}

impl Committer {
    /// A committer that has no segment yet.
    pub fn new(parts: Parts, clock: Arc<dyn Clock>) -> Self {
        Self {
            parts,
            clock,
            writer: None,
            void: None,
            kept: Vec::new(),
            unsynced: Vec::new(),
            unsynced_since: None,
            next_trial: None,
            kept_again: None,
            average_batch: 0,
            average_sync: Duration::ZERO,
            last_batch: 0,
        }
    }

    /// Makes the first segment. If that fails the store is failing, but it runs: what is stored
    /// can still be delivered.
    pub fn begin(&mut self) {
        if let Err(error) = self.ensure_writer(0) {
            tracing::error!(%error, "nothing can be committed");
        }
    }

    /// Works until the queue is closed and empty.
    pub fn run(mut self) {
        loop {
            let work = self.parts.queue.next(self.patience());
            let closing = work.closing;
            self.parts.busy.begin();
            self.cycle(work);
            if closing {
                break;
            }
            self.throttle();
            self.parts.busy.end();
        }
        self.finish();
        self.parts.busy.end();
        self.parts.inbox.close();
    }

    fn patience(&self) -> Patience {
        let synced_by = self.unsynced_since.map(|since| since + UNSYNCED_MAX);
        let trial = self.next_trial.filter(|_| self.writer.is_none());
        let kept = self.kept_again.filter(|_| self.writer.is_some() && !self.kept.is_empty());
        Patience {
            // A lone sender never waits.
            linger_for: if self.last_batch > 1 { self.average_batch } else { 0 },
            linger: (self.average_sync / 2).min(LINGER_MAX),
            settled: SETTLED_WAIT,
            until: synced_by.into_iter().chain(trial).chain(kept).min(),
        }
    }

    /// Waits while the indexer is far behind: a start would take too long.
    fn throttle(&self) {
        while self.parts.inbox.unindexed_bytes() > UNINDEXED_BYTES_MAX
            && !self.parts.queue.has_own()
        {
            self.parts.inbox.wait_for_progress(THROTTLE_WAIT);
        }
    }

    fn cycle(&mut self, work: Work) {
        let Work { webhooks, settled, own, requests, roll, .. } = work;
        let first_new = self.kept.len();
        self.kept.extend(settled);
        if roll && let Err(error) = self.roll() {
            self.fail(&error);
        }
        self.last_batch = webhooks.len();
        let began = Instant::now();
        match self.write(&webhooks, &own) {
            Ok(positions) => self.committed(webhooks, own, &positions, began),
            Err(error) => {
                self.refuse(webhooks, commit_error(&error));
                // What could not be written is nevertheless so: the index may know it first.
                let news = self.kept.iter().skip(first_new);
                let entries = news
                    .map(|s| Entry { position: None, change: Change::Settled(s.clone()) })
                    .collect();
                self.parts.inbox.push(entries, 0);
                self.forget_oldest();
            }
        }
        for request in requests {
            self.parts.inbox.request(request);
        }
    }

    fn refuse(&self, webhooks: Vec<Waiting>, error: CommitError) {
        for waiting in webhooks {
            // The claim first: who is told to come again must find it free.
            drop(waiting.claimed);
            // Nobody may wait any more.
            waiting.reply.send(Err(error)).unwrap_or_default();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(surplus) = self.kept.len().checked_sub(KEPT_MAX).filter(|n| *n > 0) {
            tracing::error!(surplus, "settlements are forgotten and will be delivered again");
            self.kept.drain(..surplus);
        }
    }

    /// Writes settlements, webhooks and own records; syncs if it must.
    fn write(&mut self, webhooks: &[Waiting], own: &[Own]) -> io::Result<Vec<Position>> {
        let must_sync = !webhooks.is_empty() || !own.is_empty();
        let due = self.unsynced_since.is_some_and(|since| since.elapsed() >= UNSYNCED_MAX);
        if !must_sync && !due && self.kept.is_empty() && self.writer.is_some() {
            return Ok(Vec::new());
        }
        let encoded: Vec<Vec<u8>> = self.kept.iter().map(encode_settled).collect();
        let sizes = encoded
            .iter()
            .map(|meta| meta.len())
            .chain(webhooks.iter().map(|w| w.meta.len() + w.webhook.body.len()))
            .chain(
                own.iter()
                    .flat_map(|own| &own.records)
                    .map(|record| record.meta.len() + record.body.len()),
            )
            .map(|payload| payload as u64 + 40);
        self.ensure_writer(sizes.sum())?;
        let result = self.write_and_sync(&encoded, webhooks, own, must_sync || due);
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    fn write_and_sync(
        &mut self,
        settled: &[Vec<u8>],
        webhooks: &[Waiting],
        own: &[Own],
        sync: bool,
    ) -> io::Result<Vec<Position>> {
        let Some(writer) = &mut self.writer else {
            return Err(io::Error::other("there is no segment"));
        };
        let mut assembly = Assembly::default();
        let none = Bytes::new();
        for meta in settled {
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
        let offset = writer.offset;
        let number = writer.segment.header.number;
        if sync {
            self.sync()?;
        }
        // Only now may anybody read it: a webhook that is found in the log counts as durable.
        self.parts.log.publish(LogPoint { segment: number, offset });
        Ok(assembly.positions)
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if writer.offset > writer.synced {
            let began = Instant::now();
            writer.segment.file.sync_data()?;
            self.average_sync = (self.average_sync * 7 + began.elapsed()) / 8;
            writer.synced = writer.offset;
            writer.batch = writer.batch.saturating_add(1);
        }
        self.unsynced.clear();
        self.unsynced_since = None;
        Ok(())
    }

    /// Tells everybody what became durable: the claims, the senders, the lanes, the index.
    fn committed(
        &mut self,
        webhooks: Vec<Waiting>,
        own: Vec<Own>,
        positions: &[Position],
        began: Instant,
    ) {
        let mut positions = positions.iter().copied();
        let mut entries = Vec::with_capacity(positions.len());
        for settled in self.kept.drain(..) {
            let position = positions.next();
            if self.unsynced_since.is_some() {
                self.unsynced.push(settled.clone());
            }
            entries.push(Entry { position, change: Change::Settled(settled) });
        }
        if !webhooks.is_empty() {
            self.average_batch = (self.average_batch * 3 + webhooks.len()).div_ceil(4);
            self.parts.observer.commit_batch(webhooks.len(), began.elapsed());
        }
        let mut replies = Vec::with_capacity(webhooks.len());
        let mut routed = Vec::with_capacity(webhooks.len());
        for waiting in webhooks {
            let Waiting { webhook, deliveries, claimed, reply, .. } = waiting;
            claimed.committed(webhook.id, webhook.activity_id);
            replies.push(reply);
            if let Some(position) = positions.next() {
                routed.push(Routed { webhook, deliveries, position });
            }
        }
        for reply in replies {
            reply.send(Ok(())).unwrap_or_default();
        }
        for routed in routed {
            let row = row_of(&routed);
            entries.push(Entry {
                position: Some(routed.position),
                change: Change::Webhook(Box::new(row)),
            });
            self.parts.newest.saw(&routed.webhook.source, routed.webhook.received_at);
            self.parts.lanes.push(routed);
        }
        let mut own_replies = Vec::with_capacity(own.len());
        for Own { records, reply } in own {
            let written: Vec<Position> = positions.by_ref().take(records.len()).collect();
            let changes = records.into_iter().map(|record| record.change);
            let at = written.iter().copied().map(Some);
            entries.extend(at.zip(changes).map(|(position, change)| Entry { position, change }));
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

    /// Makes sure that there is a segment with that much room.
    fn ensure_writer(&mut self, bytes: u64) -> io::Result<()> {
        let now = self.clock.now();
        if let Some(writer) = &self.writer {
            let filled = writer.offset > HEADER_BYTES;
            let full = writer.offset + bytes > writer.room;
            let old = now.since(writer.segment.header.created_at) > self.parts.segment_age;
            if filled
                && (full || old)
                && let Err(error) = self.roll()
            {
                self.fail(&error);
                return Err(error);
            }
        }
        if self.writer.is_some() {
            return Ok(());
        }
        if self.next_trial.is_some_and(|next| Instant::now() < next) {
            let full = self.parts.failing.get() == Some(CommitError::DiskFull);
            return Err(if full { Errno::NOSPC.into() } else { Errno::IO.into() });
        }
        let room = self.parts.segment_bytes.max(bytes + HEADER_BYTES);
        let result = self.create(now, room);
        if let Err(error) = &result {
            self.parts.failing.set(Some(commit_error(error)));
            self.next_trial = Some(Instant::now() + TRIAL_WAIT);
        }
        result
    }

    fn create(&mut self, now: Timestamp, room: u64) -> io::Result<()> {
        let salt = getrandom::u64().map_err(|_| io::Error::other("no random numbers"))?;
        let segment = self.parts.log.create(salt, now, self.void, room)?;
        if let Some(void) = self.void.take()
            && let Some(old) = self.parts.log.get(void.segment)
            && let Err(error) = old.file.truncate(void.offset)
        {
            tracing::warn!(%error, "a failed segment could not be cut to its sound part");
        }
        self.writer =
            Some(Writer { segment, offset: HEADER_BYTES, synced: HEADER_BYTES, batch: 1, room });
        self.next_trial = None;
        if self.parts.failing.get().is_some() {
            tracing::warn!("the store takes webhooks again");
        }
        self.parts.failing.set(None);
        Ok(())
    }

    /// Closes the current segment.
    fn roll(&mut self) -> io::Result<()> {
        if self.writer.as_ref().is_none_or(|writer| writer.offset <= HEADER_BYTES) {
            return Ok(());
        }
        self.sync()?;
        if let Some(writer) = self.writer.take() {
            writer.segment.set_limit(writer.offset);
            if let Err(error) = writer.segment.file.truncate(writer.offset) {
                tracing::warn!(%error, "a closed segment could not be cut to its size");
            }
        }
        Ok(())
    }

    /// A write or a sync failed: nothing is acknowledged on this file any more. What is behind its
    /// last sync is void, and the settlements there are written again.
    fn fail(&mut self, error: &io::Error) {
        let Some(writer) = self.writer.take() else { return };
        tracing::error!(%error, segment = writer.segment.header.number, "a segment failed");
        writer.segment.set_limit(writer.synced);
        let void = LogPoint { segment: writer.segment.header.number, offset: writer.synced };
        self.void = Some(void);
        self.parts.log.publish(void);
        // At once, not only when the next segment says so: a start after `kill -9` would find what
        // was refused, and the machine's memory would pass it for durable.
        if let Err(error) = writer.segment.file.truncate(void.offset) {
            tracing::warn!(%error, "a failed segment could not be cut to its sound part");
        }
        self.parts.failing.set(Some(commit_error(error)));
        let mut kept = std::mem::take(&mut self.unsynced);
        kept.append(&mut self.kept);
        self.kept = kept;
        self.unsynced_since = None;
        self.kept_again = Some(Instant::now() + UNSYNCED_MAX);
        // At once: only if that fails too it waits.
        self.next_trial = None;
        if let Err(error) = self.ensure_writer(0) {
            tracing::error!(%error, "no new segment could be made: nothing can be committed");
        }
    }

    fn finish(&mut self) {
        let own = Own {
            records: vec![OwnRecord {
                kind: Kind::Close,
                meta: Vec::new(),
                body: Bytes::new(),
                change: Change::None,
            }],
            reply: std::sync::mpsc::sync_channel(1).0,
        };
        self.next_trial = None;
        let result = match self.write(&[], &[own]) {
            Ok(positions) => {
                self.committed(Vec::new(), Vec::new(), &positions, Instant::now());
                self.roll()
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let settlements = self.kept.len();
            tracing::error!(%error, settlements, "the last settlements could not be written");
        }
    }
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
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
