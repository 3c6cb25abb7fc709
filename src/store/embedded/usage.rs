//! What the store may take, and what of it is unrouted, as the indexer has measured it: answered from
//! memory, also while the disk hangs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::embedded::log::Log;

/// As last measured.
#[derive(Debug, Default)]
pub struct Usage {
    // Zero: the disk has not said it yet.
    bytes_max: AtomicU64,
    unrouted_bytes: AtomicU64,
    unrouted_removed: AtomicU64,
}

impl Usage {
    /// Asks the disk what the segments may take. What it does not say stays as it was: who holds
    /// others to a share of it must not take a disk that fails for a small one.
    pub fn measure(&self, log: &Log) {
        if let Some(bytes_max) = log.bytes_max() {
            self.bytes_max.store(bytes_max, Ordering::Relaxed);
        }
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
