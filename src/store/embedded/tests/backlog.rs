//! What a target pins, and what becomes of it beyond its limit.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::cleaning::clean;
use super::*;
use crate::domain::delivery::Cause;
use crate::store::archive::{Addition, Archive};
use crate::store::embedded::log::Limit;
use crate::store::story::{Filter, Order};

/// What the index adds up, and the same added up anew from its rows: by target, state and cause, how
/// many there are and what the records of their webhooks take; and what unrouted ones take.
type Sums = (BTreeMap<(String, i64, i64), (i64, i64)>, i64);

fn sums(world: &World) -> [Sums; 2] {
    let index = Connection::open(world.index_file()).unwrap();
    let counted = "SELECT t.text, c.state, c.cause, c.n, c.bytes
         FROM counts c JOIN name t ON t.id = c.target WHERE c.n <> 0 OR c.bytes <> 0";
    let anew = "SELECT t.text, d.state, d.cause, COUNT(*), SUM(w.length)
         FROM delivery d JOIN webhook w ON w.id = d.webhook JOIN name t ON t.id = d.target
         WHERE d.state IN (0, 2) GROUP BY 1, 2, 3";
    let unrouted = "SELECT COALESCE((SELECT value FROM meta WHERE name = 'unrouted_bytes'), 0)";
    let unrouted_anew = "SELECT COALESCE(SUM(length), 0) FROM webhook w
         WHERE NOT EXISTS (SELECT 1 FROM delivery d WHERE d.webhook = w.id)";
    [(counted, unrouted), (anew, unrouted_anew)].map(|(sums, unrouted)| {
        let mut statement = index.prepare(sums).unwrap();
        let rows = statement.query_map((), |row| {
            Ok(((row.get(0)?, row.get(1)?, row.get(2)?), (row.get(3)?, row.get(4)?)))
        });
        let all = rows.unwrap().collect::<Result<_, _>>().unwrap();
        (all, index.query_row(unrouted, (), |row| row.get(0)).unwrap())
    })
}

/// Closes the store; what its index adds up is what is in it.
async fn closed(world: &World, store: EmbeddedStore, what: &str) -> Sums {
    store.flush().await;
    store.close().await;
    drop(store);
    let [counted, anew] = sums(world);
    assert_eq!(counted, anew, "{what}");
    counted
}

/// What the lane of a target says that it pins, when the indexer has told it.
async fn told(store: &EmbeddedStore, target: &str, expected: u64) {
    let is_told = async {
        loop {
            store.flush().await;
            let lanes = store.lanes();
            let lane = lanes.iter().find(|lane| *lane.target == *target);
            if lane.map_or(0, |lane| lane.backlog_bytes) == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(PATIENCE, is_told).await;
}

/// Webhooks of all fates for two targets, and unrouted ones, of which some get a delivery.
async fn fill(world: &World, store: &EmbeddedStore) {
    let later = world.clock.now().plus(Duration::from_secs(3600));
    for n in 0..120u8 {
        let body = vec![n; 500 + 10 * usize::from(n)];
        let targets: &[&str] = match n % 20 {
            0 => &[],
            1 => &["billing"],
            2 => &["crm", "billing"],
            _ => &["crm"],
        };
        let (webhook, result) = world.commit(store, &body, targets).await;
        result.unwrap();
        if n % 40 == 0 {
            let deliveries = world.webhook(b"", &["billing"]).deliveries;
            let addition = Addition { id: webhook.id, deliveries, again: false };
            assert_eq!(store.add(vec![addition]).await, Ok(vec![1]));
        }
        if n % 20 < 2 {
            continue;
        }
        let lease = lease(store, "crm", 1).await.pop().unwrap();
        let settlement = match n % 20 {
            2 => Settlement::Retry { at: later },
            3 => Settlement::DeadLetter(Cause::GivenUp),
            _ => Settlement::Delivered,
        };
        store.settle(lease, Some(attempt(world.clock.now(), Outcome::Status)), settlement);
    }
    for lease in lease(store, "billing", 4).await {
        store.settle(lease, None, Settlement::Delivered);
    }
}

#[tokio::test]
async fn what_a_target_pins_follows_from_the_log_through_restarts_cleaning_and_a_lost_index() {
    let mut world = World::new();
    world.settings.segment_bytes = 12 << 10;
    world.settings.retain = Duration::from_millis(640);
    let store = world.open();
    fill(&world, &store).await;
    let first = closed(&world, store, "filled").await;
    let (pinned, unrouted) = &first;
    let of = |target: &str| pinned[&(target.to_owned(), 0, 0)];
    assert_eq!((of("crm").0, of("billing").0), (6, 3 + 6 + 6 - 4));
    assert!(of("crm").1 > 6 * 500 && of("billing").1 > 11 * 500, "{first:?}");
    assert!(*unrouted > 3 * 500, "{first:?}");

    world.delete_index();
    let again = closed(&world, world.open(), "without its index").await;
    assert_eq!(again, first);
    let bytes = |sums: &Sums, target: &str| sums.0[&(target.to_owned(), 0, 0)].1.unsigned_abs();

    // Settled ones go, and what lives in their segments is written down again, a bit larger.
    world.clock.advance(Duration::from_secs(10));
    let store = world.open();
    told(&store, "crm", bytes(&first, "crm")).await;
    let before = segments(&world).len();
    clean(&world, &store).await;
    let cleaned = segments(&world).len();
    assert!(cleaned < before, "{cleaned} of {before}");
    let kept = closed(&world, store, "cleaned").await;
    world.delete_index();
    let store = world.open();
    told(&store, "crm", bytes(&kept, "crm")).await;
    told(&store, "billing", bytes(&kept, "billing")).await;
    let again = closed(&world, store, "cleaned, without its index").await;
    assert_eq!(again.0[&("crm".to_owned(), 0, 0)], kept.0[&("crm".to_owned(), 0, 0)]);
    assert_eq!(again.0[&("billing".to_owned(), 0, 0)], kept.0[&("billing".to_owned(), 0, 0)]);
    assert_eq!(again.1, kept.1);

    let store = world.open();
    world.clock.advance(Duration::from_secs(7200));
    drain(&store, "crm").await;
    drain(&store, "billing").await;
    let empty = closed(&world, store, "all delivered").await;
    assert!(empty.0.keys().all(|(_, state, _)| *state == 2), "{empty:?}");
}

/// Takes steps until nothing more is ended; how many were.
async fn relieved(store: &EmbeddedStore, target: &str, bytes_max: u64, step: usize) -> usize {
    let mut ended = 0;
    loop {
        let some = store.relieve(target, bytes_max, step).await;
        assert!(some <= step);
        ended += some;
        if some == 0 {
            return ended;
        }
    }
}

fn dead(store: &EmbeddedStore, target: &str) -> Vec<(Cause, u64)> {
    let lanes = store.lanes();
    lanes.into_iter().find(|lane| *lane.target == *target).map_or(Vec::new(), |lane| lane.dead)
}

#[tokio::test]
async fn beyond_its_limit_a_target_s_oldest_are_dead_letters_and_no_other_target_loses_any() {
    // More than its lane has in memory.
    const COUNT: u64 = 1500;
    const KEPT: u64 = 1100;
    let mut world = World::new();
    world.settings.segment_bytes = 1 << 20;
    let store = world.open();
    let mut bodies = Vec::new();
    for n in 0..COUNT {
        let body = [&n.to_be_bytes()[..], &[7; 300]].concat();
        world.commit(&store, &body, &["down", "up"]).await.1.unwrap();
        bodies.push(Bytes::from(body));
        world.clock.advance(Duration::from_millis(1));
    }
    let one = {
        store.flush().await;
        let ask = store.shared.ask(|indexer| indexer.index.backlog_bytes("down")).await;
        ask.unwrap() / COUNT
    };
    // The oldest are on their way: they stay, and others go.
    let leases = lease(&store, "down", 3).await;
    assert_eq!(relieved(&store, "down", KEPT * one, 64).await as u64, COUNT - KEPT);
    assert_eq!(relieved(&store, "down", KEPT * one, 64).await, 0);
    assert_eq!(dead(&store, "down"), [(Cause::BacklogFull, COUNT - KEPT)]);
    told(&store, "down", KEPT * one).await;
    told(&store, "up", COUNT * one).await;
    let leased = leases.len();
    drop(leases);
    // Killed between two steps, the rest is what the next start finds.
    let half = store.relieve("down", (KEPT - 100) * one, 50).await;
    assert_eq!(half, 50);
    let kept = closed(&world, store, "relieved").await;
    world.delete_index();
    let store = world.open();
    told(&store, "down", (KEPT - 50) * one).await;
    assert_eq!(relieved(&store, "down", (KEPT - 100) * one, 50).await, 50);
    assert_eq!(dead(&store, "down"), [(Cause::BacklogFull, COUNT - KEPT + 100)]);
    let mut left = drain(&store, "down").await;
    left.sort();
    // Those that were leased were the oldest, and went when they were free again.
    assert!(leased <= 50);
    let last = bodies.len() - usize::try_from(KEPT - 100).unwrap();
    assert_eq!(left, bodies[last..]);
    assert_eq!(drain(&store, "up").await.len() as u64, COUNT);
    let empty = closed(&world, store, "drained").await;
    assert!(kept.0.len() > empty.0.len(), "{kept:?} {empty:?}");
}

#[tokio::test]
async fn what_a_full_backlog_ended_goes_as_what_is_delivered_does_and_frees_the_disk() {
    const COUNT: u8 = 60;
    let mut world = World::new();
    world.settings.segment_bytes = 12 << 10;
    world.settings.retain = Duration::from_millis(640);
    let store = world.open();
    for n in 0..COUNT {
        let targets: &[&str] = if n < 4 { &["down", "slow"] } else { &["down"] };
        world.commit(&store, &[n; 1500], targets).await.1.unwrap();
    }
    assert_eq!(relieved(&store, "down", 0, 64).await, usize::from(COUNT));
    store.flush().await;
    // Within their time they are listed, and can be redriven.
    let redriven = world.webhook(b"", &[]).received_at;
    let found =
        store.stories(Filter::default(), None, Order::OldestFirst, 100).await.unwrap().stories;
    let last = found.last().unwrap();
    let settlement = Settlement::Redriven { at: redriven };
    assert_eq!(store.settle_dead(vec![(last.id, 0)], settlement).await, Ok(1));
    assert_eq!(pending(&store, "down").await, 1);
    let before = segments(&world).len();
    assert!(before > 7, "{before}");
    world.clock.advance(Duration::from_secs(10));
    let shrunk = async {
        while segments(&world).len() > 4 {
            store.flush().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(PATIENCE, shrunk).await;
    // Their webhooks are needed by another target.
    assert_eq!(dead(&store, "down"), [(Cause::BacklogFull, 4)]);
    assert_eq!(drain(&store, "slow").await.len(), 4);
    assert_eq!(drain(&store, "down").await, [Bytes::from(vec![COUNT - 1; 1500])]);
}

#[tokio::test]
async fn unrouted_webhooks_take_a_quarter_of_the_store_and_the_oldest_go_first() {
    const LIMIT: u64 = 200 << 10;
    const COUNT: u8 = 60;
    let mut world = World::new();
    world.settings.segment_bytes = 12 << 10;
    world.settings.retain = Duration::from_millis(640);
    world.settings.limit = Limit::Bytes(LIMIT);
    let store = world.open();
    let mut ids = Vec::new();
    for n in 0..COUNT {
        let targets: &[&str] = if n % 10 == 0 { &["crm"] } else { &[] };
        let (webhook, result) = world.commit(&store, &[n; 1500], targets).await;
        result.unwrap();
        if targets.is_empty() {
            ids.push(webhook.id);
        }
    }
    let unrouted = async |store: &EmbeddedStore| {
        let filter = Filter { unrouted: true, ..Filter::default() };
        let found = store.stories(filter, None, Order::OldestFirst, 100).await.unwrap();
        found.stories.into_iter().map(|story| story.id).collect::<Vec<_>>()
    };
    // The clock is in doubt, which does not matter: it is no question of time.
    world.clock.doubt(true);
    let crowded_out = async |store: &EmbeddedStore| {
        let is_less = async {
            loop {
                let ask = store.shared.ask(|indexer| indexer.index.unrouted_bytes()).await;
                if ask.unwrap() <= LIMIT / 4 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(PATIENCE, is_less).await;
    };
    crowded_out(&store).await;
    let left = unrouted(&store).await;
    assert!((25..31).contains(&left.len()), "{} of 1.7 KB each", left.len());
    assert_eq!(left, ids[ids.len() - left.len()..], "the newest stay");
    assert_eq!(store.health().unrouted_removed, (ids.len() - left.len()) as u64);
    assert_eq!(pending(&store, "crm").await, 6, "nobody else's");
    closed(&world, store, "crowded").await;
    world.delete_index();
    let store = world.open();
    crowded_out(&store).await;
    assert_eq!(unrouted(&store).await, left, "from the log alone the same ones stay");
    assert_eq!(drain(&store, "crm").await.len(), 6);
}
