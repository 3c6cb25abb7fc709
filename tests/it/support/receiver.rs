//! A target that does what a script says and remembers what it got.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;

use super::routes::target_secret;
use super::sender::sign;
use super::{AUTHORITY, eventually};

/// Where all targets live.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

/// One request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// 1 for the first.
    pub(crate) number: usize,
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) version: Version,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The client showed a certificate that we trust.
    pub(crate) client_certificate: bool,
}

impl Received {
    /// All lines of a header.
    pub(crate) fn lines(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(other, _)| other == name);
        lines.map(|(_, value)| value.as_str()).collect()
    }

    /// A header that is there at most once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.lines(name);
        assert!(lines.len() <= 1, "{name} more than once: {lines:?}");
        lines.first().copied()
    }

    #[track_caller]
    pub(crate) fn webhook_id(&self) -> &str {
        self.header("relay-webhook-id").expect("a delivery says its id")
    }

    #[track_caller]
    pub(crate) fn attempt(&self) -> u32 {
        self.header("relay-attempt").and_then(|text| text.parse().ok()).expect("an attempt")
    }

    /// Exactly one signature, of exactly these bytes, with the target's own secret.
    #[track_caller]
    pub(crate) fn assert_signed_for(&self, target: &str) {
        assert_eq!(self.lines("signature"), [sign(target_secret(target), &self.body)]);
    }
}

/// What a target does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Answers at once.
    Status(u16),
    /// Answers 200 with a body.
    Body(Vec<u8>),
    /// Answers with headers.
    With(u16, Vec<(&'static str, String)>),
    /// Answers later.
    After(Duration, u16),
    /// Never answers.
    Hang,
    /// Answers 200 and a body without an end, a piece each time this passes.
    Endless(Duration),
    /// Resets the connection.
    Reset,
}

type Script = Box<dyn FnMut(&Received) -> Reply + Send>;

/// How a target listens.
#[derive(Clone, Default)]
pub(crate) struct Options {
    tls: Option<Arc<ServerConfig>>,
    forget: bool,
}

impl Options {
    /// HTTPS with a certificate of the tests' authority.
    pub(crate) fn tls(mut self, protocols: &[&str], ask_client: bool) -> Self {
        self.tls = Some(AUTHORITY.server_config(protocols, ask_client));
        self
    }

    /// Only counts: the script keeps what it needs.
    pub(crate) fn forgetful(mut self) -> Self {
        self.forget = true;
        self
    }

    pub(crate) fn start(self, script: impl FnMut(&Received) -> Reply + Send + 'static) -> Receiver {
        let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            options: self,
            script: Mutex::new(Box::new(script)),
            state: Mutex::default(),
        });
        let receiver = Receiver { address, inner, up: CancellationToken::new() };
        receiver.serve(listener);
        receiver
    }
}

struct Inner {
    options: Options,
    script: Mutex<Script>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    count: usize,
    connections: usize,
    open: usize,
    received: Vec<Received>,
}

/// A running target; it goes away when dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    inner: Arc<Inner>,
    up: CancellationToken,
}

impl Receiver {
    /// Plain HTTP, by a script.
    pub(crate) fn start(script: impl FnMut(&Received) -> Reply + Send + 'static) -> Self {
        Options::default().start(script)
    }

    /// Takes everything.
    pub(crate) fn willing() -> Self {
        Self::start(|_| Reply::Status(200))
    }

    /// Takes nothing until it is told to.
    pub(crate) fn unwilling() -> Self {
        Self::start(|_| Reply::Status(503))
    }

    /// Takes everything from now on.
    pub(crate) fn take_all(&self) {
        self.set(|_| Reply::Status(200));
    }

    /// Where to send to.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.inner.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/hooks?tenant=7", self.address)
    }

    /// Closes the port and every connection.
    pub(crate) fn stop(&self) {
        self.up.cancel();
    }

    /// Listens again on the same port.
    pub(crate) fn start_again(&mut self) {
        self.up = CancellationToken::new();
        let listener = eventually("the target's port is free", || {
            RUNTIME.block_on(TcpListener::bind(self.address)).map_err(|error| error.to_string())
        });
        self.serve(listener);
    }

    /// From now on another script.
    pub(crate) fn set(&self, script: impl FnMut(&Received) -> Reply + Send + 'static) {
        *self.inner.script.lock().unwrap() = Box::new(script);
    }

    /// Everything that came in, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.inner.state.lock().unwrap().received.clone()
    }

    /// How many requests came in.
    pub(crate) fn count(&self) -> usize {
        self.inner.state.lock().unwrap().count
    }

    /// How many connections were opened.
    pub(crate) fn connections(&self) -> usize {
        self.inner.state.lock().unwrap().connections
    }

    /// How many connections are open now.
    pub(crate) fn open(&self) -> usize {
        self.inner.state.lock().unwrap().open
    }

    /// Waits for this many requests; all that came in.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} requests arrive"), || match self.count() {
            enough if enough >= count => Ok(()),
            fewer => Err(format!("{fewer} arrived")),
        });
        self.received()
    }

    fn serve(&self, listener: TcpListener) {
        let (inner, up) = (Arc::clone(&self.inner), self.up.clone());
        RUNTIME.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = up.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                {
                    let mut state = inner.state.lock().unwrap();
                    state.connections += 1;
                    state.open += 1;
                }
                let (inner, up) = (Arc::clone(&inner), up.clone());
                RUNTIME.spawn(async move {
                    tokio::select! {
                        () = up.cancelled() => {}
                        () = Arc::clone(&inner).connection(stream) => {}
                    }
                    inner.state.lock().unwrap().open -= 1;
                });
            }
        });
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.up.cancel();
    }
}

impl Inner {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        // Whatever ends it early ends it with a reset.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        stream.set_nodelay(true).unwrap();
        match self.options.tls.clone() {
            None => self.http(stream, false).await,
            Some(config) => {
                let accepted = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
                if let Ok(stream) = accepted {
                    let shown = stream.get_ref().1.peer_certificates().is_some();
                    self.http(stream, shown).await;
                }
            }
        }
    }

    async fn http(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        client_certificate: bool,
    ) {
        let service = service_fn(move |request| {
            let inner = Arc::clone(&self);
            async move { inner.answer(request, client_certificate).await }
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        // How it ended is the relay's matter.
        let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        client_certificate: bool,
    ) -> Result<Response<ReplyBody>, String> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes().to_vec();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
        let reply = {
            let mut script = self.script.lock().unwrap();
            let mut state = self.state.lock().unwrap();
            state.count += 1;
            let received = Received {
                number: state.count,
                at: Instant::now(),
                method: head.method.to_string(),
                path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                version: head.version,
                headers: head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
                body,
                client_certificate,
            };
            let reply = script(&received);
            if !self.options.forget {
                state.received.push(received);
            }
            reply
        };
        let mut response = Response::new(ReplyBody::Text(Some(Bytes::from_static(b"done"))));
        match reply {
            Reply::Status(status) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
            Reply::Body(bytes) => *response.body_mut() = ReplyBody::Text(Some(bytes.into())),
            Reply::With(status, headers) => {
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                for (name, value) in headers {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
            }
            Reply::After(delay, status) => {
                tokio::time::sleep(delay).await;
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
            }
            Reply::Hang => std::future::pending().await,
            Reply::Endless(every) => {
                *response.body_mut() = ReplyBody::Endless(tokio::time::interval(every));
            }
            Reply::Reset => return Err("reset".to_owned()),
        }
        Ok(response)
    }
}

/// What a target answers with.
enum ReplyBody {
    Text(Option<Bytes>),
    Endless(Interval),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Self::Text(text) => text.take(),
            Self::Endless(interval) => {
                ready!(interval.poll_tick(context));
                Some(Bytes::from_static(&[b'x'; 4096]))
            }
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }
}
