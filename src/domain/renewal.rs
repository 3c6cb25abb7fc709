//! When the listener's certificate is ordered, and how long a failed order waits for the next.

use std::time::Duration;

use crate::domain::retry;
use crate::domain::time::Timestamp;

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Validity {
    /// From when on the next one is ordered: a third of the lifetime is left then, which is a month of
    /// a certificate of 90 days, and time for somebody to look where nothing helps.
    pub fn renew_at(self) -> Timestamp {
        self.not_after.minus(self.not_after.since(self.not_before) / 3)
    }

    /// Whether nobody accepts it any more.
    pub fn is_over(self, now: Timestamp) -> bool {
        self.not_after <= now
    }

    /// Whether what fails now has to be looked at by somebody, for half of what was left at the first try
    /// is over.
    pub fn is_near_its_end(self, now: Timestamp) -> bool {
        self.not_after.since(now) <= self.not_after.since(self.not_before) / 6
    }
}

/// Why there is no new certificate, as far as the next try depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody was reached, or no answer was understood: nobody has counted it.
    Unreachable,
    /// The authority said no, perhaps because it could not reach us. Authorities count these: five an
    /// hour of one name are what the largest of them allows.
    Refused,
}

/// The shortest wait after a failure, and the shortest after a refusal: four of those an hour at most.
const FIRST: Duration = Duration::from_secs(60);
const FIRST_REFUSED: Duration = Duration::from_secs(15 * 60);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// The longest wait when less than [`LAST`] is left, or nothing.
const LONGEST_AT_LAST: Duration = Duration::from_secs(3600);
const LAST: Duration = Duration::from_secs(24 * 3600);

/// What an authority may ask us to wait.
const ASKED_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long to wait after the latest of `failures` in a row (at least 1): doubles, with a part of it
/// drawn by `random`, and is no less than what the authority `asked` for.
pub fn wait(
    failures: u32,
    failure: Failure,
    left: Duration,
    asked: Option<Duration>,
    random: u64,
) -> Duration {
    let longest = if left < LAST { LONGEST_AT_LAST } else { LONGEST };
    let shortest = match failure {
        Failure::Unreachable => FIRST,
        Failure::Refused => FIRST_REFUSED,
    };
    // Drawn from the upper half of what it is given.
    let wait = retry::doubled(shortest * 2, longest, failures, random);
    wait.max(asked.unwrap_or_default().min(ASKED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn validity(days: u32) -> Validity {
        let not_before = Timestamp::from_millis(1_700_000_000_000);
        Validity { not_before, not_after: not_before.plus(DAY * days) }
    }

    #[test]
    fn it_is_renewed_when_a_third_is_left() {
        for days in [1, 6, 90] {
            let validity = validity(days);
            let left = validity.not_after.since(validity.renew_at());
            assert_eq!(left, DAY * days / 3, "{days}");
        }
        // Who takes no certificate that ends before it begins is not us.
        let now = Timestamp::from_millis(1_000_000);
        let backwards = Validity { not_before: now, not_after: Timestamp::default() };
        assert_eq!(backwards.renew_at(), Timestamp::default());
    }

    #[test]
    fn its_end_is_near_after_half_of_the_time_for_renewing() {
        let validity = validity(90);
        let at = |days: u32| validity.not_before.plus(DAY * days);
        assert!(!validity.is_near_its_end(at(74)) && validity.is_near_its_end(at(75)));
        assert!(!validity.is_over(at(89)) && validity.is_over(at(90)) && validity.is_over(at(91)));
        assert!(validity.is_near_its_end(at(91)));
    }

    #[test]
    fn waits_double_from_a_minute_to_six_hours_and_are_an_hour_at_last() {
        let minutes = |left: Duration, failure: Failure, random: u64| {
            (1..=10)
                .map(|failures| wait(failures, failure, left, None, random).as_secs() / 60)
                .collect::<Vec<_>>()
        };
        let unreachable = Failure::Unreachable;
        assert_eq!(minutes(YEAR, unreachable, 0), [1, 2, 4, 8, 16, 32, 64, 128, 180, 180]);
        assert_eq!(minutes(YEAR, unreachable, u64::MAX), [2, 4, 8, 16, 32, 64, 128, 256, 360, 360]);
        let at_last = minutes(DAY / 2, unreachable, u64::MAX);
        assert_eq!(at_last, [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]);
        assert_eq!(minutes(YEAR, Failure::Refused, 0)[..4], [15, 30, 60, 120]);
    }

    #[test]
    fn what_the_authority_asks_for_is_waited_but_not_for_ever() {
        let asked = |secs| Some(Duration::from_secs(secs));
        let wait = |asked| wait(1, Failure::Refused, YEAR, asked, 0).as_secs();
        assert_eq!(wait(asked(7200)), 7200);
        assert_eq!(wait(asked(1)), 900);
        assert_eq!(wait(asked(1_000_000_000)), 86_400);
    }

    proptest! {
        #[test]
        fn no_hour_has_more_refusals_than_an_authority_allows(
            randoms in prop::collection::vec(any::<u64>(), 40), days in 0_u32..90,
        ) {
            let mut at = Duration::ZERO;
            let mut refusals = vec![at];
            for (failures, random) in (1..).zip(randoms) {
                at += wait(failures, Failure::Refused, DAY * days, None, random);
                refusals.push(at);
            }
            for five in refusals.windows(5) {
                prop_assert!(five[4] - five[0] >= Duration::from_secs(3600));
            }
        }
    }
}
