//! Handing deliveries out: the wait, and reading back what is not in memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::delivery::{Cause, Settlement};
use crate::domain::webhook::WebhookId;
use crate::store::embedded::Shared;
use crate::store::embedded::inbox::Request;
use crate::store::embedded::index::queries::{DueRow, Identity};
use crate::store::embedded::lane::Lane;
use crate::store::embedded::offer::{Body, Offer};
use crate::store::embedded::reader::{Readback, read_back};
use crate::store::embedded::segment::Position;
use crate::store::embedded::suspicion::{ELSEWHERE, MISPLACED};
use crate::store::{Delivery, Lease, Pick};

// A disk that does not read now may read later.
const READ_AGAIN_WAIT: Duration = Duration::from_secs(60);
// An index that is wrong about a record is made again meanwhile; most often that takes no longer.
const MADE_AGAIN_WAIT: Duration = Duration::from_secs(1);
const MADE_AGAIN_SOON: Duration = Duration::from_secs(10);
// One that does not for so long is given up: it can be redriven when it does.
const READ_WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
// More are tried again without end: each is one that could be given up later.
const UNREADABLE_MAX: usize = 65_536;
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// The webhooks that could not be read for delivery, and since when.
#[derive(Debug, Default)]
pub(super) struct Unreadable(Mutex<HashMap<u64, Instant>>);

impl Unreadable {
    /// It could not be read now: since when?
    fn note(&self, webhook: u64) -> Instant {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match since.get(&webhook) {
            Some(then) => *then,
            None => {
                if since.len() < UNREADABLE_MAX {
                    since.insert(webhook, now);
                }
                now
            }
        }
    }

    /// It was read, or it is over.
    fn forget(&self, webhook: u64) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !since.is_empty() {
            since.remove(&webhook);
        }
    }
}

/// What was leased and has no [`Lease`] yet; dropped, it goes back.
struct Pending {
    lane: Arc<Lane>,
    rows: Vec<DueRow>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        for row in &self.rows {
            self.lane.give_back(row.key.webhook, row.key.number);
        }
    }
}

impl Pending {
    /// The caller takes care of this one.
    fn release(&mut self, row: &DueRow) {
        self.rows.retain(|other| other.key != row.key);
    }
}

impl Shared {
    /// Waits until something is due, and leases it.
    pub(super) async fn lease(&self, lane: Arc<Lane>, max: usize, pick: Pick) -> Vec<Lease> {
        loop {
            let changed = lane.changed().notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match lane.offer(self.clock.0.now(), max.max(1), pick) {
                Offer::Due(taken) => {
                    let leases = self.fetch(&lane, taken).await;
                    if !leases.is_empty() {
                        return leases;
                    }
                }
                Offer::At(due_at) => {
                    let wait = due_at.since(self.clock.0.now()).min(SLEEP_MAX);
                    let until = Instant::now() + wait;
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                Offer::Nothing => changed.await,
            }
        }
    }

    async fn fetch(&self, lane: &Arc<Lane>, taken: Vec<(DueRow, Option<Body>)>) -> Vec<Lease> {
        let mut pending =
            Pending { lane: Arc::clone(lane), rows: taken.iter().map(|(row, _)| *row).collect() };
        let missing: Vec<DueRow> =
            taken.iter().filter(|(_, body)| body.is_none()).map(|(row, _)| *row).collect();
        let mut read = self.read(missing).await.into_iter();
        let mut leases = Vec::with_capacity(taken.len());
        for (row, body) in taken {
            let body = match body {
                Some(body) => Readback::Whole(body),
                None => match read.next() {
                    Some(read) => read,
                    None => continue,
                },
            };
            let body = match body {
                whole @ Readback::Whole(_) => Some(whole),
                unfit => self.find_again(&row, unfit).await,
            };
            match body {
                // The store is being closed: the next start delivers it.
                None => {}
                Some(Readback::Whole(body)) => {
                    self.unreadable.forget(row.key.webhook);
                    lane.keep(&row, &body);
                    pending.release(&row);
                    leases.push(new_lease(lane, &row, body));
                }
                Some(other) => {
                    // Until it is settled it goes back if nobody waits for this any more.
                    self.settle_unread(lane, &row, other).await;
                    pending.release(&row);
                }
            }
        }
        leases
    }

    async fn read(&self, rows: Vec<DueRow>) -> Vec<Readback> {
        if rows.is_empty() {
            return Vec::new();
        }
        let log = Arc::clone(&self.log);
        let read = move || rows.iter().map(|row| read_back(&log, row)).collect();
        self.aside.run(read).await.unwrap_or_default()
    }

    /// The record was copied forward since the index was asked, and may be again before it is read, or the
    /// index was made again since. None if nobody answers any more.
    async fn find_again(&self, row: &DueRow, mut readback: Readback) -> Option<Readback> {
        let mut row = *row;
        while !matches!(readback, Readback::Whole(_)) {
            let (webhook, number) = (row.key.webhook, row.key.number);
            let (request, answer) =
                Request::ask(move |indexer| indexer.index.due_one(webhook, number));
            self.inbox.request(request);
            let found = answer.await.ok()?;
            let places = |row: &DueRow| (row.webhook_at, row.defined_at);
            let Some(found) = found.filter(|found| places(found) != places(&row)) else { break };
            row = DueRow { key: row.key, ..found };
            readback = self.read(vec![row]).await.pop()?;
        }
        Some(readback)
    }

    async fn settle_unread(&self, lane: &Arc<Lane>, row: &DueRow, readback: Readback) {
        let key = row.key.webhook;
        let about = self.identify(key).await;
        let settlement = match self.retry_unread(lane, row, &about, readback).await {
            Ok(wait) => Settlement::Retry { at: self.clock.0.now().plus(wait) },
            Err(at) => {
                self.log.damage.add(at.segment, at.offset);
                self.unreadable.forget(key);
                // A copy of it that the sender still posts is what can be delivered.
                self.claims.recent(|recent| recent.forget(about.id));
                let log = Arc::clone(&self.log);
                let keep = move || log.set_aside(at.segment, at.offset, at.length);
                let kept = self.aside.run(keep).await.flatten();
                if self.log.damage.may_name() {
                    let text = "a record is damaged: its delivery is a dead letter";
                    name_unread(lane, &about, at, Told { error: None, kept }, text);
                }
                Settlement::DeadLetter(Cause::Damaged)
            }
        };
        lane.settle(about.id, row.key.number, None, settlement);
    }

    /// After how long a record is to be read again; where it is damaged that is told instead.
    async fn retry_unread(
        &self,
        lane: &Lane,
        row: &DueRow,
        about: &Identity,
        readback: Readback,
    ) -> Result<Duration, Position> {
        let key = row.key.webhook;
        let (at, why) = match readback {
            Readback::Failed(at, error) => {
                if self.log.damage.add(at.segment, at.offset) && self.log.damage.may_name() {
                    let text = "a record can't be read: it is tried again every minute for a day";
                    name_unread(lane, about, at, Told { error: Some(error), kept: None }, text);
                }
                let retry = self.unreadable.note(key).elapsed() < READ_WAIT_MAX;
                return if retry { Ok(READ_AGAIN_WAIT) } else { Err(at) };
            }
            Readback::Misplaced(at) => (at, MISPLACED),
            Readback::Damaged(at) => (at, ELSEWHERE),
            Readback::Moved | Readback::Whole(_) => (row.webhook_at, ELSEWHERE),
        };
        if why == ELSEWHERE && self.is_elsewhere(row, at).await == Some(false) {
            return Err(at);
        }
        // On the word of an index that is wrong nothing is given up.
        self.suspect(key, at, why);
        match self.unreadable.note(key).elapsed() {
            since if since < MADE_AGAIN_SOON => Ok(MADE_AGAIN_WAIT),
            since if since < READ_WAIT_MAX => Ok(READ_AGAIN_WAIT),
            _ => Err(at),
        }
    }

    /// What the index knows; an id that it does not is made up from the key, which is what counts.
    async fn identify(&self, key: u64) -> Identity {
        let (request, answer) = Request::ask(move |indexer| indexer.index.identity(key));
        self.inbox.request(request);
        let unknown = || Identity { id: WebhookId::from_key(key), activity: None };
        let known = answer.await.ok().flatten();
        known.filter(|known| known.id.key() == key).unwrap_or_else(unknown)
    }
}

/// What else is told of a record.
struct Told {
    /// Why it could not be read.
    error: Option<std::io::Error>,
    /// The file that has its bytes.
    kept: Option<PathBuf>,
}

/// Names a webhook whose record could not be read for a delivery.
fn name_unread(lane: &Lane, about: &Identity, at: Position, told: Told, text: &str) {
    let file = told.kept.map(|kept| kept.display().to_string());
    tracing::error!(
        error = told.error.map(tracing::field::display),
        webhook_id = %about.id,
        activity = about.activity.as_deref(),
        received_at = %about.id.timestamp(),
        target_name = %lane.name(),
        segment = at.segment,
        offset = at.offset,
        file,
        "{text}"
    );
}

fn new_lease(lane: &Arc<Lane>, row: &DueRow, body: Body) -> Lease {
    let delivery = Delivery {
        webhook: body.webhook,
        number: row.key.number,
        again: row.again,
        target: Arc::clone(lane.name()),
        headers: body.headers,
        attempts: row.attempts,
        started_at: row.started_at,
        due_at: row.key.due_at,
    };
    Lease::new(delivery, Arc::clone(lane) as Arc<dyn crate::store::LeaseOwner>)
}
