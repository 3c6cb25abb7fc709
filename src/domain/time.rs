//! Wall-clock time as a value, and the clock that others provide.

use std::fmt;
use std::time::Duration;

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;
use ::time::macros::format_description;

/// A moment in unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `ms` milliseconds after the epoch.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Seconds since the epoch, for a gauge.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 ms is far away")]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// This moment and `wait` later; stays at the end of time rather than wrapping.
    #[must_use]
    pub fn plus(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This moment less `wait`; stays at the epoch.
    #[must_use]
    pub fn minus(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Parses RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(parsed.unix_timestamp_nanos() / 1_000_000).ok().map(Self)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC, milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        );
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .map_err(|_| fmt::Error)?;
        f.write_str(&moment.format(form).map_err(|_| fmt::Error)?)
    }
}

/// Where the time comes from.
///
/// Running time is monotonic from the start of the process, whatever is done to the machine's clock.
pub trait Clock: Send + Sync + 'static {
    /// The present of records: it never goes back, not from one start to the next either.
    fn now(&self) -> Timestamp;

    /// What the machine's clock shows at this moment: for what others compare with their own clocks.
    fn wall(&self) -> Timestamp;

    /// A store whose newest record is of `newest` was opened: the present is never before that from
    /// here on, for what is stored was written before now.
    fn at_least(&self, newest: Timestamp);

    /// Whether the machine's clock jumped lately.
    fn is_doubted(&self) -> bool;

    /// Up to when time has certainly passed: for what ends because its time is over. None while the
    /// machine's clock is in doubt: then nothing ends.
    fn certain(&self) -> Option<Timestamp> {
        (!self.is_doubted()).then(|| self.now().min(self.wall()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_in_utc_with_milliseconds_and_read_back() {
        let moment = Timestamp::from_millis(1_678_755_880_007);
        assert_eq!(moment.to_string(), "2023-03-14T01:04:40.007Z");
        assert_eq!(Timestamp::parse("2023-03-14T01:04:40.007Z"), Some(moment));
        assert_eq!(Timestamp::parse("2023-03-14T02:04:40.007+01:00"), Some(moment));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Timestamp::from_millis(5).minus(Duration::from_secs(1)).as_millis(), 0);
        assert_eq!(Timestamp::from_millis(5).plus(Duration::MAX).as_millis(), u64::MAX);
        assert_eq!(Timestamp::from_millis(5).since(Timestamp::from_millis(9)), Duration::ZERO);
    }
}
