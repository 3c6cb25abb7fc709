//! Deliveries whose target is gone from the table: counted, warned about, and ended in the end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::delivery::next_look;
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::retry::RetrySchedule;
use crate::domain::route::RoutingTable;
use crate::domain::time::Clock;
use crate::store::Store;
use crate::telemetry::metrics::SharedMetrics;

const EVERY: Duration = Duration::from_secs(60);

/// So many are ended at once, so that nobody has to wait for it.
const STEP: usize = 100;

/// Looks after deliveries to targets that are not in the table.
pub(super) struct Sweep<S> {
    pub(super) store: Arc<S>,
    pub(super) table: watch::Receiver<Arc<RoutingTable>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: SharedMetrics,
    pub(super) stop: CancellationToken,
}

/// What is remembered from one sweep to the next.
#[derive(Default)]
struct Known {
    warned: HashSet<Box<str>>,
    /// How long each target wanted its deliveries to be kept when it was last in the table. After a
    /// start nobody knows it of those that were gone before. Names are few: none is forgotten.
    keep_for: HashMap<Arc<str>, Duration>,
}

impl<S: Store> Sweep<S> {
    /// Sweeps from `first` on, every minute and when the table changes.
    pub(super) async fn run(mut self, first: Instant) {
        let mut known = Known::default();
        let mut next = first;
        while next_look(&self.stop, &mut self.table, next).await {
            next = Instant::now() + EVERY;
            self.once(&mut known).await;
        }
    }

    async fn once(&mut self, known: &mut Known) {
        let table = Arc::clone(&self.table.borrow_and_update());
        let mut lanes = self.store.lanes();
        lanes.retain(|lane| lane.pending > 0 && !table.targets.contains_key(&*lane.target));
        known.warned.retain(|target| lanes.iter().any(|lane| lane.target == *target));
        for (name, target) in &table.targets {
            known.keep_for.insert(Arc::clone(name), target.retry.keep_for);
        }
        for lane in lanes {
            if known.warned.insert(lane.target.clone()) {
                tracing::warn!(
                    target_name = &*lane.target,
                    pending = lane.pending,
                    "the routing table has no such target: its deliveries wait until it is back"
                );
            }
            let keep_for = known.keep_for.get(&*lane.target).copied();
            let keep_for = keep_for.unwrap_or(RetrySchedule::default().keep_for);
            let ended = self.expire(&lane.target, keep_for).await;
            if ended > 0 {
                tracing::error!(
                    target_name = &*lane.target,
                    dead_letters = ended,
                    cause = Cause::TargetRemoved.name(),
                    "the target did not come back: its deliveries are dead letters now"
                );
            }
        }
    }

    async fn expire(&self, target: &str, keep_for: Duration) -> usize {
        let settled = self.metrics.target(target);
        let mut ended = 0;
        // Asked before each step: the target may be back.
        while !self.stop.is_cancelled() && !self.table.borrow().targets.contains_key(target) {
            let Some(certain) = self.clock.certain() else { break };
            let before = certain.minus(keep_for);
            let step = self.store.expire(target, before, STEP, Cause::TargetRemoved).await;
            for _ in 0..step {
                settled.settled(Settlement::DeadLetter(Cause::TargetRemoved), Duration::ZERO);
            }
            ended += step;
            if step < STEP {
                break;
            }
            tokio::task::yield_now().await;
        }
        ended
    }
}
