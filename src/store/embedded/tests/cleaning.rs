//! The cleaner, stopped wherever it can be stopped, and kept from cleaning.

use std::collections::BTreeSet;

use super::*;
use crate::domain::delivery::Cause;
use crate::store::archive::{Addition, Archive};
use crate::store::embedded::inbox::Request;
use crate::store::embedded::sim::Faults;
use crate::store::listing::ReadError;
use crate::store::story::{Filter, Order};

pub(super) const TARGET: &str = "crm";
const RETAIN: Duration = Duration::from_millis(640);

pub(super) fn small() -> World {
    let mut world = World::new();
    world.settings.retain = RETAIN;
    world.settings.segment_bytes = 12 << 10;
    world
}

/// So many of what is filled in are dead letters.
const DEAD: usize = 48 / 8;

/// What must still be due, and what must not be.
#[derive(Default)]
struct Fates {
    pending: BTreeSet<Bytes>,
    settled: BTreeSet<Bytes>,
}

/// Webhooks of all fates, whose settlements are spread over the segments.
async fn fill(world: &World, store: &EmbeddedStore) -> Fates {
    let mut fates = Fates::default();
    let mut late = Vec::new();
    for n in 0..48u8 {
        let (webhook, result) = world.commit(store, &[n; 1500], &[TARGET]).await;
        result.unwrap();
        let lease = lease(store, TARGET, 1).await.pop().unwrap();
        assert_eq!(lease.delivery.webhook.id, webhook.id);
        match n % 8 {
            0 => {
                let at = world.clock.now().plus(Duration::from_secs(3600));
                store.settle(lease, None, Settlement::Retry { at });
                fates.pending.insert(webhook.body);
            }
            1 => {
                store.settle(lease, None, Settlement::DeadLetter(Cause::GivenUp));
                fates.settled.insert(webhook.body);
            }
            2 | 3 => late.push(lease),
            _ => {
                store.settle(lease, None, Settlement::Delivered);
                fates.settled.insert(webhook.body);
            }
        }
        if n % 8 == 7 && n > 20 {
            let lease = late.remove(0);
            fates.settled.insert(lease.delivery.webhook.body.clone());
            store.settle(lease, None, Settlement::Delivered);
        }
    }
    for lease in late {
        let at = world.clock.now().plus(Duration::from_secs(3600));
        fates.pending.insert(lease.delivery.webhook.body.clone());
        store.settle(lease, None, Settlement::Retry { at });
    }
    store.flush().await;
    fates
}

/// Lets the cleaner work: each flush is a step of it.
pub(super) async fn clean(world: &World, store: &EmbeddedStore) {
    let mut last = (world.disk.operations(), segments(world));
    let mut quiet = 0;
    while quiet < 8 && !world.disk.is_dead() {
        for _ in 0..10 {
            store.flush().await;
        }
        tokio::time::sleep(Duration::from_millis(12)).await;
        let now = (world.disk.operations(), segments(world));
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
}

/// After an hour exactly what should be due is due.
async fn check(world: &World, fates: &Fates, what: &str) {
    let store = world.open();
    let leases = lease_all(&store, TARGET).await;
    let mut found = BTreeSet::new();
    for lease in &leases {
        let body = lease.delivery.webhook.body.clone();
        assert!(found.insert(body), "leased twice: {what}");
    }
    for body in &fates.pending {
        assert!(found.contains(body), "lost {}: {what}", body[0]);
    }
    for body in &found {
        assert!(fates.pending.contains(body), "due again {}: {what}", body[0]);
    }
    let lane = store.lanes().remove(0);
    assert_eq!(lane.pending, fates.pending.len() as u64, "{what}");
    assert_eq!(lane.dead, [(Cause::GivenUp, DEAD as u64)], "{what}");
    let all =
        store.stories(Filter::default(), None, Order::OldestFirst, 100).await.unwrap().stories;
    for dead in all.iter().filter(|story| story.deliveries[0].state.cause().is_some()) {
        assert_eq!(dead.body_bytes, 1500, "{what}");
        let whole = store.whole(dead.id).await.unwrap().unwrap();
        match whole.record {
            Ok(webhook) => assert!(fates.settled.contains(&webhook.body), "{what}"),
            Err(error) => assert_eq!((error, dead.bytes_gone), (ReadError::Gone, true), "{what}"),
        }
    }
    assert_eq!(store.health().damaged_records, 0, "{what}");
}

/// How a cleaning is stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    Kill,
    PowerCut,
    /// What the index knew may have kept a removed segment that is there again from mattering.
    PowerCutWithoutIndex,
}

/// Stops at the `nth` change that a cleaning makes; answers whether it came so far.
async fn stopped_at(nth: u64, stop: Stop) -> bool {
    let mut world = small();
    let store = world.open();
    let fates = fill(&world, &store).await;
    // The dead letters give up their bytes, and nothing that is pending ends for that.
    let pinned = store.shared.ask(|indexer| indexer.index.backlog_bytes(TARGET)).await.unwrap();
    let relieved = store.relieve(TARGET, pinned, 100).await;
    assert_eq!((relieved.spared, relieved.ended), (DEAD, 0));
    // What was settled is durable, and in the index.
    store.shared.written(Vec::new()).await.unwrap();
    store.flush().await;
    world.disk.set_faults(Faults { dead_from_change: Some(nth), ..Faults::default() });
    world.clock.advance(Duration::from_secs(10));
    clean(&world, &store).await;
    let stopped = world.disk.is_dead();
    if !stopped {
        let all = store.stories(Filter::default(), None, Order::OldestFirst, 100).await.unwrap();
        assert_eq!(all.stories.iter().filter(|story| story.bytes_gone).count(), DEAD);
    }
    let disk = match stop {
        Stop::Kill => world.disk.kill(),
        Stop::PowerCut | Stop::PowerCutWithoutIndex => world.disk.power_cut(nth),
    };
    drop(store);
    world.use_disk(disk);
    world.clock.advance(Duration::from_secs(7200));
    let deletes_at_once = matches!(stop, Stop::PowerCutWithoutIndex);
    for delete_index in [deletes_at_once, true, false] {
        if delete_index {
            world.delete_index();
        }
        let what = format!("stopped at {nth}, {stop:?}, index deleted {delete_index}");
        check(&world, &fates, &what).await;
    }
    stopped
}

#[test]
fn wherever_a_cleaning_is_stopped_nothing_is_lost_and_nothing_comes_back() {
    let stops = [Stop::Kill, Stop::PowerCut, Stop::PowerCutWithoutIndex];
    let next = AtomicU64::new(0);
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !finished.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let stop = stops[usize::try_from(n % 3).unwrap()];
                    let stopped = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap()
                        .block_on(stopped_at(n / 3 + 1, stop));
                    if !stopped {
                        finished.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let reached = next.load(Ordering::Relaxed) / 3;
    assert!(reached > 12, "{reached}");
}

/// Damages the webhook record with this body; its segment can't be cleaned any more.
fn damage(world: &World, body: &[u8]) {
    for path in segments(world) {
        world.disk.change(&path, |bytes| {
            if let Some(at) = bytes.windows(body.len()).position(|window| window == body) {
                bytes[at] ^= 1;
            }
        });
    }
}

/// Webhooks that are delivered at once, about as many as a segment holds.
pub(super) async fn deliver(world: &World, store: &EmbeddedStore) {
    for n in 0..16u8 {
        let body =
            [&[n; 1500][..], &world.ids.next(world.clock.now(), 1).key().to_be_bytes()].concat();
        world.commit(store, &body, &[TARGET]).await.1.unwrap();
        let lease = lease(store, TARGET, 1).await.pop().unwrap();
        store.settle(lease, None, Settlement::Delivered);
    }
    store.flush().await;
}

#[tokio::test]
async fn a_segment_that_can_not_be_cleaned_blocks_no_other_and_what_ended_stays_ended() {
    let mut world = small();
    world.settings.segment_bytes = 36 << 10;
    world.settings.retain_dead_letters = Duration::from_secs(100);
    let store = world.open();
    let (stuck, _) = world.commit(&store, &[250; 1500], &["nobody"]).await;
    world.commit(&store, &[251; 1500], &[TARGET]).await.1.unwrap();
    let dead = lease(&store, TARGET, 1).await.pop().unwrap();
    deliver(&world, &store).await;
    deliver(&world, &store).await;
    // Its settlement is in a later segment, which goes before it.
    store.settle(dead, None, Settlement::DeadLetter(Cause::GivenUp));
    deliver(&world, &store).await;
    deliver(&world, &store).await;
    let before = segments(&world);
    assert!(before.len() > 3, "{before:?}");
    damage(&world, &stuck.body);
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(10));
        clean(&world, &store).await;
    }
    let after = segments(&world);
    assert!(after.contains(&before[0]), "it stays");
    assert!(before[1..before.len() - 1].iter().all(|path| !after.contains(path)), "{after:?}");
    // Now its copy ends too, and so does the segment that it was copied to.
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(200));
        clean(&world, &store).await;
        deliver(&world, &store).await;
    }
    clean(&world, &store).await;
    let end = segments(&world);
    assert!(
        end.contains(&before[0]) && after[1..].iter().all(|path| !end.contains(path)),
        "{end:?}"
    );
    store.close().await;
    drop(store);
    world.delete_index();
    let store = world.open();
    assert!(lease_now(&store, TARGET, 64).await.is_empty(), "what ended is due again");
}

#[tokio::test]
async fn what_was_copied_forward_keeps_its_place_in_pages_and_its_body() {
    use crate::store::listing::Place;
    let world = small();
    let store = world.open();
    let (first, result) = world.commit(&store, &[1; 1500], &[TARGET]).await;
    result.unwrap();
    let old = store.page(Place::START, 8).await.unwrap().webhooks.remove(0);
    let at = world.clock.now().plus(Duration::from_secs(3600));
    for lease in lease(&store, TARGET, 1).await {
        store.settle(lease, None, Settlement::Retry { at });
    }
    deliver(&world, &store).await;
    deliver(&world, &store).await;
    let before = segments(&world);
    world.clock.advance(Duration::from_secs(10));
    clean(&world, &store).await;
    assert!(!segments(&world).contains(&before[0]), "its segment is gone");
    let (second, result) = world.commit(&store, &[2; 1500], &[TARGET]).await;
    result.unwrap();
    let page = store.page(Place::START, 8).await.unwrap();
    let ids: Vec<_> = page.webhooks.iter().map(|webhook| webhook.id).collect();
    assert_eq!(ids, [first.id, second.id]);
    assert_ne!(page.webhooks[0].kept_at, old.kept_at);
    for summary in [&old, &page.webhooks[0]] {
        assert_eq!(store.body(summary).await, Ok(Some(first.body.clone())));
    }
}

#[tokio::test]
async fn what_was_added_to_a_webhook_outlives_the_segment_that_says_so() {
    for restart in [false, true] {
        let world = small();
        let store = world.open();
        let (webhook, result) = world.commit(&store, &[1; 1500], &[]).await;
        result.unwrap();
        // Its segment stays: more than a quarter of it lives.
        for n in 2..6 {
            world.commit(&store, &[n; 1500], &["away"]).await.1.unwrap();
        }
        deliver(&world, &store).await;
        let deliveries = world.webhook(b"", &["late"]).deliveries;
        let added = store.add(vec![Addition { id: webhook.id, deliveries, again: false }]).await;
        assert_eq!(added, Ok(vec![1]));
        let defined_in = |store: &EmbeddedStore| {
            let key = webhook.id.key();
            let (request, answer) = Request::ask(move |indexer| indexer.index.due_one(key, 0));
            store.shared.inbox.request(request);
            async move { answer.await.unwrap().unwrap().defined_at.unwrap().segment }
        };
        let first = defined_in(&store).await;
        clean_away(&world, &store, first).await;
        assert_ne!(defined_in(&store).await, first);
        let store = if restart {
            store.close().await;
            drop(store);
            world.delete_index();
            world.open()
        } else {
            store
        };
        let leases = lease(&store, "late", 8).await;
        assert_eq!(leases.len(), 1);
        assert_eq!(leases[0].delivery.webhook.body, webhook.body);
        assert_eq!(*leases[0].delivery.headers, [header("x-route", "late")]);
        assert_eq!(store.health().damaged_records, 0);
    }
}

/// The segment in which the only delivery of a webhook is found.
async fn segment_of(store: &EmbeddedStore, webhook: &Webhook) -> u64 {
    let webhook = webhook.id.key();
    let (request, answer) = Request::ask(move |indexer| indexer.index.due_one(webhook, 0));
    store.shared.inbox.request(request);
    answer.await.unwrap().unwrap().webhook_at.segment
}

/// Lets the cleaner copy what lives in a segment forward.
async fn clean_away(world: &World, store: &EmbeddedStore, number: u64) {
    let mut rounds = 0;
    while store.shared.log.exists(number) {
        rounds += 1;
        assert!(rounds < 50, "it stays");
        deliver(world, store).await;
        world.clock.advance(Duration::from_secs(10));
        clean(world, store).await;
    }
}

/// Keeps the runtime's one thread for reading busy until told; answers when it is busy.
async fn occupy_reader() -> std::sync::mpsc::Sender<()> {
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || {
        begun.send(()).unwrap();
        released.recv().unwrap_or_default();
    });
    has_begun.await.unwrap();
    release
}

/// Lets everything that can go on without the reader go on: what it asks of the index is answered.
async fn let_others_go_on(store: &EmbeddedStore) {
    for _ in 0..8 {
        tokio::task::yield_now().await;
        store.flush().await;
    }
}

#[test]
fn what_is_copied_forward_again_while_it_is_read_is_not_damaged() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = small();
        let store = world.open();
        let (webhook, result) = world.commit(&store, &[99; 1500], &[TARGET]).await;
        result.unwrap();
        let due_at = world.clock.now().plus(Duration::from_secs(36_000));
        let first = lease(&store, TARGET, 1).await.pop().unwrap();
        store.settle(first, None, Settlement::Retry { at: due_at });
        deliver(&world, &store).await;
        store.close().await;
        drop(store);
        // Its lane knows where it is, but has no body.
        let store = std::rc::Rc::new(world.open());
        assert!(lease_now(&*store, TARGET, 1).await.is_empty());
        clean_away(&world, &store, segment_of(&store, &webhook).await).await;
        // Where it is now there is soon more that ends than it.
        deliver(&world, &store).await;
        world.clock.advance(Duration::from_secs(36_000));
        let before = occupy_reader().await;
        let leasing = tokio::task::spawn_local({
            let store = std::rc::Rc::clone(&store);
            async move { lease(&*store, TARGET, 1).await }
        });
        let_others_go_on(&store).await;
        let behind = tokio::task::spawn_local(occupy_reader());
        tokio::task::yield_now().await;
        drop(before);
        // It was read where it is no more, and is to be read where the index says that it is.
        let behind = behind.await.unwrap();
        let_others_go_on(&store).await;
        clean_away(&world, &store, segment_of(&store, &webhook).await).await;
        drop(behind);
        let leases = leasing.await.unwrap();
        assert_eq!(leases[0].delivery.webhook.body, webhook.body);
        assert_eq!(store.health().damaged_records, 0);
    });
}

#[tokio::test]
async fn a_full_disk_is_freed_of_what_is_over_though_there_is_no_room_to_copy_what_lives() {
    let world = small();
    let store = world.open();
    // In the oldest segment something lives, and has to be copied.
    world.commit(&store, &[99; 1500], &["later"]).await.1.unwrap();
    deliver(&world, &store).await;
    deliver(&world, &store).await;
    let before = segments(&world);
    world.disk.set_faults(Faults { room: Some(1), ..Faults::default() });
    let mut accepted = 0u32;
    while world.commit(&store, &accepted.to_be_bytes(), &[]).await.1.is_ok() {
        accepted += 1;
    }
    assert_eq!(store.health().failing, Some(CommitError::DiskFull));
    // As soon as anything is freed there is room for a segment.
    let taken = store.shared.log.bytes();
    world.disk.set_faults(Faults { room: Some(taken), ..Faults::default() });
    world.clock.advance(Duration::from_secs(10));
    let freed = async {
        while segments(&world).contains(&before[0]) || store.health().failing.is_some() {
            clean(&world, &store).await;
        }
    };
    within(PATIENCE, freed).await;
    world.commit(&store, &[98; 1500], &["later"]).await.1.unwrap();
    assert_eq!(pending(&store, "later").await, 2);
    assert_eq!(store.health().damaged_records, 0);
}

/// What is written in all segments: when the current one is closed, and how much of it is reserved then,
/// is a matter of time.
fn written(store: &EmbeddedStore) -> u64 {
    let (log, end) = (&store.shared.log, store.shared.log.end());
    let others = log.all().into_iter().filter(|segment| segment.header.number != end.segment);
    others.map(|segment| segment.file.bytes().unwrap()).sum::<u64>() + end.offset
}

#[tokio::test]
async fn what_is_tried_again_and_again_is_not_written_down_again_for_ever() {
    const WEBHOOKS: u8 = 40;
    let mut world = small();
    world.settings.segment_bytes = 32 << 10;
    let store = world.open();
    for n in 0..WEBHOOKS {
        world.commit(&store, &[n; 1500], &[TARGET]).await.1.unwrap();
    }
    let webhooks = written(&store);
    let (mut settlements, mut most) = (0, 0);
    for _ in 0..12 {
        for lease in lease_all(&store, TARGET).await {
            let now = world.clock.now();
            let excerpt = Bytes::from_static(&[b'x'; 400]);
            let failed = Attempt { excerpt, ..attempt(now, Outcome::Status) };
            let at = now.plus(Duration::from_secs(1));
            store.settle(lease, Some(failed), Settlement::Retry { at });
            settlements += 600;
        }
        world.clock.advance(Duration::from_secs(60));
        within(PATIENCE, clean(&world, &store)).await;
        most = most.max(written(&store));
    }
    assert!(most <= webhooks + settlements, "{most} > {webhooks} + {settlements}");
    store.close().await;
    drop(store);
    world.delete_index();
    let store = world.open();
    let leases = lease_all(&store, TARGET).await;
    assert!(leases.iter().all(|lease| lease.delivery.attempts == 12));
    assert_eq!(leases.len(), usize::from(WEBHOOKS));
    for lease in leases {
        store.settle(lease, None, Settlement::Delivered);
    }
    store.flush().await;
    // Now it is worth it.
    let freed = async {
        while written(&store) > webhooks {
            world.clock.advance(Duration::from_secs(10));
            clean(&world, &store).await;
        }
    };
    within(PATIENCE, freed).await;
}
