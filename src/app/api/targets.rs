//! Targets and what waits for them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::domain::route::RoutingTable;
use crate::store::LaneCounts;

/// The targets of the table, and those that are gone from it and still have something.
pub(super) fn list(table: &RoutingTable, lanes: &[LaneCounts]) -> Value {
    let mut all: BTreeMap<&str, Option<&LaneCounts>> =
        table.targets.keys().map(|name| (&**name, None)).collect();
    all.extend(lanes.iter().map(|lane| (&*lane.target, Some(lane))));
    let items = all.into_iter().map(|(name, lane)| {
        let dead = lane.map(|lane| lane.dead.as_slice()).unwrap_or_default();
        let dead = dead.iter().map(|(cause, n)| (cause.name().to_owned(), (*n).into()));
        json!({
            "name": name,
            "in_table": table.targets.contains_key(name),
            "pending": lane.map_or(0, |lane| lane.pending),
            "oldest_pending_at": lane.and_then(|lane| lane.oldest).map(|at| at.to_string()),
            "dead_letters": Value::Object(dead.collect()),
        })
    });
    json!({ "items": items.collect::<Vec<_>>(), "next": null })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::Cause;
    use crate::domain::route::Rules;
    use crate::domain::time::Timestamp;

    #[test]
    fn a_target_that_is_gone_is_listed_as_long_as_something_waits_for_it() {
        let lane = LaneCounts {
            target: "gone".into(),
            pending: 2,
            oldest: Some(Timestamp::from_millis(1_700_000_000_000)),
            dead: vec![(Cause::Expired, 3)],
        };
        assert_eq!(
            list(&RoutingTable::new(Rules::default()), &[lane])["items"],
            json!([{
                "name": "gone", "in_table": false, "pending": 2,
                "oldest_pending_at": "2023-11-14T22:13:20.000Z", "dead_letters": { "expired": 3 },
            }])
        );
    }
}
