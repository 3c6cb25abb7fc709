//! Disks that fail, and power that goes.

use super::*;
use crate::domain::limit::ANSWER_WAIT_MAX;
use crate::store::Pulse;
use crate::store::archive::Archive;
use crate::store::embedded::disk::Disk as _;
use crate::store::embedded::segment::HEADER_BYTES;
use crate::store::embedded::sim::Faults;
use crate::store::listing::Place;

const TARGET: &str = "crm";

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_on_that_file() {
    let world = World::new();
    let store = world.open();
    world.commit(&store, b"one", &[TARGET]).await.1.unwrap();
    let before = segments(&world);
    world.disk.set_faults(Faults { broken_at_sync: Some(1), ..Faults::default() });
    let (_, result) = world.commit(&store, b"two", &[TARGET]).await;
    assert_eq!(result, Err(CommitError::Unavailable));
    world.commit(&store, b"three", &[TARGET]).await.1.unwrap();
    let after = segments(&world);
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(store.health().failing, None);
    let bodies = drain(&store, TARGET).await;
    assert_eq!(bodies, [&b"one"[..], b"three"]);
}

#[tokio::test]
async fn what_a_failed_sync_refused_does_not_come_back() {
    let mut world = World::new();
    let store = world.open();
    world.disk.set_faults(Faults { broken_at_sync: Some(1), ..Faults::default() });
    world.commit(&store, b"refused", &[TARGET]).await.1.unwrap_err();
    world.commit(&store, b"taken", &[TARGET]).await.1.unwrap();
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    world.delete_index();
    let store = world.open();
    assert_eq!(drain(&store, TARGET).await, [&b"taken"[..]]);
}

#[tokio::test]
async fn a_full_disk_is_said_and_forgotten_and_deliveries_go_on() {
    let world = World::new();
    let store = world.open();
    for n in 0..3u8 {
        world.commit(&store, &[n], &[TARGET]).await.1.unwrap();
    }
    world.disk.set_faults(Faults { full_at_write: Some(1), ..Faults::default() });
    for _ in 0..3 {
        let (_, result) = world.commit(&store, b"more", &[TARGET]).await;
        assert_eq!(result, Err(CommitError::DiskFull));
        assert_eq!(store.health().failing, Some(CommitError::DiskFull));
    }
    assert_eq!(drain(&store, TARGET).await.len(), 3);
    world.disk.heal();
    let healthy = async {
        while store.health().failing.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, healthy).await;
    world.commit(&store, b"more", &[TARGET]).await.1.unwrap();
    store.close().await;
    drop(store);
    // What was settled while the disk was full is settled.
    world.delete_index();
    let store = world.open();
    assert_eq!(drain(&store, TARGET).await, [&b"more"[..]]);
}

#[tokio::test]
async fn a_store_on_a_full_disk_starts_and_delivers() {
    let mut world = World::new();
    let store = world.open();
    world.commit(&store, b"kept", &[TARGET]).await.1.unwrap();
    drop(store);
    let disk = world.disk.kill();
    world.use_disk(disk);
    world.disk.set_faults(Faults { no_create: true, ..Faults::default() });
    let store = world.open();
    assert_eq!(store.health().failing, Some(CommitError::DiskFull));
    assert_eq!(world.commit(&store, b"x", &[TARGET]).await.1, Err(CommitError::DiskFull));
    assert_eq!(drain(&store, TARGET).await, [&b"kept"[..]]);
}

#[tokio::test]
async fn what_a_failed_sync_refused_does_not_come_back_where_no_new_segment_can_be_made() {
    let mut world = World::new();
    let store = world.open();
    world.disk.set_faults(Faults { broken_at_sync: Some(1), no_create: true, ..Faults::default() });
    world.commit(&store, b"refused", &[TARGET]).await.1.unwrap_err();
    // The disk would show it from memory, but will never have it.
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(is_duplicate(&store, b"refused").await, None);
    assert!(drain(&store, TARGET).await.is_empty());
}

#[tokio::test]
async fn what_is_committed_while_the_log_can_not_be_read_is_counted_once() {
    let mut world = World::new();
    let store = world.open();
    world.commit(&store, b"before", &[TARGET]).await.1.unwrap();
    drop(store);
    world.settings.catch_up_wait = Duration::ZERO;
    let disk = world.disk.kill();
    world.use_disk(disk);
    world.delete_index();
    let path = segments(&world).pop().unwrap();
    world.disk.break_reads(&path, HEADER_BYTES..u64::MAX);
    let store = world.open();
    world.commit(&store, b"during", &[TARGET]).await.1.unwrap();
    world.disk.mend(&path);
    store.flush().await;
    assert_eq!(store.lanes()[0].pending, 2);
    assert_eq!(drain(&store, TARGET).await, [&b"before"[..], b"during"]);
    assert!(store.lanes().is_empty());
}

#[tokio::test]
async fn a_disk_that_hangs_is_said_while_it_hangs_and_forgotten_when_it_goes_on() {
    let world = World::new();
    let store = world.open();
    world.commit(&store, b"before", &[]).await.1.unwrap();
    world.disk.set_faults(Faults { hung_at_sync: Some(1), ..Faults::default() });
    let webhook = world.webhook(b"during", &[]);
    let key = webhook.duplicate_key;
    let Claim::First(claimed) = store.claim(key, DuplicateWindows::default()).await else {
        panic!("it is new");
    };
    let commit = store.commit(webhook, claimed);
    while world.disk.operations().1 == 0 {
        tokio::task::yield_now().await;
    }
    // The store has threads of its own: only what is asked here sees the time pass.
    tokio::time::pause();
    assert_eq!(store.pulse().failing, None, "a sync may take a while");
    tokio::time::advance(ANSWER_WAIT_MAX + Duration::from_secs(1)).await;
    let pulse = store.pulse();
    assert!(pulse.is_held_up(), "{pulse:?}");
    assert_eq!(pulse.failing, Some(CommitError::Unavailable));
    assert_eq!(store.health().failing, Some(CommitError::Unavailable));
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(store.pulse().held_up_for > Duration::from_secs(30));
    tokio::time::resume();
    world.disk.heal();
    commit.await.unwrap();
    let again = async {
        while store.pulse() != Pulse::default() {
            tokio::task::yield_now().await;
        }
    };
    within(PATIENCE, again).await;
}

#[tokio::test]
async fn a_disk_with_less_room_than_a_segment_is_used_to_its_end() {
    let mut world = World::new();
    world.settings.segment_bytes = 64 << 20;
    let room = 9 << 20;
    world.disk.set_faults(Faults { room: Some(room), ..Faults::default() });
    let store = world.open();
    assert_eq!(store.health().failing, None);
    let mut accepted = Vec::new();
    let refused = loop {
        let n = u32::try_from(accepted.len()).unwrap();
        let body = [&n.to_be_bytes()[..], &[7; 50_000]].concat();
        match world.commit(&store, &body, &[TARGET]).await {
            (webhook, Ok(())) => accepted.push(webhook.body),
            (_, Err(error)) => break error,
        }
    };
    assert_eq!(refused, CommitError::DiskFull);
    assert_eq!(store.health().failing, Some(CommitError::DiskFull));
    assert!(accepted.len() > 140, "only {} of about 180", accepted.len());
    // What becomes of them is written down even now.
    assert_eq!(drain(&store, TARGET).await, accepted);
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    world.delete_index();
    let store = world.open();
    assert!(drain(&store, TARGET).await.is_empty(), "settlements had room");
}

#[tokio::test]
async fn where_a_large_webhook_has_no_room_a_small_one_is_taken() {
    let mut world = World::new();
    world.settings.segment_bytes = 64 << 20;
    world.disk.set_faults(Faults { room: Some(3 << 20), ..Faults::default() });
    let store = world.open();
    let (_, result) = world.commit(&store, &vec![1; 4 << 20], &[TARGET]).await;
    assert_eq!(result, Err(CommitError::DiskFull));
    assert_eq!(store.health().failing, Some(CommitError::DiskFull));
    world.commit(&store, b"small", &[TARGET]).await.1.unwrap();
    assert_eq!(store.health().failing, None);
    world.disk.heal();
    world.commit(&store, b"another", &[TARGET]).await.1.unwrap();
    let large = vec![2; 4 << 20];
    let accepted = async {
        while world.commit(&store, &large, &[TARGET]).await.1.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, accepted).await;
}

#[tokio::test]
async fn a_segment_is_in_its_directory_for_good_before_anything_in_it_is_acknowledged() {
    // By chance an entry survives that was not made durable: not eight times over.
    for seed in 0..8 {
        let mut world = World::new();
        let store = world.open();
        let mut acknowledged = Vec::new();
        // More than a segment takes.
        for n in 0..24u8 {
            let (webhook, result) = world.commit(&store, &[n; 4000], &[TARGET]).await;
            result.unwrap();
            acknowledged.push(webhook.body);
        }
        assert!(segments(&world).len() > 1);
        let disk = world.disk.power_cut(seed);
        drop(store);
        world.use_disk(disk);
        world.delete_index();
        let store = world.open();
        assert_eq!(drain(&store, TARGET).await, acknowledged, "seed {seed}");
        assert_eq!(store.health().damaged_records, 0);
    }
}

#[test]
fn a_segment_that_was_removed_is_gone_for_good() {
    use crate::store::embedded::log::Log;
    for seed in 0..8 {
        let disk = SimDisk::default();
        let log = Log::open("segments".into(), Arc::new(disk.clone())).unwrap();
        for salt in 0..2 {
            log.create(salt, Timestamp::default(), None, HEADER_BYTES).unwrap();
        }
        log.remove(1).unwrap();
        let files = disk.power_cut(seed).files();
        assert_eq!(files, [Path::new("segments/00000002.log")], "seed {seed}");
    }
}

/// A disk after a process that was killed between a webhook's write and its sync.
async fn killed_before_the_sync(body: &[u8]) -> World {
    let mut world = World::new();
    let store = world.open();
    world.disk.set_faults(Faults { dead_from_change: Some(2), ..Faults::default() });
    world.commit(&store, body, &[TARGET]).await.1.unwrap_err();
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    world
}

/// Opens the store once more, as another process.
fn open_again(world: &mut World, store: EmbeddedStore) -> EmbeddedStore {
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    world.open()
}

#[tokio::test]
async fn what_no_start_could_make_durable_is_nobodys_first() {
    // As much as keeps the cleaner from copying it forward, which makes it durable.
    let body = &[7; 9000];
    for delete_index in [false, true] {
        let mut world = killed_before_the_sync(body).await;
        world.disk.set_faults(Faults { broken_at_sync: Some(1), ..Faults::default() });
        let store = world.open();
        assert!(world.disk.has_met_fault());
        assert_eq!(is_duplicate(&store, body).await, None);
        store.flush().await;
        if delete_index {
            world.delete_index();
        }
        // Its sync succeeds, but the disk has dropped what it was for.
        let store = open_again(&mut world, store);
        world.commit(&store, body, &[TARGET]).await.1.unwrap();
        let disk = world.disk.power_cut(1);
        drop(store);
        world.use_disk(disk);
        world.delete_index();
        let store = world.open();
        assert!(is_duplicate(&store, body).await.is_some(), "lost: {delete_index}");
        assert_eq!(drain(&store, TARGET).await.len(), 1);
    }
}

#[tokio::test]
async fn what_was_refused_does_not_come_back_when_the_segment_that_said_so_is_gone() {
    let mut came_back = Vec::new();
    for seed in 0..8 {
        let mut world = cleaning::small();
        world.settings.segment_bytes = 20 << 10;
        let store = world.open();
        // So much that its segment stays.
        world.commit(&store, &[1; 6000], &[TARGET]).await.1.unwrap();
        world.disk.set_faults(Faults { broken_at_sync: Some(1), ..Faults::default() });
        world.commit(&store, b"refused", &[TARGET]).await.1.unwrap_err();
        world.commit(&store, b"taken", &["other"]).await.1.unwrap();
        let void = segments(&world).pop().unwrap();
        while segments(&world).contains(&void) {
            for n in 0..8u8 {
                let body = [&[n; 1500][..], &world.clock.now().as_millis().to_be_bytes()].concat();
                world.commit(&store, &body, &["other"]).await.1.unwrap();
            }
            drain(&store, "other").await;
            world.clock.advance(Duration::from_secs(10));
            cleaning::clean(&world, &store).await;
        }
        let disk = world.disk.power_cut(seed);
        drop(store);
        world.use_disk(disk);
        world.delete_index();
        let store = world.open();
        let bodies = drain(&store, TARGET).await;
        assert!(!bodies.is_empty(), "lost");
        came_back.extend(bodies.contains(&Bytes::from_static(b"refused")).then_some(seed));
    }
    assert!(came_back.is_empty(), "{came_back:?}");
}

#[tokio::test]
async fn a_segment_that_is_made_for_a_webhook_has_room_for_it() {
    let mut world = World::new();
    world.settings.segment_bytes = 12 << 10;
    let store = world.open();
    for bytes in (6000..14_000).step_by(125) {
        let (_, result) = world.commit(&store, &vec![7; bytes], &[TARGET]).await;
        assert_eq!(result, Ok(()), "{bytes}");
    }
}

/// Keeps SQLite from opening the index; what is in the file stays as it is.
pub(super) fn block_index(world: &World) -> std::path::PathBuf {
    let inside = world.settings.dir.join("index.sqlite-wal/inside");
    std::fs::create_dir_all(&inside).unwrap();
    inside.parent().unwrap().to_owned()
}

#[tokio::test]
async fn what_was_cleaned_away_while_the_index_was_in_memory_does_not_come_back() {
    let world = cleaning::small();
    let store = world.open();
    world.commit(&store, &[50; 1500], &[TARGET]).await.1.unwrap();
    for n in 0..12u8 {
        world.commit(&store, &[n; 1500], &["other"]).await.1.unwrap();
    }
    // It lives on: what the old index was made from is there at the end.
    world.commit(&store, &[51; 9000], &["kept"]).await.1.unwrap();
    store.close().await;
    drop(store);
    let blocked = block_index(&world);
    let store = world.open();
    assert_eq!(drain(&store, TARGET).await.len() + drain(&store, "other").await.len(), 13);
    let before = segments(&world);
    for n in 0..12u8 {
        world.commit(&store, &[100 + n; 1500], &["other"]).await.1.unwrap();
    }
    drain(&store, "other").await;
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(10));
        cleaning::clean(&world, &store).await;
    }
    let after = segments(&world);
    assert!(!after.contains(&before[0]), "it was cleaned away");
    store.close().await;
    drop(store);
    std::fs::remove_dir_all(blocked).unwrap();
    let store = world.open();
    assert!(lease_now(&store, TARGET, 8).await.is_empty());
    assert_eq!(pending(&store, "kept").await, 1);
    let dead: Vec<_> = store.lanes().into_iter().filter(|lane| !lane.dead.is_empty()).collect();
    assert!(dead.is_empty(), "{dead:?}");
    assert_eq!(store.health().damaged_records, 0);
    assert_eq!(drain(&store, "kept").await.len(), 1);
}

#[tokio::test]
async fn new_ids_come_after_all_old_ones_though_only_the_last_segments_are_read_and_the_clock_is_back()
 {
    let mut world = World::new();
    world.clock.raise(Duration::from_secs(3600));
    // Nothing is cleaned away.
    world.clock.doubt(true);
    let mut store = world.open();
    let (webhook, result) = world.commit(&store, b"old", &[TARGET]).await;
    result.unwrap();
    for _ in 0..3 {
        store.close().await;
        store = open_again(&mut world, store);
    }
    store.close().await;
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    world.delete_index();
    world.clock = TestClock::new();
    // No more than a few reads are made before the first webhook is accepted.
    let slow_reads = Duration::from_millis(300);
    world.disk.set_faults(Faults { slow_reads, ..Faults::default() });
    let store = world.open();
    world.disk.heal();
    assert!(store.ids_after() >= webhook.id.timestamp());
}

#[tokio::test]
async fn a_webhook_with_the_key_of_another_does_not_take_its_place() {
    let world = World::new();
    let mut store = world.open();
    let (first, result) = world.commit(&store, b"first", &[TARGET]).await;
    result.unwrap();
    store.flush().await;
    let mut second = world.webhook(b"second", &["other"]);
    let mut bytes = *first.id.as_bytes();
    bytes[15] ^= 1;
    second.id = WebhookId::from_bytes(bytes);
    let key = second.duplicate_key;
    let Claim::First(claimed) = store.claim(key, DuplicateWindows::default()).await else {
        panic!("it is new");
    };
    store.commit(second, claimed).await.unwrap();
    for delete_index in [false, true] {
        store.close().await;
        drop(store);
        if delete_index {
            world.delete_index();
        }
        store = world.open();
        let page = store.page(Place::START, 8).await.unwrap();
        let ids: Vec<_> = page.webhooks.iter().map(|webhook| webhook.id).collect();
        assert_eq!((&*ids, page.left_out), (&[first.id][..], 0), "{delete_index}");
        let body = store.body(&page.webhooks[0]).await.unwrap();
        assert_eq!(body.as_deref(), Some(&b"first"[..]));
    }
}

#[tokio::test]
async fn on_a_file_that_was_moved_nothing_is_acknowledged() {
    let mut world = World::new();
    let store = world.open();
    world.commit(&store, b"one", &[TARGET]).await.1.unwrap();
    let path = segments(&world).pop().unwrap();
    let aside = path.with_extension("aside");
    world.disk.rename(&path, &aside).unwrap();
    let (_, result) = world.commit(&store, b"two", &[TARGET]).await;
    assert_eq!(result, Err(CommitError::Unavailable));
    world.commit(&store, b"three", &[TARGET]).await.1.unwrap();
    assert_eq!(lease_all(&store, TARGET).await.len(), 2, "what is there is delivered");
    world.disk.rename(&aside, &path).unwrap();
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    world.delete_index();
    assert_eq!(drain(&world.open(), TARGET).await, [&b"one"[..], b"three"]);
}

#[tokio::test]
async fn what_was_settled_before_a_sync_that_fails_is_settled_for_good() {
    let mut world = World::new();
    let store = world.open();
    world.commit(&store, b"delivered", &[TARGET]).await.1.unwrap();
    let lease = lease(&store, TARGET, 1).await.pop().unwrap();
    // It is written first, and synced by itself a moment later.
    world.disk.set_faults(Faults { broken_at_sync: Some(1), ..Faults::default() });
    store.settle(lease, None, Settlement::Delivered);
    let failed = async {
        while !world.disk.has_met_fault() {
            tokio::task::yield_now().await;
        }
    };
    within(PATIENCE, failed).await;
    store.close().await;
    let disk = world.disk.power_cut(3);
    drop(store);
    world.use_disk(disk);
    world.delete_index();
    assert_eq!(pending(&world.open(), TARGET).await, 0, "due again");
}
