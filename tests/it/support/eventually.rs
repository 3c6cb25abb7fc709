//! Waiting for conditions instead of sleeping.

use std::time::Duration;

use tokio::time::Instant;

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long to wait for what must happen: `RELAY_TEST_PATIENCE` seconds.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("RELAY_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

/// What [`eventually`] waits for: the value, or what is there instead.
pub(crate) trait Condition {
    /// What comes out when it holds.
    type Value;

    /// The value, or a description of how far it is.
    fn check(self) -> Result<Self::Value, String>;
}

impl Condition for bool {
    type Value = ();

    fn check(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "it does not hold".to_owned())
    }
}

impl<T> Condition for Option<T> {
    type Value = T;

    fn check(self) -> Result<T, String> {
        self.ok_or_else(|| "it is not there".to_owned())
    }
}

impl<T> Condition for Result<T, String> {
    type Value = T;

    fn check(self) -> Self {
        self
    }
}

/// Waits until the condition holds, and panics when patience ends.
#[track_caller]
pub(crate) fn eventually<C: Condition>(what: &str, mut look: impl FnMut() -> C) -> C::Value {
    let deadline = Instant::now() + patience();
    loop {
        match look().check() {
            Ok(value) => return value,
            Err(instead) if Instant::now() >= deadline => {
                panic!("{what}: not within {:?}: {instead}", patience())
            }
            Err(_) => pause(LOOK_EVERY),
        }
    }
}

/// Lets this much time pass: for the pace of what a test does, never to wait for the relay.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}
