//! Dead letters that pin more than their target may: they give up their bytes and stay listed.

use rusqlite::Connection;

use super::backlog::{Sums, closed, dead, gone, relieved, stories, taken};
use super::cleaning::clean;
use super::*;
use crate::domain::delivery::{Cause, State};
use crate::store::archive::Archive;
use crate::store::embedded::disk::{Disk, RealDisk};
use crate::store::embedded::offline::backup::backup;
use crate::store::embedded::offline::check::check_on;
use crate::store::embedded::offline::stats::stats_on;
use crate::store::listing::ReadError;
use crate::store::story::Story;
use crate::store::{LaneCounts, Relieved};

const COUNT: usize = 60;
const WAITING: usize = 10;
const BODY: usize = 1500;

fn at_the_end() -> Timestamp {
    Timestamp::from_millis(u64::MAX)
}

/// What a target pins, pending and dead.
async fn pinned(store: &EmbeddedStore, target: &'static str) -> [u64; 2] {
    store.shared.ask(move |indexer| indexer.index.pinned(target)).await.unwrap().1
}

/// Webhooks that are dead to a target, of which some are pending or dead to another one too, and newer
/// ones that are pending. Answers what one of them pins.
async fn fill(world: &World, store: &EmbeddedStore) -> u64 {
    for n in 0..COUNT + WAITING {
        let body = [u8::try_from(n).unwrap(); BODY];
        let targets: &[&str] = match n {
            0..4 => &["down", "slow"],
            4..8 => &["down", "past"],
            8..12 => &["down", "up"],
            _ => &["down"],
        };
        if n == COUNT {
            store.expire("down", at_the_end(), 1000, Cause::Expired).await;
        }
        world.commit(store, &body, targets).await.1.unwrap();
    }
    store.expire("past", at_the_end(), 1000, Cause::TargetRemoved).await;
    drain(store, "up").await;
    store.flush().await;
    let [pending, dead] = pinned(store, "down").await;
    let one = pending / WAITING as u64;
    assert!(dead >= COUNT as u64 * one && dead < (COUNT as u64 + 1) * one, "{dead} of {one}");
    one
}

fn small() -> World {
    let mut world = World::new();
    world.settings.segment_bytes = 12 << 10;
    world.settings.retain = Duration::from_millis(640);
    world
}

#[tokio::test]
async fn beyond_the_limit_the_oldest_dead_letters_bytes_go_and_nothing_that_waits() {
    const KEPT: usize = 20;
    let world = small();
    let store = world.open();
    let one = fill(&world, &store).await;
    let limit = one * (KEPT + WAITING) as u64;
    // Its limit is no other target's.
    assert_eq!(store.relieve("past", limit, 10).await, Relieved::default());
    assert_eq!(store.relieve("down", limit, 10).await, Relieved { spared: 10, ended: 0 });
    assert_eq!(relieved(&store, "down", limit, 10).await, 0);
    let [pending, kept] = pinned(&store, "down").await;
    assert!(pending + kept <= limit && kept > one * (KEPT as u64 - 2), "{kept} of {limit}");
    assert_eq!(dead(&store, "down"), [(Cause::Expired, COUNT as u64)]);
    let before = taken(&world);
    world.clock.advance(Duration::from_secs(10));
    let stories_before: Vec<_> = stories(&store).await.iter().map(|story| story.id).collect();
    // Those of which others need the bytes keep them.
    let lost = gone(&store, COUNT - KEPT - 8).await;
    let cause = |story: &Story| story.deliveries[0].state.cause();
    assert!(lost.iter().all(|story| cause(story) == Some(Cause::Expired)));
    let of = |story: &Story| stories_before.iter().position(|id| *id == story.id).unwrap();
    assert!(lost.iter().map(of).eq(8..COUNT - KEPT), "the oldest");
    assert_eq!(lost[0].deliveries[1].state, State::Delivered);
    clean(&world, &store).await;
    assert!(taken(&world) < before);
    let sums = closed(&world, store, "spared").await;

    // From the log alone it is the same, but that what others need pins for its dead letters once more.
    world.delete_index();
    let store = world.open();
    assert_eq!(gone(&store, lost.len()).await, lost);
    assert_eq!(stories(&store).await.len(), stories_before.len());
    assert_eq!(store.health().damaged_records, 0);
    assert_eq!(relieved(&store, "down", limit, 1).await, 0);
    assert!(pinned(&store, "down").await.iter().sum::<u64>() <= limit);
    let again = closed(&world, store, "spared, without its index").await;
    let counts = |sums: &Sums| -> Vec<i64> { sums.0.values().map(|s| s.0).collect() };
    assert_eq!(counts(&again), counts(&sums));
    let store = world.open();
    assert_eq!(drain(&store, "down").await.len(), WAITING, "all that waited came");
    assert_eq!(drain(&store, "slow").await.len(), 4);
    let past = stories(&store).await.into_iter().filter(|story| {
        story.deliveries.get(1).is_some_and(|delivery| *delivery.target == *"past")
    });
    for story in past {
        let record = store.whole(story.id).await.unwrap().unwrap().record.unwrap();
        assert_eq!(record.body.len(), BODY, "the other's dead letter keeps them");
    }
}

#[tokio::test]
async fn what_was_spared_is_redriven_while_it_is_there_and_pins_again() {
    let world = small();
    let store = world.open();
    let one = fill(&world, &store).await;
    let limit = one * WAITING as u64;
    assert_eq!(relieved(&store, "down", limit, 64).await, 0);
    assert_eq!(pinned(&store, "down").await[1], 0);
    let ids: Vec<_> = stories(&store).await.iter().map(|story| (story.id, 0)).collect();
    let at = world.clock.now();
    let again = Settlement::Redriven { at };
    assert_eq!(store.settle_dead(vec![ids[0], ids[9], ids[20]], again).await, Ok(3));
    store.flush().await;
    assert!(pinned(&store, "down").await[0] >= limit + 3 * one - 100);
    world.clock.advance(Duration::from_secs(10));
    let lost = gone(&store, COUNT - 10).await;
    assert!(lost.iter().all(|story| ![ids[0].0, ids[9].0, ids[20].0].contains(&story.id)));
    assert_eq!(store.settle_dead(vec![ids[30]], again).await, Ok(0));
    assert_eq!(store.settle_dead(vec![ids[30], ids[1]], Settlement::Discarded).await, Ok(2));
    // What dies again pins again.
    store.expire("down", at_the_end(), 1000, Cause::GivenUp).await;
    store.flush().await;
    let [pending, kept] = pinned(&store, "down").await;
    assert!(pending == 0 && kept >= (WAITING as u64 + 3) * one - 200, "{kept}");
    let erased = store.erase(ids[31].0).await.unwrap().unwrap();
    assert_eq!((erased.ended, erased.body_bytes), (0, BODY as u64));
    assert!(store.whole(ids[31].0).await.unwrap().is_none());
    assert_eq!(store.whole(ids[32].0).await.unwrap().unwrap().record, Err(ReadError::Gone));
    closed(&world, store, "redriven and erased").await;
    world.delete_index();
    let store = world.open();
    assert!(store.whole(ids[31].0).await.unwrap().is_none());
    closed(&world, store, "again").await;
}

#[tokio::test]
async fn pending_deliveries_end_only_when_no_dead_letter_pins_anything() {
    let world = small();
    let store = world.open();
    let one = fill(&world, &store).await;
    let step = store.relieve("down", one * 4, COUNT + 2).await;
    assert_eq!(step, Relieved { spared: COUNT, ended: 2 });
    assert_eq!(relieved(&store, "down", one * 4, 64).await, 4);
    assert_eq!(dead(&store, "down"), [(Cause::BacklogFull, 6), (Cause::Expired, COUNT as u64)]);
    assert_eq!(store.relieve("down", one * 4, 64).await, Relieved::default());
    until(async || {
        store.flush().await;
        let lanes = store.lanes();
        let lane = lanes.iter().find(|lane| *lane.target == *"down").unwrap();
        lane.dead_letters_bytes == 0 && lane.backlog_bytes == one * 4
    })
    .await;
    closed(&world, store, "ended").await;
    let lane = |store: &EmbeddedStore| -> LaneCounts {
        store.lanes().into_iter().find(|lane| *lane.target == *"down").unwrap()
    };
    assert_eq!(lane(&world.open()).pending, 4);
}

#[tokio::test]
async fn a_record_without_its_body_is_no_damage_to_who_looks_and_is_copied_with_a_backup() {
    let mut world = small();
    let real = Arc::new(RealDisk);
    world.settings.disk = Arc::clone(&real) as Arc<dyn Disk>;
    let store = world.open();
    let one = fill(&world, &store).await;
    assert_eq!(relieved(&store, "down", one * WAITING as u64, 64).await, 0);
    let first_id = stories(&store).await[20].id;
    world.clock.advance(Duration::from_secs(10));
    let lost = gone(&store, COUNT - 8).await;
    let index = Connection::open(world.index_file()).unwrap();
    let with_bodies = "SELECT 1 FROM webhook WHERE bare = 1";
    until(async || {
        store.flush().await;
        !index.prepare(with_bodies).unwrap().exists(()).unwrap()
    })
    .await;
    drop(index);
    closed(&world, store, "copied").await;
    let report = check_on(&world.settings.dir, Arc::clone(&real) as Arc<dyn Disk>).unwrap();
    assert!(report.is_good, "{}", report.json);
    assert_eq!(report.json["webhooks"], COUNT + WAITING, "{}", report.json);
    for name in ["webhooks_only_in_index", "pending_only_in_log", "otherwise_pending"] {
        assert_eq!(report.json["index"][name], 0, "{}", report.json);
    }
    let stats = stats_on(&world.settings.dir, real).unwrap();
    assert_eq!(stats["targets"][0]["dead_letters"]["expired"], COUNT, "{stats}");
    assert_eq!(stats["damaged_records"], 0, "{stats}");

    let copy = world.settings.dir.with_file_name("copy");
    backup(&world.settings.dir, &copy).unwrap();
    world.settings.dir = copy;
    let store = world.open();
    assert_eq!(gone(&store, lost.len()).await, lost);
    // Within its window it is known, and no longer than that, though its record was written since.
    let body = [20; BODY];
    assert_eq!(is_duplicate(&store, &body).await, Some(first_id));
    store.close().await;
    drop(store);
    for delete_index in [false, true] {
        world.clock.advance(Duration::from_secs(30 * 3600));
        if delete_index {
            world.delete_index();
        }
        let store = world.open();
        gone(&store, lost.len()).await;
        assert_eq!(is_duplicate(&store, &body).await, None, "{delete_index}");
        assert_eq!(drain(&store, "down").await.len(), if delete_index { 0 } else { WAITING });
        store.close().await;
    }
}

#[tokio::test]
async fn an_index_of_the_format_before_is_made_again() {
    let world = small();
    let store = world.open();
    fill(&world, &store).await;
    let first = closed(&world, store, "filled").await;
    let index = Connection::open(world.index_file()).unwrap();
    index
        .execute_batch(
            "UPDATE meta SET value = 3 WHERE name = 'format';
             DROP INDEX pinning;
             ALTER TABLE delivery DROP COLUMN spared;
             ALTER TABLE webhook DROP COLUMN bare;",
        )
        .unwrap();
    drop(index);
    assert_eq!(closed(&world, world.open(), "made again").await, first);
}
