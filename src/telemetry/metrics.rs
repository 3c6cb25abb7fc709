//! Every metric, as it is made and touched. What they mean is in
//! [`reference`](crate::telemetry::reference); names and labels are an API.
//!
//! Handles are made once per source and target and then only touched; nothing here is global, so
//! that two relays in one process (tests) do not mix.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::domain::answer::Answer;
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::known;
use crate::domain::outcome::Outcome;
use crate::domain::renewal::Validity;
use crate::domain::signature::VerifyError;
use crate::domain::time::Timestamp;
use crate::telemetry::process;
use crate::telemetry::reference::{BUCKETS, Kind, REFERENCE, UNREADY_REASONS};
use crate::telemetry::series::{self, Series};
use crate::telemetry::source::{AnswerMetrics, ConnectionMetrics, SourceMetrics};
use crate::telemetry::target::{LaneMetrics, TargetMetrics};
use crate::telemetry::traces::SpanMetrics;

const METADATA: Metadata<'static> = Metadata::new("relay", Level::INFO, None);

/// Tables that are shown: the one in force, and those before it, so that a change can be followed.
const TABLES_SHOWN_MAX: usize = 8;

/// All metrics of one relay.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    tables: Series,
    certificate_begins: Series,
    certificate_ends: Series,
    // Whose lanes were ever shown: a target that is gone must not show what it had.
    lanes: Mutex<HashSet<Arc<str>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let recorder = BUCKETS
            .iter()
            .try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
                builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
            })
            .expect("bucket lists are not empty")
            .build_recorder();
        let metrics = Self {
            handle: recorder.handle(),
            recorder,
            tables: Series::new("relay_routes_info", "sha256"),
            certificate_begins: Series::new(
                "relay_certificate_begin_timestamp_seconds",
                "certificate",
            ),
            certificate_ends: Series::new(
                "relay_certificate_expiry_timestamp_seconds",
                "certificate",
            ),
            lanes: Mutex::default(),
        };
        metrics.describe();
        SavedFile::ALL.iter().for_each(|file| metrics.files_refused(*file).set(0.0));
        drop(metrics.spans());
        metrics
    }
}

impl Metrics {
    fn describe(&self) {
        for metric in REFERENCE {
            let (name, help) = (metric.name.into(), SharedString::const_str(metric.help));
            match metric.kind {
                Kind::Counter => self.recorder.describe_counter(name, metric.unit, help),
                Kind::Gauge => self.recorder.describe_gauge(name, metric.unit, help),
                Kind::Histogram => self.recorder.describe_histogram(name, metric.unit, help),
            }
        }
    }

    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.recorder.register_histogram(&key(name, labels), &METADATA)
    }

    /// The page that Prometheus reads.
    pub fn render(&self) -> String {
        let usage = process::usage();
        self.gauge("process_resident_memory_bytes", &[]).set(usage.resident_bytes);
        self.gauge("process_open_fds", &[]).set(usage.open_fds);
        self.gauge("process_max_fds", &[]).set(usage.max_fds);
        let mut page = self.handle.render();
        // A counter of the recorder's takes whole numbers, and a second is long for an idle relay.
        series::plain(&mut page, "process_cpu_seconds_total", usage.cpu_seconds);
        self.tables.render(&mut page);
        self.certificate_begins.render(&mut page);
        self.certificate_ends.render(&mut page);
        page
    }

    /// Folds recorded samples together; to be called every few seconds, so that histograms stay
    /// small when nobody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The metrics of a source, all labels at zero. `more_activities` are the table's literals.
    pub fn source<'a>(
        &self,
        source: &str,
        secrets: impl Iterator<Item = &'a str>,
        more_activities: impl Iterator<Item = &'a str>,
    ) -> SourceMetrics {
        let mut secrets: Vec<Box<str>> = secrets.map(Into::into).collect();
        secrets.push("none".into());
        let verification = |secret: &str, result| {
            let labels = [("source", source), ("secret", secret), ("result", result)];
            self.counter("relay_signature_verifications_total", &labels)
        };
        let ok = secrets.iter().map(|secret| verification(secret, "ok")).collect();
        let accepted = |activity: &str| {
            let labels = [("source", source), ("activity", activity)];
            self.counter("relay_webhooks_accepted_total", &labels)
        };
        SourceMetrics {
            answers: Answer::ALL.map(|answer| self.answer(source, answer)),
            // The last one is for requests that are believed without a signature.
            verified: ok,
            refused: VerifyError::NAMES
                .into_iter()
                .filter(|name| *name != "ok")
                .map(|name| (name, verification("none", name)))
                .collect(),
            accepted: known::activities()
                .map(Box::<str>::from)
                .chain(more_activities.map(Box::from))
                .map(|name| {
                    let counter = accepted(&name);
                    (name, counter)
                })
                .collect(),
            accepted_none: accepted("none"),
            accepted_other: accepted("other"),
            unrouted: self.counter("relay_unrouted_total", &[("source", source)]),
            last: self.gauge("relay_last_webhook_timestamp_seconds", &[("source", source)]),
            silence: self.gauge("relay_silence_after_seconds", &[("source", source)]),
            window: self.gauge("relay_duplicates_window_seconds", &[("source", source)]),
        }
    }

    fn answer(&self, source: &str, answer: Answer) -> (Counter, Histogram) {
        let labels = [("source", source), ("answer", answer.name())];
        (
            self.counter("relay_webhooks_received_total", &labels),
            self.histogram("relay_webhook_duration_seconds", &labels),
        )
    }

    /// The answers to requests that reach no source: label `none`.
    pub fn no_source(&self) -> AnswerMetrics {
        AnswerMetrics { answers: Answer::ALL.map(|answer| self.answer("none", answer)) }
    }

    /// The metrics of a target, all labels at zero.
    pub fn target(&self, target: &str) -> TargetMetrics {
        let own = [("target", target)];
        TargetMetrics {
            attempts: Outcome::ALL.map(|outcome| {
                let labels = [("target", target), ("outcome", outcome.name())];
                (outcome, self.counter("relay_attempts_total", &labels))
            }),
            attempt_duration: self.histogram("relay_attempt_duration_seconds", &own),
            latency: self.histogram("relay_delivery_latency_seconds", &own),
            settled: Settlement::NAMES.map(|name| {
                let labels = [("target", target), ("settlement", name)];
                (name, self.counter("relay_deliveries_settled_total", &labels))
            }),
            in_flight: self.gauge("relay_attempts_in_flight", &own),
            left_out: self.counter("relay_headers_left_out_total", &own),
        }
    }

    /// Whether a target's lane is held back.
    pub fn lane_state(&self, target: &str) -> LaneMetrics {
        let own = [("target", target)];
        LaneMetrics {
            suspended: self.gauge("relay_target_suspended", &own),
            paused: self.gauge("relay_target_paused", &own),
        }
    }

    /// Counts headers of a target's or its routes' that were left out.
    pub fn headers_left_out(&self, target: &str, count: usize) {
        if count > 0 {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.counter("relay_headers_left_out_total", &[("target", target)]).increment(count);
        }
    }

    /// Sets the lanes of these targets, and those of all that were shown before, to holding nothing.
    pub fn empty_lanes(&self, targets: Vec<Arc<str>>) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.extend(targets);
        lanes.iter().for_each(|target| self.set_lane(target, &Backlog::default()));
    }

    /// Sets what a lane holds.
    pub fn lane(&self, target: &str, backlog: &Backlog<'_>) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if !lanes.contains(target) {
            lanes.insert(target.into());
        }
        self.set_lane(target, backlog);
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn set_lane(&self, target: &str, backlog: &Backlog<'_>) {
        let own = [("target", target)];
        self.gauge("relay_deliveries_pending", &own).set(backlog.pending as f64);
        self.gauge("relay_oldest_pending_age_seconds", &own).set(backlog.oldest.as_secs_f64());
        self.gauge("relay_backlog_bytes", &own).set(backlog.bytes as f64);
        self.gauge("relay_dead_letters_bytes", &own).set(backlog.dead_bytes as f64);
        for cause in Cause::ALL {
            let dead = backlog.dead;
            let count = dead.iter().find(|(known, _)| *known == cause).map_or(0, |(_, n)| *n);
            let labels = [("target", target), ("cause", cause.name())];
            self.gauge("relay_dead_letters", &labels).set(count as f64);
        }
    }

    /// Sets how many bytes of the store a target may pin.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn backlog_limit(&self, target: &str, bytes: u64) {
        self.gauge("relay_backlog_limit_bytes", &[("target", target)]).set(bytes as f64);
    }

    /// Sets how large the store is.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn store_sizes(&self, bytes: u64, available_bytes: u64) {
        self.gauge("relay_store_bytes", &[]).set(bytes as f64);
        self.gauge("relay_store_available_bytes", &[]).set(available_bytes as f64);
    }

    /// Sets how large the store may be.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn store_limit(&self, bytes: u64) {
        self.gauge("relay_store_limit_bytes", &[]).set(bytes as f64);
    }

    /// Sets what unrouted webhooks take of the store, and how many went to make room.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn unrouted(&self, bytes: u64, removed: u64) {
        self.gauge("relay_unrouted_bytes", &[]).set(bytes as f64);
        self.counter("relay_unrouted_removed_total", &[]).absolute(removed);
    }

    /// Sets how many of the store's records are damaged, and what else is not as it should be.
    pub fn store_damage(&self, damaged_records: u64, sweep_findings: u64) {
        self.counter("relay_store_sweep_findings_total", &[]).absolute(sweep_findings);
        self.counter("relay_store_damaged_records_total", &[]).absolute(damaged_records);
    }

    /// The metrics of commits.
    pub fn commits(&self) -> CommitMetrics {
        CommitMetrics {
            duration: self.histogram("relay_commit_duration_seconds", &[]),
            batch: self.histogram("relay_commit_batch_webhooks", &[]),
        }
    }

    /// The metrics of spans.
    pub fn spans(&self) -> SpanMetrics {
        SpanMetrics {
            exported: self.counter("relay_spans_exported_total", &[]),
            dropped: self.counter("relay_spans_dropped_total", &[]),
        }
    }

    /// The metrics of connections.
    pub fn connections(&self) -> ConnectionMetrics {
        ConnectionMetrics {
            open: self.gauge("relay_connections", &[]),
            handshakes: ConnectionMetrics::HANDSHAKES.map(|result| {
                (result, self.counter("relay_tls_handshakes_total", &[("result", result)]))
            }),
            refused: ConnectionMetrics::REFUSED.map(|reason| {
                let labels = [("reason", reason)];
                (reason, self.counter("relay_connections_refused_total", &labels))
            }),
        }
    }

    /// Says which table is in force and since when. It is put in force by `put`: no page is written
    /// meanwhile, so that none shows another table than the one in force.
    pub fn table(&self, sha256: &str, loaded_at: Timestamp, put: impl FnOnce()) {
        self.tables.change(|tables| {
            put();
            tables.retain(|(known, _)| known != sha256);
            tables.iter_mut().for_each(|(_, value)| *value = 0.0);
            if tables.len() >= TABLES_SHOWN_MAX {
                tables.remove(0);
            }
            tables.push((sha256.to_owned(), 1.0));
        });
        self.reloaded(true);
        self.gauge("relay_routes_last_reload_success_timestamp_seconds", &[])
            .set(loaded_at.as_secs_f64());
    }

    /// Says whether the last load of the routes file succeeded.
    pub fn reloaded(&self, successful: bool) {
        self.gauge("relay_routes_last_reload_successful", &[]).set(f64::from(u8::from(successful)));
    }

    /// Says which certificates are served, and from when until when; of two with one name it is the first.
    pub fn certificates(&self, served: &[(&str, Validity)]) {
        let (mut begins, mut ends) = (Vec::<(String, f64)>::new(), Vec::new());
        for (name, Validity { not_before, not_after }) in served {
            if begins.iter().all(|(other, _)| other != name) {
                begins.push(((*name).to_owned(), not_before.as_secs_f64()));
                ends.push(((*name).to_owned(), not_after.as_secs_f64()));
            }
        }
        self.certificate_begins.change(|shown| *shown = begins);
        self.certificate_ends.change(|shown| *shown = ends);
    }

    /// Says that one of these files can't be used as it was saved, or can again.
    pub fn file_refused(&self, file: SavedFile, is_refused: bool) {
        let change = if is_refused { 1.0 } else { -1.0 };
        self.files_refused(file).increment(change);
    }

    fn files_refused(&self, file: SavedFile) -> Gauge {
        self.gauge("relay_files_refused", &[("file", file.as_str())])
    }

    /// Says why the relay is not ready, if it is not: some of [`UNREADY_REASONS`].
    pub fn unready(&self, reasons: &[&str]) {
        for reason in UNREADY_REASONS {
            let is_so = f64::from(u8::from(reasons.contains(&reason)));
            self.gauge("relay_unready", &[("reason", reason)]).set(is_so);
        }
    }

    /// Says which version this is and when it started.
    pub fn started(&self, version: &str, at: Timestamp) {
        self.gauge("relay_build_info", &[("version", version)]).set(1.0);
        self.gauge("process_start_time_seconds", &[]).set(at.as_secs_f64());
    }
}

/// A file that is read again when it changes, beside the routing table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedFile {
    /// A certificate of the listener and its key.
    Certificate,
    /// The roots of clients' certificates.
    ClientCa,
    /// The token that the API wants.
    AdminToken,
}

impl SavedFile {
    pub(super) const ALL: [Self; 3] = [Self::Certificate, Self::ClientCa, Self::AdminToken];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::ClientCa => "client_ca",
            Self::AdminToken => "admin_token",
        }
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let label = |(name, value): &(&'static str, &str)| Label::new(*name, (*value).to_owned());
    Key::from_parts(name, labels.iter().map(label).collect::<Vec<_>>())
}

/// What a lane holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backlog<'a> {
    /// Deliveries that have not ended.
    pub pending: u64,
    /// The age of the oldest of them.
    pub oldest: Duration,
    /// The bytes of the store that they pin.
    pub bytes: u64,
    /// The same of dead letters.
    pub dead_bytes: u64,
    /// Dead letters by cause.
    pub dead: &'a [(Cause, u64)],
}

/// The metrics of commits.
pub struct CommitMetrics {
    duration: Histogram,
    batch: Histogram,
}

impl CommitMetrics {
    /// A batch was written and synced.
    pub fn committed(&self, webhooks: u32, duration: Duration) {
        self.batch.record(f64::from(webhooks));
        self.duration.record(duration.as_secs_f64());
    }
}

macro_rules! opaque_debug {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

opaque_debug!(SourceMetrics AnswerMetrics TargetMetrics CommitMetrics ConnectionMetrics);

/// Metrics shared by the parts of a relay.
pub type SharedMetrics = Arc<Metrics>;
