//! Accepting connections within limits, and ending in two steps.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use rustix::net::SocketFlags;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Open, Protocols, ServerConnection};
use super::crowd::{Crowd, Member};
use super::phase::Ending;
use crate::domain::client::{ClientCertificate, Networks};
use crate::net::address::BindError;

/// Connections that the kernel keeps until we come to accept them.
const BACKLOG: u32 = 4096;

/// How long a connection that is told to end waits for one more request: its sender may have written it before
/// it can know. As long as it takes over a slow line to greet and to send a head.
pub const LAST_REQUEST_WAIT: Duration = Duration::from_millis(500);

/// The wait after a failed accept: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Binds a listening socket; `[::]` serves IPv4 too, and is 0.0.0.0 where IPv6 is off.
///
/// Call it within a tokio runtime.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bound = match listen(address) {
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && no_ipv6(&error) => {
            listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    };
    bound.map_err(BindError::of_tcp)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn no_ipv6(error: &io::Error) -> bool {
    let off = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    off.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What one listener lets in.
#[derive(Clone, Debug)]
pub struct ListenerLimits {
    /// Connections at once. For further ones those end that are idle for longest; where none is, they
    /// wait, all but one in the kernel's backlog.
    pub connections_max: usize,
    /// Of these, from one address. For further ones those of the same address end that are idle for
    /// longest; where none is, the newest is closed.
    pub connections_per_address_max: usize,
    /// Who may speak for others; their own addresses are not counted.
    pub proxies: Proxies,
    /// Requests on one connection; after the last it ends.
    pub requests_per_connection_max: u32,
    /// For the TLS handshake, and for what a proxy says before.
    pub handshake_timeout: Duration,
    /// From the first byte of a request to the end of its head, and from the start of a connection
    /// to the end of its first head.
    pub header_timeout: Duration,
    /// A connection on which no request begins or ends for so long is closed. Longer than any
    /// request may take, and than what a balancer in front keeps idle connections for.
    pub idle_timeout: Duration,
}

/// The proxies in front of a listener.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Where they are.
    pub trusted: Networks,
    /// They have to begin with a header of the PROXY protocol, and nobody else may.
    pub protocol: bool,
}

/// Who is at the other end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerInfo {
    /// Its address, or that of the client for whom a proxy connects; IPv4 is written as such.
    pub addr: SocketAddr,
    /// The address is that of a proxy, which does not say for whom it connects: what is written in
    /// requests of who that may be is written by a stranger.
    pub is_untold: bool,
    /// It came over TLS.
    pub tls: bool,
    /// The certificate that it showed, if it did: one of a root that is trusted.
    pub certificate: Option<ClientCertificate>,
}

impl PeerInfo {
    /// Its address, or that of the client for whom a proxy connects, where that is known.
    pub fn client(&self) -> Option<SocketAddr> {
        (!self.is_untold).then_some(self.addr)
    }
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HandshakeResult {
    /// The peer left before it was done, like a balancer's probe.
    Closed,
    /// No agreement, or not TLS at all.
    Failed,
    /// Good.
    Ok,
    /// Not done in time.
    Timeout,
}

/// Why a connection was closed before anything was read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are too many from its address, and all are busy.
    Address,
    /// It begins with the header of a proxy, and is none that is trusted.
    NotAProxy,
    /// A trusted proxy's header is missing or wrong.
    ProxyHeader,
    /// It did not come in time.
    ProxyTimeout,
}

/// Why a request's head could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not HTTP.
    Malformed,
    /// It is larger than is read.
    TooLarge,
}

/// Told what happens on a listener.
pub trait ListenerObserver: Send + Sync + 'static {
    /// A connection was accepted.
    fn connection_opened(&self) {}
    /// It is gone; called once for each that was opened.
    fn connection_closed(&self) {}
    /// `connections_max` is reached: for each further connection another one has to end.
    fn connections_full(&self) {}
    /// A connection was closed before anything was read of it.
    fn connection_refused(&self, _why: Refused, _peer: SocketAddr) {}
    /// A TLS handshake ended.
    fn handshake(&self, _result: HandshakeResult) {}
    /// A TLS handshake ended as [`HandshakeResult::Failed`], for this reason.
    fn handshake_failed(&self, _why: &io::Error, _peer: SocketAddr) {}
    /// A request's head could not be understood; it was answered already, or nobody listens.
    fn unreadable(&self, _what: Unreadable, _peer: &PeerInfo) {}
    /// Accepting failed, for want of file descriptors perhaps; it goes on after a wait.
    fn accept_error(&self, _error: &io::Error) {}
}

/// What becomes of connections that nobody has accepted when a listener ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// Another holds the socket as well: they wait there for the next listener.
    Leave,
    /// The socket ends with us, and would reset them: they are served.
    TakeIn,
}

/// A listening socket with all it needs to serve.
///
/// It ends in two steps: [`drain`](Self::drain) lets each connection have one more request at most,
/// those to come as well, so that senders move on while they are still served;
/// [`stop_accepting`](Self::stop_accepting) closes the socket. One that is silent ends
/// [a moment](LAST_REQUEST_WAIT) after the first if it was of use before, and after the second if
/// not. Who wants to wait for them waits for the tracker.
#[derive(Debug)]
pub struct Server<O> {
    /// From [`bind`].
    pub listener: TcpListener,
    /// What becomes of connections that wait in it at the end.
    pub backlog: Backlog,
    /// The certificate in force for new connections; plain HTTP without.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// What is let in.
    pub limits: ListenerLimits,
    /// Told what happens.
    pub observer: Arc<O>,
    /// Cancelled to close the socket.
    pub stop_accepting: CancellationToken,
    /// Cancelled to end the connections in order.
    pub drain: CancellationToken,
    /// Runs a task for each connection.
    pub tracker: TaskTracker,
}

impl<O: ListenerObserver> Server<O> {
    /// Accepts until told to stop, and calls `service` for each request.
    ///
    /// `service` runs as part of the connection: what must survive a peer that hangs up belongs on
    /// a task of its own.
    pub async fn serve<S, F, B>(self, service: S)
    where
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let crowd = Crowd::new(self.limits.connections_max);
        let protocols = Arc::new(Protocols::new(&self.tracker));
        let mut back_off = BACK_OFF.0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop_accepting.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => {
                    back_off = BACK_OFF.0;
                    if !self.has_room(&crowd, addr) {
                        continue;
                    }
                    let Some(slot) = self.slot(&crowd).await else { break };
                    self.open(stream, addr, crowd.enter(slot), &protocols, &service);
                }
                Err(error) if is_peers(&error) => {}
                Err(error) => {
                    self.observer.accept_error(&error);
                    tokio::select! {
                        () = self.stop_accepting.cancelled() => break,
                        () = sleep(back_off) => {}
                    }
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
            }
        }
        if self.backlog == Backlog::TakeIn {
            self.accept_backlog(&crowd, &protocols, &service);
        }
    }

    /// Whether one more connection from there is let in.
    fn has_room(&self, crowd: &Crowd, addr: SocketAddr) -> bool {
        let has_room = crowd.make_room(addr.ip(), &self.limits);
        if !has_room {
            self.observer.connection_refused(Refused::Address, addr);
        }
        has_room
    }

    /// A place for one more connection; none if told to stop.
    async fn slot(&self, crowd: &Crowd) -> Option<OwnedSemaphorePermit> {
        if let Some(slot) = crowd.try_slot() {
            return Some(slot);
        }
        self.observer.connections_full();
        tokio::select! {
            biased;
            () = self.stop_accepting.cancelled() => None,
            slot = crowd.slot() => slot,
        }
    }

    /// Takes in what has connected already: closing the socket would reset it.
    fn accept_backlog<S, F, B>(&self, crowd: &Arc<Crowd>, protocols: &Arc<Protocols>, service: &S)
    where
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Some(slot) = crowd.try_slot() {
            // The socket itself is asked: the runtime may not have heard of the newest yet.
            let Ok(accepted) = rustix::net::accept_with(&self.listener, flags) else { break };
            let stream = std::net::TcpStream::from(accepted);
            let Ok(addr) = stream.peer_addr() else { continue };
            let Ok(stream) = TcpStream::from_std(stream) else { continue };
            if !self.has_room(crowd, addr) {
                continue;
            }
            self.open(stream, addr, crowd.enter(slot), protocols, service);
        }
    }

    fn open<S, F, B>(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        member: Member,
        protocols: &Arc<Protocols>,
        service: &S,
    ) where
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        member.comes_from(addr.ip(), &self.limits);
        let connection = ServerConnection {
            peer: PeerInfo { addr, is_untold: false, tls: self.tls.is_some(), certificate: None },
            tls: self.tls.as_ref().map(|config| Arc::clone(&config.borrow())),
            limits: self.limits.clone(),
            protocols: Arc::clone(protocols),
            open: Open::new(&self.observer),
            member: Arc::new(member),
            ending: Ending {
                drain: self.drain.clone(),
                stop_accepting: self.stop_accepting.clone(),
            },
        };
        drop(self.tracker.spawn(connection.run(stream, service.clone())));
    }
}

/// The connection failed before we had it: the next may be good.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limit::HEAD_BYTES_MAX;
    use crate::net::body;
    use crate::net::testing::{
        Authority, Event, PATIENCE, Recorder, client, deadline, limits, post,
    };
    use http::HeaderValue;
    use http::header::CONNECTION;
    use http_body_util::Full;
    use rustls::ClientConfig;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{Notify, mpsc};
    use tokio::time::{Instant, timeout};

    struct Harness {
        addr: SocketAddr,
        events: mpsc::Receiver<Event>,
        stop: CancellationToken,
        drain: CancellationToken,
        tracker: TaskTracker,
        /// Requests to `/wait` are answered after this.
        go: Arc<Notify>,
        waiting: Arc<Notify>,
    }

    fn start(tls: Option<Arc<ServerConfig>>, limits: ListenerLimits) -> Harness {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap().into_std().unwrap();
        start_on(listener, Backlog::TakeIn, tls, limits)
    }

    fn start_on(
        listener: std::net::TcpListener,
        backlog: Backlog,
        tls: Option<Arc<ServerConfig>>,
        limits: ListenerLimits,
    ) -> Harness {
        let listener = TcpListener::from_std(listener).unwrap();
        let (sender, events) = mpsc::channel(1000);
        let harness = Harness {
            addr: listener.local_addr().unwrap(),
            events,
            stop: CancellationToken::new(),
            drain: CancellationToken::new(),
            tracker: TaskTracker::new(),
            go: Arc::new(Notify::new()),
            waiting: Arc::new(Notify::new()),
        };
        let server = Server {
            listener,
            backlog,
            tls: tls.map(|config| watch::channel(config).1),
            limits,
            observer: Arc::new(Recorder(sender)),
            stop_accepting: harness.stop.clone(),
            drain: harness.drain.clone(),
            tracker: harness.tracker.clone(),
        };
        let (go, waiting) = (Arc::clone(&harness.go), Arc::clone(&harness.waiting));
        let service = move |mut request: Request<Incoming>, peer: PeerInfo| {
            let (go, waiting) = (Arc::clone(&go), Arc::clone(&waiting));
            async move {
                if request.uri().path() == "/wait" {
                    waiting.notify_one();
                    go.notified().await;
                }
                let (version, is_last) = (request.version(), request.uri().path() == "/last");
                let room = &mut body::NoSharing;
                let read = body::read(request.body_mut(), version, 1 << 20, deadline(), room).await;
                let got = read.map(|bytes| bytes.len());
                let text = format!("{version:?} tls={} {got:?} {}", peer.tls, peer.addr.ip());
                let mut answer = Response::new(Full::new(Bytes::from(text)));
                if is_last {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            }
        };
        drop(harness.tracker.spawn(server.serve(service)));
        harness
    }

    impl Harness {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.addr).await.unwrap()
        }

        async fn event(&mut self, wanted: Event) {
            let seen = async {
                while self.events.recv().await.expect("the listener is there") != wanted {}
            };
            timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
        }

        async fn ended(self) {
            self.tracker.close();
            timeout(PATIENCE, self.tracker.wait()).await.expect("all connections end");
        }
    }

    async fn to_end(stream: &mut TcpStream) -> String {
        let mut got = Vec::new();
        // A reset is an end, too.
        let read = timeout(PATIENCE, stream.read_to_end(&mut got)).await.expect("the end");
        drop(read);
        String::from_utf8(got).unwrap()
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut got = Vec::new();
        while !got.ends_with(b"127.0.0.1") {
            let read = timeout(PATIENCE, stream.read_buf(&mut got)).await.expect("an answer");
            assert_ne!(read.unwrap(), 0, "{}", String::from_utf8_lossy(&got));
        }
        String::from_utf8(got).unwrap()
    }

    const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok";

    #[tokio::test]
    async fn both_tls_versions_and_both_http_versions_are_served() {
        let authority = Authority::new();
        let mut harness = start(Some(authority.issue(&["127.0.0.1"]).server_config()), limits());
        let url = format!("https://{}/", harness.addr);
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for (alpn, expected) in [
                (&[b"h2".as_slice(), b"http/1.1"][..], "HTTP/2.0"),
                (&[b"h2"], "HTTP/2.0"),
                (&[b"http/1.1"], "HTTP/1.1"),
                (&[], "HTTP/1.1"),
            ] {
                let client = client(Some(authority.client_with(version, alpn)));
                let answer = client.send(post(&url, "four"), deadline()).await.unwrap();
                let expected = format!("{expected} tls=true Ok(4) 127.0.0.1");
                assert_eq!(answer.excerpt, expected.as_bytes());
                harness.event(Event::Handshake(HandshakeResult::Ok)).await;
            }
        }
    }

    #[tokio::test]
    async fn the_certificate_in_force_is_shown_to_new_connections() {
        let (one, two) = (Authority::new(), Authority::new());
        let (sender, config) = watch::channel(one.issue(&["127.0.0.1"]).server_config());
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let tracker = TaskTracker::new();
        let (events, _kept) = mpsc::channel(100);
        let server = Server {
            listener,
            backlog: Backlog::TakeIn,
            tls: Some(config),
            limits: limits(),
            observer: Arc::new(Recorder(events)),
            stop_accepting: CancellationToken::new(),
            drain: CancellationToken::new(),
            tracker: tracker.clone(),
        };
        let service = |_, _| async { Response::new(Full::new(Bytes::new())) };
        drop(tracker.spawn(server.serve(service)));
        let old = client(Some(one.client_config()));
        old.send(post(&url, ""), deadline()).await.unwrap();
        sender.send(two.issue(&["127.0.0.1"]).server_config()).unwrap();
        old.send(post(&url, ""), deadline()).await.expect("an open connection stays");
        client(Some(two.client_config())).send(post(&url, ""), deadline()).await.unwrap();
    }

    #[tokio::test]
    async fn handshakes_end_in_four_ways() {
        let authority = Authority::new();
        let config = authority.issue(&["127.0.0.1"]).server_config();
        let short = Duration::from_millis(100);
        let limits = ListenerLimits { handshake_timeout: short, ..limits() };
        let mut harness = start(Some(config), limits);
        let mut silent = harness.connect().await;
        harness.event(Event::Handshake(HandshakeResult::Timeout)).await;
        assert_eq!(to_end(&mut silent).await, "");
        harness.event(Event::Closed).await;
        drop(harness.connect().await);
        harness.event(Event::Handshake(HandshakeResult::Closed)).await;
        let mut plain = harness.connect().await;
        plain.write_all(POST).await.unwrap();
        harness.event(Event::Handshake(HandshakeResult::Failed)).await;
        harness.event(Event::Closed).await;
        harness.drain.cancel();
        harness.stop.cancel();
        harness.ended().await;
    }

    #[tokio::test]
    async fn a_head_must_come_in_time_but_a_connection_may_idle() {
        let short = Duration::from_millis(100);
        let quick = ListenerLimits { header_timeout: short, ..limits() };
        let harness = start(None, quick.clone());
        for sent in ["", "POST / HT", "POST / HTTP/1.1\r\nhost: a\r\n"] {
            let mut stream = harness.connect().await;
            stream.write_all(sent.as_bytes()).await.unwrap();
            assert_eq!(to_end(&mut stream).await, "", "{sent:?}");
        }
        // The second head, too.
        let mut stream = harness.connect().await;
        stream.write_all(POST).await.unwrap();
        answer(&mut stream).await;
        stream.write_all(b"POST / HT").await.unwrap();
        assert_eq!(to_end(&mut stream).await, "");
        // But between requests there is more time.
        let idle = Duration::from_millis(500);
        let harness = start(None, ListenerLimits { idle_timeout: idle, ..quick });
        let mut stream = harness.connect().await;
        stream.write_all(POST).await.unwrap();
        let since = Instant::now();
        answer(&mut stream).await;
        assert_eq!(to_end(&mut stream).await, "");
        assert!(since.elapsed() >= idle);
    }

    #[tokio::test]
    async fn a_request_in_work_is_not_idle_until_its_time_is_over() {
        let short = Duration::from_millis(100);
        let quick = ListenerLimits { header_timeout: short, ..limits() };
        let harness = start(None, quick);
        let mut stream = harness.connect().await;
        stream
            .write_all(b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n")
            .await
            .unwrap();
        harness.waiting.notified().await;
        let later = Instant::now() + short * 3;
        tokio::time::sleep_until(later).await;
        stream.write_all(b"ok").await.unwrap();
        harness.go.notify_one();
        assert!(answer(&mut stream).await.contains("Ok(2)"));
    }

    #[tokio::test]
    async fn at_the_limit_an_idle_connection_ends_for_the_next() {
        let mut harness = start(None, ListenerLimits { connections_max: 1, ..limits() });
        let mut silent = harness.connect().await;
        let mut next = harness.connect().await;
        harness.event(Event::Full).await;
        assert_eq!(to_end(&mut silent).await, "");
        next.write_all(POST).await.unwrap();
        answer(&mut next).await;
        // One that was of use ends, too, when it is idle, and only then.
        next.write_all(POST).await.unwrap();
        answer(&mut next).await;
        let _last = harness.connect().await;
        assert_eq!(to_end(&mut next).await, "");
    }

    #[tokio::test]
    async fn an_address_has_its_share_of_the_connections() {
        let limits = ListenerLimits { connections_per_address_max: 1, ..limits() };
        let mut harness = start(None, limits);
        let mut silent = harness.connect().await;
        let mut next = harness.connect().await;
        assert_eq!(to_end(&mut silent).await, "");
        next.write_all(&to_wait()).await.unwrap();
        harness.waiting.notified().await;
        let mut refused = harness.connect().await;
        harness.event(Event::Refused(Refused::Address)).await;
        assert_eq!(to_end(&mut refused).await, "");
        harness.go.notify_one();
        assert!(answer(&mut next).await.contains("Ok(2)"));
    }

    fn proxied(trusted: &str) -> ListenerLimits {
        let trusted = [trusted.parse().unwrap()].into_iter().collect();
        let proxies = Proxies { trusted, protocol: true };
        ListenerLimits { connections_per_address_max: 2, proxies, ..limits() }
    }

    /// What comes back to this, when no more is sent.
    async fn told(harness: &Harness, sent: &[&[u8]]) -> String {
        let mut stream = harness.connect().await;
        for piece in sent {
            stream.write_all(piece).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        to_end(&mut stream).await
    }

    const FOR_CLIENT: &[u8] = b"PROXY TCP4 192.0.2.9 192.0.2.1 4711 443\r\n";
    const VERSION_2: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x0a\x01\x01\x01\x01\0\x01\0\x02";
    const ITSELF: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

    #[tokio::test]
    async fn a_trusted_proxy_says_for_whom_it_connects() {
        let mut harness = start(None, proxied("127.0.0.0/8"));
        for (header, client) in [
            (FOR_CLIENT, "192.0.2.9"),
            (VERSION_2, "192.0.2.10"),
            (ITSELF, "127.0.0.1"),
            (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        ] {
            let got = told(&harness, &[header, POST]).await;
            assert!(got.contains("Ok(2)") && got.ends_with(client), "{got}");
            let (begin, end) = header.split_at(header.len() / 2);
            let got = told(&harness, &[begin, end, POST]).await;
            assert!(got.ends_with(client), "{got}");
        }
        for wrong in [POST, b"PROXY TCP4 192.0.2.9 192.0.2.1 4711\r\n"] {
            assert_eq!(told(&harness, &[wrong]).await, "");
            harness.event(Event::Refused(Refused::ProxyHeader)).await;
        }
        // A balancer that looks whether somebody is there says nothing, and nothing is said of it.
        assert_eq!(told(&harness, &[]).await, "");
        harness.event(Event::Closed).await;
        // The clients are counted, not the proxy.
        let mut busy = Vec::new();
        for _ in 0..2 {
            let mut stream = harness.connect().await;
            stream.write_all(&[FOR_CLIENT, &to_wait()].concat()).await.unwrap();
            harness.waiting.notified().await;
            busy.push(stream);
        }
        assert_eq!(told(&harness, &[FOR_CLIENT, POST]).await, "");
        harness.event(Event::Refused(Refused::Address)).await;
        assert!(told(&harness, &[VERSION_2, POST]).await.ends_with("192.0.2.10"));
        harness.go.notify_waiters();
        for stream in &mut busy {
            stream.shutdown().await.unwrap();
            assert!(to_end(stream).await.ends_with("192.0.2.9"));
        }
    }

    #[tokio::test]
    async fn who_is_no_trusted_proxy_speaks_for_itself_only() {
        let mut harness = start(None, proxied("192.0.2.0/24"));
        for header in [FOR_CLIENT, VERSION_2, ITSELF] {
            assert_eq!(told(&harness, &[header, POST]).await, "");
            harness.event(Event::Refused(Refused::NotAProxy)).await;
        }
        assert!(told(&harness, &[POST]).await.ends_with("127.0.0.1"));
    }

    #[tokio::test]
    async fn the_header_of_a_proxy_comes_in_time_or_not_at_all() {
        let short = Duration::from_millis(100);
        let limits = ListenerLimits { handshake_timeout: short, ..proxied("127.0.0.0/8") };
        let mut harness = start(None, limits);
        for sent in [&b""[..], b"PROXY TCP4", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"] {
            let mut stream = harness.connect().await;
            stream.write_all(sent).await.unwrap();
            assert_eq!(to_end(&mut stream).await, "");
            let long = sent.ends_with(b"\xff");
            let why = if long { Refused::ProxyHeader } else { Refused::ProxyTimeout };
            harness.event(Event::Refused(why)).await;
        }
    }

    #[tokio::test]
    async fn at_the_limit_a_handshake_that_does_not_come_ends_for_the_next() {
        let authority = Authority::new();
        let config = authority.issue(&["127.0.0.1"]).server_config();
        let harness = start(Some(config), ListenerLimits { connections_max: 1, ..limits() });
        let mut silent = harness.connect().await;
        let client = client(Some(authority.client_config()));
        let url = format!("https://{}/", harness.addr);
        let answer = client.send(post(&url, "four"), deadline()).await.unwrap();
        assert!(answer.excerpt.starts_with(b"HTTP/2.0"));
        assert_eq!(to_end(&mut silent).await, "");
    }

    #[tokio::test]
    async fn at_the_limit_a_request_in_work_is_answered_before_its_connection_ends() {
        let mut harness = start(None, ListenerLimits { connections_max: 1, ..limits() });
        let mut first = harness.connect().await;
        first.write_all(&to_wait()).await.unwrap();
        harness.waiting.notified().await;
        let mut second = harness.connect().await;
        second.write_all(POST).await.unwrap();
        harness.event(Event::Full).await;
        assert!(harness.events.try_recv().is_err(), "the second has no slot");
        harness.go.notify_one();
        assert!(to_end(&mut first).await.contains("Ok(2)"));
        assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_sender_that_closes_its_half_is_answered() {
        let harness = start(None, limits());
        let mut stream = harness.connect().await;
        stream.write_all(&to_wait()).await.unwrap();
        stream.shutdown().await.unwrap();
        harness.waiting.notified().await;
        harness.go.notify_one();
        assert!(to_end(&mut stream).await.contains("Ok(2)"));
    }

    fn to_wait() -> Vec<u8> {
        String::from_utf8_lossy(POST).replacen("POST /", "POST /wait", 1).into_bytes()
    }

    #[tokio::test]
    async fn plain_http2_is_served_and_large_heads_are_refused() {
        let harness = start(None, limits());
        let io = hyper_util::rt::TokioIo::new(harness.connect().await);
        let executor = crate::net::TrackedExecutor(harness.tracker.clone());
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        drop(harness.tracker.spawn(connection));
        let response = send.send_request(post("http://a/", "abc")).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let mut large = post("http://a/", "abc");
        large.headers_mut().insert("x", "y".repeat(HEAD_BYTES_MAX).parse().unwrap());
        assert_eq!(send.send_request(large).await.unwrap().status(), 431);
        let mut stream = harness.connect().await;
        let head =
            format!("POST / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(2 * HEAD_BYTES_MAX));
        drop(stream.write_all(head.as_bytes()).await);
        assert!(to_end(&mut stream).await.starts_with("HTTP/1.1 431"));
        let mut stream = harness.connect().await;
        let head =
            format!("POST / HTTP/1.1\r\nhost: a\r\nx: {}\r\n", "y".repeat(HEAD_BYTES_MAX - 100));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"ok").await.unwrap();
        assert!(answer(&mut stream).await.contains("Ok(2)"));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told_from_one_that_is_wrong() {
        let harness = start(None, limits());
        for (body, expected) in [
            ("content-length: 9\r\n\r\nhalf", "Disconnected"),
            ("transfer-encoding: chunked\r\n\r\n5\r\nha", "Disconnected"),
            ("transfer-encoding: chunked\r\n\r\nrubbish\r\n", "Malformed"),
        ] {
            let mut stream = harness.connect().await;
            let head = "POST / HTTP/1.1\r\nhost: a\r\n";
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let got = to_end(&mut stream).await;
            assert!(got.contains(expected), "{body:?}: {got:?}");
        }
    }

    #[tokio::test]
    async fn http2_connections_idle_out_and_drain_too() {
        let authority = Authority::new();
        let config = authority.issue(&["127.0.0.1"]).server_config();
        let idle_timeout = Duration::from_millis(200);
        let quick = ListenerLimits { idle_timeout, ..limits() };
        for (limits, drain) in [(quick, false), (limits(), true)] {
            let mut harness = start(Some(Arc::clone(&config)), limits);
            let client = client(Some(authority.client_config()));
            let url = format!("https://{}/", harness.addr);
            let answer = client.send(post(&url, "four"), deadline()).await.unwrap();
            assert!(answer.excerpt.starts_with(b"HTTP/2.0"));
            if drain {
                harness.drain.cancel();
            }
            harness.event(Event::Closed).await;
            harness.stop.cancel();
            harness.drain.cancel();
            harness.ended().await;
        }
    }

    #[tokio::test]
    async fn an_answer_ends_its_connection_over_http2_as_well() {
        let authority = Authority::new();
        let config = authority.issue(&["127.0.0.1"]).server_config();
        let mut harness = start(Some(config), limits());
        let client = client(Some(authority.client_config()));
        let url = format!("https://{}/last", harness.addr);
        let answer = client.send(post(&url, "four"), deadline()).await.unwrap();
        assert!(answer.excerpt.starts_with(b"HTTP/2.0"));
        harness.event(Event::Closed).await;
    }

    #[tokio::test]
    async fn it_ends_in_two_steps() {
        let mut harness = start(None, limits());
        let mut idle = harness.connect().await;
        idle.write_all(POST).await.unwrap();
        answer(&mut idle).await;
        let mut busy = harness.connect().await;
        busy.write_all(&to_wait()).await.unwrap();
        harness.waiting.notified().await;
        let fresh = harness.connect().await;
        harness.stop.cancel();
        for _ in 0..3 {
            harness.event(Event::Opened).await;
        }
        while TcpStream::connect(harness.addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
        idle.write_all(POST).await.unwrap();
        answer(&mut idle).await;
        harness.drain.cancel();
        assert_eq!(to_end(&mut idle).await, "");
        harness.go.notify_one();
        let last = to_end(&mut busy).await;
        assert!(last.contains("Ok(2)") && last.contains("connection: close"), "{last}");
        harness.ended().await;
        drop(fresh);
    }

    #[tokio::test]
    async fn while_it_ends_each_connection_has_one_more_request() {
        let harness = start(None, limits());
        let mut used = harness.connect().await;
        used.write_all(POST).await.unwrap();
        answer(&mut used).await;
        let mut fresh = harness.connect().await;
        harness.drain.cancel();
        let mut late = harness.connect().await;
        for stream in [&mut used, &mut fresh, &mut late] {
            stream.write_all(POST).await.unwrap();
            let last = to_end(stream).await;
            assert!(last.contains("Ok(2)") && last.contains("connection: close"), "{last}");
        }
        harness.stop.cancel();
        harness.ended().await;
    }

    #[tokio::test]
    async fn a_handshake_that_is_on_its_way_when_it_ends_is_of_use() {
        let authority = Authority::new();
        let config = authority.issue(&["127.0.0.1"]).server_config();
        let mut harness = start(Some(config), limits());
        let stream = harness.connect().await;
        harness.event(Event::Opened).await;
        harness.stop.cancel();
        harness.drain.cancel();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let mut config = ClientConfig::clone(&authority.client_config());
        config.alpn_protocols.clear();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await.unwrap();
        stream.write_all(POST).await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(got.contains("Ok(2)") && got.contains("connection: close"), "{got}");
        harness.ended().await;
    }

    #[tokio::test]
    async fn what_waits_where_another_holds_the_socket_is_left_to_the_next() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap().into_std().unwrap();
        let address = listener.local_addr().unwrap();
        let first = start_on(listener.try_clone().unwrap(), Backlog::Leave, None, limits());
        // On one thread, the listener does not run before we wait.
        first.stop.cancel();
        let blocking = std::net::TcpStream::connect(address).unwrap();
        blocking.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(blocking).unwrap();
        first.ended().await;
        stream.write_all(POST).await.unwrap();
        let _next = start_on(listener, Backlog::Leave, None, limits());
        assert!(answer(&mut stream).await.contains("Ok(2)"));
    }

    #[tokio::test]
    async fn what_waits_in_the_backlog_is_accepted_before_the_socket_closes() {
        let mut harness = start(None, limits());
        // On one thread, the listener does not run before we wait.
        harness.stop.cancel();
        let blocking = std::net::TcpStream::connect(harness.addr).unwrap();
        blocking.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(blocking).unwrap();
        stream.write_all(POST).await.unwrap();
        assert!(answer(&mut stream).await.contains("Ok(2)"));
        harness.event(Event::Opened).await;
    }

    #[tokio::test]
    async fn the_default_address_serves_ipv4_as_well() {
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connected, accepted) =
            tokio::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
        connected.unwrap();
        assert_eq!(accepted.unwrap().1.ip().to_canonical(), Ipv4Addr::LOCALHOST);
        let error = bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).unwrap_err();
        assert!(matches!(error, BindError::Taken), "{error}");
    }

    #[test]
    fn an_aborted_connection_is_not_our_failure() {
        assert!(is_peers(&io::ErrorKind::ConnectionAborted.into()));
        let no_files = rustix::io::Errno::MFILE.raw_os_error();
        assert!(!is_peers(&io::Error::from_raw_os_error(no_files)));
    }
}
