//! Retention: what is past its time goes, in small steps that stall nobody.
//!
//! A segment of which little lives is copied [`forward`](super::forward) and unlinked.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::time::Timestamp;
use crate::store::embedded::Settings;
use crate::store::embedded::forward::{Job, Problem, Progress};
use crate::store::embedded::index::trim::{Expiry, Holding};
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::log::Log;
use crate::store::embedded::queue::Queue;
use crate::store::embedded::segment::{HEADER_BYTES, Segment};

/// So much is looked at between two others' turns.
pub(super) const ROWS_PER_STEP: usize = 200;
const PASS_WAIT_MAX: Duration = Duration::from_secs(60);
// After so many passes it is looked again whether a segment is worth what has to be written for it.
const PASSES_WITHOUT_GAIN: u32 = 10;
// Duplicate keys older than this are of no window.
const KNOWN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
// A segment that could not be cleaned is not looked at again for so long.
const STAYS_FOR: Duration = Duration::from_secs(3600);
// Between passes while room is short, of which each halves the time that settled webhooks are kept, but
// not below what an operator who looks at once may want to see.
const SHORT_PASS_WAIT: Duration = Duration::from_secs(5);
const HALVINGS_MAX: u32 = 16;
// Of what the store may take, unrouted webhooks have at most this part: what nobody has asked for yet
// must not keep out what somebody waits for.
const UNROUTED_PART: u64 = 4;
const SHORTEST: Duration = Duration::from_secs(300);

/// Segments that are cleaned at any cost, because of what was erased in them.
#[derive(Debug)]
struct Forced {
    waiting: VecDeque<u64>,
    under_way: Option<u64>,
    remaining: Vec<u64>,
    reply: oneshot::Sender<Vec<u64>>,
}

/// The state between two steps.
#[derive(Debug, Default)]
pub struct Cleaner {
    settings: Option<Retention>,
    queue: Arc<Queue>,
    stage: Stage,
    next_pass: Option<Instant>,
    pass_wait: Duration,
    // Segments that could not be cleaned, and until when they are left alone. They are told of once.
    staying: HashMap<u64, Instant>,
    // Segments for which as much would have to be written, likewise.
    without_gain: HashMap<u64, Instant>,
    forced: Option<Forced>,
    // Whether unrouted webhooks have gone early, and it was told: so long as they stay near their share
    // that is one story.
    crowded: bool,
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
    Crowding,
    Expiring(u64),
    Copying(Box<Job>),
    Waiting(Box<Job>, Instant),
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

    /// When there is more to do, if there is: at once, or when what is to be written should be.
    pub fn next_step(&self) -> Option<Instant> {
        match self.stage {
            Stage::Idle => None,
            Stage::Waiting(_, until) => Some(until),
            Stage::Crowding | Stage::Expiring(_) | Stage::Copying(_) => Some(Instant::now()),
        }
    }

    /// Cleans these before all others; tells those that could not be.
    pub(super) fn force(&mut self, segments: Vec<u64>, reply: oneshot::Sender<Vec<u64>>) {
        let (under_way, remaining) = (None, Vec::new());
        self.forced = Some(Forced { waiting: segments.into(), under_way, remaining, reply });
    }

    /// Begins with the next of those; answers whether one is under way.
    fn begin_forced(&mut self, indexer: &Indexer) -> rusqlite::Result<bool> {
        let log = &indexer.parts.log;
        let holdings = indexer.index.holdings()?;
        let needed_from = needed_from(indexer)?;
        let Some(forced) = &mut self.forced else { return Ok(false) };
        while let Some(number) = forced.waiting.front().copied() {
            // What was written since is not in the index yet: in a moment.
            if number >= log.end().segment || indexer.index.applied().segment <= number {
                return Ok(false);
            }
            forced.waiting.pop_front();
            let Some(segment) = log.get(number) else { continue };
            let is_free = number < needed_from && !says_an_end(&segment, log);
            let job = is_free.then(|| Job::new(&segment, log, &holdings)).flatten();
            if let Some(job) = job {
                forced.under_way = Some(number);
                self.stage = Stage::Copying(Box::new(job.at_any_cost()));
                return Ok(true);
            }
            forced.remaining.push(number);
        }
        if let Some(Forced { remaining, reply, .. }) = self.forced.take() {
            // Whoever waited may have gone.
            reply.send(remaining).unwrap_or_default();
        }
        Ok(false)
    }

    fn forced_ended(&mut self, number: u64, is_gone: bool) {
        let Some(forced) = self.forced.as_mut() else { return };
        if forced.under_way.take_if(|under_way| *under_way == number).is_some() && !is_gone {
            forced.remaining.push(number);
        }
    }

    /// Does a little.
    pub fn step(&mut self, indexer: &mut Indexer) -> rusqlite::Result<()> {
        let Some(retention) = self.settings else { return Ok(()) };
        let now = indexer.clock.now();
        match std::mem::take(&mut self.stage) {
            Stage::Idle => {
                if self.forced.is_some() && self.begin_forced(indexer)? {
                    return Ok(());
                }
                if self.may_begin(retention, &indexer.parts.log) {
                    self.crowd_out(indexer)?;
                }
                Ok(())
            }
            Stage::Crowding => self.crowd_out(indexer),
            Stage::Expiring(cursor) => {
                // The clock is in doubt: the next pass tries again.
                let Some(certain) = indexer.clock.certain() else { return Ok(()) };
                let expiry = Expiry {
                    settled: certain.minus(self.kept_for(retention)),
                    unrouted: certain.minus(retention.unrouted),
                    dead: certain.minus(retention.dead),
                };
                let (next, dead) =
                    indexer.index.expire_some(cursor, ROWS_PER_STEP, expiry, &indexer.adding)?;
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
            Stage::Copying(mut job) | Stage::Waiting(mut job, _) => {
                let result = match job.step(indexer, &self.queue) {
                    Ok(Progress::More) => {
                        self.stage = Stage::Copying(job);
                        return Ok(());
                    }
                    Ok(Progress::Waits(until)) => {
                        self.stage = Stage::Waiting(job, until);
                        return Ok(());
                    }
                    Ok(Progress::Gone) => Ok(()),
                    Err(problem) => Err(problem),
                };
                self.forced_ended(job.number(), result.is_ok());
                self.copied(&job, result, indexer, now)
            }
        }
    }

    /// A segment is gone, or can't go now.
    fn copied(
        &mut self,
        job: &Job,
        result: Result<(), Problem>,
        indexer: &Indexer,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let Some(retention) = self.settings else { return Ok(()) };
        match result {
            Ok(()) => {
                self.without_room.clear();
                self.choose(indexer, now, retention)
            }
            Err(Problem::Later) => Ok(()),
            Err(Problem::NoRoom) => {
                self.without_room.insert(job.number());
                self.choose(indexer, now, retention)
            }
            Err(Problem::NoGain) => {
                let until = Instant::now() + self.pass_wait * PASSES_WITHOUT_GAIN;
                self.without_gain.insert(job.number(), until);
                self.choose(indexer, now, retention)
            }
            Err(Problem::Stays) => {
                let number = job.number();
                if self.staying.insert(number, Instant::now() + STAYS_FOR).is_none() {
                    tracing::warn!(segment = number, "a segment can't be cleaned: it stays");
                }
                self.choose(indexer, now, retention)
            }
            Err(Problem::Index(error)) => Err(error),
        }
    }

    /// Where unrouted webhooks take more than their share of the store the oldest of them go, a few at
    /// a time; then comes what is past its time. What time it is does not matter to the former.
    fn crowd_out(&mut self, indexer: &mut Indexer) -> rusqlite::Result<()> {
        self.stage = Stage::Expiring(0);
        let usage = Arc::clone(&indexer.parts.usage);
        let Some(store_bytes_max) = usage.shares_of() else { return Ok(()) };
        let (bytes, bytes_max) = (indexer.index.unrouted_bytes()?, store_bytes_max / UNROUTED_PART);
        let removed = match bytes.saturating_sub(bytes_max) {
            0 => 0,
            over => indexer.index.remove_unrouted(over, ROWS_PER_STEP, &indexer.adding)?,
        };
        usage.removed_unrouted(removed as u64);
        usage.set_unrouted(indexer.index.unrouted_bytes()?);
        if removed > 0 && !self.crowded {
            self.crowded = true;
            tracing::warn!(
                unrouted_bytes = bytes,
                limit_bytes = bytes_max,
                "unrouted webhooks take more than a quarter of what the store may take: the oldest go \
                 before --retain-unrouted is over"
            );
        } else if bytes < bytes_max / 4 * 3 {
            self.crowded = false;
        }
        if removed == ROWS_PER_STEP {
            self.stage = Stage::Crowding;
        }
        Ok(())
    }

    /// Whether a pass may begin: not too often.
    fn may_begin(&mut self, retention: Retention, log: &Log) -> bool {
        let present = Instant::now();
        if self.next_pass.is_some_and(|next| present < next) {
            return false;
        }
        let mut wait = (retention.settled / 64).min(PASS_WAIT_MAX);
        if log.is_short(self.segment_bytes) {
            // What was not worth it may be the last that can go.
            self.without_gain.clear();
            if self.halve(retention) {
                wait = wait.min(SHORT_PASS_WAIT);
            }
        } else {
            self.halvings = self.halvings.saturating_sub(1);
        }
        self.next_pass = Some(present + wait);
        self.pass_wait = wait;
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
        if self.forced.is_some() && self.begin_forced(indexer)? {
            return Ok(());
        }
        let holdings = indexer.index.holdings()?;
        let present = Instant::now();
        self.staying.retain(|number, _| indexer.parts.log.exists(*number));
        self.without_gain.retain(|_, until| present < *until);
        let current = indexer.parts.log.end().segment;
        let log = &indexer.parts.log;
        let segments = log.all();
        let needed_from = needed_from(indexer)?;
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
                && !self.without_gain.contains_key(&number)
                && number < needed_from
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

/// From the first part on that could not be read all is needed: nobody knows what was in it, and later
/// segments may say something of that, if it can be read again.
fn needed_from(indexer: &Indexer) -> rusqlite::Result<u64> {
    let unread = indexer.index.unread()?;
    let numbers = unread.iter().map(|part| part.segment);
    Ok(numbers.filter(|number| indexer.parts.log.exists(*number)).min().unwrap_or(u64::MAX))
}

fn is_removable(segment: &Segment, log: &Log, holdings: &BTreeMap<u64, Holding>) -> bool {
    let live = holdings.get(&segment.header.number).map_or(0, |holding| holding.live);
    live.saturating_mul(4) < bytes_of(segment) && !says_an_end(segment, log)
}

/// Whether it says where an earlier one ends, which still has more.
fn says_an_end(segment: &Segment, log: &Log) -> bool {
    segment.header.previous_end.is_some_and(|end| {
        log.get(end.segment).is_some_and(|other| bytes_of(&other) > end.offset)
            || log.is_unread(end.segment)
    })
}

fn bytes_of(segment: &Segment) -> u64 {
    segment.file.bytes().unwrap_or(u64::MAX)
}
