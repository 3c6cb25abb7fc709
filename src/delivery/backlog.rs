//! Targets that pin more of the store than they may: the bytes of their oldest dead letters are given
//! up, then the oldest of what waits for them is ended, so that neither another target nor a sender
//! notices.
//!
//! Nobody who accepts or delivers waits for this: what is pinned is added up by the store beside its
//! commits, and looked at here every other second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::delivery::next_look;
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::route::RoutingTable;
use crate::domain::target::BacklogLimit;
use crate::store::{LaneCounts, Store};
use crate::telemetry::metrics::SharedMetrics;

/// What comes in meanwhile is what a target may pin beyond its limit.
const EVERY: Duration = Duration::from_secs(2);

/// So many are ended at once, so that nobody has to wait for it.
const STEP: usize = 200;

/// So many steps for one target, then the others have their turn.
const STEPS_MAX: usize = 25;

/// Holds targets to their `backlog_limit`.
pub(super) struct Backlogs<S> {
    pub(super) store: Arc<S>,
    pub(super) table: watch::Receiver<Arc<RoutingTable>>,
    pub(super) metrics: SharedMetrics,
    pub(super) stop: CancellationToken,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Known {
    /// What each target may pin, or might when it was last in the table: what waits for one that is
    /// gone pins the store too. Names are few: none is forgotten.
    limits: HashMap<Arc<str>, BacklogLimit>,
    /// The targets of which more waits than their limit, and how many dead letters that has made.
    over: HashMap<Box<str>, usize>,
    /// The targets that were over their limit with their dead letters, and how many of those keep no
    /// bytes because of that.
    spared: HashMap<Box<str>, usize>,
}

/// Whether a target has all that it pins beyond its limit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    More,
}

impl<S: Store> Backlogs<S> {
    /// Looks every other second, and when the table changes.
    pub(super) async fn run(mut self, first: Instant) {
        let mut known = Known::default();
        let mut next = first;
        while next_look(&self.stop, &mut self.table, next).await {
            next = match self.once(&mut known).await {
                Progress::Done => Instant::now() + EVERY,
                Progress::More => Instant::now(),
            };
        }
    }

    async fn once(&mut self, known: &mut Known) -> Progress {
        let table = Arc::clone(&self.table.borrow_and_update());
        for (name, target) in &table.targets {
            known.limits.insert(Arc::clone(name), target.backlog_limit);
        }
        let shares_of = self.store.health().shares_of;
        let lanes = self.store.lanes();
        let is_listed = |target: &str| lanes.iter().any(|lane| *lane.target == *target);
        for (target, ended) in known.over.extract_if(|target, _| !is_listed(target)) {
            tell_end(&target, ended);
        }
        for (target, spared) in known.spared.extract_if(|target, _| !is_listed(target)) {
            tell_end_of_sparing(&target, spared);
        }
        let mut progress = Progress::Done;
        for lane in lanes {
            let limit = known.limits.get(&*lane.target).copied().unwrap_or_default();
            // It is not known yet how large the store may be.
            let Some(limit_bytes) = limit.of(shares_of) else { continue };
            // A backlog that stays near its limit is over it again and again: that is one story.
            if lane.backlog_bytes < limit_bytes / 4 * 3
                && let Some(ended) = known.over.remove(&lane.target)
            {
                tell_end(&lane.target, ended);
            }
            let pinned = lane.backlog_bytes.saturating_add(lane.dead_letters_bytes);
            if pinned < limit_bytes / 4 * 3
                && let Some(spared) = known.spared.remove(&lane.target)
            {
                tell_end_of_sparing(&lane.target, spared);
            }
            if pinned > limit_bytes
                && self.relieve(&lane, limit_bytes, known).await == Progress::More
            {
                progress = Progress::More;
            }
        }
        progress
    }

    async fn relieve(&self, lane: &LaneCounts, limit_bytes: u64, known: &mut Known) -> Progress {
        let settled = self.metrics.target(&lane.target);
        let (mut spared, mut ended) = (0, 0);
        let mut progress = Progress::More;
        for _ in 0..STEPS_MAX {
            // Asked before each step: the limit may be another one by now.
            if self.stop.is_cancelled() || self.table.has_changed().unwrap_or(false) {
                break;
            }
            let step = self.store.relieve(&lane.target, limit_bytes, STEP).await;
            for _ in 0..step.ended {
                settled.settled(Settlement::DeadLetter(Cause::BacklogFull), Duration::ZERO);
            }
            (spared, ended) = (spared + step.spared, ended + step.ended);
            if step.spared + step.ended < STEP {
                progress = Progress::Done;
                break;
            }
            tokio::task::yield_now().await;
        }
        if spared > 0 && has_begun(&mut known.spared, &lane.target, spared) {
            tracing::error!(
                target_name = &*lane.target,
                dead_letters = spared,
                dead_letters_bytes = lane.dead_letters_bytes,
                backlog_bytes = lane.backlog_bytes,
                limit_bytes,
                "the target's dead letters, and what waits for it, take more than its backlog_limit: the \
                 bytes of its oldest dead letters are kept for --retain only, and more will be until \
                 they are redriven or discarded"
            );
        }
        if ended > 0 && has_begun(&mut known.over, &lane.target, ended) {
            tracing::error!(
                target_name = &*lane.target,
                dead_letters = ended,
                cause = Cause::BacklogFull.name(),
                backlog_bytes = lane.backlog_bytes,
                limit_bytes,
                "more waits for the target than its backlog_limit: the oldest deliveries are \
                 dead letters, and more will be until it takes what waits"
            );
        }
        progress
    }
}

/// Counts so many more of an episode; answers whether they are the first.
fn has_begun(episodes: &mut HashMap<Box<str>, usize>, target: &str, more: usize) -> bool {
    match episodes.get_mut(target) {
        Some(before) => {
            *before += more;
            false
        }
        None => episodes.insert(target.into(), more).is_none(),
    }
}

fn tell_end_of_sparing(target: &str, dead_letters: usize) {
    let target_name = target;
    tracing::info!(
        target_name,
        dead_letters,
        "what the target pins is well below its backlog_limit again: new dead letters keep their bytes"
    );
}

fn tell_end(target: &str, dead_letters: usize) {
    let target_name = target;
    tracing::info!(
        target_name,
        dead_letters,
        cause = Cause::BacklogFull.name(),
        "what waits for the target is well below its backlog_limit again"
    );
}
