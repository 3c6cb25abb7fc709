//! Requests to one target: pooled connections, one deadline, and failures told apart by type.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Extensions, HeaderMap, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::resolve::{self, CONNECT_SLICE, ResolveError, Resolver};
use super::stream::ReadAhead;
use super::{TrackedExecutor, body, causes, describe, tls};
use crate::domain::limit::{ANSWER_BYTES_MAX, ANSWER_EXCERPT_BYTES_MAX};

/// Shorter than the minute after which many servers and balancers close an idle connection.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// Head and read buffer of an HTTP/1.1 answer; hyper may overshoot it by one read.
const HTTP1_BUFFER_MAX: usize = 64 * 1024;

const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection that a firewall forgot is noticed by a ping, idle or not.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(15);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How a target is reached.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Needed for https, from [`tls::client_config`].
    pub tls: Option<Arc<ClientConfig>>,
    /// The name in the certificate and in SNI where it isn't the URL's host, from
    /// [`tls::server_name`].
    pub server_name: Option<ServerName<'static>>,
    /// How many idle connections are kept: the target's concurrency.
    pub idle_max: usize,
    /// Bounds resolving, connecting and the TLS handshake of a connection that no request waits
    /// for any more. The target's time-out is a good value.
    pub connect_timeout: Duration,
    /// Shared by all targets.
    pub resolver: Resolver,
}

/// What a target answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Any status: redirects are not followed.
    pub status: StatusCode,
    /// The headers as they came.
    pub headers: HeaderMap,
    /// The first [`ANSWER_EXCERPT_BYTES_MAX`] bytes of the body, not decompressed; all of it from
    /// [`fetch`](Client::fetch).
    pub excerpt: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SendFailure {
    /// The target's name doesn't resolve, or it doesn't accept connections.
    #[error("{0}")]
    Refused(String),
    /// Nothing complete before the deadline.
    #[error("no complete answer in time")]
    Timeout,
    /// No agreement on TLS: its certificate, ours, or the protocol.
    #[error("{0}")]
    Tls(String),
    /// The connection broke, or what came over it is not HTTP.
    #[error("{0}")]
    Reset(String),
    /// The answer is longer than [`ANSWER_BYTES_MAX`], or its headers are too large.
    #[error("the answer is too large")]
    AnswerTooLarge,
}

/// Sends requests to one target. Dropping it closes its idle connections.
#[derive(Debug)]
pub struct Client {
    inner: legacy::Client<Connector, Full<Bytes>>,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(settings: ClientSettings) -> Self {
        // Never waited for: connections end with the pool, which ends with the client.
        let inner = legacy::Client::builder(TrackedExecutor(TaskTracker::new()))
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(settings.idle_max)
            // Sent again only if nothing was written to a connection that was in use before.
            .retry_canceled_requests(true)
            .http1_max_buf_size(HTTP1_BUFFER_MAX)
            .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .http2_keep_alive_interval(HTTP2_PING_EVERY)
            .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .build(Connector(Arc::new(settings)));
        Self { inner }
    }

    /// Sends one request, whose URI is absolute, and reads the answer; all of it until `deadline`.
    ///
    /// At the deadline the connection is given up, unless it is shared with others by HTTP/2.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Answer, SendFailure> {
        let exchange = self.exchange(request, ANSWER_EXCERPT_BYTES_MAX);
        timeout_at(deadline, exchange).await.unwrap_or(Err(SendFailure::Timeout))
    }

    /// The same for who wants the answer itself: keeps the whole body, up to [`ANSWER_BYTES_MAX`].
    pub async fn fetch(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Answer, SendFailure> {
        let exchange = self.exchange(request, ANSWER_BYTES_MAX);
        timeout_at(deadline, exchange).await.unwrap_or(Err(SendFailure::Timeout))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        keep: usize,
    ) -> Result<Answer, SendFailure> {
        let response = self.inner.request(request).await.map_err(|error| {
            let mut extensions = Extensions::new();
            if let Some(connected) = error.connect_info() {
                connected.get_extras(&mut extensions);
            }
            classify(&error, extensions.get())
        })?;
        let (parts, mut body) = response.into_parts();
        let read = body::read_capped(&mut body, keep, ANSWER_BYTES_MAX)
            .await
            .map_err(|error| classify(&error, parts.extensions.get()))?;
        if read.overflow {
            return Err(SendFailure::AnswerTooLarge);
        }
        Ok(Answer { status: parts.status, headers: parts.headers, excerpt: read.excerpt })
    }
}

/// The first thing that went wrong with TLS on a connection.
///
/// In TLS 1.3 a target refuses our certificate after the handshake. HTTP/2 keeps only the text of
/// such an error, so it is taken down where it happens.
#[derive(Clone, Debug, Default)]
struct TlsFault(Arc<OnceLock<String>>);

impl TlsFault {
    fn note<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled
            && let Some(error) = tls_error(error)
        {
            self.0.get_or_init(|| error.to_string());
        }
        polled
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn classify(error: &(dyn Error + 'static), fault: Option<&TlsFault>) -> SendFailure {
    if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<ConnectError>()) {
        return error.failure();
    }
    if let Some(text) = fault.and_then(|fault| fault.0.get()) {
        return SendFailure::Tls(text.clone());
    }
    for cause in causes(error) {
        if let Some(error) = cause.downcast_ref::<hyper::Error>() {
            if error.is_parse_too_large() {
                return SendFailure::AnswerTooLarge;
            }
            if error.is_timeout() {
                return SendFailure::Timeout;
            }
        }
        if let Some(error) = cause.downcast_ref::<io::Error>().and_then(tls_error) {
            return SendFailure::Tls(error.to_string());
        }
    }
    SendFailure::Reset(describe(error))
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the URL has no host")]
    NoHost,
    #[error("https without TLS settings")]
    NoTls,
    #[error(transparent)]
    Name(#[from] tls::TlsError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("can't connect to {host}:{port}")]
    Connect { host: String, port: u16, source: io::Error },
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("not connected in time")]
    Timeout,
}

impl ConnectError {
    fn failure(&self) -> SendFailure {
        match self {
            Self::Timeout => SendFailure::Timeout,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                SendFailure::Timeout
            }
            Self::NoHost | Self::Resolve(_) | Self::Connect { .. } => {
                SendFailure::Refused(describe(self))
            }
            Self::NoTls | Self::Name(_) => SendFailure::Tls(describe(self)),
            // A peer that hangs up in the handshake is not a disagreement about TLS.
            Self::Handshake(error) => match tls_error(error) {
                Some(error) => SendFailure::Tls(error.to_string()),
                None => SendFailure::Reset(describe(self)),
            },
        }
    }
}

#[derive(Clone, Debug)]
struct Connector(Arc<ClientSettings>);

impl tower_service::Service<Uri> for Connector {
    type Response = Wire;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let settings = Arc::clone(&self.0);
        Box::pin(async move {
            timeout(settings.connect_timeout, connect(&settings, &uri))
                .await
                .unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

async fn connect(settings: &ClientSettings, uri: &Uri) -> Result<Wire, ConnectError> {
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let host = uri.host().ok_or(ConnectError::NoHost)?;
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let addresses = settings.resolver.resolve(host, port).await?;
    let stream = resolve::connect(&addresses, CONNECT_SLICE)
        .await
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|source| ConnectError::Connect { host: host.to_owned(), port, source })?;
    if !secure {
        return Ok(Wire::Plain(TokioIo::new(stream)));
    }
    let config = settings.tls.clone().ok_or(ConnectError::NoTls)?;
    let name = match &settings.server_name {
        Some(name) => name.clone(),
        None => tls::server_name(host)?,
    };
    let stream = TlsConnector::from(config)
        .connect(name, ReadAhead::new(stream))
        .await
        .map_err(ConnectError::Handshake)?;
    Ok(Wire::Tls { stream: Box::new(TokioIo::new(stream)), fault: TlsFault::default() })
}

/// A connection to a target.
#[derive(Debug)]
enum Wire {
    Plain(TokioIo<TcpStream>),
    Tls { stream: Box<TokioIo<TlsStream<ReadAhead<TcpStream>>>>, fault: TlsFault },
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain(_) => Connected::new(),
            Self::Tls { stream, fault } => {
                let connected = Connected::new().extra(fault.clone());
                match stream.inner().get_ref().1.alpn_protocol() {
                    Some(b"h2") => connected.negotiated_h2(),
                    _ => connected,
                }
            }
        }
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls { stream, fault } => fault.note(Pin::new(stream).poll_read(context, buffer)),
        }
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls { stream, fault } => fault.note(Pin::new(stream).poll_write(context, bytes)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls { stream, fault } => fault.note(Pin::new(stream).poll_flush(context)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            // A target that reads nothing more would keep it waiting to say goodbye, without end and
            // without a deadline: the attempt is over. It is said if that is possible now.
            Self::Tls { stream, .. } => match Pin::new(stream).poll_shutdown(context) {
                Poll::Pending => Poll::Ready(Ok(())),
                ended @ Poll::Ready(_) => ended,
            },
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls { stream, fault } => {
                fault.note(Pin::new(stream).poll_write_vectored(context, slices))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::net::listener::{Backlog, ListenerObserver, Server, bind};
    use crate::net::testing::{Authority, Pair, client, deadline, limits, post, settings};
    use http::Response;
    use rustls::ServerConfig;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio_rustls::TlsAcceptor;
    use tokio_util::sync::CancellationToken;

    struct Deaf;
    impl ListenerObserver for Deaf {}

    /// A target that answers with the head of the request as it saw it.
    fn target(config: Option<Arc<ServerConfig>>) -> String {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if config.is_some() { "https" } else { "http" };
        let tracker = TaskTracker::new();
        let server = Server {
            listener,
            backlog: Backlog::TakeIn,
            tls: config.map(|config| watch::channel(config).1),
            limits: limits(),
            observer: Arc::new(Deaf),
            stop_accepting: CancellationToken::new(),
            drain: CancellationToken::new(),
            tracker: tracker.clone(),
        };
        let service = |request: Request<hyper::body::Incoming>, _| async move {
            let size = request.uri().path().trim_start_matches('/').parse().unwrap_or(2);
            Response::builder()
                .status(if size == 302 { 302 } else { 200 })
                .header("location", "/elsewhere")
                .body(Full::new(Bytes::from(vec![b'x'; size])))
                .unwrap()
        };
        drop(tracker.spawn(server.serve(service)));
        format!("{scheme}://{address}/")
    }

    /// A target that reads a request's head, writes `answer`, then hangs or closes.
    async fn raw(answer: &'static [u8], hang: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(TaskTracker::new().spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\nbody") {
                assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0);
            }
            stream.write_all(answer).await.unwrap();
            if hang {
                std::future::pending::<()>().await;
            }
        }));
        format!("http://{address}/")
    }

    async fn failure(client: &Client, url: &str) -> SendFailure {
        client.send(post(url, "body"), deadline()).await.unwrap_err()
    }

    async fn soon(client: &Client, url: &str) -> SendFailure {
        let deadline = Instant::now() + Duration::from_millis(200);
        client.send(post(url, "body"), deadline).await.unwrap_err()
    }

    #[tokio::test]
    async fn an_answer_comes_back_as_it_is() {
        let url = target(None);
        let client = client(None);
        let answer = client.send(post(&format!("{url}5000"), "body"), deadline()).await.unwrap();
        assert_eq!(
            (answer.status, answer.excerpt.len()),
            (StatusCode::OK, ANSWER_EXCERPT_BYTES_MAX)
        );
        let answer = client.send(post(&format!("{url}302"), "body"), deadline()).await.unwrap();
        assert_eq!(answer.status, StatusCode::FOUND, "redirects are not followed");
        assert_eq!(answer.headers.get("location").unwrap(), "/elsewhere");
    }

    #[tokio::test]
    async fn a_target_that_is_not_there_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for url in [format!("http://{address}/"), "http://crm.invalid/".to_owned()] {
            let got = failure(&client(None), &url).await;
            assert!(matches!(got, SendFailure::Refused(_)), "{url}: {got:?}");
        }
    }

    #[tokio::test]
    async fn a_target_that_hangs_times_out() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
        for answer in [&b""[..], b"HTTP/1.1 200", head] {
            let url = raw(answer, true).await;
            assert_eq!(soon(&client(None), &url).await, SendFailure::Timeout);
        }
        // In the TLS handshake, for the request and for the connection alone.
        let authority = Authority::new();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", silent.local_addr().unwrap());
        let client = client(Some(authority.client_config()));
        assert_eq!(soon(&client, &url).await, SendFailure::Timeout);
        let mut short = settings(Some(authority.client_config()));
        short.connect_timeout = Duration::from_millis(100);
        assert_eq!(failure(&Client::new(short), &url).await, SendFailure::Timeout);
    }

    #[tokio::test]
    async fn a_target_that_stops_reading_does_not_hold_up_the_end_of_its_connection() {
        let authority = Authority::new();
        let pair = authority.issue(&["127.0.0.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let acceptor = TlsAcceptor::from(pair.server_config());
        let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
        let settings = settings(Some(authority.client_config()));
        let (wire, reads_nothing) = tokio::join!(connect(&settings, &url), accept);
        let mut wire = wire.unwrap();
        // Until nothing more goes, however often it is tried.
        let mut refused = 0;
        while refused < 100 {
            let written = poll_fn(|context| {
                Poll::Ready(Pin::new(&mut wire).poll_write(context, &[0; 65_536]))
            });
            match written.await {
                Poll::Ready(written) => refused = usize::from(written.unwrap() == 0),
                Poll::Pending => refused += 1,
            }
            tokio::task::yield_now().await;
        }
        let ended =
            poll_fn(|context| Poll::Ready(Pin::new(&mut wire).poll_shutdown(context))).await;
        assert!(ended.is_ready(), "it waits for a target that does not read");
        drop(reads_nothing);
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_a_reset() {
        let short = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
        for answer in [&b""[..], b"HTTP/1.1 20", b"SSH-2.0-OpenSSH\r\n\r\n", short] {
            let url = raw(answer, false).await;
            let got = failure(&client(None), &url).await;
            assert!(matches!(got, SendFailure::Reset(_)), "{got:?}");
        }
        // Closed in the TLS handshake.
        let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", closing.local_addr().unwrap());
        drop(TaskTracker::new().spawn(async move { drop(closing.accept().await) }));
        let got = failure(&client(Some(Authority::new().client_config())), &url).await;
        assert!(matches!(got, SendFailure::Reset(_)), "{got:?}");
    }

    #[tokio::test]
    async fn an_answer_without_end_is_too_large() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(TaskTracker::new().spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
        }));
        assert_eq!(failure(&client(None), &url).await, SendFailure::AnswerTooLarge);
        let url = target(None);
        let client = client(None);
        let just = client.send(post(&format!("{url}{ANSWER_BYTES_MAX}"), ""), deadline()).await;
        assert_eq!(just.unwrap().excerpt.len(), ANSWER_EXCERPT_BYTES_MAX);
        let whole = client.fetch(post(&format!("{url}{ANSWER_BYTES_MAX}"), ""), deadline()).await;
        assert_eq!(whole.unwrap().excerpt.len(), ANSWER_BYTES_MAX);
        let more = format!("{url}{}", ANSWER_BYTES_MAX + 1);
        assert_eq!(failure(&client, &more).await, SendFailure::AnswerTooLarge);
        let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(500_000)).leak();
        let url = raw(head.as_bytes(), true).await;
        assert_eq!(failure(&client, &url).await, SendFailure::AnswerTooLarge);
    }

    #[tokio::test]
    async fn a_certificate_must_be_the_targets_own() {
        let authority = Authority::new();
        let url = target(Some(authority.issue(&["crm.internal"]).server_config()));
        let stranger = client(Some(Authority::new().client_config()));
        for client in [stranger, client(Some(authority.client_config())), client(None)] {
            let got = failure(&client, &url).await;
            assert!(matches!(got, SendFailure::Tls(_)), "{got:?}");
        }
        let mut named = settings(Some(authority.client_config()));
        named.server_name = Some(tls::server_name("crm.internal").unwrap());
        Client::new(named).send(post(&url, ""), deadline()).await.unwrap();
        // Not TLS at all.
        let plain = target(None).replace("http:", "https:");
        let got = failure(&client(Some(authority.client_config())), &plain).await;
        assert!(matches!(got, SendFailure::Tls(_)), "{got:?}");
    }

    #[tokio::test]
    async fn a_target_may_demand_our_certificate() {
        let authority = Authority::new();
        let Pair { certificate, key } = authority.issue(&["relay"]);
        let ca = Some(authority.certificate.as_bytes());
        let identity = Some((certificate.as_bytes(), key.as_bytes()));
        let known = tls::client_config(tls::TargetTls { ca, identity }).unwrap();
        for alpn in ["h2", "http/1.1"] {
            let pair = authority.issue(&["127.0.0.1"]);
            let url = target(Some(authority.demanding_server(&pair, alpn.as_bytes())));
            client(Some(Arc::clone(&known))).send(post(&url, ""), deadline()).await.unwrap();
            for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
                let unknown = authority.client_with(version, &[alpn.as_bytes()]);
                let got = failure(&client(Some(unknown)), &url).await;
                assert!(matches!(got, SendFailure::Tls(_)), "{alpn} {version:?}: {got:?}");
            }
        }
    }

    #[tokio::test]
    async fn connections_are_kept_and_http2_shares_one() {
        let authority = Authority::new();
        for alpn in [&b"h2"[..], b"http/1.1"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}/", listener.local_addr().unwrap());
            let pair = authority.issue(&["127.0.0.1"]);
            let config = pair.server_config();
            // Only one connection is ever accepted.
            drop(TaskTracker::new().spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = TlsAcceptor::from(config).accept(stream).await.unwrap();
                let executor = TrackedExecutor(TaskTracker::new());
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("ok"))))
                });
                let http = hyper_util::server::conn::auto::Builder::new(executor);
                http.serve_connection(TokioIo::new(stream), service).await.unwrap();
            }));
            let config = authority.client_with(&rustls::version::TLS13, &[alpn]);
            let client = client(Some(config));
            for _ in 0..3 {
                let answer = client.send(post(&url, ""), deadline()).await.unwrap();
                assert_eq!(&answer.excerpt[..], b"ok");
            }
            if alpn == b"h2" {
                let (one, two) = (post(&url, ""), post(&url, ""));
                let (one, two) =
                    tokio::join!(client.send(one, deadline()), client.send(two, deadline()));
                assert!(one.is_ok() && two.is_ok());
            }
        }
    }

    #[tokio::test]
    async fn a_stale_pooled_connection_is_replaced_unseen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (sender, mut requests) = tokio::sync::mpsc::channel(200);
        drop(TaskTracker::new().spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\nbody") {
                    if stream.read_buf(&mut head).await.unwrap() == 0 {
                        break;
                    }
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                drop(stream); // Though it said that it would stay.
                sender.send(()).await.unwrap();
            }
        }));
        let client = client(None);
        for round in 0..50 {
            let got = client.send(post(&url, "body"), deadline()).await;
            assert!(got.is_ok(), "round {round}: {got:?}");
            requests.recv().await.unwrap();
            // News of the close has arrived when news of something later has.
            let later = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = later.local_addr().unwrap();
            let (connected, accepted) = tokio::join!(TcpStream::connect(address), later.accept());
            drop((connected.unwrap(), accepted.unwrap()));
        }
        assert!(requests.try_recv().is_err(), "each request was seen once");
    }
}
