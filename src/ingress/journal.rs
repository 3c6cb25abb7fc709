//! One event and one count per request.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::answer::Answer;
use crate::ingress::answer::{Outcome, Refusal, Taken};
use crate::ingress::sources::SourceState;
use crate::telemetry::log_limit::LogLimit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::source::AnswerMetrics;

/// Refusals of one kind that are logged one by one within [`LOG_WINDOW`]; the rest is counted.
const LOGGED_PER_WINDOW: u32 = 10;
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// Of a path without a source, so much is logged.
const PATH_CHARS_MAX: usize = 200;

/// A request, as far as its log line is concerned.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    began: Instant,
    peer: Option<IpAddr>,
    /// Once it is known.
    pub(super) source: Option<Arc<SourceState>>,
    /// Where it leads to no source.
    path: Option<Box<str>>,
    /// Of its body, once that was read.
    pub(super) bytes: usize,
    /// The sender was told to send its body.
    pub(super) body_wanted: bool,
}

impl Exchange {
    pub(super) fn begin(peer: Option<IpAddr>) -> Self {
        let began = Instant::now();
        Self { began, peer, source: None, path: None, bytes: 0, body_wanted: false }
    }

    /// Remembers a path without a source; the query string is never logged.
    pub(super) fn lost_way(&mut self, path: &str) {
        self.path = Some(path.chars().take(PATH_CHARS_MAX).collect());
    }

    fn source_name(&self) -> &str {
        self.source.as_ref().map_or("none", |state| &*state.source.name)
    }

    #[expect(clippy::cast_precision_loss, reason = "a log line shows three decimals")]
    fn duration_ms(&self) -> f64 {
        self.began.elapsed().as_micros() as f64 / 1000.0
    }
}

/// Records how requests ended.
#[derive(Debug)]
pub(super) struct Journal {
    no_source: AnswerMetrics,
    /// For each answer, so that a flood of one hides no other.
    limits: [LogLimits; Answer::ALL.len()],
}

#[derive(Debug)]
struct LogLimits {
    alarms: Mutex<LogLimit>,
    others: Mutex<LogLimit>,
}

impl LogLimits {
    fn new() -> Self {
        let limit = || Mutex::new(LogLimit::new(LOGGED_PER_WINDOW, LOG_WINDOW));
        Self { alarms: limit(), others: limit() }
    }
}

impl Journal {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self { no_source: metrics.no_source(), limits: Answer::ALL.map(|_| LogLimits::new()) }
    }

    /// A request was answered.
    pub(super) fn answered(&self, exchange: &Exchange, outcome: &Outcome) {
        let answer = match outcome {
            Ok(taken) => taken.answer,
            Err(refusal) => refusal.answer,
        };
        let duration = exchange.began.elapsed();
        match &exchange.source {
            Some(state) => state.metrics.answered(answer, duration),
            None => self.no_source.answered(answer, duration),
        }
        match outcome {
            Ok(taken) => log_taken(exchange, taken, "webhook"),
            Err(refusal) => self.log_refusal(exchange, refusal),
        }
    }

    /// What became of a webhook whose sender was told [`Answer::StoreUnavailable`] because it took
    /// too long.
    pub(super) fn ended_late(&self, exchange: &Exchange, outcome: &Outcome) {
        match outcome {
            Ok(taken) => log_taken(exchange, taken, "webhook, after its sender was told 503"),
            Err(refusal) => self.log_refusal(exchange, refusal),
        }
    }

    fn log_refusal(&self, exchange: &Exchange, refusal: &Refusal) {
        let position = Answer::ALL.iter().position(|known| *known == refusal.answer);
        let Some(limits) = position.and_then(|position| self.limits.get(position)) else { return };
        let now = Instant::now();
        let Exchange { peer, path, bytes, .. } = exchange;
        macro_rules! log {
            ($level:ident, $suppressed:ident, $message:expr) => {
                tracing::$level!(
                    source = exchange.source_name(),
                    answer = refusal.answer.name(),
                    reason = refusal.reason,
                    path = path.as_deref(),
                    bytes,
                    duration_ms = exchange.duration_ms(),
                    peer = peer.map(tracing::field::display),
                    suppressed = $suppressed,
                    "{}",
                    $message
                )
            };
        }
        if let Some(alarm) = refusal.alarm
            && let Some(suppressed) = admit(&limits.alarms, now)
        {
            log!(error, suppressed, alarm);
        } else if let Some(suppressed) = admit(&limits.others, now) {
            log!(warn, suppressed, "request refused");
        }
    }
}

fn log_taken(exchange: &Exchange, taken: &Taken, message: &'static str) {
    tracing::info!(
        webhook_id = taken.webhook_id.map(tracing::field::display),
        source = exchange.source_name(),
        activity = taken.activity.as_deref(),
        answer = taken.answer.name(),
        bytes = exchange.bytes,
        duration_ms = exchange.duration_ms(),
        deliveries = (!taken.deliveries.is_empty()).then_some(&*taken.deliveries),
        peer = exchange.peer.map(tracing::field::display),
        "{message}"
    );
}

fn admit(limit: &Mutex<LogLimit>, now: Instant) -> Option<u64> {
    limit.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
}
