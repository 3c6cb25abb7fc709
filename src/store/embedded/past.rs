//! What a start has to know of the past before the first webhook is accepted.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::time::Timestamp;
use crate::store::embedded::Settings;
use crate::store::embedded::index::Index;
use crate::store::embedded::log::Log;
use crate::store::embedded::newest::Newest;
use crate::store::embedded::recent::RecentSet;

// Duplicates are looked for in the log this long, where the index does not have them.
const RECALL_WAIT: Duration = Duration::from_millis(500);
// Duplicate keys are kept this long in the index; windows are hours.
const KNOWN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What has to be known before the first webhook is accepted.
#[derive(Debug)]
pub(super) struct Past {
    /// To know duplicates by.
    pub(super) recent: RecentSet,
    /// When the newest webhook was made, as far as is known.
    pub(super) newest: Timestamp,
    /// No webhook was made later. Where only the newest part of the log was read there may be none
    /// in it; but those before it were made before the next segment was. The clock is not held
    /// against this: a segment is made at every start, also by a clock that is wrong.
    pub(super) ids_after: Timestamp,
    /// The newest webhook of each source.
    pub(super) by_source: Newest,
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
    ) -> Self {
        let mut recent = load_recent(index, settings.duplicates_max, now);
        // An index that does not answer is made again; the log has all of it.
        let by_source = Newest::default();
        for (source, at) in index.newest_by_source().unwrap_or_default() {
            by_source.saw(&source, at);
        }
        let mut key = index.newest_key().ok().flatten().unwrap_or(0);
        log.recall(index.applied(), settings.duplicates_max, begun + RECALL_WAIT, |recalled| {
            key = key.max(recalled.known.id.key());
            by_source.saw(&recalled.source, recalled.received_at);
            if recalled.durable {
                recent.insert_old(recalled.known);
            }
        });
        let newest = Timestamp::from_millis(key >> 12);
        let made = log.all().into_iter().map(|segment| segment.header.created_at).max();
        Self { recent, newest, ids_after: newest.max(made.unwrap_or_default()), by_source }
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
