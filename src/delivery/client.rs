//! How a lane reaches its target: the network behind two small traits.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::uri::{Authority, Scheme};
use http_body_util::Full;
use tokio::time::Instant;

use crate::domain::target::{Target, TargetTls};
use crate::net::client::{Answer, Client, ClientSettings, SendFailure};
use crate::net::resolve::Resolver;
use crate::net::tls;

/// What an attempt sends.
pub type Outgoing = Request<Full<Bytes>>;

/// Makes clients.
pub trait Network: Send + Sync + 'static {
    /// What sends to one target.
    type Client: SendRequest;

    /// A client for a target. Connects to nothing yet, and never fails: what is wrong with the
    /// settings shows at the attempts.
    fn client(&self, target: &Target) -> Self::Client;
}

/// Sends requests to one target.
pub trait SendRequest: Send + Sync + 'static {
    /// One exchange, over by `deadline`.
    fn send(
        &self,
        request: Outgoing,
        deadline: Instant,
    ) -> impl Future<Output = Result<Answer, SendFailure>> + Send;
}

/// The real network.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    resolver: Resolver,
}

impl Clients {
    /// Clients that resolve names by `resolver`.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }
}

impl Network for Clients {
    type Client = TargetClient;

    fn client(&self, target: &Target) -> TargetClient {
        TargetClient {
            key: Connecting::of(target),
            resolver: self.resolver.clone(),
            client: OnceLock::new(),
        }
    }
}

/// What of a target's settings its connections depend on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Connecting {
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    tls: TargetTls,
    concurrency: usize,
    timeout: Duration,
}

impl Connecting {
    /// As the target has it now.
    pub(super) fn of(target: &Target) -> Self {
        Self {
            scheme: target.url.scheme().cloned(),
            authority: target.url.authority().cloned(),
            tls: target.tls.clone(),
            concurrency: target.concurrency,
            timeout: target.timeout,
        }
    }

    /// Whether both reach the same server.
    pub(super) fn same_server(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.authority == other.authority
    }
}

/// Sends to one target over pooled connections, which are set up by the first attempt.
#[derive(Debug)]
pub struct TargetClient {
    key: Connecting,
    resolver: Resolver,
    client: OnceLock<Client>,
}

impl TargetClient {
    // A failure is not remembered: roots may be installed while we run.
    fn ready(&self) -> Result<&Client, tls::TlsError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let wanted = &self.key.tls;
        let identity = wanted.identity.as_ref().map(|own| (&own.certificate[..], &own.key[..]));
        let settings = ClientSettings {
            tls: match self.key.scheme == Some(Scheme::HTTPS) {
                true => {
                    Some(tls::client_config(tls::TargetTls { ca: wanted.ca.as_deref(), identity })?)
                }
                false => None,
            },
            server_name: wanted.server_name.as_deref().map(tls::server_name).transpose()?,
            idle_max: self.key.concurrency,
            connect_timeout: self.key.timeout,
            resolver: self.resolver.clone(),
        };
        Ok(self.client.get_or_init(|| Client::new(settings)))
    }
}

impl SendRequest for TargetClient {
    async fn send(&self, request: Outgoing, deadline: Instant) -> Result<Answer, SendFailure> {
        match self.ready() {
            Ok(client) => client.send(request, deadline).await,
            Err(error) => Err(SendFailure::Tls(error.to_string())),
        }
    }
}

/// The client that a lane uses, and what it was made from.
pub(super) struct Made<C> {
    /// What it was made from.
    pub(super) from: Connecting,
    /// Shared with the attempts in flight.
    pub(super) client: Arc<C>,
}
