//! The memory for bodies that wait in lanes, shared fairly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The whole budget.
#[derive(Debug)]
pub struct Memory {
    bytes_max: usize,
    lanes: AtomicUsize,
}

/// A lane's part of it.
#[derive(Debug)]
pub struct Share {
    memory: Arc<Memory>,
    held: AtomicUsize,
}

/// Some bytes of a lane's share; dropped, they are free again.
#[derive(Debug)]
pub struct Hold {
    share: Arc<Share>,
    bytes: usize,
}

impl Memory {
    /// A budget of that many bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, lanes: AtomicUsize::new(0) })
    }

    /// A share for one more lane: all shares become smaller.
    pub fn share(self: &Arc<Self>) -> Arc<Share> {
        self.lanes.fetch_add(1, Ordering::Relaxed);
        Arc::new(Share { memory: Arc::clone(self), held: AtomicUsize::new(0) })
    }
}

impl Share {
    /// Bytes of the share, if there are so many left. A lane that holds nothing gets any amount:
    /// it can always move.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Option<Hold> {
        let bytes = bytes.max(1);
        let max = self.memory.bytes_max / self.memory.lanes.load(Ordering::Relaxed).max(1);
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held == 0 || held.saturating_add(bytes) <= max).then_some(held + bytes)
            })
            .is_ok()
            .then(|| Hold { share: Arc::clone(self), bytes })
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.share.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_gets_its_share_and_always_one_body() {
        let memory = Memory::new(100);
        let (a, b) = (memory.share(), memory.share());
        let big = a.hold(1000).unwrap();
        assert!(a.hold(1).is_none());
        let one = b.hold(50).unwrap();
        assert!(b.hold(1).is_none());
        drop((big, one));
        assert_eq!(a.held() + b.held(), 0);
        assert!(b.hold(30).is_some());
    }
}
