//! What a target pins, and what becomes of it beyond its limit.

use std::collections::{BTreeMap, HashSet};

use rusqlite::Connection;

use super::cleaning::clean;
use super::*;
use crate::domain::delivery::Cause;
use crate::store::Relieved;
use crate::store::archive::{Addition, Archive};
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::index::Index;
use crate::store::embedded::index::trim::Expiry;
use crate::store::embedded::log::Limit;
use crate::store::embedded::record::{FullDelivery, Settled, Standing};
use crate::store::embedded::segment::Position;
use crate::store::listing::{Place, ReadError};
use crate::store::story::{Filter, Order, Story};

/// What the index adds up, and the same added up anew from its rows: by target, state and cause, how
/// many there are and what the records of their webhooks take; and what unrouted ones take.
pub(super) type Sums = (BTreeMap<(String, i64, i64), (i64, i64)>, i64);

fn sums(world: &World) -> [Sums; 2] {
    let index = Connection::open(world.index_file()).unwrap();
    let counted = "SELECT t.text, c.state, c.cause, c.n, c.bytes
         FROM counts c JOIN name t ON t.id = c.target WHERE c.n <> 0 OR c.bytes <> 0";
    let anew = "SELECT t.text, d.state, d.cause, COUNT(*), SUM(IIF(d.spared, 0, w.length))
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
pub(super) async fn closed(world: &World, store: EmbeddedStore, what: &str) -> Sums {
    store.flush().await;
    store.close().await;
    drop(store);
    let [counted, anew] = sums(world);
    assert_eq!(counted, anew, "{what}");
    counted
}

/// What the lane of a target says that it pins, when the indexer has told it.
pub(super) async fn told(store: &EmbeddedStore, target: &str, expected: u64) {
    until(async || {
        store.flush().await;
        let lanes = store.lanes();
        let lane = lanes.iter().find(|lane| *lane.target == *target);
        lane.map_or(0, |lane| lane.backlog_bytes) == expected
    })
    .await;
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
pub(super) async fn relieved(
    store: &EmbeddedStore,
    target: &str,
    bytes_max: u64,
    step: usize,
) -> usize {
    let mut ended = 0;
    loop {
        let Relieved { spared, ended: some } = store.relieve(target, bytes_max, step).await;
        assert!(some + spared <= step);
        ended += some;
        if some + spared == 0 {
            return ended;
        }
    }
}

pub(super) fn dead(store: &EmbeddedStore, target: &str) -> Vec<(Cause, u64)> {
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
    assert_eq!((half.spared, half.ended), (0, 50));
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

/// Everything that is stored, the oldest first.
pub(super) async fn stories(store: &EmbeddedStore) -> Vec<Story> {
    store.stories(Filter::default(), None, Order::OldestFirst, 200).await.unwrap().stories
}

/// Waits until so many have lost their bytes; answers which.
pub(super) async fn gone(store: &EmbeddedStore, count: usize) -> Vec<Story> {
    let are_gone = async {
        loop {
            let mut gone = stories(store).await;
            gone.retain(|story| story.bytes_gone);
            if gone.len() == count {
                return gone;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(PATIENCE, are_gone).await
}

pub(super) fn taken(world: &World) -> u64 {
    segments(world).iter().map(|path| world.disk.bytes(path)).sum()
}

#[tokio::test]
async fn what_a_full_backlog_ended_gives_up_its_bytes_and_is_still_told() {
    const COUNT: u8 = 80;
    let mut world = World::new();
    world.settings.segment_bytes = 12 << 10;
    world.settings.retain = Duration::from_millis(640);
    let store = world.open();
    for n in 0..COUNT {
        // Of some another target needs the bytes, some it has delivered.
        let targets: &[&str] = match n {
            0..4 => &["down", "slow"],
            4..8 => &["down", "up"],
            _ => &["down"],
        };
        world.commit(&store, &[n; 1500], targets).await.1.unwrap();
    }
    drain(&store, "up").await;
    assert_eq!(relieved(&store, "down", 0, 64).await, usize::from(COUNT));
    // So long as they are settled for less than that, they can be redriven.
    let last = stories(&store).await.pop().unwrap();
    let again = Settlement::Redriven { at: world.clock.now() };
    assert_eq!(store.settle_dead(vec![(last.id, 0)], again).await, Ok(1));
    assert_eq!(pending(&store, "down").await, 1);
    let before = taken(&world);
    world.clock.advance(Duration::from_secs(10));
    let needed = 4 + 1;
    let count = usize::from(COUNT) - needed;
    let lost = gone(&store, count).await;
    assert!(lost.iter().all(|story| story.body_bytes == 1500));
    assert!(lost.iter().all(|s| s.deliveries[0].state.cause() == Some(Cause::BacklogFull)));
    clean(&world, &store).await;
    let after = taken(&world);
    assert!(after < before / 2, "{after} of {before}");

    // It says so to whoever wants them.
    let ids: Vec<_> = lost.iter().map(|story| (story.id, 0)).collect();
    assert_eq!(store.settle_dead(ids, again).await, Ok(0));
    let deliveries = world.webhook(b"", &["other"]).deliveries;
    let addition = Addition { id: lost[3].id, deliveries, again: false };
    assert_eq!(store.add(vec![addition]).await, Ok(vec![0]));
    let whole = store.whole(lost[5].id).await.unwrap().unwrap();
    assert_eq!((whole.story, whole.record), (lost[5].clone(), Err(ReadError::Gone)));
    let page = store.page(Place::START, 100).await.unwrap();
    assert_eq!((page.webhooks.len(), page.left_out), (needed, 0));
    assert_eq!(dead(&store, "down"), [(Cause::BacklogFull, u64::from(COUNT) - 1)]);
    assert_eq!(is_duplicate(&store, &[30; 1500]).await, Some(lost[22 + 4].id));

    closed(&world, store, "given up").await;
    world.delete_index();
    let store = world.open();
    assert_eq!(gone(&store, count).await, lost, "from the log alone");
    assert_eq!(store.health().damaged_records, 0);
    let mut left = drain(&store, "slow").await;
    left.extend(drain(&store, "down").await);
    let kept = [0, 1, 2, 3, COUNT - 1].map(|n| Bytes::from(vec![n; 1500]));
    assert_eq!(left, kept, "what something else needs is as it was");
    let settled = gone(&store, count + 4).await;
    assert!(settled.iter().all(|story| story.deliveries[0].state.cause().is_some()));
    // The one that was redriven goes as well, some time after it was delivered.
    until(async || stories(&store).await.len() == count + 4).await;
    world.clock.advance(Duration::from_secs(91 * 86_400));
    gone(&store, 0).await;
    assert!(dead(&store, "down").is_empty());
    closed(&world, store, "over").await;
}

#[test]
fn a_body_that_was_given_up_is_needed_again_by_what_was_on_its_way() {
    let world = World::new();
    std::fs::create_dir_all(&world.settings.dir).unwrap();
    let mut index = Index::open_file(&world.index_file()).unwrap();
    let webhook = world.webhook(&[7; 300], &["crm"]);
    let key = webhook.id.key();
    let at = |segment| Some(Position { segment, offset: 4096, length: 512 });
    let take = |index: &mut Index, position, change| {
        index.apply(vec![Entry { position, change }], None).unwrap();
    };
    let row = WebhookRow::new(&webhook, None);
    take(&mut index, at(1), Change::Webhook(Box::new(row.clone())));
    let settlement = Settlement::DeadLetter(Cause::BacklogFull);
    let settled = Settled {
        webhook: webhook.id,
        number: 0,
        version: 1,
        attempts: 0,
        attempt: None,
        settlement,
    };
    take(&mut index, at(2), Change::Settled(settled));
    let now = world.clock.now().plus(Duration::from_secs(1));
    let expiry = Expiry { settled: now, unrouted: now, dead: Timestamp::default() };
    index.expire_some(0, 10, expiry, &HashSet::new()).unwrap();
    let live = |index: &Index| index.holdings().unwrap()[&1].live;
    assert_eq!((index.spared_body(key).unwrap(), live(&index)), (Some(300), 212));
    let delivery = world.webhook(b"", &["billing"]).deliveries.remove(0);
    let standing = Standing::new(webhook.received_at);
    let added = vec![FullDelivery { number: 1, delivery, standing }];
    take(&mut index, at(3), Change::Deliveries(webhook.id, added));
    assert_eq!((index.spared_body(key).unwrap(), live(&index)), (None, 512));
    index.expire_some(0, 10, expiry, &HashSet::new()).unwrap();
    assert_eq!(index.spared_body(key).unwrap(), None, "it is pending");
    // What was written without it has none, whatever is said of it later.
    let bare = WebhookRow { bare: true, ..row };
    take(&mut index, at(4), Change::Webhook(Box::new(bare)));
    assert_eq!((index.spared_body(key).unwrap(), live(&index)), (Some(300), 0));
    assert_eq!(index.holdings().unwrap()[&4].live, 512);
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
        until(async || {
            let ask = store.shared.ask(|indexer| indexer.index.unrouted_bytes()).await;
            ask.unwrap() <= LIMIT / 4
        })
        .await;
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
