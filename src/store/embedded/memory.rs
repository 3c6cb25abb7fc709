//! The memory for bodies that wait in lanes, shared fairly.
//!
//! A share is its lane's alone: no lane waits for what another one holds, and a lane that holds nothing
//! gets what it wants. So who was refused waits for a hold of his own lane, and hears when one is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

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
    // Somebody was refused since a hold was dropped.
    refused: AtomicBool,
    changed: Arc<Notify>,
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

    /// A share for one more lane: all shares become smaller. `changed` is notified when there is room
    /// again after [`refuse`](Share::refuse).
    pub fn share(self: &Arc<Self>, changed: Arc<Notify>) -> Arc<Share> {
        self.lanes.fetch_add(1, Ordering::Relaxed);
        let (memory, held) = (Arc::clone(self), AtomicUsize::new(0));
        Arc::new(Share { memory, held, refused: AtomicBool::new(false), changed })
    }
}

impl Share {
    /// Bytes of the share, if there are so many left. A lane that holds nothing gets any amount:
    /// it can always move.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Option<Hold> {
        let bytes = bytes.max(1);
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                self.fits(bytes, held).then_some(held + bytes)
            })
            .is_ok()
            .then(|| Hold { share: Arc::clone(self), bytes })
    }

    /// Whether there is room for so many bytes beside those.
    pub fn fits(&self, bytes: usize, held: usize) -> bool {
        let max = self.memory.bytes_max / self.memory.lanes.load(Ordering::Relaxed).max(1);
        held == 0 || held.saturating_add(bytes) <= max
    }

    /// Somebody waits for room: the next hold that is dropped tells him. Said under the lock under which
    /// holds are dropped, or one is missed.
    pub fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Hold {
    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let share = &self.share;
        share.held.fetch_sub(self.bytes, Ordering::Relaxed);
        if share.refused.load(Ordering::Relaxed) && share.refused.swap(false, Ordering::Relaxed) {
            share.changed.notify_one();
        }
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
        let (a, b) = (memory.share(Arc::default()), memory.share(Arc::default()));
        let big = a.hold(1000).unwrap();
        assert!(a.hold(1).is_none());
        let one = b.hold(50).unwrap();
        assert!(b.hold(1).is_none());
        drop((big, one));
        assert_eq!(a.held() + b.held(), 0);
        assert!(b.hold(30).is_some());
    }

    #[tokio::test]
    async fn who_was_refused_hears_of_the_next_hold_that_is_dropped() {
        let changed = Arc::new(Notify::new());
        let share = Memory::new(100).share(Arc::clone(&changed));
        let has_heard = async || {
            let mut heard = std::pin::pin!(changed.notified());
            heard.as_mut().enable()
        };
        let (first, second) = (share.hold(50), share.hold(50));
        drop(first.unwrap());
        assert!(!has_heard().await, "nobody was refused");
        assert!(share.hold(60).is_none());
        share.refuse();
        assert!(!has_heard().await, "nothing has changed");
        drop(second.unwrap());
        assert!(has_heard().await);
        drop(share.hold(60).unwrap());
        assert!(!has_heard().await, "he was told");
    }
}
