//! The thread that follows the log and keeps the index; nobody waits for it but those who ask.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::domain::time::Clock;
use crate::store::claims::Claims;
use crate::store::embedded::change::{Change, Entry};
use crate::store::embedded::cleaner::Cleaner;
use crate::store::embedded::inbox::News;
pub use crate::store::embedded::inbox::{Inbox, Request};
use crate::store::embedded::index::{Index, is_unsound};
use crate::store::embedded::lane::WINDOW;
use crate::store::embedded::lanes::Lanes;
use crate::store::embedded::log::Log;
use crate::store::embedded::log::following::{FollowError, OnError, Piece};
use crate::store::embedded::newest::Newest;
use crate::store::embedded::recent::{Known, RecentSet};
use crate::store::embedded::record::Settled;
use crate::store::embedded::segment::LogPoint;
use crate::store::embedded::suspicion::{Suspicion, tell_gone};
use crate::store::embedded::sweep::Sweep;
use crate::store::embedded::usage::Usage;

// How long changes wait for more to be applied with.
const APPLY_WAIT: Duration = Duration::from_millis(250);
const HOUSEKEEPING_WAIT: Duration = Duration::from_secs(1);
// Each segment is asked for its size.
const MEASURING_WAIT: Duration = Duration::from_secs(10);
// A body that waits in memory for longer is read again when its turn comes.
const BODY_KEPT: Duration = Duration::from_secs(10);
const FORGETTING_WAIT: Duration = Duration::from_secs(1);
const TRIAL_WAIT: Duration = Duration::from_secs(1);
// As many as the committer keeps.
const UNLOGGED_MAX: usize = 65_536;
// An index that can't be written so often is made in memory.
const WRITE_TRIALS: u32 = 3;
// The disk takes the index again when it has so much room.
const FILE_ROOM: u64 = 32 << 20;
const FILE_TRIAL_WAIT: Duration = Duration::from_secs(60);
// What the disk did not read may be read later.
const GAP_TRIAL_WAIT: Duration = Duration::from_secs(60);

/// What the indexer works with.
#[derive(Debug)]
pub struct Parts {
    /// Where changes come from.
    pub inbox: Arc<Inbox>,
    /// What they are read from otherwise.
    pub log: Arc<Log>,
    /// Who asks for more.
    pub lanes: Arc<Lanes>,
    /// Who knows the duplicates.
    pub claims: Arc<Claims<RecentSet>>,
    /// The newest webhooks.
    pub newest: Arc<Newest>,
    /// What the store may take.
    pub usage: Arc<Usage>,
    /// Where this start's own records begin.
    pub start: LogPoint,
    /// How long what can't be read is waited for.
    pub read_patience: Duration,
    /// Is told when everything from before the start is in the index.
    pub caught_up: watch::Sender<bool>,
}

/// The thread's state.
pub struct Indexer {
    /// What it works with.
    pub parts: Parts,
    /// The index.
    pub index: Index,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Webhooks that are being erased: nothing is done with them meanwhile.
    pub(super) erasing: HashSet<u64>,
    /// Webhooks for which more deliveries are being written: their retention waits for that.
    pub(super) adding: HashSet<u64>,
    pub(super) sweep: Sweep,
    cleaner: Cleaner,
    requests: Vec<Request>,
    pub(super) behind: bool,
    next_housekeeping: Instant,
    next_forgetting: Instant,
    // Settlements that no segment has yet: an index that is made again must have them too.
    unlogged: BTreeMap<(u64, u16), Settled>,
    unreadable_since: Option<Instant>,
    failed_writes: u32,
    next_file_trial: Instant,
    next_measuring: Instant,
    next_gap_trial: Instant,
    pub(super) suspicion: Suspicion,
    // The index knows more than the lanes were told, or other things.
    pub(super) has_other_news: bool,
}

impl Indexer {
    /// An indexer that has everything to catch up with.
    pub(super) fn new(
        parts: Parts,
        index: Index,
        clock: Arc<dyn Clock>,
        cleaner: Cleaner,
        sweep: Sweep,
    ) -> Self {
        Self {
            parts,
            index,
            clock,
            erasing: HashSet::new(),
            adding: HashSet::new(),
            sweep,
            cleaner,
            requests: Vec::new(),
            behind: true,
            next_housekeeping: Instant::now(),
            next_forgetting: Instant::now(),
            unlogged: BTreeMap::new(),
            unreadable_since: None,
            failed_writes: 0,
            next_file_trial: Instant::now(),
            next_measuring: Instant::now() + MEASURING_WAIT,
            next_gap_trial: Instant::now() + GAP_TRIAL_WAIT,
            suspicion: Suspicion::default(),
            has_other_news: false,
        }
    }

    /// Works until the inbox is closed and empty.
    pub fn run(mut self) {
        let mut is_over = self.begin();
        while !is_over {
            let news = self.parts.inbox.next(APPLY_WAIT, self.next_wake());
            is_over = self.turn(news);
        }
    }

    /// Reads what the index does not know of the log, and answers as a turn does.
    pub(super) fn begin(&mut self) -> bool {
        self.fill_gaps();
        self.get_on(false)
    }

    /// Does what there is to do; answers whether that was the last of it.
    pub(super) fn turn(&mut self, news: News) -> bool {
        let News { entries, requests, behind, closed } = news;
        self.behind |= behind;
        self.requests.extend(requests);
        self.apply(entries);
        if !self.behind {
            self.answer();
            self.keep_house(closed);
        }
        self.get_on(closed)
    }

    fn get_on(&mut self, closed: bool) -> bool {
        let is_made_again = self.heed_suspicion();
        // At a stop that is left to the next start.
        let is_behind = self.behind && (closed && is_made_again || !self.catch_up());
        if !is_behind && self.has_other_news {
            self.has_other_news = !self.begin_all_anew();
        }
        if !closed {
            return false;
        }
        if is_behind {
            // The log has it all: the next start catches up.
            tracing::warn!("the index could not be brought up to date before the stop");
        }
        if let Err(error) = self.index.checkpoint() {
            tracing::warn!(%error, "the index could not be checkpointed at the stop");
        }
        true
    }

    /// Has segments cleaned before all others, however much of them lives.
    pub(super) fn clean_now(&mut self, segments: Vec<u64>, reply: oneshot::Sender<Vec<u64>>) {
        self.cleaner.force(segments, reply);
    }

    fn next_wake(&self) -> Instant {
        if self.behind {
            return Instant::now() + TRIAL_WAIT;
        }
        self.next_housekeeping.min(self.cleaner.next_step().unwrap_or(self.next_housekeeping))
    }

    /// Takes changes in; if that fails the log is read again.
    pub fn apply(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let bytes = entries.iter().filter_map(|entry| entry.position).map(|at| at.length).sum();
        self.note_unlogged(&entries);
        if self.behind {
            // The log has them, or they are noted.
            self.parts.inbox.indexed(Some(bytes));
            return;
        }
        match self.index.apply(entries, None) {
            Ok(()) => self.parts.inbox.indexed(Some(bytes)),
            Err(error) => self.failed(&error),
        }
    }

    /// Takes in settlements that are on their way into the log. Noted only when the index has them: where
    /// it fails whoever asked asks again, and must find things as they were.
    pub fn apply_unwritten(&mut self, settled: Vec<Settled>) -> rusqlite::Result<()> {
        let entry = |settled: Settled| Entry { position: None, change: Change::Settled(settled) };
        self.index.apply(settled.iter().cloned().map(entry).collect(), None)?;
        self.note_unlogged(&settled.into_iter().map(entry).collect::<Vec<_>>());
        Ok(())
    }

    fn note_unlogged(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Change::Settled(settled) = &entry.change else { continue };
            let key = (settled.webhook.key(), settled.number);
            if entry.position.is_none() && self.unlogged.len() < UNLOGGED_MAX {
                self.unlogged.insert(key, settled.clone());
            } else if entry.position.is_some() && !self.unlogged.is_empty() {
                self.unlogged.remove(&key);
            }
        }
    }

    /// What no segment has yet, again: the log, which was read, does not say it.
    fn apply_unlogged(&mut self) -> rusqlite::Result<()> {
        if self.unlogged.is_empty() {
            return Ok(());
        }
        let settled = self.unlogged.values().cloned();
        let entries = settled.map(|s| Entry { position: None, change: Change::Settled(s) });
        self.index.apply(entries.collect(), None)
    }

    /// An operation on the index failed: what the log has is read again, into a new file if this
    /// one is not sound.
    pub fn failed(&mut self, error: &rusqlite::Error) {
        self.behind = true;
        if !is_unsound(error) {
            self.failed_writes += 1;
            tracing::error!(%error, "the index can't be written");
            if self.failed_writes >= WRITE_TRIALS && !self.index.is_in_memory() {
                tracing::error!("it is made again in memory, until the disk takes it");
                self.failed_writes = 0;
                self.next_file_trial = Instant::now() + FILE_TRIAL_WAIT;
                if let Err(error) = self.index.move_to_memory() {
                    tracing::error!(%error, "the index can't be made again");
                }
            }
            return;
        }
        tracing::error!(%error, "the index is not sound and is made again from the log");
        self.make_again();
        // What it said until now may be wrong too.
        self.has_other_news = true;
    }

    /// Reads the log up to its end; answers whether that went well.
    fn catch_up(&mut self) -> bool {
        // First only what is from before this start: the lanes count the rest themselves.
        let first = !*self.parts.caught_up.borrow();
        if first && (!self.read_log(self.parts.start) || !self.first_caught_up()) {
            return false;
        }
        if !self.read_log(self.parts.log.end()) {
            return false;
        }
        if let Err(error) = self.apply_unlogged() {
            self.failed(&error);
            return false;
        }
        self.behind = false;
        self.failed_writes = 0;
        true
    }

    /// Goes back to the disk when that has room again.
    fn try_file(&mut self, now: Instant) {
        if !self.index.is_in_memory() || now < self.next_file_trial {
            return;
        }
        self.next_file_trial = now + FILE_TRIAL_WAIT;
        if self.parts.log.available_bytes() < FILE_ROOM {
            return;
        }
        match self.index.move_to_file() {
            Ok(()) => {
                tracing::warn!("the index is on the disk again");
                self.behind = true;
            }
            Err(error) => tracing::warn!(%error, "the disk does not take the index yet"),
        }
    }

    fn read_log(&mut self, end: LogPoint) -> bool {
        if !self.parts.log.can_follow(self.index.applied()) {
            tracing::warn!("the index knows a segment that is gone and is made again from the log");
            tell_gone(&self.index, &self.parts.log);
            if let Err(error) = self.index.make_again() {
                tracing::error!(%error, "the index can't be made again");
                return false;
            }
        }
        let mut ends = BTreeMap::new();
        let patience = self.parts.read_patience;
        let on_error = match self.unreadable_since {
            Some(since) if since.elapsed() >= patience => OnError::GoAround,
            Some(_) | None => OnError::Stop,
        };
        let Self { index, parts, .. } = self;
        let result = parts.log.follow(index.applied(), end, on_error, |piece| {
            let Piece { entries, upto, unread } = piece;
            ends.insert(upto.segment, upto);
            remember(parts, &entries);
            if !unread.is_empty() {
                index.note_unread(&unread)?;
            }
            let bytes = entries.iter().filter_map(|entry| entry.position).map(|at| at.length).sum();
            index.apply(entries, Some(upto))?;
            parts.inbox.indexed(Some(bytes));
            Ok(())
        });
        let is_sound = match result {
            Ok(is_sound) => is_sound,
            Err(FollowError::Io(error)) => {
                tracing::error!(%error, "the log can't be read");
                self.unreadable_since.get_or_insert_with(Instant::now);
                return false;
            }
            Err(FollowError::Pass(error)) => {
                self.failed(&error);
                return false;
            }
        };
        self.unreadable_since = None;
        // Where something is damaged nothing is cut off: somebody may want to look at it.
        if !*self.parts.caught_up.borrow() && is_sound {
            let old = ends.into_values().filter(|end| *end < self.parts.start);
            self.parts.log.truncate_tails(&old.collect());
        }
        true
    }

    fn first_caught_up(&mut self) -> bool {
        match self.index.counts() {
            Ok(counts) => {
                self.parts.lanes.set_base(&counts);
                self.parts.caught_up.send_replace(true);
                true
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    fn answer(&mut self) {
        let mut requests = std::mem::take(&mut self.requests).into_iter();
        while let Some(request) = requests.next() {
            let Err((error, request)) = self.answer_one(request) else { continue };
            // Asked again when the index is sound.
            self.failed(&error);
            self.requests.push(request);
            self.requests.extend(requests);
            return;
        }
    }

    fn answer_one(&mut self, request: Request) -> Result<(), (rusqlite::Error, Request)> {
        match request {
            Request::Refill { lane, bound } => {
                let found = self.index.due(lane.name(), bound, WINDOW + 1);
                let mut rows = match found {
                    Ok(rows) => rows,
                    Err(error) => return Err((error, Request::Refill { lane, bound })),
                };
                let rest = if rows.len() > WINDOW { rows.pop() } else { None };
                lane.refilled(bound, rows, rest.map(|row| row.key));
                Ok(())
            }
            Request::Ask(mut ask) => ask(self).map_err(|error| (error, Request::Ask(ask))),
        }
    }

    /// A target that is down, paused or slow costs no memory for long.
    fn forget_bodies(&mut self, now: Instant) {
        if now >= self.next_forgetting {
            self.next_forgetting = now + FORGETTING_WAIT;
            let before = self.clock.now().minus(BODY_KEPT);
            self.parts.lanes.all().iter().for_each(|lane| lane.forget_bodies(before));
        }
    }

    fn keep_house(&mut self, closed: bool) {
        let now = Instant::now();
        if closed {
            return;
        }
        self.forget_bodies(now);
        self.try_file(now);
        if self.behind {
            return;
        }
        if now >= self.next_gap_trial {
            self.next_gap_trial = now + GAP_TRIAL_WAIT;
            self.has_other_news |= self.fill_gaps();
            if self.behind {
                return;
            }
        }
        if now >= self.next_measuring {
            self.next_measuring = now + MEASURING_WAIT;
            self.parts.usage.measure(&self.parts.log);
        }
        if now >= self.next_housekeeping {
            self.next_housekeeping = now + HOUSEKEEPING_WAIT;
            match self.index.unrouted_bytes() {
                Ok(bytes) => self.parts.usage.set_unrouted(bytes),
                Err(error) => return self.failed(&error),
            }
            for lane in self.parts.lanes.all() {
                match self.index.pinned(lane.name()) {
                    Ok((oldest, bytes)) => lane.set_index(oldest, bytes),
                    Err(error) => return self.failed(&error),
                }
            }
        }
        // A copy of what is being erased would bring it back.
        if !self.erasing.is_empty() {
            return;
        }
        let Self { index, parts, sweep, .. } = self;
        match sweep.step(index, &parts.lanes, &parts.log) {
            Ok(None) => {}
            Ok(Some(why)) => self.suspect(why),
            Err(error) => return self.failed(&error),
        }
        let mut cleaner = std::mem::take(&mut self.cleaner);
        if let Err(error) = cleaner.step(self) {
            self.failed(&error);
        }
        self.cleaner = cleaner;
    }
}

/// What was committed before this start is known from the log.
fn remember(parts: &Parts, entries: &[Entry]) {
    let is_old = |e: &&Entry| e.position.is_some_and(|at| at.start() < parts.start);
    for entry in entries.iter().filter(is_old) {
        if let Change::Webhook(row) = &entry.change
            && row.durable
        {
            parts.newest.saw(&row.source, row.received_at);
            parts.claims.recent(|recent| {
                recent.insert_old(Known {
                    key: row.duplicate_key,
                    id: row.id,
                    activity_id: row.activity_id,
                });
            });
        }
    }
}

impl std::fmt::Debug for Indexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Indexer").finish_non_exhaustive()
    }
}
