//! What is in a directory, in numbers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::domain::time::Timestamp;
use crate::store::embedded::disk::{Disk, RealDisk};
use crate::store::embedded::index::Index;
use crate::store::embedded::index::compare::Extent;
use crate::store::embedded::offline::{Offline, Refused, weigh};

/// Counts what is in a directory on the machine's disk.
pub fn stats(dir: &Path) -> Result<Value, Refused> {
    stats_on(dir, Arc::new(RealDisk))
}

/// The same on another disk.
pub fn stats_on(dir: &Path, disk: Arc<dyn Disk>) -> Result<Value, Refused> {
    let offline = Offline::open_on(dir, disk)?;
    let mut scratch = offline.scratch(false)?;
    if scratch.made.is_none() {
        // What it did not see, if it fails on the way, has to be read again.
        let whole = offline.scan(&mut scratch);
        if scratch.lying.is_some() {
            return Ok(tell(&offline, &whole?, scratch.of_a_start()));
        }
        scratch = offline.scratch(true)?;
        scratch.lying = None;
    }
    let found = offline.scan(&mut scratch)?;
    Ok(tell(&offline, &found, scratch.of_a_start()))
}

fn tell(offline: &Offline, found: &super::Found, index: Option<&Index>) -> Value {
    let none = Extent { webhooks: 0, unrouted: 0, oldest: None, newest: None };
    let extent = index.and_then(|index| index.extent().ok()).unwrap_or(none);
    let holdings = index.and_then(|index| index.holdings().ok()).unwrap_or_default();
    let live: u64 = holdings.values().map(|holding| holding.live).sum();
    let written: u64 = found.kinds.values().map(|tally| tally.bytes).sum();
    let kinds = found.kinds.iter().map(|(kind, tally)| {
        ((*kind).to_owned(), json!({ "records": tally.records, "bytes": tally.bytes }))
    });
    let quarantine = weigh(&offline.dir.join("quarantine"));
    let index_bytes = ["", "-wal", "-shm"].iter().map(|suffix| {
        let file = offline.dir.join(format!("index.sqlite{suffix}"));
        std::fs::metadata(file).map_or(0, |meta| meta.len())
    });
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    json!({
        "data": offline.dir.display().to_string(),
        "segments": offline.log.all().len(),
        "segment_bytes": offline.log.bytes(),
        "record_bytes": written,
        "live_bytes": live,
        "dead_bytes": written.saturating_sub(live),
        "records": kinds.collect::<Map<_, _>>(),
        "webhooks": extent.webhooks,
        "unrouted": extent.unrouted,
        "oldest_received_at": time(extent.oldest),
        "newest_received_at": time(extent.newest),
        "targets": targets(index),
        "damaged_records": found.flaws_count,
        "index_bytes": index_bytes.sum::<u64>(),
        "quarantine_files": quarantine.records,
        "quarantine_bytes": quarantine.bytes,
    })
}

/// What waits for each target, and its dead letters by cause.
fn targets(index: Option<&Index>) -> Vec<Value> {
    let counts = index.and_then(|index| index.counts().ok()).unwrap_or_default();
    let mut targets: BTreeMap<Arc<str>, (u64, Map<String, Value>)> = BTreeMap::new();
    for count in counts {
        let (pending, dead) = targets.entry(count.target).or_default();
        match count.cause {
            None => *pending += count.n,
            Some(cause) => {
                dead.insert(cause.name().to_owned(), json!(count.n));
            }
        }
    }
    let each = targets.into_iter();
    each.map(|(name, (pending, dead))| {
        json!({ "name": &*name, "pending": pending, "dead_letters": dead })
    })
    .collect()
}
