//! Deliveries that are added while the store is at something else.

use std::collections::HashSet;

use tokio::task::JoinSet;

use super::*;
use crate::store::archive::{Addition, Archive};
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::inbox::Request;
use crate::store::embedded::index::Index;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::record::{FullDelivery, Standing};
use crate::store::embedded::segment::Position;
use crate::store::embedded::sim::Faults;

fn at(segment: u64) -> Option<Position> {
    Some(Position { segment, offset: 4096, length: 512 })
}

#[test]
fn what_is_added_before_a_copy_that_was_made_without_it_is_still_found() {
    let world = World::new();
    std::fs::create_dir_all(&world.settings.dir).unwrap();
    let mut index = Index::open_file(&world.index_file()).unwrap();
    let webhook = world.webhook(b"copied", &["crm"]);
    let key = webhook.id.key();
    let copy = || Change::Webhook(Box::new(WebhookRow::new(&webhook, None)));
    let delivery = world.webhook(b"", &["billing"]).deliveries.remove(0);
    let standing = Standing::new(webhook.received_at);
    let added = vec![FullDelivery { number: 1, delivery, standing }];
    for (position, change) in
        [(at(1), copy()), (at(2), Change::Deliveries(webhook.id, added)), (at(3), copy())]
    {
        index.apply(vec![Entry { position, change }], None).unwrap();
    }
    let standings = index.standings(key).unwrap();
    let defined_at: Vec<_> = standings.into_iter().map(|(_, _, at)| at).collect();
    assert_eq!(defined_at, [None, at(2)], "its own is in the copy, the other one is not");
}

#[test]
fn what_is_being_added_to_is_not_crowded_out_and_others_go_in_its_place() {
    let world = World::new();
    std::fs::create_dir_all(&world.settings.dir).unwrap();
    let mut index = Index::open_file(&world.index_file()).unwrap();
    let webhooks = [b"first", b"other"].map(|body| world.webhook(body, &[]));
    let [first, other] = webhooks.map(|webhook| {
        let change = Change::Webhook(Box::new(WebhookRow::new(&webhook, None)));
        (webhook.id.key(), Entry { position: None, change })
    });
    let keys = [first.0, other.0];
    let entries = [first.1, other.1].into_iter().zip(1..);
    let entries = entries.map(|(entry, n)| Entry { position: at(n), ..entry }).collect();
    index.apply(entries, None).unwrap();
    let in_use = HashSet::from([keys[0]]);
    assert_eq!(index.remove_unrouted(1, 1, &in_use).unwrap(), 1);
    assert_eq!(index.remove_unrouted(u64::MAX, 1, &in_use).unwrap(), 0);
    assert_eq!(keys.map(|key| index.knows(key).unwrap()), [true, false]);
}

/// Asks the index at once, whatever the disk does.
async fn ask_now<T: Send + 'static>(
    store: &EmbeddedStore,
    ask: impl FnMut(&mut Indexer) -> rusqlite::Result<T> + Send + 'static,
) -> T {
    let (request, answer) = Request::ask(ask);
    store.shared.inbox.request(request);
    answer.await.unwrap()
}

#[tokio::test]
async fn what_is_added_just_when_its_webhook_s_time_is_over_is_delivered() {
    add_when_its_time_is_over(false).await;
}

#[tokio::test]
async fn what_was_begun_to_be_added_is_delivered_though_nobody_waits_for_it() {
    add_when_its_time_is_over(true).await;
}

async fn add_when_its_time_is_over(is_left: bool) {
    let mut world = World::new();
    world.settings.retain = Duration::from_millis(640);
    let store = Arc::new(world.open());
    let (webhook, result) = world.commit(&*store, b"replayed", &["crm"]).await;
    result.unwrap();
    let (other, result) = world.commit(&*store, b"over", &["crm"]).await;
    result.unwrap();
    drain(&store, "crm").await;
    world.disk.set_faults(Faults { hung_at_sync: Some(1), ..Faults::default() });
    let deliveries = world.webhook(b"", &["billing"]).deliveries;
    let addition = Addition { id: webhook.id, deliveries, again: false };
    let adds = Arc::clone(&store);
    let mut added = JoinSet::new();
    added.spawn(async move { adds.add(vec![addition]).await });
    // It is on its way to a disk that hangs. Meanwhile the time of both is over.
    while world.disk.operations().1 == 0 {
        tokio::task::yield_now().await;
    }
    if is_left {
        added.abort_all();
    }
    world.clock.advance(Duration::from_secs(10));
    let (key, other) = (webhook.id.key(), other.id.key());
    until(async || !ask_now(&store, move |indexer| indexer.index.knows(other)).await).await;
    let is_kept = ask_now(&store, move |indexer| indexer.index.knows(key)).await;
    // Before anything can fail here: a store does not close while its disk hangs.
    world.disk.heal();
    assert!(is_kept);
    match added.join_next().await.unwrap() {
        Ok(counts) => assert_eq!(counts, Ok(vec![1])),
        Err(error) => assert!(is_left && error.is_cancelled(), "{error}"),
    }
    assert_eq!(drain(&store, "billing").await, [&b"replayed"[..]]);
    // Then its time is over too.
    until(async || !ask_now(&store, move |indexer| indexer.index.knows(key)).await).await;
}
