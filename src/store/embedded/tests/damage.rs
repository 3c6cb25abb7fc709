//! Bytes that change, files that vanish.

use super::*;
use crate::store::embedded::segment::HEADER_BYTES;

const TARGET: &str = "crm";

/// A stopped store with three small webhooks; the offsets of their frames, the last is the end.
pub(super) async fn three() -> (World, std::path::PathBuf, Vec<usize>) {
    let mut world = World::new();
    let store = world.open();
    let path = segments(&world).pop().unwrap();
    let mut offsets = vec![usize::try_from(HEADER_BYTES).unwrap()];
    for body in [&b"first"[..], b"second", b"third"] {
        let (webhook, result) = world.commit(&store, body, &[TARGET]).await;
        result.unwrap();
        let meta = crate::store::embedded::record::encode_webhook(&webhook, None).len();
        let frame = 24 + (meta + body.len()).next_multiple_of(8) + 8;
        offsets.push(offsets[offsets.len() - 1] + frame);
    }
    let disk = world.disk.kill();
    drop(store);
    world.use_disk(disk);
    (world, path, offsets)
}

pub(super) struct Snapshot(pub(super) Vec<u8>);

pub(super) fn snapshot(world: &World, path: &Path) -> Snapshot {
    let mut bytes = Vec::new();
    world.disk.change(path, |content| bytes = content.clone());
    Snapshot(bytes)
}

/// Opens with the file as given and everything else as at first; what is due and what is damaged.
pub(super) fn scan(world: &World, path: &Path, bytes: Vec<u8>) -> (Vec<Bytes>, u64) {
    world.disk.change(path, |content| *content = bytes);
    let log = crate::store::embedded::log::Log::open(
        world.settings.dir.join("segments"),
        Arc::new(world.disk.clone()),
    );
    let log = log.unwrap();
    let mut bodies = Vec::new();
    for segment in log.all() {
        let mut scanner =
            crate::store::embedded::scanner::Scanner::new(segment, 0, u64::MAX).unwrap();
        while let Some(frame) = scanner.next_frame().unwrap() {
            let record = crate::store::embedded::record::decode(1, 1, &frame.payload).unwrap();
            let crate::store::embedded::record::Record::Webhook(webhook, _) = record else {
                panic!()
            };
            bodies.push(webhook.body);
        }
        log.damage.note(&scanner.take_flaws(), &[]);
    }
    (bodies, log.damage.count())
}

#[tokio::test]
async fn every_flipped_bit_costs_at_most_its_record_and_is_counted() {
    let (world, path, offsets) = three().await;
    let Snapshot(bytes) = snapshot(&world, &path);
    let all = [&b"first"[..], b"second", b"third"];
    for (nth, pair) in offsets.windows(2).enumerate() {
        let others: Vec<_> =
            all.iter().enumerate().filter(|(n, _)| *n != nth).map(|(_, body)| *body).collect();
        for bit in pair[0] * 8..pair[1] * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let (bodies, damaged) = scan(&world, &path, changed);
            if bodies.len() == 3 {
                // Only in the filling and the mark at the end.
                assert!(bit / 8 >= pair[1] - 16, "bit {bit} was not noticed");
                assert_eq!((bodies, damaged), (all.map(Bytes::from_static).to_vec(), 0));
            } else {
                assert_eq!(bodies, others, "bit {bit}");
                assert_eq!(damaged, 1, "bit {bit}");
            }
        }
    }
}

#[tokio::test]
async fn a_tail_torn_anywhere_is_no_damage_and_costs_nothing_before_it() {
    let (world, path, offsets) = three().await;
    let Snapshot(bytes) = snapshot(&world, &path);
    for torn in offsets[2]..offsets[3] - 8 {
        let mut zeroed = bytes.clone();
        zeroed[torn..].fill(0);
        let cut = bytes[..torn].to_vec();
        for changed in [zeroed, cut] {
            let (bodies, damaged) = scan(&world, &path, changed);
            assert_eq!(bodies, [&b"first"[..], b"second"], "at {torn}");
            assert_eq!(damaged, 0, "at {torn}");
        }
    }
}

#[tokio::test]
async fn every_byte_of_the_header_may_decay() {
    let (world, path, _) = three().await;
    let Snapshot(bytes) = snapshot(&world, &path);
    for at in 0..usize::try_from(HEADER_BYTES).unwrap() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x55;
        let (bodies, damaged) = scan(&world, &path, changed);
        assert_eq!((bodies.len(), damaged), (3, 0), "at {at}");
    }
}

#[tokio::test]
async fn a_half_created_or_unreadable_segment_never_stops_a_start() {
    let (world, path, _) = three().await;
    let Snapshot(bytes) = snapshot(&world, &path);
    let mut wrecked = bytes.clone();
    wrecked[..5000].fill(0x77);
    for (content, kept, damaged) in [
        (Vec::new(), 0, 0),
        (vec![0; 100], 0, 0),
        (vec![0; 65536], 0, 0),
        (bytes[..40].to_vec(), 0, 0),
        (wrecked, 1, 1),
    ] {
        let next = path.with_file_name("00000777.log");
        let other = SimDisk::clone(&world.disk);
        drop(crate::store::embedded::disk::Disk::create(&other, &next, 0).unwrap());
        other.change(&next, |file| *file = content);
        world.delete_index();
        let store = world.open();
        assert_eq!(store.health().damaged_records, damaged);
        let bodies: Vec<_> = lease(&store, TARGET, 8).await;
        assert_eq!(bodies.len(), 3);
        drop(bodies);
        world
            .commit(&store, format!("{kept}{damaged}").as_bytes(), &["other"])
            .await
            .1
            .unwrap_or(());
        let aside =
            world.disk.files().iter().filter(|p| p.ends_with("00000777.log.unreadable")).count();
        assert_eq!(aside, kept);
        drop(store);
        if damaged > 0 {
            break;
        }
        // The same body must be a first in the next turn.
        world.clock.advance(Duration::from_secs(3 * 24 * 3600));
    }
}

#[tokio::test]
async fn a_segment_of_a_newer_version_is_refused_not_misread_and_one_of_an_older_is_read() {
    let (world, path, _) = three().await;
    let set_format = |format: u8| {
        world.disk.change(&path, |bytes| {
            for copy in [0, 2048] {
                bytes[copy + 8] = format;
                let crc = crc32fast::hash(&bytes[copy..copy + 60]).to_le_bytes();
                bytes[copy + 60..copy + 64].copy_from_slice(&crc);
            }
        });
    };
    set_format(99);
    let error = world.try_open().unwrap_err().to_string();
    assert!(error.contains("format 99") && error.contains("newer version"), "{error}");
    set_format(1);
    world.delete_index();
    let store = world.open();
    assert_eq!(drain(&store, TARGET).await, [&b"first"[..], b"second", b"third"]);
    // What knows no more than that refuses what this start has begun.
    let newest = segments(&world).pop().unwrap();
    world.disk.change(&newest, |bytes| assert_eq!(bytes[8], 2));
}

#[tokio::test]
async fn an_index_that_is_gone_cut_garbage_or_old_is_no_loss() {
    let world = World::new();
    let store = world.open();
    for n in 0..20u8 {
        world.commit(&store, &[n; 300], &[TARGET]).await.1.unwrap();
    }
    store.close().await;
    drop(store);
    let old = std::fs::read(world.index_file()).unwrap();
    let store = world.open();
    for lease in lease(&store, TARGET, 10).await {
        store.settle(lease, None, Settlement::Delivered);
    }
    world.commit(&store, b"later", &[TARGET]).await.1.unwrap();
    store.close().await;
    drop(store);
    let sound = std::fs::read(world.index_file()).unwrap();
    let garbage = vec![0x5a; sound.len()];
    let cut = sound[..sound.len() / 2].to_vec();
    let mut holed = sound.clone();
    for page in (1..sound.len() / 8192).step_by(2) {
        holed[page * 8192..(page + 1) * 8192].fill(0);
    }
    for (name, bytes) in [
        ("sound", Some(sound)),
        ("gone", None),
        ("empty", Some(Vec::new())),
        ("garbage", Some(garbage)),
        ("cut", Some(cut)),
        ("holed", Some(holed)),
        ("old", Some(old)),
    ] {
        world.delete_index();
        if let Some(bytes) = bytes {
            std::fs::write(world.index_file(), bytes).unwrap();
        }
        let store = world.open();
        let leases = lease(&store, TARGET, 64).await;
        assert_eq!(leases.len(), 11, "{name}");
        assert!(is_duplicate(&store, &[3; 300]).await.is_some(), "{name}");
        assert!(is_duplicate(&store, b"later").await.is_some(), "{name}");
        assert_eq!(store.lanes()[0].pending, 11, "{name}");
        drop(leases);
        store.close().await;
    }
}

#[tokio::test]
async fn duplicates_are_known_after_a_rebuild_and_another_restart_whatever_old_lies_before_them() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let mut world = World::new();
    world.settings.retain = DAY * 1000;
    let store = world.open();
    world.commit(&store, b"old", &["crm"]).await.1.unwrap();
    world.clock.advance(DAY * 8);
    world.commit(&store, b"new", &["crm"]).await.1.unwrap();
    drop(store);
    world.delete_index();
    for _ in 0..3 {
        let store = world.open();
        assert!(is_duplicate(&store, b"new").await.is_some());
        store.close().await;
    }
}

#[tokio::test]
async fn while_the_index_is_made_again_in_the_background_nothing_is_lost_or_leased_twice() {
    use crate::store::embedded::sim::Faults;
    let mut world = World::new();
    let store = world.open();
    let mut expected = std::collections::BTreeSet::new();
    for n in 0..1500u32 {
        let (webhook, result) = world.commit(&store, &n.to_be_bytes(), &["crm"]).await;
        result.unwrap();
        if n % 3 == 0 {
            let lease = lease(&store, "crm", 1).await.pop().unwrap();
            expected.insert(webhook.body);
            expected.remove(&lease.delivery.webhook.body);
            store.settle(lease, None, Settlement::Delivered);
        } else {
            expected.insert(webhook.body);
        }
    }
    store.close().await;
    drop(store);
    world.delete_index();
    world.settings.catch_up_wait = Duration::ZERO;
    let slow_reads = Duration::from_millis(40);
    world.disk.set_faults(Faults { slow_reads, ..Faults::default() });
    let store = world.open();
    assert!(store.lanes().is_empty(), "it is not made yet");
    let mut found = std::collections::BTreeSet::new();
    for n in 1500..2900u32 {
        let (webhook, result) = world.commit(&store, &n.to_be_bytes(), &["crm"]).await;
        result.unwrap();
        expected.insert(webhook.body);
        assert!(is_duplicate(&store, &n.to_be_bytes()).await.is_some());
        if n == 1600 || n == 1700 || n == 2800 {
            // Asks for a refill, which the index can't give yet.
            for lease in lease_now(&store, "crm", 4).await {
                assert!(found.insert(lease.delivery.webhook.body.clone()), "leased twice");
                store.settle(lease, None, Settlement::Delivered);
            }
        }
    }
    world.disk.heal();
    store.flush().await;
    assert_eq!(store.lanes()[0].pending, (expected.len() - found.len()) as u64);
    for body in drain(&store, "crm").await {
        assert!(found.insert(body), "leased twice");
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_header_that_is_gone_costs_nothing_if_the_first_record_is_there() {
    let (world, path, _) = three().await;
    let Snapshot(mut bytes) = snapshot(&world, &path);
    for byte in [0, 0x77] {
        bytes[..4096].fill(byte);
        let (bodies, damaged) = scan(&world, &path, bytes.clone());
        assert_eq!((bodies.len(), damaged), (3, 0));
    }
}

/// A store with a webhook in each of three segments; the files.
async fn three_segments() -> (World, Vec<std::path::PathBuf>) {
    let mut world = World::new();
    for body in [&[1; 9000], &[2; 9000], &[3; 9000]] {
        let store = world.open();
        world.commit(&store, body, &[TARGET]).await.1.unwrap();
        store.close().await;
        drop(store);
        let disk = world.disk.kill();
        world.use_disk(disk);
    }
    world.settings.read_patience = Duration::ZERO;
    let mut paths = segments(&world);
    paths.sort();
    (world, paths)
}

/// First bytes of what is due, with every lease given back.
async fn due(store: &EmbeddedStore, count: usize) -> Vec<u8> {
    let mut leases = Vec::new();
    while leases.len() < count {
        leases.extend(lease(store, TARGET, 8).await);
    }
    leases.iter().map(|lease| lease.delivery.webhook.body[0]).collect()
}

#[tokio::test]
async fn a_segment_that_can_not_be_opened_or_read_costs_only_itself_and_only_until_it_can_be() {
    for opens in [true, false] {
        let (mut world, paths) = three_segments().await;
        let before = snapshot(&world, &paths[1]).0;
        if opens {
            world.disk.break_reads(&paths[1], 0..1 << 20);
        } else {
            world.disk.break_open(&paths[1]);
        }
        // Twice without an index: once made again over the gap, it knows of it.
        for round in 0..4 {
            if round < 2 {
                world.delete_index();
            }
            let store = world.open();
            assert!(store.health().damaged_records > 0 || round == 3, "round {round}");
            if round < 3 {
                assert_eq!(due(&store, 2).await, [1, 3]);
            }
            world.commit(&store, &[90 + round; 100], &["other"]).await.1.unwrap();
            store.close().await;
            drop(store);
            let disk = world.disk.kill();
            world.use_disk(disk);
            if round == 2 {
                assert_eq!(snapshot(&world, &paths[1]).0, before, "it was touched");
                world.disk.mend(&paths[1]);
            }
        }
        let store = world.open();
        assert_eq!(due(&store, 3).await, [1, 2, 3]);
        assert_eq!(store.lanes()[1].pending, 4);
    }
}

#[tokio::test]
async fn a_segment_that_can_not_be_opened_but_is_in_the_index_is_waited_for() {
    let (mut world, paths) = three_segments().await;
    let store = world.open();
    store.close().await;
    drop(store);
    world.disk.break_open(&paths[1]);
    let disk = world.disk.kill();
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(due(&store, 2).await, [1, 3]);
    let lanes = store.lanes();
    assert_eq!((lanes[0].pending, &*lanes[0].dead), (3, &[][..]));
    drop(store);
    world.disk.mend(&paths[1]);
    let disk = world.disk.kill();
    world.use_disk(disk);
    world.clock.advance(Duration::from_secs(61));
    let store = world.open();
    let mut found = due(&store, 3).await;
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3]);
}

#[tokio::test]
async fn a_bad_place_in_a_segment_costs_its_record_and_is_found_again_when_it_is_good() {
    let mut world = World::new();
    let store = world.open();
    for n in 0..5u8 {
        world.commit(&store, &[n; 9000], &[TARGET]).await.1.unwrap();
    }
    let path = segments(&world).pop().unwrap();
    store.close().await;
    drop(store);
    let disk = world.disk.kill();
    world.use_disk(disk);
    world.delete_index();
    world.settings.read_patience = Duration::ZERO;
    world.disk.break_reads(&path, 24_576..28_672);
    let store = world.open();
    assert_eq!(due(&store, 4).await, [0, 1, 3, 4]);
    assert!(store.health().damaged_records > 0);
    drop(store);
    world.disk.mend(&path);
    let disk = world.disk.kill();
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(due(&store, 5).await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_body_that_can_not_be_read_is_tried_again_and_stops_nothing() {
    let mut world = World::new();
    let store = world.open();
    for n in 0..3u8 {
        world.commit(&store, &[n; 9000], &[TARGET]).await.1.unwrap();
    }
    let path = segments(&world).pop().unwrap();
    store.close().await;
    drop(store);
    world.disk.break_reads(&path, 16_384..20_480);
    let disk = world.disk.kill();
    world.use_disk(disk);
    let store = world.open();
    assert_eq!(due(&store, 2).await, [0, 2]);
    assert_eq!(store.health().damaged_records, 1);
    world.clock.advance(Duration::from_secs(61));
    store.flush().await;
    assert_eq!(due(&store, 2).await, [0, 2]);
    assert_eq!((store.lanes()[0].pending, store.health().damaged_records), (3, 1));
    world.disk.mend(&path);
    world.clock.advance(Duration::from_secs(61));
    let mut found = due(&store, 3).await;
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2]);
}
