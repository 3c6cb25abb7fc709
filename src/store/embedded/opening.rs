//! A start: what has to be read of the past, and the threads that go on from there.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::domain::time::{Clock, Timestamp};
use crate::store::claims::Claims;
use crate::store::embedded::aside::Aside;
use crate::store::embedded::cleaner::Cleaner;
use crate::store::embedded::committer::{self, Committer};
use crate::store::embedded::inbox::Inbox;
use crate::store::embedded::index::Index;
use crate::store::embedded::indexer::{self, Indexer};
use crate::store::embedded::lanes::Lanes;
use crate::store::embedded::leasing::Unreadable;
use crate::store::embedded::lock::DirectoryLock;
use crate::store::embedded::log::{Log, LogError};
use crate::store::embedded::marks::MarkFile;
use crate::store::embedded::memory::Memory;
use crate::store::embedded::past::{self, Past, Rest};
use crate::store::embedded::queue::Queue;
use crate::store::embedded::suspicion::{look_through, tell_gone};
use crate::store::embedded::sweep::Sweep;
use crate::store::embedded::usage::Usage;
use crate::store::embedded::{
    ClockHandle, EmbeddedStore, OpenError, Settings, Shared, directory, segment,
};

/// What goes on beside a store that is open.
pub(super) struct Workers {
    pub(super) committer: Committer,
    pub(super) indexer: Indexer,
    pub(super) rest: Rest,
    // The index is looked through beside what goes on.
    pub(super) looks_through: bool,
    // The directory is ours until the last byte is written; then that is told.
    pub(super) lock: DirectoryLock,
    pub(super) stop: watch::Sender<bool>,
    pub(super) is_caught_up: watch::Receiver<bool>,
}

impl EmbeddedStore {
    /// Opens the store of a directory, and makes it if there is none. Ready within a second
    /// whatever the backlog: an index that takes longer is completed in the background.
    pub fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let begun = Instant::now();
        let (store, workers) = Self::assemble(settings, clock, begun, Aside::Thread)?;
        let is_caught_up = workers.is_caught_up.clone();
        let threads = start_threads(&store.shared, workers);
        let io = |source| OpenError::Io { dir: settings.dir.clone(), source };
        *store.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads.map_err(io)?;
        store.wait_for_index(&is_caught_up, begun + settings.catch_up_wait);
        Ok(store)
    }

    /// All of it, but nothing goes on yet.
    pub(super) fn assemble(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        begun: Instant,
        aside: Aside,
    ) -> Result<(Self, Workers), OpenError> {
        let dir = settings.dir.clone();
        let lock = directory::claim(settings)?;
        let marks = Arc::new(MarkFile::open(&dir));
        let log = open_log(settings)?;
        let index_file = dir.join("index.sqlite");
        let index = Index::open(&index_file).and_then(|index| fitting(index, &log));
        let looked = index.and_then(|index| looked_through(index, &log, settings));
        let (mut index, looked) = looked.map_err(|source| OpenError::Index { dir, source })?;
        let (past, rest) = Past::read(&log, &mut index, settings, clock.now(), begun);
        if past.latest > Timestamp::default() {
            clock.at_least(past.latest.plus(Duration::from_millis(1)));
        }
        let ids_after = past.ids_after;
        let shared = Shared::new(log, past, settings, Arc::clone(&clock), index_file, aside);
        let mut committer = Committer::new(shared.committer_parts(settings), Arc::clone(&clock));
        let start = shared.log.end_of_old();
        committer.begin();
        let (caught_up, is_caught_up) = watch::channel(false);
        let parts = shared.indexer_parts(settings, start, caught_up);
        let cleaner = Cleaner::new(settings, Arc::clone(&shared.queue));
        if looked == Looked::Unsound {
            shared.findings.add();
        }
        let looks_through = looked == Looked::NotYet;
        let (queue, findings) = (Arc::clone(&shared.queue), Arc::clone(&shared.findings));
        let sweep = Sweep::new(settings.sweep_wait, queue, findings);
        let indexer = Indexer::new(parts, index, clock, cleaner, sweep);
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(shared);
        let store = Self { shared, marks, threads: Mutex::default(), stopped, ids_after };
        Ok((store, Workers { committer, indexer, rest, looks_through, lock, stop, is_caught_up }))
    }

    fn wait_for_index(&self, caught_up: &watch::Receiver<bool>, until: Instant) {
        while !*caught_up.borrow() {
            if Instant::now() >= until {
                tracing::warn!("the index is completed in the background");
                return;
            }
            self.shared.inbox.wait_for_progress(Duration::from_millis(5));
        }
    }
}

fn open_log(settings: &Settings) -> Result<Log, OpenError> {
    let dir = settings.dir.clone();
    let log = Log::open(dir.join("segments"), Arc::clone(&settings.disk));
    let log = log.map_err(|error| match error {
        LogError::Io(source) => OpenError::Io { dir, source },
        LogError::Newer(file, format) => OpenError::Newer { file, format },
    })?;
    log.set_limit(settings.limit);
    Ok(log)
}

/// The index, made again if it knows a segment that is gone. That has to be found out before this
/// start makes a segment: under the number of the other one it would pass for indexed.
fn fitting(mut index: Index, log: &Log) -> rusqlite::Result<Index> {
    if !log.can_follow(index.applied()) {
        tracing::warn!("the index knows a segment that is gone and is made again from the log");
        tell_gone(&index, log);
        index.make_again()?;
    }
    Ok(index)
}

/// What is known of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    Sound,
    // It was made again.
    Unsound,
    NotYet,
}

/// The index, made again if it is not sound in itself. One that is large is looked through later: nobody is to
/// wait for that.
fn looked_through(
    mut index: Index,
    log: &Log,
    settings: &Settings,
) -> rusqlite::Result<(Index, Looked)> {
    if index.is_in_memory() {
        return Ok((index, Looked::Sound));
    }
    if index.page_bytes().is_ok_and(|bytes| bytes > settings.looked_through_at_once) {
        return Ok((index, Looked::NotYet));
    }
    match index.flaw() {
        Ok(None) => return Ok((index, Looked::Sound)),
        Ok(Some(why)) => {
            tracing::error!(why, "the index is not sound and is made again from the log");
        }
        Err(error) => {
            // The indexer finds out what it is worth.
            tracing::warn!(%error, "the index can't be looked through");
            return Ok((index, Looked::Sound));
        }
    }
    tell_gone(&index, log);
    index.make_again()?;
    Ok((index, Looked::Unsound))
}

fn start_threads(shared: &Shared, workers: Workers) -> io::Result<Vec<JoinHandle<()>>> {
    let Workers { committer, indexer, rest, looks_through, lock, stop, .. } = workers;
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    let mut threads = Vec::new();
    if !rest.is_empty() {
        tracing::warn!("what was received last is still being read: webhooks wait for that");
        let (log, queue, memory) =
            (Arc::clone(&shared.log), Arc::clone(&shared.queue), shared.past_memory());
        threads.push(thread("store-recall").spawn(move || rest.read(&log, &queue, &memory))?);
    }
    if looks_through {
        let (queue, inbox) = (Arc::clone(&shared.queue), Arc::clone(&shared.inbox));
        let file = shared.index_file.clone();
        threads.push(thread("store-check").spawn(move || look_through(&file, &queue, &inbox))?);
    }
    threads.push(thread("store-commit").spawn(move || committer.run())?);
    threads.push(thread("store-index").spawn(move || {
        indexer.run();
        drop(lock);
        stop.send_replace(true);
    })?);
    Ok(threads)
}

impl Shared {
    fn new(
        log: Log,
        past: Past,
        settings: &Settings,
        clock: Arc<dyn Clock>,
        index_file: PathBuf,
        aside: Aside,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let inbox = Arc::new(Inbox::default());
        let memory = Memory::new(settings.delivery_memory);
        let lanes = Lanes::new(memory, Arc::clone(&queue), Arc::clone(&inbox));
        let usage = Usage::of(&log);
        Self {
            usage: Arc::new(usage),
            findings: Arc::default(),
            claims: Arc::new(Claims::new(past.recent, Arc::clone(&clock))),
            clock: ClockHandle(clock),
            queue,
            inbox,
            lanes: Arc::new(lanes),
            log: Arc::new(log),
            failing: Arc::default(),
            busy: Arc::default(),
            unreadable: Unreadable::default(),
            newest: Arc::new(past.by_source),
            index_file,
            past_is_whole: past.is_whole,
            aside,
            adding: Arc::default(),
            erasing: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Where what is read of the past later goes.
    pub(super) fn past_memory(&self) -> past::Memory {
        past::Memory { claims: Arc::clone(&self.claims), newest: Arc::clone(&self.newest) }
    }

    fn committer_parts(&self, settings: &Settings) -> committer::Parts {
        committer::Parts {
            queue: Arc::clone(&self.queue),
            log: Arc::clone(&self.log),
            lanes: Arc::clone(&self.lanes),
            inbox: Arc::clone(&self.inbox),
            observer: Arc::clone(&settings.observer),
            failing: Arc::clone(&self.failing),
            busy: Arc::clone(&self.busy),
            newest: Arc::clone(&self.newest),
            segment_age: settings.retain / 8,
            segment_bytes: settings.segment_bytes,
        }
    }

    fn indexer_parts(
        &self,
        settings: &Settings,
        start: segment::LogPoint,
        caught_up: watch::Sender<bool>,
    ) -> indexer::Parts {
        indexer::Parts {
            inbox: Arc::clone(&self.inbox),
            log: Arc::clone(&self.log),
            lanes: Arc::clone(&self.lanes),
            claims: Arc::clone(&self.claims),
            newest: Arc::clone(&self.newest),
            usage: Arc::clone(&self.usage),
            start,
            read_patience: settings.read_patience,
            caught_up,
        }
    }
}
