//! Telling an operator what became of webhooks, and doing what he says with dead letters.

use std::sync::Arc;

use crate::domain::delivery::Settlement;
use crate::domain::webhook::WebhookId;
use crate::store::embedded::Shared;
use crate::store::embedded::inbox::Request;
use crate::store::embedded::index::stories::Found;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::listing::{TRIALS, read_webhook_and_added};
use crate::store::embedded::reader::Unfit;
use crate::store::listing::{Place, ReadError};
use crate::store::story::{Filter, Order, Stories, Whole};

// So many are settled at once: others wait for the index and the queue too.
const SETTLED_AT_ONCE: usize = 500;

impl Shared {
    /// What a filter wants.
    pub(super) async fn stories(
        &self,
        filter: Filter,
        behind: Option<Place>,
        order: Order,
        max: usize,
    ) -> Result<Stories, ReadError> {
        let behind = behind.map(Place::key);
        let max = max.max(1);
        let Found { stories, upto } =
            self.ask(move |indexer| indexer.index.stories(&filter, behind, order, max)).await?;
        Ok(Stories { stories, next: upto.map(Place::at_key) })
    }

    /// All of one webhook.
    pub(super) async fn whole(&self, id: WebhookId) -> Result<Option<Whole>, ReadError> {
        let key = id.key();
        let mut trial = 1;
        loop {
            let found = self
                .ask(move |indexer| Ok((indexer.index.story(key)?, indexer.index.stored_one(key)?)))
                .await?;
            let (Some(story), row) = found else { return Ok(None) };
            if story.id != id {
                return Ok(None);
            }
            let Some(row) = row else {
                return Ok(Some(Whole { story, record: Err(ReadError::Gone) }));
            };
            let (log, at) = (Arc::clone(&self.log), row.at);
            let read = self.aside.run(move || read_webhook_and_added(&log, &row));
            let record = match read.await.ok_or(ReadError::Closed)? {
                Ok(webhook) => Ok(webhook),
                Err(Unfit::Moved) if trial < TRIALS => {
                    trial += 1;
                    continue;
                }
                Err(unfit) => {
                    self.note_unfit(id, at, &unfit);
                    Err(unfit.into())
                }
            };
            return Ok(Some(Whole { story, record }));
        }
    }

    /// Settles dead letters, some at a time.
    pub(super) async fn settle_dead(
        &self,
        dead: Vec<(WebhookId, u16)>,
        settlement: Settlement,
    ) -> Result<usize, ReadError> {
        let mut settled = 0;
        for some in dead.chunks(SETTLED_AT_ONCE) {
            let some = some.to_vec();
            settled += self.ask(move |indexer| indexer.settle_dead(&some, settlement)).await?;
            self.synced().await?;
        }
        Ok(settled)
    }

    /// Answers when all that was settled before is durable.
    async fn synced(&self) -> Result<(), ReadError> {
        self.written(Vec::new()).await
    }

    pub(super) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnMut(&mut Indexer) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let (request, answer) = Request::ask(ask);
        // Behind all that waits: what was acknowledged before is in the answer.
        self.queue.request(request);
        answer.await.map_err(|_| ReadError::Closed)
    }
}

impl Indexer {
    /// Settles dead letters: first in the index, so that nothing ends them meanwhile, then in their
    /// lanes, which have it written down.
    fn settle_dead(
        &mut self,
        dead: &[(WebhookId, u16)],
        settlement: Settlement,
    ) -> rusqlite::Result<usize> {
        let mut rows = Vec::with_capacity(dead.len());
        for (id, number) in dead {
            if self.erasing.contains(&id.key()) {
                continue;
            }
            let found = self.index.dead_one(id.key(), *number)?;
            // There is nothing left to deliver.
            let is_gone = matches!(settlement, Settlement::Redriven { .. })
                && self.index.spared_body(id.key())?.is_some();
            rows.extend(found.filter(|found| found.id == *id && !is_gone));
        }
        let settled = rows.iter().map(|dead| dead.row.settled(dead.id, None, settlement));
        self.apply_unwritten(settled.collect())?;
        let count = rows.len();
        for dead in rows {
            self.parts.lanes.lane(&dead.target).settle_dead(&dead, settlement);
        }
        Ok(count)
    }
}
