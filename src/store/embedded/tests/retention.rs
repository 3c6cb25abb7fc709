//! What is past its time goes, and what lives is copied forward.

use super::*;
use crate::domain::delivery::Cause;

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
