//! The operator's address: probes, metrics and the [`api`], on a thread and a runtime of their own,
//! so that a stuck data path can't block them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::api::{Endpoint, Turns};
use crate::admin::guard::Guard;
use crate::admin::readiness::Readiness;
use crate::admin::sizes::Measuring;
use crate::domain::signature::Secret;
use crate::domain::target::BacklogLimit;
use crate::domain::time::Clock;
use crate::net::address::{Address, Bound, Listening, Stream};
use crate::store::{Pulse, Store};
use crate::telemetry::metrics::{Backlog, SharedMetrics};

pub mod api;
mod guard;
pub mod readiness;
pub mod sizes;

/// Probes and scrapers at the same time; for one more the oldest has to go.
const CONNECTIONS_MAX: usize = 64;

/// For a connection, from its first byte to the last one of its only answer: as long as Prometheus
/// waits for a page.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often histograms are folded together when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Names targets, and how much of the store each may pin.
pub type Targets = Arc<dyn Fn() -> Vec<(Arc<str>, BacklogLimit)> + Send + Sync>;

/// What the operator's address answers from.
pub struct Admin<S> {
    /// The store, once it is open.
    pub store: watch::Receiver<Option<Arc<S>>>,
    /// All metrics.
    pub metrics: SharedMetrics,
    /// What the parts say of themselves.
    pub readiness: Arc<Readiness>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The targets of the table in force: they are shown even when they hold nothing.
    pub targets: Targets,
    /// What else can be asked.
    pub endpoints: Vec<Endpoint>,
    /// What has to be brought for that; without one, it can be asked on this machine only.
    pub token: Option<watch::Receiver<Secret>>,
}

impl<S> std::fmt::Debug for Admin<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

/// What the API is answered by, beside its endpoints.
#[derive(Clone)]
struct Api {
    guard: Guard,
    turns: Turns,
}

/// The running admin thread.
#[derive(Debug)]
pub struct AdminThread {
    address: Address,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl AdminThread {
    /// Where it listens.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Ends it and waits for its thread.
    pub fn join(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and then it has said so.
            let _outcome = thread.join();
        }
    }
}

impl Drop for AdminThread {
    fn drop(&mut self) {
        self.end();
    }
}

impl<S: Store> Admin<S> {
    /// Serves on a bound socket, on a thread of its own.
    pub fn spawn(self, bound: Bound) -> io::Result<AdminThread> {
        let address = bound.address().clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let is_local = address.is_local();
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match bound.listen() {
                    Ok(listener) => Arc::new(self).serve(listener, is_local, stopped).await,
                    Err(error) => tracing::error!(%error, "The admin address is not served."),
                }
            });
            // Whoever still makes an answer makes it for nobody: no stop waits for that.
            runtime.shutdown_background();
        })?;
        Ok(AdminThread { address, stop, thread: Some(thread) })
    }

    async fn serve(self: Arc<Self>, listener: Listening, is_local: bool, stop: CancellationToken) {
        let mut connections = Connections::default();
        let api =
            Api { guard: Guard { is_local, token: self.token.clone() }, turns: Turns::default() };
        let measuring = Measuring::default();
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                _ = upkeep.tick() => { self.metrics.upkeep(); continue }
                accepted = listener.accept() => accepted,
            };
            let Ok(stream) = accepted else {
                // Out of descriptors, most likely: the data path needs the next ones more.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (api, measuring) = (api.clone(), measuring.clone());
            connections.serve(Arc::clone(&self).exchange(stream, api, measuring));
        }
    }

    /// One request and its answer; whoever wants more connects again.
    async fn exchange(self: Arc<Self>, stream: Stream, api: Api, measuring: Measuring) {
        let service = service_fn(|request: Request<Incoming>| {
            let (admin, api) = (Arc::clone(&self), api.clone());
            let measuring = measuring.clone();
            async move {
                if request.uri().path().starts_with(api::PREFIX) {
                    let Api { guard, turns } = &api;
                    return Ok(api::serve(&admin.endpoints, turns, guard, request).await);
                }
                if request.uri().path() == "/metrics" {
                    admin.measure(&measuring).await;
                }
                Ok::<_, Infallible>(admin.answer(&request))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(EXCHANGE_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "An admin connection ended early."),
            Err(_) => tracing::debug!("An admin connection took too long."),
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let head = request.method() == Method::HEAD;
        let known = ["/livez", "/readyz", "/metrics"].contains(&request.uri().path());
        if known && !head && request.method() != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" if self.readiness.is_stuck(self.clock.now(), self.pulse()) => {
                let why = "the data path has not moved for 30 s\n";
                text(StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
            }
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => match self.readiness.reasons(self.pulse()) {
                reasons if reasons.is_empty() => text(StatusCode::OK, "ok\n".to_owned()),
                reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            },
            "/metrics" => self.scrape(),
            _ => text(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n".to_owned()),
        }
    }

    /// How commits get through; a store that is not open yet has none.
    fn pulse(&self) -> Pulse {
        self.store.borrow().as_ref().map(|store| store.pulse()).unwrap_or_default()
    }

    /// Asks how large the store is, beside this thread: what the disk has to say may never come, and
    /// the probes are answered here. What is not said stays as it was.
    async fn measure(&self, measuring: &Measuring) {
        let Some(store) = self.store.borrow().clone() else { return };
        if let Some(sizes) = measuring.sizes(store).await {
            self.metrics.store_sizes(sizes.bytes, sizes.available_bytes);
        }
    }

    fn scrape(&self) -> Response<Full<Bytes>> {
        let now = self.clock.now();
        self.metrics.unready(&self.readiness.reasons(self.pulse()));
        let store = self.store.borrow().clone();
        if let Some(store) = store {
            // What is not in the store any more has nothing, be it in the table or gone from it.
            let health = store.health();
            let targets = (self.targets)();
            if let Some(store_bytes_max) = health.bytes_max {
                self.metrics.store_limit(store_bytes_max);
                for (name, limit) in &targets {
                    self.metrics.backlog_limit(name, limit.bytes(store_bytes_max));
                }
            }
            self.metrics.empty_lanes(targets.into_iter().map(|(name, _)| name).collect());
            for lane in store.lanes() {
                let age = lane.oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
                let backlog = Backlog {
                    pending: lane.pending,
                    oldest: age,
                    bytes: lane.backlog_bytes,
                    dead_bytes: lane.dead_letters_bytes,
                    dead: &lane.dead,
                };
                self.metrics.lane(&lane.target, &backlog);
            }
            self.metrics.store_damage(health.damaged_records, health.sweep_findings);
            self.metrics.unrouted(health.unrouted_bytes, health.unrouted_removed);
        }
        let mut response = text(StatusCode::OK, self.metrics.render());
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// The connections that are open, the oldest first: nobody who is slow or silent keeps a probe out.
#[derive(Default)]
struct Connections {
    tracker: TaskTracker,
    open: VecDeque<AbortHandle>,
}

impl Connections {
    fn serve(&mut self, exchange: impl Future<Output = ()> + Send + 'static) {
        self.open.retain(|connection| !connection.is_finished());
        if self.open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.abort();
        }
        self.open.push_back(self.tracker.spawn(exchange).abort_handle());
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use crate::store::embedded::sim::{Faults, SimDisk};
    use crate::store::embedded::{EmbeddedStore, Settings};
    use std::io::{Read as _, Write as _};
    use std::sync::mpsc::sync_channel;

    struct Standing;

    impl Clock for Standing {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(1_700_000_000_000)
        }

        fn wall(&self) -> Timestamp {
            self.now()
        }

        fn at_least(&self, _: Timestamp) {}

        fn is_doubted(&self) -> bool {
            false
        }
    }

    fn any() -> Address {
        "127.0.0.1:0".parse().unwrap()
    }

    /// Fails rather than hangs where nobody answers.
    fn get(address: &Address, path: &str) -> String {
        let Address::Tcp(address) = address else { panic!("{address}") };
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_probes_answer_while_the_runtime_of_the_data_path_is_blocked() {
        let readiness = Arc::new(Readiness::default());
        readiness.started();
        let admin = Admin::<EmbeddedStore> {
            store: watch::channel(None).1,
            metrics: SharedMetrics::default(),
            readiness,
            clock: Arc::new(Standing),
            targets: Arc::new(Vec::new),
            endpoints: Vec::new(),
            token: None,
        };
        let listener = any().bind().unwrap();
        // Where `app` builds it: within the runtime of the data path.
        let data = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let admin = data.block_on(async { admin.spawn(listener) }).unwrap();
        let (blocked, is_blocked) = sync_channel(0);
        let (go_on, goes_on) = sync_channel::<()>(0);
        let thread = std::thread::spawn(move || {
            data.block_on(async {
                blocked.send(()).unwrap();
                goes_on.recv().unwrap();
            });
        });
        is_blocked.recv().unwrap();
        for path in ["/livez", "/readyz", "/metrics"] {
            let answer = get(admin.address(), path);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
        }
        go_on.send(()).unwrap();
        thread.join().unwrap();
        admin.join();
    }

    #[test]
    fn everything_is_answered_while_the_disk_does_not_say_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimDisk::default();
        let mut settings = Settings::new(dir.path().join("data"));
        settings.disk = Arc::new(disk.clone());
        settings.allow_volatile = true;
        let store = Arc::new(EmbeddedStore::open(&settings, Arc::new(Standing)).unwrap());
        let readiness = Arc::new(Readiness::default());
        readiness.started();
        let admin = Admin {
            store: watch::channel(Some(Arc::clone(&store))).1,
            metrics: SharedMetrics::default(),
            readiness,
            clock: Arc::new(Standing),
            targets: Arc::new(Vec::new),
            endpoints: Vec::new(),
            token: None,
        };
        let admin = admin.spawn(any().bind().unwrap()).unwrap();
        disk.set_faults(Faults { hung_sizes: true, ..Faults::default() });
        for path in ["/metrics", "/readyz", "/livez", "/metrics"] {
            let answer = get(admin.address(), path);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            assert!(!answer.contains("relay_store_available_bytes "), "it is not known: {answer}");
        }
        assert_eq!(store.health().damaged_records, 0, "answered from memory");
        disk.heal();
        let answer = get(admin.address(), "/metrics");
        assert!(answer.contains("relay_store_available_bytes "), "{answer}");
        admin.join();
    }
}
