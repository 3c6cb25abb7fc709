//! The clock of a running relay: monotonic from the start, with an eye on the machine's.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use crate::domain::jump::{Jump, WallWatch};
use crate::domain::time::{Clock, Timestamp};

/// A store whose newest record is older than this was stopped for long, or the clock is wrong:
/// worth a warning. Less is any quiet night.
const LONG_STOP: Duration = Duration::from_secs(24 * 3600);

/// Wall-clock time as of the start, moved on by the monotonic clock.
pub struct SystemClock {
    started: Instant,
    // Unix milliseconds at `started`; raised when the store holds something newer.
    base: AtomicU64,
    wall: fn() -> Timestamp,
    watch: Mutex<WallWatch>,
}

impl SystemClock {
    /// Starts from the machine's wall clock.
    pub fn start() -> Self {
        Self::from(machine_time)
    }

    /// Starts from a wall clock that a test has in hand.
    #[cfg(test)]
    pub(super) fn shown_by(wall: fn() -> Timestamp) -> Self {
        Self::from(wall)
    }

    fn from(wall: fn() -> Timestamp) -> Self {
        let now = wall();
        Self {
            started: Instant::now(),
            base: AtomicU64::new(now.as_millis()),
            wall,
            watch: Mutex::new(WallWatch::new(now)),
        }
    }

    /// Looks whether the machine's wall clock has jumped; to be called every few seconds.
    pub fn look(&self) {
        let jump = self.watch().look(self.wall(), self.started.elapsed());
        match jump {
            None => {}
            Some(Jump::Ahead(by)) => {
                tracing::error!(
                    ?by,
                    "The machine's clock jumped ahead: nothing expires for an hour."
                );
            }
            Some(Jump::Behind(by)) => {
                tracing::error!(
                    ?by,
                    "The machine's clock jumped back: nothing expires for an hour."
                );
            }
        }
    }

    fn watch(&self) -> MutexGuard<'_, WallWatch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.base.load(Ordering::Relaxed)).plus(self.started.elapsed())
    }

    fn wall(&self) -> Timestamp {
        (self.wall)()
    }

    fn at_least(&self, newest: Timestamp) {
        let elapsed = self.started.elapsed();
        let jump = self.watch().opened(newest, self.wall(), elapsed);
        match jump {
            None => {}
            Some(Jump::Behind(by)) => tracing::error!(
                ?by,
                %newest,
                "The machine's clock is behind the newest record in the store: it was wrong then \
                 or is wrong now. Nothing expires for an hour."
            ),
            Some(Jump::Ahead(by)) if by > LONG_STOP => tracing::warn!(
                ?by,
                %newest,
                "The newest record in the store is old: the relay was stopped for long, or the \
                 machine's clock is wrong. Nothing expires for an hour."
            ),
            Some(Jump::Ahead(by)) => tracing::info!(
                ?by,
                %newest,
                "The newest record in the store is older than five minutes: nothing expires for \
                 an hour."
            ),
        }
        self.base.fetch_max(newest.minus(elapsed).as_millis(), Ordering::Relaxed);
    }

    fn is_doubted(&self) -> bool {
        self.watch().is_doubted(self.started.elapsed())
    }
}

impl fmt::Debug for SystemClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemClock").field("now", &self.now()).finish_non_exhaustive()
    }
}

fn machine_time() -> Timestamp {
    Timestamp::default().plus(since_1970())
}

/// What the machine's clock shows, as exactly as it goes: milliseconds are too coarse for spans.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub(super) fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::jump::DOUBT;
    use std::cell::Cell;
    use tracing::Level;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    thread_local! {
        static WALL: Cell<Timestamp> = const { Cell::new(START) };
    }

    fn clock() -> SystemClock {
        WALL.set(START);
        SystemClock::from(|| WALL.get())
    }

    /// Time passes, for both clocks.
    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
        WALL.set(WALL.get().plus(time));
    }

    #[test]
    fn the_clock_is_never_before_what_is_stored() {
        let clock = SystemClock::start();
        let future = clock.now().plus(Duration::from_secs(3600));
        clock.at_least(future);
        assert!(clock.now() >= future);
        clock.at_least(Timestamp::from_millis(1));
        assert!(clock.now() >= future);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_stored_moves_the_order_of_records_but_not_the_wall_clock() {
        let clock = clock();
        clock.at_least(START.plus(10 * DAY));
        pass(Duration::from_secs(7)).await;
        assert_eq!(clock.now(), START.plus(10 * DAY + Duration::from_secs(7)));
        assert_eq!(clock.wall(), START.plus(Duration::from_secs(7)));
        // Nothing expires for an hour, and then by the time that has certainly passed.
        assert_eq!(clock.certain(), None);
        pass(DOUBT).await;
        assert_eq!(clock.certain(), Some(clock.wall()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_while_running_holds_everything_for_an_hour() {
        let clock = clock();
        pass(DAY).await;
        clock.look();
        assert_eq!(clock.certain(), Some(START.plus(DAY)));
        WALL.set(WALL.get().plus(10 * DAY));
        clock.look();
        assert_eq!(clock.certain(), None);
        pass(DOUBT).await;
        clock.look();
        assert_eq!(clock.certain(), Some(clock.now()), "by running time, which did not jump");
        WALL.set(START);
        clock.look();
        assert_eq!(clock.certain(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_one_error_and_a_long_stop_is_none() {
        let levels = |act: &dyn Fn(&SystemClock)| {
            let clock = clock();
            crate::telemetry::logging::levels(|| act(&clock))
        };
        assert_eq!(levels(&|clock| clock.at_least(START.minus(7 * DAY))), [Level::WARN]);
        assert_eq!(levels(&|clock| clock.at_least(START.minus(DAY / 2))), [Level::INFO]);
        assert!(levels(&|clock| clock.at_least(START)).is_empty());
        assert_eq!(levels(&|clock| clock.at_least(START.plus(DAY))), [Level::ERROR]);
        let jumped = |to: Timestamp| {
            levels(&|clock| {
                clock.look();
                WALL.set(to);
                clock.look();
                clock.look();
            })
        };
        assert_eq!(jumped(START.plus(DAY)), [Level::ERROR]);
        assert_eq!(jumped(START.minus(DAY)), [Level::ERROR]);
        assert!(jumped(START.plus(DOUBT / 20)).is_empty());
    }
}
