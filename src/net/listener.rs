//! Accepting connections within limits, and ending in two steps.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Open, Protocols, ServerConnection};

/// Connections that the kernel keeps until we come to accept them.
const BACKLOG: u32 = 4096;

/// The wait after a failed accept: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Binds a listening socket; `[::]` serves IPv4 too, and is 0.0.0.0 where IPv6 is off.
///
/// Call it within a tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match listen(address) {
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && no_ipv6(&error) => {
            listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
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
    /// Connections at once. Further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request to the end of its head, and from the start of a connection
    /// to the end of its first head.
    pub header_timeout: Duration,
    /// A connection on which no request begins or ends for so long is closed. Longer than any
    /// request may take, and than what a balancer in front keeps idle connections for.
    pub idle_timeout: Duration,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerInfo {
    /// Its address; IPv4 is written as such.
    pub addr: SocketAddr,
    /// It came over TLS.
    pub tls: bool,
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

/// Told what happens on a listener.
pub trait ListenerObserver: Send + Sync + 'static {
    /// A connection was accepted.
    fn connection_opened(&self) {}
    /// It is gone; called once for each that was opened.
    fn connection_closed(&self) {}
    /// `connections_max` is reached: nothing is accepted until a connection ends.
    fn connections_full(&self) {}
    /// A TLS handshake ended.
    fn handshake(&self, _result: HandshakeResult) {}
    /// Accepting failed, for want of file descriptors perhaps; it goes on after a wait.
    fn accept_error(&self, _error: &io::Error) {}
}

/// A listening socket with all it needs to serve.
///
/// It ends in two steps: [`stop_accepting`](Self::stop_accepting) closes the socket and lets
/// connections go on; [`drain`](Self::drain) tells each connection to end after the requests it
/// has. Who wants to wait for them waits for the tracker.
#[derive(Debug)]
pub struct Server<O> {
    /// From [`bind`].
    pub listener: TcpListener,
    /// The certificate in force for new connections; plain HTTP without.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// What is let in.
    pub limits: ListenerLimits,
    /// Told what happens.
    pub observer: Arc<O>,
    /// Cancelled to close the socket, after what is in its backlog was accepted.
    pub stop_accepting: CancellationToken,
    /// Cancelled to end the connections.
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
        let slots = Arc::new(Semaphore::new(self.limits.connections_max));
        let protocols = Arc::new(Protocols::new(&self.tracker));
        let mut back_off = BACK_OFF.0;
        loop {
            let Some(slot) = self.slot(&slots).await else { break };
            let accepted = tokio::select! {
                biased;
                () = self.stop_accepting.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => {
                    back_off = BACK_OFF.0;
                    self.open(stream, addr, slot, &protocols, &service);
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
        self.accept_backlog(&slots, &protocols, &service).await;
    }

    /// A place for one more connection; none if told to stop.
    async fn slot(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            return Some(slot);
        }
        self.observer.connections_full();
        tokio::select! {
            biased;
            () = self.stop_accepting.cancelled() => None,
            slot = Arc::clone(slots).acquire_owned() => slot.ok(),
        }
    }

    /// Takes in what has connected already: closing the socket would reset it.
    async fn accept_backlog<S, F, B>(
        &self,
        slots: &Arc<Semaphore>,
        protocols: &Arc<Protocols>,
        service: &S,
    ) where
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        while let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            let next = poll_fn(|context| match self.listener.poll_accept(context) {
                Poll::Ready(accepted) => Poll::Ready(accepted.ok()),
                Poll::Pending => Poll::Ready(None),
            });
            let Some((stream, addr)) = next.await else { break };
            self.open(stream, addr, slot, protocols, service);
        }
    }

    fn open<S, F, B>(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        slot: OwnedSemaphorePermit,
        protocols: &Arc<Protocols>,
        service: &S,
    ) where
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let connection = ServerConnection {
            peer: PeerInfo { addr, tls: self.tls.is_some() },
            tls: self.tls.as_ref().map(|config| Arc::clone(&config.borrow())),
            limits: self.limits.clone(),
            protocols: Arc::clone(protocols),
            drain: self.drain.clone(),
            open: Open::new(&self.observer, slot),
        };
        drop(self.tracker.spawn(connection.run(stream, service.clone())));
    }
}

/// The connection failed before we had it: the next may be good.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
