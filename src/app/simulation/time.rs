//! Simulated time: the runtime's, and a machine's clock that jumps beside it.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::time::Timestamp;

const START: u64 = 1_700_000_000_000;

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    // What the machine's clock shows beyond the time that has passed.
    static AHEAD: Cell<i64> = const { Cell::new(0) };
    static CHANCE: Cell<u64> = const { Cell::new(0) };
    // The latest that the machine's clock has ever shown.
    static LATEST: Cell<Timestamp> = const { Cell::new(Timestamp::from_millis(0)) };
}

/// The beginning of a seed.
pub(super) fn begin(seed: u64) {
    BEGAN.set(Some(Instant::now()));
    AHEAD.set(0);
    LATEST.set(Timestamp::default());
    CHANCE.set(seed);
}

/// Since the beginning.
pub(super) fn elapsed() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed())
}

/// What the machine's clock shows.
pub(super) fn wall() -> Timestamp {
    let shown = i64::try_from(elapsed().as_millis()).unwrap().saturating_add(AHEAD.get());
    let shown = Timestamp::from_millis(START.saturating_add_signed(shown));
    LATEST.set(LATEST.get().max(shown));
    shown
}

/// The latest time that it has shown.
pub(super) fn latest() -> Timestamp {
    wall();
    LATEST.get()
}

/// The machine's clock jumps; seconds.
pub(super) fn jump(by: i64) {
    AHEAD.set(AHEAD.get() + by * 1000);
}

/// How far it is from the truth; seconds.
pub(super) fn ahead() -> i64 {
    AHEAD.get() / 1000
}

/// For the jitter of retries.
pub(super) fn chance() -> u64 {
    let mut random = fastrand::Rng::with_seed(CHANCE.get());
    let drawn = random.u64(..);
    CHANCE.set(drawn);
    drawn
}
