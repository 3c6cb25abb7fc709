//! Targets: how their lanes are, what waits for them, and an operator's pause.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::admin::api::Problem;
use crate::app::api::webhooks::{shown_attempt, with};
use crate::delivery::board::{Board, Status};
use crate::domain::lane::Suspension;
use crate::domain::route::RoutingTable;
use crate::domain::time::Timestamp;
use crate::store::marks::{MarkError, MarkKeeper, Word};
use crate::store::{LaneCounts, Store};

/// How long an answer waits for the lane to have heard.
const HEARD_WAIT_MAX: Duration = Duration::from_secs(1);

/// The targets of the table, and those that are gone from it and still have something. Limits are
/// shares of `store_bytes_max`, where that is known.
pub(super) fn list(
    table: &RoutingTable,
    lanes: &[LaneCounts],
    store_bytes_max: Option<u64>,
    board: &BTreeMap<Arc<str>, Status>,
    now: Timestamp,
) -> Value {
    let mut all: BTreeMap<&str, Option<&LaneCounts>> =
        table.targets.keys().map(|name| (&**name, None)).collect();
    all.extend(lanes.iter().map(|lane| (&*lane.target, Some(lane))));
    let items = all.into_iter().map(|(name, lane)| {
        let target = table.targets.get(name);
        let status = board.get(name).filter(|_| target.is_some());
        let limit = target.zip(store_bytes_max).map(|(t, max)| t.backlog_limit.bytes(max));
        let limit = json!({ "backlog_limit_bytes": limit });
        with(shown(name, lane, status, target.is_some(), now), limit)
    });
    json!({ "items": items.collect::<Vec<_>>(), "next": null })
}

fn shown(
    name: &str,
    lane: Option<&LaneCounts>,
    status: Option<&Status>,
    in_table: bool,
    now: Timestamp,
) -> Value {
    let dead = lane.map(|lane| lane.dead.as_slice()).unwrap_or_default();
    let dead = dead.iter().map(|(cause, n)| (cause.name().to_owned(), (*n).into()));
    let held_until = status.and_then(|status| status.held_until).filter(|until| *until > now);
    let suspension = status.and_then(|status| status.state.suspension());
    let last = status
        .and_then(|status| status.last.as_ref())
        .map(|(id, attempt)| with(shown_attempt(attempt), json!({ "webhook_id": id.to_string() })));
    json!({
        "name": name,
        "in_table": in_table,
        "state": state(status, in_table),
        "paused_by": status.map(paused_by),
        "paused_at": status.and_then(|s| s.state.paused_by_operator).map(|at| at.to_string()),
        "suspended": suspension.map(shown_suspension),
        "held_until": held_until.map(|until| until.to_string()),
        "last_attempt": last,
        "pending": lane.map_or(0, |lane| lane.pending),
        "oldest_pending_at": lane.and_then(|lane| lane.oldest).map(|at| at.to_string()),
        "backlog_bytes": lane.map_or(0, |lane| lane.backlog_bytes),
        "dead_letters_bytes": lane.map_or(0, |lane| lane.dead_letters_bytes),
        "dead_letters": Value::Object(dead.collect()),
    })
}

fn state(status: Option<&Status>, in_table: bool) -> &'static str {
    match status.map(|status| &status.state) {
        Some(state) if state.is_paused() => "paused",
        Some(state) if state.suspension().is_some() => "suspended",
        _ if !in_table => "removed",
        _ => "running",
    }
}

fn paused_by(status: &Status) -> Vec<&'static str> {
    let by_table = status.state.paused_by_table.then_some("table");
    let by_operator = status.state.paused_by_operator.map(|_| "operator");
    by_table.into_iter().chain(by_operator).collect()
}

fn shown_suspension(suspension: &Suspension) -> Value {
    json!({
        "since": suspension.since.to_string(),
        "outcome": suspension.reason.outcome.name(),
        "status": suspension.reason.status,
        "probes": suspension.probes,
        "next_probe_at": suspension.next_probe_at.to_string(),
    })
}

/// Keeps what an operator says of a target, and answers when that is durable and its lane has heard.
pub(super) async fn say<S: Store + MarkKeeper>(
    store: &S,
    table: &RoutingTable,
    board: &Board,
    name: &str,
    word: Word,
) -> Result<Value, Problem> {
    let known = table.targets.contains_key(name)
        || store.marks().borrow().contains_key(name)
        || store.lanes().iter().any(|lane| *lane.target == *name);
    if !known {
        let names: Vec<&str> = table.targets.keys().map(|name| &**name).collect();
        let detail = format!("no target {name:?}: there are {}", names.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let owned: Box<str> = name.into();
    let kept = store.mark(move |marks| {
        let mark = marks.entry(owned).or_default();
        let is_paused_already = mark.paused_at().is_some() && matches!(word, Word::Pause(_));
        if !is_paused_already {
            mark.word = Some(word);
        }
    });
    kept.await.map_err(|error| refused(&error))?;
    let done = |status: &Status| match word {
        Word::Pause(_) => status.state.paused_by_operator.is_some(),
        Word::Resume(_) => {
            status.state.paused_by_operator.is_none() && status.state.suspension().is_none()
        }
    };
    let heard = async {
        let mut changes = board.changes();
        loop {
            changes.borrow_and_update();
            let status = board.all().remove(name);
            if status.as_ref().is_none_or(done) {
                return status;
            }
            if changes.changed().await.is_err() {
                return status;
            }
        }
    };
    // A lane that is busy hears of it later: it is in force with the next thing that it does.
    let status = timeout(HEARD_WAIT_MAX, heard).await.unwrap_or_default();
    let mut answer = Map::new();
    answer.insert("name".to_owned(), name.into());
    let in_table = table.targets.contains_key(name);
    answer.insert("state".to_owned(), state(status.as_ref(), in_table).into());
    answer.insert("paused_by".to_owned(), status.as_ref().map(paused_by).into());
    Ok(Value::Object(answer))
}

fn refused(error: &MarkError) -> Problem {
    let detail = match error {
        MarkError::Closed => "the relay is stopping".to_owned(),
        MarkError::Unavailable(_) => format!("{error}; nothing has changed"),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::Cause;
    use crate::domain::route::Rules;

    #[test]
    fn a_target_that_is_gone_is_listed_as_long_as_something_waits_for_it() {
        let lane = LaneCounts {
            target: "gone".into(),
            pending: 2,
            oldest: Some(Timestamp::from_millis(1_700_000_000_000)),
            backlog_bytes: 5000,
            dead_letters_bytes: 700,
            dead: vec![(Cause::Expired, 3)],
        };
        let table = RoutingTable::new(Rules::default());
        assert_eq!(
            list(&table, &[lane], Some(1), &BTreeMap::new(), Timestamp::default())["items"],
            json!([{
                "name": "gone", "in_table": false, "state": "removed", "paused_by": null,
                "paused_at": null, "suspended": null, "held_until": null, "last_attempt": null,
                "pending": 2, "oldest_pending_at": "2023-11-14T22:13:20.000Z",
                "dead_letters": { "expired": 3 }, "backlog_bytes": 5000,
                "dead_letters_bytes": 700, "backlog_limit_bytes": null,
            }])
        );
    }
}
