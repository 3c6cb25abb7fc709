//! The memory that the bodies in lanes may take, shared fairly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a body is taken for until the lane has seen some: the field's median.
const BODY_BYTES_TYPICAL: usize = 26 * 1024;

/// The memory of all lanes.
///
/// Half of it is divided among the lanes, so that none has to wait for another; the other half
/// goes to whoever needs more. A lane that holds nothing may always take one delivery.
#[derive(Debug)]
pub(super) struct Memory {
    bytes_max: usize,
    held: AtomicUsize,
    lanes: AtomicUsize,
}

impl Memory {
    /// So much for all lanes.
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        let (held, lanes) = (AtomicUsize::new(0), AtomicUsize::new(1));
        Arc::new(Self { bytes_max, held, lanes })
    }

    /// Among how many it is divided.
    pub(super) fn set_lanes(&self, lanes: usize) {
        self.lanes.store(lanes.max(1), Ordering::Relaxed);
    }
}

/// One lane's part of it.
#[derive(Debug)]
pub(super) struct Window {
    memory: Arc<Memory>,
    held: Arc<AtomicUsize>,
    body_bytes: usize,
}

impl Window {
    /// Nothing is held yet.
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        Self { memory, held: Arc::default(), body_bytes: BODY_BYTES_TYPICAL }
    }

    /// How many deliveries may be taken now, judged by the bodies seen before.
    pub(super) fn room(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed);
        let half = self.memory.bytes_max / 2;
        let own = (half / self.memory.lanes.load(Ordering::Relaxed)).saturating_sub(held);
        let common = half.saturating_sub(self.memory.held.load(Ordering::Relaxed));
        (own.max(common) / self.body_bytes.max(1)).max(usize::from(held == 0))
    }

    /// Takes a body in; it counts until what is returned is dropped.
    pub(super) fn hold(&mut self, bytes: usize) -> Held {
        // Falls slowly and rises at once: in doubt less is taken.
        self.body_bytes = bytes.max(self.body_bytes - self.body_bytes / 16);
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.memory.held.fetch_add(bytes, Ordering::Relaxed);
        Held { memory: Arc::clone(&self.memory), lane: Arc::clone(&self.held), bytes }
    }
}

/// A body in a lane.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    lane: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lane.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_with_large_bodies_leaves_the_others_their_share_and_never_stands_still() {
        let memory = Memory::new(16 << 20);
        memory.set_lanes(4);
        let (mut greedy, other) = (Window::new(Arc::clone(&memory)), Window::new(memory));
        let mut held = Vec::new();
        while greedy.room() > 0 {
            held.push(greedy.hold(1 << 20));
        }
        assert_eq!(held.len(), 8, "the common half, its own part included");
        assert_eq!(other.room(), (2 << 20) / BODY_BYTES_TYPICAL);
        held.clear();
        assert_eq!(greedy.room(), 8);
        let _large = greedy.hold(64 << 20);
        assert_eq!((greedy.room(), other.room()), (0, (2 << 20) / BODY_BYTES_TYPICAL));
        let tiny = Memory::new(0);
        assert_eq!(Window::new(tiny).room(), 1);
    }
}
