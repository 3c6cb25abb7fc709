//! A store in memory, for the tests of this module.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::domain::delivery::{Cause, Settlement};
use crate::domain::outcome::Attempt;
use crate::domain::source::DuplicateWindows;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::{DuplicateKey, Webhook};
use crate::store::claims::{Claim, Claimed};
use crate::store::marks::{MarkError, MarkKeeper, Marks};
use crate::store::{
    CommitError, Delivery, Health, LaneCounts, Lease, LeaseOwner, Pick, Pulse, Relieved, Sizes,
    Store,
};

pub(super) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// What one delivery pins.
pub(super) const PINNED_BY_ONE: u64 = 1 << 20;

/// What the store may take.
pub(super) const STORE_BYTES_MAX: u64 = 1 << 60;

fn bytes(lane: &LaneCounts) -> u64 {
    lane.backlog_bytes + lane.dead_letters_bytes
}

/// Time that follows tokio's.
pub(super) struct FakeClock {
    pub(super) began: Instant,
    /// How far records are ahead of the wall clock.
    pub(super) ahead: Mutex<Duration>,
    pub(super) doubted: AtomicBool,
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        START.plus(self.began.elapsed())
    }

    fn wall(&self) -> Timestamp {
        self.now().minus(*self.ahead.lock().unwrap())
    }

    fn at_least(&self, _: Timestamp) {}

    fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }
}

/// A delivery that was settled.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub(super) delivery: Delivery,
    pub(super) attempt: Option<Attempt>,
    pub(super) settlement: Settlement,
}

type Key = (Arc<str>, Timestamp, u64);

#[derive(Default)]
struct Held {
    due: BTreeMap<Key, Delivery>,
    settled: Vec<Settled>,
    leased: usize,
    count: u64,
    // How many dead letters of each target are kept.
    kept: BTreeMap<Box<str>, usize>,
}

pub(super) struct Inner {
    pub(super) clock: Arc<FakeClock>,
    held: Mutex<Held>,
    more: Notify,
    pub(super) marks: watch::Sender<Arc<Marks>>,
}

impl Inner {
    /// Holds nothing.
    pub(super) fn new(clock: &Arc<FakeClock>) -> Self {
        Self {
            clock: Arc::clone(clock),
            held: Mutex::default(),
            more: Notify::new(),
            marks: watch::Sender::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    pub(super) fn add(&self, delivery: Delivery) {
        let mut held = self.held();
        held.count += 1;
        let key = (Arc::clone(&delivery.target), delivery.due_at, held.count);
        held.due.insert(key, delivery);
        drop(held);
        self.more.notify_waiters();
    }
}

impl LeaseOwner for Inner {
    fn lapse(&self, delivery: &Delivery) {
        self.held().leased -= 1;
        self.add(delivery.clone());
    }
}

/// A store that forgets when it is dropped.
pub(super) struct FakeStore(pub(super) Arc<Inner>);

impl FakeStore {
    /// So many more dead letters of a target are kept; answers how many.
    pub(super) fn keep_dead(&self, target: &str, more: usize) -> usize {
        let mut held = self.0.held();
        let kept = held.kept.entry(target.into()).or_default();
        *kept += more;
        *kept
    }

    pub(super) fn pending(&self) -> usize {
        let held = self.0.held();
        held.due.len() + held.leased
    }

    pub(super) fn leased(&self) -> usize {
        self.0.held().leased
    }

    pub(super) fn settled(&self) -> Vec<Settled> {
        self.0.held().settled.clone()
    }

    pub(super) fn settlements(&self) -> Vec<Settlement> {
        self.settled().iter().map(|settled| settled.settlement).collect()
    }
}

impl Store for FakeStore {
    async fn claim(&self, _: DuplicateKey, _: DuplicateWindows) -> Claim {
        pending().await
    }

    async fn commit(&self, _: Webhook, _: Claimed) -> Result<(), CommitError> {
        Err(CommitError::Closed)
    }

    async fn lease(&self, target: &str, max: usize, pick: Pick) -> Vec<Lease> {
        assert!(max > 0);
        assert!(
            *target != *"breaks" || self.0.clock.began.elapsed() > Duration::ZERO,
            "as its name says"
        );
        loop {
            let more = self.0.more.notified();
            let first = {
                let mut held = self.0.held();
                let now = self.0.clock.now();
                let mine: Vec<_> =
                    held.due.keys().filter(|key| *key.0 == *target).take(max).cloned().collect();
                let first = mine.first().map(|key| key.1);
                let mut due: Vec<_> = mine.into_iter().filter(|key| key.1 <= now).collect();
                if pick == Pick::UntriedFirst && !due.is_empty() {
                    let untried = |(key, delivery): (&Key, &Delivery)| {
                        (key.0 == due[0].0 && key.1 <= now && delivery.attempts == 0)
                            .then(|| key.clone())
                    };
                    due[0] = held.due.iter().find_map(untried).unwrap_or(due[0].clone());
                    due.truncate(1);
                }
                if !due.is_empty() {
                    held.leased += due.len();
                    let take = |key| held.due.remove(&key).unwrap();
                    let owner = || Arc::clone(&self.0) as Arc<dyn LeaseOwner>;
                    let taken: Vec<_> = due.into_iter().map(take).collect();
                    return taken.into_iter().map(|d| Lease::new(d, owner())).collect();
                }
                first.map(|first| Instant::now() + first.since(now))
            };
            tokio::select! {
                () = more => {}
                () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {}
            }
        }
    }

    fn settle(&self, lease: Lease, attempt: Option<Attempt>, settlement: Settlement) {
        let mut delivery = lease.into_delivery();
        let settled = Settled { delivery: delivery.clone(), attempt, settlement };
        delivery.attempts += u32::from(settled.attempt.is_some());
        let mut held = self.0.held();
        held.leased -= 1;
        held.settled.push(settled);
        drop(held);
        if let Settlement::Retry { at } = settlement {
            self.0.add(Delivery { due_at: at, ..delivery });
        }
    }

    async fn expire(&self, target: &str, before: Timestamp, max: usize, cause: Cause) -> usize {
        let mut held = self.0.held();
        let old = |delivery: &Delivery| *delivery.target == *target && delivery.started_at < before;
        let keys: Vec<_> =
            held.due.iter().filter(|(_, d)| old(d)).map(|(key, _)| key.clone()).take(max).collect();
        for key in &keys {
            let delivery = held.due.remove(key).unwrap();
            let settlement = Settlement::DeadLetter(cause);
            held.settled.push(Settled { delivery, attempt: None, settlement });
        }
        keys.len()
    }

    async fn relieve(&self, target: &str, bytes_max: u64, max: usize) -> Relieved {
        let pinned: u64 = self.lanes().iter().filter(|l| *l.target == *target).map(bytes).sum();
        let over = pinned.saturating_sub(bytes_max).div_ceil(PINNED_BY_ONE);
        let some = usize::try_from(over).unwrap().min(max);
        let spared = self.0.held().kept.get_mut(target).map_or(0, |kept| {
            let spared = some.min(*kept);
            *kept -= spared;
            spared
        });
        let all = Timestamp::from_millis(u64::MAX);
        let ended = self.expire(target, all, some - spared, Cause::BacklogFull).await;
        Relieved { spared, ended }
    }

    fn lanes(&self) -> Vec<LaneCounts> {
        let held = self.0.held();
        let kept = held.kept.iter().map(|(target, kept)| (target.clone(), (0, *kept as u64)));
        let mut counts: BTreeMap<Box<str>, (u64, u64)> = kept.collect();
        for key in held.due.keys() {
            counts.entry((*key.0).into()).or_default().0 += 1;
        }
        let lane = |(target, (pending, kept))| LaneCounts {
            target,
            pending,
            backlog_bytes: pending * PINNED_BY_ONE,
            dead_letters_bytes: kept * PINNED_BY_ONE,
            ..LaneCounts::default()
        };
        counts.into_iter().map(lane).collect()
    }

    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    fn health(&self) -> Health {
        Health {
            bytes_max: Some(STORE_BYTES_MAX),
            shares_of: Some(STORE_BYTES_MAX),
            ..Health::default()
        }
    }

    fn sizes(&self) -> Sizes {
        Sizes::default()
    }

    async fn close(&self) {}
}

impl MarkKeeper for FakeStore {
    fn marks(&self) -> watch::Receiver<Arc<Marks>> {
        self.0.marks.subscribe()
    }

    async fn mark(
        &self,
        change: impl FnOnce(&mut Marks) + Send + 'static,
    ) -> Result<(), MarkError> {
        self.0.marks.send_modify(|marks| change(Arc::make_mut(marks)));
        Ok(())
    }
}
