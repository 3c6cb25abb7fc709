//! What one attempt came to.

use std::time::Duration;

use bytes::Bytes;

use crate::domain::limit::RETRY_AFTER_MAX;
use crate::domain::time::Timestamp;

/// What an attempt came to. The names are labels of metrics and words in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The answer was larger than is read.
    AnswerTooLarge,
    /// A 2xx.
    Delivered,
    /// A status in the target's `give_up_on`.
    GivenUp,
    /// No connection: name not found, refused, unreachable.
    Refused,
    /// The connection broke.
    Reset,
    /// Any other status, redirects included.
    Status,
    /// The deadline passed.
    Timeout,
    /// TLS could not be agreed on or the certificate was not accepted.
    Tls,
}

impl Outcome {
    /// All of them, for labels at zero.
    pub const ALL: [Self; 8] = [
        Self::AnswerTooLarge,
        Self::Delivered,
        Self::GivenUp,
        Self::Refused,
        Self::Reset,
        Self::Status,
        Self::Timeout,
        Self::Tls,
    ];

    /// What a status means to a target that gives up on `give_up_on`.
    pub fn of_status(status: u16, give_up_on: &[u16]) -> Self {
        match status {
            200..=299 => Self::Delivered,
            _ if give_up_on.contains(&status) => Self::GivenUp,
            _ => Self::Status,
        }
    }

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AnswerTooLarge => "answer_too_large",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
        }
    }
}

/// One HTTP exchange of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// What it came to.
    pub outcome: Outcome,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// The first bytes of the answer to a failed attempt, or why there was none.
    pub excerpt: Bytes,
}

impl Attempt {
    /// When it was over.
    pub fn ended_at(&self) -> Timestamp {
        self.at.plus(self.duration)
    }
}

/// Until when a lane holds still because its target asked for it.
///
/// A `Retry-After` counts on 429 and 503 for the whole lane; seconds or a date; never longer than
/// the greater of `retry_max` and an hour.
pub fn retry_after(
    header: Option<&[u8]>,
    now: Timestamp,
    retry_max: Duration,
) -> Option<Timestamp> {
    let text = std::str::from_utf8(header?).ok()?.trim();
    let asked = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // So many digits that it does not fit means: as long as possible.
        Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX)))
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
        Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).ok()?).since(now)
    };
    Some(now.plus(asked.min(retry_max.max(RETRY_AFTER_MAX))))
}

/// The statuses whose `Retry-After` holds the whole lane.
pub const fn holds_lane(status: u16) -> bool {
    matches!(status, 429 | 503)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn only_2xx_is_delivered_and_redirects_are_failures() {
        for (status, outcome) in [
            (200, Outcome::Delivered),
            (204, Outcome::Delivered),
            (299, Outcome::Delivered),
            (301, Outcome::Status),
            (307, Outcome::Status),
            (404, Outcome::Status),
            (410, Outcome::GivenUp),
            (500, Outcome::Status),
        ] {
            assert_eq!(Outcome::of_status(status, &[410]), outcome, "{status}");
        }
        assert_eq!(Outcome::of_status(410, &[]), Outcome::Status);
        assert_eq!(Outcome::of_status(200, &[200]), Outcome::Delivered);
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date_and_bounded() {
        let wait = |text: &str, max| {
            retry_after(Some(text.as_bytes()), NOW, max).map(|until| until.since(NOW).as_secs())
        };
        assert_eq!(wait("120", HOUR), Some(120));
        assert_eq!(wait(" 7 ", HOUR), Some(7));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:37 GMT", HOUR), Some(60));
        assert_eq!(wait("Sun, 06 Nov 1994 08:40:00 GMT", HOUR), Some(0));
        assert_eq!(wait("999999", HOUR), Some(3600));
        assert_eq!(wait("99999999999999999999999999", HOUR), Some(3600));
        assert_eq!(wait("999999", Duration::from_secs(7200)), Some(7200));
        assert_eq!(wait("999999", Duration::from_secs(10)), Some(3600));
        assert_eq!(wait("-1", HOUR), None);
        assert_eq!(wait("soon", HOUR), None);
        assert_eq!(wait("", HOUR), None);
        assert_eq!(retry_after(None, NOW, HOUR), None);
    }
}
