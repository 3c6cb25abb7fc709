//! Whoever still asks a store that is closed.

use super::*;
use crate::store::archive::{Addition, Archive};
use crate::store::embedded::inbox::Request;
use crate::store::listing::ReadError;
use crate::store::story::{Filter, Order};

#[tokio::test]
async fn whoever_asks_a_store_that_is_closed_is_told_so_and_does_not_wait_for_ever() {
    let world = World::new();
    let store = world.open();
    let (webhook, result) = world.commit(&store, b"kept", &["crm"]).await;
    result.unwrap();
    store.close().await;
    let closed = async {
        let stories = store.stories(Filter::default(), None, Order::OldestFirst, 8);
        assert_eq!(stories.await.err(), Some(ReadError::Closed));
        let deliveries = world.webhook(b"", &["billing"]).deliveries;
        for _ in 0..2 {
            let deliveries = deliveries.clone();
            let addition = Addition { id: webhook.id, deliveries, again: false };
            assert_eq!(store.add(vec![addition]).await, Err(ReadError::Closed));
        }
        // On a thread that a runtime would wait for.
        assert_eq!(store.erase(webhook.id).await, Err(ReadError::Closed.into()));
        store.flush().await;
        // Past the committer, straight to the index.
        let (request, answer) = Request::ask(|_| Ok(()));
        store.shared.inbox.request(request);
        answer.await.unwrap_err();
    };
    within(Duration::from_secs(10), closed).await;
}
