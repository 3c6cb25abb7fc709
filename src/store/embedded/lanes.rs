//! All lanes, by target.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::store::embedded::index::queries::{Count, DueKey, DueRow};
use crate::store::embedded::indexer::Inbox;
use crate::store::embedded::lane::Lane;
use crate::store::embedded::memory::Memory;
use crate::store::embedded::offer::Routed;
use crate::store::embedded::queue::Queue;
use crate::store::embedded::segment::Position;

/// All lanes.
#[derive(Debug)]
pub struct Lanes {
    lanes: RwLock<BTreeMap<Arc<str>, Arc<Lane>>>,
    memory: Arc<Memory>,
    queue: Arc<Queue>,
    inbox: Arc<Inbox>,
}

impl Lanes {
    /// No lanes.
    pub fn new(memory: Arc<Memory>, queue: Arc<Queue>, inbox: Arc<Inbox>) -> Self {
        Self { lanes: RwLock::default(), memory, queue, inbox }
    }

    /// The lane of a target. A new one believes that all of its deliveries are in the index.
    pub fn lane(&self, target: &str) -> Arc<Lane> {
        if let Some(lane) = self.known(target) {
            return lane;
        }
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        let name: Arc<str> = target.into();
        let lane = lanes.entry(Arc::clone(&name)).or_insert_with(|| {
            Arc::new(Lane::new(
                name,
                &self.memory,
                Arc::clone(&self.queue),
                Arc::clone(&self.inbox),
            ))
        });
        Arc::clone(lane)
    }

    fn known(&self, target: &str) -> Option<Arc<Lane>> {
        self.lanes.read().unwrap_or_else(PoisonError::into_inner).get(target).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Lane>> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        lanes.values().cloned().collect()
    }

    /// Puts a committed webhook's deliveries into their lanes. `last` is the lane that was looked up
    /// last: mostly it is that of the next one too.
    pub fn push(&self, routed: Routed, last: &mut Option<Arc<Lane>>) {
        let Routed { webhook, deliveries, position } = routed;
        for (number, delivery) in (0u16..).zip(deliveries) {
            let row = DueRow {
                key: DueKey { due_at: webhook.received_at, webhook: webhook.id.key(), number },
                again: 0,
                version: 0,
                attempts: 0,
                started_at: webhook.received_at,
                webhook_at: position,
                defined_at: None,
            };
            let lane = match last.take().filter(|lane| **lane.name() == *delivery.target) {
                Some(lane) => last.insert(lane),
                None => last.insert(self.lane(&delivery.target)),
            };
            lane.push(row, &webhook, delivery.headers);
        }
    }

    /// Puts what was added to a webhook into its lanes; `at` is the record that says so.
    pub fn add(&self, due: Vec<(Arc<str>, DueRow)>, at: Position) {
        for (target, row) in due {
            self.lane(&target).add(DueRow { defined_at: Some(at), ..row });
        }
    }

    /// What the index counted up to this start.
    pub fn set_base(&self, counts: &[Count]) {
        for lane in self.all() {
            lane.forget_base();
        }
        for count in counts {
            self.lane(&count.target).set_base(count);
        }
    }
}
