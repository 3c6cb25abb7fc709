//! One process, one directory.
//!
//! A webhook is durable when its record is in a [`segment`]; everything else is made from those
//! records again. The [`committer`] writes and syncs, the [`lanes`] hand out, the [`indexer`]
//! follows into the [`index`], the [`cleaner`] ends what retention ends.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::domain::limit::RECALL_WAIT_MAX;
use crate::domain::time::{Clock, Timestamp};
use crate::store::claims::Claims;
use crate::store::embedded::aside::Aside;
use crate::store::embedded::busy::Busy;
use crate::store::embedded::disk::Disk;
use crate::store::embedded::failing::Failing;
use crate::store::embedded::inbox::{Inbox, Request};
use crate::store::embedded::lane::Lane;
use crate::store::embedded::lanes::Lanes;
use crate::store::embedded::leasing::Unreadable;
use crate::store::embedded::log::{Limit, Log};
use crate::store::embedded::marks::MarkFile;
use crate::store::embedded::newest::Newest;
use crate::store::embedded::observer::{Observer, Unobserved};
use crate::store::embedded::past::IsWhole;
use crate::store::embedded::queue::{Own, Queue};
use crate::store::embedded::recent::RecentSet;
use crate::store::embedded::sweep::{Findings, SWEEP_WAIT};
use crate::store::embedded::usage::Usage;

mod adding;
mod anew;
mod aside;
mod assembly;
pub mod busy;
pub mod change;
pub mod cleaner;
mod codec;
pub mod committer;
mod contract;
mod current;
pub mod damage;
mod directory;
pub mod disk;
mod erasing;
pub mod failing;
mod forward;
pub mod harm;
pub mod inbox;
pub mod index;
pub mod indexer;
pub mod lane;
pub mod lanes;
pub mod leasing;
mod listing;
pub mod lock;
pub mod log;
mod marks;
pub mod memory;
pub mod newest;
pub mod observer;
pub mod offer;
pub mod offline;
mod opening;
mod past;
mod quarantine;
pub mod queue;
pub mod reader;
pub mod recall;
pub mod recent;
pub mod record;
pub mod scanner;
pub mod segment;
#[cfg(any(test, feature = "test-util"))]
pub mod sim;
mod slots;
#[cfg(any(test, feature = "test-util"))]
pub mod stepping;
mod suspicion;
mod sweep;
mod telling;
#[cfg(test)]
mod tests;
pub mod usage;

// A start goes on without a complete index after this: first accept within a second.
const CATCH_UP_WAIT: Duration = Duration::from_millis(750);
// A disk that is away for a moment costs nothing; after this the other records go on.
const READ_PATIENCE: Duration = Duration::from_secs(10);
const SEGMENT_BYTES: u64 = 64 << 20;
// A tenth of a second.
const LOOKED_THROUGH_AT_ONCE: u64 = 8 << 20;

/// How a store is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its directory.
    pub dir: PathBuf,
    /// A directory that a power cut empties is good enough.
    pub allow_volatile: bool,
    /// How long settled webhooks are kept.
    pub retain: Duration,
    /// How long webhooks without a delivery are kept.
    pub retain_unrouted: Duration,
    /// How long webhooks with a dead letter are kept.
    pub retain_dead_letters: Duration,
    /// How many duplicate keys are remembered.
    pub duplicates_max: usize,
    /// Bytes of bodies in lanes.
    pub delivery_memory: usize,
    /// How much its segments may take of the disk.
    pub limit: Limit,
    /// How long what can't be read is waited for, before the rest is read without it.
    pub read_patience: Duration,
    /// The size at which a segment is closed.
    pub segment_bytes: u64,
    /// How long the sweep waits between two looks.
    pub sweep_wait: Duration,
    /// How long a start waits for a complete index.
    pub catch_up_wait: Duration,
    /// An index of so many bytes is looked through before a start goes on; a larger one beside it.
    pub looked_through_at_once: u64,
    /// How long after a start webhooks may wait until it is known which ones came before.
    pub recall_patience: Duration,
    /// Who is told of commits.
    pub observer: Arc<dyn Observer>,
    /// Where the segments are.
    pub disk: Arc<dyn Disk>,
}

impl Settings {
    /// The defaults, in a directory.
    pub fn new(dir: PathBuf) -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            dir,
            allow_volatile: false,
            retain: Duration::from_secs(3 * DAY),
            retain_unrouted: Duration::from_secs(14 * DAY),
            retain_dead_letters: Duration::from_secs(90 * DAY),
            duplicates_max: 1_000_000,
            delivery_memory: 64 << 20,
            limit: Limit::None,
            read_patience: READ_PATIENCE,
            segment_bytes: SEGMENT_BYTES,
            sweep_wait: SWEEP_WAIT,
            catch_up_wait: CATCH_UP_WAIT,
            looked_through_at_once: LOOKED_THROUGH_AT_ONCE,
            recall_patience: RECALL_WAIT_MAX,
            observer: Arc::new(Unobserved),
            disk: Arc::new(disk::RealDisk),
        }
    }
}

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory {} is in use by {}", dir.display(), owner(*process))]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process.
        process: Option<u32>,
    },
    /// The disk refused.
    #[error("data directory {} can't be used", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index can be neither opened nor made.
    #[error("the index in data directory {} can't be made", dir.display())]
    Index {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Written by a newer version.
    #[error(
        "{} has format {format}, written by a newer version of aryeo-relay: run that version",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: u32,
    },
    /// Somebody else's files are in it.
    #[error(
        "data directory {} is not a relay's: it holds {found:?}. Name a directory of its own with \
         --data, such as {}",
        dir.display(), dir.join("aryeo-relay").display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What is in it.
        found: String,
    },
    /// A restart of the machine would empty it.
    #[error(
        "data directory {} is in memory and lost with the machine: name a directory on a disk with \
         --data, or accept the loss with --allow-volatile-data",
        dir.display()
    )]
    Volatile {
        /// The directory.
        dir: PathBuf,
    },
}

fn owner(process: Option<u32>) -> String {
    process.map_or_else(|| "another process".into(), |id| format!("process {id}"))
}

/// A store in one directory of one process.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    marks: Arc<MarkFile>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopped: watch::Receiver<bool>,
    ids_after: Timestamp,
}

#[derive(Debug)]
struct Shared {
    clock: ClockHandle,
    claims: Arc<Claims<RecentSet>>,
    queue: Arc<Queue>,
    inbox: Arc<Inbox>,
    lanes: Arc<Lanes>,
    log: Arc<Log>,
    failing: Arc<Failing>,
    busy: Arc<Busy>,
    newest: Arc<Newest>,
    usage: Arc<Usage>,
    findings: Arc<Findings>,
    unreadable: Unreadable,
    index_file: PathBuf,
    past_is_whole: IsWhole,
    aside: Aside,
    // Held by whoever adds deliveries.
    adding: Arc<tokio::sync::Mutex<()>>,
    // Held by whoever erases a webhook.
    erasing: tokio::sync::Mutex<()>,
    // What goes on without who asked for it.
    tasks: TaskTracker,
}

#[derive(Clone)]
struct ClockHandle(Arc<dyn Clock>);

impl std::fmt::Debug for ClockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl EmbeddedStore {
    /// No webhook in it was made later: new ids come after this.
    pub fn ids_after(&self) -> Timestamp {
        self.ids_after
    }

    /// Answers when the thread that commits has taken this up among its work, whatever the disk says to it: who gets
    /// an answer knows that it runs and is not held up.
    pub async fn answers(&self) {
        let (reply, answer) = oneshot::channel();
        self.shared.queue.write(Own { records: Vec::new(), reply });
        // Dropped: the disk has refused, or it is closing. That is an answer as well.
        answer.await.unwrap_or_default();
    }

    /// Answers when everything that was committed or settled before is in the index.
    pub async fn flush(&self) {
        let (request, answer) = Request::ask(|_| Ok(()));
        self.shared.queue.request(request);
        // Not answered at all: it is closing, and that flushes too.
        answer.await.unwrap_or_default();
    }

    /// The lane of a target, for tests and statistics.
    pub fn lane(&self, target: &str) -> Arc<Lane> {
        self.shared.lanes.lane(target)
    }

    fn join(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store ended by a defect");
            }
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.queue.close();
        self.join();
    }
}
