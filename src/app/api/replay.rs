//! Routing stored webhooks again.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::admin::api::Problem;
use crate::app::api::choice::Choice;
use crate::app::api::wanted::cursor;
use crate::app::api::webhooks::{shown_place, unread};
use crate::domain::route::{RoutingTable, Subject};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{NewDelivery, Webhook};
use crate::store::archive::{Addition, Archive};
use crate::store::story::Story;

/// Of one answer: then it says where to go on.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Webhooks read at once: their bodies are in memory.
const LOT: usize = 16;

/// How they are routed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// To the targets that they have had, with those headers, rather than by today's rules.
    #[serde(default)]
    as_accepted: bool,
    /// Also to targets that have a delivery of it already.
    #[serde(default)]
    again: bool,
    /// Only counts.
    #[serde(default)]
    dry_run: bool,
    /// Where the answer before said to go on.
    cursor: Option<String>,
}

/// What came of it.
#[derive(Debug, Default)]
struct Sum {
    found: usize,
    replayed: usize,
    deliveries: usize,
    unreadable: usize,
}

/// Routes webhooks again, for a second: then the answer says where to go on. Unless it is to be again,
/// a target that has a webhook's delivery is passed over, so that whoever begins anew sends nothing
/// twice.
pub(super) async fn replay<S: Archive>(
    store: &S,
    table: &RoutingTable,
    body: &[u8],
    now: Timestamp,
) -> Result<Value, Problem> {
    let (choice, how) = Choice::read::<How>(body, "webhooks", now)?;
    let mut behind = cursor(how.cursor.as_deref())?;
    let deadline = Instant::now() + TIME_MAX;
    let mut sum = Sum::default();
    let next = loop {
        let some = choice.some(store, behind, LOT).await?;
        for stories in some.stories.chunks(LOT) {
            lot(store, table, stories, &how, &mut sum).await?;
        }
        match some.next {
            Some(next) if Instant::now() < deadline => behind = Some(next),
            next => break next,
        }
    };
    let Sum { found, replayed, deliveries, unreadable } = sum;
    Ok(json!({
        "found": found, "replayed": replayed, "deliveries": deliveries, "unreadable": unreadable,
        "next": shown_place(next),
    }))
}

async fn lot<S: Archive>(
    store: &S,
    table: &RoutingTable,
    stories: &[Story],
    how: &How,
    sum: &mut Sum,
) -> Result<(), Problem> {
    let mut additions = Vec::with_capacity(stories.len());
    sum.found += stories.len();
    for story in stories {
        let Some(whole) = store.whole(story.id).await.map_err(unread)? else { continue };
        let Ok(webhook) = whole.record else {
            sum.unreadable += 1;
            continue;
        };
        let mut deliveries = routed(table, &webhook, how);
        if !how.again {
            let has = |target: &str| whole.story.deliveries.iter().any(|d| *d.target == *target);
            deliveries.retain(|delivery| !has(&delivery.target));
        }
        if !deliveries.is_empty() {
            additions.push(Addition { id: story.id, deliveries, again: how.again });
        }
    }
    let counts = if how.dry_run {
        additions.iter().map(|addition| addition.deliveries.len()).collect()
    } else {
        store.add(additions).await.map_err(unread)?
    };
    sum.replayed += counts.iter().filter(|count| **count > 0).count();
    sum.deliveries += counts.iter().sum::<usize>();
    Ok(())
}

fn routed(table: &RoutingTable, webhook: &Webhook, how: &How) -> Vec<NewDelivery> {
    if how.as_accepted {
        // The first one to each target: the others are repeats.
        let mut first: Vec<NewDelivery> = Vec::with_capacity(webhook.deliveries.len());
        for delivery in &webhook.deliveries {
            if first.iter().all(|known| known.target != delivery.target) {
                first.push(delivery.clone());
            }
        }
        return first;
    }
    let subject = Subject {
        webhook_id: webhook.id,
        received_at: webhook.received_at,
        source: &webhook.source,
        activity: webhook.activity.as_deref(),
        resource: &webhook.resource,
        body: &webhook.body,
    };
    table.route(&subject).deliveries
}

/// A dead letter's delivery, to another target.
pub(super) async fn redirected<S: Archive>(
    store: &S,
    story: &Story,
    number: u16,
    to: &str,
) -> Result<Option<Addition>, Problem> {
    let Some(whole) = store.whole(story.id).await.map_err(unread)? else { return Ok(None) };
    let webhook = whole.record.map_err(unread)?;
    let Some(delivery) = webhook.deliveries.into_iter().nth(usize::from(number)) else {
        return Ok(None);
    };
    let deliveries = vec![NewDelivery { target: to.into(), ..delivery }];
    Ok(Some(Addition { id: story.id, deliveries, again: false }))
}

/// Refuses a target that the table does not have.
pub(super) fn known_target(table: &RoutingTable, to: &str) -> Result<(), Problem> {
    if table.targets.contains_key(to) {
        return Ok(());
    }
    let names: Vec<&str> = table.targets.keys().map(|name| &**name).collect();
    let detail = format!("no target {to:?} in the table: there are {}", names.join(", "));
    Err(Problem::new(StatusCode::BAD_REQUEST, detail))
}
