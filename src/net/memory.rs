//! Connections without a socket, for tests and fuzz targets: served as a listener serves its own.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Open, Protocols, ServerConnection};
use super::crowd::Crowd;
use super::listener::{ListenerLimits, ListenerObserver, PeerInfo};
use super::phase::Ending;

/// What serves connections. What belongs to the socket, and TLS, is left out; all else is the same.
#[derive(Debug)]
pub struct MemoryServer<O> {
    /// What is let in.
    pub limits: ListenerLimits,
    /// Told what happens.
    pub observer: Arc<O>,
    /// Cancelled to end the connections in order.
    pub drain: CancellationToken,
    /// Runs what a connection wants to go on beside it.
    pub tracker: TaskTracker,
}

impl<O: ListenerObserver> MemoryServer<O> {
    /// Serves one connection to its end, as if it came from there: plain HTTP, told apart by its first bytes.
    pub async fn serve<I, S, F, B>(&self, io: I, addr: SocketAddr, service: S)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let crowd = Crowd::new(1);
        let Some(slot) = crowd.try_slot() else { return };
        let connection = ServerConnection {
            peer: PeerInfo { addr, is_untold: false, tls: false, certificate: None },
            tls: None,
            limits: self.limits.clone(),
            protocols: Arc::new(Protocols::new(&self.tracker)),
            open: Open::new(&self.observer),
            member: Arc::new(crowd.enter(slot)),
            ending: Ending { drain: self.drain.clone(), stop_accepting: self.drain.clone() },
        };
        connection.http(io, &connection.protocols.either, service).await;
    }
}
