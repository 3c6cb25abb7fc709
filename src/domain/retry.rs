//! When a failed delivery is tried again.

use std::time::Duration;

/// How often and how long a target is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
    /// How long a delivery is tried, counted from its acceptance or redrive.
    pub keep_for: Duration,
    /// Statuses that end a delivery at once.
    pub give_up_on: Vec<u16>,
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            max: Duration::from_secs(3600),
            keep_for: Duration::from_secs(72 * 3600),
            give_up_on: vec![410],
        }
    }
}

impl RetrySchedule {
    /// The wait after `attempts` failed ones (at least 1): doubles from `first` to `max`, and is
    /// drawn from [d/2, d] by `random`, so that deliveries that failed together do not come back
    /// together.
    pub fn wait(&self, attempts: u32, random: u64) -> Duration {
        doubled(self.first, self.max, attempts, random)
    }
}

/// The wait after `attempts` failed ones (at least 1): doubles from `first` to `max`, and is drawn from
/// [d/2, d] by `random`.
pub fn doubled(first: Duration, max: Duration, attempts: u32, random: u64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(40);
    let full = first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
    let full = if doublings >= 32 { max } else { full.min(max) };
    let half = full / 2;
    let span = u64::try_from((full - half).as_nanos()).unwrap_or(u64::MAX);
    let drawn = (u128::from(random) * (u128::from(span) + 1)) >> 64;
    half + Duration::from_nanos(u64::try_from(drawn).unwrap_or(span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_wait_doubles_from_first_to_max() {
        let schedule = RetrySchedule::default();
        let longest: Vec<_> = (1..=14).map(|n| schedule.wait(n, u64::MAX).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]);
        let shortest: Vec<_> = (1..=4).map(|n| schedule.wait(n, 0).as_millis()).collect();
        assert_eq!(shortest, [500, 1000, 2000, 4000]);
    }

    proptest! {
        #[test]
        fn every_wait_lies_between_half_and_whole(
            first in 1_u64..100_000, max in 1_u64..10_000_000, n in 1_u32.., random: u64,
        ) {
            let (first, max) = (Duration::from_millis(first), Duration::from_millis(max));
            let schedule = RetrySchedule { first, max, ..RetrySchedule::default() };
            let wait = schedule.wait(n, random);
            prop_assert!(wait <= max);
            prop_assert!(wait >= first.min(max) / 2);
            let whole = if n > 32 { max } else { first.saturating_mul(1 << (n - 1).min(31)).min(max) };
            prop_assert!(wait <= whole && wait >= whole / 2);
        }
    }
}
