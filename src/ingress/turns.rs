//! A source's turns under its rate limit.

use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::{Instant, sleep};

use crate::domain::limit::RATE_LIMIT_WAIT_MAX;
use crate::domain::target::Rate;

/// A source's turns under its rate limit, kept across reloads while the rate is the same.
pub(super) struct Turns {
    pub(super) rate: Rate,
    limiter: RateLimiter<NotKeyed, InMemoryState, Running, NoOpMiddleware<Duration>>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Turns {
    pub(super) fn new(rate: Rate) -> Self {
        let each = (rate.per / rate.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(each).expect("it is at least a nanosecond");
        let clock = Running(Instant::now());
        Self { rate, limiter: RateLimiter::direct_with_clock(quota.allow_burst(rate.count), clock) }
    }

    /// Waits for a turn, not longer than [`RATE_LIMIT_WAIT_MAX`]; else says how long it would take.
    pub(super) async fn wait(&self) -> Result<(), Duration> {
        let give_up_at = Instant::now() + RATE_LIMIT_WAIT_MAX;
        while let Err(not_until) = self.limiter.check() {
            let wait = not_until.wait_time_from(self.limiter.clock().now());
            if Instant::now() + wait > give_up_at {
                return Err(wait);
            }
            sleep(wait).await;
        }
        Ok(())
    }
}

/// Tokio's clock for governor, so that tests can pause it.
#[derive(Debug, Clone)]
pub(super) struct Running(pub(super) Instant);

impl Clock for Running {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_up_to_a_second() {
        let turns =
            Turns::new(Rate { count: NonZeroU32::new(2).unwrap(), per: Duration::from_secs(1) });
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(turns.wait().await, Ok(()));
        }
        assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
        let slow =
            Turns::new(Rate { count: NonZeroU32::new(1).unwrap(), per: Duration::from_secs(60) });
        assert_eq!(slow.wait().await, Ok(()));
        let wait = slow.wait().await.unwrap_err();
        assert!(wait > Duration::from_secs(59), "{wait:?}");
    }
}
