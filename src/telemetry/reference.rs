//! The reference of all metrics: names, kinds, units, meanings and buckets.

use metrics::Unit;

/// Name, kind, unit and meaning of every metric.
pub const REFERENCE: &[(&str, Kind, Option<Unit>, &str)] = &[
    ("relay_webhooks_received_total", Kind::Counter, None, "Requests answered, by answer."),
    ("relay_webhooks_accepted_total", Kind::Counter, None, "Webhooks made durable, by activity."),
    (
        "relay_webhook_duration_seconds",
        Kind::Histogram,
        Some(Unit::Seconds),
        "From the request's headers to its answer.",
    ),
    (
        "relay_last_webhook_timestamp_seconds",
        Kind::Gauge,
        Some(Unit::Seconds),
        "When the source's last webhook was accepted; 0 if never.",
    ),
    (
        "relay_silence_after_seconds",
        Kind::Gauge,
        Some(Unit::Seconds),
        "The source's silence_after, for the alert; infinite for one that is gone.",
    ),
    (
        "relay_signature_verifications_total",
        Kind::Counter,
        None,
        "Verifications, by the secret that matched and the result.",
    ),
    ("relay_unrouted_total", Kind::Counter, None, "Verified webhooks that no route wanted."),
    (
        "relay_unrouted_bytes",
        Kind::Gauge,
        Some(Unit::Bytes),
        "Bytes of the store that unrouted webhooks take.",
    ),
    (
        "relay_unrouted_removed_total",
        Kind::Counter,
        None,
        "Unrouted webhooks that went early, because all took more than a quarter of the store.",
    ),
    (
        "relay_duplicates_window_seconds",
        Kind::Gauge,
        Some(Unit::Seconds),
        "How far back duplicates are known: the window, or less where too many came.",
    ),
    (
        "relay_commit_duration_seconds",
        Kind::Histogram,
        Some(Unit::Seconds),
        "Writing and syncing one batch of commits.",
    ),
    (
        "relay_commit_batch_webhooks",
        Kind::Histogram,
        Some(Unit::Count),
        "Webhooks committed with one sync.",
    ),
    ("relay_attempts_total", Kind::Counter, None, "Attempts ended, by outcome."),
    (
        "relay_attempt_duration_seconds",
        Kind::Histogram,
        Some(Unit::Seconds),
        "One HTTP exchange with the target.",
    ),
    (
        "relay_delivery_latency_seconds",
        Kind::Histogram,
        Some(Unit::Seconds),
        "From acceptance to delivered.",
    ),
    ("relay_deliveries_settled_total", Kind::Counter, None, "Deliveries settled, by settlement."),
    ("relay_deliveries_pending", Kind::Gauge, Some(Unit::Count), "Deliveries not ended yet."),
    (
        "relay_oldest_pending_age_seconds",
        Kind::Gauge,
        Some(Unit::Seconds),
        "Age of the oldest pending delivery; 0 if none.",
    ),
    (
        "relay_backlog_bytes",
        Kind::Gauge,
        Some(Unit::Bytes),
        "Bytes of the store that the target's pending deliveries pin.",
    ),
    (
        "relay_dead_letters_bytes",
        Kind::Gauge,
        Some(Unit::Bytes),
        "Bytes of the store that are kept for the target's dead letters.",
    ),
    (
        "relay_backlog_limit_bytes",
        Kind::Gauge,
        Some(Unit::Bytes),
        "Bytes of the store that both may pin.",
    ),
    ("relay_attempts_in_flight", Kind::Gauge, Some(Unit::Count), "Attempts running now."),
    (
        "relay_headers_left_out_total",
        Kind::Counter,
        None,
        "Operator's headers left out, because a placeholder had no value or too long a one.",
    ),
    (
        "relay_target_suspended",
        Kind::Gauge,
        None,
        "1 while the target keeps failing and is only probed.",
    ),
    (
        "relay_target_paused",
        Kind::Gauge,
        None,
        "1 while nothing is sent, by the table or an operator.",
    ),
    ("relay_dead_letters", Kind::Gauge, Some(Unit::Count), "Dead letters kept, by cause."),
    (
        "relay_routes_last_reload_successful",
        Kind::Gauge,
        None,
        "1 if the last load of routes.yaml succeeded.",
    ),
    (
        "relay_routes_last_reload_success_timestamp_seconds",
        Kind::Gauge,
        Some(Unit::Seconds),
        "When the table in force was loaded.",
    ),
    (
        "relay_routes_info",
        Kind::Gauge,
        None,
        "1 for the SHA-256 of the table in force, 0 for the few before it.",
    ),
    (
        "relay_certificate_expiry_timestamp_seconds",
        Kind::Gauge,
        Some(Unit::Seconds),
        "When the certificate ends.",
    ),
    (
        "relay_files_refused",
        Kind::Gauge,
        Some(Unit::Count),
        "Certificates with their keys, roots, tokens that can't be used as saved: those before serve.",
    ),
    (
        "relay_connections_refused_total",
        Kind::Counter,
        None,
        "Connections closed before anything was read of them, by reason.",
    ),
    ("relay_tls_handshakes_total", Kind::Counter, None, "TLS handshakes, by result."),
    ("relay_store_bytes", Kind::Gauge, Some(Unit::Bytes), "Bytes that the store takes."),
    (
        "relay_store_limit_bytes",
        Kind::Gauge,
        Some(Unit::Bytes),
        "Bytes that the store may take: what shares of it refer to.",
    ),
    (
        "relay_store_available_bytes",
        Kind::Gauge,
        Some(Unit::Bytes),
        "Bytes that the store's disk has left.",
    ),
    ("relay_store_damaged_records_total", Kind::Counter, None, "Records found damaged."),
    (
        "relay_store_sweep_findings_total",
        Kind::Counter,
        None,
        "Differences between lanes and index that should not be.",
    ),
    ("relay_connections", Kind::Gauge, Some(Unit::Count), "Open inbound connections."),
    ("relay_spans_exported_total", Kind::Counter, None, "Spans of traces that a receiver took."),
    (
        "relay_spans_dropped_total",
        Kind::Counter,
        None,
        "Spans of traces that were lost: no room to wait for the receiver, or it did not want them.",
    ),
    ("relay_build_info", Kind::Gauge, None, "1, with the version."),
    ("process_cpu_seconds_total", Kind::Counter, Some(Unit::Seconds), "User and system CPU time."),
    ("process_resident_memory_bytes", Kind::Gauge, Some(Unit::Bytes), "Resident memory."),
    ("process_open_fds", Kind::Gauge, Some(Unit::Count), "Open file descriptors."),
    ("process_max_fds", Kind::Gauge, Some(Unit::Count), "Limit on open file descriptors."),
    ("process_start_time_seconds", Kind::Gauge, Some(Unit::Seconds), "When the process started."),
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
