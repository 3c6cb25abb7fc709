//! The store, put to the test.

use std::future::Future;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::domain::delivery::Settlement;
use crate::domain::outcome::{Attempt, Outcome};
use crate::domain::source::DuplicateWindows;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::{DuplicateKey, NewDelivery, Resource, Webhook, WebhookId, WebhookIds};
use crate::store::claims::Claim;
use crate::store::embedded::sim::SimDisk;
use crate::store::embedded::stepping::Stepper;
use crate::store::embedded::{EmbeddedStore, OpenError, Settings};
use crate::store::{CommitError, Lease, Pick, Store};

mod adding;
mod archive;
mod backlog;
mod cleaning;
mod closing;
mod contract;
mod damage;
mod decay;
mod erasing;
mod everywhere;
mod faults;
mod gaps;
mod harm;
mod limit;
mod model;
mod obstacles;
mod offline;
mod random;
mod recalling;
mod retention;
mod room;
mod scale;
mod sparing;
mod steps;
mod suspicion;
mod sweeping;
mod torn;
mod undeliverable;
mod versions;

pub(super) const START: u64 = 1_700_000_000_000;

/// A clock that stands until it is moved.
#[derive(Debug)]
pub(super) struct TestClock {
    now: AtomicU64,
    wall: AtomicU64,
    doubted: AtomicBool,
}

impl TestClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(START),
            wall: AtomicU64::new(START),
            doubted: AtomicBool::new(false),
        })
    }

    pub(super) fn advance(&self, by: Duration) {
        self.raise(by);
        self.wall.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// Moves the present of records, as a start does whose store has newer ones.
    pub(super) fn raise(&self, by: Duration) {
        self.now.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }

    /// The machine starts again, and its clock is behind that of all records.
    pub(super) fn fall_behind(&self) {
        self.now.store(START, Ordering::Relaxed);
        self.wall.store(START, Ordering::Relaxed);
    }

    pub(super) fn doubt(&self, doubted: bool) {
        self.doubted.store(doubted, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.wall.load(Ordering::Relaxed))
    }

    fn at_least(&self, newest: Timestamp) {
        self.now.fetch_max(newest.as_millis(), Ordering::Relaxed);
    }

    fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }
}

/// A directory, a disk, a clock: what outlives a store.
pub(super) struct World {
    _dir: TempDir,
    pub(super) disk: SimDisk,
    pub(super) clock: Arc<TestClock>,
    pub(super) ids: WebhookIds,
    pub(super) settings: Settings,
}

impl World {
    /// With its index in memory, if there is such a place: the machine's disk is slow, and nothing
    /// is proved by it.
    pub(super) fn new() -> Self {
        match tempfile::tempdir_in("/dev/shm") {
            Ok(dir) => Self::in_dir(dir),
            Err(_) => Self::on_disk(),
        }
    }

    /// With its index on the machine's disk.
    pub(super) fn on_disk() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap())
    }

    fn in_dir(dir: TempDir) -> Self {
        let disk = SimDisk::default();
        let mut settings = Settings::new(dir.path().join("data"));
        settings.disk = Arc::new(disk.clone());
        settings.allow_volatile = true;
        settings.segment_bytes = 64 << 10;
        Self { _dir: dir, disk, clock: TestClock::new(), ids: WebhookIds::default(), settings }
    }

    pub(super) fn try_open(&self) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::open(&self.settings, Arc::clone(&self.clock) as Arc<dyn Clock>)
    }

    pub(super) fn open(&self) -> EmbeddedStore {
        self.try_open().unwrap()
    }

    /// A store in which nothing goes on but by its stepper.
    pub(super) fn open_stepped(&self) -> (EmbeddedStore, Stepper) {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        EmbeddedStore::open_stepped(&self.settings, clock).unwrap()
    }

    pub(super) fn index_file(&self) -> std::path::PathBuf {
        self.settings.dir.join("index.sqlite")
    }

    pub(super) fn delete_index(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let path = self.settings.dir.join(format!("index.sqlite{suffix}"));
            if path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    pub(super) fn use_disk(&mut self, disk: SimDisk) {
        self.disk = disk.clone();
        self.settings.disk = Arc::new(disk);
    }

    pub(super) fn webhook(&self, body: &[u8], targets: &[&str]) -> Webhook {
        let now = self.clock.now();
        Webhook {
            id: self.ids.next(now, 7),
            received_at: now,
            source: "aryeo".into(),
            path: "/webhooks/aryeo".into(),
            peer: Some("192.0.2.1".into()),
            secret: "env:SECRET".into(),
            table: [9; 8],
            activity: Some("ORDER_CREATED".into()),
            activity_id: true,
            resource: Resource { object: Some("ORDER".into()), id: Some("o1".into()) },
            duplicate_key: key_of(body),
            headers: vec![header("content-type", "application/json")],
            body: Bytes::copy_from_slice(body),
            deliveries: targets
                .iter()
                .map(|target| NewDelivery {
                    target: (*target).into(),
                    headers: vec![header("x-route", target)],
                    routes: vec!["all".into()],
                })
                .collect(),
        }
    }

    /// Claims and commits; the answer and the webhook.
    pub(super) async fn commit<S: Store>(
        &self,
        store: &S,
        body: &[u8],
        targets: &[&str],
    ) -> (Webhook, Result<(), CommitError>) {
        let webhook = self.webhook(body, targets);
        let result = match store.claim(webhook.duplicate_key, DuplicateWindows::default()).await {
            Claim::First(claimed) => store.commit(webhook.clone(), claimed).await,
            Claim::Duplicate(id) => panic!("{id} is a duplicate"),
        };
        (webhook, result)
    }
}

/// A turn of each of a store's threads.
pub(super) fn turns(stepper: &mut Stepper) {
    stepper.commit();
    stepper.index();
}

/// What a future has come to, if it has.
pub(super) fn poll_now<F: Future + ?Sized>(future: &mut Pin<&mut F>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Everybody's turn, after a while.
pub(super) async fn pass(stepper: &mut Stepper, time: Duration) {
    tokio::time::advance(time).await;
    for _ in 0..4 {
        turns(stepper);
        tokio::task::yield_now().await;
    }
}

/// Lets the threads get on until something is done.
pub(super) async fn drive<T>(stepper: &mut Stepper, until: impl Future<Output = T>) -> T {
    let mut until = pin!(until);
    for _ in 0..10_000 {
        if let Some(done) = poll_now(&mut until) {
            return done;
        }
        pass(stepper, Duration::from_millis(1)).await;
    }
    panic!("it never comes");
}

pub(super) fn header(name: &'static str, value: &str) -> crate::domain::webhook::Header {
    (name.parse().unwrap(), value.parse().unwrap())
}

pub(super) fn key_of(body: &[u8]) -> DuplicateKey {
    DuplicateKey::new("aryeo", "/webhooks/aryeo", &Sha256::digest(body).into())
}

pub(super) fn attempt(at: Timestamp, outcome: Outcome) -> Attempt {
    Attempt {
        at,
        duration: Duration::from_millis(12),
        outcome,
        status: Some(500),
        excerpt: Bytes::from_static(b"no"),
    }
}

pub(super) async fn is_duplicate<S: Store>(store: &S, body: &[u8]) -> Option<WebhookId> {
    match store.claim(key_of(body), DuplicateWindows::default()).await {
        Claim::Duplicate(id) => Some(id),
        Claim::First(_) => None,
    }
}

/// What is due, or nothing if nothing comes in time.
pub(super) async fn lease<S: Store>(store: &S, target: &str, max: usize) -> Vec<Lease> {
    within(PATIENCE, store.lease(target, max, Pick::LongestDue)).await
}

/// What is due now; nothing after a moment in which nothing came.
pub(super) async fn lease_now<S: Store>(store: &S, target: &str, max: usize) -> Vec<Lease> {
    tokio::time::timeout(Duration::from_millis(200), store.lease(target, max, Pick::LongestDue))
        .await
        .unwrap_or_default()
}

/// Waits until something is so.
pub(super) async fn until(is_so: impl AsyncFn() -> bool) {
    let waits = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(PATIENCE, waits).await;
}

/// For what must come: far more than it takes on a machine that has other things to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.expect("it takes too long")
}

/// How many deliveries to a target are pending, when all is in the index.
pub(super) async fn pending(store: &EmbeddedStore, target: &str) -> u64 {
    store.flush().await;
    store.lanes().into_iter().find(|lane| *lane.target == *target).map_or(0, |lane| lane.pending)
}

/// Leases everything that is pending to a target, all of which must be due.
pub(super) async fn lease_all(store: &EmbeddedStore, target: &str) -> Vec<Lease> {
    let count = pending(store, target).await;
    let mut leases = Vec::new();
    while (leases.len() as u64) < count {
        leases.extend(lease(store, target, 64).await);
    }
    leases
}

/// Delivers everything that is pending to a target, all of which must be due; bodies in the order
/// of their leases.
pub(super) async fn drain(store: &EmbeddedStore, target: &str) -> Vec<Bytes> {
    let mut bodies = Vec::new();
    while pending(store, target).await > 0 {
        for lease in lease(store, target, 64).await {
            bodies.push(lease.delivery.webhook.body.clone());
            store.settle(lease, None, Settlement::Delivered);
        }
    }
    bodies
}

pub(super) fn segments(world: &World) -> Vec<std::path::PathBuf> {
    let is_segment = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "log");
    world.disk.files().iter().filter(is_segment).cloned().collect()
}

pub(super) fn exists(path: &Path) -> bool {
    path.exists()
}
