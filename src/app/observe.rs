//! Wires what the layers below report to metrics and logs.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::answer::Answer;
use crate::ingress::Ingress;
use crate::net::listener::{HandshakeResult, ListenerObserver, PeerInfo, Refused, Unreadable};
use crate::store::Pulse;
use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::observer::Observer;
use crate::telemetry::log_limit::LogLimit;
use crate::telemetry::metrics::CommitMetrics;
use crate::telemetry::source::ConnectionMetrics;

/// Refused connections that are logged one by one within a window; the rest is counted.
const REFUSED_LOGGED: u32 = 10;
const REFUSED_LOGGED_WINDOW: Duration = Duration::from_secs(10);

/// Listens to the listener.
#[derive(Debug)]
pub(super) struct Connections {
    metrics: ConnectionMetrics,
    full: AtomicBool,
    refused: Mutex<LogLimit>,
    ingress: Arc<Ingress<EmbeddedStore>>,
}

impl Connections {
    pub(super) fn new(metrics: ConnectionMetrics, ingress: Arc<Ingress<EmbeddedStore>>) -> Self {
        let refused = Mutex::new(LogLimit::new(REFUSED_LOGGED, REFUSED_LOGGED_WINDOW));
        Self { metrics, full: AtomicBool::new(false), refused, ingress }
    }
}

impl ListenerObserver for Connections {
    fn connection_opened(&self) {
        self.metrics.opened();
    }

    fn connection_closed(&self) {
        self.metrics.closed();
        self.full.store(false, Ordering::Relaxed);
    }

    fn connections_full(&self) {
        // Once for each time that it becomes full, so that a crowd can't fill the log.
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "All --connections-max connections are taken; those idle for longest end for new ones."
            );
        }
    }

    fn connection_refused(&self, why: Refused, peer: SocketAddr) {
        let (reason, said) = match why {
            Refused::Address => (
                "address",
                "it has all --connections-per-address-max connections, and all are busy",
            ),
            Refused::NotAProxy => {
                ("not_a_proxy", "it speaks for another, and is not in --trusted-proxies")
            }
            Refused::ProxyHeader => (
                "proxy_header",
                "a trusted proxy did not begin with a header of the PROXY protocol",
            ),
            Refused::ProxyTimeout => {
                ("proxy_timeout", "the header of the PROXY protocol did not come in time")
            }
        };
        self.metrics.refused(reason);
        let admitted =
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        if let Some(suppressed) = admitted {
            let peer = peer.ip().to_canonical();
            tracing::warn!(%peer, reason, suppressed, "A connection is refused: {said}.");
        }
    }

    fn handshake(&self, result: HandshakeResult) {
        match result {
            HandshakeResult::Ok => self.metrics.handshake("ok"),
            HandshakeResult::Timeout => self.metrics.handshake("timeout"),
            HandshakeResult::Failed => self.metrics.handshake("failed"),
            // A balancer's probe that never spoke.
            HandshakeResult::Closed => {}
        }
    }

    fn unreadable(&self, what: Unreadable, peer: &PeerInfo) {
        let answer = match what {
            Unreadable::Malformed => Answer::BadRequest,
            Unreadable::TooLarge => Answer::HeadersTooLarge,
        };
        self.ingress.unreadable(answer, peer.addr);
    }

    fn accept_error(&self, error: &io::Error) {
        tracing::error!(%error, "A connection can't be accepted; trying again.");
    }
}

/// Says when the disk holds commits up, and when it does not any more.
#[derive(Debug, Default)]
pub(super) struct HoldUps {
    is_held_up: bool,
}

impl HoldUps {
    /// Looks at the store's pulse; one event for each change.
    pub(super) fn look(&mut self, pulse: Pulse) {
        if pulse.is_held_up() == self.is_held_up {
            return;
        }
        self.is_held_up = pulse.is_held_up();
        if self.is_held_up {
            tracing::error!(
                held_up_for = ?pulse.held_up_for,
                "The disk does not answer: webhooks are refused until it does, and are being lost."
            );
        } else {
            tracing::warn!("The disk answers again.");
        }
    }
}

/// Listens to the committer.
#[derive(Debug)]
pub(super) struct Commits(pub(super) CommitMetrics);

impl Observer for Commits {
    fn commit_batch(&self, webhooks: usize, duration: Duration) {
        self.0.committed(u32::try_from(webhooks).unwrap_or(u32::MAX), duration);
    }
}
