//! One life of a relay, from its start to its end, and what outlives it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::network::Targets;
use super::time;
use crate::app::clock::SystemClock;
use crate::delivery::board::Board;
use crate::delivery::{Dispatcher, Parts};
use crate::domain::lane::May;
use crate::domain::route::{RoutingTable, Rules};
use crate::domain::source::DuplicateWindows;
use crate::domain::target::{BacklogLimit, Target};
use crate::domain::time::Clock;
use crate::domain::webhook::{DuplicateKey, NewDelivery, Resource, Webhook, WebhookId, WebhookIds};
use crate::store::claims::Claim;
use crate::store::embedded::sim::SimDisk;
use crate::store::embedded::stepping::Stepper;
use crate::store::embedded::{EmbeddedStore, OpenError, Settings};
use crate::store::{CommitError, Store};
use crate::telemetry::traces::Traces;

/// What outlives a relay: its directory, its disk, its settings.
pub(super) struct Place {
    dir: TempDir,
    pub(super) disk: SimDisk,
    pub(super) settings: Settings,
    pub(super) targets: Vec<Target>,
    pub(super) network: Targets,
}

/// The files of an index, as they are at a moment.
#[derive(Debug, Clone, Default)]
pub(super) struct IndexFiles(Vec<(PathBuf, Option<Vec<u8>>)>);

impl IndexFiles {
    /// As they are without what was only in the journal.
    pub(super) fn without_journal(mut self) -> Self {
        for (_, bytes) in self.0.iter_mut().skip(1) {
            *bytes = None;
        }
        self
    }
}

impl Place {
    pub(super) fn new(network: Targets, targets: Vec<Target>) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let disk = SimDisk::default();
        let mut settings = Settings::new(dir.path().join("data"));
        settings.allow_volatile = true;
        settings.disk = Arc::new(disk.clone());
        Self { dir, disk, settings, targets, network }
    }

    pub(super) fn use_disk(&mut self, disk: SimDisk) {
        self.settings.disk = Arc::new(disk.clone());
        self.disk = disk;
    }

    fn index_paths(&self) -> impl Iterator<Item = PathBuf> {
        let dir = self.dir.path().join("data");
        ["", "-wal", "-shm"].into_iter().map(move |end| dir.join(format!("index.sqlite{end}")))
    }

    pub(super) fn index_files(&self) -> IndexFiles {
        IndexFiles(
            self.index_paths().map(|path| (path.clone(), std::fs::read(path).ok())).collect(),
        )
    }

    /// Leaves these there, and no others.
    pub(super) fn put_index(&self, files: &IndexFiles) {
        for path in self.index_paths() {
            std::fs::remove_file(path).unwrap_or_default();
        }
        for (path, bytes) in &files.0 {
            // What is shared in memory is made again.
            let is_shared = path.to_string_lossy().ends_with("-shm");
            if let Some(bytes) = bytes.as_ref().filter(|_| !is_shared) {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }

    /// Starts a relay.
    pub(super) fn open(&self) -> Result<Life, OpenError> {
        let clock = Arc::new(SystemClock::shown_by(time::wall));
        let (store, stepper) =
            EmbeddedStore::open_stepped(&self.settings, Arc::clone(&clock) as Arc<dyn Clock>)?;
        let store = Arc::new(store);
        let ids = WebhookIds::after(store.ids_after());
        let (table, receiver) = watch::channel(table(self.targets.clone()));
        let board = Arc::default();
        let parts = Parts {
            store: Arc::clone(&store),
            table: receiver,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            metrics: Arc::default(),
            random: time::chance,
            memory_bytes_max: self.settings.delivery_memory,
            board: Arc::clone(&board),
            traces: Traces::default(),
        };
        let stop = CancellationToken::new();
        let mut dispatcher = JoinSet::new();
        let runs = Dispatcher::new(parts, self.network.clone()).run(stop.clone());
        dispatcher.spawn(runs);
        let ids = Arc::new(ids);
        let tasks = JoinSet::new();
        Ok(Life { store, stepper, clock, ids, table, board, stop, dispatcher, tasks })
    }
}

/// A relay that runs.
pub(super) struct Life {
    pub(super) store: Arc<EmbeddedStore>,
    pub(super) stepper: Stepper,
    pub(super) clock: Arc<SystemClock>,
    pub(super) ids: Arc<WebhookIds>,
    pub(super) table: watch::Sender<Arc<RoutingTable>>,
    board: Arc<Board>,
    pub(super) stop: CancellationToken,
    pub(super) dispatcher: JoinSet<()>,
    /// Requests and operators.
    pub(super) tasks: JoinSet<()>,
}

impl Life {
    /// What broke, if anything did.
    pub(super) fn broken(&mut self) -> Option<String> {
        let ended = self.tasks.try_join_next().or_else(|| self.dispatcher.try_join_next());
        ended.and_then(Result::err).map(|error| error.to_string())
    }

    /// A lane that does not what it may, although something is due: by now somebody must have told it.
    pub(super) fn asleep(&self) -> Option<String> {
        // The runtime's time goes by milliseconds, of which it waits for the next one.
        let now = self.clock.now().minus(Duration::from_millis(2));
        let lanes = self.board.all();
        let mut asleep = lanes.into_iter().filter(|(target, status)| {
            let may = match status.state.may() {
                May::Attempts => true,
                May::Probe(at) => at <= now,
                May::Nothing => false,
            };
            let is_held = status.held_until.is_some_and(|until| until > now);
            may && !is_held && self.store.lane(target).is_idle(now)
        });
        asleep.next().map(|(target, status)| format!("{target} sleeps: {status:?}"))
    }

    /// A webhook as ingress makes it.
    pub(super) fn webhook(&self, body: &Bytes, targets: &[Arc<str>]) -> Webhook {
        let now = self.clock.now();
        let digest = Sha256::digest(body).into();
        Webhook {
            id: self.ids.next(now, 7),
            received_at: now,
            source: "aryeo".into(),
            path: "/webhooks/aryeo".into(),
            peer: Some("192.0.2.1".into()),
            secret: "env:SECRET".into(),
            table: [9; 8],
            activity: Some("ORDER_CREATED".into()),
            activity_id: true,
            resource: Resource { object: Some("ORDER".into()), id: Some("o1".into()) },
            duplicate_key: DuplicateKey::new("aryeo", "/webhooks/aryeo", &digest),
            headers: Vec::new(),
            body: body.clone(),
            deliveries: targets.iter().map(delivery_to).collect(),
        }
    }
}

/// A delivery as routing makes it.
pub(super) fn delivery_to(target: &Arc<str>) -> NewDelivery {
    NewDelivery {
        target: Arc::clone(target),
        headers: vec![("x-route".parse().unwrap(), "all".parse().unwrap())],
        routes: vec!["all".into()],
    }
}

/// What a sender hears.
#[derive(Debug)]
pub(super) enum Heard {
    Committed(Result<(), CommitError>),
    Duplicate(WebhookId),
}

/// A request, as ingress has it behind the signature.
pub(super) async fn post(store: &EmbeddedStore, webhook: Webhook) -> Heard {
    match store.claim(webhook.duplicate_key, DuplicateWindows::default()).await {
        Claim::Duplicate(first) => Heard::Duplicate(first),
        Claim::First(claimed) => Heard::Committed(store.commit(webhook, claimed).await),
    }
}

pub(super) fn table(targets: Vec<Target>) -> Arc<RoutingTable> {
    Arc::new(RoutingTable::new(Rules { targets, ..Rules::default() }))
}

/// A target as the file has it.
pub(super) fn target(name: &str, random: &mut fastrand::Rng) -> Target {
    use crate::domain::retry::RetrySchedule;
    let of = |values: &[u64], random: &mut fastrand::Rng| values[random.usize(..values.len())];
    Target {
        name: name.into(),
        url: format!("http://{name}.test/hook").parse().unwrap(),
        sign: crate::domain::signature::Signing::None,
        headers: Vec::new(),
        pointers: crate::domain::pointer::Pointers::default(),
        forward_headers: Vec::new(),
        timeout: Duration::from_secs(10),
        retry: RetrySchedule {
            first: Duration::from_secs(1),
            max: Duration::from_secs(of(&[10, 300, 3600], random)),
            keep_for: Duration::from_secs(of(&[600, 6 * 3600, 72 * 3600], random)),
            give_up_on: vec![410],
        },
        concurrency: usize::try_from(of(&[1, 2, 16], random)).unwrap(),
        rate_limit: None,
        backlog_limit: match random.u8(..8) {
            0 => BacklogLimit::Bytes(4_000),
            _ => BacklogLimit::default(),
        },
        paused: false,
        tls: crate::domain::target::TargetTls::default(),
    }
}
