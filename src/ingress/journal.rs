//! One event and one count per request.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::answer::Answer;
use crate::ingress::answer::{Outcome, Refusal, Taken};
use crate::ingress::sources::SourceState;
use crate::ingress::spans;
use crate::telemetry::log_limit::{LogLimit, LogLimits};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::source::AnswerMetrics;
use crate::telemetry::traces::Traces;

/// What may be a balancer that nobody has named is told once within this, for strangers can look like one.
const UNBELIEVED_WINDOW: Duration = Duration::from_secs(60);

/// Of a path without a source, so much is logged.
const PATH_CHARS_MAX: usize = 200;

/// A request, as far as its log line is concerned.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) began: Instant,
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

    pub(super) fn source_name(&self) -> &str {
        self.source.as_ref().map_or("none", |state| &*state.source.name)
    }

    #[expect(clippy::cast_precision_loss, reason = "a log line shows three decimals")]
    fn duration_ms(&self) -> f64 {
        self.began.elapsed().as_micros() as f64 / 1000.0
    }
}

/// Records how requests ended.
///
/// What was taken in is told one by one; what was refused only as far as the disk can bear it, whatever
/// the log's level is, and then by its number.
#[derive(Debug)]
pub(super) struct Journal {
    no_source: AnswerMetrics,
    refused: LogLimits<(Answer, Gravity)>,
    unbelieved: Mutex<LogLimit>,
    traces: Traces,
}

/// Whether someone must look at a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gravity {
    Alarm,
    Usual,
}

impl Journal {
    pub(super) fn new(metrics: &Metrics, traces: Traces) -> Self {
        let of = |gravity| Answer::ALL.into_iter().map(move |answer| (answer, gravity));
        let kinds = of(Gravity::Alarm).chain(of(Gravity::Usual));
        Self {
            no_source: metrics.no_source(),
            refused: LogLimits::new(kinds),
            unbelieved: Mutex::new(LogLimit::new(1, UNBELIEVED_WINDOW)),
            traces,
        }
    }

    /// A source's `allow_from` does not have who says that it forwards for somebody, whom it may have: who
    /// was told so, in vain, wonders why nobody gets in.
    pub(super) fn unbelieved(&self, exchange: &Exchange) {
        let mut limit = self.unbelieved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = limit.admit(Instant::now()) {
            tracing::warn!(
                source = exchange.source_name(),
                peer = exchange.peer.map(tracing::field::display),
                suppressed,
                "allow_from is held against an address that forwards for another (X-Forwarded-For) and is not \
                 in --trusted-proxies: if it is your proxy, name it there"
            );
        }
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
            Ok(taken) => {
                log_taken(exchange, taken, "webhook");
                spans::record(&self.traces, exchange, taken, answer);
            }
            Err(refusal) => self.log_refusal(exchange, refusal),
        }
    }

    /// What became of a webhook whose sender was told [`Answer::StoreUnavailable`] because it took
    /// too long.
    pub(super) fn ended_late(&self, exchange: &Exchange, outcome: &Outcome) {
        match outcome {
            Ok(taken) => {
                log_taken(exchange, taken, "webhook, after its sender was told 503");
                spans::record(&self.traces, exchange, taken, Answer::StoreUnavailable);
            }
            Err(refusal) => self.log_refusal(exchange, refusal),
        }
    }

    fn log_refusal(&self, exchange: &Exchange, refusal: &Refusal) {
        let gravity = if refusal.alarm.is_some() { Gravity::Alarm } else { Gravity::Usual };
        let Some(untold) = self.refused.admit((refusal.answer, gravity)) else { return };
        if untold > 0 {
            tell_untold((refusal.answer, gravity), untold);
        }
        let Exchange { peer, path, bytes, .. } = exchange;
        macro_rules! log {
            ($level:ident, $message:expr) => {
                tracing::$level!(
                    source = exchange.source_name(),
                    answer = refusal.answer.name(),
                    reason = refusal.reason,
                    path = path.as_deref(),
                    bytes,
                    duration_ms = exchange.duration_ms(),
                    peer = peer.map(tracing::field::display),
                    "{}",
                    $message
                )
            };
        }
        match refusal.alarm {
            Some(alarm) => log!(error, alarm),
            None => log!(warn, "request refused"),
        }
    }

    /// Tells how many refusals were not told one by one, once no more of them can come.
    pub(super) fn tell_untold(&self) {
        self.refused.tell_untold(tell_untold);
    }

    /// The same at the end.
    pub(super) fn tell_rest(&self) {
        self.refused.tell_rest(tell_untold);
    }
}

fn tell_untold((answer, gravity): (Answer, Gravity), requests: u64) {
    let answer = answer.name();
    match gravity {
        Gravity::Alarm => tracing::error!(
            answer,
            requests,
            "more requests were refused than are logged one by one, and someone must look at them"
        ),
        Gravity::Usual => tracing::warn!(
            answer,
            requests,
            "more requests were refused than are logged one by one"
        ),
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
