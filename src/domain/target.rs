//! Where deliveries go, as compiled from `routes.yaml`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri};

use crate::domain::pointer::Pointers;
use crate::domain::retry::RetrySchedule;
use crate::domain::signature::Signing;
use crate::domain::template::{HeaderRule, HeaderText};

/// Where deliveries go and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// `http` or `https`, with a host, without user and password.
    pub url: Uri,
    /// How requests to it are signed.
    pub sign: Signing,
    /// The operator's headers; values from secrets are marked sensitive.
    pub headers: Vec<HeaderRule>,
    /// What those headers point at.
    pub pointers: Pointers,
    /// Inbound headers to pass on besides `Content-Type` and `Content-Encoding`.
    pub forward_headers: Vec<HeaderName>,
    /// One attempt, everything included.
    pub timeout: Duration,
    /// When failed deliveries are tried again.
    pub retry: RetrySchedule,
    /// Attempts at the same time.
    pub concurrency: usize,
    /// Attempts per time.
    pub rate_limit: Option<Rate>,
    /// How much of the store may wait for it.
    pub backlog_limit: BacklogLimit,
    /// Everything is kept for it and nothing sent.
    pub paused: bool,
    /// What its TLS asks for.
    pub tls: TargetTls,
}

impl Target {
    /// What it was told in confidence by a request with these sensitive values: all of them, and
    /// secrets without what stands before them.
    pub fn confidences<'a>(&'a self, sent: &'a [HeaderValue]) -> Vec<&'a [u8]> {
        let sent = sent.iter().map(HeaderValue::as_bytes);
        let bare = self.headers.iter().filter_map(|rule| match &rule.value {
            HeaderText::Secret { value, begins, .. } => value.as_bytes().get(*begins..),
            HeaderText::Fixed(_) | HeaderText::Template(_) => None,
        });
        sent.chain(bare).collect()
    }
}

/// How much of the store a target's pending deliveries may pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BacklogLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of what the store may take.
    Percent(u8),
}

impl Default for BacklogLimit {
    fn default() -> Self {
        Self::Percent(50)
    }
}

impl BacklogLimit {
    /// It in bytes, if it is known what shares are shares of.
    pub fn of(self, shares_of: Option<u64>) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(_) => shares_of.map(|store_bytes_max| self.bytes(store_bytes_max)),
        }
    }

    /// It in bytes, where the store may take `store_bytes_max`.
    pub fn bytes(self, store_bytes_max: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // Divided first: no store is so small that it matters.
            Self::Percent(percent) => (store_bytes_max / 100).saturating_mul(u64::from(percent)),
        }
    }
}

/// So many per so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// Per how long: a second, a minute, an hour.
    pub per: Duration,
}

/// TLS settings of a target, with the files already read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetTls {
    /// PEM of the authorities that replace the system's.
    pub ca: Option<Bytes>,
    /// PEM of our certificate and its key.
    pub identity: Option<Identity>,
    /// The name to expect instead of the URL's host.
    pub server_name: Option<Box<str>>,
}

/// Our certificate towards a target.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain, PEM.
    pub certificate: Bytes,
    /// The key, PEM.
    pub key: Bytes,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_store_is_of_what_it_may_take() {
        assert_eq!(BacklogLimit::default().bytes(1000), 500);
        assert_eq!(BacklogLimit::Percent(100).bytes(u64::MAX), u64::MAX / 100 * 100);
        assert_eq!(BacklogLimit::Percent(1).bytes(0), 0);
        assert_eq!(BacklogLimit::Bytes(7).bytes(3), 7);
    }
}
