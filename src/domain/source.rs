//! Who may post, as compiled from `routes.yaml`.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::signature::Verification;
use crate::domain::target::Rate;

/// Who may post, on which path, verified how.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its name.
    pub name: Arc<str>,
    /// The exact path.
    pub path: Box<str>,
    /// How its requests are verified.
    pub verify: Verification,
    /// The largest body.
    pub body_bytes_max: usize,
    /// Verified requests per time.
    pub rate_limit: Option<Rate>,
    /// How long the same bytes are a duplicate.
    pub duplicates: DuplicateWindows,
    /// Exported for the alert on silence.
    pub silence_after: Duration,
}

/// How long the same bytes are a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateWindows {
    /// For bodies that carry an activity's id.
    pub activities: Duration,
    /// For all others, which may honestly come again: only the sender's own retries.
    pub bare: Duration,
}

impl Default for DuplicateWindows {
    fn default() -> Self {
        Self { activities: Duration::from_secs(24 * 3600), bare: Duration::from_secs(150) }
    }
}
