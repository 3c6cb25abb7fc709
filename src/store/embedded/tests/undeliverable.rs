//! Records that are found damaged when they are to be delivered.

use super::damage::three;
use super::*;
use crate::store::archive::Archive as _;
use crate::store::listing::Place;

const TARGET: &str = "crm";

#[tokio::test]
async fn a_record_damaged_under_a_running_store_is_a_dead_letter() {
    let mut world = World::new();
    let store = world.open();
    for n in 0..3u8 {
        world.commit(&store, &[n; 300], &[TARGET]).await.1.unwrap();
    }
    let path = segments(&world).pop().unwrap();
    store.close().await;
    drop(store);
    let disk = world.disk.kill();
    world.use_disk(disk);
    world.disk.change(&path, |bytes| {
        let at = bytes.windows(8).position(|window| window == [1; 8]).unwrap();
        bytes[at] ^= 1;
    });
    let store = world.open();
    let page = store.page(Place::START, 8).await.unwrap();
    assert_eq!((page.webhooks.len(), page.left_out), (2, 1));
    let leases = lease(&store, TARGET, 8).await;
    assert_eq!(leases.len(), 2);
    assert_eq!(store.health().damaged_records, 1);
    let lanes = store.lanes();
    assert_eq!(lanes[0].dead, [(crate::domain::delivery::Cause::Damaged, 1)]);
}

#[tokio::test]
async fn a_damaged_record_is_a_dead_letter_also_where_nobody_waits_for_its_lease_any_more() {
    let (world, _, _) = three().await;
    let store = world.open();
    store.close().await;
    drop(store);
    // It may have been copied forward.
    for path in segments(&world) {
        world.disk.change(&path, |bytes| {
            if let Some(at) = bytes.windows(6).position(|window| window == b"second") {
                bytes[at] ^= 1;
            }
        });
    }
    let store = world.open();
    let mut sound = lease(&store, TARGET, 1).await;
    // The index does not answer whose record it is, and whoever leases gives up meanwhile.
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (request, answer) = crate::store::embedded::inbox::Request::ask(move |_| {
        assert!(wait.recv().is_err());
        Ok(())
    });
    store.shared.inbox.request(request);
    sound.extend(lease_now(&store, TARGET, 8).await);
    drop(go_on);
    answer.await.unwrap();
    let settled = async {
        while store.lanes()[0].dead.is_empty() {
            sound.extend(lease_now(&store, TARGET, 8).await);
            store.flush().await;
        }
    };
    within(PATIENCE, settled).await;
    assert_eq!(sound.len(), 2);
    assert_eq!(store.lanes()[0].dead, [(crate::domain::delivery::Cause::Damaged, 1)]);
}

#[tokio::test]
async fn a_copy_of_what_can_t_be_delivered_is_taken_for_new() {
    let mut world = World::new();
    // Nothing is delivered from memory.
    world.settings.delivery_memory = 0;
    let store = world.open();
    world.commit(&store, b"rotten", &[TARGET]).await.1.unwrap();
    store.flush().await;
    assert!(is_duplicate(&store, b"rotten").await.is_some());
    world.disk.change(&segments(&world)[0], |bytes| {
        let at = bytes.windows(6).position(|window| window == b"rotten").unwrap();
        bytes[at] ^= 1;
    });
    assert!(lease_now(&store, TARGET, 1).await.is_empty());
    world.commit(&store, b"rotten", &[TARGET]).await.1.unwrap();
    assert_eq!(drain(&store, TARGET).await, [&b"rotten"[..]]);
}
