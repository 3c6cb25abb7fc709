//! The segment that is written to: made as large as the disk has room for, closed when it is full.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use crate::domain::time::Timestamp;
use crate::store::CommitError;
use crate::store::embedded::assembly::Writer;
use crate::store::embedded::log::Log;
use crate::store::embedded::segment::{HEADER_BYTES, LogPoint};

const TRIAL_WAIT: Duration = Duration::from_secs(1);
// Smaller ones would cost more in files than they hold.
const ROOM_MIN: u64 = 512 << 10;
// What webhooks leave to settlements and the store's own records: where the disk is full, those are
// what frees it again.
const RESERVE_MAX: u64 = 1 << 20;

/// What is to be written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    /// Settlements and the store's own records: all or nothing.
    pub(super) firm: u64,
    /// The first webhook.
    pub(super) first: u64,
    /// All webhooks.
    pub(super) webhooks: u64,
}

impl Demand {
    fn without_webhooks(self) -> Self {
        Self { first: 0, webhooks: 0, ..self }
    }
}

/// The current segment.
#[derive(Debug)]
pub(super) struct Current {
    log: Arc<Log>,
    segment_bytes: u64,
    segment_age: Duration,
    writer: Option<Writer>,
    // Where the log ended when a write or a sync failed: the next segment says so.
    void: Option<LogPoint>,
    next_trial: Option<Instant>,
    // The last trial was for webhooks only, and ended at the limit.
    was_without_firm: bool,
    problem: Option<CommitError>,
    refused: Option<u64>,
}

/// What an error of the disk means to those who commit.
pub(super) fn commit_error(error: &io::Error) -> CommitError {
    if is_full(error) { CommitError::DiskFull } else { CommitError::Unavailable }
}

/// A file that may not grow (RLIMIT_FSIZE) is no different: a smaller segment may fit.
fn is_full(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}

fn reserve(room: u64) -> u64 {
    (room / 16).min(RESERVE_MAX)
}

impl Current {
    /// None yet.
    pub(super) fn new(log: Arc<Log>, segment_bytes: u64, segment_age: Duration) -> Self {
        Self {
            log,
            segment_bytes,
            segment_age,
            writer: None,
            void: None,
            next_trial: None,
            was_without_firm: false,
            problem: None,
            refused: None,
        }
    }

    /// It, if there is one.
    pub(super) fn writer(&mut self) -> Option<&mut Writer> {
        self.writer.as_mut()
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.writer.is_some()
    }

    /// When another one may be tried, if making one has failed.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        self.next_trial
    }

    /// The next trial is at once.
    pub(super) fn try_at_once(&mut self) {
        self.next_trial = None;
    }

    /// Why the last trial to make another one failed, if it did.
    pub(super) fn problem(&self) -> Option<CommitError> {
        self.problem
    }

    /// A webhook of that many bytes was refused: the next trial is to have room for it.
    pub(super) fn refused(&mut self, bytes: u64) {
        self.refused = Some(bytes);
    }

    /// Whether a trial is due after something was refused.
    pub(super) fn is_to_be_tried(&self) -> bool {
        (self.refused.is_some() || !self.exists()) && self.may_try()
    }

    fn may_try(&self) -> bool {
        self.next_trial.is_none_or(|next| next <= Instant::now())
    }

    /// Whether another one is wanted and may be tried.
    pub(super) fn is_to_change(&self, demand: Demand, now: Timestamp) -> bool {
        // What frees room does not wait because a webhook had none: it may always come between two
        // trials, of which each would put off the next.
        let may_try = self.may_try() || (self.was_without_firm && self.has_no_firm_room(demand));
        may_try && (self.refused.is_some() || self.is_over(demand, now))
    }

    fn has_no_firm_room(&self, demand: Demand) -> bool {
        let fits = |writer| fits(writer, demand.without_webhooks());
        demand.firm > 0 && !self.writer.as_ref().is_some_and(fits)
    }

    fn is_over(&self, demand: Demand, now: Timestamp) -> bool {
        let Some(writer) = &self.writer else { return true };
        let filled = writer.offset > HEADER_BYTES;
        let old = now.since(writer.segment.header.created_at) > self.segment_age;
        (filled && old) || !fits(writer, demand)
    }

    /// Bytes of webhooks that may be written behind the firm part; an error if that does not fit.
    pub(super) fn left(&self, demand: Demand) -> io::Result<u64> {
        let writer = self.writer.as_ref().ok_or_else(|| self.refusal())?;
        let left = writer.room.saturating_sub(writer.offset);
        let left = left.checked_sub(demand.firm).ok_or_else(|| self.refusal())?;
        Ok(if writer.is_reserve { 0 } else { left.saturating_sub(reserve(writer.room)) })
    }

    /// Why something has no room.
    pub(super) fn refusal(&self) -> io::Error {
        match self.problem {
            Some(CommitError::DiskFull) | None => Errno::NOSPC.into(),
            Some(_) => Errno::IO.into(),
        }
    }

    /// Makes another one and closes this one, which has to be synced. Where there is no room for
    /// another, this one goes on; trials are a while apart.
    pub(super) fn change(&mut self, demand: Demand, now: Timestamp) -> io::Result<()> {
        match self.make(demand, now) {
            Ok(writer) if writer.is_reserve => {
                self.close();
                self.writer = Some(writer);
                self.problem = Some(CommitError::DiskFull);
                self.next_trial = Some(Instant::now() + TRIAL_WAIT);
                Ok(())
            }
            Ok(writer) => {
                self.close();
                self.writer = Some(writer);
                self.next_trial = None;
                self.problem = None;
                self.refused = None;
                Ok(())
            }
            Err(error) => {
                self.problem = Some(commit_error(&error));
                self.next_trial = Some(Instant::now() + TRIAL_WAIT);
                Err(error)
            }
        }
    }

    fn make(&mut self, demand: Demand, now: Timestamp) -> io::Result<Writer> {
        let salt = getrandom::u64().map_err(|_| io::Error::other("no random numbers"))?;
        // By a sixteenth of it all more than is to be written: for the reserve.
        let with_reserve = |bytes: u64| HEADER_BYTES + bytes + (HEADER_BYTES + bytes).div_ceil(15);
        let first = demand.first.max(self.refused.unwrap_or(0));
        let smallest = ROOM_MIN.min(self.segment_bytes);
        let mut least = with_reserve(demand.firm + first).max(smallest);
        let within = self.log.left_of_limit();
        let is_reserve = within < least;
        self.was_without_firm = false;
        if is_reserve {
            // Beyond the limit only for what frees room again, and only where it has none.
            self.was_without_firm = !self.has_no_firm_room(demand);
            if self.was_without_firm {
                return Err(Errno::NOSPC.into());
            }
            least = with_reserve(demand.firm).max(smallest);
        }
        let wanted = with_reserve(demand.firm + demand.webhooks).max(self.segment_bytes);
        // Half of what is left, so that the index has room for what is in it.
        let mut room = wanted.min(self.log.available_bytes() / 2).min(within).max(least);
        let segment = loop {
            match self.log.create(salt, now, self.void, room) {
                Err(error) if is_full(&error) && room > least => room = (room / 2).max(least),
                made => break made?,
            }
        };
        let file = segment.file.id()?;
        if let Some(void) = self.void.take()
            && let Some(old) = self.log.get(void.segment)
            && let Err(error) = old.file.truncate(void.offset)
        {
            tracing::warn!(%error, "a failed segment could not be cut to its sound part");
        }
        Ok(Writer {
            file,
            segment,
            offset: HEADER_BYTES,
            synced: HEADER_BYTES,
            batch: 1,
            room,
            is_reserve,
        })
    }

    /// Closes it; it has to be synced.
    pub(super) fn close(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        writer.segment.set_limit(writer.offset);
        if let Err(error) = writer.segment.file.truncate(writer.offset) {
            tracing::warn!(%error, "a closed segment could not be cut to its size");
        }
    }

    /// A write or a sync failed: nothing is acknowledged on this file any more, and what is behind
    /// its last sync is void. Answers whether there was one.
    pub(super) fn fail(&mut self, error: &io::Error) -> bool {
        let Some(writer) = self.writer.take() else { return false };
        tracing::error!(%error, segment = writer.segment.header.number, "a segment failed");
        writer.segment.set_limit(writer.synced);
        let void = LogPoint { segment: writer.segment.header.number, offset: writer.synced };
        self.void = Some(void);
        self.log.publish(void);
        // At once, not only when the next segment says so: a start after `kill -9` would find what
        // was refused, and the machine's memory would pass it for durable.
        if let Err(error) = writer.segment.file.truncate(void.offset) {
            tracing::warn!(%error, "a failed segment could not be cut to its sound part");
        }
        self.problem = Some(commit_error(error));
        // At once: only if that fails too it waits.
        self.next_trial = None;
        true
    }
}

fn fits(writer: &Writer, demand: Demand) -> bool {
    let kept = if demand.webhooks > 0 { reserve(writer.room) } else { 0 };
    writer.offset + demand.firm + demand.webhooks + kept <= writer.room
}
