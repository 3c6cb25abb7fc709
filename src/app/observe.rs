//! Wires what the layers below report to metrics and logs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::domain::answer::Answer;
use crate::ingress::Ingress;
use crate::net::listener::{HandshakeResult, ListenerObserver, PeerInfo, Refused, Unreadable};
use crate::store::Pulse;
use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::observer::Observer;
use crate::telemetry::log_limit::LogLimits;
use crate::telemetry::metrics::CommitMetrics;
use crate::telemetry::source::ConnectionMetrics;

/// Listens to the listener.
#[derive(Debug)]
pub(super) struct Connections {
    metrics: ConnectionMetrics,
    full: AtomicBool,
    told: LogLimits<&'static str>,
    ingress: Arc<Ingress<EmbeddedStore>>,
}

// What strangers can bring about as often as they like, beside the reasons of refused connections.
const FULL: &str = "full";
const NOT_ACCEPTED: &str = "not_accepted";
const HANDSHAKE: &str = "handshake";

impl Connections {
    pub(super) fn new(metrics: ConnectionMetrics, ingress: Arc<Ingress<EmbeddedStore>>) -> Self {
        let kinds = [FULL, NOT_ACCEPTED, HANDSHAKE].into_iter().chain(ConnectionMetrics::REFUSED);
        Self { metrics, full: AtomicBool::new(false), told: LogLimits::new(kinds), ingress }
    }

    /// Tells how many events of each kind are not in the log: to be called every few seconds.
    pub(super) fn tell_untold(&self) {
        self.told.tell_untold(tell_untold);
    }

    /// The same when no more connections come.
    pub(super) fn tell_rest(&self) {
        self.told.tell_rest(tell_untold);
    }

    /// Whether to log one event of this kind.
    fn admits(&self, kind: &'static str) -> bool {
        let admitted = self.told.admit(kind);
        if let Some(untold @ 1..) = admitted {
            tell_untold(kind, untold);
        }
        admitted.is_some()
    }
}

fn tell_untold(kind: &'static str, times: u64) {
    match kind {
        FULL => tracing::warn!(times, "All connections were taken more often than is logged."),
        NOT_ACCEPTED => {
            tracing::error!(times, "Accepting connections failed more often than is logged.");
        }
        HANDSHAKE => tracing::debug!(times, "TLS handshakes failed more often than is logged."),
        reason => {
            tracing::warn!(reason, times, "Connections were refused more often than is logged.");
        }
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
        if !self.full.swap(true, Ordering::Relaxed) && self.admits(FULL) {
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
        if self.admits(reason) {
            let peer = peer.ip().to_canonical();
            tracing::warn!(%peer, reason, "A connection is refused: {said}.");
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

    fn handshake_failed(&self, why: &io::Error, peer: SocketAddr) {
        // Whoever looks for open ports fails all day: it is of interest to who looks for a reason.
        if self.admits(HANDSHAKE) {
            let peer = peer.ip().to_canonical();
            tracing::debug!(%peer, error = %why, "A TLS handshake failed.");
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
        if self.admits(NOT_ACCEPTED) {
            tracing::error!(%error, "A connection can't be accepted; trying again.");
        }
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
