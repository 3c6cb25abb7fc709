//! Spans: what happened to a webhook and when, handed to whoever exports them.
//!
//! Where nobody does, nothing is made. Where somebody does, a span is made after what it tells of, off
//! the way to the sender's answer, and put into a bounded queue; what finds no room is counted.
//! A span has no body, no header, no query and no path of a target's URL: those may be secrets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::Counter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::domain::trace::{Sampling, TraceContext};
use crate::domain::webhook::WebhookId;

/// Spans that wait for being exported: some 4 MB at most.
pub const SPANS_MAX: usize = 4096;

/// Of a text that others chose, an activity's name perhaps, so much is told.
const TEXT_BYTES_MAX: usize = 256;

/// Where spans go. All copies lead to the same place.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampling: Sampling,
    since_1970: fn() -> Duration,
    spans: mpsc::Sender<Span>,
    counts: Arc<Counts>,
}

/// What becomes of spans.
pub struct Counts {
    lost: AtomicU64,
    metrics: SpanMetrics,
}

/// The metrics of spans, made by [`Metrics`](super::metrics::Metrics).
pub struct SpanMetrics {
    pub(super) exported: Counter,
    pub(super) dropped: Counter,
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SpanMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SpanMetrics")
    }
}

impl Counts {
    /// A receiver took so many.
    pub fn exported(&self, spans: u64) {
        self.metrics.exported.increment(spans);
    }

    /// So many more are lost.
    pub fn dropped(&self, spans: u64) {
        self.lost.fetch_add(spans, Ordering::Relaxed);
        self.metrics.dropped.increment(spans);
    }

    /// All that were lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// What is to be exported, for whoever does it.
#[derive(Debug)]
pub struct Queue {
    /// In the order in which they ended.
    pub spans: mpsc::Receiver<Span>,
    /// What found no room here is counted; the exporter counts the others.
    pub counts: Arc<Counts>,
}

/// A part of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Which one, and in which trace.
    pub context: TraceContext,
    /// Of which it is a part.
    pub parent: Option<[u8; 8]>,
    /// What led to it in another trace.
    pub link: Option<TraceContext>,
    /// What it is, in few words and of few kinds.
    pub name: String,
    /// Who did it.
    pub kind: Kind,
    /// In nanoseconds since 1970.
    pub started_at: u64,
    /// The same.
    pub ended_at: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it did not go well.
    pub error: Option<String>,
}

/// Who did what a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The relay for itself.
    Internal,
    /// The relay, asked by another.
    Server,
    /// Another, asked by the relay.
    Client,
}

/// What an attribute is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Text(Box<str>),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default().into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// When it was, on the machine's clock: other machines' spans stand beside it.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    now: Instant,
    at: Duration,
}

impl Times {
    /// A moment of before, in nanoseconds since 1970.
    pub fn of(&self, instant: Instant) -> u64 {
        let at = self.at.saturating_sub(self.now.saturating_duration_since(instant));
        u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Traces {
    /// Traces that go into a queue, which is so long; what the machine's clock shows is how long it is
    /// since 1970.
    pub fn new(
        sampling: Sampling,
        since_1970: fn() -> Duration,
        spans_max: usize,
        metrics: SpanMetrics,
    ) -> (Self, Queue) {
        let (spans, receiver) = mpsc::channel(spans_max);
        let counts = Arc::new(Counts { lost: AtomicU64::new(0), metrics });
        let queue = Queue { spans: receiver, counts: Arc::clone(&counts) };
        (Self(Some(Arc::new(Inner { sampling, since_1970, spans, counts }))), queue)
    }

    /// Where the request that brought a webhook is in its trace, if there are traces.
    pub fn of_webhook(&self, id: WebhookId) -> Option<TraceContext> {
        let Inner { sampling, .. } = &**self.0.as_ref()?;
        Some(TraceContext::of_webhook(id, *sampling))
    }

    /// The same, if its trace is recorded.
    pub fn recorded(&self, id: WebhookId) -> Option<TraceContext> {
        self.of_webhook(id).filter(|context| context.sampled)
    }

    /// What the machine's clock shows now, if there are traces.
    pub fn times(&self) -> Option<Times> {
        let Inner { since_1970, .. } = &**self.0.as_ref()?;
        Some(Times { now: Instant::now(), at: since_1970() })
    }

    /// Has spans exported.
    pub fn record<const N: usize>(&self, spans: [Span; N]) {
        let Some(inner) = &self.0 else { return };
        for span in spans {
            if inner.spans.try_send(span).is_err() {
                inner.counts.dropped(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(sampling: Sampling, spans_max: usize) -> (Traces, Queue) {
        let metrics = SpanMetrics { exported: Counter::noop(), dropped: Counter::noop() };
        Traces::new(sampling, || Duration::from_secs(7), spans_max, metrics)
    }

    fn span(name: &str) -> Span {
        let id = WebhookId::from_bytes([0xab; 16]);
        Span {
            context: TraceContext::of_webhook(id, Sampling::ALL),
            parent: None,
            link: None,
            name: name.to_owned(),
            kind: Kind::Internal,
            started_at: 1,
            ended_at: 2,
            attributes: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let (traces, mut queue) = traces(Sampling::ALL, 2);
        traces.record([span("1"), span("2"), span("3")]);
        assert_eq!(queue.counts.lost(), 1);
        assert_eq!(queue.spans.try_recv().unwrap().name, "1");
        traces.record([span("4")]);
        drop(queue.spans);
        traces.record([span("5")]);
        assert_eq!(queue.counts.lost(), 2);
    }

    #[test]
    fn without_an_exporter_there_is_no_context() {
        let traces = Traces::default();
        let id = WebhookId::from_bytes([0xab; 16]);
        assert_eq!((traces.of_webhook(id), traces.recorded(id)), (None, None));
        traces.record([span("1")]);
    }

    #[test]
    fn what_is_not_sampled_has_a_context_and_is_not_recorded() {
        let (traces, _queue) = traces(Sampling::share(0.5).unwrap(), 1);
        let id = WebhookId::from_bytes([0x01; 16]);
        assert!(!traces.of_webhook(id).unwrap().sampled);
        assert_eq!(traces.recorded(id), None);
        assert!(traces.recorded(WebhookId::from_bytes([0xfe; 16])).is_some());
    }

    #[test]
    fn a_text_is_cut_where_a_character_ends() {
        let long = format!("x{}", "ö".repeat(300));
        let Value::Text(text) = Value::from(long.as_str()) else { panic!("no text") };
        assert_eq!(text.len(), 255);
        assert!(long.starts_with(&*text));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_of_before_is_so_much_earlier() {
        let before = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        let times = traces(Sampling::ALL, 1).0.times().unwrap();
        assert_eq!(times.of(Instant::now()), 7_000_000_000);
        assert_eq!(times.of(Instant::now()) - times.of(before), 3_000_000_000);
    }
}
