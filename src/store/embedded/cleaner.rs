//! Retention: what is past its time goes, in small steps that stall nobody.

use std::sync::Arc;

use crate::store::embedded::Settings;
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::queue::Queue;

/// The state between two steps.
#[derive(Debug, Default)]
pub struct Cleaner {}

impl Cleaner {
    /// A cleaner for these settings.
    pub fn new(_settings: &Settings, _queue: Arc<Queue>) -> Self {
        Self {}
    }

    /// Whether there is more to do at once.
    pub fn is_busy(&self) -> bool {
        false
    }

    /// Does a little.
    pub fn step(&mut self, _indexer: &mut Indexer) -> rusqlite::Result<()> {
        Ok(())
    }
}
