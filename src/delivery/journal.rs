//! One event per attempt, as long as they are few.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::domain::delivery::Settlement;
use crate::domain::limit::{ATTEMPTS_LOGGED, ATTEMPTS_LOGGED_WINDOW};
use crate::domain::outcome::Attempt;
use crate::store::Delivery;
use crate::telemetry::log_limit::LogLimit;

/// Tells of a target's attempts.
///
/// Of those that failed only the first in each minute are told at their own level, and then how
/// many more there were; the others can be seen at the level `debug`. Metrics count all of them.
#[derive(Debug)]
pub(super) struct Journal {
    target: Arc<str>,
    retried: Mutex<LogLimit>,
    dead: Mutex<LogLimit>,
}

impl Journal {
    /// Nothing was told yet.
    pub(super) fn new(target: Arc<str>) -> Self {
        let limit = || Mutex::new(LogLimit::new(ATTEMPTS_LOGGED, ATTEMPTS_LOGGED_WINDOW));
        Self { target, retried: limit(), dead: limit() }
    }

    /// The event of an attempt. Never headers, secrets, bodies, nor what the target wrote.
    pub(super) fn attempted(
        &self,
        delivery: &Delivery,
        attempt: &Attempt,
        number: u32,
        settlement: Settlement,
    ) {
        macro_rules! event {
            ($level:ident, $message:literal $(, $($field:tt)+)?) => {
                tracing::$level!(
                    webhook_id = %id(delivery),
                    activity = delivery.webhook.activity.as_deref(),
                    target_name = &*delivery.target,
                    attempt = number,
                    outcome = attempt.outcome.name(),
                    status = attempt.status,
                    reason = reason(attempt),
                    duration_ms = u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
                    settlement = settlement.name(),
                    $($($field)+,)?
                    $message
                )
            };
        }
        let now = Instant::now();
        self.tell_untold(now);
        match settlement {
            Settlement::Delivered => event!(info, "delivered"),
            Settlement::Retry { at } | Settlement::Redriven { at } => {
                if let Some(untold) = admit(&self.retried, now) {
                    self.tell_retried(untold);
                    event!(warn, "not delivered, to be tried again", next_attempt_at = %at);
                } else {
                    event!(debug, "not delivered, to be tried again", next_attempt_at = %at);
                }
            }
            Settlement::DeadLetter(cause) => {
                if let Some(untold) = admit(&self.dead, now) {
                    self.tell_dead(untold);
                    event!(error, "not delivered, now a dead letter", cause = cause.name());
                } else {
                    event!(debug, "not delivered, now a dead letter", cause = cause.name());
                }
            }
            Settlement::Discarded => event!(warn, "discarded"),
        }
    }

    /// How many were not told in a window that is over: also where none follows that would be.
    fn tell_untold(&self, now: Instant) {
        self.tell_retried(untold(&self.retried, now));
        self.tell_dead(untold(&self.dead, now));
    }

    fn tell_retried(&self, attempts: u64) {
        if attempts > 0 {
            let target_name = &*self.target;
            tracing::warn!(target_name, attempts, "more were not delivered, to be tried again");
        }
    }

    fn tell_dead(&self, attempts: u64) {
        if attempts > 0 {
            let target_name = &*self.target;
            tracing::error!(target_name, attempts, "more were not delivered, now dead letters");
        }
    }
}

fn admit(limit: &Mutex<LogLimit>, now: Instant) -> Option<u64> {
    limit.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
}

fn untold(limit: &Mutex<LogLimit>, now: Instant) -> u64 {
    limit.lock().unwrap_or_else(PoisonError::into_inner).untold(now)
}

/// The id as the target knows it.
pub(super) fn id(delivery: &Delivery) -> String {
    delivery.webhook_id().known_as(delivery.again)
}

/// Why there was no answer, in our own words: never what the target wrote.
pub(super) fn reason(attempt: &Attempt) -> Option<&str> {
    if attempt.status.is_some() {
        return None;
    }
    std::str::from_utf8(&attempt.excerpt).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::time::sleep;

    use super::super::testing::{Log, World, status, target};
    use super::*;

    /// A target that answers with this status, but for every fourth request: too seldom to be
    /// delivered to, and too often to be suspended.
    fn failing_world(code: u16) -> World {
        let count = AtomicU32::new(0);
        World::new(vec![target("crm")], move |_| {
            let is_fourth = count.fetch_add(1, Ordering::Relaxed) % 4 == 3;
            status(if is_fourth { 200 } else { code })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_fails_often_writes_a_bounded_number_of_lines() {
        const WEBHOOKS: u64 = 400;
        let (log, _guard) = Log::capture();
        let world = failing_world(500);
        for _ in 0..WEBHOOKS {
            world.add("crm", Duration::ZERO);
        }
        sleep(Duration::from_secs(24 * 3600)).await;
        let delivered = WEBHOOKS - world.store.pending() as u64;
        let failed = world.sent("crm").len() as u64 - delivered;
        assert!(failed > 1000);
        let page = world.metrics.render();
        let counted = format!("relay_attempts_total{{target=\"crm\",outcome=\"status\"}} {failed}");
        assert!(page.contains(&counted), "{page}");

        let (mut told, mut untold) = (0, 0);
        for event in log.events().iter().filter(|event| event["level"] == "WARN") {
            let fields = &event["fields"];
            assert_eq!(fields["target_name"], "crm");
            match fields["attempts"].as_u64() {
                Some(attempts) => untold += attempts,
                None => told += 1,
            }
        }
        assert_eq!(told + untold, failed, "every one is told, or counted");
        assert!(told >= u64::from(ATTEMPTS_LOGGED) && told * 4 < failed, "{told} lines");
    }

    #[tokio::test(start_paused = true)]
    async fn many_dead_letters_at_once_are_told_by_their_number() {
        let (log, _guard) = Log::capture();
        let world = failing_world(410);
        for _ in 0..100 {
            world.add("crm", Duration::ZERO);
        }
        sleep(ATTEMPTS_LOGGED_WINDOW).await;
        world.add("crm", Duration::ZERO);
        sleep(Duration::from_secs(1)).await;
        let events = log.events();
        let errors: Vec<_> = events.iter().filter(|event| event["level"] == "ERROR").collect();
        assert_eq!(errors.len(), 20 + 1 + 1);
        assert_eq!(errors[20]["fields"]["attempts"], 75 - 20);
        assert_eq!(errors[21]["fields"]["cause"], "given_up");
    }
}
