//! What is asked of a data directory while no relay runs.

use std::path::Path;

use serde_json::Value;

use crate::store::embedded::offline::{backup, check, stats};

pub use crate::store::embedded::offline::Refused;

/// Checks a data directory: what was found, and whether nothing that was acknowledged is damaged.
pub fn check(dir: &Path) -> Result<(Value, bool), Refused> {
    check::check(dir).map(|report| (report.json, report.is_good))
}

/// Counts what is in a data directory.
pub fn stats(dir: &Path) -> Result<Value, Refused> {
    stats::stats(dir)
}

/// Copies a data directory: what was copied, and whether nothing of it is damaged.
pub fn backup(dir: &Path, to: &Path) -> Result<(Value, bool), Refused> {
    backup::backup(dir, to).map(|report| (report.json, report.is_good))
}
