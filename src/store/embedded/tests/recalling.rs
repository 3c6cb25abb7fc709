//! What a start knows of the webhooks before it, however slowly its disk gives them back.

use super::*;
use crate::domain::limit::SENDER_RETRIES_SPAN;
use crate::store::embedded::log::Log;
use crate::store::embedded::recall::Recall;
use crate::store::embedded::segment::LogPoint;
use crate::store::embedded::sim::Faults;

const TARGET: &str = "crm";
const STARTS: u8 = 12;

/// A body that fills its segment well enough for the cleaner to leave it alone.
fn body(n: u8) -> Vec<u8> {
    vec![n; 40_000]
}

/// A relay that died soon after each of many starts, and its index with it: each start has left a
/// segment with one webhook in it. Its disk is slow.
async fn died_often(between: Duration) -> World {
    let mut world = World::new();
    for n in 0..STARTS {
        let store = world.open();
        world.commit(&store, &body(n), &[TARGET]).await.1.unwrap();
        let disk = world.disk.kill();
        drop(store);
        world.use_disk(disk);
        world.clock.advance(between);
    }
    world.delete_index();
    world.settings.catch_up_wait = Duration::ZERO;
    let slow_reads = Duration::from_millis(100);
    world.disk.set_faults(Faults { slow_reads, ..Faults::default() });
    world
}

#[tokio::test]
async fn what_was_acknowledged_before_many_starts_is_known_however_slow_the_disk() {
    let world = died_often(Duration::from_secs(1)).await;
    let store = world.open();
    assert!(!store.shared.past_is_whole.is_told(), "the disk was not slow at all");
    // Neither what is read first nor what the index, which begins at the other end, has soon.
    for n in (0..STARTS).skip(4).rev() {
        assert!(is_duplicate(&store, &body(n)).await.is_some(), "{n} was taken for new");
    }
}

#[tokio::test]
async fn a_new_webhook_that_had_to_wait_for_the_past_is_stored() {
    let world = died_often(Duration::from_secs(1)).await;
    let store = world.open();
    world.commit(&store, b"new", &[TARGET]).await.1.unwrap();
    assert!(store.shared.past_is_whole.is_told(), "it did not wait");
    assert!(is_duplicate(&store, b"new").await.is_some());
}

#[tokio::test]
async fn a_disk_that_is_too_slow_for_the_past_does_not_hold_up_webhooks_for_ever() {
    let mut world = died_often(Duration::from_secs(1)).await;
    world.settings.recall_patience = Duration::ZERO;
    let store = world.open();
    world.commit(&store, b"new", &[TARGET]).await.1.unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_past() {
    let world = died_often(Duration::from_secs(1)).await;
    let store = world.open();
    let past_is_whole = store.shared.past_is_whole.clone();
    store.close().await;
    drop(store);
    assert!(!past_is_whole.is_told());
}

#[tokio::test]
async fn what_the_sender_may_repeat_is_waited_for_and_of_what_is_older_only_little() {
    let world = died_often(Duration::from_secs(30)).await;
    world.disk.heal();
    let log = Log::open(world.settings.dir.join("segments"), world.settings.disk.clone()).unwrap();
    let recalled = |webhooks_max, bytes_min| {
        let mut recall = Recall::new(&log, LogPoint::default(), webhooks_max, bytes_min);
        let mut times = Vec::new();
        while !recall.is_enough() {
            times.extend(recall.step(&log).iter().map(|recalled| recalled.received_at));
        }
        times
    };
    let newest =
        Timestamp::from_millis(START).plus(Duration::from_secs(30 * u64::from(STARTS - 1)));
    let repeated = recalled(usize::MAX, 0);
    let oldest = *repeated.last().unwrap();
    assert!(
        newest.since(oldest) > SENDER_RETRIES_SPAN,
        "the sender may repeat one it does not know"
    );
    assert!(newest.since(oldest) < 2 * SENDER_RETRIES_SPAN, "it reads more than it must");
    assert_eq!(recalled(usize::MAX, u64::MAX).len(), usize::from(STARTS), "little is read whole");
    assert_eq!(recalled(2, u64::MAX).len(), 2, "no more than is remembered");
}

#[tokio::test]
async fn a_start_whose_clock_is_behind_goes_on_from_the_newest_record_of_any_kind() {
    for (index_is_gone, kills) in [(false, false), (true, false), (true, true), (false, true)] {
        let mut world = World::new();
        world.clock.advance(Duration::from_secs(60));
        let store = world.open();
        world.commit(&store, b"a", &[TARGET]).await.1.unwrap();
        // Nothing comes in for hours, but this is tried: so the newest record is no webhook.
        world.clock.advance(Duration::from_secs(5 * 3600));
        let last = world.clock.now();
        let lease = lease(&store, TARGET, 1).await.pop().unwrap();
        let at = last.plus(Duration::from_secs(3600));
        let failed = attempt(last, Outcome::Status);
        store.settle(lease, Some(failed), Settlement::Retry { at });
        if kills {
            store.flush().await;
            let disk = world.disk.kill();
            drop(store);
            world.use_disk(disk);
        } else {
            store.close().await;
            drop(store);
        }
        if index_is_gone {
            world.delete_index();
        }
        world.clock.fall_behind();
        let store = world.open();
        let now = world.clock.now();
        assert!(now > last, "{now} is before {last}: it would be tried hours late");
        drop(store);
    }
}
