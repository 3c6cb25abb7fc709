//! Deliveries that are added while the store is at something else.

use super::*;
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::index::Index;
use crate::store::embedded::record::{FullDelivery, Standing};
use crate::store::embedded::segment::Position;

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
