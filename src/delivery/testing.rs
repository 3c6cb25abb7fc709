//! A scripted network and a dispatcher in it, for the tests of this module.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use http_body_util::BodyExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::client::{Network, Outgoing, SendRequest};
pub(super) use super::fake_store::START;
use super::fake_store::{FakeClock, FakeStore, Inner};
use super::{Dispatcher, Parts};
use crate::domain::pointer::Pointers;
use crate::domain::retry::RetrySchedule;
use crate::domain::route::{RoutingTable, Rules};
use crate::domain::signature::Signing;
use crate::domain::target::{BacklogLimit, Target, TargetTls};
use crate::domain::template::{HeaderRule, HeaderText};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::{DuplicateKey, Resource, Webhook, WebhookIds};
use crate::net::client::{Answer, SendFailure};
use crate::store::Delivery;
use crate::store::marks::Marks;
use crate::telemetry::metrics::SharedMetrics;
use crate::telemetry::traces::Traces;

/// What a target does with a request.
pub(super) enum Reply {
    After(Duration, Result<Answer, SendFailure>),
    Panic,
}

/// An answer at once.
pub(super) fn status(status: u16) -> Reply {
    slow(Duration::ZERO, status)
}

/// An answer after some time.
pub(super) fn slow(wait: Duration, status: u16) -> Reply {
    Reply::After(wait, Ok(answer(status, &[])))
}

pub(super) fn answer(status: u16, headers: &[(&'static str, &str)]) -> Answer {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    let excerpt = Bytes::from_static(&[b'x'; 1500]);
    Answer { status: StatusCode::from_u16(status).unwrap(), headers: map, excerpt }
}

/// A request that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) target: Arc<str>,
    pub(super) url: Uri,
    pub(super) attempt: u32,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Since the start.
    pub(super) at: Duration,
    /// Attempts of this target in flight, this one included.
    pub(super) in_flight: usize,
    /// Which client.
    pub(super) client: usize,
}

type Script = dyn Fn(&Sent) -> Reply + Send + Sync;

/// A network that answers by a script and writes down what was sent.
#[derive(Clone)]
pub(super) struct FakeNetwork {
    script: Arc<Script>,
    start: Instant,
    sent: Arc<Mutex<Vec<Sent>>>,
    clients: Arc<Mutex<usize>>,
    in_flight: Arc<Mutex<BTreeMap<Arc<str>, usize>>>,
}

pub(super) struct FakeClient {
    network: FakeNetwork,
    target: Arc<str>,
    number: usize,
}

impl FakeNetwork {
    pub(super) fn new(script: impl Fn(&Sent) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            script: Arc::new(script),
            start: Instant::now(),
            sent: Arc::default(),
            clients: Arc::default(),
            in_flight: Arc::default(),
        }
    }
}

impl Network for FakeNetwork {
    type Client = FakeClient;

    fn client(&self, target: &Target) -> FakeClient {
        let mut number = self.clients.lock().unwrap();
        *number += 1;
        FakeClient { network: self.clone(), target: Arc::clone(&target.name), number: *number }
    }
}

struct InFlight<'a>(&'a FakeClient);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        *self.0.network.in_flight.lock().unwrap().get_mut(&self.0.target).unwrap() -= 1;
    }
}

impl SendRequest for FakeClient {
    async fn send(&self, request: Outgoing, deadline: Instant) -> Result<Answer, SendFailure> {
        let in_flight = {
            let mut all = self.network.in_flight.lock().unwrap();
            let mine = all.entry(Arc::clone(&self.target)).or_default();
            *mine += 1;
            *mine
        };
        let _guard = InFlight(self);
        let (parts, body) = request.into_parts();
        let sent = Sent {
            target: Arc::clone(&self.target),
            url: parts.uri,
            attempt: parts.headers["relay-attempt"].to_str().unwrap().parse().unwrap(),
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
            at: self.network.start.elapsed(),
            in_flight,
            client: self.number,
        };
        let reply = (self.network.script)(&sent);
        self.network.sent.lock().unwrap().push(sent);
        let (wait, result) = match reply {
            Reply::After(wait, result) => (wait, result),
            Reply::Panic => panic!("as the script says"),
        };
        if Instant::now() + wait > deadline {
            sleep_until(deadline).await;
            return Err(SendFailure::Timeout);
        }
        sleep(wait).await;
        result
    }
}

/// A dispatcher that runs, with everything around it.
pub(super) struct World {
    pub(super) store: Arc<FakeStore>,
    pub(super) table: watch::Sender<Arc<RoutingTable>>,
    pub(super) network: FakeNetwork,
    pub(super) metrics: SharedMetrics,
    pub(super) stop: CancellationToken,
    pub(super) tasks: JoinSet<()>,
    ids: WebhookIds,
}

impl World {
    /// Runs a dispatcher for these targets.
    pub(super) fn new(
        targets: Vec<Target>,
        script: impl Fn(&Sent) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let network = FakeNetwork::new(script);
        Self::over(targets, network.clone(), network)
    }

    /// Runs a dispatcher over another network.
    pub(super) fn over<N: Network>(
        targets: Vec<Target>,
        delivers_by: N,
        seen_by: FakeNetwork,
    ) -> Self {
        let clock = Arc::new(FakeClock {
            began: Instant::now(),
            ahead: Mutex::default(),
            doubted: AtomicBool::new(false),
        });
        let inner = Inner::new(&clock);
        let store = Arc::new(FakeStore(Arc::new(inner)));
        let (table, receiver) = watch::channel(table(targets));
        let metrics = SharedMetrics::default();
        let parts = Parts {
            store: Arc::clone(&store),
            table: receiver,
            clock,
            metrics: Arc::clone(&metrics),
            random: || u64::MAX,
            memory_bytes_max: 64 << 20,
            board: Arc::default(),
            traces: Traces::default(),
        };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(Dispatcher::new(parts, delivers_by).run(stop.clone()));
        Self { store, table, network: seen_by, metrics, stop, tasks, ids: WebhookIds::default() }
    }

    /// Puts the machine's clock in doubt, or ends that.
    pub(super) fn doubt(&self, doubted: bool) {
        self.store.0.clock.doubted.store(doubted, Ordering::Relaxed);
    }

    /// The wall clock is so far behind the times of records.
    pub(super) fn fall_behind(&self, by: Duration) {
        *self.store.0.clock.ahead.lock().unwrap() = by;
    }

    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        self.store.0.clock.now()
    }

    /// Changes what operators said.
    pub(super) fn mark(&self, change: impl FnOnce(&mut Marks)) {
        self.store.0.marks.send_modify(|marks| change(Arc::make_mut(marks)));
    }

    /// Puts another table in force.
    pub(super) fn reload(&self, targets: Vec<Target>) {
        self.table.send_replace(table(targets));
    }

    /// A delivery that is due, accepted `age` ago.
    pub(super) fn add(&self, target: &str, age: Duration) {
        let now = self.store.0.clock.now();
        let started_at = now.minus(age);
        let webhook = Webhook {
            id: self.ids.next(started_at, 7),
            received_at: started_at,
            source: "aryeo".into(),
            path: "/webhooks/aryeo".into(),
            peer: None,
            secret: "env:A".into(),
            table: [0; 8],
            activity: Some("ORDER_CREATED".into()),
            activity_id: true,
            resource: Resource::default(),
            duplicate_key: DuplicateKey::from_bytes([0; 16]),
            headers: Vec::new(),
            body: Bytes::from_static(b"{\"a\": 1}"),
            deliveries: Vec::new(),
        };
        self.store.0.add(Delivery {
            webhook: Arc::new(webhook),
            number: 0,
            again: 0,
            target: target.into(),
            headers: Arc::new([]),
            attempts: 0,
            started_at,
            due_at: now,
        });
    }

    /// What was sent so far, to this target.
    pub(super) fn sent(&self, target: &str) -> Vec<Sent> {
        let sent = self.network.sent.lock().unwrap();
        sent.iter().filter(|sent| *sent.target == *target).cloned().collect()
    }

    /// Stops, and waits for the end.
    pub(super) async fn stopped(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn table(targets: Vec<Target>) -> Arc<RoutingTable> {
    Arc::new(RoutingTable::new(Rules { targets, ..Rules::default() }))
}

/// A target with everything at its default.
pub(super) fn target(name: &str) -> Target {
    Target {
        name: name.into(),
        url: format!("http://{name}.test/hook?tenant=1").parse().unwrap(),
        sign: Signing::None,
        headers: Vec::new(),
        pointers: Pointers::default(),
        forward_headers: Vec::new(),
        timeout: Duration::from_secs(10),
        retry: RetrySchedule::default(),
        concurrency: 16,
        rate_limit: None,
        backlog_limit: BacklogLimit::default(),
        paused: false,
        tls: TargetTls::default(),
    }
}

/// A header that an operator wrote.
pub(super) fn rule(name: &'static str, value: &'static str) -> HeaderRule {
    let value = HeaderText::Fixed(HeaderValue::from_static(value));
    HeaderRule { name: HeaderName::from_static(name), value }
}

/// What this thread logs, in a buffer.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Until the guard is dropped.
    pub(super) fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        (log, crate::telemetry::logging::capture(subscriber))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub(super) fn events(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
