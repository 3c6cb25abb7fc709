//! The operator's address: probes, metrics and the [`api`], on a thread and a runtime of their own,
//! so that a stuck data path can't block them.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::api::{Body, Relay};
use crate::admin::readiness::Readiness;
use crate::domain::time::Clock;
use crate::store::{CommitError, Store};
use crate::telemetry::metrics::SharedMetrics;

pub mod api;
pub mod readiness;

/// Probes and scrapers at the same time; more wait.
const CONNECTIONS_MAX: usize = 64;

/// For a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often histograms are folded together when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What the operator's address answers from.
pub struct Admin<S> {
    /// The store, once it is open.
    pub store: tokio::sync::watch::Receiver<Option<Arc<S>>>,
    /// All metrics.
    pub metrics: SharedMetrics,
    /// What the parts say of themselves.
    pub readiness: Arc<Readiness>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The targets of the table in force: they are shown even when they hold nothing.
    pub targets: Arc<dyn Fn() -> Vec<Arc<str>> + Send + Sync>,
    /// Does what the API is told; none where the API is off.
    pub relay: Option<Arc<dyn Relay>>,
}

impl<S> std::fmt::Debug for Admin<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

/// The running admin thread.
#[derive(Debug)]
pub struct AdminThread {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl AdminThread {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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
    pub fn spawn(self, listener: TcpListener) -> io::Result<AdminThread> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => Arc::new(self).serve(listener, stopped).await,
                    Err(error) => tracing::error!(%error, "The admin address is not served."),
                }
            });
        })?;
        Ok(AdminThread { address, stop, thread: Some(thread) })
    }

    async fn serve(self: Arc<Self>, listener: tokio::net::TcpListener, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        loop {
            let free = Arc::clone(&slots).acquire_owned();
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                _ = upkeep.tick() => { self.metrics.upkeep(); continue }
                accepted = async { (free.await, listener.accept().await) } => accepted,
            };
            let (Ok(slot), Ok((stream, _))) = accepted else {
                // Out of descriptors, most likely: the data path needs the next ones more.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let admin = Arc::clone(&self);
            tracker.spawn(async move {
                let service = service_fn(|request: Request<Incoming>| async {
                    Ok::<_, Infallible>(admin.respond(request).await)
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "An admin connection ended early.");
                }
                drop(slot);
            });
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path().starts_with(api::PREFIX) {
            return api::answer(self.relay.as_deref(), request).await;
        }
        self.answer(&request)
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let known = ["/livez", "/readyz", "/metrics"].contains(&request.uri().path());
        if known && !head && request.method() != Method::GET {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" if self.readiness.is_stuck(self.clock.now()) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "stuck\n".to_owned())
            }
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => match self.reasons() {
                reasons if reasons.is_empty() => text(StatusCode::OK, "ok\n".to_owned()),
                reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            },
            "/metrics" => self.scrape(),
            _ => text(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n".to_owned()),
        }
    }

    fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = self.readiness.reasons();
        let failing = self.store.borrow().as_ref().and_then(|store| store.health().failing);
        match failing {
            None => {}
            Some(CommitError::DiskFull) => reasons.push("disk_full"),
            Some(CommitError::Closed | CommitError::Overloaded | CommitError::Unavailable) => {
                reasons.push("store_unavailable");
            }
        }
        reasons
    }

    fn scrape(&self) -> Response<Body> {
        let now = self.clock.now();
        let store = self.store.borrow().clone();
        if let Some(store) = store {
            // What is not in the store any more has nothing, be it in the table or gone from it.
            self.metrics.empty_lanes((self.targets)());
            for lane in store.lanes() {
                let age = lane.oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
                self.metrics.lane(&lane.target, lane.pending, age, &lane.dead);
            }
            let health = store.health();
            self.metrics.store(health.bytes, health.available_bytes, health.damaged_records);
        }
        let mut response = text(StatusCode::OK, self.metrics.render());
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = api::whole(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
