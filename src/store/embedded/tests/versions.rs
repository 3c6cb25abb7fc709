//! What is said of a delivery is said again at times, and later than what came after it.

use super::*;
use crate::domain::delivery::State;
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::index::Index;
use crate::store::embedded::segment::Position;

#[test]
fn what_is_older_changes_nothing_whether_a_settlement_or_a_copy_says_it() {
    let world = World::new();
    std::fs::create_dir_all(&world.settings.dir).unwrap();
    let mut index = Index::open_file(&world.index_file()).unwrap();
    let webhook = world.webhook(b"settled twice", &["crm"]);
    let key = webhook.id.key();
    let mut take_in = |segment: u64, change: Change| {
        let position = Some(Position { segment, offset: 4096, length: 512 });
        index.apply(vec![Entry { position, change }], None).unwrap();
        (index.standings(key).unwrap().remove(0).1.state, index.due_one(key, 0).unwrap())
    };
    let copy = || Change::Webhook(Box::new(WebhookRow::new(&webhook, None)));
    let mut row = take_in(1, copy()).1.unwrap();
    let at = webhook.received_at;
    let first = row.settled(webhook.id, None, Settlement::Retry { at });
    row.version = first.version;
    let second = row.settled(webhook.id, None, Settlement::Delivered);
    assert_eq!(take_in(2, Change::Settled(second)).0, State::Delivered);
    assert_eq!(take_in(3, Change::Settled(first)).0, State::Delivered, "a settlement");
    assert_eq!(take_in(4, copy()).0, State::Delivered, "a copy");
}
