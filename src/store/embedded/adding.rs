//! Deliveries for webhooks that are stored: replays, and dead letters for another target.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot::{self, Receiver};

use crate::domain::time::Timestamp;
use crate::store::archive::Addition;
use crate::store::embedded::Shared;
use crate::store::embedded::change::Change;
use crate::store::embedded::inbox::Request;
use crate::store::embedded::index::queries::{DueKey, DueRow};
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::queue::{Own, OwnRecord, Queue};
use crate::store::embedded::record::{FullDelivery, Kind, Standing, encode_deliveries};
use crate::store::embedded::segment::Position;
use crate::store::listing::ReadError;

// So many webhooks at once: others wait for the index and the queue too.
const ADDED_AT_ONCE: usize = 200;

impl Shared {
    /// Adds deliveries; of each how many. What is begun goes on without the caller.
    pub(super) async fn add(&self, additions: Vec<Addition>) -> Result<Vec<usize>, ReadError> {
        let mut counts = Vec::with_capacity(additions.len());
        for some in additions.chunks(ADDED_AT_ONCE) {
            // One after the other: each delivery of a webhook has a number, and the index says which is
            // free. So the next one waits until the index has this one.
            let mut alone = Some(Arc::clone(&self.adding).lock_owned().await);
            let (some, now, queue) = (some.to_vec(), self.clock.0.now(), Arc::clone(&self.queue));
            let added = self.ask(move |indexer| {
                let records = indexer.begin_adding(&some, now)?;
                let count = |record: &Option<OwnRecord>| record.as_ref().map_or(0, |r| r.due.len());
                let counts: Vec<usize> = records.iter().map(count).collect();
                let written = write(&queue, records.into_iter().flatten().collect());
                let mut alone = alone.take();
                // Behind what was written.
                queue.request(Request::Ask(Box::new(move |indexer| {
                    indexer.adding.clear();
                    alone.take();
                    Ok(())
                })));
                Ok((counts, written))
            });
            let (added, written) = added.await?;
            counts.extend(added);
            durable(written).await?;
        }
        Ok(counts)
    }

    /// Writes records, and answers when they are durable; they are in their lanes by then.
    pub(super) async fn written(&self, records: Vec<OwnRecord>) -> Result<(), ReadError> {
        durable(write(&self.queue, records)).await
    }
}

fn write(queue: &Queue, records: Vec<OwnRecord>) -> Receiver<Vec<Position>> {
    let (reply, written) = oneshot::channel();
    queue.write(Own { records, reply });
    written
}

async fn durable(written: Receiver<Vec<Position>>) -> Result<(), ReadError> {
    // No answer: the disk failed, or the store is closing.
    written.await.map(drop).map_err(|_| ReadError::Unavailable)
}

impl Indexer {
    /// What is to be written for each, and their retention waits for that; nothing for a webhook that is
    /// gone, or its bytes are, and for one that lacks nothing.
    fn begin_adding(
        &mut self,
        additions: &[Addition],
        now: Timestamp,
    ) -> rusqlite::Result<Vec<Option<OwnRecord>>> {
        let records = additions.iter().map(|addition| self.one_to_add(addition, now));
        let records: Vec<_> = records.collect::<rusqlite::Result<_>>()?;
        let added = additions.iter().zip(&records).filter(|(_, record)| record.is_some());
        self.adding.extend(added.map(|(addition, _)| addition.id.key()));
        Ok(records)
    }

    fn one_to_add(
        &self,
        addition: &Addition,
        now: Timestamp,
    ) -> rusqlite::Result<Option<OwnRecord>> {
        let (id, key) = (addition.id, addition.id.key());
        let story = self.index.story(key)?.filter(|story| story.id == id && !story.bytes_gone);
        let (Some(story), Some(webhook_at)) = (story, self.index.position(key)?) else {
            return Ok(None);
        };
        let (mut added, mut due) = (Vec::new(), Vec::new());
        for delivery in &addition.deliveries {
            let earlier = story.deliveries.iter().filter(|known| known.target == delivery.target);
            let again = match earlier.map(|known| known.again).max() {
                None => 0,
                Some(_) if !addition.again => continue,
                Some(last) => last.saturating_add(1),
            };
            let Ok(number) = u16::try_from(story.deliveries.len() + added.len()) else { break };
            let standing = Standing { again, ..Standing::new(now) };
            let row = DueRow {
                key: DueKey { due_at: now, webhook: key, number },
                again,
                version: 0,
                attempts: 0,
                started_at: now,
                webhook_at,
                defined_at: None,
            };
            due.push((delivery.target.clone(), row));
            added.push(FullDelivery { number, delivery: delivery.clone(), standing });
        }
        if added.is_empty() {
            return Ok(None);
        }
        let meta = encode_deliveries(id, &added);
        let change = Change::Deliveries(id, added);
        Ok(Some(OwnRecord { kind: Kind::Deliveries, meta, body: Bytes::new(), change, due }))
    }
}
