//! A lane whose share of the memory is short: what it leases, and who hears when there is room again.

use std::pin::pin;

use super::*;
use crate::store::archive::Archive as _;

const TARGET: &str = "crm";

/// A store in which a lane has room for that many bytes of bodies, or a little less.
fn with_memory(bytes: usize) -> (World, EmbeddedStore, Stepper) {
    let mut world = World::new();
    world.settings.delivery_memory = bytes;
    let (store, stepper) = world.open_stepped();
    (world, store, stepper)
}

async fn commit(world: &World, store: &EmbeddedStore, stepper: &mut Stepper, body: &[u8]) {
    world.clock.advance(Duration::from_millis(1));
    drive(stepper, world.commit(store, body, &[TARGET])).await.1.unwrap();
}

async fn lease_one(store: &EmbeddedStore, stepper: &mut Stepper, pick: Pick) -> Lease {
    let [lease] = <[Lease; 1]>::try_from(drive(stepper, store.lease(TARGET, 1, pick)).await)
        .unwrap_or_else(|leases| panic!("{} were leased", leases.len()));
    lease
}

#[tokio::test(start_paused = true)]
async fn what_waits_keeps_no_memory_from_what_is_picked() {
    // Less than there is room for beside the others, and more than there ever is.
    for bytes in [3000, 50_000] {
        let (world, store, mut stepper) = with_memory(8000);
        for n in 0..2 {
            commit(&world, &store, &mut stepper, &[n; 2000]).await;
        }
        let tried = drive(&mut stepper, store.lease(TARGET, 2, Pick::LongestDue)).await;
        assert_eq!(tried.len(), 2);
        for lease in tried {
            let now = world.clock.now();
            let failed = attempt(now, Outcome::Status);
            store.settle(lease, Some(failed), Settlement::Retry { at: now });
        }
        assert!(store.lane(TARGET).held() > 8000 - 3000);
        commit(&world, &store, &mut stepper, &vec![7; bytes]).await;
        for (pick, expected) in
            [(Pick::UntriedFirst, bytes), (Pick::LongestDue, 2000), (Pick::UntriedFirst, bytes)]
        {
            let lease = lease_one(&store, &mut stepper, pick).await;
            assert_eq!(lease.delivery.webhook.body.len(), expected, "{pick:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_later_keeps_no_memory_from_what_is_due_for_longest() {
    let (world, store, mut stepper) = with_memory(8000);
    commit(&world, &store, &mut stepper, &[1; 3000]).await;
    drive(&mut stepper, store.close()).await;
    drop((store, stepper));
    let (store, mut stepper) = world.open_stepped();
    stepper.recall();
    while !stepper.is_caught_up() {
        turns(&mut stepper);
    }
    // The first one is read from the index, and has no memory; those that come now take all of it.
    assert!(poll_now(&mut pin!(store.lease(TARGET, 1, Pick::LongestDue))).is_none());
    turns(&mut stepper);
    for n in 2..4 {
        commit(&world, &store, &mut stepper, &[n; 2000]).await;
    }
    assert_eq!(store.lane(TARGET).held(), 2 * (2000 + 1024));
    let lease = lease_one(&store, &mut stepper, Pick::LongestDue).await;
    assert_eq!(*lease.delivery.webhook.body, [1; 3000]);
}

/// How a lease ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Delivered,
    Retried,
    Dropped,
    /// Its webhook was erased meanwhile.
    Erased,
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_memory_hears_of_each_lease_that_ends() {
    for end in [End::Delivered, End::Retried, End::Dropped, End::Erased] {
        let (world, store, mut stepper) = with_memory(4000);
        for n in 0..2 {
            commit(&world, &store, &mut stepper, &[n; 2500]).await;
        }
        let first = lease_one(&store, &mut stepper, Pick::LongestDue).await;
        let id = first.delivery.webhook.id;
        if matches!(end, End::Erased) {
            drive(&mut stepper, store.erase(id)).await.unwrap();
        }
        let mut next = pin!(store.lease(TARGET, 1, Pick::LongestDue));
        pass(&mut stepper, Duration::from_secs(60)).await;
        assert!(poll_now(&mut next).is_none(), "{end:?}");
        match end {
            End::Delivered | End::Erased => store.settle(first, None, Settlement::Delivered),
            End::Retried => {
                let at = world.clock.now().plus(Duration::from_secs(60));
                store.settle(first, None, Settlement::Retry { at });
            }
            End::Dropped => drop(first),
        }
        let next = drive(&mut stepper, next).await;
        assert_eq!(next.len(), 1);
        let is_again = next[0].delivery.webhook.id == id;
        assert_eq!(is_again, matches!(end, End::Dropped), "{end:?}");
    }
}
