//! A webhook whose bytes have to go.

use std::pin::pin;

use super::cleaning::clean;
use super::*;
use crate::domain::delivery::Cause;
use crate::store::archive::{Addition, Archive, EraseError, Erased};
use crate::store::embedded::sim::Faults;
use crate::store::listing::ReadError;
use crate::store::story::{Filter, Order};

const TARGET: &str = "crm";
const OTHER: &str = "billing";

/// Files of the log that contain these bytes.
fn files_with(world: &World, bytes: &[u8]) -> usize {
    let contains = |path: &std::path::PathBuf| {
        let mut found = false;
        world.disk.change(path, |content| {
            found = content.windows(bytes.len()).any(|window| window == bytes);
        });
        found
    };
    segments(world).iter().filter(|path| contains(path)).count()
}

fn lane(store: &EmbeddedStore, target: &str) -> (u64, u64) {
    let lanes = store.lanes();
    let lane = lanes.iter().find(|lane| &*lane.target == target);
    lane.map_or((0, 0), |lane| (lane.pending, lane.dead.iter().map(|(_, n)| n).sum()))
}

fn ended(ended: usize, body: &[u8]) -> Result<Option<Erased>, EraseError> {
    Ok(Some(Erased { ended, body_bytes: body.len() as u64 }))
}

/// What is stored, and what is due to a target, after another start with another index.
async fn after_a_rebuild(world: &mut World, store: EmbeddedStore) -> (Vec<WebhookId>, Vec<Bytes>) {
    let disk = world.disk.power_cut(5);
    drop(store);
    world.use_disk(disk);
    world.delete_index();
    let store = world.open();
    let due = drain(&store, TARGET).await;
    let all = store.stories(Filter::default(), None, Order::OldestFirst, 100).await.unwrap();
    (all.stories.into_iter().map(|story| story.id).collect(), due)
}

#[tokio::test]
async fn an_erased_webhook_is_nowhere_and_the_others_are_as_they_were() {
    let mut world = World::new();
    let store = world.open();
    let secret = b"a name and an address";
    let (before, _) = world.commit(&store, b"before", &[TARGET]).await;
    let (webhook, _) = world.commit(&store, secret, &[TARGET, OTHER]).await;
    let (after, _) = world.commit(&store, b"after", &[TARGET]).await;
    // What a target answered goes too.
    for lease in lease(&store, OTHER, 1).await {
        let mut failed = attempt(world.clock.now(), Outcome::GivenUp);
        failed.excerpt = Bytes::from_static(b"no such address");
        store.settle(lease, Some(failed), Settlement::DeadLetter(Cause::GivenUp));
    }
    store.flush().await;
    assert!(files_with(&world, secret) > 0 && files_with(&world, b"no such address") > 0);
    assert_eq!((lane(&store, TARGET), lane(&store, OTHER)), ((3, 0), (0, 1)));

    assert_eq!(store.erase(webhook.id).await, ended(1, secret));

    assert_eq!((lane(&store, TARGET), lane(&store, OTHER)), ((2, 0), (0, 0)));
    assert_eq!(store.whole(webhook.id).await, Ok(None));
    for bytes in [&secret[..], b"no such address"] {
        assert_eq!(files_with(&world, bytes), 0);
    }
    assert_eq!(store.erase(webhook.id).await, Ok(None), "nothing of it is left");
    assert_eq!(is_duplicate(&store, secret).await, Some(webhook.id));
    assert_eq!(store.health().damaged_records, 0);
    let (stored, due) = after_a_rebuild(&mut world, store).await;
    assert_eq!(stored, [before.id, after.id]);
    assert_eq!(due, [&b"before"[..], b"after"]);
}

#[tokio::test]
async fn an_attempt_that_is_under_way_is_the_last_one() {
    for settlement in [
        Settlement::Delivered,
        Settlement::Retry { at: Timestamp::from_millis(START) },
        Settlement::DeadLetter(Cause::GivenUp),
    ] {
        let world = World::new();
        let store = world.open();
        let (webhook, _) = world.commit(&store, b"on its way", &[TARGET]).await;
        let mut leases = lease(&store, TARGET, 1).await;
        assert_eq!(store.erase(webhook.id).await, ended(1, b"on its way"));
        let failed = attempt(world.clock.now(), Outcome::GivenUp);
        store.settle(leases.pop().unwrap(), Some(failed), settlement);
        assert_eq!(lane(&store, TARGET), (0, 0), "{settlement:?}");
        assert!(lease_now(&store, TARGET, 1).await.is_empty(), "{settlement:?}");
    }
}

#[tokio::test]
async fn a_lease_that_lapses_after_it_was_erased_does_not_bring_it_back() {
    let world = World::new();
    let store = world.open();
    let (webhook, _) = world.commit(&store, b"lapses", &[TARGET]).await;
    let leases = lease(&store, TARGET, 1).await;
    assert_eq!(store.erase(webhook.id).await, ended(1, b"lapses"));
    drop(leases);
    assert_eq!(pending(&store, TARGET).await, 0);
    assert!(lease_now(&store, TARGET, 1).await.is_empty());
}

#[tokio::test]
async fn what_waits_for_another_attempt_or_only_in_the_index_ends_too() {
    let mut world = World::new();
    let store = world.open();
    let (webhook, _) = world.commit(&store, b"later", &[TARGET]).await;
    for lease in lease(&store, TARGET, 1).await {
        let at = world.clock.now().plus(Duration::from_secs(60));
        store.settle(lease, None, Settlement::Retry { at });
    }
    // A start has nothing in memory before somebody asks.
    let disk = world.disk.power_cut(5);
    drop(store);
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(pending(&store, TARGET).await, 1);
    assert_eq!(store.erase(webhook.id).await, ended(1, b"later"));
    world.clock.advance(Duration::from_secs(3600));
    assert_eq!(pending(&store, TARGET).await, 0);
    assert!(lease_now(&store, TARGET, 1).await.is_empty());
}

#[tokio::test]
async fn nothing_brings_an_erased_webhook_back() {
    let world = World::new();
    let store = world.open();
    let (webhook, _) = world.commit(&store, b"gone", &[TARGET]).await;
    for lease in lease(&store, TARGET, 1).await {
        store.settle(lease, None, Settlement::DeadLetter(Cause::GivenUp));
    }
    assert_eq!(store.erase(webhook.id).await, ended(0, b"gone"));
    let at = world.clock.now();
    let redriven = store.settle_dead(vec![(webhook.id, 0)], Settlement::Redriven { at }).await;
    assert_eq!(redriven, Ok(0));
    let deliveries = world.webhook(b"", &[OTHER]).deliveries;
    let added = store.add(vec![Addition { id: webhook.id, deliveries, again: true }]).await;
    assert_eq!(added, Ok(vec![0]));
    assert_eq!((lane(&store, TARGET), lane(&store, OTHER)), ((0, 0), (0, 0)));
}

#[tokio::test]
async fn it_goes_from_a_segment_of_which_everything_lives_also_while_that_is_copied() {
    let mut world = World::new();
    world.settings.segment_bytes = 32 << 10;
    world.settings.retain = Duration::from_secs(2);
    let store = world.open();
    let mut ids = Vec::new();
    for n in 0..80_u8 {
        ids.push(world.commit(&store, &[n; 1500], &[TARGET]).await.0.id);
    }
    // Most are over: what lives is copied forward meanwhile.
    for lease in lease(&store, TARGET, 60).await {
        store.settle(lease, None, Settlement::Delivered);
    }
    world.clock.advance(Duration::from_secs(10));
    let (erased, ()) = tokio::join!(store.erase(ids[79]), clean(&world, &store));
    assert_eq!(erased, ended(1, &[79; 1500]));
    assert_eq!(files_with(&world, &[79; 1500]), 0);
    assert_eq!(drain(&store, TARGET).await.len(), 19);
    let (stored, _) = after_a_rebuild(&mut world, store).await;
    assert!(!stored.contains(&ids[79]));
    assert_eq!(files_with(&world, &[79; 1500]), 0);
}

#[tokio::test]
async fn where_the_disk_does_not_take_it_that_is_said_and_it_can_be_asked_for_again() {
    let world = World::new();
    let store = world.open();
    let (webhook, _) = world.commit(&store, b"stubborn", &[TARGET]).await;
    store.flush().await;
    world.disk.set_faults(Faults { full_at_write: Some(1), ..Faults::default() });
    let refused = store.erase(webhook.id).await;
    assert_eq!(refused, Err(EraseError::Read(ReadError::Unavailable)));
    world.disk.heal();
    // The disk is tried again after a moment.
    let again = within(PATIENCE, async {
        loop {
            let again = store.erase(webhook.id).await;
            if again != Err(EraseError::Read(ReadError::Unavailable)) {
                break again;
            }
        }
    });
    let again = again.await;
    assert!(matches!(again, Ok(Some(_))), "{again:?}");
    assert_eq!(files_with(&world, b"stubborn"), 0);
}

#[tokio::test(start_paused = true)]
async fn it_ends_although_the_disk_was_full_when_a_segment_for_it_was_to_be_made() {
    let world = World::new();
    let (store, mut stepper) = world.open_stepped();
    let (webhook, _) = drive(&mut stepper, world.commit(&store, b"stubborn", &[TARGET])).await;
    // What its target answered gets into the segment that says that it is erased.
    let leases = drive(&mut stepper, store.lease(TARGET, 1, Pick::LongestDue)).await;
    for lease in leases {
        let mut failed = attempt(world.clock.now(), Outcome::Status);
        failed.excerpt = b"so it is"[..].into();
        store.settle(lease, Some(failed), Settlement::Retry { at: world.clock.now() });
    }
    world.disk.set_faults(Faults { full_at_write: Some(1), no_create: true, ..Faults::default() });
    let refused = drive(&mut stepper, world.commit(&store, b"refused", &[TARGET])).await.1;
    assert_eq!(refused, Err(CommitError::DiskFull));
    let mut erases = pin!(store.erase(webhook.id));
    while !store.shared.queue.has_own() {
        turns(&mut stepper);
        assert!(poll_now(&mut erases).is_none());
        tokio::task::yield_now().await;
    }
    // Both get into the first segment that can be made.
    world.disk.heal();
    tokio::time::advance(Duration::from_secs(5)).await;
    let erased = drive(&mut stepper, erases).await;
    assert_eq!(erased, ended(1, b"stubborn"));
    assert_eq!(files_with(&world, b"stubborn"), 0);
    assert_eq!(files_with(&world, b"so it is"), 0, "what its target answered");
}

#[tokio::test]
async fn one_that_a_crash_kept_from_its_end_is_finished_when_it_is_asked_for_again() {
    let mut world = World::new();
    let store = world.open();
    // Most of the segment lives: it is not cleaned by itself.
    world.commit(&store, &[7; 4000], &[TARGET]).await.1.unwrap();
    let (webhook, _) = world.commit(&store, b"half", &[TARGET]).await;
    let before = world.disk.kill();
    drop(store);
    // As a crash leaves it between the record that says so and the cleaning.
    world.use_disk(before);
    let store = world.open();
    let shared = Arc::clone(&store.shared);
    shared.end_all(webhook.id).await.unwrap();
    assert_eq!(store.whole(webhook.id).await, Ok(None));
    assert!(files_with(&world, b"half") > 0);
    let disk = world.disk.power_cut(5);
    drop(store);
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(store.erase(webhook.id).await, ended(0, b""));
    assert_eq!(files_with(&world, b"half"), 0);
}

#[tokio::test]
async fn what_ends_otherwise_while_its_webhook_is_erased_ends_once() {
    let world = World::new();
    let (store, mut stepper) = world.open_stepped();
    turns(&mut stepper);
    let mut ids = Vec::new();
    for body in [b"a", b"b"] {
        let mut commits = pin!(world.commit(&store, body, &["gone"]));
        assert!(poll_now(&mut commits).is_none());
        turns(&mut stepper);
        ids.push(poll_now(&mut commits).unwrap().0.id);
    }
    turns(&mut stepper);
    // Nobody leases them. Both ask for the older one before either of them does anything.
    let mut erases = pin!(store.erase(ids[0]));
    assert!(poll_now(&mut erases).is_none());
    tokio::task::yield_now().await;
    let before = world.clock.now().plus(Duration::from_secs(1));
    let mut expires = pin!(store.expire("gone", before, 1, Cause::TargetRemoved));
    turns(&mut stepper);
    assert_eq!(poll_now(&mut expires), Some(0));
    let erased = loop {
        tokio::task::yield_now().await;
        turns(&mut stepper);
        if let Some(erased) = poll_now(&mut erases) {
            break erased;
        }
    };
    assert_eq!(erased.unwrap().unwrap().ended, 1);
    let lanes = store.lanes();
    assert_eq!((lanes[0].pending, lanes[0].dead.len()), (1, 0), "{lanes:?}");
}

#[tokio::test]
async fn no_operator_s_word_is_heard_on_a_webhook_while_it_is_being_erased() {
    let world = World::new();
    let store = world.open();
    let (webhook, _) = world.commit(&store, b"dead", &[TARGET]).await;
    for lease in lease(&store, TARGET, 1).await {
        store.settle(lease, None, Settlement::DeadLetter(Cause::GivenUp));
    }
    let (key, at) = (webhook.id.key(), world.clock.now());
    let redrive = || store.settle_dead(vec![(webhook.id, 0)], Settlement::Redriven { at });
    store.shared.ask(move |indexer| Ok(indexer.erasing.insert(key))).await.unwrap();
    assert_eq!(redrive().await, Ok(0));
    assert_eq!(lane(&store, TARGET), (0, 1));
    store.shared.ask(move |indexer| Ok(indexer.erasing.remove(&key))).await.unwrap();
    assert_eq!(redrive().await, Ok(1));
    assert_eq!(lane(&store, TARGET), (1, 0));
}
