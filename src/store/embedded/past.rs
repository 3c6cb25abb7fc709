//! What a start has to know of the past before the first webhook is accepted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::domain::time::Timestamp;
use crate::store::claims::Claims;
use crate::store::embedded::Settings;
use crate::store::embedded::index::Index;
use crate::store::embedded::log::Log;
use crate::store::embedded::newest::Newest;
use crate::store::embedded::queue::Queue;
use crate::store::embedded::recall::Recall;
use crate::store::embedded::recent::RecentSet;

// A start waits so long for what the log says of duplicates, where the index does not have them; what
// has to be known is then read on beside it.
const RECALL_WAIT: Duration = Duration::from_millis(500);
// Of the newest records so many bytes are recalled however old they are: all that most relays wrote
// within the windows of duplicates. A start reads as much in a moment.
const RECALLED_BYTES_MIN: u64 = 128 << 20;
// Duplicate keys are kept this long in the index; windows are hours.
const KNOWN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What has to be known before the first webhook is accepted.
#[derive(Debug)]
pub(super) struct Past {
    /// To know duplicates by.
    pub(super) recent: RecentSet,
    /// The latest moment that any record tells of, as far as is known: a start's clock is past it. When
    /// it was behind, whatever failed meanwhile would be due again only when it has caught up.
    pub(super) latest: Timestamp,
    /// No webhook was made later. Where only the newest part of the log was read there may be none
    /// in it; but those before it were made before the next segment was. The clock is not held
    /// against this: a segment is made at every start, also by a clock that is wrong.
    pub(super) ids_after: Timestamp,
    /// The newest webhook of each source.
    pub(super) by_source: Newest,
    /// Whether that is all of it.
    pub(super) is_whole: IsWhole,
}

impl Past {
    /// From the index, and from the part of the log that is not in it. Where the index is gone that
    /// is all of the log: the newest part of it is read, as far as the time allows.
    pub(super) fn read(
        log: &Log,
        index: &mut Index,
        settings: &Settings,
        now: Timestamp,
        begun: Instant,
    ) -> (Self, Rest) {
        let mut recent = load_recent(index, settings.duplicates_max, now);
        // An index that does not answer is made again; the log has all of it.
        let by_source = Newest::default();
        for (source, at) in index.newest_by_source().unwrap_or_default() {
            by_source.saw(&source, at);
        }
        let mut key = index.newest_key().ok().flatten().unwrap_or(0);
        let max = settings.duplicates_max;
        let mut rest = Recall::new(log, index.applied(), max, RECALLED_BYTES_MIN);
        let mut recalled = Vec::new();
        // Ids have to be greater than any that is stored: they are in the last two segments.
        while !rest.is_over() && (recalled.len() < 2 || Instant::now() < begun + RECALL_WAIT) {
            recalled.push(rest.step(log));
        }
        // From old to new: when there are too many, the oldest go first.
        for recalled in recalled.into_iter().rev().flatten() {
            key = key.max(recalled.known.id.key());
            by_source.saw(&recalled.source, recalled.received_at);
            if recalled.durable {
                recent.insert_old(recalled.known);
            }
        }
        let until = begun + settings.recall_patience;
        let (tell, told) = watch::channel(rest.is_enough());
        let is_whole = IsWhole { told, until };
        let newest = Timestamp::from_millis(key >> 12);
        let latest = newest.max(rest.latest()).max(index.latest().unwrap_or_default());
        let made = log.all().into_iter().map(|segment| segment.header.created_at).max();
        let ids_after = newest.max(made.unwrap_or_default());
        let past = Self { recent, latest, ids_after, by_source, is_whole };
        (past, Rest { recall: rest, until, tell })
    }
}

/// What of the past has to be known, but could not be read in a moment: the disk is slow, or starts
/// were many.
///
/// The store is ready nevertheless: a sender that finds nobody listening has lost one of its three
/// tries. Whoever posts meanwhile waits to be told whether it was there before. If the answer is due
/// before that it is a 503, but by that nothing is lost and nothing delivered twice: the webhook goes
/// on waiting here, is stored in the end, and the sender's next try is its duplicate. Taken for new
/// without knowing, it would be delivered twice: what the sender repeats after a crash is just what
/// was stored last.
///
/// Only what the sender may repeat by itself is waited for, and some more where that is little.
/// Older keys come with the index. Until then a copy of an older webhook, which somebody else must
/// have sent, is delivered twice.
#[derive(Debug)]
pub(super) struct Rest {
    recall: Recall,
    until: Instant,
    tell: watch::Sender<bool>,
}

/// Where the rest goes.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) claims: Arc<Claims<RecentSet>>,
    pub(super) newest: Arc<Newest>,
}

impl Rest {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.recall.is_enough()
    }

    /// Reads until all is known, the time is over or the store closes.
    pub(super) fn read(mut self, log: &Log, queue: &Queue, memory: &Memory) {
        while !self.recall.is_enough() {
            if queue.is_closing() {
                return;
            }
            if Instant::now() >= self.until {
                tracing::error!(
                    "the log could not be read in time: what the sender repeats from before this \
                     start may be delivered twice"
                );
                break;
            }
            for recalled in self.recall.step(log) {
                memory.newest.saw(&recalled.source, recalled.received_at);
                if recalled.durable {
                    memory.claims.recent(|recent| recent.insert_old(recalled.known));
                }
            }
        }
        self.tell.send_replace(true);
    }
}

/// Tells whether all is known of the past that has to be.
#[derive(Debug, Clone)]
pub(super) struct IsWhole {
    told: watch::Receiver<bool>,
    until: Instant,
}

impl IsWhole {
    /// Whether it is.
    #[cfg(test)]
    pub(super) fn is_told(&self) -> bool {
        *self.told.borrow()
    }

    /// Waits for that, but not without an end: in doubt it is rather delivered twice than never.
    pub(super) async fn wait(&self) {
        if *self.told.borrow() {
            return;
        }
        // An error: the time is over, or nobody reads any more.
        let mut told = self.told.clone();
        drop(timeout_at(self.until, told.wait_for(|whole| *whole)).await);
    }
}

fn load_recent(index: &mut Index, max: usize, now: Timestamp) -> RecentSet {
    let recent = std::cell::RefCell::new(RecentSet::new(max));
    let loaded = index.known_since(
        now.minus(KNOWN_KEPT),
        max,
        |count| recent.borrow_mut().reserve(count),
        |known| recent.borrow_mut().insert_old(known),
    );
    if let Err(error) = loaded {
        tracing::warn!(%error, "the index is not sound and is made again from the log");
        if let Err(error) = index.make_again() {
            // The indexer tries again.
            tracing::error!(%error, "the index can't be made again");
        }
    }
    recent.into_inner()
}
