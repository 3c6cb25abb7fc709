//! Accepting, settling and retention at the same time, for as long as is asked for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aryeo_relay::domain::delivery::Settlement;
use aryeo_relay::domain::time::Clock as _;
use aryeo_relay::domain::webhook::WebhookIds;
use aryeo_relay::store::embedded::{EmbeddedStore, Settings};
use aryeo_relay::store::{Pick, Store as _};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::{PRODUCERS, WallClock, commit_one, cpu, resident_kb, runtime, webhook};

/// Settled webhooks are kept for so long: the first go within the first minute.
const RETAIN: Duration = Duration::from_secs(20);

/// What is told is of so long.
const STEP: Duration = Duration::from_secs(20);

/// Which numbers were delivered.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Seen {
    fn insert(&mut self, number: u64) -> bool {
        let word = usize::try_from(number / 64).expect("fewer than memory has bits");
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let Some(word) = self.0.get_mut(word) else { return false };
        let bit = 1 << (number % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[derive(Default)]
struct Counts {
    next: AtomicU64,
    accepted: AtomicU64,
    delivered: AtomicU64,
    stop: AtomicBool,
}

async fn produce(
    store: Arc<EmbeddedStore>,
    ids: Arc<WebhookIds>,
    body: Bytes,
    counts: Arc<Counts>,
    every: Duration,
) {
    let mut next = Instant::now();
    while !counts.stop.load(Ordering::Relaxed) {
        next += every;
        sleep_until(next).await;
        let n = counts.next.fetch_add(1, Ordering::Relaxed);
        let mut webhook = webhook(ids.next(WallClock.now(), 1), &body, n + 1);
        // By which it is known again when it is delivered.
        webhook.peer = Some(n.to_string().into());
        commit_one(&store, webhook).await;
        counts.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

async fn consume(store: Arc<EmbeddedStore>, counts: Arc<Counts>) {
    let mut seen = Seen::default();
    loop {
        for lease in store.lease("crm", 64, Pick::LongestDue).await {
            let number = lease.delivery.webhook.peer.as_deref().and_then(|n| n.parse().ok());
            assert!(seen.insert(number.expect("its number")), "delivered twice");
            store.settle(lease, None, Settlement::Delivered);
            counts.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bytes of a file, 0 if it is not there.
fn bytes_of(file: &Path) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len())
}

fn segments(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("segments")).map_or(0, Iterator::count)
}

async fn tell(store: &EmbeddedStore, dir: &Path, counts: &Counts, seconds: u64) {
    let (began, mut cpu_before, mut before) = (Instant::now(), cpu(), 0);
    let mut step = Duration::ZERO;
    while step < Duration::from_secs(seconds) {
        step += STEP;
        sleep_until(began + STEP * u32::try_from(step.as_secs() / STEP.as_secs()).unwrap_or(1))
            .await;
        let (accepted, used) = (counts.accepted.load(Ordering::Relaxed), cpu());
        let pending: u64 = store.lanes().iter().map(|lane| lane.pending).sum();
        println!(
            "{:>4} s  {:>6}/s  {:5.1} us CPU each; pending {pending}; {} segments, {} MB, index {} MB \
             + {} MB; {}",
            step.as_secs(),
            (accepted - before) / STEP.as_secs(),
            (used - cpu_before).as_secs_f64() * 1e6 / (accepted - before).max(1) as f64,
            segments(dir),
            store.sizes().bytes >> 20,
            bytes_of(&dir.join("index.sqlite")) >> 20,
            bytes_of(&dir.join("index.sqlite-wal")) >> 20,
            resident_kb(),
        );
        (cpu_before, before) = (used, accepted);
    }
}

/// Accepts and delivers for so many seconds, so many a second; 0: as many as are taken.
pub(crate) fn run(dir: &Path, seconds: u64, rate: u32) {
    let producers = u32::try_from(PRODUCERS).expect("a few");
    let every = Duration::from_secs(1).checked_div(rate).unwrap_or_default() * producers;
    let settings = Settings { retain: RETAIN, ..Settings::new(dir.to_owned()) };
    let store = Arc::new(EmbeddedStore::open(&settings, Arc::new(WallClock)).expect("a store"));
    let ids = Arc::new(WebhookIds::after(store.ids_after()));
    let body = Bytes::from(vec![b'x'; 2048]);
    let counts = Arc::new(Counts::default());
    runtime().block_on(async {
        let consumer = tokio::spawn(consume(Arc::clone(&store), Arc::clone(&counts)));
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let (store, ids) = (Arc::clone(&store), Arc::clone(&ids));
                tokio::spawn(produce(store, ids, body.clone(), Arc::clone(&counts), every))
            })
            .collect();
        tell(&store, dir, &counts, seconds).await;
        counts.stop.store(true, Ordering::Relaxed);
        for producer in producers {
            producer.await.expect("a producer");
        }
        let accepted = counts.accepted.load(Ordering::Relaxed);
        while counts.delivered.load(Ordering::Relaxed) < accepted {
            assert!(!consumer.is_finished(), "the consumer has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        consumer.abort();
        assert_eq!(counts.delivered.load(Ordering::Relaxed), accepted, "each is delivered once");
        assert_eq!(store.health().sweep_findings, 0, "the sweep has found something");
        println!("{accepted} accepted, each delivered once");
        store.close().await;
    });
}
