//! Exports spans: gathers them, sends them, and bears with a receiver that is away.
//!
//! Nobody waits for it. While the receiver is away one batch is tried again and again, those behind it
//! wait in a bounded queue, and what finds no room there is counted and told at the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::app::clock;
use crate::domain::trace::Sampling;
use crate::net::otlp::{Endpoint, ExportError, Exporter};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process;
use crate::telemetry::traces::{Counts, Queue, SPANS_MAX, Span, Traces};

/// What is exported, and where to.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The receiver.
    pub endpoint: Endpoint,
    /// Which traces.
    pub sampling: Sampling,
}

/// Spans of one request: it stays well below what receivers take.
const BATCH_MAX: usize = 512;

/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);

/// The first wait for a receiver that is away, and the longest.
const RETRY_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The longest that a receiver may ask for.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(300);

/// How long a stop waits for the last spans, and at most a tenth of all that it may take: the next relay
/// may begin only after it, and who connects meanwhile waits.
const FLUSH_WAIT: Duration = Duration::from_millis(250);

/// Exports spans until it is told to stop.
pub(super) struct Exporting {
    exporter: Exporter,
    spans: Receiver<Span>,
    counts: Arc<Counts>,
    episode: Episode,
}

/// Traces as the settings want them, and who exports them.
pub(super) fn prepare(
    settings: Option<&TraceSettings>,
    metrics: &Metrics,
) -> anyhow::Result<(Traces, Option<Exporting>)> {
    let Some(TraceSettings { endpoint, sampling }) = settings else {
        return Ok((Traces::default(), None));
    };
    let mut resource = vec![
        ("service.name", env!("CARGO_PKG_NAME").into()),
        ("service.version", env!("CARGO_PKG_VERSION").into()),
        ("process.pid", std::process::id().into()),
    ];
    resource.extend(process::host_name().map(|name| ("host.name", name.as_str().into())));
    let exporter = Exporter::new(endpoint.clone(), resource)
        .with_context(|| format!("--otlp-endpoint {endpoint} can't be used"))?;
    let (traces, Queue { spans, counts }) =
        Traces::new(*sampling, clock::since_1970, SPANS_MAX, metrics.spans());
    let episode = Episode::default();
    Ok((traces, Some(Exporting { exporter, spans, counts, episode })))
}

impl Exporting {
    /// Exports until `stop`, and then for a moment what is left; a stop takes `shutdown_timeout` at most.
    pub(super) async fn run(mut self, stop: CancellationToken, shutdown_timeout: Duration) {
        let flush_wait = FLUSH_WAIT.min(shutdown_timeout / 10);
        loop {
            let batch = self.gather(&stop).await;
            if stop.is_cancelled() {
                return self.flush(batch, flush_wait).await;
            }
            let body = self.exporter.encode(&batch);
            if !self.deliver(body, batch.len(), &stop).await {
                return self.flush(batch, flush_wait).await;
            }
        }
    }

    /// The next spans to be sent together; at a stop whatever is there.
    async fn gather(&mut self, stop: &CancellationToken) -> Vec<Span> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < BATCH_MAX {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
                span = self.spans.recv() => match span {
                    Some(span) => batch.push(span),
                    // Nobody is left who could tell anything.
                    None => {
                        stop.cancelled().await;
                        break;
                    }
                },
            }
            until = until.or_else(|| Some(Instant::now() + LINGER));
        }
        batch
    }

    /// Sends spans until they are taken or refused for good; false if told to stop before.
    async fn deliver(&mut self, body: Bytes, spans: usize, stop: &CancellationToken) -> bool {
        let mut wait = RETRY_WAIT.0;
        loop {
            let sent = tokio::select! {
                biased;
                sent = self.exporter.send(body.clone()) => sent,
                () = stop.cancelled() => return false,
            };
            let after = match sent {
                Ok(rejected) => {
                    self.taken(spans, rejected);
                    return true;
                }
                Err(ExportError::Never(reason)) => {
                    self.counts.dropped(spans as u64);
                    self.episode.fails(&reason, self.counts.lost());
                    return true;
                }
                Err(ExportError::Later { reason, after }) => {
                    self.episode.fails(&reason, self.counts.lost());
                    after
                }
            };
            tokio::select! {
                () = stop.cancelled() => return false,
                () = sleep(after.map_or(wait, |after| after.min(ASKED_WAIT_MAX))) => {}
            }
            wait = (wait * 2).min(RETRY_WAIT.1);
        }
    }

    /// Spans were taken, but for those that were rejected.
    fn taken(&mut self, spans: usize, rejected: Option<(u64, String)>) {
        let spans = spans as u64;
        let Some((count, reason)) = rejected else {
            self.counts.exported(spans);
            return self.episode.goes_well(self.counts.lost());
        };
        let count = count.min(spans);
        self.counts.exported(spans - count);
        self.counts.dropped(count);
        self.episode.fails(&format!("the receiver rejects spans: {reason}"), self.counts.lost());
    }

    /// Sends what is left, each once; what is not taken in time is counted.
    async fn flush(mut self, mut batch: Vec<Span>, wait: Duration) {
        let deadline = Instant::now() + wait;
        self.spans.close();
        loop {
            while batch.len() < BATCH_MAX
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                break;
            }
            let body = self.exporter.encode(&batch);
            match timeout_at(deadline, self.exporter.send(body)).await {
                Ok(Ok(rejected)) => self.taken(batch.len(), rejected),
                failed => {
                    self.counts.dropped((batch.len() + self.spans.len()) as u64);
                    let reason = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "not all were taken in time".to_owned(),
                    };
                    self.episode.fails(&reason, self.counts.lost());
                    break;
                }
            }
            batch.clear();
        }
        self.episode.ends(self.counts.lost());
    }
}

/// Whether spans are stuck or get lost: one event when it begins, one when it is over.
#[derive(Debug, Default)]
struct Episode {
    lasts: bool,
    /// How many were lost when it was looked at last, and before it began.
    lost: (u64, u64),
}

impl Episode {
    fn fails(&mut self, reason: &str, lost: u64) {
        if !self.lasts {
            *self = Self { lasts: true, lost: (lost, self.lost.0) };
            tracing::warn!(
                reason,
                "Spans can't be exported; those that find no room to wait are lost."
            );
        }
        self.lost.0 = lost;
    }

    /// A batch was taken.
    fn goes_well(&mut self, lost: u64) {
        if lost > self.lost.0 {
            return self.fails("they come faster than the receiver takes them", lost);
        }
        if self.lasts {
            self.lasts = false;
            tracing::info!(spans_lost = lost - self.lost.1, "Spans are exported again.");
        }
    }

    fn ends(&self, lost: u64) {
        if self.lasts {
            tracing::warn!(spans_lost = lost - self.lost.1, "The last spans are not all exported.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logging::levels;

    #[test]
    fn an_episode_is_told_twice_however_long_it_is() {
        let told = levels(|| {
            let mut episode = Episode::default();
            episode.goes_well(0);
            (0..100).for_each(|lost| episode.fails("refused", lost));
            episode.goes_well(150);
            episode.goes_well(150);
            episode.goes_well(150);
        });
        assert_eq!(told, [tracing::Level::WARN, tracing::Level::INFO]);
    }

    #[test]
    fn a_receiver_that_is_only_slow_is_an_episode_too() {
        let told = levels(|| {
            let mut episode = Episode::default();
            [0, 7, 9, 9, 9].into_iter().for_each(|lost| episode.goes_well(lost));
            episode.ends(9);
            episode.goes_well(10);
            episode.ends(12);
        });
        use tracing::Level;
        assert_eq!(told, [Level::WARN, Level::INFO, Level::WARN, Level::WARN]);
    }
}
