//! Running and stopping: which tasks there are, who owns them, in which order they end.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::readiness::Readiness;
use crate::app::App;
use crate::app::clock::SystemClock;
use crate::app::observe::{Connections, HoldUps};
use crate::app::systemd;
use crate::app::watcher::Watcher;
use crate::delivery::client::Clients;
use crate::delivery::{Dispatcher, Parts};
use crate::domain::limit::BODY_PACE_TIME;
use crate::domain::time::Clock;
use crate::ingress::{Ingress, IngressLimits, Setting};
use crate::net::listener::{Backlog, LAST_REQUEST_WAIT, ListenerLimits, Proxies, Server};
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::telemetry::log_level::LogLevel;

/// Longer than balancers keep idle connections, so that it is they who close them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection may last for ever; now and then it is made anew, so that none of what it gathers does.
const REQUESTS_PER_CONNECTION_MAX: u32 = 100_000;

/// How often the data path says that it moves.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Up to when the steps of a stop may last, in eighths of `--shutdown-timeout`: attempts that hang
/// must not keep requests from being answered, nor requests the store from being closed. A step
/// that ends early leaves its time to the next.
const ATTEMPTS_UNTIL: u32 = 4;
const REQUESTS_UNTIL: u32 = 6;
const REFUSALS_UNTIL: u32 = 7;
const CLOSE_UNTIL: u32 = 8;

impl App {
    /// Runs until `stop`, then ends in order: not ready; no new attempts, those in flight finish
    /// while webhooks are still accepted, the last one of each connection; the listener closes;
    /// requests in flight finish, and those that don't are told; the store is flushed. Each has a
    /// share of `--shutdown-timeout`.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let listener = self.listener.take().ok_or_else(|| anyhow!("the relay has run already"))?;
        let watcher = self.watcher.take().ok_or_else(|| anyhow!("the relay has run already"))?;
        let (acme, exporting) = (self.acme.take(), self.exporting.take());
        // Lanes begin in tasks of their own: who scrapes the moment we are ready must find all targets.
        for target in self.table.borrow().targets.keys() {
            drop((self.metrics.target(target), self.metrics.lane_state(target)));
        }
        let running = self.start(listener, watcher);
        if let Some(acme) = acme {
            // What is ordered while it stops would be checked at a listener that closes.
            running.watching.spawn(acme.run(running.stop_leasing.clone()));
        }
        if let Some(exporting) = exporting {
            let stop = running.stop_exporting.clone();
            running.exporting.spawn(exporting.run(stop, self.settings.shutdown_timeout));
        }
        // Who scrapes the moment we are ready must not take a silent source for one that never spoke.
        running.ingress.observe(&self.store.health());
        self.readiness.started();
        tracing::info!("Ready: accepting and delivering.");
        systemd::ready(self.address, self.admin.address());
        stop.cancelled().await;

        self.readiness.stopping();
        systemd::stopping();
        tracing::info!("Stopping.");
        let budget = Budget { began: Instant::now(), total: self.settings.shutdown_timeout };
        running.end(budget).await;
        // Whatever happened before: what was taken in is written down.
        let closing = timeout_at(budget.until(CLOSE_UNTIL), self.store.close());
        // Nobody is left who could tell more of a trace.
        running.stop_exporting.cancel();
        let exported = finish(&running.exporting, budget.until(CLOSE_UNTIL));
        let (closed, _) = tokio::join!(closing, exported);
        self.admin.join();
        closed.map_err(|_| {
            anyhow!("the store could not be closed in time; nothing acknowledged is lost")
        })?;
        tracing::info!("Stopped.");
        Ok(())
    }

    /// Starts every task; each has an owner in what this returns.
    fn start(&self, listener: (TcpListener, Backlog), mut watcher: Watcher) -> Running {
        let commits = TaskTracker::new();
        let default = IngressLimits::default();
        let ingress = Ingress::new(Setting {
            store: Arc::clone(&self.store),
            tables: self.table.subscribe(),
            clock: self.clock.clone(),
            ids: Arc::clone(&self.ids),
            metrics: Arc::clone(&self.metrics),
            tracker: commits.clone(),
            limits: IngressLimits {
                in_flight_max: self.settings.in_flight_max,
                in_flight_bytes_max: self.settings.in_flight_bytes_max,
                body_timeout: self.settings.body_timeout,
                unverified_rate: self
                    .settings
                    .edge
                    .unverified_rate
                    .unwrap_or(default.unverified_rate),
                peers_are_clients: self.settings.peers_are_clients(),
            },
            trusted_proxies: self.settings.edge.trusted_proxies.clone(),
            traces: self.traces.clone(),
        });
        // Before it is ready: a scrape in between would take every source for silent since 1970.
        ingress.observe(&self.store.health());
        let metrics = self.metrics.connections();
        let running = Running {
            observer: Arc::new(Connections::new(metrics, Arc::clone(&ingress))),
            ingress: Arc::clone(&ingress),
            commits,
            connections: TaskTracker::new(),
            listening: TaskTracker::new(),
            delivering: TaskTracker::new(),
            watching: TaskTracker::new(),
            stop_leasing: CancellationToken::new(),
            stop_accepting: CancellationToken::new(),
            drain: CancellationToken::new(),
            stop_watching: CancellationToken::new(),
            exporting: TaskTracker::new(),
            stop_exporting: CancellationToken::new(),
        };
        running.delivering.spawn(self.dispatcher().run(running.stop_leasing.clone()));
        let follower = Arc::clone(&ingress);
        watcher.routes.held.follow = Box::new(move || follower.follow());
        running.watching.spawn(watcher.run(running.stop_watching.clone()));
        let watch = Watch {
            readiness: Arc::clone(&self.readiness),
            clock: Arc::clone(&self.clock),
            store: Arc::clone(&self.store),
            ingress,
            observer: Arc::clone(&running.observer),
            log_level: self.log_level.clone(),
        };
        running.watching.spawn(watch.over(running.stop_watching.clone()));
        if let Some(timeout) = systemd::watchdog() {
            let (store, stop) = (Arc::clone(&self.store), running.stop_watching.clone());
            running.watching.spawn(systemd::keep_alive(timeout, store, stop));
        }
        self.listen(listener, &running);
        running
    }

    fn dispatcher(&self) -> Dispatcher<EmbeddedStore> {
        let parts = Parts {
            store: Arc::clone(&self.store),
            table: self.table.subscribe(),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            random: || fastrand::u64(..),
            memory_bytes_max: self.settings.store.delivery_memory / 2,
            board: Arc::clone(&self.board),
            traces: self.traces.clone(),
        };
        Dispatcher::new(parts, Clients::default())
    }

    fn listen(&self, (listener, backlog): (TcpListener, Backlog), running: &Running) {
        let server = Server {
            listener,
            backlog,
            tls: self.tls.as_ref().map(watch::Sender::subscribe),
            limits: ListenerLimits {
                connections_max: self.settings.connections_max,
                connections_per_address_max: self.settings.connections_per_address_max(),
                proxies: Proxies {
                    trusted: self.settings.edge.trusted_proxies.clone(),
                    protocol: self.settings.edge.proxy_protocol,
                },
                requests_per_connection_max: self
                    .settings
                    .edge
                    .requests_per_connection_max
                    .map_or(REQUESTS_PER_CONNECTION_MAX, NonZeroU32::get),
                handshake_timeout: self.settings.handshake_timeout,
                header_timeout: self.settings.header_timeout,
                idle_timeout: IDLE_TIMEOUT.max(self.settings.body_timeout * 2),
            },
            observer: Arc::clone(&running.observer),
            stop_accepting: running.stop_accepting.clone(),
            drain: running.drain.clone(),
            tracker: running.connections.clone(),
        };
        let ingress = Arc::clone(&running.ingress);
        running.listening.spawn(server.serve(move |request, peer| {
            let ingress = Arc::clone(&ingress);
            async move { ingress.serve(request, peer.client(), peer.certificate).await }
        }));
    }
}

/// The tasks of a relay and how to end them.
struct Running {
    observer: Arc<Connections>,
    ingress: Arc<Ingress<EmbeddedStore>>,
    // What was taken in and no sender may cancel.
    commits: TaskTracker,
    connections: TaskTracker,
    listening: TaskTracker,
    delivering: TaskTracker,
    watching: TaskTracker,
    stop_leasing: CancellationToken,
    stop_accepting: CancellationToken,
    drain: CancellationToken,
    stop_watching: CancellationToken,
    exporting: TaskTracker,
    stop_exporting: CancellationToken,
}

/// The time that a stop may take.
#[derive(Clone, Copy)]
struct Budget {
    began: Instant,
    total: Duration,
}

impl Budget {
    fn until(&self, eighths: u32) -> Instant {
        self.began + self.total * eighths / 8
    }
}

impl Running {
    /// Ends them in order. Each step begins, whatever became of those before it.
    async fn end(&self, budget: Budget) {
        self.stop_leasing.cancel();
        // Senders move on: each connection has one more request, and says so in the answer to it.
        self.drain.cancel();
        if !finish(&self.delivering, budget.until(ATTEMPTS_UNTIL)).await {
            tracing::warn!(
                "Attempts take longer than half of --shutdown-timeout; what they don't settle until \
                 its end is due again at the next start."
            );
        }
        // Those that were told must have heard it before nobody is there to connect to.
        let told = budget.until(ATTEMPTS_UNTIL).min(budget.began + LAST_REQUEST_WAIT);
        finish(&self.connections, told).await;
        self.stop_accepting.cancel();
        finish(&self.listening, budget.until(REQUESTS_UNTIL)).await;
        // Nobody can connect any more. A body that takes longer is lost at its sender, or is a stranger's.
        let patience = budget.until(REQUESTS_UNTIL).min(Instant::now() + BODY_PACE_TIME);
        let answered = finish(&self.connections, patience).await;
        self.ingress.shut_down();
        if !answered && !finish(&self.connections, budget.until(REFUSALS_UNTIL)).await {
            tracing::warn!("Some requests could not be answered within --shutdown-timeout.");
        }
        finish(&self.commits, budget.until(REFUSALS_UNTIL)).await;
        self.ingress.tell_rest();
        self.observer.tell_rest();
        self.stop_watching.cancel();
        finish(&self.watching, budget.until(REFUSALS_UNTIL)).await;
    }
}

/// Waits for tasks; answers whether they ended in time.
async fn finish(tasks: &TaskTracker, until: Instant) -> bool {
    tasks.close();
    timeout_at(until, tasks.wait()).await.is_ok()
}

/// What is looked at every second.
struct Watch {
    readiness: Arc<Readiness>,
    clock: Arc<SystemClock>,
    store: Arc<EmbeddedStore>,
    ingress: Arc<Ingress<EmbeddedStore>>,
    observer: Arc<Connections>,
    log_level: LogLevel,
}

impl Watch {
    /// Shows that the data path moves, and does what nobody else does as time goes by.
    async fn over(self, stop: CancellationToken) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut hold_ups = HoldUps::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => {
                    self.clock.look();
                    self.readiness.moved(self.clock.now());
                    self.log_level.look(self.clock.now());
                    self.ingress.tell_untold();
                    self.observer.tell_untold();
                    // First, because a disk that hangs may keep its sizes to itself.
                    hold_ups.look(self.store.pulse());
                    self.ingress.observe(&self.store.health());
                }
            }
        }
    }
}
