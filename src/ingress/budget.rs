//! The places for requests in flight, and who gives way when there is no room.
//!
//! A request holds a place from before its body is read until its commit has ended. Until it is
//! verified it also counts among the unverified, who hold at most half of all, and of that one
//! address holds at most half. Bytes are charged when memory is taken for them: what a request
//! only announces costs nothing.
//!
//! Where there is no room, it is not the newcomer who is refused but one whose body is still being
//! read who gives way, and is answered 408. So slow requests hold places only while nobody else
//! wants them. Who gives way:
//!
//! - For want of a place: the slowest, who is [`due`] first. A request is due when it begins, and
//!   with what it brings it earns time at the pace of the slowest sender that has any hope of being
//!   in time, up to that sender's whole patience. Requests that bring nothing push out each other,
//!   however many they are; a byte now and then earns next to nothing; and what was earned is used up
//!   after three seconds, however much was sent. To keep a place a stranger has to send as much as
//!   the sender does, in each of hundreds of places at once, and then only newcomers suffer for as
//!   long as they have sent less than he.
//! - For want of bytes: who came first. To keep a webhook out, strangers have to fill half of the
//!   budget anew in the time in which that webhook arrives.
//!
//! This is no help against a flood: strangers who send hundreds of megabytes a second do push out
//! webhooks, the large and slow ones first. Until a body is complete nothing tells the sender from
//! them but his pace.
//!
//! The memory of a request that was ended counts until it is freed, and who wants it waits for that:
//! bodies take no more than the budget, but for a webhook that was complete in the moment in which it
//! had to give way. What a connection reads ahead is its own and not counted here.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::domain::client;
use crate::domain::limit::{BODY_PACE_BYTES, BODY_PACE_TIME};
use crate::net::body::{BodyError, Room};

/// Of the in-flight budget, unverified requests hold at most one part in so many.
const UNVERIFIED_SHARE: usize = 2;

/// Of what unverified requests may hold, one client address holds at most one part in so many.
const ADDRESS_SHARE: usize = 2;

/// The places for requests in flight.
#[derive(Debug)]
pub(super) struct Budget {
    max: Shares,
    state: Mutex<State>,
    /// Memory that somebody may be waiting for was freed.
    freed: Notify,
}

/// What may be held.
#[derive(Debug, Clone, Copy)]
struct Shares {
    all: Share,
    unverified: Share,
    address: Share,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    requests: usize,
    bytes: usize,
}

impl Share {
    fn part(self, share: usize) -> Self {
        Self { requests: (self.requests / share).max(1), bytes: (self.bytes / share).max(1) }
    }
}

impl Budget {
    pub(super) fn new(requests: usize, bytes: usize) -> Arc<Self> {
        let all = Share { requests, bytes };
        let unverified = all.part(UNVERIFIED_SHARE);
        let max = Shares { all, unverified, address: unverified.part(ADDRESS_SHARE) };
        Arc::new(Self { max, state: Mutex::default(), freed: Notify::new() })
    }

    /// A place for an unverified request of which nothing has been read; another gives way if need
    /// be. None if nobody can: all places are held by requests that were verified.
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let address = address.map(client::host);
        let began = Instant::now();
        let (number, ended) = self.lock().enter(address, began, &self.max)?;
        let budget = Arc::clone(self);
        let ended = Some(ended);
        Some(Place {
            budget,
            number,
            address,
            began,
            ended,
            received: 0,
            bytes: 0,
            verified: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a request that began then and brought so much is behind.
fn due(began: Instant, received: usize) -> Instant {
    let pace = u32::try_from(BODY_PACE_BYTES).expect("it is some KiB");
    let earned = u32::try_from(received).map_or(pace, |received| received.min(pace));
    began + BODY_PACE_TIME * earned / pace
}

/// A request's place in the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    budget: Arc<Budget>,
    number: u64,
    address: Option<IpAddr>,
    began: Instant,
    ended: Option<oneshot::Receiver<()>>,
    received: usize,
    bytes: usize,
    verified: bool,
}

impl Place {
    /// Told when the request has to give way; to be asked for once.
    pub(super) fn ended(&mut self) -> oneshot::Receiver<()> {
        self.ended.take().unwrap_or_else(|| oneshot::channel().1)
    }

    /// The request is the sender's, and its body takes so many bytes: it no longer counts among the
    /// unverified, and no longer gives way. One that was ended in this moment is taken in all the
    /// same, over the budget if need be: it is a webhook, and all of it is here.
    pub(super) fn verified(&mut self, bytes: usize) {
        if self.verified {
            return;
        }
        let mut state = self.budget.lock();
        state.leave(self.number, self.address, self.bytes);
        state.all.requests += 1;
        state.all.bytes += bytes;
        drop(state);
        self.bytes = bytes;
        self.verified = true;
        self.budget.freed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        if self.verified {
            state.all.requests -= 1;
            state.all.bytes -= self.bytes;
        } else {
            state.leave(self.number, self.address, self.bytes);
        }
        drop(state);
        self.budget.freed.notify_waiters();
    }
}

impl Room for Place {
    fn arrived(&mut self, bytes: usize) {
        // Most bodies earn all they can with their first bytes: the rest needs no lock.
        if self.received < BODY_PACE_BYTES {
            self.received = bytes;
            self.budget.lock().set_due(self.number, due(self.began, bytes));
        }
    }

    async fn reserve(&mut self, bytes: usize) -> Result<(), BodyError> {
        let more = bytes.saturating_sub(self.bytes);
        loop {
            // Asked for before the look, so that nothing is missed in between.
            let freed = self.budget.freed.notified();
            let grown = self.budget.lock().grow(self.number, more, &self.budget.max);
            match grown {
                Grown::Done => {
                    self.bytes += more;
                    return Ok(());
                }
                Grown::Soon => freed.await,
                Grown::Ended => return Err(BodyError::GaveWay),
                Grown::Never => return Err(BodyError::NoRoom),
            }
        }
    }
}

/// What came of the wish for more bytes.
#[derive(Debug, PartialEq, Eq)]
enum Grown {
    Done,
    /// Others were ended for it, and are about to free theirs.
    Soon,
    /// It had to give way itself.
    Ended,
    /// Those who can not give way hold too much.
    Never,
}

#[derive(Debug, Default)]
struct State {
    all: Amount,
    unverified: Group,
    // As many entries as unverified requests at most.
    by_address: HashMap<IpAddr, Group>,
    /// Those who can give way, by number; older ones have lower numbers.
    reading: HashMap<u64, Reader>,
    next_number: u64,
}

/// A request whose body is being read.
#[derive(Debug)]
struct Reader {
    address: Option<IpAddr>,
    bytes: usize,
    due: Instant,
    end: oneshot::Sender<()>,
}

/// What is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    requests: usize,
    bytes: usize,
    /// Of the bytes, those whose request was ended and is about to free them.
    leaving: usize,
}

impl Amount {
    /// Whether one who holds `own` may take `more`; a body that never could fit may be there alone.
    fn fits(self, own: usize, more: usize, max: Share) -> bool {
        self.bytes + more <= max.bytes || self.bytes == own
    }

    /// The same when those who leave have left.
    fn will_fit(self, own: usize, more: usize, max: Share) -> bool {
        Self { bytes: self.bytes - self.leaving, ..self }.fits(own, more, max)
    }
}

/// Unverified requests that share a bound.
#[derive(Debug, Default)]
struct Group {
    held: Amount,
    oldest: BTreeSet<u64>,
    slowest: BTreeSet<(Instant, u64)>,
}

impl Group {
    fn slowest(&self) -> Option<u64> {
        self.slowest.first().map(|(_, number)| *number)
    }

    fn begin(&mut self, number: u64, due: Instant) {
        self.held.requests += 1;
        self.oldest.insert(number);
        self.slowest.insert((due, number));
    }

    fn end(&mut self, number: u64, due: Instant) {
        self.held.requests -= 1;
        self.oldest.remove(&number);
        self.slowest.remove(&(due, number));
    }
}

impl State {
    fn enter(
        &mut self,
        address: Option<IpAddr>,
        began: Instant,
        max: &Shares,
    ) -> Option<(u64, oneshot::Receiver<()>)> {
        let neighbours = address.and_then(|address| self.by_address.get(&address));
        if let Some(group) = neighbours
            && group.held.requests >= max.address.requests
        {
            let slowest = group.slowest()?;
            self.end(slowest);
        }
        if self.unverified.held.requests >= max.unverified.requests
            || self.all.requests >= max.all.requests
        {
            let slowest = self.unverified.slowest()?;
            self.end(slowest);
        }
        let number = self.next_number;
        self.next_number += 1;
        let (end, ended) = oneshot::channel();
        self.reading.insert(number, Reader { address, bytes: 0, due: began, end });
        self.all.requests += 1;
        self.unverified.begin(number, began);
        if let Some(address) = address {
            self.by_address.entry(address).or_default().begin(number, began);
        }
        Some((number, ended))
    }

    fn set_due(&mut self, number: u64, due: Instant) {
        let Some(reader) = self.reading.get_mut(&number) else { return };
        let before = std::mem::replace(&mut reader.due, due);
        let address = reader.address;
        self.each_group(address, |group| {
            group.slowest.remove(&(before, number));
            group.slowest.insert((due, number));
        });
    }

    fn grow(&mut self, number: u64, more: usize, max: &Shares) -> Grown {
        let Some(Reader { address, bytes: own, .. }) = self.reading.get(&number) else {
            return Grown::Ended;
        };
        let (address, own) = (*address, *own);
        let kept = self.all.bytes - self.unverified.held.bytes;
        if kept > 0 && kept + own + more > max.all.bytes {
            return Grown::Never;
        }
        while let Some(oldest) = self.in_the_way(address, own, more, max) {
            self.end(oldest);
            if oldest == number {
                return Grown::Ended;
            }
        }
        let neighbours = address.and_then(|address| self.by_address.get(&address));
        let fits = neighbours.is_none_or(|group| group.held.fits(own, more, max.address))
            && self.unverified.held.fits(own, more, max.unverified)
            && self.all.fits(own, more, max.all);
        if !fits {
            return Grown::Soon;
        }
        if let Some(reader) = self.reading.get_mut(&number) {
            reader.bytes += more;
        }
        self.all.bytes += more;
        self.each_group(address, |group| group.held.bytes += more);
        Grown::Done
    }

    /// Who has to give way so that one who holds `own` can take `more`.
    fn in_the_way(
        &self,
        address: Option<IpAddr>,
        own: usize,
        more: usize,
        max: &Shares,
    ) -> Option<u64> {
        let neighbours = address.and_then(|address| self.by_address.get(&address));
        let crowded = neighbours.filter(|group| !group.held.will_fit(own, more, max.address));
        let room_for_all = self.unverified.held.will_fit(own, more, max.unverified)
            && self.all.will_fit(own, more, max.all);
        let crowded = crowded.or((!room_for_all).then_some(&self.unverified));
        crowded.and_then(|group| group.oldest.first().copied())
    }

    /// Makes one give way: its place is free at once, its bytes when it has freed them.
    fn end(&mut self, number: u64) {
        let Some(Reader { address, bytes, due, end }) = self.reading.remove(&number) else {
            return;
        };
        self.all.requests -= 1;
        self.all.leaving += bytes;
        self.each_group(address, |group| {
            group.end(number, due);
            group.held.leaving += bytes;
        });
        // It may be about to end by itself.
        let _gone = end.send(());
    }

    /// An unverified request that held so many bytes is gone, whether it was ended or not.
    fn leave(&mut self, number: u64, address: Option<IpAddr>, bytes: usize) {
        let leaving = if let Some(Reader { due, .. }) = self.reading.remove(&number) {
            self.all.requests -= 1;
            self.each_group(address, |group| group.end(number, due));
            0
        } else {
            bytes
        };
        self.all.bytes -= bytes;
        self.all.leaving -= leaving;
        self.each_group(address, |group| {
            group.held.bytes -= bytes;
            group.held.leaving -= leaving;
        });
        if let Some(address) = address
            && self.by_address.get(&address).is_some_and(|group| group.held == Amount::default())
        {
            self.by_address.remove(&address);
        }
    }

    fn each_group(&mut self, address: Option<IpAddr>, mut change: impl FnMut(&mut Group)) {
        change(&mut self.unverified);
        if let Some(group) = address.and_then(|address| self.by_address.get_mut(&address)) {
            change(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    const MS: Duration = Duration::from_millis(1);

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn enter(budget: &Arc<Budget>, count: usize, from: &str) -> Vec<Place> {
        (0..count).map(|_| budget.enter(address(from)).expect("somebody gives way")).collect()
    }

    /// It had to give way; it is still to free what it holds.
    fn gave_way(place: &Place) -> bool {
        !place.verified && !place.budget.lock().reading.contains_key(&place.number)
    }

    /// Those that did not have to.
    fn still_in(places: &[Place]) -> Vec<usize> {
        (0..places.len()).filter(|number| !gave_way(&places[*number])).collect()
    }

    /// What is there without waiting.
    async fn at_once<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }

    fn nothing_is_held(budget: &Budget) {
        let state = budget.lock();
        assert_eq!((state.all, state.unverified.held), (Amount::default(), Amount::default()));
        assert!(state.unverified.oldest.is_empty() && state.unverified.slowest.is_empty());
        assert!(state.by_address.is_empty() && state.reading.is_empty());
    }

    async fn bring(place: &mut Place, bytes: usize) {
        place.arrived(bytes);
        place.reserve(bytes).await.unwrap();
    }

    #[test]
    fn the_unverified_hold_half_and_each_address_half_of_that() {
        let budget = Budget::new(16, 1600);
        let one = enter(&budget, 4, "192.0.2.1");
        let mut other = enter(&budget, 4, "192.0.2.2");
        // Each address makes room for itself.
        let mapped = enter(&budget, 1, "::ffff:192.0.2.1");
        assert_eq!((still_in(&one), still_in(&other).len()), (vec![1, 2, 3], 4));
        // The slowest of all makes room for a third, or for one whose address is not known.
        let third = enter(&budget, 1, "192.0.2.3");
        let unknown = budget.enter(None).unwrap();
        assert_eq!((still_in(&one), still_in(&other).len()), (vec![3], 4));
        assert_eq!(budget.lock().unverified.held.requests, 8);
        // Who is verified makes room, too.
        other.iter_mut().for_each(|place| place.verified(0));
        assert_eq!(budget.lock().unverified.held.requests, 4);
        let more = enter(&budget, 4, "192.0.2.4");
        assert_eq!(still_in(&one), [3]);
        drop((one, other, mapped, third, unknown, more));
        nothing_is_held(&budget);
    }

    #[test]
    fn verified_requests_may_hold_everything_but_no_more_and_never_give_way() {
        let budget = Budget::new(4, 4000);
        let mut places = Vec::new();
        while let Some(mut place) = budget.enter(None) {
            place.verified(1);
            places.push(place);
        }
        assert_eq!(places.len(), 4);
        places.pop();
        let reading = budget.enter(None).unwrap();
        let next = budget.enter(None).unwrap();
        assert!(gave_way(&reading));
        drop((places, reading, next));
        nothing_is_held(&budget);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_charged_as_they_come_and_who_came_first_gives_way() {
        let budget = Budget::new(100, 1000);
        let mut places: Vec<_> = (0..5).map(|_| budget.enter(None).unwrap()).collect();
        for place in &mut places {
            bring(place, 100).await;
        }
        assert_eq!(still_in(&places).len(), 5);
        let mut newest = places.pop().unwrap();
        let mut waiting = Box::pin(newest.reserve(250));
        // Two gave way for it, and it waits until both have freed what they held.
        assert!(at_once(waiting.as_mut()).await.is_none());
        assert_eq!(budget.lock().all, Amount { requests: 3, bytes: 500, leaving: 200 });
        let mut stay = places.split_off(2);
        places.pop();
        assert!(at_once(waiting.as_mut()).await.is_none());
        drop(places);
        waiting.await.unwrap();
        assert_eq!(still_in(&stay).len(), 2);
        assert_eq!(budget.lock().all, Amount { requests: 3, bytes: 450, leaving: 0 });
        // The oldest there is wants more: it is the one to go.
        assert!(matches!(stay[0].reserve(200).await, Err(BodyError::GaveWay)));
        newest.verified(70);
        assert_eq!(budget.lock().all, Amount { requests: 2, bytes: 270, leaving: 100 });
        drop((stay, newest));
        nothing_is_held(&budget);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_large_bodies_makes_room_for_itself() {
        let budget = Budget::new(100, 1000);
        let mut other = budget.enter(address("192.0.2.2")).unwrap();
        bring(&mut other, 200).await;
        let mut places = enter(&budget, 2, "192.0.2.1");
        bring(&mut places[0], 200).await;
        let (first, second) = places.split_at_mut(1);
        assert!(at_once(Box::pin(second[0].reserve(100))).await.is_none());
        assert!(gave_way(&first[0]) && !gave_way(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_larger_than_the_share_is_let_in_alone() {
        let budget = Budget::new(100, 1000);
        let mut large = budget.enter(address("2001:db8::1")).unwrap();
        bring(&mut large, 900).await;
        large.reserve(1200).await.unwrap();
        let mut small = budget.enter(address("2001:db8:1::1")).unwrap();
        assert!(at_once(Box::pin(small.reserve(1))).await.is_none());
        assert!(gave_way(&large));
        drop(large);
        small.reserve(1).await.unwrap();
        // What is verified does not give way: there is no use in making others go.
        let mut stored = budget.enter(None).unwrap();
        stored.verified(990);
        assert!(matches!(small.reserve(20).await, Err(BodyError::NoRoom)));
        assert!(!gave_way(&small));
        small.reserve(10).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_webhook_that_is_complete_when_it_has_to_give_way_is_taken_in() {
        let budget = Budget::new(2, 1000);
        let mut webhook = budget.enter(None).unwrap();
        bring(&mut webhook, 100).await;
        let next = budget.enter(None).unwrap();
        assert!(gave_way(&webhook));
        webhook.verified(80);
        assert_eq!(budget.lock().all, Amount { requests: 2, bytes: 80, leaving: 0 });
        drop((webhook, next));
        nothing_is_held(&budget);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_requests_that_bring_nothing_leaves_a_slow_sender_in() {
        let budget = Budget::new(64, 64 << 20);
        let mut strangers = std::collections::VecDeque::new();
        let mut sender = budget.enter(None).unwrap();
        // 26 KB in 2 s, the first two packets at once, among 16,000 requests in a second.
        for step in 1..=200 {
            bring(&mut sender, 2800 + step * 116).await;
            for _ in 0..160 {
                let mut stranger = budget.enter(None).unwrap();
                stranger.arrived(1);
                strangers.push_back(stranger);
            }
            strangers.drain(..strangers.len() - 31);
            advance(10 * MS).await;
            assert!(!gave_way(&sender), "at step {step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_or_many_long_ago_keeps_no_place() {
        let budget = Budget::new(8, 64 << 20);
        let mut places: Vec<_> = (0..4).map(|_| budget.enter(None).unwrap()).collect();
        bring(&mut places[0], 1 << 20).await;
        for step in 1..=35 {
            advance(100 * MS).await;
            places[1].arrived(step);
            places[2].arrived(step * 800);
            places[3].arrived(step * 1000);
        }
        let mut newest = Vec::new();
        for expected in [&[0, 2, 3][..], &[2, 3], &[3], &[]] {
            newest.push(budget.enter(None).unwrap());
            newest.last_mut().unwrap().arrived(1);
            assert_eq!(still_in(&places), expected);
        }
    }
}
