//! A disk that can't be read for a while, and then can.

use std::pin::pin;

use super::*;
use crate::domain::delivery::{Cause, State};
use crate::store::archive::Archive as _;
use crate::store::embedded::record::{Settled, Standing};
use crate::store::embedded::segment::HEADER_BYTES;
use crate::store::listing::ReadError;

const TARGET: &str = "crm";

/// Starts again, with no index, while one of the segments can't be read.
async fn start_without(
    world: &World,
    segment: usize,
    store: EmbeddedStore,
    mut stepper: Stepper,
) -> (EmbeddedStore, Stepper, std::path::PathBuf) {
    drive(&mut stepper, store.close()).await;
    drop((store, stepper));
    world.delete_index();
    let path = segments(world).remove(segment);
    world.disk.break_reads(&path, HEADER_BYTES..HEADER_BYTES + 512);
    let (store, mut stepper) = world.open_stepped();
    stepper.recall();
    while !stepper.is_caught_up() {
        tokio::time::advance(world.settings.read_patience).await;
        stepper.index();
    }
    (store, stepper, path)
}

/// A store that had to start without a part of its log, and one webhook that is in it.
async fn with_a_gap() -> (World, EmbeddedStore, Stepper, std::path::PathBuf, WebhookId) {
    let mut world = World::new();
    // So that whatever can go does.
    world.settings.retain = Duration::from_secs(1);
    let (store, mut stepper) = world.open_stepped();
    let (before, committed) = drive(&mut stepper, world.commit(&store, b"before", &[TARGET])).await;
    committed.unwrap();
    let (store, stepper, path) = start_without(&world, 0, store, stepper).await;
    (world, store, stepper, path, before.id)
}

/// The same a moment later: it can be read again, and another webhook was committed since.
async fn around_a_gap() -> (World, EmbeddedStore, Stepper, std::path::PathBuf) {
    let (world, store, mut stepper, path, _) = with_a_gap().await;
    world.disk.mend(&path);
    drive(&mut stepper, world.commit(&store, b"since", &[TARGET])).await.1.unwrap();
    (world, store, stepper, path)
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_was_not_read_to_its_end_is_not_cleaned_away() {
    let (world, _store, mut stepper, path) = around_a_gap().await;
    for _ in 0..20 {
        world.clock.advance(Duration::from_secs(1));
        pass(&mut stepper, Duration::from_secs(1)).await;
    }
    assert!(segments(&world).contains(&path), "nobody knows what was in it");
}

#[tokio::test(start_paused = true)]
async fn what_can_be_read_again_is_delivered_without_a_restart_and_nothing_twice() {
    let (world, store, mut stepper, _path) = around_a_gap().await;
    let mut bodies = Vec::new();
    // What is there is delivered meanwhile.
    while bodies.len() < 2 {
        let leases = drive(&mut stepper, store.lease(TARGET, 1, Pick::LongestDue)).await;
        for lease in leases {
            bodies.push(lease.delivery.webhook.body.clone());
            store.settle(lease, None, Settlement::Delivered);
        }
        world.clock.advance(Duration::from_secs(60));
        pass(&mut stepper, Duration::from_secs(60)).await;
    }
    assert_eq!(bodies, [&b"since"[..], b"before"]);
    for _ in 0..4 {
        pass(&mut stepper, world.settings.sweep_wait).await;
    }
    assert!(store.lanes().is_empty(), "{:?}", store.lanes());
    assert_eq!(store.health().sweep_findings, 0);
    assert!(store.lane(TARGET).standing().counted.pending == 0);
}

#[tokio::test(start_paused = true)]
async fn what_can_t_be_read_just_now_is_not_said_to_be_erased() {
    let (world, store, mut stepper, path, id) = with_a_gap().await;
    let erased = drive(&mut stepper, store.erase(id)).await;
    assert_eq!(erased, Err(ReadError::Unavailable.into()));
    world.disk.mend(&path);
    // Once it is read it goes, for whoever asks until nothing of it is stored.
    let mut answers = Vec::new();
    while answers.last() != Some(&Ok(None)) {
        answers.push(drive(&mut stepper, store.erase(id)).await);
        pass(&mut stepper, Duration::from_secs(30)).await;
        assert!(answers.len() < 10, "{answers:?}");
    }
    assert!(answers.len() > 1, "{answers:?}");
}

/// A store that had to start without what was settled last, and a delivery of it that is on its way while
/// that can be read again.
async fn on_its_way_while_a_gap_is_filled(
    settlements: &[Settlement],
) -> (World, EmbeddedStore, Stepper, Lease) {
    let world = World::new();
    let (store, mut stepper) = world.open_stepped();
    drive(&mut stepper, world.commit(&store, b"first", &[TARGET])).await.1.unwrap();
    store.shared.queue.roll();
    for settlement in settlements {
        for lease in drive(&mut stepper, store.lease(TARGET, 1, Pick::LongestDue)).await {
            let failed = attempt(world.clock.now(), Outcome::Status);
            store.settle(lease, Some(failed), *settlement);
        }
    }
    let (store, mut stepper, path) = start_without(&world, 1, store, stepper).await;
    let lease = drive(&mut stepper, store.lease(TARGET, 1, Pick::LongestDue)).await.remove(0);
    assert_eq!(lease.delivery.attempts, 0, "nobody knows better");
    world.disk.mend(&path);
    pass(&mut stepper, Duration::from_secs(61)).await;
    (world, store, stepper, lease)
}

fn retry_now() -> Settlement {
    Settlement::Retry { at: Timestamp::from_millis(START) }
}

/// Nothing more comes, and nothing is found.
async fn is_over(world: &World, store: &EmbeddedStore, stepper: &mut Stepper) {
    let mut more = pin!(store.lease(TARGET, 1, Pick::LongestDue));
    for _ in 0..4 {
        world.clock.advance(world.settings.sweep_wait);
        pass(stepper, world.settings.sweep_wait).await;
        assert!(poll_now(&mut more).is_none());
    }
    assert!(store.lanes().is_empty(), "{:?}", store.lanes());
    assert_eq!(store.health().sweep_findings, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_delivered_while_the_log_says_of_it_more_than_was_known_is_not_delivered_again() {
    let (world, store, mut stepper, lease) =
        on_its_way_while_a_gap_is_filled(&[retry_now(); 3]).await;
    store.settle(lease, None, Settlement::Delivered);
    is_over(&world, &store, &mut stepper).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_while_the_log_says_of_it_more_than_was_known_goes_on_from_there() {
    let (world, store, mut stepper, lease) =
        on_its_way_while_a_gap_is_filled(&[retry_now(); 3]).await;
    let failed = attempt(world.clock.now(), Outcome::Status);
    store.settle(lease, Some(failed), retry_now());
    let lease = drive(&mut stepper, store.lease(TARGET, 1, Pick::LongestDue)).await.remove(0);
    assert_eq!(lease.delivery.attempts, 4);
    store.settle(lease, None, Settlement::Delivered);
    is_over(&world, &store, &mut stepper).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_over_by_the_log_is_over_however_an_attempt_ends_that_is_on_its_way() {
    for settlement in [retry_now(), Settlement::Delivered] {
        let (world, store, mut stepper, lease) =
            on_its_way_while_a_gap_is_filled(&[retry_now(), Settlement::Delivered]).await;
        store.settle(lease, None, settlement);
        is_over(&world, &store, &mut stepper).await;
    }
}

#[test]
fn what_was_delivered_is_whatever_else_is_known() {
    let webhook = WebhookId::from_key(7);
    let settled = |version, settlement| Settled {
        webhook,
        number: 0,
        version,
        attempts: version,
        attempt: None,
        settlement,
    };
    let mut standing = Standing::new(Timestamp::from_millis(START));
    assert!(standing.apply(&settled(9, Settlement::DeadLetter(Cause::Expired))));
    assert!(!standing.apply(&settled(3, retry_now())), "it is older");
    assert!(standing.apply(&settled(3, Settlement::Delivered)));
    assert_eq!((standing.state, standing.version, standing.attempts), (State::Delivered, 9, 9));
    assert!(!standing.apply(&settled(3, Settlement::Delivered)), "it was taken in before");
    assert!(!standing.apply(&settled(9, Settlement::Delivered)));
}
