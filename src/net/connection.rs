//! One connection from a sender: TLS, then HTTP/1.1 or HTTP/2, under time limits.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::TrackedExecutor;
use super::crowd::Member;
use super::listener::{
    HandshakeResult, ListenerLimits, ListenerObserver, PeerInfo, Refused, Unreadable,
};
use super::phase::{Active, Ending, Phase, Tracked, Verdict, Watch, Watched};
use super::proxied::{self, Unproxied};
use super::stream::ReadAhead;
use super::tls::CHALLENGE_PROTOCOL;
use super::tls::client_certificate;
use crate::domain::limit::HEAD_BYTES_MAX;

/// Also how much of a body is buffered ahead of its reader. hyper may overshoot it by one read,
/// which is never larger.
const HTTP1_BUFFER_MAX: usize = HEAD_BYTES_MAX;

const HTTP2_STREAMS_MAX: u32 = 128;
#[expect(clippy::cast_possible_truncation, reason = "where it is defined it is held to be less")]
const HTTP2_HEADERS_MAX: u32 = HEAD_BYTES_MAX as u32;
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 512 * 1024;
/// Streams that the peer opened and reset before we took them. That many are mere haste; beyond it
/// the connection ends, as a flood of them would cost the peer nothing ("rapid reset").
const HTTP2_RESETS_MAX: usize = 20;
/// Streams that we reset for what the peer did wrong on them, before the connection ends.
const HTTP2_OWN_RESETS_MAX: usize = 256;
/// Of answers that the peer does not read, for each stream. They are less than 1 KiB.
const HTTP2_SEND_BUFFER: usize = 16 * 1024;
const HTTP2_PING_EVERY: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP by what the peers agreed on.
pub(super) struct Protocols {
    http1: auto::Builder<TrackedExecutor>,
    http2: auto::Builder<TrackedExecutor>,
    /// Told apart by the first bytes: without TLS, or without ALPN.
    pub(super) either: auto::Builder<TrackedExecutor>,
}

impl Protocols {
    pub(super) fn new(tracker: &TaskTracker) -> Self {
        let mut either = auto::Builder::new(TrackedExecutor(tracker.clone()));
        either
            .http1()
            .timer(TokioTimer::new())
            // The connection's own watch does it, without an allocation for each request.
            .header_read_timeout(None)
            .max_buf_size(HTTP1_BUFFER_MAX)
            .keep_alive(true)
            // A sender may close its half after the last byte of a body and wait for the answer.
            .half_close(true);
        either
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
            .max_local_error_reset_streams(HTTP2_OWN_RESETS_MAX)
            .max_send_buf_size(HTTP2_SEND_BUFFER)
            // Frames that go on with a head are bounded by this, too.
            .max_header_list_size(HTTP2_HEADERS_MAX)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .keep_alive_interval(HTTP2_PING_EVERY)
            .keep_alive_timeout(HTTP2_PING_TIMEOUT);
        Self { http1: either.clone().http1_only(), http2: either.clone().http2_only(), either }
    }

    fn by_alpn(&self, protocol: Option<&[u8]>) -> &auto::Builder<TrackedExecutor> {
        match protocol {
            Some(b"h2") => &self.http2,
            Some(b"http/1.1") => &self.http1,
            _ => &self.either,
        }
    }
}

/// Counts a connection for as long as it exists.
pub(super) struct Open<O: ListenerObserver> {
    observer: Arc<O>,
}

impl<O: ListenerObserver> Open<O> {
    pub(super) fn new(observer: &Arc<O>) -> Self {
        observer.connection_opened();
        Self { observer: Arc::clone(observer) }
    }
}

impl<O: ListenerObserver> Drop for Open<O> {
    fn drop(&mut self) {
        self.observer.connection_closed();
    }
}

/// A connection that was just accepted.
pub(super) struct ServerConnection<O: ListenerObserver> {
    pub(super) peer: PeerInfo,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) limits: ListenerLimits,
    pub(super) protocols: Arc<Protocols>,
    pub(super) open: Open<O>,
    pub(super) member: Arc<Member>,
    pub(super) ending: Ending,
}

impl<O: ListenerObserver> ServerConnection<O> {
    /// Serves it to its end.
    pub(super) async fn run<S, F, B>(mut self, mut stream: TcpStream, service: S)
    where
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if stream.set_nodelay(true).is_err() {
            return; // The peer is gone already.
        }
        let deadline = Instant::now() + self.limits.handshake_timeout;
        if self.limits.proxies.protocol && !self.proxied(&mut stream, deadline).await {
            return;
        }
        let Some(config) = self.tls.clone() else {
            return self.http(stream, &self.protocols.either, service).await;
        };
        let Some(stream) = self.handshake(stream, config, deadline).await else { return };
        if stream.get_ref().1.alpn_protocol() == Some(CHALLENGE_PROTOCOL) {
            return; // The handshake was all of it.
        }
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        self.peer.certificate = shown.map(|certificate| client_certificate(certificate));
        let protocol = self.protocols.by_alpn(stream.get_ref().1.alpn_protocol());
        self.http(Box::new(stream), protocol, service).await;
    }

    /// Finds out who the client is, where a proxy has to say it; whether to go on.
    async fn proxied(&mut self, stream: &mut TcpStream, deadline: Instant) -> bool {
        let told = proxied::client(stream, self.peer.addr, &self.limits.proxies.trusted);
        let told = tokio::select! {
            biased;
            told = timeout_at(deadline, told) => told,
            () = self.member.ends().cancelled() => return false,
            () = self.ending.unheard() => return false,
        };
        let refused = match told {
            Ok(Ok(None)) => {
                self.peer.is_untold = true;
                None
            }
            Ok(Ok(Some(client))) => {
                let is_new = self.peer.addr != client;
                self.peer.addr = client;
                // For others it was asked when they were accepted.
                let has_room = !is_new || self.member.belongs_to(client.ip(), &self.limits);
                (!has_room).then_some(Refused::Address)
            }
            Ok(Err(Unproxied::Closed)) => return false,
            Ok(Err(Unproxied::Malformed)) => Some(Refused::ProxyHeader),
            Ok(Err(Unproxied::NotAProxy)) => Some(Refused::NotAProxy),
            Err(_) => Some(Refused::ProxyTimeout),
        };
        if let Some(why) = refused {
            self.open.observer.connection_refused(why, self.peer.addr);
        }
        refused.is_none()
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
        deadline: Instant,
    ) -> Option<TlsStream<ReadAhead<TcpStream>>> {
        let accept = TlsAcceptor::from(config).accept(ReadAhead::new(stream));
        let ended = tokio::select! {
            biased;
            ended = timeout_at(deadline, accept) => ended,
            () = self.member.ends().cancelled() => return None,
            () = self.ending.unheard() => return None,
        };
        let (result, stream) = match ended {
            Ok(Ok(stream)) => (HandshakeResult::Ok, Some(stream)),
            Ok(Err(error)) if error.get_ref().is_some_and(|error| error.is::<rustls::Error>()) => {
                self.open.observer.handshake_failed(&error, self.peer.addr);
                (HandshakeResult::Failed, None)
            }
            Ok(Err(_)) => (HandshakeResult::Closed, None),
            Err(_) => (HandshakeResult::Timeout, None),
        };
        self.open.observer.handshake(result);
        stream
    }

    /// Serves HTTP to the connection's end.
    pub(super) async fn http<I, S, F, B>(
        &self,
        stream: I,
        protocol: &auto::Builder<TrackedExecutor>,
        service: S,
    ) where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let phase = Arc::new(Phase::new(&self.member, &self.ending));
        let (peer, counted) = (self.peer.clone(), Arc::clone(&phase));
        let requests_max = self.limits.requests_per_connection_max;
        let service = service_fn(move |request: Request<Incoming>| {
            let active = Active::begin(&counted, request.version());
            let is_http1 = request.version() <= Version::HTTP_11;
            let (answer, counted) = (service(request, peer.clone()), Arc::clone(&counted));
            async move {
                let mut answer = answer.await;
                if counted.is_http2() && answer.headers_mut().remove(CONNECTION).is_some() {
                    counted.wear_out();
                }
                if is_http1 && active.is_last(requests_max) {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                let unread = active.answered();
                Ok::<_, Infallible>(answer.map(|body| Tracked { body, _unread: unread }))
            }
        });
        let io = Watched { io: TokioIo::new(stream), phase: Arc::clone(&phase) };
        let connection = protocol.serve_connection(io, service);
        let mut connection = pin!(connection);
        let mut unwanted = pin!(self.member.ends().cancelled());
        let mut over = pin!(phase.ends());
        let mut watch = Watch::new(&phase, &self.limits);
        let ended = poll_fn(|context| {
            loop {
                if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                    return Poll::Ready(ended.err());
                }
                match watch.poll(context, unwanted.as_mut(), over.as_mut()) {
                    Verdict::GoOn => return Poll::Pending,
                    Verdict::SayGoodbye => connection.as_mut().graceful_shutdown(),
                    Verdict::Drop => return Poll::Ready(None),
                }
            }
        })
        .await;
        // Each request that was complete has been answered; only what was no request is told.
        if let Some(what) = ended.and_then(|error| unreadable(&*error)) {
            self.open.observer.unreadable(what, &self.peer);
        }
    }
}

/// Whether a connection ended because of what hyper answers 400 or 431 to by itself.
fn unreadable(error: &(dyn std::error::Error + 'static)) -> Option<Unreadable> {
    let error = error.downcast_ref::<hyper::Error>()?;
    if error.is_parse_too_large() {
        return Some(Unreadable::TooLarge);
    }
    error.is_parse().then_some(Unreadable::Malformed)
}
