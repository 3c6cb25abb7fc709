//! The machine's clock, for commands that are not the relay.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use crate::domain::time::{Clock, Timestamp};

/// The wall clock as it is.
#[derive(Debug, Default)]
pub struct WallClock {
    floor: AtomicU64,
}

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "this is a clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::from_millis(0).plus(since);
        now.max(Timestamp::from_millis(self.floor.load(Ordering::Relaxed)))
    }

    fn at_least(&self, moment: Timestamp) {
        self.floor.fetch_max(moment.as_millis(), Ordering::Relaxed);
    }
}
