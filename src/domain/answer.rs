//! What the sender is told: the one table of answers, their names and statuses.

use http::StatusCode;

/// What the sender is told. The names are labels of metrics and words in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Durable.
    Accepted,
    /// Malformed HTTP.
    BadRequest,
    /// The disk is full.
    DiskFull,
    /// Verified, no route, and the table says `unrouted: drop`.
    Dropped,
    /// The same bytes are here already.
    Duplicate,
    /// The source takes nothing from this address.
    Forbidden,
    /// Headers too large.
    HeadersTooLarge,
    /// Neither POST.
    MethodNotAllowed,
    /// No source on that path.
    NotFound,
    /// Too much in flight.
    Overloaded,
    /// The source's rate limit, or too much from its address that is not verified.
    RateLimited,
    /// Stopping.
    ShuttingDown,
    /// The store can't keep it, or not in time.
    StoreUnavailable,
    /// The body did not come in time.
    Timeout,
    /// The body is larger than the source's limit.
    TooLarge,
    /// Signature missing or wrong.
    Unauthorized,
}

impl Answer {
    /// All of them, for labels at zero.
    pub const ALL: [Self; 16] = [
        Self::Accepted,
        Self::BadRequest,
        Self::DiskFull,
        Self::Dropped,
        Self::Duplicate,
        Self::Forbidden,
        Self::HeadersTooLarge,
        Self::MethodNotAllowed,
        Self::NotFound,
        Self::Overloaded,
        Self::RateLimited,
        Self::ShuttingDown,
        Self::StoreUnavailable,
        Self::Timeout,
        Self::TooLarge,
        Self::Unauthorized,
    ];

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::BadRequest => "bad_request",
            Self::DiskFull => "disk_full",
            Self::Dropped => "dropped",
            Self::Duplicate => "duplicate",
            Self::Forbidden => "forbidden",
            Self::HeadersTooLarge => "headers_too_large",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::ShuttingDown => "shutting_down",
            Self::StoreUnavailable => "store_unavailable",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::Unauthorized => "unauthorized",
        }
    }

    /// Its status. Never a redirect, never 410 or 421: those end the relationship.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Accepted => StatusCode::ACCEPTED,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Dropped | Self::Duplicate => StatusCode::OK,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::DiskFull | Self::Overloaded | Self::ShuttingDown | Self::StoreUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
        }
    }

    /// What a person reads in the problem's `detail`.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Accepted => "stored durably",
            Self::BadRequest => "the request could not be read",
            Self::DiskFull => "no room to store it; try again",
            Self::Dropped => "no route wants it",
            Self::Duplicate => "the same bytes are stored already",
            Self::Forbidden => "nothing is taken from this client here",
            Self::HeadersTooLarge => "the headers are too large",
            Self::MethodNotAllowed => "only POST is taken here",
            Self::NotFound => "no source has this path",
            Self::Overloaded => "too many requests in flight; try again",
            Self::RateLimited => "more requests than the rate limit; try again",
            Self::ShuttingDown => "stopping; try again",
            Self::StoreUnavailable => "it could not be stored; try again",
            Self::Timeout => "the body did not arrive in time",
            Self::TooLarge => "the body is larger than the source's limit",
            Self::Unauthorized => "the request could not be verified",
        }
    }

    /// Seconds for `Retry-After`, on answers that are worth another try.
    pub const fn retry_after_secs(self) -> Option<u64> {
        match self {
            Self::DiskFull => Some(30),
            Self::Overloaded | Self::RateLimited => Some(1),
            Self::ShuttingDown | Self::StoreUnavailable => Some(5),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_redirects_or_ends_the_relationship_and_every_503_and_429_says_when() {
        for answer in Answer::ALL {
            let status = answer.status();
            assert!(!status.is_redirection(), "{answer:?}");
            assert!(![410, 421].contains(&status.as_u16()), "{answer:?}");
            let waits = [503, 429].contains(&status.as_u16());
            assert_eq!(waits, answer.retry_after_secs().is_some(), "{answer:?}");
        }
    }
}
