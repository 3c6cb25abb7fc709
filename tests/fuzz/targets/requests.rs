//! Whatever comes on a connection, over HTTP/1.1 or HTTP/2, it ends, nothing is stored that nobody has
//! proven to be his, and nobody is told that something is stored which is not.
//!
//! The input: a byte that chooses how the rest is written, see [`How`], then what is written. All of it,
//! from the connection's first byte to the answer, is the relay's own, but for the socket and the store.
//! Time is simulated: it passes when there is nothing else to do.
#![no_main]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aryeo_relay::config::{self, Environment, Secrets};
use aryeo_relay::domain::answer::Answer;
use aryeo_relay::domain::client::Networks;
use aryeo_relay::domain::delivery::{Cause, Settlement};
use aryeo_relay::domain::outcome::Attempt;
use aryeo_relay::domain::route::RoutingTable;
use aryeo_relay::domain::source::DuplicateWindows;
use aryeo_relay::domain::time::{Clock, Timestamp};
use aryeo_relay::domain::webhook::{DuplicateKey, Webhook, WebhookId, WebhookIds};
use aryeo_relay::ingress::{Ingress, IngressLimits, Setting};
use aryeo_relay::net::listener::{ListenerLimits, ListenerObserver, PeerInfo, Proxies, Unreadable};
use aryeo_relay::net::memory::MemoryServer;
use aryeo_relay::store::claims::{Claim, Claimed, Claims, Recent};
use aryeo_relay::store::{
    CommitError, Health, LaneCounts, Lease, Pick, Pulse, Relieved, Sizes, Store,
};
use aryeo_relay::telemetry::metrics::{Metrics, SharedMetrics};
use aryeo_relay::telemetry::traces::Traces;
use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What is signed is beyond mutations, so one source takes whatever comes with a token.
const ROUTES: &str = r#"
sources:
  aryeo:
    path: /webhooks/aryeo
    verify: { scheme: aryeo, secrets: [{ env: SIGNED }] }
    body_limit: 8kB
  token:
    path: /t/{activity}
    verify: { scheme: none }
    require_headers: { X-Token: { env: TOKEN } }
    body_limit: 4kB
targets:
  crm: { url: "http://crm/", sign: { scheme: none } }
routes:
  - { name: all, activity: "*", to: [crm] }
"#;

const SIGNED: &str = "abc";
const TOKEN: &str = "t";

/// No connection lasts as long, whoever is at the other end.
const LONGEST: Duration = Duration::from_secs(3600);

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let how = How::chosen(*choice);
    let threads = threads();
    let ended = serve(how, rest);
    ended.check(how);
    if how.twice {
        let again = serve(how, rest);
        assert_eq!(again.bodies(), ended.bodies(), "it depends on something else");
        assert_eq!(again.statuses(), ended.statuses(), "it depends on something else");
    }
    assert_eq!(self::threads(), threads, "a thread is left behind");
});

/// How the input is written.
#[derive(Debug, Clone, Copy)]
struct How {
    /// Behind a preface, so that it is frames.
    http2: bool,
    /// In pieces of so many bytes, the first of them at least.
    pieces: usize,
    ending: Ending,
    /// To see whether the same comes of it.
    twice: bool,
    /// The relay stops meanwhile.
    drains: bool,
}

/// What the client does when all is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    /// Says that nothing follows, and reads.
    Closes,
    /// Reads for as long as it is let to.
    Stays,
    /// Is gone at once.
    HangsUp,
}

impl How {
    fn chosen(choice: u8) -> Self {
        Self {
            http2: choice & 0x80 != 0,
            pieces: [usize::MAX, 1, 16, 1024][usize::from(choice & 3)],
            ending: match choice >> 2 & 3 {
                0 | 1 => Ending::Closes,
                2 => Ending::Stays,
                _ => Ending::HangsUp,
            },
            twice: choice & 0x10 != 0,
            drains: choice & 0x20 != 0,
        }
    }
}

/// What came of it.
struct Ended {
    committed: Vec<Webhook>,
    /// Of each request that there was: its method, its path and its headers.
    requests: Vec<(Method, String, HeaderMap)>,
    answers: Vec<u8>,
}

impl Ended {
    fn check(&self, how: How) {
        for webhook in &self.committed {
            assert!(self.requests.iter().any(|request| proves(request, webhook)), "{webhook:?}");
        }
        let ids: Vec<String> =
            self.committed.iter().map(|webhook| webhook.id.to_string()).collect();
        let told = told(&self.answers);
        assert!(
            told.iter().all(|id| ids.contains(id)),
            "{told:?} are said to be stored, {ids:?} are"
        );
        // Over HTTP/2 an answer may be cut into frames, or its stream be reset by the client.
        if !how.http2 && how.ending != Ending::HangsUp {
            assert!(
                ids.iter().all(|id| told.contains(id)),
                "only {told:?} of {ids:?} are said to be stored"
            );
        }
    }

    fn bodies(&self) -> Vec<&[u8]> {
        self.committed.iter().map(|webhook| &webhook.body[..]).collect()
    }

    /// The first lines of all answers over HTTP/1.1: their times and ids are others each time.
    fn statuses(&self) -> Vec<&[u8]> {
        let lines = self.answers.split(|byte| *byte == b'\n');
        lines.filter(|line| line.starts_with(b"HTTP/1.1 ")).collect()
    }
}

/// Whether a request shows what its source demands.
fn proves((method, path, headers): &(Method, String, HeaderMap), webhook: &Webhook) -> bool {
    let is_proven = if path.starts_with("/t/") {
        headers.get_all("x-token").iter().any(|value| value == TOKEN)
    } else {
        let signature = hmac(SIGNED.as_bytes(), &webhook.body);
        headers.get_all("signature").iter().any(|value| {
            let mut parts = value.as_bytes().split(|byte| *byte == b',');
            parts.any(|part| part.trim_ascii().eq_ignore_ascii_case(signature.as_bytes()))
        })
    };
    is_proven && method == Method::POST && *path == *webhook.path
}

/// The ids in the answers.
fn told(answers: &[u8]) -> Vec<String> {
    const BEFORE: &[u8] = br#""webhook_id":""#;
    let places = answers.windows(BEFORE.len()).enumerate().filter(|(_, bytes)| *bytes == BEFORE);
    let texts = places.filter_map(|(at, _)| answers.get(at + BEFORE.len()..at + BEFORE.len() + 36));
    let ids = texts.filter_map(|text| WebhookId::parse(std::str::from_utf8(text).ok()?));
    ids.map(|id| id.to_string()).collect()
}

/// Writes all of it to a relay of its own, and waits until both have come to their ends.
fn serve(how: How, bytes: &[u8]) -> Ended {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let input = if how.http2 { [HTTP2_PREFACE, bytes].concat() } else { bytes.to_vec() };
    runtime.block_on(async {
        let relay = Relay::new();
        let (client, server) = duplex(16 * 1024);
        let connection = relay.connection(server);
        let written = write(client, how, &input, &relay.drain);
        let ended = timeout(LONGEST, async { tokio::join!(connection, written) }).await;
        let ((), answers) = ended.expect("a connection has no end");
        relay.tracker.close();
        timeout(LONGEST, relay.tracker.wait()).await.expect("a task has no end");
        Ended {
            committed: relay.store.committed.lock().unwrap().clone(),
            requests: relay.requests.lock().unwrap().clone(),
            answers,
        }
    })
}

/// Answers all that was read.
async fn write(
    client: DuplexStream,
    how: How,
    mut bytes: &[u8],
    drain: &CancellationToken,
) -> Vec<u8> {
    let (mut from, mut into) = split(client);
    let writes = async {
        let mut pieces = 0;
        while !bytes.is_empty() {
            // A few thousand small ones are enough.
            let length = if pieces < 2_000 { how.pieces.min(bytes.len()) } else { bytes.len() };
            let (piece, rest) = bytes.split_at(length);
            // The relay may have closed it.
            if into.write_all(piece).await.is_err() {
                break;
            }
            (bytes, pieces) = (rest, pieces + 1);
            if how.drains && bytes.len() < 256 {
                drain.cancel();
            }
            if !bytes.is_empty() {
                // All that can be done with it is done.
                sleep(Duration::from_millis(1)).await;
            }
        }
        if how.ending == Ending::Closes {
            if how.http2 {
                // There that ends all streams, so that nothing would be answered.
                sleep(Duration::from_millis(50)).await;
            }
            // It may be closed already.
            let _closed = into.shutdown().await;
        }
        into
    };
    let reads = async {
        let mut answers = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            answers.extend_from_slice(&buffer[..read]);
        }
        answers
    };
    if how.ending == Ending::HangsUp {
        tokio::select! {
            biased;
            answers = reads => answers,
            _gone = writes => Vec::new(),
        }
    } else {
        tokio::join!(reads, writes).0
    }
}

/// A relay whose store is in memory.
struct Relay {
    ingress: Arc<Ingress<Memory>>,
    store: Arc<Memory>,
    requests: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
    tracker: TaskTracker,
    drain: CancellationToken,
}

static TABLE: LazyLock<Arc<RoutingTable>> = LazyLock::new(|| {
    let loaded =
        config::load_bytes(ROUTES.as_bytes(), Path::new("routes.yaml"), &Secret, Secrets::Resolve);
    Arc::new(loaded.unwrap().table)
});

static METRICS: LazyLock<SharedMetrics> = LazyLock::new(|| SharedMetrics::new(Metrics::default()));

impl Relay {
    fn new() -> Self {
        let claims = Claims::new(Known::default(), Arc::new(Standing));
        let store = Arc::new(Memory { claims, committed: Mutex::default() });
        let tracker = TaskTracker::new();
        let ingress = Ingress::new(Setting {
            store: Arc::clone(&store),
            tables: watch::Sender::new(Arc::clone(&TABLE)).subscribe(),
            clock: Arc::new(Standing),
            ids: Arc::new(WebhookIds::default()),
            metrics: Arc::clone(&METRICS),
            tracker: tracker.clone(),
            // So few that some inputs reach them.
            limits: IngressLimits {
                in_flight_max: 8,
                in_flight_bytes_max: 24 * 1024,
                ..IngressLimits::default()
            },
            trusted_proxies: Networks::default(),
            traces: Traces::default(),
        });
        Self { ingress, store, requests: Arc::default(), tracker, drain: CancellationToken::new() }
    }

    /// Serves one connection, as the relay does those that it accepts.
    async fn connection(&self, io: DuplexStream) {
        let server = MemoryServer {
            limits: ListenerLimits {
                connections_max: 1,
                connections_per_address_max: 1,
                proxies: Proxies::default(),
                requests_per_connection_max: 50,
                handshake_timeout: Duration::from_secs(10),
                header_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(60),
            },
            observer: Arc::new(Observer(Arc::clone(&self.ingress))),
            drain: self.drain.clone(),
            tracker: self.tracker.clone(),
        };
        let (ingress, requests) = (Arc::clone(&self.ingress), Arc::clone(&self.requests));
        let address = SocketAddr::from(([192, 0, 2, 7], 4711));
        let serve = server.serve(io, address, move |request, peer| {
            let ingress = Arc::clone(&ingress);
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            requests.lock().unwrap().push((method, path, request.headers().clone()));
            async move { ingress.serve(request, Some(peer.addr), peer.certificate).await }
        });
        serve.await;
    }
}

struct Secret;

impl Environment for Secret {
    fn var(&self, name: &str) -> Option<String> {
        Some(if name == "TOKEN" { TOKEN } else { SIGNED }.to_owned())
    }
}

struct Observer(Arc<Ingress<Memory>>);

impl ListenerObserver for Observer {
    fn unreadable(&self, what: Unreadable, peer: &PeerInfo) {
        let answer = match what {
            Unreadable::Malformed => Answer::BadRequest,
            Unreadable::TooLarge => Answer::HeadersTooLarge,
        };
        self.0.unreadable(answer, peer.addr);
    }
}

/// A clock that stands.
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

/// Keeps webhooks, after a moment.
struct Memory {
    claims: Claims<Known>,
    committed: Mutex<Vec<Webhook>>,
}

#[derive(Default)]
struct Known(Vec<(DuplicateKey, WebhookId, bool)>);

impl Recent for Known {
    fn find(&self, key: &DuplicateKey) -> Option<(WebhookId, bool)> {
        let found = self.0.iter().find(|(known, ..)| known == key);
        found.map(|(_, id, activity_id)| (*id, *activity_id))
    }

    fn insert(&mut self, key: DuplicateKey, id: WebhookId, activity_id: bool) {
        self.0.push((key, id, activity_id));
    }
}

impl Store for Memory {
    async fn claim(&self, key: DuplicateKey, windows: DuplicateWindows) -> Claim {
        self.claims.claim(key, windows).await
    }

    async fn commit(&self, webhook: Webhook, claimed: Claimed) -> Result<(), CommitError> {
        sleep(Duration::from_millis(5)).await;
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
        0
    }

    async fn relieve(&self, _: &str, _: u64, _: usize) -> Relieved {
        Relieved::default()
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

    async fn close(&self) {}
}

/// As RFC 2104 has it, for a key no longer than a block.
fn hmac(key: &[u8], content: &[u8]) -> String {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(content);
    let outer = Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c));
    let tag = outer.chain_update(inner.finalize()).finalize();
    tag.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many this process has.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}
