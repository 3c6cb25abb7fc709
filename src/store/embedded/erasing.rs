//! Erasing one webhook: its deliveries end, the log says so, and what holds its bytes is written again
//! without it.
//!
//! Nothing is overwritten in place: what is cut off by a crash would look like damage. The segments that
//! hold its records are cleaned as those of which little lives are, and unlinked.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::domain::delivery::{Cause, State};
use crate::domain::webhook::WebhookId;
use crate::store::archive::{EraseError, Erased};
use crate::store::embedded::Shared;
use crate::store::embedded::change::Change;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::log::Log;
use crate::store::embedded::queue::{Own, OwnRecord};
use crate::store::embedded::record::{Kind, Record, decode, peek_webhook};
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::Frame;
use crate::store::listing::ReadError;

/// What the index knew of it.
#[derive(Debug, Default)]
pub(super) struct Known {
    pending: usize,
    dead: Vec<(Arc<str>, Cause)>,
    body_bytes: u64,
}

impl Shared {
    /// Erases a webhook. Runs to its end whoever goes away meanwhile: it must not be left half done.
    pub(super) async fn erase(
        self: &Arc<Self>,
        id: WebhookId,
    ) -> Result<Option<Erased>, EraseError> {
        let shared = Arc::clone(self);
        let erased = self.tasks.spawn(async move { shared.erase_to_the_end(id).await });
        erased.await.unwrap_or(Err(ReadError::Closed.into()))
    }

    async fn erase_to_the_end(&self, id: WebhookId) -> Result<Option<Erased>, EraseError> {
        let _alone = self.erasing.lock().await;
        let known = self.end_all(id).await?;
        // What is not known may have been erased before by one who did not get to the end.
        let Holding { mut segments, is_whole } = self.holding(id).await?;
        if known.is_none() && segments.is_empty() {
            // It may be in what can't be read just now, and be delivered once it can.
            return if is_whole { Ok(None) } else { Err(ReadError::Unavailable.into()) };
        }
        // The current one can't be cleaned. Where the disk was full it may have taken what its targets
        // answered and that it is erased into one.
        let mut is_written = known.is_some();
        while !is_written || segments.contains(&self.log.end().segment) {
            self.write_erased(id).await?;
            is_written = true;
            segments = self.holding(id).await?.segments;
        }
        let remaining = self.clean(segments).await?;
        if let Some(segment) = remaining.first().copied() {
            return Err(EraseError::Remains { segment });
        }
        let Known { pending, body_bytes, .. } = known.unwrap_or_default();
        Ok(Some(Erased { ended: pending, body_bytes }))
    }

    async fn holding(&self, id: WebhookId) -> Result<Holding, EraseError> {
        let log = Arc::clone(&self.log);
        let holding = self.aside.run(move || holding(&log, id)).await;
        Ok(holding.ok_or(ReadError::Closed)?.map_err(|_| ReadError::Unavailable)?)
    }

    /// Ends its deliveries, and has it in the log that it is erased. None if it is not known.
    pub(super) async fn end_all(&self, id: WebhookId) -> Result<Option<Known>, EraseError> {
        // Nobody adds deliveries to it meanwhile.
        let _alone = self.adding.lock().await;
        let Some(mut known) = self.ask(move |indexer| indexer.begin_erasing(id)).await? else {
            return Ok(None);
        };
        // What was settled just then is in the index now.
        if let Some(later) = self.ask(move |indexer| indexer.begin_erasing(id)).await? {
            known.dead = later.dead;
        }
        let written = self.write_erased(id).await;
        let is_written = written.is_ok();
        let dead = if is_written { std::mem::take(&mut known.dead) } else { Vec::new() };
        self.ask(move |indexer| {
            indexer.end_erasing(id, &dead, is_written);
            Ok(())
        })
        .await?;
        written.map(|()| Some(known))
    }

    /// Writes it into a segment of its own, so that all before can be cleaned.
    async fn write_erased(&self, id: WebhookId) -> Result<(), EraseError> {
        let (reply, answer) = oneshot::channel();
        let record = OwnRecord {
            kind: Kind::Erase,
            meta: id.as_bytes().to_vec(),
            body: Bytes::new(),
            change: Change::Erase(id),
            due: Vec::new(),
        };
        self.queue.roll();
        self.queue.write(Own { records: vec![record], reply });
        // No answer: the disk failed, or the store is closing.
        answer.await.map(drop).map_err(|_| ReadError::Unavailable.into())
    }

    /// Has segments cleaned whatever it takes; answers those that could not be.
    async fn clean(&self, segments: Vec<u64>) -> Result<Vec<u64>, EraseError> {
        let (reply, cleaned) = oneshot::channel();
        let mut forced = Some((segments, reply));
        self.ask(move |indexer| {
            if let Some((segments, reply)) = forced.take() {
                indexer.clean_now(segments, reply);
            }
            Ok(())
        })
        .await?;
        cleaned.await.map_err(|_| ReadError::Closed.into())
    }
}

impl Indexer {
    /// Ends what is pending of a webhook. Until the end no copy of it is made and no operator's word on
    /// it is heard.
    fn begin_erasing(&mut self, id: WebhookId) -> rusqlite::Result<Option<Known>> {
        let Some(story) = self.index.story(id.key())?.filter(|story| story.id == id) else {
            return Ok(None);
        };
        self.erasing.insert(id.key());
        let mut known = Known { body_bytes: story.body_bytes, ..Known::default() };
        for delivery in story.deliveries {
            let lane = self.parts.lanes.lane(&delivery.target);
            match delivery.state {
                State::Pending => known.pending += 1,
                State::DeadLetter(cause) => known.dead.push((delivery.target, cause)),
                State::Delivered | State::Discarded => continue,
            }
            let row = self.index.due_one(id.key(), delivery.number)?;
            lane.erase(id, delivery.number, row);
        }
        Ok(Some(known))
    }

    fn end_erasing(&mut self, id: WebhookId, dead: &[(Arc<str>, Cause)], is_written: bool) {
        self.erasing.remove(&id.key());
        for (target, cause) in dead {
            self.parts.lanes.lane(target).forget_dead(*cause, 1);
        }
        for lane in self.parts.lanes.all() {
            lane.erased(id, is_written);
        }
    }
}

/// The segments that hold anything of a webhook but that it was erased, as far as they can be read.
struct Holding {
    segments: Vec<u64>,
    is_whole: bool,
}

fn holding(log: &Log, id: WebhookId) -> io::Result<Holding> {
    let mut holding = Holding { segments: Vec::new(), is_whole: true };
    for segment in log.all() {
        let mut scanner = Scanner::new(Arc::clone(&segment), 0, u64::MAX)?.around_errors();
        while let Some(frame) = scanner.next_frame()? {
            if is_of(&frame, id) {
                holding.segments.push(segment.header.number);
                break;
            }
        }
        holding.is_whole &= scanner.take_unread().is_empty();
    }
    Ok(holding)
}

fn is_of(frame: &Frame, id: WebhookId) -> bool {
    match Kind::from_code(frame.kind) {
        Some(Kind::Webhook | Kind::Deliveries | Kind::State) => {
            peek_webhook(&frame.payload) == Some(id)
        }
        Some(Kind::Settlement) => peek_webhook(&frame.payload) == Some(id) && has_answer(frame),
        Some(Kind::Erase | Kind::Gone | Kind::Close) | None => false,
    }
}

/// Whether it tells what a target answered.
fn has_answer(frame: &Frame) -> bool {
    match decode(frame.kind, frame.version, &frame.payload) {
        Ok(Record::Settlement(settled)) => {
            settled.attempt.is_some_and(|attempt| !attempt.excerpt.is_empty())
        }
        _ => false,
    }
}
