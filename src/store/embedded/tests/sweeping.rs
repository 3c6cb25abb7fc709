//! Log, index and lanes, held against each other.

use super::*;
use crate::domain::delivery::Cause;
use crate::store::archive::Archive as _;

const TARGET: &str = "crm";

/// A world whose store looks all the time.
fn watched() -> World {
    let mut world = World::new();
    world.settings.sweep_wait = Duration::ZERO;
    world
}

/// Waits for so many looks.
async fn looks(store: &EmbeddedStore, count: usize) {
    for _ in 0..count {
        store.flush().await;
        store.flush().await;
    }
}

#[tokio::test]
async fn nothing_is_found_in_a_store_that_is_well() {
    let world = watched();
    let store = world.open();
    for n in 0..50_u8 {
        world.commit(&store, &[n], &[TARGET, "other"]).await.1.unwrap();
        for lease in lease(&store, TARGET, 8).await {
            let settlement = match n % 3 {
                0 => Settlement::Delivered,
                1 => Settlement::Retry { at: world.clock.now() },
                _ => Settlement::DeadLetter(Cause::GivenUp),
            };
            store.settle(lease, None, settlement);
        }
    }
    looks(&store, 5).await;
    let health = store.health();
    assert_eq!((health.sweep_findings, health.damaged_records), (0, 0));
}

#[tokio::test]
async fn what_a_lane_counts_otherwise_than_the_index_is_found() {
    let world = watched();
    let store = world.open();
    world.commit(&store, b"one", &[TARGET]).await.1.unwrap();
    // As a bug would leave it.
    store.shared.lanes.lane(TARGET).forget_dead(Cause::Expired, 1);
    let found = async {
        while store.health().sweep_findings == 0 {
            looks(&store, 1).await;
        }
    };
    within(PATIENCE, found).await;
    looks(&store, 5).await;
    assert_eq!(store.health().sweep_findings, 1, "it is told once");
}

#[tokio::test]
async fn what_is_on_its_way_when_its_webhook_is_erased_counts_no_more() {
    let world = watched();
    let store = world.open();
    let (webhook, _) = world.commit(&store, b"on its way", &[TARGET]).await;
    let mut leases = lease(&store, TARGET, 1).await;
    store.erase(webhook.id).await.unwrap();
    looks(&store, 5).await;
    assert_eq!((store.health().sweep_findings, pending(&store, TARGET).await), (0, 0));
    store.settle(leases.remove(0), None, Settlement::Retry { at: world.clock.now() });
    looks(&store, 5).await;
    assert_eq!((store.health().sweep_findings, pending(&store, TARGET).await), (0, 0));
    assert!(lease_now(&store, TARGET, 1).await.is_empty());
}

#[tokio::test]
async fn a_record_that_decays_is_found_before_anybody_asks_for_it() {
    let world = watched();
    let store = world.open();
    world.commit(&store, b"whole", &[TARGET]).await.1.unwrap();
    world.commit(&store, b"rotten", &[TARGET]).await.1.unwrap();
    store.flush().await;
    world.disk.change(&segments(&world)[0], |bytes| {
        let at = bytes.windows(6).position(|window| window == b"rotten").unwrap();
        bytes[at] ^= 1;
    });
    let found = async {
        while store.health().damaged_records == 0 {
            looks(&store, 1).await;
        }
    };
    within(PATIENCE, found).await;
    assert_eq!(store.health().damaged_records, 1);
}
