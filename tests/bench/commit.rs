//! What a commit costs: CPU per webhook against one raw file, 64 producers. Both make the same
//! webhooks; one appends their bodies to a file and syncs it, the other commits them, delivers them
//! and settles that. Both take turns, so that what else the machine does meets both; the median of
//! the rounds' ratios is the figure.
//!
//! `cargo bench --bench commit --features test-util`; with `-- rounds 15` more of them; with
//! `-- fill DIR 1000000` and then `-- start DIR` how long a start takes with so many pending, and how
//! much memory; with `-- pages DIR 200000 2048` how fast stored webhooks are listed; with `-- late DIR
//! 1000000 60 1000` how late retries are handed out (`late.rs`); with `-- mix DIR 600 10000` how accepting,
//! settling and retention go together (`mix.rs`). DIR is a new directory on a real disk.
#![expect(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark reports, and one that panics says why"
)]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use aryeo_relay::domain::delivery::Settlement;
use aryeo_relay::domain::source::DuplicateWindows;
use aryeo_relay::domain::time::{Clock, Timestamp};
use aryeo_relay::domain::webhook::{
    DuplicateKey, NewDelivery, Resource, Webhook, WebhookId, WebhookIds,
};
use aryeo_relay::store::archive::Archive;
use aryeo_relay::store::claims::Claim;
use aryeo_relay::store::embedded::{EmbeddedStore, Settings};
use aryeo_relay::store::listing::Place;
use aryeo_relay::store::{Pick, Store};
use bytes::Bytes;
use rustix::time::ClockId;
use tokio::time::Instant;

mod late;
mod mix;

const PRODUCERS: usize = 64;

struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(ClockId::Realtime);
        let ms = now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000;
        Timestamp::from_millis(ms)
    }

    fn wall(&self) -> Timestamp {
        self.now()
    }

    fn at_least(&self, _newest: Timestamp) {}

    fn is_doubted(&self) -> bool {
        false
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn webhook(id: WebhookId, body: &Bytes, n: u64) -> Webhook {
    let mut digest = [0; 32];
    for (byte, from) in
        digest.iter_mut().zip(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().iter().cycle())
    {
        *byte = *from;
    }
    let mut key = [0; 16];
    for (byte, from) in key.iter_mut().zip(digest) {
        *byte = from;
    }
    Webhook {
        id,
        received_at: WallClock.now(),
        source: "aryeo".into(),
        path: "/webhooks/aryeo".into(),
        peer: Some("192.0.2.1".into()),
        secret: "env:ARYEO_WEBHOOK_SECRET".into(),
        table: [9; 8],
        activity: Some("LISTING_DELIVERED".into()),
        activity_id: true,
        resource: Resource {
            object: Some("LISTING".into()),
            id: Some("018f2c5e-7d7e-7d6a-9b5a-1f6c2f6f7a11".into()),
        },
        duplicate_key: DuplicateKey::from_bytes(key),
        headers: vec![
            (http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json")),
            (http::header::USER_AGENT, http::HeaderValue::from_static("GuzzleHttp/7")),
        ],
        body: body.clone(),
        deliveries: vec![NewDelivery {
            target: "crm".into(),
            headers: Vec::new(),
            routes: vec!["orders".into()],
        }],
    }
}

type RawWaiting = (Webhook, tokio::sync::oneshot::Sender<()>);

#[derive(Default)]
struct Raw {
    waiting: Mutex<(Vec<RawWaiting>, bool)>,
    wake: Condvar,
}

fn raw_writer(raw: &Raw, path: &Path) {
    let mut file = File::create(path).expect("a file");
    loop {
        let mut state = raw.waiting.lock().expect("a lock");
        while state.0.is_empty() {
            if state.1 {
                return;
            }
            state = raw.wake.wait(state).expect("a lock");
        }
        let batch = std::mem::take(&mut state.0);
        drop(state);
        let head = [0; 300];
        let mut slices: Vec<_> =
            batch.iter().flat_map(|(w, _)| [IoSlice::new(&w.body), IoSlice::new(&head)]).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let written = file.write_vectored(rest).expect("a write");
            IoSlice::advance_slices(&mut rest, written);
        }
        file.sync_data().expect("a sync");
        for (_, reply) in batch {
            reply.send(()).unwrap_or_default();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("one")
}

fn report(name: &str, bytes: usize, count: u64, cpu: Duration, wall: Duration) -> f64 {
    let per = cpu.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let rate = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / wall.as_secs_f64();
    println!("{name:<8} {bytes:>6} B  {per:6.1} us CPU/webhook  {rate:8.0}/s");
    per
}

fn bench_raw(dir: &Path, body: &Bytes, count: u64) -> f64 {
    let raw = Arc::new(Raw::default());
    let path = dir.join("raw");
    let writer = {
        let raw = Arc::clone(&raw);
        std::thread::spawn(move || raw_writer(&raw, &path))
    };
    let ids = Arc::new(WebhookIds::default());
    let runtime = runtime();
    let (cpu_before, began) = (cpu(), Instant::now());
    runtime.block_on(async {
        let tasks: Vec<_> = (0..PRODUCERS as u64)
            .map(|producer| {
                let (raw, ids, body) = (Arc::clone(&raw), Arc::clone(&ids), body.clone());
                tokio::spawn(async move {
                    for n in 0..count / PRODUCERS as u64 {
                        let id = ids.next(WallClock.now(), 1);
                        let webhook = webhook(id, &body, n * PRODUCERS as u64 + producer + 1);
                        let (reply, answer) = tokio::sync::oneshot::channel();
                        raw.waiting.lock().expect("a lock").0.push((webhook, reply));
                        raw.wake.notify_one();
                        answer.await.expect("an answer");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
    });
    raw.waiting.lock().expect("a lock").1 = true;
    raw.wake.notify_one();
    writer.join().expect("a thread");
    let per = report("raw", body.len(), count, cpu() - cpu_before, began.elapsed());
    std::fs::remove_file(dir.join("raw")).expect("removed");
    per
}

fn bench_store(dir: &Path, body: &Bytes, count: u64) -> f64 {
    let settings = Settings::new(dir.join("store"));
    let store = Arc::new(EmbeddedStore::open(&settings, Arc::new(WallClock)).expect("a store"));
    let ids = Arc::new(WebhookIds::default());
    let runtime = runtime();
    let (cpu_before, began) = (cpu(), Instant::now());
    runtime.block_on(async {
        let consumer = {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut done = 0;
                while done < count / PRODUCERS as u64 * PRODUCERS as u64 {
                    for lease in store.lease("crm", 64, Pick::LongestDue).await {
                        store.settle(lease, None, Settlement::Delivered);
                        done += 1;
                    }
                }
            })
        };
        let tasks: Vec<_> = (0..PRODUCERS as u64)
            .map(|producer| {
                let (store, ids, body) = (Arc::clone(&store), Arc::clone(&ids), body.clone());
                tokio::spawn(async move {
                    for n in 0..count / PRODUCERS as u64 {
                        let id = ids.next(WallClock.now(), 1);
                        let webhook = webhook(id, &body, n * PRODUCERS as u64 + producer + 1);
                        let windows = DuplicateWindows::default();
                        if let Claim::First(claimed) =
                            store.claim(webhook.duplicate_key, windows).await
                        {
                            store.commit(webhook, claimed).await.expect("a commit");
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
        consumer.await.expect("a task");
        store.close().await;
    });
    let per = report("commit", body.len(), count, cpu() - cpu_before, began.elapsed());
    drop(store);
    std::fs::remove_dir_all(dir.join("store")).expect("removed");
    per
}

/// Commits one that nobody has committed yet.
async fn commit_one(store: &EmbeddedStore, webhook: Webhook) {
    let claim = store.claim(webhook.duplicate_key, DuplicateWindows::default()).await;
    let Claim::First(claimed) = claim else { panic!("it is no duplicate") };
    store.commit(webhook, claimed).await.expect("a commit");
}

fn resident_kb() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .collect::<Vec<_>>()
        .join(" ")
}

async fn commit_all(store: &EmbeddedStore, ids: &WebhookIds, body: &Bytes, count: u64) {
    for from in (0..count).step_by(2000) {
        let mut waiting = Vec::new();
        for n in from..count.min(from + 2000) {
            let webhook = webhook(ids.next(WallClock.now(), 1), body, n + 1);
            let windows = DuplicateWindows::default();
            if let Claim::First(claimed) = store.claim(webhook.duplicate_key, windows).await {
                waiting.push(store.commit(webhook, claimed));
            }
        }
        for commit in waiting {
            commit.await.expect("a commit");
        }
    }
}

fn fill(dir: &Path, count: u64) {
    let settings = Settings::new(dir.to_owned());
    let store = EmbeddedStore::open(&settings, Arc::new(WallClock)).expect("a store");
    let ids = WebhookIds::after(store.ids_after());
    let body = Bytes::from(vec![b'x'; 200]);
    runtime().block_on(commit_all(&store, &ids, &body, count));
    // As after a crash: nothing is closed in order, and a tail is not in the index.
    println!("filled {count}");
}

fn start(dir: &Path) {
    println!("before: {}", resident_kb());
    let began = Instant::now();
    let settings = Settings::new(dir.to_owned());
    let store = EmbeddedStore::open(&settings, Arc::new(WallClock)).expect("a store");
    println!("open: {:?}; {}", began.elapsed(), resident_kb());
    runtime().block_on(async {
        let ids = WebhookIds::after(store.ids_after());
        let webhook =
            webhook(ids.next(WallClock.now(), 1), &Bytes::from_static(b"first"), u64::MAX);
        let windows = DuplicateWindows::default();
        if let Claim::First(claimed) = store.claim(webhook.duplicate_key, windows).await {
            store.commit(webhook, claimed).await.expect("a commit");
        }
        println!("first accept: {:?}", began.elapsed());
        let leases = store.lease("crm", 1, Pick::LongestDue).await;
        println!("first lease ({}): {:?}; {}", leases.len(), began.elapsed(), resident_kb());
        println!("{:?}", store.lanes());
    });
}

/// Stores webhooks with bodies of that size, and lists them all.
fn pages(dir: &Path, count: u64, bytes: usize) {
    let settings = Settings::new(dir.to_owned());
    let store = EmbeddedStore::open(&settings, Arc::new(WallClock)).expect("a store");
    let ids = WebhookIds::after(store.ids_after());
    let body = Bytes::from(vec![b'x'; bytes]);
    runtime().block_on(async {
        commit_all(&store, &ids, &body, count).await;
        for _ in 0..3 {
            let (cpu_before, began) = (cpu(), Instant::now());
            let (mut place, mut listed) = (Some(Place::START), 0);
            while let Some(after) = place {
                let page = store.page(after, 1000).await.expect("a page");
                listed += page.webhooks.len() as u64;
                place = page.next;
            }
            report("list", bytes, listed, cpu() - cpu_before, began.elapsed());
        }
        store.close().await;
    });
    println!("{}", resident_kb());
}

/// Least, median and greatest.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |nth: usize| values.get(nth).copied().unwrap_or(f64::NAN);
    (at(0), at(values.len() / 2), at(values.len().saturating_sub(1)))
}

/// Raw and store in turns.
fn compare(rounds: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    for (bytes, count) in [(2 << 10, 100_000), (26 << 10, 20_000)] {
        let body = Bytes::from(vec![b'x'; bytes]);
        let (mut raws, mut commits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let raw = bench_raw(dir.path(), &body, count);
            let commit = bench_store(dir.path(), &body, count);
            raws.push(raw);
            commits.push(commit);
            ratios.push(commit / raw);
        }
        let ((_, raw, _), (_, commit, _)) = (spread(raws), spread(commits));
        let (least, ratio, most) = spread(ratios);
        println!(
            "{bytes} B, {rounds} rounds: {commit:.1} against {raw:.1} us CPU/webhook, \
             ratio {ratio:.2} ({least:.2} to {most:.2})"
        );
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["fill", dir, count] => fill(Path::new(dir), count.parse().expect("a number")),
        ["start", dir] => start(Path::new(dir)),
        ["pages", dir, count, bytes] => pages(
            Path::new(dir),
            count.parse().expect("a number"),
            bytes.parse().expect("a number"),
        ),
        ["late", dir, count, seconds, rate] => late::run(
            Path::new(dir),
            count.parse().expect("a number"),
            seconds.parse().expect("a number"),
            rate.parse().expect("a number"),
        ),
        ["mix", dir, seconds, rate] => {
            let number = |text: &str| -> u32 { text.parse().expect("a number") };
            mix::run(Path::new(dir), number(seconds).into(), number(rate));
        }
        // One half of it alone, for a profiler.
        [half @ ("store" | "raw"), count] => {
            let dir = tempfile::tempdir().expect("a directory");
            let body = Bytes::from(vec![b'x'; 2 << 10]);
            let bench = if half == "raw" { bench_raw } else { bench_store };
            bench(dir.path(), &body, count.parse().expect("a number"));
        }
        ["rounds", rounds] => compare(rounds.parse().expect("a number")),
        _ => compare(7),
    }
}
