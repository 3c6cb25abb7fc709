//! What is past its time goes, and what lives is copied forward.

use super::cleaning::{clean, deliver, small};
use super::*;
use crate::domain::delivery::Cause;
use crate::store::embedded::forward::copy_of;
use crate::store::embedded::record::Standing;

#[tokio::test]
async fn what_is_settled_goes_with_its_segments_and_what_lives_is_copied_forward() {
    let mut world = World::new();
    world.settings.retain = Duration::from_millis(640);
    world.settings.segment_bytes = 32 << 10;
    let store = world.open();
    let mut kept = Vec::new();
    for n in 0..200u8 {
        let body = vec![n; 2000];
        world.commit(&store, &body, &["crm"]).await.1.unwrap();
        for lease in lease(&store, "crm", 1).await {
            let at = world.clock.now();
            match n % 40 {
                0 => {
                    let at = at.plus(Duration::from_secs(3600));
                    let failed = Some(attempt(world.clock.now(), Outcome::Timeout));
                    store.settle(lease, failed, Settlement::Retry { at });
                    kept.push(body.clone());
                }
                1 => store.settle(lease, None, Settlement::DeadLetter(Cause::GivenUp)),
                _ => store.settle(lease, None, Settlement::Delivered),
            }
        }
    }
    let before = segments(&world).len();
    assert!(before > 12, "{before}");
    world.clock.advance(Duration::from_secs(10));
    let shrunk = async {
        while segments(&world).len() > 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, shrunk).await;
    store.close().await;
    drop(store);
    for delete_index in [false, true] {
        if delete_index {
            world.delete_index();
        }
        let store = world.open();
        assert_eq!(store.lanes()[0].pending, 5);
        assert_eq!(store.lanes()[0].dead, [(Cause::GivenUp, 5)]);
        assert!(lease_now(&store, "crm", 8).await.is_empty());
        drop(store);
    }
    world.clock.advance(Duration::from_secs(3600));
    let store = world.open();
    let mut leases = lease(&store, "crm", 64).await;
    leases.sort_by_key(|lease| lease.delivery.webhook.id);
    let found: Vec<_> = leases.iter().map(|lease| lease.delivery.webhook.body.to_vec()).collect();
    assert_eq!(found, kept);
    assert!(leases.iter().all(|lease| lease.delivery.attempts == 1));
}

/// A store with one dead letter that is past its time as soon as a moment passes.
async fn with_dead_letter(world: &mut World) -> EmbeddedStore {
    world.settings.retain = Duration::from_millis(64);
    world.settings.retain_dead_letters = Duration::from_millis(64);
    let store = world.open();
    world.commit(&store, b"dead", &["crm"]).await.1.unwrap();
    for lease in lease(&store, "crm", 1).await {
        store.settle(lease, None, Settlement::DeadLetter(Cause::GivenUp));
    }
    store.flush().await;
    store
}

fn dead(store: &EmbeddedStore) -> usize {
    store.lanes().iter().map(|lane| lane.dead.len()).sum()
}

/// Lets the indexer do what it does, many times over.
async fn busy(store: &EmbeddedStore) {
    for _ in 0..1000 {
        store.flush().await;
    }
}

async fn expires(store: &EmbeddedStore) {
    let gone = async {
        while dead(store) > 0 {
            store.flush().await;
        }
    };
    within(PATIENCE, gone).await;
}

#[tokio::test]
async fn nothing_expires_while_the_clock_is_in_doubt() {
    let mut world = World::new();
    let store = with_dead_letter(&mut world).await;
    world.clock.doubt(true);
    world.clock.advance(Duration::from_secs(10));
    busy(&store).await;
    assert_eq!(dead(&store), 1);
    world.clock.doubt(false);
    expires(&store).await;
}

#[tokio::test]
async fn nothing_expires_because_a_store_holds_records_from_the_future() {
    let mut world = World::new();
    let store = with_dead_letter(&mut world).await;
    world.clock.raise(Duration::from_secs(10 * 86_400));
    busy(&store).await;
    assert_eq!(dead(&store), 1);
    world.clock.advance(Duration::from_secs(1));
    expires(&store).await;
}

#[tokio::test]
async fn what_was_delivered_while_it_was_copied_and_then_ended_is_not_due_again() {
    let world = small();
    let store = world.open();
    let (webhook, result) = world.commit(&store, &[1; 1500], &["late"]).await;
    result.unwrap();
    let first = segments(&world);
    deliver(&world, &store).await;
    for lease in lease(&store, "late", 1).await {
        store.settle(lease, None, Settlement::Delivered);
    }
    store.flush().await;
    // The cleaner did not see that yet, and is stopped before it writes down where it stands.
    store.shared.queue.roll();
    let standings = vec![Standing::new(webhook.received_at)];
    store.shared.written(vec![copy_of(webhook, standings)]).await.unwrap();
    world.commit(&store, &[10; 3000], &["kept"]).await.1.unwrap();
    store.close().await;
    drop(store);
    let store = world.open();
    world.clock.advance(Duration::from_secs(10));
    clean(&world, &store).await;
    assert!(!segments(&world).contains(&first[0]), "the first record of it is gone");
    store.close().await;
    drop(store);
    world.delete_index();
    let store = world.open();
    assert_eq!(pending(&store, "late").await, 0, "due again");
    assert_eq!(pending(&store, "kept").await, 1);
}

#[tokio::test]
async fn nothing_is_ended_or_copied_while_a_webhook_is_being_erased() {
    let mut world = World::new();
    let store = with_dead_letter(&mut world).await;
    store.shared.ask(|indexer| Ok(indexer.erasing.insert(7))).await.unwrap();
    world.clock.advance(Duration::from_secs(10));
    busy(&store).await;
    assert_eq!(dead(&store), 1);
    store.shared.ask(|indexer| Ok(indexer.erasing.remove(&7))).await.unwrap();
    expires(&store).await;
}
