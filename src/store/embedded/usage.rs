//! What the store may take, and what of it is unrouted, as the indexer has measured it: answered from
//! memory, also while the disk hangs.

use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use tokio::time::Instant;

use crate::store::embedded::log::Log;

// Where nobody has set a limit it is what the disk has free now. After a start on a disk that others have
// filled, targets first take what waits for them.
const SHARES_AFTER: Duration = Duration::from_secs(60);

/// As last measured.
#[derive(Debug)]
pub struct Usage {
    opened: Instant,
    // Zero: the disk has not said it yet.
    bytes_max: AtomicU64,
    bytes_max_seen: AtomicU64,
    shares_of: AtomicU64,
    unrouted_bytes: AtomicU64,
    unrouted_removed: AtomicU64,
}

impl Usage {
    /// As measured now.
    pub fn of(log: &Log) -> Self {
        let usage = Self {
            opened: Instant::now(),
            bytes_max: AtomicU64::default(),
            bytes_max_seen: AtomicU64::default(),
            shares_of: AtomicU64::default(),
            unrouted_bytes: AtomicU64::default(),
            unrouted_removed: AtomicU64::default(),
        };
        usage.measure(log);
        usage
    }

    /// Asks the disk what the segments may take. What it does not say stays as it was: who holds
    /// others to a share of it must not take a disk that fails for a small one.
    pub fn measure(&self, log: &Log) {
        let Some(bytes_max) = log.bytes_max() else { return };
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
        if log.has_own_limit() {
            self.shares_of.store(bytes_max, Ordering::Relaxed);
            return;
        }
        // What others put on the disk meanwhile is no reason to end what waits for a target.
        let seen = self.bytes_max_seen.fetch_max(bytes_max, Ordering::Relaxed).max(bytes_max);
        if self.opened.elapsed() >= SHARES_AFTER {
            self.shares_of.store(seen, Ordering::Relaxed);
        }
    }

    /// What shares of the store are shares of: its limit, or the most that the disk has had for it since
    /// the start. None yet where that has to be seen first.
    pub fn shares_of(&self) -> Option<u64> {
        Some(self.shares_of.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// What the segments may take, if that is known.
    pub fn bytes_max(&self) -> Option<u64> {
        Some(self.bytes_max.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// What unrouted webhooks take now.
    pub fn set_unrouted(&self, bytes: u64) {
        self.unrouted_bytes.store(bytes, Ordering::Relaxed);
    }

    /// What unrouted webhooks take.
    pub fn unrouted_bytes(&self) -> u64 {
        self.unrouted_bytes.load(Ordering::Relaxed)
    }

    /// So many unrouted webhooks went before their retention was over.
    pub fn removed_unrouted(&self, count: u64) {
        self.unrouted_removed.fetch_add(count, Ordering::Relaxed);
    }

    /// How many of them did since the start.
    pub fn unrouted_removed(&self) -> u64 {
        self.unrouted_removed.load(Ordering::Relaxed)
    }
}
