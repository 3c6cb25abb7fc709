//! The reference of all metrics: names, kinds, units, labels, meanings and buckets.
//!
//! It is what `/metrics` describes itself with, and `deploy/metrics.md` is written from it; a test holds both
//! against the page of a busy relay.

use metrics::Unit;

use crate::domain::answer::Answer;
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::outcome::Outcome;
use crate::domain::signature::VerifyError;
use crate::telemetry::metrics::SavedFile;
use crate::telemetry::source::ConnectionMetrics;

/// What there is to know of one metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// What it counts in; its name says so too, but for counts of things.
    pub unit: Option<Unit>,
    /// Its labels, beside the `le` of a histogram's buckets.
    pub labels: &'static [Label],
    /// What it means.
    pub help: &'static str,
}

impl Metric {
    /// The upper bounds of a histogram's buckets, but for the infinite one.
    pub fn buckets(&self) -> Option<&'static [f64]> {
        BUCKETS.iter().find(|(name, _)| *name == self.name).map(|(_, buckets)| *buckets)
    }
}

/// A label, and which values it can have.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values. None of them is made by a sender.
    pub values: Values,
}

/// The values of a label.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// One of these, and all are there from the start.
    Closed(fn() -> Vec<&'static str>),
    /// As the operator's table, files and flags have it; in words.
    Configured(&'static str),
}

const SOURCE: Label = Label { name: "source", values: Values::Configured("a source of the table") };
const SOURCE_OR_NONE: Label = Label {
    name: "source",
    values: Values::Configured("a source of the table, or `none` where it is not known"),
};
const TARGET: Label = Label { name: "target", values: Values::Configured("a target of the table") };
const ACTIVITY: Label = Label {
    name: "activity",
    values: Values::Configured(
        "a name that Aryeo is known to send or that the table spells out, `none` where there is none, \
         `other` for all others",
    ),
};
const SECRET: Label = Label {
    name: "secret",
    values: Values::Configured(
        "`env:NAME`, `file:PATH` or `value` of the secret that matched, `none` where none did",
    ),
};
const CERTIFICATE: Label =
    Label { name: "certificate", values: Values::Configured("the names of a certificate served") };
const SHA256: Label = Label {
    name: "sha256",
    values: Values::Configured("the digest of a routes file: eight of them at most"),
};
const VERSION: Label =
    Label { name: "version", values: Values::Configured("the version of the program") };
const ANSWER: Label = closed("answer", || Answer::ALL.map(Answer::name).to_vec());
const RESULT: Label = closed("result", || VerifyError::NAMES.to_vec());
const OUTCOME: Label = closed("outcome", || Outcome::ALL.map(Outcome::name).to_vec());
const SETTLEMENT: Label = closed("settlement", || Settlement::NAMES.to_vec());
const CAUSE: Label = closed("cause", || Cause::ALL.map(Cause::name).to_vec());
const FILE: Label = closed("file", || SavedFile::ALL.map(SavedFile::as_str).to_vec());
const REASON: Label = closed("reason", || ConnectionMetrics::REFUSED.to_vec());
const HANDSHAKE: Label = closed("result", || ConnectionMetrics::HANDSHAKES.to_vec());
const UNREADY: Label = closed("reason", || UNREADY_REASONS.to_vec());

/// Why a relay is not ready, as `/readyz` and `relay_unready` say it.
pub const UNREADY_REASONS: [&str; 5] =
    ["starting", "shutting_down", "no_certificate", "disk_full", "store_unavailable"];

const fn closed(name: &'static str, values: fn() -> Vec<&'static str>) -> Label {
    Label { name, values: Values::Closed(values) }
}

const fn counter(
    name: &'static str,
    unit: Option<Unit>,
    labels: &'static [Label],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit, labels, help }
}

const fn gauge(
    name: &'static str,
    unit: Option<Unit>,
    labels: &'static [Label],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, help }
}

const fn histogram(
    name: &'static str,
    unit: Option<Unit>,
    labels: &'static [Label],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram, unit, labels, help }
}

/// Every metric.
pub const REFERENCE: &[Metric] = &[
    counter(
        "relay_webhooks_received_total",
        None,
        &[SOURCE_OR_NONE, ANSWER],
        "Requests answered, by answer.",
    ),
    counter(
        "relay_webhooks_accepted_total",
        None,
        &[SOURCE, ACTIVITY],
        "Webhooks made durable, by activity.",
    ),
    histogram(
        "relay_webhook_duration_seconds",
        Some(Unit::Seconds),
        &[SOURCE_OR_NONE, ANSWER],
        "From the request's headers to its answer.",
    ),
    gauge(
        "relay_last_webhook_timestamp_seconds",
        Some(Unit::Seconds),
        &[SOURCE],
        "When the source's last webhook was accepted; 0 if never.",
    ),
    gauge(
        "relay_silence_after_seconds",
        Some(Unit::Seconds),
        &[SOURCE],
        "The source's silence_after, for the alert; infinite for one that is gone.",
    ),
    counter(
        "relay_signature_verifications_total",
        None,
        &[SOURCE, SECRET, RESULT],
        "Verifications, by the secret that matched and the result.",
    ),
    counter("relay_unrouted_total", None, &[SOURCE], "Verified webhooks that no route wanted."),
    gauge(
        "relay_unrouted_bytes",
        Some(Unit::Bytes),
        &[],
        "Bytes of the store that unrouted webhooks take.",
    ),
    counter(
        "relay_unrouted_removed_total",
        None,
        &[],
        "Unrouted webhooks that went early, because all took more than a quarter of the store.",
    ),
    gauge(
        "relay_duplicates_window_seconds",
        Some(Unit::Seconds),
        &[SOURCE],
        "How far back duplicates are known: the window, or less where too many came.",
    ),
    histogram(
        "relay_commit_duration_seconds",
        Some(Unit::Seconds),
        &[],
        "Writing and syncing one batch of commits.",
    ),
    histogram(
        "relay_commit_batch_webhooks",
        Some(Unit::Count),
        &[],
        "Webhooks committed with one sync.",
    ),
    counter("relay_attempts_total", None, &[TARGET, OUTCOME], "Attempts ended, by outcome."),
    histogram(
        "relay_attempt_duration_seconds",
        Some(Unit::Seconds),
        &[TARGET],
        "One HTTP exchange with the target.",
    ),
    histogram(
        "relay_delivery_latency_seconds",
        Some(Unit::Seconds),
        &[TARGET],
        "From acceptance to delivered.",
    ),
    counter(
        "relay_deliveries_settled_total",
        None,
        &[TARGET, SETTLEMENT],
        "Deliveries settled, by settlement.",
    ),
    gauge("relay_deliveries_pending", Some(Unit::Count), &[TARGET], "Deliveries not ended yet."),
    gauge(
        "relay_oldest_pending_age_seconds",
        Some(Unit::Seconds),
        &[TARGET],
        "Age of the oldest pending delivery; 0 if none.",
    ),
    gauge(
        "relay_backlog_bytes",
        Some(Unit::Bytes),
        &[TARGET],
        "Bytes of the store that the target's pending deliveries pin.",
    ),
    gauge(
        "relay_dead_letters_bytes",
        Some(Unit::Bytes),
        &[TARGET],
        "Bytes of the store that are kept for the target's dead letters.",
    ),
    gauge(
        "relay_backlog_limit_bytes",
        Some(Unit::Bytes),
        &[TARGET],
        "Bytes of the store that both may pin.",
    ),
    gauge("relay_attempts_in_flight", Some(Unit::Count), &[TARGET], "Attempts running now."),
    counter(
        "relay_headers_left_out_total",
        None,
        &[TARGET],
        "Operator's headers left out, because a placeholder had no value or too long a one.",
    ),
    gauge(
        "relay_target_suspended",
        None,
        &[TARGET],
        "1 while the target keeps failing and is only probed.",
    ),
    gauge(
        "relay_target_paused",
        None,
        &[TARGET],
        "1 while nothing is sent, by the table or an operator.",
    ),
    gauge(
        "relay_dead_letters",
        Some(Unit::Count),
        &[TARGET, CAUSE],
        "Dead letters kept, by cause.",
    ),
    gauge(
        "relay_routes_last_reload_successful",
        None,
        &[],
        "1 if the last load of routes.yaml succeeded.",
    ),
    gauge(
        "relay_routes_last_reload_success_timestamp_seconds",
        Some(Unit::Seconds),
        &[],
        "When the table in force was loaded.",
    ),
    gauge(
        "relay_routes_info",
        None,
        &[SHA256],
        "1 for the SHA-256 of the table in force, 0 for the few before it.",
    ),
    gauge(
        "relay_certificate_begin_timestamp_seconds",
        Some(Unit::Seconds),
        &[CERTIFICATE],
        "When the certificate begins.",
    ),
    gauge(
        "relay_certificate_expiry_timestamp_seconds",
        Some(Unit::Seconds),
        &[CERTIFICATE],
        "When the certificate ends, or the first of its chain.",
    ),
    gauge(
        "relay_files_refused",
        Some(Unit::Count),
        &[FILE],
        "Certificates with their keys, roots, tokens that can't be used as saved: those before serve, if any.",
    ),
    counter(
        "relay_connections_refused_total",
        None,
        &[REASON],
        "Connections closed before anything was read of them, by reason.",
    ),
    counter("relay_tls_handshakes_total", None, &[HANDSHAKE], "TLS handshakes, by result."),
    gauge("relay_store_bytes", Some(Unit::Bytes), &[], "Bytes that the store takes."),
    gauge(
        "relay_store_limit_bytes",
        Some(Unit::Bytes),
        &[],
        "Bytes that the store may take: what shares of it refer to.",
    ),
    gauge(
        "relay_store_available_bytes",
        Some(Unit::Bytes),
        &[],
        "Bytes that the store may still take, beside what is free in its newest segment.",
    ),
    counter("relay_store_damaged_records_total", None, &[], "Records found damaged."),
    counter(
        "relay_store_sweep_findings_total",
        None,
        &[],
        "Differences between lanes and index that should not be.",
    ),
    gauge("relay_connections", Some(Unit::Count), &[], "Open inbound connections."),
    gauge("relay_unready", None, &[UNREADY], "1 for each reason why /readyz is 503."),
    counter("relay_spans_exported_total", None, &[], "Spans of traces that a receiver took."),
    counter(
        "relay_spans_dropped_total",
        None,
        &[],
        "Spans of traces that were lost: no room to wait for the receiver, or it did not want them.",
    ),
    gauge("relay_build_info", None, &[VERSION], "1, with the version."),
    counter("process_cpu_seconds_total", Some(Unit::Seconds), &[], "User and system CPU time."),
    gauge("process_resident_memory_bytes", Some(Unit::Bytes), &[], "Resident memory."),
    gauge("process_open_fds", Some(Unit::Count), &[], "Open file descriptors."),
    gauge("process_max_fds", Some(Unit::Count), &[], "Limit on open file descriptors."),
    gauge("process_start_time_seconds", Some(Unit::Seconds), &[], "When the process started."),
];

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

impl Kind {
    /// Its name on the page.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The buckets of each histogram.
pub(super) const BUCKETS: &[(&str, &[f64])] = &[
    ("relay_webhook_duration_seconds", ACK_BUCKETS),
    ("relay_commit_duration_seconds", ACK_BUCKETS),
    ("relay_commit_batch_webhooks", BATCH_BUCKETS),
    ("relay_attempt_duration_seconds", ATTEMPT_BUCKETS),
    ("relay_delivery_latency_seconds", LATENCY_BUCKETS),
];

const ACK_BUCKETS: &[f64] =
    &[1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 3.0];
const ATTEMPT_BUCKETS: &[f64] =
    &[1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const LATENCY_BUCKETS: &[f64] = &[
    1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0,
    259_200.0,
];
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
