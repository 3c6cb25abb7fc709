//! The task that sees to it that there is a good certificate.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::domain::renewal::{self, Failure, Validity};
use crate::domain::time::Clock;
use crate::net::acme::AcmeError;

/// How often is looked whether it is time: the machine may have slept, or its clock may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Orders certificates, keeps them and puts them in force.
pub(super) trait Issuer: Send + 'static {
    /// Does all of it once; answers how long the new one is good.
    fn issue(&mut self) -> impl Future<Output = Result<Validity, Failed>> + Send;
}

/// Why there is no new certificate.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: anyhow::Error,
    pub(super) failure: Failure,
    /// How long the authority wants to be left alone.
    pub(super) asked: Option<Duration>,
}

impl Failed {
    pub(super) fn of_authority(error: AcmeError, asked: Option<Duration>) -> Self {
        let failure = match error {
            AcmeError::Unreachable(_) => Failure::Unreachable,
            // It may have given something, and counted that.
            AcmeError::Unusable(_)
            | AcmeError::Refused(_)
            | AcmeError::NoAccount(_)
            | AcmeError::NotProved { .. }
            | AcmeError::NotOffered { .. }
            | AcmeError::TooSlow => Failure::Refused,
        };
        Self { error: error.into(), failure, asked }
    }

    /// What has nothing to do with the authority.
    pub(super) fn here(error: anyhow::Error) -> Self {
        Self { error, failure: Failure::Unreachable, asked: None }
    }
}

/// Has certificates issued when it is time, and again after failures.
pub(super) struct Keeper<I> {
    pub(super) issuer: I,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: fn() -> u64,
    /// The one in force.
    pub(super) held: Option<Validity>,
    /// Whether it is for the names that are wanted.
    pub(super) fits: bool,
    /// An operator's word: what waits after a failure is tried now.
    pub(super) now: Arc<Notify>,
}

impl<I: Issuer> Keeper<I> {
    /// Keeps on until `stop`. An order that is on its way then is given up.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let _stopped = stop.run_until_cancelled(self.keep()).await;
    }

    async fn keep(&mut self) {
        let mut failures = 0_u32;
        loop {
            self.until_due().await;
            let failed = match self.issuer.issue().await {
                Ok(validity) => {
                    (self.held, self.fits) = (Some(validity), true);
                    let now = self.clock.wall();
                    if validity.renew_at() > now {
                        failures = 0;
                        tracing::info!(renew_at = %validity.renew_at(), "It is renewed by itself.");
                        continue;
                    }
                    let error = anyhow::anyhow!("it is to be renewed the moment it comes");
                    Failed { error, failure: Failure::Refused, asked: None }
                }
                Err(failed) => failed,
            };
            failures = failures.saturating_add(1);
            let wait = self.wait_after(&failed, failures);
            self.pause(wait, failed.asked.is_some()).await;
        }
    }

    /// Waits, or until an operator asks for a try. What the authority itself asked for is waited in any
    /// case: there may be many who ask for reloads, and they may not know of each other.
    async fn pause(&self, wait: Duration, is_wanted: bool) {
        let mut over = pin!(sleep(wait));
        loop {
            tokio::select! {
                () = &mut over => return,
                () = self.now.notified() => match is_wanted {
                    true => tracing::info!("The authority said how long to wait: it is not tried before."),
                    false => return tracing::info!("Asked to try again now."),
                },
            }
        }
    }

    /// Waits until the certificate has to be renewed.
    async fn until_due(&self) {
        while let Some(held) = self.held.filter(|_| self.fits) {
            let left = held.renew_at().since(self.clock.wall());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(left.min(LOOK_EVERY)) => {}
                // Heard, so that it does not end a later wait.
                () = self.now.notified() => {}
            }
        }
    }

    /// Decides how long to wait for the next try, and says so.
    fn wait_after(&self, failed: &Failed, failures: u32) -> Duration {
        let now = self.clock.wall();
        let left = self.held.map_or(Duration::ZERO, |held| held.not_after.since(now));
        let wait = renewal::wait(failures, failed.failure, left, failed.asked, (self.random)());
        let (error, next_try) = (format!("{:#}", failed.error), now.plus(wait));
        match self.held {
            None => tracing::error!(
                error, failures, %next_try,
                "There is no certificate, and none could be got: senders can't connect."
            ),
            Some(held) if held.is_over(now) => tracing::error!(
                error, failures, %next_try, not_after = %held.not_after,
                "The certificate has expired and could not be renewed: senders refuse it."
            ),
            Some(held) if held.is_near_its_end(now) => tracing::error!(
                error, failures, %next_try, not_after = %held.not_after,
                "The certificate could not be renewed, and its end is near."
            ),
            Some(held) => tracing::warn!(
                error, failures, %next_try, not_after = %held.not_after,
                "The certificate could not be renewed: the one from before is served."
            ),
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use std::collections::VecDeque;
    use tokio::sync::mpsc;
    use tokio::time::Instant;
    use tokio_util::task::TaskTracker;

    const DAY: Duration = Duration::from_secs(86_400);

    /// The world's clock, which runs as the paused runtime's does.
    struct WorldClock(Instant);

    impl WorldClock {
        const BEGAN: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    }

    impl Clock for WorldClock {
        fn now(&self) -> Timestamp {
            Self::BEGAN.plus(self.0.elapsed())
        }
        fn wall(&self) -> Timestamp {
            self.now()
        }
        fn at_least(&self, _: Timestamp) {}
        fn is_doubted(&self) -> bool {
            false
        }
    }

    /// Says when it was asked, and answers by a script.
    struct Scripted {
        answers: VecDeque<Result<Duration, Failure>>,
        asked: mpsc::Sender<Duration>,
        /// What the authority says with each failure.
        says: Option<Duration>,
        began: Instant,
    }

    impl Issuer for Scripted {
        async fn issue(&mut self) -> Result<Validity, Failed> {
            let at = self.began.elapsed();
            self.asked.send(at).await.unwrap();
            let now = WorldClock::BEGAN.plus(at);
            match self.answers.pop_front() {
                None => std::future::pending().await,
                Some(Ok(lifetime)) => {
                    Ok(Validity { not_before: now, not_after: now.plus(lifetime) })
                }
                Some(Err(failure)) => {
                    let error = anyhow::anyhow!("as the script says");
                    Err(Failed { error, failure, asked: self.says })
                }
            }
        }
    }

    struct World {
        asked: mpsc::Receiver<Duration>,
        now: Arc<Notify>,
        stop: CancellationToken,
        tracker: TaskTracker,
    }

    /// With a certificate of so many days before and after now, if any.
    fn world(held: Option<(u32, u32)>, answers: &[Result<Duration, Failure>]) -> World {
        world_where(None, held, answers)
    }

    fn world_where(
        says: Option<Duration>,
        held: Option<(u32, u32)>,
        answers: &[Result<Duration, Failure>],
    ) -> World {
        let began = Instant::now();
        let (sender, asked) = mpsc::channel(100);
        let now = Arc::<Notify>::default();
        let keeper = Keeper {
            issuer: Scripted {
                answers: answers.iter().copied().collect(),
                asked: sender,
                says,
                began,
            },
            clock: Arc::new(WorldClock(began)),
            random: || 0,
            held: held.map(|(before, after)| Validity {
                not_before: WorldClock::BEGAN.minus(DAY * before),
                not_after: WorldClock::BEGAN.plus(DAY * after),
            }),
            fits: true,
            now: Arc::clone(&now),
        };
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        drop(tracker.spawn(keeper.run(stop.clone())));
        World { asked, now, stop, tracker }
    }

    impl World {
        async fn minutes(&mut self, tries: usize) -> Vec<u64> {
            let mut at = Vec::new();
            for _ in 0..tries {
                at.push(self.asked.recv().await.unwrap().as_secs() / 60);
            }
            at
        }
    }

    const MINUTES_OF_A_DAY: u64 = 24 * 60;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_ordered_at_once_and_each_next_one_when_a_third_is_left() {
        let mut world = world(None, &[Ok(DAY * 90), Ok(DAY * 90), Ok(DAY * 6)]);
        let days: Vec<u64> =
            world.minutes(4).await.iter().map(|minutes| minutes / MINUTES_OF_A_DAY).collect();
        assert_eq!(days, [0, 60, 120, 124]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_kept_is_renewed_in_its_time() {
        let mut world = world(Some((50, 40)), &[]);
        assert_eq!(world.minutes(1).await, [10 * MINUTES_OF_A_DAY]);
        for overdue in [(70, 20), (90, 0), (100, 0)] {
            assert_eq!(self::world(Some(overdue), &[]).minutes(1).await, [0], "{overdue:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_ever_longer_and_a_success_forgets_them() {
        let (fails, refused) = (Err(Failure::Unreachable), Err(Failure::Refused));
        let mut world = world(Some((60, 30)), &[fails, fails, fails, Ok(DAY * 3), fails]);
        let two_days = 2 * MINUTES_OF_A_DAY;
        assert_eq!(world.minutes(6).await, [0, 1, 3, 7, 7 + two_days, 8 + two_days]);
        let mut world = self::world(None, &[refused, refused, refused, refused]);
        // Without a certificate no wait is longer than an hour.
        assert_eq!(world.minutes(5).await, [0, 15, 45, 75, 105]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_whose_certificates_are_due_when_they_come_is_not_hammered() {
        let mut world = world(None, &[Ok(Duration::ZERO), Ok(Duration::ZERO)]);
        assert_eq!(world.minutes(3).await, [0, 15, 45]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_s_word_ends_a_wait_after_a_failure_and_no_other() {
        let mut world = world(Some((60, 30)), &[Err(Failure::Refused), Ok(DAY * 90)]);
        assert_eq!(world.minutes(1).await, [0]);
        world.now.notify_one();
        assert_eq!(world.minutes(1).await, [0]);
        sleep(DAY).await;
        world.now.notify_one();
        assert_eq!(world.minutes(1).await, [60 * MINUTES_OF_A_DAY]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_authority_says_of_the_next_try_goes_before_an_operator_s_word() {
        let refused = Err(Failure::Refused);
        let mut world = world_where(Some(DAY / 2), None, &[refused, refused]);
        assert_eq!(world.minutes(1).await, [0]);
        world.now.notify_one();
        assert_eq!(world.minutes(2).await, [MINUTES_OF_A_DAY / 2, MINUTES_OF_A_DAY]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_an_order_and_a_wait() {
        for answers in [&[][..], &[Err(Failure::Unreachable)]] {
            let mut world = world(None, answers);
            world.minutes(1).await;
            world.stop.cancel();
            world.tracker.close();
            world.tracker.wait().await;
        }
    }
}
