//! What operators do meanwhile.

use std::sync::Arc;

use super::ledger::Ledger;
use super::life::delivery_to;
use super::play::Play;
use super::time;
use crate::domain::delivery::Settlement;
use crate::domain::time::Clock as _;
use crate::domain::webhook::WebhookId;
use crate::store::archive::{Addition, Archive as _};
use crate::store::embedded::EmbeddedStore;
use crate::store::listing::ReadError;
use crate::store::marks::{MarkKeeper as _, Word};
use crate::store::story::{DeliveryFilter, Filter, Order};

impl Play {
    /// An operator says something, and waits for the answer somewhere else.
    pub(super) fn operate(&mut self) {
        let target = Arc::clone(&self.place.targets[self.random.usize(..3)].name);
        match self.random.u8(..8) {
            0 | 1 => self.say(target),
            2 => self.decide(target, Settlement::Discarded),
            3 | 4 => {
                let at = self.alive().clock.now();
                self.decide(target, Settlement::Redriven { at });
            }
            5 | 6 => self.replay(target),
            _ => self.erase(),
        }
    }

    /// Pauses a target, or resumes it.
    fn say(&mut self, target: Arc<str>) {
        let pause = self.random.bool();
        let at = self.alive().clock.now();
        let word = if pause { Word::Pause(at) } else { Word::Resume(at) };
        self.tell(|| format!("{target} is to {}", if pause { "pause" } else { "go on" }));
        let store = Arc::clone(&self.alive().store);
        self.alive().tasks.spawn(async move {
            let change = move |marks: &mut crate::store::marks::Marks| {
                marks.entry((*target).into()).or_default().word = Some(word);
            };
            store.mark(change).await.unwrap_or_default();
        });
    }

    /// All dead letters of a target.
    fn decide(&mut self, target: Arc<str>, word: Settlement) {
        self.tell(|| format!("dead letters of {target} are to be {word:?}"));
        if word == Settlement::Discarded {
            self.ledger().discarded.insert(Arc::clone(&target));
        }
        let (store, ledger) = (Arc::clone(&self.alive().store), Arc::clone(&self.ledger));
        self.alive().tasks.spawn(async move {
            let Ok(dead) = dead(&store, &target).await else { return };
            ledger.lock().unwrap().deciding += 1;
            let count = store.settle_dead(dead, word).await;
            let mut ledger = ledger.lock().unwrap();
            ledger.deciding = ledger.deciding.saturating_sub(1);
            ledger.tell(|| format!("{count:?} dead letters of {target}: {word:?}"));
        });
    }

    /// A webhook for one more target, or again.
    fn replay(&mut self, target: Arc<str>) {
        let Some(id) = self.an_accepted_one() else { return };
        let again = self.random.bool();
        self.tell(|| format!("{id} is to go to {target}, again: {again}"));
        self.ledger().of(id).added_perhaps += 1;
        let (store, ledger) = (Arc::clone(&self.alive().store), Arc::clone(&self.ledger));
        self.alive().tasks.spawn(async move {
            let deliveries = vec![delivery_to(&target)];
            let added = store.add(vec![Addition { id, deliveries, again }]).await;
            let mut ledger = ledger.lock().unwrap();
            ledger.tell(|| format!("{id} for {target}: {added:?}"));
            if let Ok(added) = added {
                let post = ledger.of(id);
                post.added_perhaps -= 1;
                post.added += added[0];
            }
        });
    }

    fn erase(&mut self) {
        let Some(id) = self.an_accepted_one() else { return };
        self.tell(|| format!("{id} is to be erased"));
        self.ledger().of(id).to_be_erased = true;
        let (store, ledger) = (Arc::clone(&self.alive().store), Arc::clone(&self.ledger));
        self.alive().tasks.spawn(async move {
            let erased = store.erase(id).await;
            let mut ledger: std::sync::MutexGuard<'_, Ledger> = ledger.lock().unwrap();
            ledger.tell(|| format!("{id}: {erased:?}"));
            if erased.is_ok() {
                ledger.of(id).erased.get_or_insert((id, time::elapsed()));
            }
        });
    }

    fn an_accepted_one(&mut self) -> Option<WebhookId> {
        let ledger = self.ledger.lock().unwrap();
        let accepted: Vec<_> = ledger.posts.iter().filter_map(|post| post.accepted).collect();
        drop(ledger);
        self.random.choice(accepted)
    }
}

/// The dead letters of a target.
pub(super) async fn dead(
    store: &EmbeddedStore,
    target: &str,
) -> Result<Vec<(WebhookId, u16)>, ReadError> {
    let state = Some("dead_letter");
    let delivery = DeliveryFilter { target: Some(target.into()), state, cause: None };
    let filter = Filter { delivery, ..Filter::default() };
    let (mut dead, mut behind) = (Vec::new(), None);
    loop {
        let page = store.stories(filter.clone(), behind, Order::OldestFirst, 100).await?;
        for story in &page.stories {
            let wanted = story.deliveries.iter().filter(|of| filter.delivery.wants(of));
            dead.extend(wanted.map(|delivery| (story.id, delivery.number)));
        }
        match page.next {
            Some(next) => behind = Some(next),
            None => return Ok(dead),
        }
    }
}
