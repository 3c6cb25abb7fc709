//! What the relay knows of its store, without reading it through.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::store::{CommitError, Health, LaneCounts, Pulse, Sizes};

/// What is known now.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) pulse: Pulse,
    pub(super) health: Health,
    pub(super) lanes: Vec<LaneCounts>,
    /// None where the disk does not say.
    pub(super) sizes: Option<Sizes>,
}

/// All of it.
pub(super) fn shown(known: &Known) -> Value {
    let Known { pulse, health, lanes, sizes } = known;
    let mut dead: BTreeMap<&str, u64> = BTreeMap::new();
    for (cause, count) in lanes.iter().flat_map(|lane| &lane.dead) {
        *dead.entry(cause.name()).or_default() += count;
    }
    let newest = health.newest_by_source.iter();
    let newest = newest.map(|(source, at)| (source.to_string(), at.to_string().into()));
    json!({
        "failing": pulse.failing.map(reason),
        "held_up_ms": u64::try_from(pulse.held_up_for.as_millis()).unwrap_or(u64::MAX),
        "bytes": sizes.map(|sizes| sizes.bytes),
        "available_bytes": sizes.map(|sizes| sizes.available_bytes),
        "limit_bytes": health.bytes_max,
        "unrouted_bytes": health.unrouted_bytes,
        "pending": lanes.iter().map(|lane| lane.pending).sum::<u64>(),
        "oldest_pending_at": lanes.iter().filter_map(|lane| lane.oldest).min().map(|at| at.to_string()),
        "dead_letters": dead,
        "newest_webhook_at": newest.collect::<Map<String, Value>>(),
        "damaged_records": health.damaged_records,
        "sweep_findings": health.sweep_findings,
        "duplicates_known_for_s": health.duplicates_reach.map(|reach| reach.as_secs()),
    })
}

/// As the probes call it.
const fn reason(error: CommitError) -> &'static str {
    match error {
        CommitError::DiskFull => "disk_full",
        CommitError::Closed | CommitError::Overloaded | CommitError::Unavailable => {
            "store_unavailable"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::Cause;
    use crate::domain::time::Timestamp;

    #[test]
    fn what_all_targets_hold_is_added_up_and_what_is_not_known_is_null() {
        let lane = |target: &str, pending, oldest| LaneCounts {
            target: target.into(),
            pending,
            oldest: Some(Timestamp::from_millis(oldest)),
            backlog_bytes: 0,
            dead_letters_bytes: 0,
            dead: vec![(Cause::Expired, 2), (Cause::GivenUp, 1)],
        };
        let lanes = vec![lane("a", 3, 2_000), lane("b", 4, 1_000)];
        let pulse = Pulse { failing: Some(CommitError::DiskFull), ..Pulse::default() };
        let shown = shown(&Known { pulse, lanes, ..Known::default() });
        assert_eq!(
            shown,
            json!({
                "failing": "disk_full", "held_up_ms": 0, "bytes": null, "available_bytes": null,
                "limit_bytes": null, "unrouted_bytes": 0,
                "pending": 7, "oldest_pending_at": "1970-01-01T00:00:01.000Z",
                "dead_letters": { "expired": 4, "given_up": 2 }, "newest_webhook_at": {},
                "damaged_records": 0, "sweep_findings": 0, "duplicates_known_for_s": null,
            })
        );
    }
}
