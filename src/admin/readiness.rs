//! Whether the relay should get traffic, and whether it still moves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::domain::time::Timestamp;

/// What the parts of a relay say of themselves; read by the probes.
#[derive(Debug, Default)]
pub struct Readiness {
    started: AtomicBool,
    stopping: AtomicBool,
    // Unix milliseconds of the data path's last sign of life; 0 before the first.
    moved_at: AtomicU64,
}

impl Readiness {
    /// Everything is up.
    pub fn started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// It is about to end: balancers should look elsewhere. There is no way back.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether it is about to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The data path moved.
    pub fn moved(&self, now: Timestamp) {
        self.moved_at.store(now.as_millis(), Ordering::Release);
    }

    /// Whether the data path has not moved for longer than it may.
    pub fn is_stuck(&self, now: Timestamp) -> bool {
        let moved_at = self.moved_at.load(Ordering::Acquire);
        moved_at != 0 && now.as_millis().saturating_sub(moved_at) > STUCK_AFTER_MS
    }

    /// Why it should get no traffic, as far as this knows.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if !self.started.load(Ordering::Acquire) {
            reasons.push("starting");
        }
        if self.is_stopping() {
            reasons.push("shutting_down");
        }
        reasons
    }
}

/// A data path that has not moved for so long is dead.
const STUCK_AFTER_MS: u64 = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_between_start_and_stop() {
        let readiness = Readiness::default();
        assert_eq!(readiness.reasons(), ["starting"]);
        readiness.started();
        assert!(readiness.reasons().is_empty());
        readiness.stopping();
        assert_eq!(readiness.reasons(), ["shutting_down"]);
    }

    #[test]
    fn it_is_stuck_only_after_thirty_seconds_without_a_move() {
        let readiness = Readiness::default();
        let at = Timestamp::from_millis;
        assert!(!readiness.is_stuck(at(1_000_000)), "nothing is known before the first move");
        readiness.moved(at(1_000_000));
        assert!(!readiness.is_stuck(at(1_030_000)));
        assert!(readiness.is_stuck(at(1_030_001)));
    }
}
