//! Connections at once, and which of them end when there are too many.
//!
//! A connection costs a stranger nothing and may be idle for longer than any sender waits. So where
//! all slots are taken, it is not the newcomer who has to wait: those end that have had no request
//! to answer for longest, handshakes and heads that do not come among them. Only where every
//! connection has a request in work does the next one wait, until one of them has been answered.
//! An answer that is not read keeps nobody's slot for longer than [`READ_WAIT`]: over HTTP/2 its
//! reader says how much may be sent, and may say nothing for ever.
//!
//! The same holds among those of one address, but that there the newcomer is refused rather than made
//! to wait: who connects from elsewhere must not stand in line behind it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::listener::ListenerLimits;
use crate::domain::client;
use crate::domain::limit::BODY_PACE_TIME;

/// One part in so many ends at once: looking for the longest idle means looking at all.
const ENDED_SHARE: usize = 64;

/// How long a request counts whose answer is there and is not read: the sender's whole patience. An
/// answer is less than 1 KiB, and who means to read it gave room for it when he asked.
const READ_WAIT: Duration = BODY_PACE_TIME;

/// Nobody tells when an answer was not read in time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The slots for connections and who is in them.
#[derive(Debug)]
pub(super) struct Crowd {
    slots: Arc<Semaphore>,
    members: Mutex<Members>,
    epoch: Instant,
    next: AtomicU64,
    /// Somebody waits for a connection to fall idle.
    awaited: AtomicBool,
    fell_idle: Notify,
}

#[derive(Debug, Default)]
struct Members {
    all: HashMap<u64, Arc<Quiet>>,
    /// Those whose address is known to be a client's: as many entries as connections at most.
    by_address: HashMap<IpAddr, Vec<Arc<Quiet>>>,
}

/// What a connection lets others see: whether it has requests, and since when it has none.
#[derive(Debug)]
struct Quiet {
    number: u64,
    /// Requests without an answer.
    active: AtomicU32,
    /// Answers that wait to be read.
    unread: AtomicU32,
    /// The last was over, or the first of those that wait was there.
    since_micros: AtomicU64,
    end: CancellationToken,
}

impl Quiet {
    /// It has no request to answer, and no answer that its peer may be about to read.
    fn is_idle(&self, now_micros: u64) -> bool {
        self.active.load(Ordering::SeqCst) == 0 && self.time_to_read(now_micros).is_zero()
    }

    /// For how long its answers still count.
    fn time_to_read(&self, now_micros: u64) -> Duration {
        if self.unread.load(Ordering::SeqCst) == 0 {
            return Duration::ZERO;
        }
        let since_micros = self.since_micros.load(Ordering::SeqCst);
        READ_WAIT.saturating_sub(Duration::from_micros(now_micros.saturating_sub(since_micros)))
    }
}

impl Crowd {
    /// So many slots.
    pub(super) fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(connections_max)),
            members: Mutex::default(),
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
            if self.has_one_that_ends() || self.end_longest_idle() {
                break Arc::clone(&self.slots).acquire_owned().await.ok();
            }
            tokio::select! {
                slot = Arc::clone(&self.slots).acquire_owned() => break slot.ok(),
                () = fell_idle => {}
                () = sleep(LOOK_EVERY) => {}
            }
        };
        self.awaited.store(false, Ordering::SeqCst);
        slot
    }

    /// Takes in a connection that has a slot.
    pub(super) fn enter(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Member {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let quiet = Arc::new(Quiet {
            number,
            active: AtomicU32::new(0),
            unread: AtomicU32::new(0),
            since_micros: AtomicU64::new(self.micros()),
            end: CancellationToken::new(),
        });
        self.lock().all.insert(number, Arc::clone(&quiet));
        Member { crowd: Arc::clone(self), address: OnceLock::new(), quiet, _slot: slot }
    }

    /// Whether there may be one more from this address; another of the same ends if need be.
    pub(super) fn make_room(&self, address: IpAddr, limits: &ListenerLimits) -> bool {
        let Some(host) = counted(address, limits) else { return true };
        let members = self.lock();
        let Some(group) = members.by_address.get(&host) else { return true };
        let max = limits.connections_per_address_max;
        if group.len() < max {
            return true;
        }
        let staying = group.iter().filter(|quiet| !quiet.end.is_cancelled()).count();
        staying < max || end_longest_idle(group.iter(), self.micros())
    }

    /// Whether one has made room already, for its address, and is not gone yet.
    fn has_one_that_ends(&self) -> bool {
        let now = self.micros();
        let is_ending = |quiet: &Arc<Quiet>| quiet.end.is_cancelled() && quiet.is_idle(now);
        self.lock().all.values().any(is_ending)
    }

    fn end_longest_idle(&self) -> bool {
        let now = self.micros();
        end_longest_idle(self.lock().all.values(), now)
    }

    fn micros(&self) -> u64 {
        self.epoch.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends some of those who have no request to answer; whether there were any.
fn end_longest_idle(members: impl ExactSizeIterator<Item: AsRef<Quiet>>, now_micros: u64) -> bool {
    let share = (members.len() / ENDED_SHARE).max(1);
    let mut idle: Vec<_> = members
        .filter(|member| {
            let quiet = member.as_ref();
            quiet.is_idle(now_micros) && !quiet.end.is_cancelled()
        })
        .map(|member| {
            let quiet = member.as_ref();
            ((quiet.since_micros.load(Ordering::SeqCst), quiet.number), member)
        })
        .collect();
    if idle.len() > share {
        idle.select_nth_unstable_by_key(share, |(since, _)| *since);
        idle.truncate(share);
    }
    idle.iter().for_each(|(_, member)| member.as_ref().end.cancel());
    !idle.is_empty()
}

/// With whom connections from this address are counted; not at all, where it is a proxy's.
fn counted(address: IpAddr, limits: &ListenerLimits) -> Option<IpAddr> {
    (!limits.proxies.trusted.contains(address)).then(|| client::host(address))
}

/// A connection in its slot, for as long as it exists.
#[derive(Debug)]
pub(super) struct Member {
    crowd: Arc<Crowd>,
    /// With whom it is counted.
    address: OnceLock<IpAddr>,
    quiet: Arc<Quiet>,
    _slot: OwnedSemaphorePermit,
}

impl Member {
    /// It is counted with those of this address from now on, if that is no proxy's.
    pub(super) fn comes_from(&self, address: IpAddr, limits: &ListenerLimits) {
        let Some(host) = counted(address, limits) else { return };
        if self.address.set(host).is_ok() {
            self.crowd.lock().by_address.entry(host).or_default().push(Arc::clone(&self.quiet));
        }
    }

    /// The same, if there may be one more.
    pub(super) fn belongs_to(&self, address: IpAddr, limits: &ListenerLimits) -> bool {
        let has_room = self.crowd.make_room(address, limits);
        if has_room {
            self.comes_from(address, limits);
        }
        has_room
    }

    /// Cancelled when another wants its slot.
    pub(super) fn ends(&self) -> &CancellationToken {
        &self.quiet.end
    }

    /// It has no request to answer, and no answer that its peer may be about to read.
    pub(super) fn is_idle(&self) -> bool {
        self.quiet.is_idle(self.crowd.micros())
    }

    /// It has a request without an answer.
    pub(super) fn is_in_work(&self) -> bool {
        self.quiet.active.load(Ordering::SeqCst) > 0
    }

    /// For how long answers that are not read still count.
    pub(super) fn time_to_read(&self) -> Duration {
        self.quiet.time_to_read(self.crowd.micros())
    }

    /// Requests without an answer, and answers that wait to be read.
    pub(super) fn requests(&self) -> u32 {
        self.quiet.active.load(Ordering::SeqCst) + self.quiet.unread.load(Ordering::SeqCst)
    }

    pub(super) fn request_begins(&self) {
        self.quiet.active.fetch_add(1, Ordering::SeqCst);
    }

    /// To be called before its request ends, so that it is never idle in between.
    pub(super) fn answer_begins(&self) {
        if self.quiet.unread.fetch_add(1, Ordering::SeqCst) == 0 {
            self.quiet.since_micros.store(self.crowd.micros(), Ordering::SeqCst);
        }
    }

    /// There is an answer, or its peer wants none.
    pub(super) fn request_ends(&self) {
        let quiet = &self.quiet;
        if quiet.unread.load(Ordering::SeqCst) == 0 {
            quiet.since_micros.store(self.crowd.micros(), Ordering::SeqCst);
        }
        let last = quiet.active.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && quiet.unread.load(Ordering::SeqCst) == 0 {
            self.fell_idle();
        }
    }

    /// It is read, or nobody will read it.
    pub(super) fn answer_ends(&self) {
        let quiet = &self.quiet;
        if quiet.unread.fetch_sub(1, Ordering::SeqCst) == 1 {
            quiet.since_micros.store(self.crowd.micros(), Ordering::SeqCst);
            if quiet.active.load(Ordering::SeqCst) == 0 {
                self.fell_idle();
            }
        }
    }

    fn fell_idle(&self) {
        if self.crowd.awaited.load(Ordering::SeqCst) {
            self.crowd.fell_idle.notify_waiters();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.crowd.lock();
        members.all.remove(&self.quiet.number);
        let Some(host) = self.address.get() else { return };
        if let Some(group) = members.by_address.get_mut(host) {
            group.retain(|quiet| quiet.number != self.quiet.number);
            if group.is_empty() {
                members.by_address.remove(host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::listener::Proxies;
    use crate::net::testing;
    use std::time::Duration;
    use tokio::time::{advance, timeout};

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
        let crowd = Crowd::new(3);
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
    async fn an_answer_that_is_not_read_makes_nobody_wait_for_long() {
        let crowd = Crowd::new(2);
        let members = full(&crowd);
        for member in &members {
            member.request_begins();
            member.answer_begins();
            member.request_ends();
        }
        advance(READ_WAIT / 2).await;
        // Another one does not give it more time.
        members[0].request_begins();
        members[0].answer_begins();
        members[0].request_ends();
        members[1].answer_ends();
        members[1].request_begins();
        assert!(!members[0].is_idle() && !members[1].is_idle());
        let mut slot = Box::pin(crowd.slot());
        let until_it_ends = async {
            tokio::select! {
                _ = slot.as_mut() => panic!("nobody left"),
                () = members[0].ends().cancelled() => {}
            }
        };
        timeout(READ_WAIT / 2 + LOOK_EVERY, until_it_ends).await.expect("it had its time");
        assert_eq!(ended(&members), [0]);
        drop(members);
        assert!(slot.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_read_counts_no_more() {
        let crowd = Crowd::new(1);
        let members = full(&crowd);
        members[0].request_begins();
        members[0].answer_begins();
        members[0].request_ends();
        let mut slot = Box::pin(crowd.slot());
        assert!(at_once(slot.as_mut()).await.is_none());
        assert!(ended(&members).is_empty());
        members[0].answer_ends();
        assert!(at_once(slot.as_mut()).await.is_none());
        assert_eq!(ended(&members), [0]);
        drop(members);
        assert!(slot.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_busy_the_first_that_has_answered_ends() {
        let crowd = Crowd::new(2);
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

    fn per_address(max: usize) -> ListenerLimits {
        let proxies = Proxies {
            trusted: ["10.0.0.0/8".parse().unwrap()].into_iter().collect(),
            protocol: false,
        };
        ListenerLimits { connections_per_address_max: max, proxies, ..testing::limits() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_makes_room_for_itself_and_is_refused_where_it_has_none() {
        let (crowd, limits) = (Crowd::new(100), per_address(2));
        let enter = |address: &str| {
            let address = address.parse().unwrap();
            if !crowd.make_room(address, &limits) {
                return None;
            }
            let member = crowd.enter(crowd.try_slot().unwrap());
            member.comes_from(address, &limits);
            Some(member)
        };
        let other = enter("192.0.2.2").unwrap();
        let first = enter("192.0.2.1").unwrap();
        advance(Duration::from_secs(1)).await;
        let second = enter("::ffff:192.0.2.1").unwrap();
        let third = enter("192.0.2.1").unwrap();
        assert!(first.ends().is_cancelled() && !second.ends().is_cancelled());
        second.request_begins();
        third.request_begins();
        // Who is about to end is not counted, but there is nobody else who could.
        assert!(enter("192.0.2.1").is_none());
        drop(first);
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some() && !other.ends().is_cancelled());
        drop(third);
        assert!(enter("192.0.2.1").is_some());
        let hosts = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|text| enter(text).unwrap());
        assert_eq!(ended(&hosts).len(), 1, "they are one network");
        let proxied: Vec<_> = (0..9).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(ended(&proxied).is_empty(), "a proxy's connections are not one client's");
        drop((other, second, hosts, proxied));
        assert!(crowd.lock().by_address.is_empty() && crowd.lock().all.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn where_one_address_has_all_slots_one_ends_for_each_newcomer() {
        let (crowd, limits) = (Crowd::new(3), per_address(3));
        let address = "192.0.2.1".parse().unwrap();
        let mut members = full(&crowd);
        members.iter().for_each(|member| member.comes_from(address, &limits));
        assert!(crowd.make_room(address, &limits));
        let mut slot = Box::pin(crowd.slot());
        assert!(at_once(slot.as_mut()).await.is_none());
        let ended = ended(&members);
        assert_eq!(ended.len(), 1, "{ended:?}");
        drop(members.remove(ended[0]));
        assert!(slot.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_a_share_ends_at_once() {
        let crowd = Crowd::new(ENDED_SHARE * 3);
        let members = full(&crowd);
        assert!(at_once(Box::pin(crowd.slot())).await.is_none());
        assert_eq!(ended(&members).len(), 3);
    }
}
