//! One webhook on its way to one target: how an attempt is settled.

use std::time::Duration;

use crate::domain::outcome::Outcome;
use crate::domain::retry::RetrySchedule;
use crate::domain::time::Timestamp;

/// Why nobody tries a delivery any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// It was among the oldest of a target that pinned more of the store than it may.
    BacklogFull,
    /// Its record is damaged.
    Damaged,
    /// It failed for longer than the target's `retry.for`.
    Expired,
    /// The target answered with a status of its `give_up_on`.
    GivenUp,
    /// The target was gone from the table for longer than its time.
    TargetRemoved,
}

impl Cause {
    /// All of them, for labels at zero.
    pub const ALL: [Self; 5] =
        [Self::BacklogFull, Self::Damaged, Self::Expired, Self::GivenUp, Self::TargetRemoved];

    /// Its name in metrics, logs and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BacklogFull => "backlog_full",
            Self::Damaged => "damaged",
            Self::Expired => "expired",
            Self::GivenUp => "given_up",
            Self::TargetRemoved => "target_removed",
        }
    }
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Due, now or later.
    Pending,
    /// The target has it.
    Delivered,
    /// Nobody tries it.
    DeadLetter(Cause),
    /// An operator ended it.
    Discarded,
}

impl State {
    /// The names of all of them.
    pub const NAMES: [&'static str; 4] = ["pending", "delivered", "dead_letter", "discarded"];

    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::DeadLetter(_) => "dead_letter",
            Self::Discarded => "discarded",
        }
    }

    /// Why nobody tries it, if so.
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Self::DeadLetter(cause) => Some(cause),
            Self::Pending | Self::Delivered | Self::Discarded => None,
        }
    }
}

/// What becomes of a delivery after an attempt, or by an operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Nobody tries it any more until it is redriven.
    DeadLetter(Cause),
    /// The target has it.
    Delivered,
    /// An operator ended it.
    Discarded,
    /// An operator made a dead letter due again: `for` begins anew at `at`, attempts go on counting.
    Redriven {
        /// When it is due.
        at: Timestamp,
    },
    /// It is due again.
    Retry {
        /// When.
        at: Timestamp,
    },
}

impl Settlement {
    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeadLetter(_) => "dead_letter",
            Self::Delivered => "delivered",
            Self::Discarded => "discarded",
            Self::Redriven { .. } => "redriven",
            Self::Retry { .. } => "retry",
        }
    }

    /// The names that are labels of `relay_deliveries_settled_total`.
    pub const NAMES: [&'static str; 4] = ["delivered", "retry", "dead_letter", "discarded"];
}

/// How far a delivery has come when an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Attempts so far, this one included.
    pub attempts: u32,
    /// For how long it has certainly been tried, since acceptance or redrive.
    pub age: Duration,
}

/// Decides what becomes of a delivery whose attempt has just ended.
///
/// `not_before` is what the target asked for by `Retry-After`. Whether the time is over is asked
/// only here, after a failed attempt: every delivery is tried at least once.
pub fn settle(
    outcome: Outcome,
    progress: Progress,
    schedule: &RetrySchedule,
    not_before: Option<Timestamp>,
    now: Timestamp,
    random: u64,
) -> Settlement {
    match outcome {
        Outcome::Delivered => Settlement::Delivered,
        Outcome::GivenUp => Settlement::DeadLetter(Cause::GivenUp),
        Outcome::AnswerTooLarge
        | Outcome::Refused
        | Outcome::Reset
        | Outcome::Status
        | Outcome::Timeout
        | Outcome::Tls => {
            if progress.age >= schedule.keep_for {
                return Settlement::DeadLetter(Cause::Expired);
            }
            let wait: Duration = schedule.wait(progress.attempts, random);
            Settlement::Retry { at: now.plus(wait).max(not_before.unwrap_or(now)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[track_caller]
    fn check(outcome: Outcome, age_secs: u64, not_before: Option<u64>, expected: Settlement) {
        let now = START.plus(Duration::from_secs(age_secs));
        let settled = settle(
            outcome,
            Progress { attempts: 3, age: now.since(START) },
            &RetrySchedule::default(),
            not_before.map(|secs| now.plus(Duration::from_secs(secs))),
            now,
            u64::MAX,
        );
        assert_eq!(settled, expected);
    }

    fn at(secs: u64) -> Settlement {
        Settlement::Retry { at: START.plus(Duration::from_secs(secs)) }
    }

    #[test]
    fn every_outcome_has_a_next_step_and_time_is_over_only_after_a_failure() {
        let late = 80 * 3600;
        for outcome in Outcome::ALL {
            let (early, late_settlement) = match outcome {
                Outcome::Delivered => (Settlement::Delivered, Settlement::Delivered),
                Outcome::GivenUp => {
                    let dead = Settlement::DeadLetter(Cause::GivenUp);
                    (dead, dead)
                }
                _ => (at(14), Settlement::DeadLetter(Cause::Expired)),
            };
            check(outcome, 10, None, early);
            check(outcome, late, None, late_settlement);
        }
    }

    #[test]
    fn a_retry_is_never_earlier_than_the_target_asked() {
        check(Outcome::Status, 10, Some(60), at(70));
        check(Outcome::Status, 10, Some(1), at(14));
    }
}
