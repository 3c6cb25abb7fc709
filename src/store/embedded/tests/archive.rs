//! What an operator asks, and what he says of dead letters.

use super::*;
use crate::domain::delivery::{Cause, State};
use crate::domain::pattern::Pattern;
use crate::store::archive::Archive;
use crate::store::embedded::sim::Faults;
use crate::store::listing::{Place, ReadError};
use crate::store::story::{DeliveryFilter, Filter, Order, Story};

const TARGET: &str = "crm";

/// All that a filter wants, page by page.
async fn all(store: &EmbeddedStore, filter: &Filter, order: Order, max: usize) -> Vec<Story> {
    let (mut stories, mut behind) = (Vec::new(), None);
    loop {
        let page = store.stories(filter.clone(), behind, order, max).await.unwrap();
        assert!(page.stories.len() <= max);
        stories.extend(page.stories);
        match page.next {
            Some(next) => behind = Some(next),
            None => return stories,
        }
    }
}

fn dead() -> Filter {
    let delivery = DeliveryFilter { state: Some("dead_letter"), ..DeliveryFilter::default() };
    Filter { delivery, ..Filter::default() }
}

/// Commits a webhook and ends its deliveries to [`TARGET`] as dead letters.
async fn die(world: &World, store: &EmbeddedStore, body: &[u8]) -> Webhook {
    let (webhook, result) = world.commit(store, body, &[TARGET, "other"]).await;
    result.unwrap();
    for lease in lease(store, TARGET, 1).await {
        let failed = attempt(world.clock.now(), Outcome::GivenUp);
        store.settle(lease, Some(failed), Settlement::DeadLetter(Cause::GivenUp));
    }
    webhook
}

fn lane(store: &EmbeddedStore, target: &str) -> (u64, u64) {
    let lanes = store.lanes();
    let lane = lanes.iter().find(|lane| &*lane.target == target);
    lane.map_or((0, 0), |lane| (lane.pending, lane.dead.iter().map(|(_, n)| n).sum()))
}

#[tokio::test]
async fn a_story_tells_each_delivery_and_each_attempt_at_once() {
    let world = World::new();
    let store = world.open();
    let webhook = die(&world, &store, b"told").await;
    let whole = store.whole(webhook.id).await.unwrap().unwrap();
    assert_eq!(whole.record, Ok(webhook.clone()));
    let story = whole.story;
    assert_eq!((story.id, &*story.source), (webhook.id, "aryeo"));
    assert_eq!((story.activity.as_deref(), story.body_bytes), (Some("ORDER_CREATED"), 4));
    let [first, second] = story.deliveries.as_slice() else { panic!("{story:?}") };
    assert_eq!((&*first.target, first.state), (TARGET, State::DeadLetter(Cause::GivenUp)));
    assert_eq!(first.history, [attempt(world.clock.now(), Outcome::GivenUp)]);
    assert_eq!((&*second.target, second.state, second.attempts), ("other", State::Pending, 0));
    assert_eq!(store.whole(WebhookId::from_key(7)).await, Ok(None));
}

#[tokio::test]
async fn all_that_a_filter_wants_is_listed_once_in_both_orders_whatever_the_page() {
    let world = World::new();
    let store = world.open();
    let mut ids = Vec::new();
    for n in 0..7_u8 {
        ids.push(die(&world, &store, &[n]).await.id);
        world.clock.advance(Duration::from_secs(1));
    }
    for max in [1, 3, 100] {
        let stories = all(&store, &dead(), Order::OldestFirst, max).await;
        assert_eq!(stories.iter().map(|story| story.id).collect::<Vec<_>>(), ids);
        let newest = all(&store, &dead(), Order::NewestFirst, max).await;
        assert!(newest.iter().rev().eq(&stories));
    }
    let start = Timestamp::from_millis(START);
    let between = Filter {
        since: Some(start.plus(Duration::from_secs(2))),
        until: Some(start.plus(Duration::from_secs(4))),
        ..Filter::default()
    };
    for order in [Order::OldestFirst, Order::NewestFirst] {
        assert_eq!(all(&store, &between, order, 10).await.len(), 2);
    }
    let nobody = Filter { activity: Some(Pattern::new("LISTING_*")), ..Filter::default() };
    assert_eq!(all(&store, &nobody, Order::OldestFirst, 10).await, []);
}

#[tokio::test]
async fn a_filter_that_wants_nothing_looks_at_some_and_says_where_to_go_on() {
    let world = World::new();
    let store = world.open();
    let many = crate::store::embedded::index::stories::LOOKED_AT_MAX + 1;
    for n in 0..many {
        world.commit(&store, &n.to_le_bytes(), &[]).await.1.unwrap();
    }
    let page = store.stories(dead(), None, Order::OldestFirst, 10).await.unwrap();
    assert_eq!(page.stories, []);
    let page = store.stories(dead(), page.next, Order::OldestFirst, 10).await.unwrap();
    assert_eq!((page.stories, page.next), (Vec::new(), None::<Place>));
}

#[tokio::test]
async fn a_redriven_dead_letter_is_due_with_the_same_id_and_goes_on_counting() {
    let mut world = World::new();
    let store = world.open();
    let webhook = die(&world, &store, b"again").await;
    assert_eq!(lane(&store, TARGET), (0, 1));
    world.clock.advance(Duration::from_secs(60));
    let at = world.clock.now();
    let redrive =
        |number| store.settle_dead(vec![(webhook.id, number)], Settlement::Redriven { at });
    // The other one is pending, and there is no third.
    for number in [1, 2] {
        assert_eq!(redrive(number).await, Ok(0));
    }
    assert_eq!(redrive(0).await, Ok(1));
    assert_eq!(redrive(0).await, Ok(0), "it is no dead letter any more");
    assert_eq!(lane(&store, TARGET), (1, 0));
    // The power goes: it was promised.
    let disk = world.disk.power_cut(3);
    drop(store);
    world.use_disk(disk);
    let store = world.open();
    let leases = lease(&store, TARGET, 8).await;
    let [lease] = leases.as_slice() else { panic!("{leases:?}") };
    let delivery = &lease.delivery;
    assert_eq!((delivery.webhook.id, delivery.attempts, delivery.started_at), (webhook.id, 1, at));
    assert_eq!(&*delivery.webhook.body, b"again");
}

#[tokio::test]
async fn a_discarded_dead_letter_is_over() {
    let world = World::new();
    let store = world.open();
    let webhook = die(&world, &store, b"over").await;
    let discard = store.settle_dead(vec![(webhook.id, 0)], Settlement::Discarded).await;
    assert_eq!((discard, lane(&store, TARGET)), (Ok(1), (0, 0)));
    assert!(lease_now(&store, TARGET, 8).await.is_empty());
    let whole = store.whole(webhook.id).await.unwrap().unwrap();
    assert_eq!(whole.story.deliveries[0].state, State::Discarded);
    assert_eq!(all(&store, &dead(), Order::OldestFirst, 10).await, []);
}

#[tokio::test]
async fn a_webhook_whose_record_is_damaged_is_told_of_and_its_dead_letter_can_be_ended() {
    let world = World::new();
    let store = world.open();
    let webhook = die(&world, &store, b"rotten").await;
    store.flush().await;
    world.disk.change(&segments(&world)[0], |bytes| {
        let at = bytes.windows(6).position(|window| window == b"rotten").unwrap();
        bytes[at] ^= 1;
    });
    let whole = store.whole(webhook.id).await.unwrap().unwrap();
    assert_eq!(whole.record, Err(ReadError::Damaged));
    assert_eq!(whole.story.deliveries[0].state, State::DeadLetter(Cause::GivenUp));
    assert_eq!(store.health().damaged_records, 1);
    let discard = store.settle_dead(vec![(webhook.id, 0)], Settlement::Discarded).await;
    assert_eq!(discard, Ok(1));
}

#[tokio::test]
async fn many_dead_letters_come_back_each_once() {
    let world = World::new();
    let store = world.open();
    let mut of = Vec::new();
    for n in 0..1500_u32 {
        of.push((die(&world, &store, &n.to_le_bytes()).await.id, 0));
    }
    let at = world.clock.now();
    assert_eq!(store.settle_dead(of.clone(), Settlement::Redriven { at }).await, Ok(of.len()));
    assert_eq!(drain(&store, TARGET).await.len(), of.len());
    assert_eq!(lane(&store, TARGET), (0, 0));
}

#[tokio::test]
async fn where_the_disk_does_not_take_it_an_operator_is_not_told_that_it_is_done() {
    let world = World::new();
    let store = world.open();
    let webhook = die(&world, &store, b"promise").await;
    store.flush().await;
    world.disk.set_faults(Faults { broken_at_sync: Some(1), ..Faults::default() });
    let at = world.clock.now();
    let answer = store.settle_dead(vec![(webhook.id, 0)], Settlement::Redriven { at }).await;
    assert_eq!(answer, Err(ReadError::Unavailable));
}

/// What the log says, in this order, to an index that knows nothing.
#[test]
fn what_came_before_a_settlement_is_known_also_where_the_log_tells_it_later() {
    use crate::store::embedded::change::{Change, Entry, WebhookRow};
    use crate::store::embedded::index::Index;
    use crate::store::embedded::record::{FullDelivery, Settled, Standing};
    use crate::store::embedded::segment::Position;
    let world = World::new();
    let (webhook, now) = (world.webhook(b"a", &[TARGET]), world.clock.now());
    let settled = |version, outcome, settlement| Settled {
        webhook: webhook.id,
        number: 0,
        version,
        attempts: version,
        attempt: Some(attempt(now, outcome)),
        settlement,
    };
    let retried = settled(1, Outcome::Status, Settlement::Retry { at: now });
    let delivered = settled(2, Outcome::Delivered, Settlement::Delivered);
    let mut standing = Standing::new(now);
    standing.apply(&retried);
    standing.apply(&delivered);
    let delivery = webhook.deliveries[0].clone();
    let state = vec![FullDelivery { number: 0, delivery, standing: standing.clone() }];
    // The segment that had the first settlement is gone. What is left of it was asked for before the
    // second one, and written behind that.
    let changes = [
        Change::Webhook(Box::new(WebhookRow::new(&webhook, None))),
        Change::Settled(delivered),
        Change::Deliveries(webhook.id, state),
    ];
    let entry = |(n, change): (u64, Change)| {
        let position = Position { segment: 1, offset: 4096 + n * 64, length: 64 };
        Entry { position: Some(position), change }
    };
    std::fs::create_dir_all(&world.settings.dir).unwrap();
    let mut index = Index::open(&world.index_file()).unwrap();
    index.apply((0_u64..).zip(changes).map(entry).collect(), None).unwrap();
    assert_eq!(index.standings(webhook.id.key()).unwrap()[0].1, standing);
}
