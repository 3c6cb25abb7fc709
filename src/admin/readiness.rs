//! Whether the relay should get traffic, and whether it still moves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::time::Timestamp;
use crate::store::{CommitError, Pulse};

/// What the parts of a relay say of themselves; read by the probes.
#[derive(Debug, Default)]
pub struct Readiness {
    started: AtomicBool,
    stopping: AtomicBool,
    without_certificate: AtomicBool,
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

    /// Whether senders can't connect for want of a certificate.
    pub fn without_certificate(&self, is_so: bool) {
        self.without_certificate.store(is_so, Ordering::Release);
    }

    /// The data path moved.
    pub fn moved(&self, now: Timestamp) {
        self.moved_at.store(now.as_millis(), Ordering::Release);
    }

    /// Whether the data path has not moved for longer than it may: its runtime gives no sign of
    /// life, or the disk holds the store up.
    pub fn is_stuck(&self, now: Timestamp, pulse: Pulse) -> bool {
        let moved_at = Timestamp::from_millis(self.moved_at.load(Ordering::Acquire));
        let is_silent = moved_at != Timestamp::default() && now.since(moved_at) > STUCK_AFTER;
        is_silent || pulse.held_up_for > STUCK_AFTER
    }

    /// Why it should get no traffic.
    pub fn reasons(&self, pulse: Pulse) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if !self.started.load(Ordering::Acquire) {
            reasons.push("starting");
        }
        if self.is_stopping() {
            reasons.push("shutting_down");
        }
        if self.without_certificate.load(Ordering::Acquire) {
            reasons.push("no_certificate");
        }
        match pulse.failing {
            None => {}
            Some(CommitError::DiskFull) => reasons.push("disk_full"),
            Some(CommitError::Closed | CommitError::Overloaded | CommitError::Unavailable) => {
                reasons.push("store_unavailable");
            }
        }
        reasons
    }
}

/// A data path that has not moved for so long is dead.
const STUCK_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::reference::UNREADY_REASONS;

    fn failing(error: CommitError) -> Pulse {
        Pulse { failing: Some(error), ..Pulse::default() }
    }

    fn held_up(secs: u64) -> Pulse {
        Pulse { held_up_for: Duration::from_secs(secs), ..Pulse::default() }
    }

    #[test]
    fn it_is_ready_between_start_and_stop_while_the_store_takes_webhooks() {
        let readiness = Readiness::default();
        let fine = Pulse::default();
        assert_eq!(readiness.reasons(fine), ["starting"]);
        readiness.started();
        assert!(readiness.reasons(fine).is_empty());
        assert_eq!(readiness.reasons(failing(CommitError::DiskFull)), ["disk_full"]);
        assert_eq!(readiness.reasons(failing(CommitError::Unavailable)), ["store_unavailable"]);
        readiness.without_certificate(true);
        assert_eq!(readiness.reasons(fine), ["no_certificate"]);
        readiness.without_certificate(false);
        assert!(readiness.reasons(fine).is_empty());
        readiness.stopping();
        assert_eq!(readiness.reasons(fine), ["shutting_down"]);
        readiness.without_certificate(true);
        let all = [
            Readiness::default().reasons(failing(CommitError::DiskFull)),
            readiness.reasons(failing(CommitError::Unavailable)),
        ];
        let mut all: Vec<&str> = all.concat();
        all.sort_by_key(|reason| UNREADY_REASONS.iter().position(|known| known == reason));
        assert_eq!(all, UNREADY_REASONS, "each has its series");
    }

    #[test]
    fn it_is_stuck_only_after_thirty_seconds_without_a_move() {
        let readiness = Readiness::default();
        let at = Timestamp::from_millis;
        let fine = Pulse::default();
        assert!(!readiness.is_stuck(at(1_000_000), fine), "nothing is known before the first move");
        readiness.moved(at(1_000_000));
        assert!(!readiness.is_stuck(at(1_030_000), fine));
        assert!(readiness.is_stuck(at(1_030_001), fine));
    }

    #[test]
    fn it_is_stuck_only_after_the_disk_held_the_store_up_for_thirty_seconds() {
        let readiness = Readiness::default();
        let now = Timestamp::from_millis(1_000_000);
        readiness.moved(now);
        assert!(!readiness.is_stuck(now, held_up(30)));
        assert!(readiness.is_stuck(now, held_up(31)));
    }
}
