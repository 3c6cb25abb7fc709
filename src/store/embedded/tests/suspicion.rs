//! An index that says otherwise than the log, as a disk that flips bits leaves it.

use super::*;
use crate::domain::delivery::Cause;
use crate::store::archive::Archive as _;

const TARGET: &str = "crm";

/// The bodies of [`some`] webhooks, in order.
const ALL: [&[u8]; 3] = [b"first", b"second", b"third"];

/// A stopped store with some webhooks that nobody has leased.
pub(super) async fn some(world: &World) {
    let store = world.open();
    for body in ALL {
        world.commit(&store, body, &[TARGET]).await.1.unwrap();
    }
    store.close().await;
}

/// What a store delivers, in order; it is asked again until nothing is pending.
async fn all(store: &EmbeddedStore) -> Vec<Bytes> {
    let mut bodies = Vec::new();
    let done = async {
        while bodies.len() < 3 {
            for lease in lease_now(store, TARGET, 8).await {
                bodies.push(lease.delivery.webhook.body.clone());
                store.settle(lease, None, Settlement::Delivered);
            }
            store.flush().await;
        }
    };
    within(PATIENCE, done).await;
    bodies.sort();
    bodies
}

/// The same while time passes for deliveries: what was wrong is tried again later.
async fn all_in_time(world: &World, store: &EmbeddedStore) -> Vec<Bytes> {
    let passes = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.clock.advance(Duration::from_secs(1));
        }
    };
    tokio::select! {
        found = all(store) => found,
        () = passes => unreachable!("it has no end"),
    }
}

fn change(world: &World, sql: &str) {
    let connection = rusqlite::Connection::open(world.index_file()).unwrap();
    connection.execute_batch(sql).unwrap();
}

#[tokio::test]
async fn a_record_that_is_not_where_the_index_says_is_delivered_all_the_same() {
    let second = "WHERE id = (SELECT id FROM webhook ORDER BY id LIMIT 1 OFFSET 1)";
    for wrong in [
        "start = (SELECT MIN(start) FROM webhook)",
        "start = start + 8",
        "start = start + (1 << 30)",
        "start = 3",
        "length = length + 8",
        "length = 1 << 50",
        "length = 0",
        "segment = 77",
    ] {
        let world = World::new();
        some(&world).await;
        let store = world.open();
        change(&world, &format!("UPDATE webhook SET {wrong} {second}"));
        assert_eq!(all_in_time(&world, &store).await, ALL, "{wrong}");
        let health = store.health();
        // None where it was copied forward before anybody read it.
        assert_eq!(health.damaged_records, 0, "{wrong}");
        assert!(health.sweep_findings <= 1, "{wrong}");
        assert!(store.lanes().iter().all(|lane| lane.dead.is_empty()), "{wrong}");
        store.close().await;
    }
}

#[tokio::test]
async fn what_the_index_does_not_find_of_what_it_counts_is_found_in_the_log() {
    let mut world = World::new();
    some(&world).await;
    world.settings.sweep_wait = Duration::ZERO;
    let store = world.open();
    change(&world, "DELETE FROM delivery WHERE webhook = (SELECT MAX(id) FROM webhook)");
    assert_eq!(all(&store).await, [&b"first"[..], b"second", b"third"]);
}

#[tokio::test]
async fn a_record_that_is_damaged_in_the_log_is_a_dead_letter_at_once_and_no_word_against_the_index()
 {
    let world = World::new();
    some(&world).await;
    let path = segments(&world).remove(0);
    world.disk.change(&path, |bytes| {
        let at = bytes.windows(6).position(|window| window == b"second").unwrap();
        bytes[at] ^= 1;
    });
    let store = world.open();
    assert_eq!(lease(&store, TARGET, 8).await.len(), 2);
    store.flush().await;
    assert_eq!(store.lanes()[0].dead, [(Cause::Damaged, 1)]);
    assert_eq!(store.health().sweep_findings, 0);
}

#[tokio::test]
async fn a_listing_that_finds_another_record_has_the_index_made_again() {
    let world = World::new();
    some(&world).await;
    let store = world.open();
    change(
        &world,
        "UPDATE webhook SET start = (SELECT MAX(start) FROM webhook) WHERE id = (SELECT MIN(id) FROM webhook)",
    );
    let whole = async {
        loop {
            let page = store.page(crate::store::listing::Place::START, 8).await.unwrap();
            if page.webhooks.len() == 3 {
                break;
            }
        }
    };
    within(PATIENCE, whole).await;
    assert_eq!(store.health().damaged_records, 0);
}

/// Numbers that are always the same ones.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    }
}

#[tokio::test]
async fn whatever_bit_of_the_index_flips_everything_is_delivered_and_check_says_what_a_start_does()
{
    let mut world = World::new();
    some(&world).await;
    let sound = std::fs::read(world.index_file()).unwrap();
    let log: Vec<_> = segments(&world)
        .into_iter()
        .map(|path| (path.clone(), damage::snapshot(&world, &path).0))
        .collect();
    let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let mut next = numbers(7);
    for at_once in [u64::MAX, 0] {
        world.settings.looked_through_at_once = at_once;
        for _ in 0..100 {
            let at = used[usize::try_from(next(used.len() as u64)).unwrap()];
            let mut flipped = sound.clone();
            flipped[at] ^= 1 << next(8);
            for path in segments(&world) {
                crate::store::embedded::disk::Disk::remove(&world.disk, &path).unwrap();
            }
            for (path, bytes) in &log {
                drop(crate::store::embedded::disk::Disk::create(&world.disk, path, 0).unwrap());
                world.disk.change(path, |content| content.clone_from(bytes));
            }
            world.delete_index();
            std::fs::write(world.index_file(), flipped).unwrap();
            let check = crate::store::embedded::offline::check::check_on;
            let report = check(&world.settings.dir, Arc::new(world.disk.clone())).unwrap();
            let store = world.open();
            let found = all_in_time(&world, &store).await;
            assert_eq!(found, ALL, "byte {at}: {}", report.json);
            assert!(store.lanes().iter().all(|lane| lane.dead.is_empty()), "byte {at}");
            let is_unsound = report.json["index"]["state"] == "unsound";
            if is_unsound && at_once > 0 {
                assert_eq!(store.health().damaged_records, 0, "byte {at}: {}", report.json);
            }
            store.close().await;
        }
    }
}
