//! A target's lane as a state machine: what it may begin, and what changes that.
//!
//! ```text
//!             10 failures in a row of 3 webhooks or more
//!   running ─────────────────────────────────────────────▶ suspended ─┐ a probe fails:
//!      ▲                                                     │    ▲   │ the next one waits
//!      └─────────────────────────────────────────────────────┘    └───┘ twice as long
//!        any success · the operator resumes · another server
//! ```
//!
//! Pausing lies over both: a paused lane begins nothing, and goes on as what it was. The table and
//! the operator each have a pause of their own, and the lane is paused while one of them holds.

use std::time::Duration;

use crate::domain::outcome::Outcome;
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;

/// So many attempts in a row fail before a lane is suspended.
pub const FAILURES: u32 = 10;

/// Of so many webhooks: one that its target does not digest is no reason.
pub const WEBHOOKS: usize = 3;

/// The first probe comes so long after the suspension, each further one after twice as long.
pub const PROBE_FIRST: Duration = Duration::from_secs(1);

/// But never later than this.
pub const PROBE_MAX: Duration = Duration::from_secs(5 * 60);

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failure {
    /// What it came to.
    pub outcome: Outcome,
    /// The status, if there was an answer.
    pub status: Option<u16>,
}

/// Failures since the last success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Streak {
    failures: u32,
    webhooks: [Option<WebhookId>; WEBHOOKS],
}

impl Streak {
    fn add(&mut self, webhook: WebhookId) {
        self.failures = self.failures.saturating_add(1).min(FAILURES);
        for seen in &mut self.webhooks {
            match seen {
                Some(known) if *known == webhook => return,
                Some(_) => {}
                None => {
                    *seen = Some(webhook);
                    return;
                }
            }
        }
    }

    fn is_enough(&self) -> bool {
        self.failures >= FAILURES && self.webhooks.iter().all(Option::is_some)
    }
}

/// The target keeps failing: the lane only probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Suspension {
    /// Since when.
    pub since: Timestamp,
    /// How the last attempt failed.
    pub reason: Failure,
    /// Probes that failed.
    pub probes: u32,
    /// When the next one is due.
    pub next_probe_at: Timestamp,
}

impl Suspension {
    fn begun(reason: Failure, at: Timestamp) -> Self {
        Self { since: at, reason, probes: 0, next_probe_at: at.plus(PROBE_FIRST) }
    }

    /// As it goes on after a restart. The clock may have been wrong when it was written down: no probe
    /// is further away than one can be.
    #[must_use]
    pub fn remembered(self, now: Timestamp) -> Self {
        Self { next_probe_at: self.next_probe_at.min(now.plus(PROBE_MAX)), ..self }
    }

    fn failed_again(&mut self, reason: Failure, at: Timestamp) {
        self.probes = self.probes.saturating_add(1);
        self.reason = reason;
        let wait = PROBE_FIRST.saturating_mul(1 << self.probes.min(16)).min(PROBE_MAX);
        self.next_probe_at = at.plus(wait);
    }
}

/// How the target has been doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It is served.
    Running(Streak),
    /// It is probed.
    Suspended(Suspension),
}

/// Where a lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneState {
    /// How the target has been doing.
    pub phase: Phase,
    /// The table says `paused: true`.
    pub paused_by_table: bool,
    /// An operator paused it, then.
    pub paused_by_operator: Option<Timestamp>,
}

/// What happens to a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// An attempt failed.
    Failed {
        /// Whose.
        webhook: WebhookId,
        /// How.
        failure: Failure,
        /// It was a probe. What was in flight when the lane was suspended is none.
        probe: bool,
        /// When.
        at: Timestamp,
    },
    /// An attempt succeeded, whichever.
    Delivered,
    /// The table names another server: what the old one did says nothing of it.
    Moved,
    /// What the table says of `paused`.
    Table {
        /// That.
        paused: bool,
    },
    /// An operator paused it.
    Paused {
        /// When.
        at: Timestamp,
    },
    /// An operator ends his pause, and a suspension: he knows that the target is back.
    Resumed,
}

/// What a lane may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// Attempts, as many as its limits allow.
    Attempts,
    /// Nothing before that time; then one attempt, when no other is in flight.
    Probe(Timestamp),
    /// Nothing: it is paused.
    Nothing,
}

impl Default for LaneState {
    fn default() -> Self {
        Self {
            phase: Phase::Running(Streak::default()),
            paused_by_table: false,
            paused_by_operator: None,
        }
    }
}

impl LaneState {
    /// Its suspension, if it is suspended.
    pub fn suspension(&self) -> Option<&Suspension> {
        match &self.phase {
            Phase::Running(_) => None,
            Phase::Suspended(suspension) => Some(suspension),
        }
    }

    /// Whether it is paused, by whomever.
    pub fn is_paused(&self) -> bool {
        self.paused_by_table || self.paused_by_operator.is_some()
    }

    /// What it may begin.
    pub fn may(&self) -> May {
        match self.phase {
            _ if self.is_paused() => May::Nothing,
            Phase::Running(_) => May::Attempts,
            Phase::Suspended(suspension) => May::Probe(suspension.next_probe_at),
        }
    }

    /// The state that `event` leads to.
    #[must_use]
    pub fn after(mut self, event: Event) -> Self {
        match (event, &mut self.phase) {
            (Event::Failed { webhook, failure, at, .. }, Phase::Running(streak)) => {
                streak.add(webhook);
                if streak.is_enough() {
                    self.phase = Phase::Suspended(Suspension::begun(failure, at));
                }
            }
            (Event::Failed { failure, probe: true, at, .. }, Phase::Suspended(suspension)) => {
                suspension.failed_again(failure, at);
            }
            (Event::Failed { probe: false, .. }, Phase::Suspended(_)) => {}
            (Event::Delivered | Event::Moved, phase) => *phase = Phase::Running(Streak::default()),
            (Event::Resumed, phase) => {
                *phase = Phase::Running(Streak::default());
                self.paused_by_operator = None;
            }
            (Event::Paused { at }, _) => {
                self.paused_by_operator.get_or_insert(at);
            }
            (Event::Table { paused }, _) => self.paused_by_table = paused,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const DOWN: Failure = Failure { outcome: Outcome::Refused, status: None };

    fn failed(webhook: u64, probe: bool) -> Event {
        Event::Failed { webhook: WebhookId::from_key(webhook), failure: DOWN, probe, at: NOW }
    }

    fn events() -> Vec<Event> {
        let mut all: Vec<Event> =
            (1..=4).flat_map(|n| [failed(n, false), failed(n, true)]).collect();
        all.extend([Event::Delivered, Event::Moved, Event::Paused { at: NOW }, Event::Resumed]);
        all.extend([true, false].map(|paused| Event::Table { paused }));
        all
    }

    /// Every state that can be reached, each with every event. Beyond 20 probes nothing changes but
    /// their number.
    fn every_step() -> Vec<(LaneState, Event, LaneState)> {
        let (mut known, mut next) = (HashSet::new(), VecDeque::from([LaneState::default()]));
        let mut steps = Vec::new();
        while let Some(state) = next.pop_front() {
            if !known.insert(state) || state.suspension().is_some_and(|s| s.probes > 20) {
                continue;
            }
            for event in events() {
                let after = state.after(event);
                steps.push((state, event, after));
                next.push_back(after);
            }
        }
        assert!(known.len() > 500, "{} states", known.len());
        steps
    }

    #[test]
    fn in_every_state_a_lane_that_is_not_paused_has_a_next_step() {
        for (_, _, state) in every_step() {
            match state.may() {
                May::Nothing => assert!(state.is_paused(), "{state:?}"),
                May::Attempts => assert!(state.suspension().is_none(), "{state:?}"),
                May::Probe(at) => {
                    assert!(at > NOW && at <= NOW.plus(PROBE_MAX), "{state:?}");
                }
            }
        }
    }

    #[test]
    fn a_lane_is_suspended_by_ten_failures_in_a_row_of_three_webhooks_and_by_nothing_else() {
        for (before, event, after) in every_step() {
            let (Phase::Running(streak), Phase::Suspended(suspension)) =
                (before.phase, after.phase)
            else {
                continue;
            };
            assert!(matches!(event, Event::Failed { .. }), "{event:?}");
            assert!(streak.failures >= FAILURES - 1, "{streak:?}");
            assert_eq!(suspension, Suspension::begun(DOWN, NOW));
        }
        let mut lane = LaneState::default();
        for _ in 0..100 {
            lane = lane.after(failed(1, false)).after(failed(2, false));
        }
        assert_eq!(lane.suspension(), None, "two webhooks only");
        assert!(lane.after(failed(3, false)).suspension().is_some());
        lane = LaneState::default();
        for n in 1..=9 {
            lane = lane.after(failed(n, false));
        }
        lane = lane.after(Event::Delivered);
        for n in 1..=9 {
            lane = lane.after(failed(n, false));
        }
        assert_eq!(lane.suspension(), None, "not in a row");
    }

    #[test]
    fn a_success_another_server_and_the_operator_end_a_suspension_and_nothing_else_does() {
        for (before, event, after) in every_step() {
            let ends = matches!(event, Event::Delivered | Event::Moved | Event::Resumed);
            if ends {
                assert_eq!(after.phase, Phase::Running(Streak::default()));
            } else if let Phase::Suspended(suspension) = before.phase {
                let kept = after.suspension().unwrap();
                let probed = matches!(event, Event::Failed { probe: true, .. });
                assert_eq!(kept.probes, suspension.probes + u32::from(probed), "{event:?}");
                assert_eq!(kept.since, suspension.since);
            }
        }
    }

    #[test]
    fn each_pause_is_ended_by_whoever_made_it() {
        for (before, event, after) in every_step() {
            let by_operator = match event {
                Event::Paused { .. } => Some(NOW),
                Event::Resumed => None,
                _ => before.paused_by_operator,
            };
            assert_eq!(after.paused_by_operator, by_operator);
            let by_table = match event {
                Event::Table { paused } => paused,
                _ => before.paused_by_table,
            };
            assert_eq!(after.paused_by_table, by_table);
        }
    }

    #[test]
    fn probes_come_after_a_second_then_twice_as_late_each_time_up_to_five_minutes() {
        let mut lane = LaneState::default();
        for n in 1..=10 {
            lane = lane.after(failed(n, false));
        }
        let mut waits = Vec::new();
        for _ in 0..11 {
            let May::Probe(at) = lane.may() else { panic!("{lane:?}") };
            waits.push(at.since(NOW).as_secs());
            lane = lane.after(failed(1, true));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }
}
