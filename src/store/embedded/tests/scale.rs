//! Backlogs larger than the window.

use super::*;

#[tokio::test]
async fn a_large_backlog_is_delivered_once_and_in_order_through_a_bounded_window() {
    const COUNT: usize = 100_000;
    let mut world = World::on_disk();
    world.settings.segment_bytes = 4 << 20;
    let store = world.open();
    let windows = DuplicateWindows::default();
    for chunk in 0..COUNT / 2000 {
        world.clock.advance(Duration::from_millis(3));
        let mut waiting = Vec::new();
        for n in 0..2000 {
            let body = (chunk * 2000 + n).to_be_bytes();
            let webhook = world.webhook(&body, &["crm"]);
            let Claim::First(claimed) = store.claim(webhook.duplicate_key, windows).await else {
                panic!()
            };
            waiting.push(store.commit(webhook, claimed));
        }
        for commit in waiting {
            commit.await.unwrap();
        }
    }
    let lane = store.lane("crm");
    assert!(lane.in_memory() <= 1024);
    store.flush().await;
    assert_eq!(store.lanes()[0].pending, COUNT as u64);
    for expected in 0..COUNT {
        if expected % 1000 == 0 {
            assert!(lane.in_memory() <= 2 * 1024);
        }
        for lease in lease(&store, "crm", 1).await {
            assert_eq!(*lease.delivery.webhook.body, expected.to_be_bytes());
            store.settle(lease, None, Settlement::Delivered);
        }
    }
    assert!(lease_now(&store, "crm", 1).await.is_empty());
    assert!(store.lanes().is_empty());
}

#[tokio::test]
async fn what_is_due_next_is_in_memory_before_the_window_is_empty() {
    let world = World::new();
    let store = world.open();
    for n in 0..1000_u32 {
        world.commit(&store, &n.to_be_bytes(), &["crm"]).await.1.unwrap();
    }
    let lane = store.lane("crm");
    for _ in 0..400 {
        for lease in lease(&store, "crm", 1).await {
            store.settle(lease, None, Settlement::Delivered);
        }
    }
    store.flush().await;
    assert_eq!(lane.in_memory(), 600);
}

#[tokio::test]
async fn what_waits_for_long_takes_no_memory_and_is_delivered_whole() {
    let world = World::new();
    let store = world.open();
    for n in 0..100_u32 {
        world.commit(&store, &n.to_be_bytes(), &["crm"]).await.1.unwrap();
    }
    // One of them is tried again later.
    let [failed] = <[Lease; 1]>::try_from(lease(&store, "crm", 1).await).unwrap();
    let at = world.clock.now().plus(Duration::from_secs(15));
    store.settle(failed, None, Settlement::Retry { at });
    let lane = store.lane("crm");
    assert!(lane.held() > 0);
    world.clock.advance(Duration::from_secs(15));
    world.commit(&store, b"new", &["crm"]).await.1.unwrap();
    until(async || {
        store.flush().await;
        lane.held() < 2 * 1024
    })
    .await;
    assert!(lane.held() > 0, "the new one waits in memory");
    assert_eq!(lane.in_memory(), 101);
    let mut delivered: Vec<_> = drain(&store, "crm").await;
    delivered.sort();
    let mut all: Vec<_> = (0..100_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    all.push(b"new".to_vec());
    all.sort();
    assert_eq!(delivered, all);
}
