//! The composition root: builds everything, binds before it says ready, stops in order.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::admin::readiness::Readiness;
use crate::admin::sizes::Measuring;
use crate::admin::{Admin, AdminThread};
use crate::app::acme::{Acme, AcmeSettings};
use crate::app::api::Answers;
use crate::app::certificate::Certificates;
use crate::app::clock::SystemClock;
use crate::app::followed::Followed;
use crate::app::observe::Commits;
use crate::app::reload::{Changes, Tables};
use crate::app::token::Tokens;
use crate::app::traces::{Exporting, TraceSettings};
use crate::app::watcher::{Reloads, Watcher};
use crate::config::Environment;
use crate::delivery::board::Board;
use crate::domain::client::Networks;
use crate::domain::route::RoutingTable;
use crate::domain::target::{BacklogLimit, Rate, Target};
use crate::domain::time::Clock;
use crate::domain::webhook::WebhookIds;
use crate::net::address::{Address, Bound};
use crate::net::inherited::Inherited;
use crate::net::listener;
use crate::net::listener::Backlog;
use crate::store::embedded::log::Limit;
use crate::store::embedded::{self, EmbeddedStore};
use crate::telemetry::log_level::LogLevel;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

pub mod acme;
mod api;
mod certificate;
mod client_ca;
pub mod clock;
mod diff;
mod followed;
mod follower;
pub mod harm;
mod observe;
pub mod offline;
mod reload;
mod running;
#[cfg(test)]
mod simulation;
pub mod systemd;
mod tls;
mod token;
pub mod traces;
pub mod watcher;

/// Everything that `serve` can be told, already checked for its form.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The routing table's file.
    pub routes: PathBuf,
    /// Where senders connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin: Address,
    /// The file of the token that they bring; without one they must be on this machine.
    pub admin_token: Option<PathBuf>,
    /// Certificates and keys, chosen by the name that is asked for, the first where none fits; plain
    /// HTTP without, unless they come from an authority.
    pub tls: Vec<TlsFiles>,
    /// Where they come from instead of files.
    pub acme: Option<AcmeSettings>,
    /// The roots of certificates that clients may show, PEM; none is asked for without.
    pub client_ca: Option<PathBuf>,
    /// The store.
    pub store: StoreSettings,
    /// Who is at the other end.
    pub edge: EdgeSettings,
    /// Where webhooks are traced; nowhere without.
    pub traces: Option<TraceSettings>,
    /// Connections at once.
    pub connections_max: usize,
    /// Requests in flight.
    pub in_flight_max: usize,
    /// Bytes of bodies in flight.
    pub in_flight_bytes_max: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a request's head.
    pub header_timeout: Duration,
    /// For a request's body.
    pub body_timeout: Duration,
    /// For stopping, all of it.
    pub shutdown_timeout: Duration,
}

/// A certificate of the listener and its key.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// Of all connections, one address has at most one part in so many, unless it is said otherwise.
const CONNECTIONS_PER_ADDRESS_SHARE: usize = 4;

/// What is known of those who connect.
#[derive(Debug, Clone, Default)]
pub struct EdgeSettings {
    /// Proxies that are believed when they say whose requests they forward.
    pub trusted_proxies: Networks,
    /// They begin each connection with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Connections at once from one address; a quarter of all without.
    pub connections_per_address_max: Option<usize>,
    /// Requests on one connection; the default of `serve` without.
    pub requests_per_connection_max: Option<NonZeroU32>,
    /// Refused requests of one address before it is refused unseen; as many as an ingress says
    /// without.
    pub unverified_rate: Option<Rate>,
}

impl Settings {
    /// Whether peers that are no trusted proxies are the clients themselves: without TLS something
    /// else ends it, and all come from there, unless it is known what that is.
    fn peers_are_clients(&self) -> bool {
        let has_tls = !self.tls.is_empty() || self.acme.is_some();
        has_tls || !self.edge.trusted_proxies.is_empty()
    }

    fn connections_per_address_max(&self) -> usize {
        let quarter = self.connections_max.div_ceil(CONNECTIONS_PER_ADDRESS_SHARE);
        let wanted = self.edge.connections_per_address_max.unwrap_or(quarter);
        if self.peers_are_clients() { wanted } else { usize::MAX }
    }
}

/// What the store is told. Half of `delivery_memory` is for bodies that wait in it, half for those in
/// attempts.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Its directory.
    pub data: PathBuf,
    /// A directory in memory is fine: tests.
    pub allow_volatile: bool,
    /// How long settled webhooks are kept.
    pub retain: Duration,
    /// How long unrouted webhooks are kept.
    pub retain_unrouted: Duration,
    /// How long dead letters are kept.
    pub retain_dead_letters: Duration,
    /// How many keys of duplicates are known.
    pub duplicates_max: usize,
    /// Bytes of bodies in lanes.
    pub delivery_memory: usize,
    /// How much of the disk its segments may take; four fifths of what is free without.
    pub limit: Option<u64>,
}

impl Default for Settings {
    /// The defaults of `serve`, over TLS.
    fn default() -> Self {
        let certs = PathBuf::from("certs");
        Self {
            routes: PathBuf::from("routes.yaml"),
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 8443)),
            admin: Address::Tcp(SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 9464))),
            admin_token: None,
            tls: vec![TlsFiles { certificate: certs.join("tls.crt"), key: certs.join("tls.key") }],
            acme: None,
            client_ca: None,
            store: StoreSettings::default(),
            edge: EdgeSettings::default(),
            traces: None,
            connections_max: 10_000,
            in_flight_max: 1024,
            in_flight_bytes_max: 256 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            shutdown_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            data: PathBuf::from("data"),
            allow_volatile: false,
            retain: Duration::from_secs(72 * 3600),
            retain_unrouted: Duration::from_secs(14 * 86_400),
            retain_dead_letters: Duration::from_secs(90 * 86_400),
            duplicates_max: 1_000_000,
            delivery_memory: 64 * 1024 * 1024,
            limit: None,
        }
    }
}

/// A relay whose sockets are bound and whose store is open.
pub struct App {
    settings: Settings,
    address: SocketAddr,
    // Until it runs.
    listener: Option<(tokio::net::TcpListener, Backlog)>,
    watcher: Option<Watcher>,
    tls: Option<watch::Sender<Arc<rustls::ServerConfig>>>,
    acme: Option<Acme>,
    traces: Traces,
    exporting: Option<Exporting>,
    table: watch::Sender<Arc<RoutingTable>>,
    store: Arc<EmbeddedStore>,
    ids: Arc<WebhookIds>,
    clock: Arc<SystemClock>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    admin: AdminThread,
    reloads: Reloads,
    board: Arc<Board>,
    log_level: LogLevel,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("address", &self.address).finish_non_exhaustive()
    }
}

fn backlog_limits(table: &RoutingTable) -> Vec<(Arc<str>, BacklogLimit)> {
    let limit = |target: &Arc<Target>| (Arc::clone(&target.name), target.backlog_limit);
    table.targets.values().map(limit).collect()
}

impl App {
    /// Loads, binds and opens everything, in the order in which mistakes are cheapest to find. Sockets
    /// that are inherited take the places of those of the settings; operators change `log_level`.
    pub async fn bind(
        settings: Settings,
        inherited: Inherited,
        environment: Arc<dyn Environment + Send + Sync>,
        log_level: LogLevel,
    ) -> anyhow::Result<Self> {
        let clock = Arc::new(SystemClock::start());
        let metrics = begin_metrics(&clock);
        prepare_process();

        let routes = load_tables(&settings, environment, &clock, &metrics)?;
        let (table, targets) = (routes.held.table.clone(), routes.held.table.subscribe());
        let readiness = Arc::new(Readiness::default());
        let tls::Tls { certificates, acme, client_ca, config } =
            tls::prepare(&settings, &clock, &metrics, &readiness)?;
        let tokens = load_token(settings.admin_token.as_deref(), &metrics)?;
        let (traces, exporting) = traces::prepare(settings.traces.as_ref(), &metrics)?;
        let (reloads, requests) = Reloads::channel();

        let listener = bind_webhooks(settings.listen, inherited.webhooks)?;
        let address = listener.0.local_addr()?;
        let (opened, store) = watch::channel(None);
        let board = Arc::<Board>::default();
        let answers = Answers {
            store: store.clone(),
            table: table.subscribe(),
            clock: clock.clone(),
            reloads: reloads.clone(),
            board: Arc::clone(&board),
            measuring: Measuring::default(),
            log_level: log_level.clone(),
        };
        let admin = Admin {
            store,
            endpoints: api::endpoints(&answers),
            metrics: Arc::clone(&metrics),
            readiness: Arc::clone(&readiness),
            clock: clock.clone(),
            targets: Arc::new(move || backlog_limits(&targets.borrow())),
            token: tokens.as_ref().map(|tokens| tokens.held.subscribe()),
        }
        .spawn(inherited.admin.map_or_else(|| bind_admin(&settings.admin), Ok)?)?;

        say_bound(&settings, address, admin.address(), config.is_some(), &table.borrow());
        routes.held.warn();
        certificates.iter().for_each(Certificates::warn);
        acme.iter().for_each(|acme| acme.announce(address));

        let store = open_store(&settings.store, clock.clone(), Commits(metrics.commits())).await?;
        opened.send_replace(Some(Arc::clone(&store)));
        let ids = Arc::new(WebhookIds::after(store.ids_after()));
        Ok(Self {
            settings,
            address,
            listener: Some(listener),
            watcher: Some(Watcher {
                requests,
                routes,
                certificates: certificates.map(|held| held.pairs).unwrap_or_default(),
                client_ca,
                tokens,
                asked: acme.as_ref().map(Acme::now),
            }),
            tls: config,
            acme,
            traces,
            exporting,
            table,
            store,
            ids,
            clock,
            metrics,
            readiness,
            admin,
            reloads,
            board,
            log_level,
        })
    }

    /// Asks it to reload.
    pub fn reloads(&self) -> Reloads {
        self.reloads.clone()
    }

    /// Where senders connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators connect.
    pub const fn admin_address(&self) -> &Address {
        self.admin.address()
    }
}

fn begin_metrics(clock: &SystemClock) -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::default());
    metrics.started(env!("CARGO_PKG_VERSION"), clock.wall());
    metrics
}

fn load_tables(
    settings: &Settings,
    environment: Arc<dyn Environment + Send + Sync>,
    clock: &Arc<SystemClock>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Followed<Tables>> {
    let (path, asks_for_certificates) = (settings.routes.clone(), settings.client_ca.is_some());
    let read = reload::reader(path.clone(), environment, asks_for_certificates);
    Followed::<Tables>::begin(read, |outcome| {
        let loaded =
            outcome.map_err(|problems| anyhow!("{} can't be used\n{problems}", path.display()))?;
        metrics.table(&hex(&loaded.table.sha256), clock.wall(), || ());
        Ok(Tables {
            table: watch::Sender::new(Arc::new(loaded.table)),
            clock: clock.clone(),
            metrics: Arc::clone(metrics),
            follow: Box::new(|| ()),
            warnings: loaded.warnings,
            changes: Changes::default(),
            routes: path,
        })
    })
}

fn say_bound(
    settings: &Settings,
    listen: SocketAddr,
    admin: &Address,
    tls: bool,
    table: &RoutingTable,
) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %listen,
        tls,
        %admin,
        data = %settings.store.data.display(),
        routes = %settings.routes.display(),
        routes_sha256 = hex(&table.sha256),
        "Bound; opening the store."
    );
}

fn load_token(
    path: Option<&Path>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<Followed<Tokens>>> {
    let Some(path) = path else { return Ok(None) };
    let held = Followed::<Tokens>::begin(token::reader(path.to_owned()), |outcome| {
        let token = outcome.map_err(|error| anyhow!("--admin-token-file: {error}"))?;
        Ok::<_, anyhow::Error>(Tokens::new(token, Arc::clone(metrics)))
    });
    held.map(Some)
}

fn bind_webhooks(
    address: SocketAddr,
    inherited: Option<std::net::TcpListener>,
) -> anyhow::Result<(tokio::net::TcpListener, Backlog)> {
    if let Some(listener) = inherited {
        let listener = tokio::net::TcpListener::from_std(listener);
        return Ok((listener.context("the socket for webhooks can't be used")?, Backlog::Leave));
    }
    let listener = listener::bind(address);
    Ok((listener.with_context(|| format!("--listen {address} can't be bound"))?, Backlog::TakeIn))
}

fn bind_admin(address: &Address) -> anyhow::Result<Bound> {
    address.bind().with_context(|| format!("--admin {address} can't be bound"))
}

/// What the system gives a process that nobody has asked for anything else.
fn prepare_process() {
    raise_open_files_limit();
    leave_no_core();
}

/// Each connection is a descriptor, and so is each segment and each delivery.
fn raise_open_files_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "The limit on open files can't be raised.");
    }
}

/// What a crash would leave on the disk has secrets and webhooks in it.
fn leave_no_core() {
    let nothing = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Core, nothing) {
        tracing::warn!(%error, "Core dumps can't be turned off.");
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// Opens the store off the runtime: it reads from the disk.
async fn open_store(
    settings: &StoreSettings,
    clock: Arc<dyn Clock>,
    commits: Commits,
) -> anyhow::Result<Arc<EmbeddedStore>> {
    let settings = embedded::Settings {
        allow_volatile: settings.allow_volatile,
        retain: settings.retain,
        retain_unrouted: settings.retain_unrouted,
        retain_dead_letters: settings.retain_dead_letters,
        duplicates_max: settings.duplicates_max,
        delivery_memory: settings.delivery_memory / 2,
        limit: settings.limit.map_or(Limit::OfFree, Limit::Bytes),
        observer: Arc::new(commits),
        ..embedded::Settings::new(settings.data.clone())
    };
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&settings, clock)).await?;
    Ok(Arc::new(opened?))
}
