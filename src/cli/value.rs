//! Durations and sizes of flags: written as in the routes file, and never zero.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::config;

/// As many files as Linux lets a process open, unless it is told to let it open more.
const CONNECTIONS_MAX: usize = 1 << 20;

/// A duration that is not zero, such as `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match config::duration(text)? {
        Duration::ZERO => Err("it must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A duration that is not zero, as it is written.
pub fn duration_text(text: &str) -> Result<String, String> {
    duration(text).map(|_| text.to_owned())
}

/// A size in bytes that is not zero, such as `64MiB`.
pub fn size(text: &str) -> Result<u64, String> {
    match config::size(text)? {
        0 => Err("it must be larger than zero".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A number of connections.
pub fn connections(text: &str) -> Result<NonZeroUsize, String> {
    let count: NonZeroUsize = text.parse().map_err(|error| format!("{error}"))?;
    if count.get() > CONNECTIONS_MAX {
        return Err(format!("no more than {CONNECTIONS_MAX}: each needs a file descriptor"));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_some_and_no_more_than_a_process_may_have() {
        assert_eq!(connections("1048576").map(NonZeroUsize::get), Ok(CONNECTIONS_MAX));
        for text in ["0", "-1", "many", "1048577", "18446744073709551615", ""] {
            assert!(connections(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_is_zero() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        for text in ["0s", "soon", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["0B", "big", "512", ""] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
