//! A directory that is looked at while no relay runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;

use serde_json::Value;

use super::damage::{Snapshot, snapshot, three};
use super::*;
use crate::store::embedded::disk::Disk;
use crate::store::embedded::offline::check::check_on;
use crate::store::embedded::offline::stats::stats_on;

const TARGET: &str = "crm";

fn check(world: &World) -> (bool, Value) {
    let report = check_on(&world.settings.dir, Arc::new(world.disk.clone())).unwrap();
    (report.is_good, report.json)
}

/// Every byte of the segments, and of the directory itself.
fn all_bytes(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for path in world.disk.files() {
        all.insert(path.clone(), snapshot(world, &path).0);
    }
    for entry in std::fs::read_dir(&world.settings.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            all.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    all
}

/// The webhooks of the records that `three` makes, in their order.
fn ids(world: &World) -> Vec<String> {
    let index = crate::store::embedded::index::Index::open(&world.index_file()).unwrap();
    let rows = index.stored(0, 8).unwrap();
    rows.into_iter().map(|row| row.id.to_string()).collect()
}

fn texts(of: &Value) -> String {
    of.as_array().unwrap().iter().map(|text| format!("{}\n", text.as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_record_names_its_webhook_and_changes_nothing() {
    let (world, path, offsets) = three().await;
    let ids = ids(&world);
    let Snapshot(sound) = snapshot(&world, &path);
    for at in (offsets[1]..offsets[2] - 16).step_by(7) {
        world.disk.change(&path, |bytes| {
            bytes.clone_from(&sound);
            bytes[at] ^= 4;
        });
        let before = all_bytes(&world);
        let (is_good, json) = check(&world);
        assert!(!is_good, "at {at}: {json}");
        let damaged = json["damaged"].as_array().unwrap();
        assert_eq!(damaged.len(), 1, "at {at}: {json}");
        assert_eq!(
            (&damaged[0]["segment"], &damaged[0]["offset"]),
            (&1.into(), &offsets[1].into())
        );
        // What the record says of itself may be what is damaged.
        let said = damaged[0]["webhook_id"].as_str().unwrap();
        let in_id = (offsets[1] + 24..offsets[1] + 40).contains(&at);
        assert_eq!(said == ids[1], !in_id, "at {at}: {json}");
        assert_eq!(json["missing"].as_array().unwrap().len(), 0, "at {at}: {json}");
        assert_eq!(all_bytes(&world), before);
    }
}

#[tokio::test]
async fn a_torn_end_and_a_half_made_segment_are_no_damage_and_a_start_is_foretold() {
    let (world, path, offsets) = three().await;
    world.delete_index();
    world.disk.change(&path, |bytes| bytes[offsets[2] + 100..].fill(0));
    let half = path.with_file_name("00000009.log");
    drop(world.disk.create(&half, 4096).unwrap());
    drop(world.disk.create(&path.with_file_name("00000001.doubtful"), 1).unwrap());
    drop(world.disk.create(&path.with_file_name("00000007.doubtful"), 1).unwrap());
    drop(world.disk.create(&path.with_file_name("notes.txt"), 1).unwrap());
    std::fs::write(world.settings.dir.join("strange"), "").unwrap();
    std::fs::write(world.settings.dir.join("lanes.json"), "{").unwrap();
    let before = all_bytes(&world);
    let (is_good, json) = check(&world);
    assert!(is_good, "{json}");
    assert_eq!(all_bytes(&world), before);
    assert_eq!((&json["webhooks"], json["torn"].as_array().unwrap().len()), (&2.into(), 1));
    let start = texts(&json["start"]);
    for step in
        ["removes 00000009.log", "makes the index", "passes over what is torn", "lanes.json"]
    {
        assert!(start.contains(step), "{start}");
    }
    let notes = texts(&json["notes"]);
    for note in [
        "strange is none",
        "segments/notes.txt is none",
        "00000001.doubtful says",
        "00000007.doubtful is a mark of a segment that is gone",
        "lanes.json can't be read",
    ] {
        assert!(notes.contains(note), "{notes}");
    }
    std::fs::remove_file(world.settings.dir.join("strange")).unwrap();
    drop(world.open());
    assert!(!world.disk.files().contains(&half));
}

#[tokio::test]
async fn an_index_that_is_none_or_misses_something_is_told_and_no_damage() {
    let (world, _, _) = three().await;
    std::fs::write(world.index_file(), "garbage".repeat(999)).unwrap();
    let (is_good, json) = check(&world);
    assert!(is_good && json["index"]["state"] == "unsound", "{json}");
    world.delete_index();
    let (is_good, json) = check(&world);
    assert!(is_good && json["index"]["state"] == "absent", "{json}");
    let store = world.open();
    store.close().await;
    drop(store);
    let connection = rusqlite::Connection::open(world.index_file()).unwrap();
    let (is_good, json) = check(&world);
    assert!(is_good && json["index"]["pending_only_in_log"] == 0, "{json}");
    connection.execute_batch("DELETE FROM delivery WHERE number = 0").unwrap();
    let (is_good, json) = check(&world);
    assert!(is_good && json["index"]["state"] == "unsound", "{json}");
    assert_eq!(drain(&world.open(), TARGET).await.len(), 3, "as check said");
}

#[tokio::test]
async fn a_webhook_that_only_the_index_knows_is_missed_by_name() {
    let (world, path, offsets) = three().await;
    // Closed at once: nothing is copied forward.
    {
        let (store, mut stepper) = world.open_stepped();
        let mut closes = pin!(store.close());
        while poll_now(&mut closes).is_none() {
            turns(&mut stepper);
        }
    }
    let ids = ids(&world);
    // As a disk leaves it that said it had synced, and had not.
    world.disk.change(&path, |bytes| bytes.truncate(offsets[2]));
    let (is_good, json) = check(&world);
    assert!(!is_good, "{json}");
    let [missing] = json["missing"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(missing["webhook_id"], ids[2]);
}

#[tokio::test]
async fn webhooks_of_a_newest_segment_that_is_gone_are_missed_by_name() {
    let (world, path, _) = three().await;
    // With its index, and without a later segment.
    {
        let (store, mut stepper) = world.open_stepped();
        let mut closes = pin!(store.close());
        while poll_now(&mut closes).is_none() {
            turns(&mut stepper);
        }
    }
    for path in segments(&world) {
        world.disk.remove(&path).unwrap();
    }
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let (is_good, json) = check(&world);
    assert!(!is_good && json["index"]["state"] == "foreign", "{json}");
    let missing = json["missing"].as_array().unwrap();
    let named: Vec<_> = missing.iter().map(|one| one["webhook_id"].as_str().unwrap()).collect();
    assert_eq!(named, ids(&world), "{json}");
    assert!(missing.iter().all(|one| one["segment_exists"] == false), "{json}");
    let index = crate::store::embedded::index::Index::open(&world.index_file()).unwrap();
    let (webhooks, pending, named) = index.in_gone_segments(|_| false, 2).unwrap();
    assert_eq!((webhooks, pending, named.len()), (3, 3, 2));
}

#[tokio::test]
async fn what_can_not_be_read_is_told_and_is_not_good() {
    for opens in [true, false] {
        let (world, path, _) = three().await;
        if opens {
            world.disk.break_reads(&path, 4096..1 << 16);
        } else {
            world.disk.break_open(&path);
        }
        let (is_good, json) = check(&world);
        assert!(!is_good, "{json}");
        assert_eq!(json["unreadable"][0]["segment"], 1, "{json}");
    }
}

#[tokio::test]
async fn a_store_that_is_open_and_a_directory_that_is_none_are_refused() {
    let world = World::new();
    let dir = &world.settings.dir;
    let refused = || check_on(dir, Arc::new(world.disk.clone())).unwrap_err().to_string();
    assert!(refused().ends_with("it does not exist"));
    std::fs::create_dir(dir).unwrap();
    assert!(refused().ends_with("it has no folder `segments`"));
    let store = world.open();
    let process = format!("process {}: stop that relay first", std::process::id());
    assert!(refused().ends_with(&process), "{}", refused());
    drop(store);
    assert!(check(&world).0);
}

#[tokio::test]
async fn numbers_are_those_that_the_store_tells_with_and_without_its_index() {
    let world = World::new();
    let store = world.open();
    for body in [&[1; 900], &[2; 900], &[3; 900]] {
        world.commit(&store, body, &[TARGET, "erp"]).await.1.unwrap();
    }
    world.commit(&store, b"nobody's", &[]).await.1.unwrap();
    let mut leases = lease(&store, TARGET, 2).await.into_iter();
    store.settle(leases.next().unwrap(), None, Settlement::Delivered);
    let dead = Settlement::DeadLetter(crate::domain::delivery::Cause::GivenUp);
    store.settle(leases.next().unwrap(), None, dead);
    drop(leases);
    store.close().await;
    drop(store);
    for round in 0..2 {
        let json = stats_on(&world.settings.dir, Arc::new(world.disk.clone())).unwrap();
        assert_eq!((&json["webhooks"], &json["unrouted"]), (&4.into(), &1.into()), "{json}");
        let targets = serde_json::json!([
            { "name": "crm", "pending": 1, "dead_letters": { "given_up": 1 } },
            { "name": "erp", "pending": 3, "dead_letters": {} },
        ]);
        assert_eq!(json["targets"], targets, "round {round}");
        assert_eq!(json["records"]["settlement"]["records"], 2, "{json}");
        let bytes = |name: &str| json[name].as_u64().unwrap();
        assert_eq!(bytes("live_bytes"), json["records"]["webhook"]["bytes"].as_u64().unwrap());
        assert_eq!(bytes("live_bytes") + bytes("dead_bytes"), bytes("record_bytes"));
        assert!(json["oldest_received_at"].as_str().unwrap().starts_with("2023-11-14"), "{json}");
        world.delete_index();
    }
}

#[tokio::test]
async fn a_start_keeps_the_bytes_of_a_damaged_record_and_a_later_one_leaves_them() {
    let (world, path, offsets) = three().await;
    world.disk.change(&path, |bytes| bytes[offsets[1] + 200] ^= 1);
    let Snapshot(bytes) = snapshot(&world, &path);
    let kept = world.settings.dir.join(format!("quarantine/00000001-{}.bin", offsets[1]));
    for _ in 0..2 {
        world.delete_index();
        let store = world.open();
        assert_eq!(store.health().damaged_records, 1);
        store.close().await;
        drop(store);
        assert_eq!(std::fs::read(&kept).unwrap(), bytes[offsets[1]..offsets[2]]);
    }
    let files = std::fs::read_dir(kept.parent().unwrap()).unwrap().count();
    assert_eq!((files, &check(&world).1["quarantine"]["files"]), (1, &1.into()));
}
