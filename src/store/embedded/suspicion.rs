//! An index that says what can't be so: the disk has changed it, or somebody has. Nothing is settled on its
//! word alone, and the log has all that it should say: it is made again while the relay runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::embedded::Shared;
use crate::store::embedded::damage::NAMED_MAX;
use crate::store::embedded::inbox::{Inbox, Request};
use crate::store::embedded::index::queries::DueRow;
use crate::store::embedded::index::trim::Holding;
use crate::store::embedded::index::{Index, soundness};
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::log::Log;
use crate::store::embedded::queue::Queue;
use crate::store::embedded::record::{Kind, Record, decode, left_out, peek_webhook};
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::{Frame, Position, Segment};

/// A sound record is another one than the index says.
pub(super) const MISPLACED: &str = "another record is where it says that one is";
/// A sound record is not where the index says.
pub(super) const ELSEWHERE: &str = "a record is not where it says, and is sound elsewhere";

// Made again at once, and then not before so long has passed, each time longer: on a disk that changes
// what is written nothing else would be done.
const AGAIN_WAIT: Duration = Duration::from_secs(600);
const AGAIN_WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// What is held against the index.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    why: Option<String>,
    not_before: Option<Instant>,
    wait: Duration,
}

/// What is looked for in the log.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sought {
    /// A webhook's record, with its body.
    Webhook(u64),
    /// One that says of a webhook's delivery what it is.
    Added(u64, u16),
}

impl Indexer {
    /// The index says what can't be so.
    pub(super) fn suspect(&mut self, why: String) {
        let Suspicion { why: known, not_before, .. } = &mut self.suspicion;
        if known.is_some() {
            return;
        }
        self.sweep.add_finding();
        let now = Instant::now();
        match not_before.filter(|at| now < *at) {
            None => tracing::error!(why, "the index is not sound and is made again from the log"),
            Some(at) => tracing::error!(
                why,
                seconds = (at - now).as_secs(),
                "the index is not sound, and was made again before: it is once more after that time; \
                 what it is wrong about waits. The disk may be failing: to have it made again at once, \
                 stop the relay, remove index.sqlite and start it"
            ),
        }
        *known = Some(why);
    }

    /// Makes a suspect index again when it is time to; answers whether it did. Not in the midst of
    /// answering from it: what follows would find nothing in it.
    pub(super) fn heed_suspicion(&mut self) -> bool {
        let now = Instant::now();
        let Suspicion { why, not_before, wait } = &mut self.suspicion;
        if why.is_none() || not_before.is_some_and(|at| now < at) {
            return false;
        }
        *why = None;
        *wait = (*wait * 2).clamp(AGAIN_WAIT, AGAIN_WAIT_MAX);
        *not_before = Some(now + *wait);
        tell_gone(&self.index, &self.parts.log);
        self.make_again();
        self.has_other_news = true;
        true
    }
}

impl Shared {
    /// What the index says of a webhook can't be so, if it still says it: a complaint that comes when it
    /// was made again is none.
    pub(super) fn suspect(&self, webhook: u64, at: Position, why: &'static str) {
        self.inbox.request(Request::Ask(Box::new(move |indexer| {
            let standings = indexer.index.standings(webhook)?;
            let defined_at = standings.into_iter().filter_map(|(_, _, at)| at);
            if indexer.index.position(webhook)?.into_iter().chain(defined_at).any(|now| now == at) {
                indexer.suspect(why.into());
            }
            Ok(())
        })));
    }

    /// Whether what could not be read at a place is sound elsewhere in the log: then the index is wrong,
    /// and not the log. None if nobody answers any more.
    pub(super) async fn is_elsewhere(&self, row: &DueRow, at: Position) -> Option<bool> {
        let (webhook, number) = (row.key.webhook, row.key.number);
        let sought = if row.defined_at == Some(at) {
            Sought::Added(webhook, number)
        } else {
            Sought::Webhook(webhook)
        };
        let (request, answer) = Request::ask(|indexer| indexer.index.holdings());
        self.inbox.request(request);
        let holdings = answer.await.ok()?;
        let log = Arc::clone(&self.log);
        self.aside.run(move || sought.is_in(&log, &holdings)).await
    }
}

/// Looks through the index when it has caught up with the log, beside those who use it.
pub(super) fn look_through(file: &Path, queue: &Arc<Queue>, inbox: &Inbox) {
    let (request, answer) = Request::ask(|_| Ok(()));
    inbox.request(request);
    if answer.blocking_recv().is_err() {
        return;
    }
    let closing = Arc::clone(queue);
    match soundness::look_through(file, move || closing.is_closing()) {
        Ok(None) => {}
        Ok(Some(why)) => inbox.request(Request::Ask(Box::new(move |indexer| {
            indexer.suspect(why.clone());
            Ok(())
        }))),
        Err(_) if queue.is_closing() => {}
        Err(error) => tracing::warn!(%error, "the index can't be looked through"),
    }
}

/// Tells of webhooks whose segments are gone, before the index is made again: nothing else knows of them.
pub(super) fn tell_gone(index: &Index, log: &Log) {
    match index.in_gone_segments(|number| log.exists(number), NAMED_MAX as usize) {
        Ok((0, ..)) => {}
        Ok((webhooks, pending, named)) => {
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            tracing::error!(
                webhooks,
                pending,
                webhook_ids = named.join(" "),
                named = named.len(),
                "segments are gone that the index knows: webhooks in them that were stored and acknowledged are lost"
            );
        }
        Err(error) => {
            tracing::warn!(%error, "the index does not say which webhooks are lost");
        }
    }
}

impl Sought {
    /// Whether a segment that may have it has it. Each of them is read: it is asked for only where
    /// something is wrong.
    pub(super) fn is_in(self, log: &Log, holdings: &BTreeMap<u64, Holding>) -> bool {
        let may_have = |segment: &Arc<Segment>| match self {
            Self::Added(..) => true,
            Self::Webhook(key) => holdings
                .get(&segment.header.number)
                .is_some_and(|holding| (holding.span.0..=holding.span.1).contains(&key)),
        };
        log.all().into_iter().filter(may_have).any(|segment| self.is_in_segment(log, segment))
    }

    fn is_in_segment(self, log: &Log, segment: Arc<Segment>) -> bool {
        let end = log.end();
        let upto = if segment.header.number == end.segment { end.offset } else { u64::MAX };
        let Ok(scanner) = Scanner::new(segment, 0, upto) else { return false };
        let mut scanner = scanner.around_errors();
        while let Ok(Some(frame)) = scanner.next_frame() {
            if self.is_it(&frame) {
                return true;
            }
        }
        false
    }

    fn is_it(self, frame: &Frame) -> bool {
        let (Self::Webhook(key) | Self::Added(key, _)) = self;
        let is_of_it = matches!(
            Kind::from_code(frame.kind),
            Some(Kind::Webhook | Kind::Deliveries | Kind::State)
        ) && peek_webhook(&frame.payload).is_some_and(|id| id.key() == key);
        if !is_of_it {
            return false;
        }
        match (self, decode(frame.kind, frame.version, &frame.payload)) {
            (Self::Webhook(_), Ok(Record::Webhook(webhook, _))) => {
                left_out(&webhook, &frame.payload).is_none()
            }
            (
                Self::Added(_, number),
                Ok(Record::Deliveries(_, added) | Record::State(_, added)),
            ) => added.iter().any(|full| full.number == number),
            _ => false,
        }
    }
}
