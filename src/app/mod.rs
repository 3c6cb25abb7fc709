//! The composition root: builds everything, binds before it says ready, stops in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::admin::readiness::Readiness;
use crate::admin::{Admin, AdminThread};
use crate::app::api::Answers;
use crate::app::clock::SystemClock;
use crate::app::observe::Commits;
use crate::config;
use crate::config::{Environment, Secrets};
use crate::domain::route::RoutingTable;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::WebhookIds;
use crate::net::tls::TlsError;
use crate::net::{listener, tls};
use crate::store::embedded::{self, EmbeddedStore};
use crate::telemetry::metrics::Metrics;

mod api;
pub mod clock;
mod diff;
mod observe;
mod running;

/// Everything that `serve` can be told, already checked for its form.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The routing table's file.
    pub routes: PathBuf,
    /// Where senders connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    /// Certificate and key; plain HTTP without.
    pub tls: Option<TlsFiles>,
    /// The store.
    pub store: StoreSettings,
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

/// Certificate and key of the listener.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
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
}

impl Default for Settings {
    /// The defaults of `serve`, over TLS.
    fn default() -> Self {
        let certs = PathBuf::from("certs");
        Self {
            routes: PathBuf::from("routes.yaml"),
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 8443)),
            admin: SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 9464)),
            tls: Some(TlsFiles { certificate: certs.join("tls.crt"), key: certs.join("tls.key") }),
            store: StoreSettings::default(),
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
        }
    }
}

/// A relay whose sockets are bound and whose store is open.
pub struct App {
    settings: Settings,
    address: SocketAddr,
    // Until it runs.
    listener: Option<tokio::net::TcpListener>,
    certificate: Option<watch::Sender<Arc<rustls::ServerConfig>>>,
    table: watch::Sender<Arc<RoutingTable>>,
    store: Arc<EmbeddedStore>,
    ids: Arc<WebhookIds>,
    clock: Arc<SystemClock>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    admin: AdminThread,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("address", &self.address).finish_non_exhaustive()
    }
}

impl App {
    /// Loads, binds and opens everything, in the order in which mistakes are cheapest to find.
    pub async fn bind(settings: Settings, environment: &dyn Environment) -> anyhow::Result<Self> {
        let clock = Arc::new(SystemClock::start());
        let metrics = Arc::new(Metrics::default());
        metrics.started(env!("CARGO_PKG_VERSION"), clock.wall());
        raise_open_files_limit();

        let loaded =
            config::load(&settings.routes, environment, Secrets::Resolve).map_err(|problems| {
                anyhow!("{} can't be used\n{problems}", settings.routes.display())
            })?;
        metrics.table(&hex(&loaded.table.sha256), None, clock.wall());
        let (table, tables) = watch::channel(Arc::new(loaded.table));
        let certificate = load_certificate(&settings, &clock, &metrics)?;

        let listener = listener::bind(settings.listen)
            .with_context(|| format!("--listen {} can't be bound", settings.listen))?;
        let address = listener.local_addr()?;
        let readiness = Arc::new(Readiness::default());
        let (opened, store) = watch::channel(None);
        let socket = std::net::TcpListener::bind(settings.admin)
            .with_context(|| format!("--admin {} can't be bound", settings.admin))?;
        let answers = Answers { store: store.clone(), table: tables.clone(), clock: clock.clone() };
        let admin = Admin {
            store,
            endpoints: api::endpoints(&answers),
            metrics: Arc::clone(&metrics),
            readiness: Arc::clone(&readiness),
            clock: clock.clone(),
            targets: Arc::new(move || tables.borrow().targets.keys().cloned().collect()),
        };
        let admin = admin.spawn(socket)?;

        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %address,
            tls = certificate.is_some(),
            admin = %admin.address(),
            data = %settings.store.data.display(),
            routes = %settings.routes.display(),
            routes_sha256 = hex(&table.borrow().sha256),
            "Bound; opening the store."
        );
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }

        let commits = Commits(metrics.commits());
        let store = open_store(&settings.store, clock.clone(), commits).await?;
        opened.send_replace(Some(Arc::clone(&store)));
        let ids = Arc::new(WebhookIds::after(store.newest()));
        Ok(Self {
            settings,
            address,
            listener: Some(listener),
            certificate,
            table,
            store,
            ids,
            clock,
            metrics,
            readiness,
            admin,
        })
    }

    /// Where senders connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }
}

fn load_certificate(
    settings: &Settings,
    clock: &SystemClock,
    metrics: &Metrics,
) -> anyhow::Result<Option<watch::Sender<Arc<rustls::ServerConfig>>>> {
    let Some(files) = &settings.tls else { return Ok(None) };
    let now = i64::try_from(clock.wall().as_secs()).unwrap_or(i64::MAX);
    let loaded = tls::load_server_files(&files.certificate, &files.key, now).map_err(|error| {
        // Only who has none wants another one.
        let hint = match error {
            TlsError::Missing { .. } => {
                "; `aryeo-relay certificate` makes one for development, --plain-http serves \
                 without where TLS ends in front of the relay"
            }
            _ => "",
        };
        anyhow!("{error}{hint}")
    })?;
    if loaded.not_before_unix > now {
        tracing::warn!(names = loaded.names, "The certificate is not valid yet.");
    }
    let secs = u64::try_from(loaded.not_after_unix).unwrap_or(0);
    metrics.certificate(&loaded.names, Timestamp::from_millis(secs.saturating_mul(1000)));
    Ok(Some(watch::Sender::new(loaded.config)))
}

/// Each connection is a descriptor, and so is each segment and each delivery.
fn raise_open_files_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "The limit on open files can't be raised.");
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
        observer: Arc::new(commits),
        ..embedded::Settings::new(settings.data.clone())
    };
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&settings, clock)).await?;
    Ok(Arc::new(opened?))
}
