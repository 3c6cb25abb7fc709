//! How late a retry is handed out that is scheduled among 1,000,000 others.
//!
//! All are leased and settled as retries. One in fifty is due within a window that begins when all is
//! scheduled, at times drawn at random; the others are due hours later. In the first window nothing else
//! happens; those that it hands out are scheduled into the second one, in which as many webhooks a
//! second are accepted for another target, and delivered, as is asked for.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aryeo_relay::domain::delivery::Settlement;
use aryeo_relay::domain::time::{Clock as _, Timestamp};
use aryeo_relay::domain::webhook::WebhookIds;
use aryeo_relay::store::embedded::{EmbeddedStore, Settings};
use aryeo_relay::store::{Lease, Pick, Store as _};
use bytes::Bytes;
use tokio::time::{Instant, interval};

use crate::{WallClock, commit_all, commit_one, resident_kb, runtime, webhook};

/// One of so many is due within the window.
const ONE_OF: u64 = 50;

/// What scheduling the last ones may take before their window begins.
const LEAD: Duration = Duration::from_secs(5);

const HOUR_MS: u64 = 3_600_000;

/// Numbers that look drawn at random, the same each time.
fn drawn(n: u64, below: u64) -> u64 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % below
}

/// In an hour to three.
fn much_later(n: u64) -> Settlement {
    Settlement::Retry {
        at: WallClock.now().plus(Duration::from_millis(HOUR_MS + drawn(n, 2 * HOUR_MS))),
    }
}

/// Leases all, and schedules all but those that the window is for.
async fn schedule_others(store: &EmbeddedStore, count: u64) -> Vec<Lease> {
    let (mut kept, mut n) = (Vec::new(), 0);
    while n < count {
        for lease in store.lease("crm", 64, Pick::LongestDue).await {
            n += 1;
            if n % ONE_OF == 0 {
                kept.push(lease);
            } else {
                store.settle(lease, None, much_later(n));
            }
        }
    }
    kept
}

/// Leases within the window and past its end; answers how late each was, and the leases.
async fn window(
    store: &EmbeddedStore,
    begins: Timestamp,
    wanted: &HashSet<u64>,
    mut next: impl FnMut(u64) -> Settlement,
) -> Vec<u64> {
    let (mut seen, mut late) = (HashSet::new(), Vec::new());
    while seen.len() < wanted.len() {
        for lease in store.lease("crm", 16, Pick::LongestDue).await {
            let now = WallClock.now();
            let due_at = lease.delivery.due_at;
            assert!(due_at >= begins && due_at <= now, "{due_at:?} is leased too early");
            let key = lease.delivery.webhook.id.key();
            assert!(wanted.contains(&key), "this one is due hours later");
            assert!(seen.insert(key), "leased twice");
            late.push(now.since(due_at).as_millis().try_into().expect("some days at most"));
            store.settle(lease, None, next(seen.len() as u64));
        }
    }
    late.sort_unstable();
    late
}

fn told(name: &str, late: &[u64]) {
    let at = |part: usize| late.get(late.len() * part / 1000).copied().unwrap_or_default();
    println!(
        "{name}: {} handed out; late by p50 {} ms, p90 {} ms, p99 {} ms, p99.9 {} ms, at most {} ms; {}",
        late.len(),
        at(500),
        at(900),
        at(990),
        at(999),
        late.last().copied().unwrap_or_default(),
        resident_kb(),
    );
}

/// Accepts and delivers `rate` webhooks a second for another target until it is dropped.
async fn load(store: Arc<EmbeddedStore>, ids: Arc<WebhookIds>, first: u64, rate: u64) {
    const TICK: Duration = Duration::from_millis(10);
    let body = Bytes::from(vec![b'y'; 2048]);
    let (mut ticks, mut n) = (interval(TICK), first);
    loop {
        ticks.tick().await;
        for _ in 0..rate / 100 {
            n += 1;
            let mut webhook = webhook(ids.next(WallClock.now(), 1), &body, n);
            for delivery in &mut webhook.deliveries {
                delivery.target = "billing".into();
            }
            let store = Arc::clone(&store);
            tokio::spawn(async move { commit_one(&store, webhook).await });
        }
    }
}

async fn deliver(store: Arc<EmbeddedStore>) {
    loop {
        for lease in store.lease("billing", 16, Pick::LongestDue).await {
            store.settle(lease, None, Settlement::Delivered);
        }
    }
}

fn pending(store: &EmbeddedStore, target: &str) -> u64 {
    store.lanes().iter().find(|lane| *lane.target == *target).map_or(0, |lane| lane.pending)
}

/// Schedules `count`, and says how late those are that are due within `seconds`.
pub(crate) fn run(dir: &Path, count: u64, seconds: u64, rate: u64) {
    let settings = Settings::new(dir.to_owned());
    let store = Arc::new(EmbeddedStore::open(&settings, Arc::new(WallClock)).expect("a store"));
    let ids = Arc::new(WebhookIds::after(store.ids_after()));
    runtime().block_on(async {
        let began = Instant::now();
        commit_all(&store, &ids, &Bytes::from(vec![b'x'; 200]), count).await;
        let kept = schedule_others(&store, count).await;
        println!("{count} accepted and leased in {:.1?}; {}", began.elapsed(), resident_kb());
        let wanted: HashSet<u64> =
            kept.iter().map(|lease| lease.delivery.webhook.id.key()).collect();
        let ms = seconds * 1000;
        let begins = WallClock.now().plus(LEAD);
        let at = |begins: Timestamp, n| Settlement::Retry {
            at: begins.plus(Duration::from_millis(drawn(n, ms))),
        };
        for (n, lease) in (0..).zip(kept) {
            store.settle(lease, None, at(begins, n));
        }
        assert_eq!(pending(&store, "crm"), count, "all are scheduled");
        let second = begins.plus(Duration::from_millis(ms) + LEAD);
        let late = window(&store, begins, &wanted, |n| at(second, n)).await;
        told("nothing else to do", &late);
        let load = tokio::spawn(load(Arc::clone(&store), ids, count, rate));
        let deliver = tokio::spawn(deliver(Arc::clone(&store)));
        let late = window(&store, second, &wanted, |_| Settlement::Delivered).await;
        told(&format!("{rate}/s for another target"), &late);
        load.abort();
        assert_eq!(pending(&store, "crm"), count - wanted.len() as u64, "the others wait");
        while pending(&store, "billing") > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        deliver.abort();
        assert_eq!(store.health().sweep_findings, 0, "the sweep has found something");
        store.close().await;
    });
}
