//! A target's rate limit: how many attempts may begin now, and when the next one may.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, FakeRelativeClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::domain::target::Rate;

type Limiter = RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, StateInformationMiddleware>;

/// Attempts are spread evenly; what was not used is made up for at most this long.
const BURST: Duration = Duration::from_millis(100);

/// The rate of one lane.
///
/// Asking takes nothing: what is known from the last attempt says when the next may begin. So a
/// lane can wait for a delivery for hours without holding a permit, or a delivery for a permit.
pub(super) struct Pace {
    rate: Option<Rate>,
    limited: Option<Limited>,
}

struct Limited {
    limiter: Limiter,
    // The limiter's time stands still between two calls, so that what it says stays true.
    clock: FakeRelativeClock,
    clock_at: Instant,
    ready_at: Instant,
    ready: u32,
}

impl Pace {
    /// The pace of a target with this limit.
    pub(super) fn new(rate: Option<Rate>) -> Self {
        Self { rate, limited: rate.map(Limited::new) }
    }

    /// The limit may have changed; if not, what was used stays used.
    pub(super) fn set(&mut self, rate: Option<Rate>) {
        if self.rate != rate {
            *self = Self::new(rate);
        }
    }

    /// When at least one attempt may begin.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.limited.as_ref().map(|limited| limited.ready_at)
    }

    /// How many may begin once that time has come.
    pub(super) fn ready(&self) -> usize {
        let count = self.limited.as_ref().map_or(u32::MAX, |limited| limited.ready.max(1));
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// So many begin now.
    pub(super) fn took(&mut self, count: usize, now: Instant) {
        if let Some(limited) = &mut self.limited {
            limited.took(count, now);
        }
    }
}

impl Limited {
    fn new(rate: Rate) -> Self {
        let every = (rate.per / rate.count.get()).max(Duration::from_nanos(1));
        let burst = u32::try_from(BURST.as_nanos() / every.as_nanos()).unwrap_or(u32::MAX);
        let quota = Quota::with_period(every)
            .expect("the period is not zero")
            .allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        let clock = FakeRelativeClock::default();
        let now = Instant::now();
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone())
            .with_middleware::<StateInformationMiddleware>();
        Self { limiter, clock, clock_at: now, ready_at: now, ready: 1 }
    }

    fn took(&mut self, count: usize, now: Instant) {
        self.clock.advance(now.saturating_duration_since(self.clock_at));
        self.clock_at = now.max(self.clock_at);
        for _ in 0..count {
            match self.limiter.check() {
                Ok(state) => self.ready = state.remaining_burst_capacity(),
                // More began than may: nothing can be undone, the next ones wait.
                Err(_) => self.ready = 0,
            }
        }
        if self.ready == 0
            && let Err(not_until) = self.limiter.check()
        {
            self.ready_at = self.clock_at + not_until.wait_time_from(self.clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(count: u32, per_secs: u64) -> Option<Rate> {
        let count = NonZeroU32::new(count).unwrap();
        Some(Rate { count, per: Duration::from_secs(per_secs) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_spread_evenly_and_idle_time_is_not_saved_up() {
        for (count, per_secs) in [(10, 1), (3, 60), (500, 1), (1, 3600)] {
            let mut pace = Pace::new(rate(count, per_secs));
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let (start, mut begun) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(per_secs) {
                let batch = pace.ready().min(7);
                pace.took(batch, Instant::now());
                begun += batch;
                tokio::time::sleep_until(pace.ready_at().unwrap()).await;
            }
            let most = f64::from(count) * 1.1 + 1.0;
            assert!(begun >= count as usize && begun as f64 <= most, "{count}: {begun}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_limit_again_forgets_nothing_and_no_limit_never_waits() {
        let mut pace = Pace::new(rate(1, 60));
        pace.took(1, Instant::now());
        let next = pace.ready_at();
        pace.set(rate(1, 60));
        assert_eq!(pace.ready_at(), next);
        assert_eq!(next, Some(Instant::now() + Duration::from_secs(60)));
        pace.set(None);
        assert_eq!((pace.ready_at(), pace.ready()), (None, u32::MAX as usize));
    }
}
