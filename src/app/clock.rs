//! The clock of a running relay: read from the system once, monotonic from there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use crate::domain::time::{Clock, Timestamp};

/// Wall-clock time as of the start, moved on by the monotonic clock.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
    // Unix milliseconds at `started`; raised when the store holds something newer.
    base: AtomicU64,
}

impl SystemClock {
    /// Starts from the machine's wall clock.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn start() -> Self {
        let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), base: AtomicU64::new(millis(now)) }
    }

    fn elapsed(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.base.load(Ordering::Relaxed).saturating_add(self.elapsed()))
    }

    fn at_least(&self, moment: Timestamp) {
        self.base.fetch_max(moment.as_millis().saturating_sub(self.elapsed()), Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_never_before_what_is_stored() {
        let clock = SystemClock::start();
        let future = clock.now().plus(Duration::from_secs(3600));
        clock.at_least(future);
        assert!(clock.now() >= future);
        clock.at_least(Timestamp::from_millis(1));
        assert!(clock.now() >= future);
    }
}
