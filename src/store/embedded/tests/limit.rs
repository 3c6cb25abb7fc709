//! A store at its limit.

use super::cleaning::{TARGET, clean, small};
use super::*;
use crate::domain::delivery::Cause;
use crate::store::embedded::log::{Limit, Log};
use crate::store::embedded::sim::Faults;
use crate::store::embedded::usage::Usage;

/// How many it took.
async fn commit_until_full(world: &World, store: &EmbeddedStore, kind: u8) -> u32 {
    let mut accepted = 0u32;
    loop {
        let body = [&accepted.to_be_bytes()[..], &[kind; 1500]].concat();
        match world.commit(store, &body, &[TARGET]).await.1 {
            Ok(()) => accepted += 1,
            Err(error) => {
                assert_eq!(error, CommitError::DiskFull);
                assert_eq!(store.pulse().failing, Some(CommitError::DiskFull));
                return accepted;
            }
        }
    }
}

fn bytes(world: &World) -> u64 {
    segments(world).iter().map(|path| world.disk.bytes(path)).sum()
}

/// It looks for room again a second after it had none.
async fn until_it_takes_one(world: &World, store: &EmbeddedStore) {
    let taken = async {
        while let Err(error) = world.commit(store, &[9; 1500], &[TARGET]).await.1 {
            assert_eq!(error, CommitError::DiskFull);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, taken).await;
}

#[tokio::test]
async fn a_store_at_its_limit_refuses_webhooks_and_takes_what_frees_it() {
    const LIMIT: u64 = 100 << 10;
    let mut world = small();
    world.settings.limit = Limit::Bytes(LIMIT);
    let store = world.open();
    let accepted = commit_until_full(&world, &store, 1).await;
    assert!((30..64).contains(&accepted), "{accepted} of 1.6 KB each");
    assert!(bytes(&world) <= LIMIT);
    assert!(store.sizes().available_bytes < 12 << 10);
    // Some are tried again and again: that needs room, and not for webhooks.
    let at = world.clock.now();
    for _ in 0..40 {
        for lease in lease(&store, TARGET, 8).await {
            store.settle(lease, Some(attempt(at, Outcome::Timeout)), Settlement::Retry { at });
        }
        store.flush().await;
        assert_eq!(world.commit(&store, b"no", &[]).await.1, Err(CommitError::DiskFull));
    }
    assert!(bytes(&world) <= LIMIT + 4 * (12 << 10), "{}", bytes(&world));
    for lease in lease_all(&store, TARGET).await {
        store.settle(lease, None, Settlement::Delivered);
    }
    store.close().await;
    drop(store);
    world.delete_index();
    let store = world.open();
    assert!(lease_now(&store, TARGET, 64).await.is_empty(), "they were settled durably");
    world.clock.advance(Duration::from_secs(10));
    clean(&world, &store).await;
    until_it_takes_one(&world, &store).await;
    let taken = commit_until_full(&world, &store, 2).await;
    assert!(taken > accepted / 2, "{taken}");
}

#[tokio::test]
async fn what_is_settled_goes_before_its_time_rather_than_that_webhooks_are_refused() {
    let mut world = small();
    world.settings.limit = Limit::Bytes(100 << 10);
    world.settings.retain = Duration::from_secs(1200);
    let store = world.open();
    commit_until_full(&world, &store, 1).await;
    for lease in lease_all(&store, TARGET).await {
        store.settle(lease, None, Settlement::Delivered);
    }
    // Not over, but older than what is kept at the least.
    world.clock.advance(Duration::from_secs(700));
    store.close().await;
    drop(store);
    let store = world.open();
    clean(&world, &store).await;
    until_it_takes_one(&world, &store).await;
}

#[tokio::test]
async fn a_start_at_the_limit_has_room_for_what_frees_it() {
    let mut world = small();
    world.settings.limit = Limit::Bytes(100 << 10);
    let store = world.open();
    commit_until_full(&world, &store, 1).await;
    for (n, lease) in lease_all(&store, TARGET).await.into_iter().enumerate() {
        let settlement = match n % 7 {
            0 => Settlement::DeadLetter(Cause::GivenUp),
            _ => Settlement::Delivered,
        };
        store.settle(lease, None, settlement);
    }
    store.close().await;
    drop(store);
    // Of each segment something lives, and has to be copied before it may go.
    let before = segments(&world);
    world.settings.limit = Limit::Bytes(bytes(&world));
    let store = world.open();
    assert_eq!(store.pulse().failing, Some(CommitError::DiskFull));
    world.clock.advance(Duration::from_secs(10));
    clean(&world, &store).await;
    assert!(!segments(&world).contains(&before[0]), "nothing is freed");
    until_it_takes_one(&world, &store).await;
}

#[tokio::test(start_paused = true)]
async fn what_others_put_on_the_disk_makes_no_share_of_the_store_smaller() {
    const ROOM: u64 = 100 << 20;
    let world = World::new();
    let dir = world.settings.dir.join("segments");
    let log = |limit| {
        let log = Log::open(dir.clone(), Arc::new(world.disk.clone())).unwrap();
        log.set_limit(limit);
        log
    };
    world.disk.set_faults(Faults { room: Some(ROOM), ..Faults::default() });
    let usage = Usage::of(&log(Limit::Bytes(7 << 20)));
    assert_eq!(usage.shares_of(), Some(7 << 20), "a limit that somebody has set is known at once");

    let log = log(Limit::OfFree);
    let usage = Usage::of(&log);
    assert_eq!((usage.bytes_max(), usage.shares_of()), (Some(ROOM / 5 * 4), None));
    world.disk.set_faults(Faults { room: Some(ROOM / 10), ..Faults::default() });
    tokio::time::advance(Duration::from_secs(61)).await;
    usage.measure(&log);
    assert_eq!(usage.bytes_max(), Some(ROOM / 50 * 4));
    assert_eq!(usage.shares_of(), Some(ROOM / 5 * 4));
}
