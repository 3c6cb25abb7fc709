//! Acts as a target: takes deliveries in, verifies them and answers as told.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::signature::{Verification, VerifyError};
use crate::domain::time::{Clock, Timestamp};
use crate::net::address::BindError;
use crate::net::body;
use crate::net::listener::{
    Backlog, ListenerLimits, ListenerObserver, PeerInfo, Proxies, Server, bind,
};

/// More than any webhook has.
const BODY_MAX: usize = 64 * 1024 * 1024;

const BODY_WAIT: Duration = Duration::from_secs(60);

fn limits() -> ListenerLimits {
    ListenerLimits {
        connections_max: 1024,
        connections_per_address_max: 1024,
        proxies: Proxies::default(),
        requests_per_connection_max: u32::MAX,
        handshake_timeout: Duration::from_secs(10),
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(600),
    }
}

/// How a receiver behaves.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// How requests are verified; all are taken without.
    pub verification: Option<Verification>,
    /// The answer to what was taken.
    pub status: StatusCode,
    /// How long an answer is held back.
    pub delay: Duration,
    /// So many requests are answered 503 before any is taken.
    pub fail_first: u64,
    /// While it is set, all are answered 503.
    pub is_down: Arc<AtomicBool>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            verification: None,
            status: StatusCode::OK,
            delay: Duration::ZERO,
            fail_first: 0,
            is_down: Arc::default(),
        }
    }
}

/// Whether a request was signed by who has the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was not.
    Failed(VerifyError),
    /// Nobody asked.
    NotAsked,
    /// It was.
    Verified,
}

/// A request, as received.
#[derive(Debug, Clone)]
pub struct Received {
    /// When it was complete.
    pub at: Timestamp,
    /// From where.
    pub peer: SocketAddr,
    /// The path, with its query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The exact bytes.
    pub body: Bytes,
    /// Whether it was signed as it should be.
    pub proof: Proof,
    /// What it is answered. Only a 2xx means that it was taken.
    pub status: StatusCode,
}

impl Received {
    /// The relay's id of the webhook.
    pub fn webhook_id(&self) -> Option<&str> {
        self.header("relay-webhook-id")
    }

    /// The activity, as the relay read it.
    pub fn activity(&self) -> Option<&str> {
        self.header("relay-activity")
    }

    /// What it is about, `<type>/<id>`, as the relay read it.
    pub fn resource(&self) -> Option<&str> {
        self.header("relay-resource")
    }

    /// Which attempt of the relay it is.
    pub fn attempt(&self) -> Option<u32> {
        self.header("relay-attempt").and_then(|text| text.parse().ok())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A listening socket that is about to act as a target.
#[derive(Debug)]
pub struct Receiver {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    behaviour: Behaviour,
}

impl Receiver {
    /// Binds the address, port 0 for any. Call it within a tokio runtime.
    pub fn bind(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        behaviour: Behaviour,
    ) -> Result<Self, BindError> {
        Ok(Self { listener: bind(address)?, tls, behaviour })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes requests on `tracker` until `stop` is cancelled, and finishes those it has.
    ///
    /// `hear` is called for each request when it is complete, before it is answered.
    pub fn serve(
        self,
        tracker: &TaskTracker,
        stop: &CancellationToken,
        clock: Arc<dyn Clock>,
        hear: impl Fn(&Received) + Send + Sync + 'static,
    ) {
        let server = Server {
            listener: self.listener,
            backlog: Backlog::TakeIn,
            tls: self.tls.map(|config| watch::channel(config).1),
            limits: limits(),
            observer: Arc::new(Quiet),
            stop_accepting: stop.clone(),
            drain: stop.clone(),
            tracker: tracker.clone(),
        };
        let behaviour = self.behaviour;
        let target = Arc::new(Target { behaviour, clock, hear, seen: AtomicU64::new(0) });
        let service = move |request, peer: PeerInfo| {
            let target = Arc::clone(&target);
            async move { target.answer(request, peer.addr).await }
        };
        drop(tracker.spawn(server.serve(service)));
    }
}

struct Quiet;

impl ListenerObserver for Quiet {}

struct Target<H> {
    behaviour: Behaviour,
    clock: Arc<dyn Clock>,
    hear: H,
    seen: AtomicU64,
}

impl<H: Fn(&Received)> Target<H> {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        if request.method() != Method::POST {
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let (head, mut incoming) = request.into_parts();
        let deadline = Instant::now() + BODY_WAIT;
        let room = &mut body::NoSharing;
        let body = match body::read(&mut incoming, head.version, BODY_MAX, deadline, room).await {
            Ok(body) => body,
            Err(body::BodyError::TooLarge { .. }) => {
                return response(StatusCode::PAYLOAD_TOO_LARGE);
            }
            Err(_) => return response(StatusCode::BAD_REQUEST),
        };
        let at = self.clock.now();
        let proof = match &self.behaviour.verification {
            None => Proof::NotAsked,
            Some(verification) => match verification.verify(&head.headers, &body, at) {
                Ok(_) => Proof::Verified,
                Err(error) => Proof::Failed(error),
            },
        };
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let status = self.status(proof);
        let received = Received { at, peer, path, headers: head.headers, body, proof, status };
        (self.hear)(&received);
        drop(received);
        sleep(self.behaviour.delay).await;
        response(status)
    }

    fn status(&self, proof: Proof) -> StatusCode {
        // Failing comes first, like a target that is down: it can't tell who asks.
        if self.seen.fetch_add(1, Ordering::Relaxed) < self.behaviour.fail_first
            || self.behaviour.is_down.load(Ordering::Relaxed)
        {
            StatusCode::SERVICE_UNAVAILABLE
        } else if matches!(proof, Proof::Failed(_)) {
            StatusCode::UNAUTHORIZED
        } else {
            self.behaviour.status
        }
    }
}

fn response(status: StatusCode) -> Response<Full<Bytes>> {
    let has_body = status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED;
    let text = if has_body {
        format!("{{\"message\":\"{}\"}}", status.canonical_reason().unwrap_or("?"))
    } else {
        String::new()
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    if has_body {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::clock::SystemClock;
    use crate::cli::certificate::{LOCAL_NAMES, make};
    use crate::cli::sample;
    use crate::cli::sender::{Sender, Trust};
    use crate::domain::signature::{SIGNATURE, Scheme, Secret};
    use crate::net::tls::{Names, load_certificate, serve_one};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn what_the_sender_sends_arrives_verified_over_tls_after_failing_first() {
        let clock = Arc::new(SystemClock::start());
        let made = make(&LOCAL_NAMES.map(str::to_owned), clock.now()).unwrap();
        let called = Names { certificate: "tls.crt", key: "tls.key" };
        let (certificate, key) = (made.certificate.as_bytes(), made.key.as_bytes());
        let now = i64::try_from(clock.now().as_secs()).unwrap();
        let tls = load_certificate(certificate, key, called, now).unwrap();
        let tls = serve_one(tls).unwrap();
        let sample = sample::recorded().swap_remove(0);
        let verification = Verification {
            scheme: Scheme::Aryeo,
            secrets: vec![Secret::new("sample", sample.secret.as_bytes()).unwrap()],
            header: SIGNATURE,
            tolerance: Duration::ZERO,
        };
        let behaviour =
            Behaviour { verification: Some(verification), fail_first: 1, ..Behaviour::default() };
        let address = "127.0.0.1:0".parse().unwrap();
        let receiver = Receiver::bind(address, Some(tls), behaviour).unwrap();
        let url = format!("https://localhost:{}/in?x", receiver.address().unwrap().port());
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let (events, mut heard) = mpsc::channel(10);
        receiver.serve(&tracker, &stop, clock, move |received| {
            events.try_send(received.clone()).unwrap();
        });

        let sender = Sender::new(url.parse().unwrap(), Trust::Authority(certificate)).unwrap();
        let proof = [(SIGNATURE, sample.signature.clone())];
        let wrong = [(SIGNATURE, HeaderValue::from_static("00"))];
        let mut statuses = Vec::new();
        for proof in [&proof, &proof, &wrong] {
            let attempt = sender.post(&sample.body, proof).await;
            statuses.push(attempt.result.unwrap().status.as_u16());
        }
        assert_eq!(statuses, [503, 200, 401]);
        for (proof, status) in [
            (Proof::Verified, 503),
            (Proof::Verified, 200),
            (Proof::Failed(VerifyError::Malformed), 401),
        ] {
            let received = heard.recv().await.unwrap();
            assert_eq!((received.proof, received.status.as_u16()), (proof, status));
            assert_eq!(received.body, sample.body);
            assert_eq!((&*received.path, received.attempt()), ("/in?x", None));
        }

        stop.cancel();
        tracker.close();
        tracker.wait().await;
    }
}
