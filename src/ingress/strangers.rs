//! Addresses from which too much comes that nobody has signed.
//!
//! What is refused is charged to the address that it came from. An address over the rate is answered
//! at once for a while: it costs a look at a table, where a signature costs reading the body. An
//! address that a verified webhook came from is left alone: it may be that of a balancer, or of a
//! network that the sender shares with others, and no flood may cost one webhook. For the same
//! reason, while it is not known where any sender is, what is signed is looked at wherever it comes
//! from.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::domain::client;
use crate::domain::limit::{STRANGERS_MAX, UNVERIFIED_BURST, VERIFIED_FOR};
use crate::domain::target::Rate;
use crate::ingress::turns::Running;

/// How late the time of an address's last webhook may be known.
const VERIFIED_EVERY: Duration = Duration::from_secs(60);

/// Who is over the rate, and who is left alone.
pub(super) struct Strangers {
    limiter: RateLimiter<IpAddr, States, Running, NoOpMiddleware<Duration>>,
    known: Mutex<Known>,
    /// Somebody may be over the rate: else nobody needs to look.
    any_over: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// Over the rate until then.
    over: HashMap<IpAddr, Instant>,
    /// When the last verified webhook came, but for a minute.
    verified: HashMap<IpAddr, Instant>,
}

impl std::fmt::Debug for Strangers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Strangers").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Strangers {
    /// So much may be refused of each address; some seconds' worth of it at once.
    pub(super) fn new(rate: Rate) -> Self {
        let each = (rate.per / rate.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(each).expect("it is at least a nanosecond");
        let quota = quota.allow_burst(rate.count.saturating_mul(UNVERIFIED_BURST));
        let limiter = RateLimiter::new(quota, States::default(), Running(Instant::now()));
        Self { limiter, known: Mutex::default(), any_over: AtomicBool::new(false) }
    }

    /// How long requests from there are refused unseen; `None` if they are not. Who is not known is
    /// nobody in particular, and not counted.
    pub(super) fn over(
        &self,
        address: Option<IpAddr>,
        is_signed: impl FnOnce() -> bool,
    ) -> Option<Duration> {
        if !self.any_over.load(Ordering::Relaxed) {
            return None;
        }
        let host = client::host(address?);
        let now = Instant::now();
        let mut known = self.lock();
        let until = known.over.get(&host).copied()?;
        if now < until {
            let may_be_sender = known.verified.is_empty() && is_signed();
            return (!may_be_sender).then(|| until - now);
        }
        known.over.remove(&host);
        self.any_over.store(!known.over.is_empty(), Ordering::Relaxed);
        None
    }

    /// A request from there was refused before it was verified.
    pub(super) fn refused(&self, address: Option<IpAddr>) {
        let Some(host) = address.map(client::host) else { return };
        let now = Instant::now();
        let mut known = self.lock();
        if known.verified.get(&host).is_some_and(|at| now < *at + VERIFIED_FOR) {
            return;
        }
        let Err(not_until) = self.limiter.check_key(&host) else { return };
        let wait = not_until.wait_time_from(self.limiter.clock().now());
        make_room(&mut known.over);
        known.over.insert(host, now + wait);
        self.any_over.store(true, Ordering::Relaxed);
    }

    /// A webhook from there was verified.
    pub(super) fn verified(&self, address: Option<IpAddr>) {
        let Some(host) = address.map(client::host) else { return };
        let now = Instant::now();
        let mut known = self.lock();
        if known.verified.get(&host).is_some_and(|at| now < *at + VERIFIED_EVERY) {
            return;
        }
        make_room(&mut known.verified);
        known.verified.insert(host, now);
        known.over.remove(&host);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is charged to each address. What was charged longest ago goes first: that is nothing any
/// more, unless so many addresses come that no table could hold them.
#[derive(Debug, Default)]
struct States(Mutex<HashMap<IpAddr, Nanos>>);

impl StateStore for States {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, key: &IpAddr, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (measured, state) = measure(states.get(key).copied())?;
        make_room(&mut states);
        states.insert(*key, state);
        Ok(measured)
    }
}

/// Removes half of a full table, what is oldest in it: so all that it costs is a look at each entry
/// now and then.
fn make_room<K: Eq + Hash, V: Copy + Ord>(table: &mut HashMap<K, V>) {
    if table.len() < STRANGERS_MAX {
        return;
    }
    let mut values: Vec<V> = table.values().copied().collect();
    let middle = values.len() / 2;
    let (_, median, _) = values.select_nth_unstable(middle);
    let (median, mut left) = (*median, STRANGERS_MAX / 2);
    // Of those that are as old as one another some have to go as well.
    table.retain(|_, value| {
        let stays = *value >= median && left > 0;
        left -= usize::from(stays);
        stays
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::num::NonZeroU32;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    /// Ten in a second, forty at once.
    fn strangers() -> Strangers {
        Strangers::new(Rate { count: NonZeroU32::new(10).unwrap(), per: SECOND })
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn over(strangers: &Strangers, from: &str) -> Option<Duration> {
        strangers.over(address(from), || false)
    }

    fn refused(strangers: &Strangers, from: &str, count: usize) {
        (0..count).for_each(|_| strangers.refused(address(from)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_over_the_rate_is_refused_until_it_is_not() {
        let strangers = strangers();
        refused(&strangers, "192.0.2.1", 40);
        assert_eq!(over(&strangers, "192.0.2.1"), None);
        refused(&strangers, "192.0.2.1", 1);
        let wait = over(&strangers, "::ffff:192.0.2.1").unwrap();
        assert!(wait <= SECOND / 10, "{wait:?}");
        assert_eq!(over(&strangers, "192.0.2.2"), None);
        advance(wait).await;
        assert_eq!(over(&strangers, "192.0.2.1"), None);
        assert!(!strangers.any_over.load(Ordering::Relaxed));
        // One more is let through, and no more than that.
        refused(&strangers, "192.0.2.1", 1);
        assert_eq!(over(&strangers, "192.0.2.1"), None);
        refused(&strangers, "192.0.2.1", 1);
        assert!(over(&strangers, "192.0.2.1").is_some());
        advance(5 * SECOND).await;
        refused(&strangers, "192.0.2.1", 40);
        assert_eq!(over(&strangers, "192.0.2.1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_of_ipv6_is_one_and_who_is_not_known_is_nobody() {
        let strangers = strangers();
        (0..50).for_each(|n| refused(&strangers, &format!("2001:db8::{n}"), 1));
        assert!(over(&strangers, "2001:db8::ffff").is_some());
        assert_eq!(over(&strangers, "2001:db8:0:1::1"), None);
        (0..1000).for_each(|_| strangers.refused(None));
        assert_eq!(strangers.over(None, || false), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_signed_is_looked_at_until_it_is_known_where_a_sender_is() {
        let strangers = strangers();
        refused(&strangers, "192.0.2.1", 1000);
        assert!(over(&strangers, "192.0.2.1").is_some());
        assert_eq!(strangers.over(address("192.0.2.1"), || true), None);
        strangers.verified(address("192.0.2.2"));
        assert!(strangers.over(address("192.0.2.1"), || true).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_webhook_came_from_nobody_is_refused_for_a_day() {
        let strangers = strangers();
        refused(&strangers, "192.0.2.1", 1000);
        assert!(over(&strangers, "192.0.2.1").is_some());
        strangers.verified(address("192.0.2.1"));
        for _ in 0..23 {
            refused(&strangers, "192.0.2.1", 1000);
            assert_eq!(over(&strangers, "192.0.2.1"), None);
            advance(3600 * SECOND).await;
        }
        // Each webhook counts anew.
        strangers.verified(address("192.0.2.1"));
        advance(23 * 3600 * SECOND).await;
        refused(&strangers, "192.0.2.1", 1000);
        assert_eq!(over(&strangers, "192.0.2.1"), None);
        advance(3600 * SECOND).await;
        refused(&strangers, "192.0.2.1", 1000);
        assert!(over(&strangers, "192.0.2.1").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_addresses_come_the_tables_have_a_bound() {
        let strangers = strangers();
        let sender = address("192.0.2.1");
        strangers.verified(sender);
        let hosts = u32::try_from(STRANGERS_MAX).unwrap() * 5 / 2;
        for number in 0..hosts {
            let v4 = Some(IpAddr::V4(Ipv4Addr::from_bits(number << 4)));
            let v6 = Some(IpAddr::V6(Ipv6Addr::from_bits(u128::from(number) << 64)));
            strangers.refused(v4);
            strangers.refused(v6);
        }
        assert!(strangers.limiter.into_state_store().0.lock().unwrap().len() <= STRANGERS_MAX);
        let known = strangers.known.lock().unwrap();
        assert!(known.over.is_empty() && known.verified.contains_key(&sender.unwrap()));
    }

    #[test]
    fn the_oldest_half_makes_room() {
        let mut table: HashMap<usize, usize> = (0..STRANGERS_MAX).map(|n| (n, n)).collect();
        make_room(&mut table);
        assert_eq!(table.len(), STRANGERS_MAX / 2);
        assert!(table.values().all(|value| *value >= STRANGERS_MAX / 2));
        let mut alike: HashMap<usize, usize> = (0..STRANGERS_MAX).map(|n| (n, 7)).collect();
        make_room(&mut alike);
        assert_eq!(alike.len(), STRANGERS_MAX / 2);
    }
}
