//! Connections at once, and which of them end when there are too many.
//!
//! A connection costs a stranger nothing and may be idle for longer than any sender waits. So where
//! all slots are taken, it is not the newcomer who has to wait: those end that have had no request
//! to answer for longest, handshakes and heads that do not come among them. Only where every
//! connection has a request in work does the next one wait, until one of them has been answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One part in so many ends at once: looking for the longest idle means looking at all.
const ENDED_SHARE: usize = 64;

/// The slots for connections and who is in them.
#[derive(Debug)]
pub(super) struct Crowd {
    slots: Arc<Semaphore>,
    members: Mutex<HashMap<u64, Arc<Quiet>>>,
    /// Ends them all.
    drain: CancellationToken,
    epoch: Instant,
    next: AtomicU64,
    /// Somebody waits for a connection to fall idle.
    awaited: AtomicBool,
    fell_idle: Notify,
}

/// What a connection lets others see: whether it has requests, and since when it has none.
#[derive(Debug)]
struct Quiet {
    active: AtomicU32,
    since_micros: AtomicU64,
    end: CancellationToken,
}

impl Crowd {
    /// So many slots, for connections that end when `drain` is cancelled.
    pub(super) fn new(connections_max: usize, drain: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(connections_max)),
            members: Mutex::default(),
            drain,
            epoch: Instant::now(),
            next: AtomicU64::new(0),
            awaited: AtomicBool::new(false),
            fell_idle: Notify::new(),
        })
    }

    /// A slot, if one is free.
    pub(super) fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// A slot, for which others have to end.
    pub(super) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        self.awaited.store(true, Ordering::SeqCst);
        let slot = loop {
            let fell_idle = self.fell_idle.notified();
            if self.end_longest_idle() {
                break Arc::clone(&self.slots).acquire_owned().await.ok();
            }
            tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => break slot.ok(),
                () = fell_idle => {}
            }
        };
        self.awaited.store(false, Ordering::SeqCst);
        slot
    }

    /// Takes in a connection that has a slot.
    pub(super) fn enter(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Member {
        let quiet = Arc::new(Quiet {
            active: AtomicU32::new(0),
            since_micros: AtomicU64::new(self.micros()),
            end: self.drain.child_token(),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Arc::clone(&quiet));
        Member { crowd: Arc::clone(self), number, quiet, _slot: slot }
    }

    fn end_longest_idle(&self) -> bool {
        let members = self.lock();
        let share = (members.len() / ENDED_SHARE).max(1);
        let mut idle: Vec<_> = members
            .iter()
            .filter(|(_, quiet)| {
                quiet.active.load(Ordering::SeqCst) == 0 && !quiet.end.is_cancelled()
            })
            .map(|(number, quiet)| {
                let since = quiet.since_micros.load(Ordering::Relaxed);
                ((since, *number), Arc::clone(quiet))
            })
            .collect();
        drop(members);
        if idle.len() > share {
            idle.select_nth_unstable_by_key(share, |(since, _)| *since);
            idle.truncate(share);
        }
        idle.iter().for_each(|(_, quiet)| quiet.end.cancel());
        !idle.is_empty()
    }

    fn micros(&self) -> u64 {
        self.epoch.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Quiet>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in its slot, for as long as it exists.
#[derive(Debug)]
pub(super) struct Member {
    crowd: Arc<Crowd>,
    number: u64,
    quiet: Arc<Quiet>,
    _slot: OwnedSemaphorePermit,
}

impl Member {
    /// Cancelled when the connection has to end.
    pub(super) fn ends(&self) -> &CancellationToken {
        &self.quiet.end
    }

    /// Another waits for its slot, and no request has begun in the meantime: it need not say goodbye.
    pub(super) fn ends_at_once(&self) -> bool {
        !self.crowd.drain.is_cancelled() && self.requests() == 0
    }

    pub(super) fn requests(&self) -> u32 {
        self.quiet.active.load(Ordering::SeqCst)
    }

    pub(super) fn request_begins(&self) {
        self.quiet.active.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn request_ends(&self) {
        self.quiet.since_micros.store(self.crowd.micros(), Ordering::Relaxed);
        let last = self.quiet.active.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.crowd.awaited.load(Ordering::SeqCst) {
            self.crowd.fell_idle.notify_waiters();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.crowd.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    fn full(crowd: &Arc<Crowd>) -> Vec<Member> {
        std::iter::from_fn(|| crowd.try_slot().map(|slot| crowd.enter(slot))).collect()
    }

    fn ended(members: &[Member]) -> Vec<usize> {
        (0..members.len()).filter(|number| members[*number].ends().is_cancelled()).collect()
    }

    /// Polls once.
    async fn at_once<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_ends_and_its_slot_is_the_newcomers() {
        let crowd = Crowd::new(3, CancellationToken::new());
        let mut members = full(&crowd);
        assert_eq!(members.len(), 3);
        advance(Duration::from_secs(1)).await;
        members[0].request_begins();
        members[0].request_ends();
        members[1].request_begins();
        let mut slot = Box::pin(crowd.slot());
        assert!(at_once(slot.as_mut()).await.is_none());
        assert_eq!(ended(&members), [2]);
        drop(members.pop());
        let newest = crowd.enter(slot.await.unwrap());
        assert!(crowd.try_slot().is_none());
        let mut slot = Box::pin(crowd.slot());
        advance(Duration::from_secs(1)).await;
        assert!(at_once(slot.as_mut()).await.is_none());
        assert_eq!(ended(&members).len() + usize::from(newest.ends().is_cancelled()), 1);
        assert!(!members[1].ends().is_cancelled(), "it has a request");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_busy_the_first_that_has_answered_ends() {
        let crowd = Crowd::new(2, CancellationToken::new());
        let members = full(&crowd);
        members.iter().for_each(Member::request_begins);
        let mut slot = Box::pin(crowd.slot());
        assert!(at_once(slot.as_mut()).await.is_none());
        assert!(ended(&members).is_empty());
        members[1].request_ends();
        assert!(at_once(slot.as_mut()).await.is_none());
        assert_eq!(ended(&members), [1]);
        drop(members);
        assert!(slot.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_a_share_ends_at_once() {
        let crowd = Crowd::new(ENDED_SHARE * 3, CancellationToken::new());
        let members = full(&crowd);
        assert!(at_once(Box::pin(crowd.slot())).await.is_none());
        assert_eq!(ended(&members).len(), 3);
    }
}
