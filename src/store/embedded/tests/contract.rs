//! What every store promises.

use std::time::Duration;

use super::*;
use crate::domain::delivery::Cause;
use crate::store::Pick;
use crate::store::archive::{Addition, Archive};
use crate::store::listing::{Place, Routed, Summary};
use crate::store::marks::{MarkError, MarkKeeper, Word};

/// The suite: passed by every store, opened anew in the same world for a restart.
async fn suite<S: Store + Archive + MarkKeeper>(world: &World, open: impl Fn() -> S) {
    committed_is_leased_byte_for_byte(world, &open).await;
    a_dropped_lease_is_due_again(world, &open()).await;
    settled_survives_a_restart(world, &open).await;
    duplicates_are_known_after_a_restart(world, &open).await;
    a_claim_waits_for_the_first(world, &open()).await;
    retries_come_when_they_are_due(world, &open()).await;
    those_never_tried_come_first_if_that_is_asked(world, &open()).await;
    what_is_marked_outlives_a_restart(world, &open).await;
    what_is_added_is_due_and_no_target_gets_it_twice_unasked(world, &open).await;
    dead_letters_are_counted(world, &open).await;
    a_commit_needs_nobody_to_wait(world, &open()).await;
    expired_ones_end(world, &open()).await;
    what_is_stored_is_read_page_by_page(world, &open).await;
}

async fn committed_is_leased_byte_for_byte<S: Store>(world: &World, open: impl Fn() -> S) {
    for restart in [false, true] {
        let store = open();
        let body = if restart { b"\x00\xff{} after" } else { b"\x00\xff{}before" };
        let (webhook, result) = world.commit(&store, body, &["a1", "a2"]).await;
        assert_eq!(result, Ok(()));
        let store = if restart {
            within(PATIENCE, store.close()).await;
            drop(store);
            open()
        } else {
            store
        };
        for target in ["a1", "a2"] {
            let leases = lease(&store, target, 8).await;
            assert_eq!(leases.len(), 1);
            for lease in leases {
                let delivery = &lease.delivery;
                let expected = Webhook { deliveries: Vec::new(), ..webhook.clone() };
                assert_eq!(*delivery.webhook, expected);
                assert_eq!(&*delivery.target, target);
                assert_eq!(*delivery.headers, [header("x-route", target)]);
                assert_eq!((delivery.attempts, delivery.again), (0, 0));
                assert_eq!(delivery.started_at, webhook.received_at);
                store.settle(lease, None, Settlement::Delivered);
            }
            assert!(lease_now(&store, target, 8).await.is_empty());
        }
        assert!(store.lanes().is_empty());
    }
}

async fn a_dropped_lease_is_due_again<S: Store>(world: &World, store: &S) {
    let (webhook, _) = world.commit(store, b"dropped", &["b"]).await;
    for _ in 0..3 {
        let leases = lease(store, "b", 8).await;
        assert_eq!(leases[0].delivery.webhook.id, webhook.id);
        assert!(lease_now(store, "b", 8).await.is_empty());
    }
    let leases = lease(store, "b", 8).await;
    for lease in leases {
        store.settle(lease, None, Settlement::Discarded);
    }
    assert!(lease_now(store, "b", 8).await.is_empty());
}

async fn settled_survives_a_restart<S: Store>(world: &World, open: impl Fn() -> S) {
    let store = open();
    for body in [b"s1", b"s2", b"s3"] {
        world.commit(&store, body, &["c"]).await.1.unwrap();
    }
    let mut leases = lease(&store, "c", 3).await.into_iter();
    let now = world.clock.now();
    let (at, failed) = (now.plus(Duration::from_secs(60)), attempt(now, Outcome::Status));
    store.settle(leases.next().unwrap(), None, Settlement::Delivered);
    store.settle(leases.next().unwrap(), Some(failed), Settlement::Retry { at });
    drop(leases);
    within(PATIENCE, store.close()).await;
    drop(store);
    let store = open();
    assert_eq!(store.lanes()[0].pending, 2);
    let leases = lease(&store, "c", 8).await;
    assert_eq!(leases.iter().map(|l| &*l.delivery.webhook.body).collect::<Vec<_>>(), [b"s3"]);
    world.clock.advance(Duration::from_secs(61));
    for lease in lease(&store, "c", 8).await.into_iter().chain(leases) {
        let is_second = &*lease.delivery.webhook.body == b"s2";
        assert_eq!(lease.delivery.attempts, u32::from(is_second));
        store.settle(lease, None, Settlement::Delivered);
    }
    assert!(store.lanes().is_empty());
}

async fn duplicates_are_known_after_a_restart<S: Store>(world: &World, open: impl Fn() -> S) {
    let store = open();
    let (webhook, _) = world.commit(&store, b"twice", &[]).await;
    assert_eq!(is_duplicate(&store, b"twice").await, Some(webhook.id));
    within(PATIENCE, store.close()).await;
    drop(store);
    let store = open();
    assert_eq!(is_duplicate(&store, b"twice").await, Some(webhook.id));
    world.clock.advance(Duration::from_secs(24 * 3600 + 1));
    assert_eq!(is_duplicate(&store, b"twice").await, None);
}

async fn a_claim_waits_for_the_first<S: Store>(world: &World, store: &S) {
    let windows = DuplicateWindows::default();
    let webhook = world.webhook(b"claimed", &[]);
    let Claim::First(claimed) = store.claim(webhook.duplicate_key, windows).await else { panic!() };
    let mut second = std::pin::pin!(store.claim(webhook.duplicate_key, windows));
    let waited = tokio::time::timeout(Duration::from_millis(20), &mut second).await;
    assert!(waited.is_err());
    drop(claimed);
    let Claim::First(claimed) = within(PATIENCE, second).await else { panic!() };
    let third = store.claim(webhook.duplicate_key, windows);
    let (committed, third) = tokio::join!(store.commit(webhook.clone(), claimed), third);
    committed.unwrap();
    assert!(matches!(third, Claim::Duplicate(id) if id == webhook.id));
}

async fn retries_come_when_they_are_due<S: Store>(world: &World, store: &S) {
    for body in [b"r0", b"r1", b"r2", b"r3"] {
        world.commit(store, body, &["d"]).await.1.unwrap();
    }
    let now = world.clock.now();
    for (nth, lease) in lease(store, "d", 8).await.into_iter().enumerate() {
        let at = now.plus(Duration::from_secs(40 - 10 * nth as u64));
        store.settle(lease, Some(attempt(now, Outcome::Timeout)), Settlement::Retry { at });
    }
    assert!(lease_now(store, "d", 8).await.is_empty());
    for expected in [b"r3", b"r2", b"r1", b"r0"] {
        world.clock.advance(Duration::from_secs(10));
        let leases = lease(store, "d", 8).await;
        assert_eq!(leases.len(), 1);
        for lease in leases {
            assert_eq!(&*lease.delivery.webhook.body, expected);
            assert_eq!(lease.delivery.attempts, 1);
            store.settle(lease, None, Settlement::Delivered);
        }
    }
    // A wait is real time, too.
    world.commit(store, b"soon", &["d"]).await.1.unwrap();
    for lease in lease(store, "d", 1).await {
        let at = world.clock.now().plus(Duration::from_millis(30));
        store.settle(lease, None, Settlement::Retry { at });
    }
    let waiting = store.lease("d", 1, Pick::LongestDue);
    let advance = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        world.clock.advance(Duration::from_millis(30));
    };
    let (leases, ()) = tokio::join!(within(PATIENCE, waiting), advance);
    for lease in leases {
        store.settle(lease, None, Settlement::Delivered);
    }
}

async fn those_never_tried_come_first_if_that_is_asked<S: Store>(world: &World, store: &S) {
    // Where memory is short there is none in a lane for both at once.
    let (tried, untried): (&[u8], &[u8]) = (&[b't'; 40_000], &[b'u'; 40_000]);
    world.commit(store, tried, &["p"]).await.1.unwrap();
    for lease in lease(store, "p", 8).await {
        let now = world.clock.now();
        store.settle(lease, Some(attempt(now, Outcome::Timeout)), Settlement::Retry { at: now });
    }
    world.clock.advance(Duration::from_secs(1));
    world.commit(store, untried, &["p"]).await.1.unwrap();
    // It is acknowledged a moment before it is in its lane.
    let waiting = || store.lanes().iter().map(|lane| lane.pending).sum::<u64>();
    while waiting() < 2 {
        tokio::task::yield_now().await;
    }
    for (pick, expected) in [(Pick::LongestDue, tried), (Pick::UntriedFirst, untried)] {
        let leases = within(PATIENCE, store.lease("p", 1, pick)).await;
        assert_eq!(&*leases[0].delivery.webhook.body, expected);
    }
    // With none of those it is the one that is due for longest.
    for attempts in [0, 1] {
        let leases = within(PATIENCE, store.lease("p", 1, Pick::UntriedFirst)).await;
        assert_eq!(leases[0].delivery.attempts, attempts);
        leases.into_iter().for_each(|lease| store.settle(lease, None, Settlement::Delivered));
    }
}

async fn what_is_marked_outlives_a_restart<S: Store + MarkKeeper>(
    world: &World,
    open: impl Fn() -> S,
) {
    let store = open();
    let paused = Some(Word::Pause(world.clock.now()));
    store.mark(move |marks| marks.entry("m".into()).or_default().word = paused).await.unwrap();
    assert_eq!(store.marks().borrow()["m"].word, paused);
    within(PATIENCE, store.close()).await;
    assert_eq!(store.mark(|marks| marks.clear()).await, Err(MarkError::Closed));
    drop(store);
    let store = open();
    assert_eq!(store.marks().borrow()["m"].word, paused);
    store.mark(|marks| marks.clear()).await.unwrap();
    assert!(store.marks().borrow().is_empty());
}

async fn what_is_added_is_due_and_no_target_gets_it_twice_unasked<S: Store + Archive>(
    world: &World,
    open: impl Fn() -> S,
) {
    let store = open();
    let (unrouted, result) = world.commit(&store, b"added to", &[]).await;
    result.unwrap();
    let (routed, result) = world.commit(&store, b"routed", &["q1"]).await;
    result.unwrap();
    let unknown = world.webhook(b"unknown", &[]).id;
    let add = |again| {
        let of =
            |id| Addition { id, deliveries: world.webhook(b"", &["q1", "q2"]).deliveries, again };
        store.add([unrouted.id, unknown, routed.id].map(of).into())
    };
    assert_eq!(add(false).await, Ok(vec![2, 0, 1]));
    assert_eq!(add(false).await, Ok(vec![0, 0, 0]), "each has one already");
    assert_eq!(add(true).await, Ok(vec![2, 0, 2]));
    let whole = store.whole(unrouted.id).await.unwrap().unwrap();
    let told = whole.story.deliveries.iter().map(|d| (&*d.target, d.again));
    assert_eq!(told.collect::<Vec<_>>(), [("q1", 0), ("q2", 0), ("q1", 1), ("q2", 1)]);
    assert_eq!(whole.record.unwrap().deliveries.len(), 4);
    within(PATIENCE, store.close()).await;
    drop(store);
    let store = open();
    for target in ["q1", "q2"] {
        let mut leases = Vec::new();
        while leases.len() < 4 {
            leases.extend(lease(&store, target, 8).await);
        }
        let mut found: Vec<_> = leases
            .iter()
            .map(|lease| (lease.delivery.webhook.body.to_vec(), lease.delivery.again))
            .collect();
        found.sort();
        let expected = [(&b"added to"[..], 0), (b"added to", 1), (b"routed", 0), (b"routed", 1)];
        assert_eq!(found, expected.map(|(body, again)| (body.to_vec(), again)));
        for lease in leases {
            assert_eq!(*lease.delivery.headers, [header("x-route", target)]);
            store.settle(lease, None, Settlement::Delivered);
        }
        assert!(lease_now(&store, target, 8).await.is_empty());
    }
    assert!(store.lanes().is_empty());
}

async fn dead_letters_are_counted<S: Store>(world: &World, open: impl Fn() -> S) {
    let store = open();
    world.commit(&store, b"dead", &["e"]).await.1.unwrap();
    for lease in lease(&store, "e", 8).await {
        let failed = attempt(world.clock.now(), Outcome::GivenUp);
        store.settle(lease, Some(failed), Settlement::DeadLetter(Cause::GivenUp));
    }
    let counted = |store: &S| {
        let lanes = store.lanes();
        assert_eq!(lanes.len(), 1, "{lanes:?}");
        assert_eq!((lanes[0].pending, &*lanes[0].dead), (0, &[(Cause::GivenUp, 1)][..]));
    };
    counted(&store);
    within(PATIENCE, store.close()).await;
    drop(store);
    let store = open();
    counted(&store);
    assert!(lease_now(&store, "e", 8).await.is_empty());
}

async fn a_commit_needs_nobody_to_wait<S: Store>(world: &World, store: &S) {
    let webhook = world.webhook(b"abandoned", &["f"]);
    let windows = DuplicateWindows::default();
    let Claim::First(claimed) = store.claim(webhook.duplicate_key, windows).await else { panic!() };
    drop(store.commit(webhook, claimed));
    let leases = lease(store, "f", 8).await;
    assert_eq!(&*leases[0].delivery.webhook.body, b"abandoned");
    for lease in leases {
        store.settle(lease, None, Settlement::Delivered);
    }
}

async fn expired_ones_end<S: Store>(world: &World, store: &S) {
    world.commit(store, b"old", &["g"]).await.1.unwrap();
    world.clock.advance(Duration::from_secs(10));
    let moment = world.clock.now();
    world.commit(store, b"new", &["g"]).await.1.unwrap();
    assert_eq!(store.expire("g", moment, 10, Cause::TargetRemoved).await, 1);
    assert_eq!(store.expire("g", moment, 10, Cause::TargetRemoved).await, 0);
    for lease in lease(store, "g", 8).await {
        assert_eq!(&*lease.delivery.webhook.body, b"new");
        store.settle(lease, None, Settlement::Delivered);
    }
    let lane = store.lanes().into_iter().find(|lane| &*lane.target == "g").unwrap();
    assert_eq!((lane.pending, lane.dead), (0, vec![(Cause::TargetRemoved, 1)]));
}

async fn all_since<S: Archive>(store: &S, since: Timestamp, max: usize) -> Vec<Summary> {
    let mut all = Vec::new();
    let mut place = Place::since(since);
    loop {
        let page = within(PATIENCE, store.page(place, max)).await.unwrap();
        assert!(page.webhooks.len() <= max);
        assert_eq!(page.left_out, 0);
        all.extend(page.webhooks);
        match page.next {
            Some(next) => {
                assert!(next > place);
                place = next;
            }
            None => return all,
        }
    }
}

async fn what_is_stored_is_read_page_by_page<S: Store + Archive>(
    world: &World,
    open: impl Fn() -> S,
) {
    let store = open();
    world.clock.advance(Duration::from_secs(1));
    world.commit(&store, b"too early", &["h"]).await.1.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let since = world.clock.now();
    assert!(all_since(&store, since, 8).await.is_empty());
    let mut expected = Vec::new();
    for n in 0..25u8 {
        world.clock.advance(Duration::from_millis(u64::from(n) % 2));
        let targets: &[&str] = if n % 5 == 0 { &[] } else { &["h", "i"] };
        let (webhook, result) = world.commit(&store, &[n; 700], targets).await;
        result.unwrap();
        expected.push(webhook);
        // What was acknowledged is seen at once.
        assert_eq!(all_since(&store, since, 1000).await.len(), expected.len());
    }
    for lease in lease(&store, "h", 8).await {
        store.settle(lease, None, Settlement::Delivered);
    }
    for restart in [false, true] {
        let store = if restart {
            within(PATIENCE, store.close()).await;
            &open()
        } else {
            &store
        };
        for max in [1, 7, 25, 26, usize::MAX] {
            let found = all_since(store, since, max).await;
            assert_eq!(found.len(), expected.len(), "{max} at once");
            for (summary, webhook) in found.iter().zip(&expected) {
                assert_eq!((summary.id, summary.received_at), (webhook.id, webhook.received_at));
                assert_eq!((&summary.source, &summary.path), (&webhook.source, &webhook.path));
                assert_eq!(summary.activity, webhook.activity);
                assert_eq!(summary.resource, webhook.resource);
                assert_eq!(summary.table, webhook.table);
                assert_eq!(summary.body_bytes, webhook.body.len() as u64);
                let routed = webhook.deliveries.iter().map(|delivery| Routed {
                    target: Arc::clone(&delivery.target),
                    routes: delivery.routes.clone(),
                });
                assert_eq!(summary.deliveries, routed.collect::<Vec<_>>());
                assert_eq!(store.body(summary).await, Ok(Some(webhook.body.clone())));
            }
        }
        let behind = Place::behind(expected[20].id);
        let rest = store.page(behind, 100).await.unwrap();
        assert_eq!((rest.webhooks.len(), rest.next), (4, None));
        for target in ["h", "i"] {
            for lease in lease_now(store, target, 64).await {
                store.settle(lease, None, Settlement::Delivered);
            }
        }
    }
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_in_memory() {
    let world = World::new();
    suite(&world, || world.open()).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_on_a_disk() {
    let mut world = World::on_disk();
    world.settings.disk = Arc::new(crate::store::embedded::disk::RealDisk);
    suite(&world, || world.open()).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_without_its_index() {
    let world = World::new();
    suite(&world, || {
        world.delete_index();
        world.open()
    })
    .await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract_without_memory() {
    let mut world = World::new();
    world.settings.delivery_memory = 40_000;
    suite(&world, || world.open()).await;
}

#[tokio::test]
async fn a_second_store_on_the_same_directory_is_refused() {
    let world = World::new();
    let store = world.open();
    let error = world.try_open().unwrap_err();
    let expected = format!("is in use by process {}", std::process::id());
    assert!(error.to_string().ends_with(&expected), "{error}");
    drop(store);
    world.open();
}

#[tokio::test]
async fn a_directory_in_memory_is_refused() {
    let mut world = World::new();
    world.settings.allow_volatile = false;
    world.settings.disk = Arc::new(crate::store::embedded::disk::RealDisk);
    world.settings.dir = "/dev/shm/aryeo-relay-test".into();
    let error = world.try_open().unwrap_err();
    assert!(error.to_string().contains("--allow-volatile-data"), "{error}");
    assert!(!exists(&world.settings.dir), "what is refused is not made");
}
