//! The metrics of a source and of connections, made by [`Metrics`](super::metrics::Metrics).

use std::collections::HashMap;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::domain::answer::Answer;
use crate::domain::signature::VerifyError;
use crate::domain::time::Timestamp;

/// The metrics of one source.
pub struct SourceMetrics {
    pub(super) answers: [(Counter, Histogram); Answer::ALL.len()],
    pub(super) verified: Vec<Counter>,
    pub(super) refused: Vec<(&'static str, Counter)>,
    pub(super) accepted: HashMap<Box<str>, Counter>,
    pub(super) accepted_none: Counter,
    pub(super) accepted_other: Counter,
    pub(super) unrouted: Counter,
    pub(super) last: Gauge,
    pub(super) silence: Gauge,
    pub(super) window: Gauge,
}

impl SourceMetrics {
    /// A request was answered.
    pub fn answered(&self, answer: Answer, duration: Duration) {
        record_answer(&self.answers, answer, duration);
    }

    /// The secret at `index` of the source matched; without a signature there is none.
    pub fn verified(&self, index: Option<usize>) {
        let counter = match index {
            Some(index) => self.verified.get(index),
            None => self.verified.last(),
        };
        if let Some(counter) = counter {
            counter.increment(1);
        }
    }

    /// No secret matched.
    pub fn refused(&self, error: VerifyError) {
        for (_, counter) in self.refused.iter().filter(|(name, _)| *name == error.name()) {
            counter.increment(1);
        }
    }

    /// A webhook is durable.
    pub fn accepted(&self, activity: Option<&str>, at: Timestamp) {
        let counter = match activity {
            None => &self.accepted_none,
            Some(name) => self.accepted.get(name).unwrap_or(&self.accepted_other),
        };
        counter.increment(1);
        self.last.set(at.as_secs_f64());
    }

    /// When the last one was accepted, as found in the store at the start.
    pub fn restore_last(&self, at: Timestamp) {
        self.last.set(at.as_secs_f64());
    }

    /// No route wanted it.
    pub fn unrouted(&self) {
        self.unrouted.increment(1);
    }

    /// The source is in the table no more: that it is silent is no alert.
    pub fn removed(&self) {
        self.silence.set(f64::INFINITY);
        self.window.set(0.0);
    }

    /// The source's settings that alerts compare with.
    pub fn settings(&self, silence_after: Duration, duplicates_window: Duration) {
        self.silence.set(silence_after.as_secs_f64());
        self.window.set(duplicates_window.as_secs_f64());
    }
}

/// The answers to requests that reach no source.
pub struct AnswerMetrics {
    pub(super) answers: [(Counter, Histogram); Answer::ALL.len()],
}

impl AnswerMetrics {
    /// A request was answered.
    pub fn answered(&self, answer: Answer, duration: Duration) {
        record_answer(&self.answers, answer, duration);
    }
}

fn record_answer(
    answers: &[(Counter, Histogram); Answer::ALL.len()],
    answer: Answer,
    duration: Duration,
) {
    let position = Answer::ALL.iter().position(|known| *known == answer);
    if let Some((counter, histogram)) = position.and_then(|position| answers.get(position)) {
        counter.increment(1);
        histogram.record(duration.as_secs_f64());
    }
}

/// The metrics of connections.
pub struct ConnectionMetrics {
    pub(super) open: Gauge,
    pub(super) handshakes: [(&'static str, Counter); Self::HANDSHAKES.len()],
    pub(super) refused: [(&'static str, Counter); Self::REFUSED.len()],
}

impl ConnectionMetrics {
    /// Why a connection is closed before anything is read of it.
    pub const REFUSED: [&str; 4] = ["address", "not_a_proxy", "proxy_header", "proxy_timeout"];

    /// How a handshake ends.
    pub(super) const HANDSHAKES: [&str; 3] = ["ok", "failed", "timeout"];

    /// A connection was closed before anything was read of it, for one of these reasons: `address`,
    /// `not_a_proxy`, `proxy_header` or `proxy_timeout`.
    pub fn refused(&self, reason: &'static str) {
        for (_, counter) in self.refused.iter().filter(|(name, _)| *name == reason) {
            counter.increment(1);
        }
    }

    /// A connection was opened.
    pub fn opened(&self) {
        self.open.increment(1.0);
    }

    /// A connection was closed.
    pub fn closed(&self) {
        self.open.decrement(1.0);
    }

    /// A handshake ended: `ok`, `failed` or `timeout`.
    pub fn handshake(&self, result: &'static str) {
        for (_, counter) in self.handshakes.iter().filter(|(name, _)| *name == result) {
            counter.increment(1);
        }
    }
}
