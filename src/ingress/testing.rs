//! An ingress with everything around it in memory.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::domain::client::{ClientCertificate, Networks};
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::limit::TIMESTAMP_TOLERANCE;
use crate::domain::outcome::Attempt;
use crate::domain::pattern::Patterns;
use crate::domain::proof::Proof;
use crate::domain::route::{Route, RoutingTable, Rules, Unrouted};
use crate::domain::signature::{SIGNATURE, Scheme, Secret, Signing, Verification};
use crate::domain::source::{DuplicateWindows, Source, SourcePath};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::{DuplicateKey, Webhook, WebhookId, WebhookIds};
use crate::ingress::{Ingress, IngressLimits, Setting};
use crate::store::claims::{Claim, Claimed, Claims, Recent};
use crate::store::{CommitError, Health, LaneCounts, Lease, Pick, Pulse, Relieved, Sizes, Store};
use crate::telemetry::metrics::{Metrics, SharedMetrics};
use crate::telemetry::traces::Traces;

pub(super) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub(super) const PATH: &str = "/webhooks/aryeo";
pub(super) const SECRET: &str = "correct horse";
pub(super) const ORDER: &[u8] = br#"{"object":"ACTIVITY","id":"a1","name":"ORDER_CREATED",
    "resource":{"object":"ORDER","id":"o1"}}"#;

/// Keeps webhooks in memory, when it is let to.
pub(super) struct FakeStore {
    claims: Claims<FakeRecent>,
    pub(super) committed: Mutex<Vec<Webhook>>,
    /// What the next commit answers.
    pub(super) failing: Mutex<Option<CommitError>>,
    /// Commits wait until it is open.
    pub(super) open: watch::Sender<bool>,
    /// One permit for each commit that has begun.
    pub(super) begun: Semaphore,
}

#[derive(Default)]
pub(super) struct FakeRecent(HashMap<DuplicateKey, (WebhookId, bool)>);

impl Recent for FakeRecent {
    fn find(&self, key: &DuplicateKey) -> Option<(WebhookId, bool)> {
        self.0.get(key).copied()
    }

    fn insert(&mut self, key: DuplicateKey, id: WebhookId, activity_id: bool) {
        self.0.insert(key, (id, activity_id));
    }
}

impl Store for FakeStore {
    async fn claim(&self, key: DuplicateKey, windows: DuplicateWindows) -> Claim {
        self.claims.claim(key, windows).await
    }

    async fn commit(&self, webhook: Webhook, claimed: Claimed) -> Result<(), CommitError> {
        self.begun.add_permits(1);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        if let Some(error) = self.failing.lock().unwrap().take() {
            return Err(error);
        }
        let (id, activity_id) = (webhook.id, webhook.activity_id);
        self.committed.lock().unwrap().push(webhook);
        claimed.committed(id, activity_id);
        Ok(())
    }

    async fn lease(&self, _: &str, _: usize, _: Pick) -> Vec<Lease> {
        std::future::pending().await
    }

    fn settle(&self, _: Lease, _: Option<Attempt>, _: Settlement) {}

    async fn expire(&self, _: &str, _: Timestamp, _: usize, _: Cause) -> usize {
        std::future::ready(0).await
    }

    async fn relieve(&self, _: &str, _: u64, _: usize) -> Relieved {
        std::future::ready(Relieved::default()).await
    }

    fn lanes(&self) -> Vec<LaneCounts> {
        Vec::new()
    }

    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn sizes(&self) -> Sizes {
        Sizes::default()
    }

    async fn close(&self) {
        std::future::ready(()).await;
    }
}

/// A clock that stands until it is moved. Records are far ahead of it.
pub(super) struct StandingClock(AtomicU64);

/// How far.
pub(super) const AHEAD: Duration = Duration::from_secs(10 * 86_400);

impl StandingClock {
    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }
}

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        self.wall().plus(AHEAD)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn at_least(&self, _: Timestamp) {}

    fn is_doubted(&self) -> bool {
        false
    }
}

/// An ingress and all that it talks to.
pub(super) struct Rig {
    pub(super) ingress: Arc<Ingress<FakeStore>>,
    pub(super) store: Arc<FakeStore>,
    pub(super) clock: Arc<StandingClock>,
    pub(super) metrics: SharedMetrics,
    pub(super) tracker: TaskTracker,
    pub(super) tables: watch::Sender<Arc<RoutingTable>>,
}

/// The signature that `source` demands.
pub(super) fn verification() -> Verification {
    Verification {
        scheme: Scheme::Aryeo,
        secrets: vec![Secret::new("env:S", SECRET.as_bytes()).unwrap()],
        header: SIGNATURE,
        tolerance: TIMESTAMP_TOLERANCE,
    }
}

/// The source `aryeo` with one secret.
pub(super) fn source() -> Source {
    Source {
        name: "aryeo".into(),
        path: SourcePath::new(PATH),
        verify: Proof::new(Some(verification()), Vec::new()).unwrap(),
        activity: None,
        body_bytes_max: 64 * 1024,
        allow_from: None,
        client_certificate: None,
        rate_limit: None,
        duplicates: DuplicateWindows::default(),
        silence_after: Duration::from_secs(24 * 3600),
    }
}

/// A table that sends orders to `crm` and `billing`, and nothing else anywhere.
pub(super) fn table(source: Source, unrouted: Unrouted) -> Arc<RoutingTable> {
    let route = Route {
        name: "orders".into(),
        source: None,
        activity: Some(Patterns::new(["ORDER_*"])),
        resource: None,
        when: Vec::new(),
        to: vec!["crm".into(), "billing".into()],
        headers: Vec::new(),
        end: false,
    };
    let (sources, routes) = (vec![source], vec![route]);
    Arc::new(RoutingTable::new(Rules {
        sources,
        routes,
        unrouted,
        sha256: [9; 32],
        ..Rules::default()
    }))
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(source(), Unrouted::Keep, IngressLimits::default())
    }

    /// Whose webhooks are traced.
    pub(super) fn traced(traces: Traces) -> Self {
        Self::build(source(), Unrouted::Keep, IngressLimits::default(), traces)
    }

    pub(super) fn with(source: Source, unrouted: Unrouted, limits: IngressLimits) -> Self {
        Self::build(source, unrouted, limits, Traces::default())
    }

    fn build(source: Source, unrouted: Unrouted, limits: IngressLimits, traces: Traces) -> Self {
        let clock = Arc::new(StandingClock(AtomicU64::new(NOW.as_millis())));
        let store = Arc::new(FakeStore {
            claims: Claims::new(FakeRecent::default(), Arc::clone(&clock) as Arc<dyn Clock>),
            committed: Mutex::default(),
            failing: Mutex::default(),
            open: watch::Sender::new(true),
            begun: Semaphore::new(0),
        });
        let metrics = SharedMetrics::new(Metrics::default());
        let tracker = TaskTracker::new();
        let tables = watch::Sender::new(table(source, unrouted));
        let ingress = Ingress::new(Setting {
            store: Arc::clone(&store),
            tables: tables.subscribe(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            ids: Arc::new(WebhookIds::default()),
            metrics: Arc::clone(&metrics),
            tracker: tracker.clone(),
            limits,
            trusted_proxies: Networks::default(),
            traces,
        });
        Self { ingress, store, clock, metrics, tracker, tables }
    }

    /// Posts, and reads the answer.
    pub(super) async fn send<B>(&self, request: Request<B>) -> Answered
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send>
            + Send
            + Unpin
            + 'static,
    {
        self.send_from("192.0.2.7", request).await
    }

    /// The same from another address.
    pub(super) async fn send_from<B>(&self, address: &str, request: Request<B>) -> Answered
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send>
            + Send
            + Unpin
            + 'static,
    {
        let peer = SocketAddr::new(address.parse().unwrap(), 4711);
        Answered::read(self.ingress.serve(request, Some(peer), None).await).await
    }

    /// The same over a connection on which this was shown.
    pub(super) async fn send_showing(
        &self,
        certificate: ClientCertificate,
        request: Request<Full<Bytes>>,
    ) -> Answered {
        Answered::read(self.ingress.serve(request, None, Some(certificate)).await).await
    }

    /// The same on a task, as a connection would.
    pub(super) fn send_apart(&self, body: &[u8]) -> tokio::task::JoinHandle<Answered> {
        let (ingress, request) = (Arc::clone(&self.ingress), signed(body));
        TaskTracker::new()
            .spawn(async move { Answered::read(ingress.serve(request, None, None).await).await })
    }

    pub(super) fn committed(&self) -> Vec<Webhook> {
        self.store.committed.lock().unwrap().clone()
    }

    /// Waits until so many commits have begun.
    pub(super) async fn begun(&self, commits: u32) {
        self.store.begun.acquire_many(commits).await.unwrap().forget();
    }

    #[track_caller]
    pub(super) fn check_metric(&self, line: &str) {
        let page = self.metrics.render();
        let name = line.split('{').next().unwrap();
        let of_name = || page.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>();
        assert!(page.lines().any(|known| known == line), "{line}\nnot in {:#?}", of_name());
    }
}

/// What came back.
#[derive(Debug, PartialEq)]
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answered {
    async fn read(response: Response<Full<Bytes>>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub(super) fn field(&self, name: &str) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body.get(name).and_then(|value| value.as_str()).map(ToOwned::to_owned)
    }

    /// Status and name of the answer.
    pub(super) fn kind(&self) -> (u16, String) {
        let name = self
            .field("status")
            .or_else(|| Some(self.field("type")?.strip_prefix("urn:aryeo-relay:")?.to_owned()));
        (self.status, name.unwrap())
    }

    #[track_caller]
    pub(super) fn check(&self, status: u16, name: &str) {
        assert_eq!(self.kind(), (status, name.to_owned()), "{self:?}");
    }
}

/// A request with this body and the right signature.
pub(super) fn signed(body: &[u8]) -> Request<Full<Bytes>> {
    post(body, &sign(body))
}

/// A request with this body and signature.
pub(super) fn post(body: &[u8], signature: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("{PATH}?token=query-secret"))
        .header("content-type", "application/json")
        .header("user-agent", "GuzzleHttp/7")
        .header("authorization", "Bearer header-secret")
        .header("signature", signature)
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap()
}

/// The right signature.
pub(super) fn sign(body: &[u8]) -> String {
    let secret = Secret::new("s", SECRET.as_bytes()).unwrap();
    let signing =
        Signing::With { scheme: Scheme::Aryeo, secret, also: Vec::new(), header: SIGNATURE };
    signing.sign("", body, NOW)[0].1.to_str().unwrap().to_owned()
}

/// A body whose pieces come when the test sends them.
pub(super) struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    announced: Option<u64>,
}

impl Pieces {
    pub(super) fn new(announced: Option<u64>) -> (mpsc::Sender<Bytes>, Self) {
        let (sender, pieces) = mpsc::channel(64);
        (sender, Self { pieces, announced })
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map(SizeHint::with_exact).unwrap_or_default()
    }
}
