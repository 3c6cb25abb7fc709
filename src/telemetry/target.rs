//! The metrics of a target and of its lane, made by [`Metrics`](super::metrics::Metrics).

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::domain::delivery::Settlement;
use crate::domain::outcome::Outcome;

/// The metrics of one target.
pub struct TargetMetrics {
    pub(super) attempts: [(Outcome, Counter); Outcome::ALL.len()],
    pub(super) attempt_duration: Histogram,
    pub(super) latency: Histogram,
    pub(super) settled: [(&'static str, Counter); Settlement::NAMES.len()],
    pub(super) in_flight: Gauge,
    pub(super) left_out: Counter,
}

/// Whether a target's lane is held back.
#[derive(Clone, Debug)]
pub struct LaneMetrics {
    pub(super) suspended: Gauge,
    pub(super) paused: Gauge,
}

impl LaneMetrics {
    /// How it is now.
    pub fn lane_is(&self, suspended: bool, paused: bool) {
        self.suspended.set(f64::from(u8::from(suspended)));
        self.paused.set(f64::from(u8::from(paused)));
    }
}

impl TargetMetrics {
    /// So many of the operator's headers were left out of an attempt.
    pub fn headers_left_out(&self, count: usize) {
        self.left_out.increment(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// An attempt began.
    pub fn attempt_began(&self) {
        self.in_flight.increment(1.0);
    }

    /// An attempt that began is over, whatever it came to.
    pub fn attempt_over(&self) {
        self.in_flight.decrement(1.0);
    }

    /// An attempt ended like this.
    pub fn attempted(&self, outcome: Outcome, duration: Duration) {
        for (_, counter) in self.attempts.iter().filter(|(known, _)| *known == outcome) {
            counter.increment(1);
        }
        self.attempt_duration.record(duration.as_secs_f64());
    }

    /// A delivery was settled; `since_acceptance` is asked for what was delivered.
    pub fn settled(&self, settlement: Settlement, since_acceptance: Duration) {
        for (_, counter) in self.settled.iter().filter(|(name, _)| *name == settlement.name()) {
            counter.increment(1);
        }
        if settlement == Settlement::Delivered {
            self.latency.record(since_acceptance.as_secs_f64());
        }
    }
}
