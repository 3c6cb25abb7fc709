//! The contract, as this store keeps it: each promise in its file, here they meet.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::domain::delivery::{Cause, Settlement};
use crate::domain::outcome::Attempt;
use crate::domain::source::DuplicateWindows;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, Webhook, WebhookId};
use crate::store::archive::{Addition, Archive, EraseError, Erased};
use crate::store::claims::{Claim, Claimed};
use crate::store::embedded::inbox::Request;
use crate::store::embedded::queue::Waiting;
use crate::store::embedded::record::encode_webhook;
use crate::store::embedded::{EmbeddedStore, committer};
use crate::store::listing::{Page, Place, ReadError, Summary};
use crate::store::marks::{MarkError, MarkKeeper, Marks};
use crate::store::story::{Filter, Order, Stories, Whole};
use crate::store::{CommitError, Health, LaneCounts, Lease, Pick, Pulse, Relieved, Sizes, Store};

impl Store for EmbeddedStore {
    fn claim(
        &self,
        key: DuplicateKey,
        windows: DuplicateWindows,
    ) -> impl Future<Output = Claim> + Send {
        let shared = Arc::clone(&self.shared);
        async move {
            shared.past_is_whole.wait().await;
            shared.claims.claim(key, windows).await
        }
    }

    fn commit(
        &self,
        mut webhook: Webhook,
        claimed: Claimed,
    ) -> impl Future<Output = Result<(), CommitError>> + Send {
        // All of it here and now: the future only waits.
        let meta = encode_webhook(&webhook, None);
        let crc = committer::crc_of(&meta, &webhook.body);
        let deliveries = std::mem::take(&mut webhook.deliveries);
        let (reply, answer) = oneshot::channel();
        let webhook = Arc::new(webhook);
        let waiting = Waiting { webhook, deliveries, meta, crc, claimed, reply };
        let queued = self.shared.queue.commit(waiting).map_err(|(error, _)| error);
        async move {
            queued?;
            answer.await.unwrap_or(Err(CommitError::Closed))
        }
    }

    fn lease(
        &self,
        target: &str,
        max: usize,
        pick: Pick,
    ) -> impl Future<Output = Vec<Lease>> + Send {
        let lane = self.shared.lanes.lane(target);
        let shared = Arc::clone(&self.shared);
        async move { shared.lease(lane, max, pick).await }
    }

    fn settle(&self, lease: Lease, attempt: Option<Attempt>, settlement: Settlement) {
        let delivery = lease.into_delivery();
        let lane = self.shared.lanes.lane(&delivery.target);
        lane.settle(delivery.webhook.id, delivery.number, attempt, settlement);
    }

    fn expire(
        &self,
        target: &str,
        started_before: Timestamp,
        max: usize,
        cause: Cause,
    ) -> impl Future<Output = usize> + Send {
        let lane = self.shared.lanes.lane(target);
        let name = Arc::clone(lane.name());
        let (request, answer) =
            Request::ask(move |indexer| indexer.index.started_before(&name, started_before, max));
        self.shared.queue.request(request);
        async move {
            let found = answer.await.unwrap_or_default();
            let ended = found.into_iter().filter(|(row, id)| lane.end(*row, *id, cause)).count();
            lane.forget_ended();
            ended
        }
    }

    fn relieve(
        &self,
        target: &str,
        bytes_max: u64,
        max: usize,
    ) -> impl Future<Output = Relieved> + Send {
        let lane = self.shared.lanes.lane(target);
        let name = Arc::clone(lane.name());
        // Those that are leased stay: so many more are asked for.
        let asked_for = max.saturating_add(lane.leased());
        let (request, answer) = Request::ask(move |indexer| {
            let dead_bytes = indexer.index.dead_letters_bytes(&name)?;
            let pinned = indexer.index.backlog_bytes(&name)?.saturating_add(dead_bytes);
            let over = pinned.saturating_sub(bytes_max);
            let (spared, bytes) = match over {
                0 => (0, 0),
                _ => indexer.index.spare_dead(&name, over, max)?,
            };
            // Some that are dead may be left: what is pending comes behind them.
            let over = if spared < max { over.saturating_sub(bytes) } else { 0 };
            let asked_for = if over > 0 { asked_for } else { 0 };
            Ok((
                spared,
                over,
                indexer.index.started_before(&name, Timestamp::from_millis(u64::MAX), asked_for)?,
            ))
        });
        // Behind all that waits: what was ended before is not counted any more.
        self.shared.queue.request(request);
        async move {
            let (spared, mut over, found) = answer.await.unwrap_or_default();
            let mut ended = 0;
            for (row, id) in found {
                if over == 0 || spared + ended == max {
                    break;
                }
                if lane.end(row, id, Cause::BacklogFull) {
                    over = over.saturating_sub(row.webhook_at.length);
                    ended += 1;
                }
            }
            lane.forget_ended();
            Relieved { spared, ended }
        }
    }

    fn lanes(&self) -> Vec<LaneCounts> {
        let mut counts: Vec<_> = self
            .shared
            .lanes
            .all()
            .iter()
            .map(|lane| lane.counts())
            .filter(|counts| counts.pending > 0 || !counts.dead.is_empty())
            .collect();
        counts.sort_by(|a, b| a.target.cmp(&b.target));
        counts
    }

    fn pulse(&self) -> Pulse {
        self.shared.busy.pulse(&self.shared.failing)
    }

    fn health(&self) -> Health {
        let shared = &self.shared;
        let now = shared.clock.0.now();
        Health {
            failing: self.pulse().failing,
            damaged_records: shared.log.damage.count(),
            duplicates_reach: shared.claims.recent(|recent| recent.reach(now)),
            newest_by_source: shared.newest.all(),
            sweep_findings: shared.findings.count(),
            bytes_max: shared.usage.bytes_max(),
            shares_of: shared.usage.shares_of(),
            unrouted_bytes: shared.usage.unrouted_bytes(),
            unrouted_removed: shared.usage.unrouted_removed(),
        }
    }

    fn sizes(&self) -> Sizes {
        let shared = &self.shared;
        let size = |suffix: &str| {
            let mut path = shared.index_file.clone().into_os_string();
            path.push(suffix);
            std::fs::metadata(path).map_or(0, |meta| meta.len())
        };
        Sizes {
            bytes: shared.log.bytes() + size("") + size("-wal"),
            available_bytes: shared.log.available_bytes().min(shared.log.left_of_limit()),
        }
    }

    fn close(&self) -> impl Future<Output = ()> + Send {
        self.shared.queue.close();
        let (mut stopped, tasks) = (self.stopped.clone(), self.shared.tasks.clone());
        tasks.close();
        async move {
            // An error: the thread is gone, which is what is waited for.
            if let Err(error) = stopped.wait_for(|stopped| *stopped).await {
                tracing::error!(%error, "the store did not stop in order");
            }
            // Nothing that they wait for comes any more.
            tasks.wait().await;
        }
    }
}

impl MarkKeeper for EmbeddedStore {
    fn marks(&self) -> watch::Receiver<Arc<Marks>> {
        self.marks.subscribe()
    }

    fn mark(
        &self,
        change: impl FnOnce(&mut Marks) + Send + 'static,
    ) -> impl Future<Output = Result<(), MarkError>> + Send {
        let (marks, aside) = (Arc::clone(&self.marks), self.shared.aside);
        let closing = self.shared.queue.is_closing();
        async move {
            if closing {
                return Err(MarkError::Closed);
            }
            let changed = aside.run(move || marks.change(change)).await;
            changed.unwrap_or(Err(MarkError::Closed))
        }
    }
}

impl Archive for EmbeddedStore {
    fn page(
        &self,
        after: Place,
        max: usize,
    ) -> impl Future<Output = Result<Page, ReadError>> + Send {
        let shared = Arc::clone(&self.shared);
        async move { shared.page(after, max).await }
    }

    fn body(&self, of: &Summary) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send {
        let (shared, of) = (Arc::clone(&self.shared), of.clone());
        async move { shared.body(of).await }
    }

    fn stories(
        &self,
        filter: Filter,
        behind: Option<Place>,
        order: Order,
        max: usize,
    ) -> impl Future<Output = Result<Stories, ReadError>> + Send {
        let shared = Arc::clone(&self.shared);
        async move { shared.stories(filter, behind, order, max).await }
    }

    fn whole(
        &self,
        id: WebhookId,
    ) -> impl Future<Output = Result<Option<Whole>, ReadError>> + Send {
        let shared = Arc::clone(&self.shared);
        async move { shared.whole(id).await }
    }

    fn add(
        &self,
        additions: Vec<Addition>,
    ) -> impl Future<Output = Result<Vec<usize>, ReadError>> + Send {
        let shared = Arc::clone(&self.shared);
        async move { shared.add(additions).await }
    }

    fn settle_dead(
        &self,
        dead: Vec<(WebhookId, u16)>,
        settlement: Settlement,
    ) -> impl Future<Output = Result<usize, ReadError>> + Send {
        let shared = Arc::clone(&self.shared);
        async move { shared.settle_dead(dead, settlement).await }
    }

    fn erase(
        &self,
        id: WebhookId,
    ) -> impl Future<Output = Result<Option<Erased>, EraseError>> + Send {
        let shared = Arc::clone(&self.shared);
        async move { shared.erase(id).await }
    }
}
