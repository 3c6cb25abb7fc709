//! Who is told how long commits take.

use std::fmt;
use std::time::Duration;

/// Is told of every batch that became durable.
pub trait Observer: Send + Sync + fmt::Debug + 'static {
    /// So many webhooks became durable by one sync, so long after it was begun to be written.
    fn commit_batch(&self, webhooks: usize, duration: Duration);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn commit_batch(&self, _webhooks: usize, _duration: Duration) {}
}
