//! Targets with moods, and what each was sent.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::time;
use crate::delivery::client::{Network, Outgoing, SendRequest};
use crate::domain::target::Target;
use crate::net::client::{Answer, SendFailure};

/// How a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mood {
    #[default]
    Well,
    Slow(Duration),
    Failing,
    Refusing,
    Hanging,
    /// It takes the webhook, and breaks before it says so.
    Breaking,
    Busy(u32),
    Gone,
}

/// One exchange that ended as far as the target is concerned.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) target: Arc<str>,
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) life: u32,
    /// When it began.
    pub(super) begun: Duration,
    /// The status that was answered, if it was.
    pub(super) status: Option<u16>,
}

/// What the targets know.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) moods: BTreeMap<Arc<str>, Mood>,
    pub(super) exchanges: Vec<Exchange>,
    /// 2xx that were answered, by webhook and target.
    pub(super) taken: HashMap<(String, Arc<str>), u32>,
    pub(super) given_up: HashMap<(String, Arc<str>), u32>,
    pub(super) life: u32,
    /// Answers that are ready, until somebody says whose turn it is: what wakes tasks has no order of its
    /// own that a seed could give again.
    ready: BTreeMap<(u32, Arc<str>, String), oneshot::Sender<()>>,
    /// Lives up to this one send nothing any more.
    pub(super) dead: u32,
}

/// All targets.
#[derive(Debug, Clone, Default)]
pub(super) struct Targets(Arc<Mutex<Known>>);

impl Targets {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap()
    }

    /// Which answers are ready.
    pub(super) fn ready(&self) -> usize {
        self.known().ready.len()
    }

    /// Lets one of them go.
    pub(super) fn answer(&self, nth: usize) {
        let mut known = self.known();
        let key = known.ready.keys().nth(nth).cloned();
        // Who waited may be dead.
        key.and_then(|key| known.ready.remove(&key)).map(|go| go.send(()));
    }

    pub(super) fn set_mood(&self, target: &str, mood: Mood) {
        self.known().moods.insert(target.into(), mood);
    }

    /// How often a target answered 2xx to a webhook, by the id that targets know.
    pub(super) fn taken(&self, known_as: &str, target: &str) -> u32 {
        let key = (known_as.to_owned(), target.into());
        self.known().taken.get(&key).copied().unwrap_or(0)
    }

    /// Whether a target said that it does not want it.
    pub(super) fn gave_up(&self, known_as: &str, target: &str) -> bool {
        self.known().given_up.contains_key(&(known_as.to_owned(), target.into()))
    }
}

impl Network for Targets {
    type Client = Client;

    fn client(&self, target: &Target) -> Client {
        let life = self.known().life;
        Client { targets: self.clone(), target: Arc::clone(&target.name), life }
    }
}

/// Sends to one of them.
#[derive(Debug)]
pub(super) struct Client {
    targets: Targets,
    target: Arc<str>,
    life: u32,
}

impl Client {
    /// Goes no further where its relay is dead.
    async fn lives(&self) {
        if self.life <= self.targets.known().dead {
            std::future::pending::<()>().await;
        }
    }

    async fn note(&self, request: Request, status: Option<u16>) {
        self.lives().await;
        let (go, goes) = oneshot::channel();
        let key = (self.life, Arc::clone(&self.target), request.id.clone());
        self.targets.known().ready.insert(key, go);
        goes.await.unwrap();
        self.lives().await;
        let mut known = self.targets.known();
        let Request { id, body, life, begun } = request;
        let target = Arc::clone(&self.target);
        let key = (id.clone(), Arc::clone(&target));
        match status {
            Some(200..300) => *known.taken.entry(key).or_default() += 1,
            Some(410) => *known.given_up.entry(key).or_default() += 1,
            _ => {}
        }
        known.exchanges.push(Exchange { target, id, body, life, begun, status });
    }
}

/// A request as it arrived.
struct Request {
    id: String,
    body: Bytes,
    life: u32,
    begun: Duration,
}

impl SendRequest for Client {
    async fn send(&self, request: Outgoing, deadline: Instant) -> Result<Answer, SendFailure> {
        self.lives().await;
        let (parts, body) = request.into_parts();
        let id = parts.headers["relay-webhook-id"].to_str().unwrap().to_owned();
        let body = body.collect().await.unwrap().to_bytes();
        let mood = self.targets.known().moods.get(&self.target).copied().unwrap_or_default();
        let request = Request { id, body, life: self.life, begun: time::elapsed() };
        let mut headers = HeaderMap::new();
        let failure = match mood {
            Mood::Refusing => Some(SendFailure::Refused("nobody listens".into())),
            Mood::Breaking => Some(SendFailure::Reset("broken".into())),
            Mood::Hanging => {
                sleep_until(deadline).await;
                Some(SendFailure::Timeout)
            }
            _ => None,
        };
        if let Some(failure) = failure {
            self.note(request, None).await;
            return Err(failure);
        }
        let status = match mood {
            Mood::Slow(wait) => {
                sleep(wait).await;
                204
            }
            Mood::Failing => 500,
            Mood::Gone => 410,
            Mood::Busy(secs) => {
                headers.insert("retry-after", HeaderValue::from(secs));
                429
            }
            _ => 200,
        };
        self.note(request, Some(status)).await;
        let status = StatusCode::from_u16(status).unwrap();
        Ok(Answer { status, headers, excerpt: Bytes::from_static(b"so it is") })
    }
}
