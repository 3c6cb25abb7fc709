//! The places for requests in flight.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of the in-flight budget, unverified requests hold at most one part in so many.
const UNVERIFIED_SHARE: usize = 2;

/// Of what unverified requests may hold, one client address holds at most one part in so many.
const ADDRESS_SHARE: usize = 2;

/// So many requests with so many bytes of body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    requests: usize,
    bytes: usize,
}

impl Amount {
    /// Whether `bytes` more fit under `max`. A body that never could fit may be there alone.
    fn has_room(self, bytes: usize, max: Self) -> bool {
        let fits = bytes <= max.bytes.saturating_sub(self.bytes) || self.bytes == 0;
        self.requests < max.requests && fits
    }

    fn add(&mut self, bytes: usize) {
        self.requests += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.requests -= 1;
        self.bytes -= bytes;
    }

    fn part(self, share: usize) -> Self {
        Self { requests: (self.requests / share).max(1), bytes: (self.bytes / share).max(1) }
    }
}

/// The places for requests in flight.
///
/// Each request holds a place from before its body is read until its commit has ended. Until it is
/// verified it also counts among the unverified, who hold at most half, and of that one address
/// holds at most half: a crowd of strangers leaves room for the sender.
#[derive(Debug)]
pub(super) struct Budget {
    max: Amount,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Amount,
    unverified: Amount,
    // As many entries as unverified requests at most.
    by_address: HashMap<IpAddr, Amount>,
}

impl Budget {
    pub(super) fn new(requests: usize, bytes: usize) -> Arc<Self> {
        Arc::new(Self { max: Amount { requests, bytes }, state: Mutex::default() })
    }

    /// A place for an unverified request with a body of at most `bytes`; none if there is no room.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize, peer: Option<SocketAddr>) -> Option<Place> {
        let address = peer.map(|peer| network(peer.ip()));
        let unverified_max = self.max.part(UNVERIFIED_SHARE);
        let mut state = self.lock();
        if !state.all.has_room(bytes, self.max) || !state.unverified.has_room(bytes, unverified_max)
        {
            return None;
        }
        if let Some(address) = address {
            let held = state.by_address.get(&address).copied().unwrap_or_default();
            if !held.has_room(bytes, unverified_max.part(ADDRESS_SHARE)) {
                return None;
            }
            state.by_address.entry(address).or_default().add(bytes);
        }
        state.all.add(bytes);
        state.unverified.add(bytes);
        drop(state);
        Some(Place { budget: Arc::clone(self), bytes, address, verified: false })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom to count together: an address, or the network that one IPv6 host has to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

/// A request's place in the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    budget: Arc<Budget>,
    bytes: usize,
    address: Option<IpAddr>,
    verified: bool,
}

impl Place {
    /// The body turned out to be this long: gives back what was kept free for a longer one.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        let mut state = self.budget.lock();
        state.all.bytes -= less;
        if !self.verified {
            state.unverified.bytes -= less;
            if let Some(held) = self.address.and_then(|address| state.by_address.get_mut(&address))
            {
                held.bytes -= less;
            }
        }
        drop(state);
        self.bytes -= less;
    }

    /// The request is the sender's: it no longer counts among the unverified.
    pub(super) fn verified(&mut self) {
        if !self.verified {
            self.leave_unverified(&mut self.budget.lock());
            self.verified = true;
        }
    }

    fn leave_unverified(&self, state: &mut State) {
        state.unverified.remove(self.bytes);
        let Some(address) = self.address else { return };
        if let Some(held) = state.by_address.get_mut(&address) {
            held.remove(self.bytes);
            if held.requests == 0 {
                state.by_address.remove(&address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.all.remove(self.bytes);
        if !self.verified {
            self.leave_unverified(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(text.parse().unwrap(), 1))
    }

    #[test]
    fn the_unverified_hold_half_and_each_address_half_of_that() {
        let budget = Budget::new(16, 1600);
        let one: Vec<_> = (0..9).map_while(|_| budget.enter(10, peer("192.0.2.1"))).collect();
        assert_eq!(one.len(), 4);
        assert!(budget.enter(10, peer("::ffff:192.0.2.1")).is_none(), "the same address");
        let mut other: Vec<_> = (0..9).map_while(|_| budget.enter(10, peer("192.0.2.2"))).collect();
        assert_eq!(other.len(), 4);
        assert!(budget.enter(10, peer("192.0.2.3")).is_none());
        assert!(budget.enter(10, None).is_none());
        other.iter_mut().for_each(Place::verified);
        assert_eq!(budget.lock().unverified, Amount { requests: 4, bytes: 40 });
        let unknown: Vec<_> = (0..9).map_while(|_| budget.enter(10, None)).collect();
        assert_eq!(unknown.len(), 4, "who was verified made room");
        drop((one, other, unknown));
        assert_eq!(budget.lock().all, Amount::default());
        assert_eq!(budget.lock().unverified, Amount::default());
        assert!(budget.lock().by_address.is_empty());
    }

    #[test]
    fn verified_requests_may_hold_everything_but_no_more() {
        let budget = Budget::new(4, 4000);
        let mut places = Vec::new();
        while let Some(mut place) = budget.enter(1, None) {
            place.verified();
            places.push(place);
        }
        assert_eq!(places.len(), 4);
    }

    #[test]
    fn bytes_are_bounded_too_and_given_back_when_the_body_is_shorter() {
        let budget = Budget::new(100, 1000);
        let mut place = budget.enter(500, None).unwrap();
        assert!(budget.enter(1, None).is_none());
        place.shrink(100);
        assert!(budget.enter(401, None).is_none());
        let mut second = budget.enter(400, peer("2001:db8::1")).unwrap();
        second.shrink(7);
        second.verified();
        second.shrink(5);
        drop((place, second));
        assert_eq!(budget.lock().all, Amount::default());
        assert!(budget.lock().by_address.is_empty());
    }

    #[test]
    fn a_body_larger_than_the_share_is_let_in_alone() {
        let budget = Budget::new(100, 1000);
        let place = budget.enter(900, peer("2001:db8::1")).unwrap();
        assert!(budget.enter(900, peer("2001:db8:1::1")).is_none());
        drop(place);
        assert!(budget.enter(900, peer("2001:db8:1::1")).is_some());
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
