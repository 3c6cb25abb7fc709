//! The face to the sender: takes webhooks in.
//!
//! Reading order: [`receive`] is the way of a webhook, step by step; [`client`] says from whom, [`budget`]
//! what is let in, [`strangers`] who is not, [`turns`] how fast, [`sources`] what is remembered of each source, [`headers`] what is kept of a
//! request, [`answer`] what the sender is told, [`journal`] what the operator is, [`spans`] what those are
//! who follow its trace.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::Body;
use http_body_util::Full;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::answer::Answer;
use crate::domain::client::{ClientCertificate, Networks};
use crate::domain::limit::{
    DISCARD_BYTES_MAX, DISCARD_WAIT_MAX, UNREAD_STREAM_WAIT, UNREAD_STREAMS_MAX,
};
use crate::domain::route::RoutingTable;
use crate::domain::target::Rate;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::WebhookIds;
use crate::ingress::answer::{Refusal, Told};
use crate::ingress::budget::Budget;
use crate::ingress::client::Clients;
use crate::ingress::journal::{Exchange, Journal};
use crate::ingress::sources::Snapshot;
use crate::ingress::strangers::Strangers;
use crate::net::body;
use crate::store::{Health, Store};
use crate::telemetry::metrics::SharedMetrics;
use crate::telemetry::traces::Traces;

mod answer;
mod budget;
mod client;
mod headers;
mod journal;
mod receive;
mod sources;
mod spans;
mod strangers;
mod turns;

#[cfg(test)]
mod label_tests;
#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod span_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire;

/// What an ingress is built from.
pub struct Setting<S> {
    /// Where webhooks are kept.
    pub store: Arc<S>,
    /// The routing table in force.
    pub tables: watch::Receiver<Arc<RoutingTable>>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where ids come from, after the newest that is stored.
    pub ids: Arc<WebhookIds>,
    /// Where counts go.
    pub metrics: SharedMetrics,
    /// Runs what no sender may cancel; to be waited for before the store is closed.
    pub tracker: TaskTracker,
    /// What is let in.
    pub limits: IngressLimits,
    /// The proxies that are believed when they say whose requests they forward.
    pub trusted_proxies: Networks,
    /// Where webhooks are traced.
    pub traces: Traces,
}

impl<S> fmt::Debug for Setting<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// More than any sender whose secret is wrong, or that posts to a wrong path: what it is told is
/// what makes somebody look.
const UNVERIFIED_RATE_DEFAULT: Rate =
    Rate { count: NonZeroU32::new(50).expect("it is not zero"), per: Duration::from_secs(1) };

/// What is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressLimits {
    /// Requests from before their body is read until their commit has ended.
    pub in_flight_max: usize,
    /// Bytes of their bodies.
    pub in_flight_bytes_max: usize,
    /// For a whole body to arrive.
    pub body_timeout: Duration,
    /// Refused requests of one address, before it is refused unseen.
    pub unverified_rate: Rate,
    /// Peers that are no trusted proxies are the clients themselves: unverified requests are
    /// bounded for each address.
    pub peers_are_clients: bool,
}

impl Default for IngressLimits {
    fn default() -> Self {
        Self {
            in_flight_max: 1024,
            in_flight_bytes_max: 256 * 1024 * 1024,
            body_timeout: Duration::from_secs(20),
            unverified_rate: UNVERIFIED_RATE_DEFAULT,
            peers_are_clients: true,
        }
    }
}

/// Takes webhooks in: verifies, routes, commits, and only then says so.
pub struct Ingress<S> {
    store: Arc<S>,
    tables: watch::Receiver<Arc<RoutingTable>>,
    current: Mutex<Arc<Snapshot>>,
    clock: Arc<dyn Clock>,
    // What the wall clock showed.
    started: Timestamp,
    ids: Arc<WebhookIds>,
    metrics: SharedMetrics,
    traces: Traces,
    journal: Journal,
    tracker: TaskTracker,
    limits: IngressLimits,
    clients: Clients,
    strangers: Strangers,
    budget: Arc<Budget>,
    unread_streams: Arc<Semaphore>,
    shutting_down: CancellationToken,
}

impl<S> fmt::Debug for Ingress<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<S: Store> Ingress<S> {
    /// An ingress that takes webhooks in at once; all its metrics are at zero.
    pub fn new(setting: Setting<S>) -> Arc<Self> {
        let Setting { store, tables, clock, ids, metrics, tracker, limits, .. } = setting;
        let Setting { trusted_proxies, traces, .. } = setting;
        let peers_are_clients = limits.peers_are_clients;
        let table = Arc::clone(&tables.borrow());
        Arc::new(Self {
            current: Mutex::new(Arc::new(Snapshot::new(table, &metrics, None))),
            journal: Journal::new(&metrics, traces.clone()),
            traces,
            clients: Clients { trusted: trusted_proxies, peers_are_clients },
            strangers: Strangers::new(limits.unverified_rate),
            budget: Budget::new(limits.in_flight_max, limits.in_flight_bytes_max),
            unread_streams: Arc::new(Semaphore::new(UNREAD_STREAMS_MAX)),
            shutting_down: CancellationToken::new(),
            store,
            tables,
            started: clock.wall(),
            clock,
            ids,
            metrics,
            tracker,
            limits,
        })
    }

    /// Answers one request, which came from there, over a connection on which this certificate was shown.
    /// Dropping the future after the body was read cancels nothing.
    ///
    /// An answer with `Connection: close` ends its connection over HTTP/2, too.
    pub async fn serve<B>(
        self: &Arc<Self>,
        request: Request<B>,
        peer: Option<SocketAddr>,
        certificate: Option<ClientCertificate>,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let (head, mut body) = request.into_parts();
        let is_http1 = head.version <= Version::HTTP_11;
        let is_head = head.method == Method::HEAD;
        let awaits_go_ahead = head.headers.contains_key(EXPECT);
        let client = self.clients.of(peer, certificate.as_ref(), &head.headers);
        let mut exchange = Exchange::begin(client.shown);
        let refusal = match self.receive(head, &mut body, &mut exchange, client).await {
            Ok(told) => return answer::response(told, false),
            Err(refusal) => refusal,
        };
        if is_charged(refusal.answer) {
            self.strangers.refused(client.counted);
        }
        let told = Told::from(&refusal);
        let is_outlived = refusal.outlived;
        self.journal.answered(&exchange, &Err(refusal));
        // Asking for more would tell a sender that waits for it to go ahead.
        let may_ask = exchange.body_wanted || !awaits_go_ahead;
        let whole = body.is_end_stream() || (may_ask && discard(&mut body, told.answer).await);
        if !is_http1 && !whole {
            self.stay_open(body);
        }
        let response = answer::response(told, is_outlived || (is_http1 && !whole));
        // hyper leaves the body of an answer to HEAD out over HTTP/1 only.
        if is_head { response.map(|_| Full::default()) } else { response }
    }

    /// Keeps an HTTP/2 stream from being reset until its answer has had time to arrive.
    ///
    /// Dropping the body of a stream that was answered tells the sender to stop, with `NO_ERROR`, in
    /// the same breath as the answer. That is what RFC 9113 (8.1) asks for, but curl 7.88, say, fails
    /// if it reads both at once. Most stop by themselves; who does not is told to after a while. Until
    /// then all that comes is read, for unread bytes would hold up the connection's other streams.
    fn stay_open<B: Body<Data = Bytes> + Send + Unpin + 'static>(&self, mut body: B)
    where
        B::Error: Send,
    {
        let Ok(permit) = Arc::clone(&self.unread_streams).try_acquire_owned() else { return };
        let deadline = Instant::now() + UNREAD_STREAM_WAIT;
        drop(self.tracker.spawn(async move {
            body::drain(&mut body, usize::MAX, deadline).await;
            drop((body, permit));
        }));
    }

    /// Counts and logs a request of which not even the head could be understood: `bad_request` or
    /// `headers_too_large`. It was answered below, without a body.
    pub fn unreadable(&self, answer: Answer, peer: SocketAddr) {
        let why = "its head can't be read: if this is the sender, its webhooks are being lost";
        let client = self.clients.of(Some(peer), None, &HeaderMap::new());
        self.strangers.refused(client.counted);
        self.journal.answered(&Exchange::begin(client.shown), &Err(Refusal::because(answer, why)));
    }

    /// Takes over the table in force, as the next request would: its metrics are there from now on.
    pub fn follow(&self) {
        self.snapshot();
    }

    /// From now on every request is told that the relay is stopping, also one whose body is being
    /// read.
    pub fn shut_down(&self) {
        self.shutting_down.cancel();
    }

    /// Shows in the metrics what the store knows of each source: to be called at the start, for the
    /// last webhook's time, and every few seconds, for the reach of duplicates.
    pub fn observe(&self, health: &Health) {
        self.snapshot().observe(health, self.started);
    }

    /// Tells how many requests were refused that are not in the log: to be called every few seconds.
    pub fn tell_untold(&self) {
        self.journal.tell_untold();
    }

    /// The same when no more requests come.
    pub fn tell_rest(&self) {
        self.journal.tell_rest();
    }

    /// The table in force and what goes with it.
    fn snapshot(&self) -> Arc<Snapshot> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock, so that nobody brings an older table back.
        let table = self.tables.borrow();
        if !Arc::ptr_eq(&table, &current.table) {
            let table = Arc::clone(&table);
            *current = Arc::new(Snapshot::new(table, &self.metrics, Some(&current)));
        }
        Arc::clone(&current)
    }
}

/// Whether a refusal is charged to the address: not what is our own fault, or that of others who
/// wanted in, nor what was charged before.
const fn is_charged(answer: Answer) -> bool {
    matches!(
        answer,
        Answer::BadRequest
            | Answer::Forbidden
            | Answer::HeadersTooLarge
            | Answer::MethodNotAllowed
            | Answer::NotFound
            | Answer::TooLarge
            | Answer::Unauthorized
    )
}

/// Reads and throws away some of a refused body, so that the answer arrives; true if it ended.
async fn discard<B: Body<Data = Bytes> + Unpin>(body: &mut B, answer: Answer) -> bool {
    // Nothing more is to come, or not in time.
    if matches!(answer, Answer::BadRequest | Answer::Timeout | Answer::ShuttingDown) {
        return false;
    }
    body::drain(body, DISCARD_BYTES_MAX, Instant::now() + DISCARD_WAIT_MAX).await
}
