//! What another table would do with the webhooks that are stored: asked page by page, so that no
//! answer takes long or grows with what is stored.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::{self, Environment, Problems, Secrets};
use crate::domain::comparison::{Comparison, Counts, Example};
use crate::domain::route::{RoutingTable, Subject};
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::Store;
use crate::store::listing::{Place, ReadError, Summary};

/// Of one answer: then it says where to go on.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Webhooks read at once; between two lots others have their turn.
const LOT: usize = 1000;

/// Examples of one answer.
const EXAMPLES_MAX: usize = 1000;

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The candidate's text.
    routes: String,
    /// How far back, such as `24h`; everything that is stored without.
    since: Option<String>,
    /// Where an answer before said to go on.
    cursor: Option<String>,
    /// How many examples at most.
    #[serde(default = "default_examples")]
    examples: usize,
}

const fn default_examples() -> usize {
    10
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The candidate can't be used.
    #[error("the candidate can't be used")]
    Candidate(Problems),
    /// Not one of ours.
    #[error("this is no cursor of ours")]
    Cursor,
    /// Not a duration.
    #[error("since: {0}")]
    Since(String),
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] ReadError),
}

/// A candidate's secrets are nobody's business here: none is looked up.
struct NoEnvironment;

impl Environment for NoEnvironment {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

/// Routes what is stored, from where `asked` says, through the table in force and through the
/// candidate; nothing is changed. The activity of a webhook is the one it was accepted with.
pub(super) async fn diff<S: Store>(
    store: &S,
    now: &RoutingTable,
    asked: &Asked,
    at: Timestamp,
) -> Result<Value, Refused> {
    let candidate = Path::new("the candidate");
    let bytes = asked.routes.as_bytes();
    let loaded = config::load_bytes(bytes, candidate, &NoEnvironment, Secrets::Ignore);
    let then = loaded.map_err(Refused::Candidate)?.table;
    let mut place = begin(asked, at)?;
    let mut comparison = Comparison::new(now, &then);
    let examples_max = asked.examples.min(EXAMPLES_MAX);
    let deadline = Instant::now() + TIME_MAX;
    let mut left_out = 0;
    let next = loop {
        let page = store.page(place, LOT).await?;
        left_out += page.left_out;
        for webhook in &page.webhooks {
            let Some(body) = body(store, webhook, now, &then).await? else {
                left_out += 1;
                continue;
            };
            let subject = Subject { body: &body, ..subject(webhook) };
            comparison.take(&subject, now, &then, examples_max);
        }
        match page.next {
            Some(next) if Instant::now() < deadline => place = next,
            next => break next,
        }
        tokio::task::yield_now().await;
    };
    Ok(answer(&comparison, left_out, next))
}

fn begin(asked: &Asked, at: Timestamp) -> Result<Place, Refused> {
    if let Some(cursor) = &asked.cursor {
        let key = cursor.parse().map_err(|_| Refused::Cursor)?;
        return Ok(Place::behind(WebhookId::from_key(key)));
    }
    let Some(since) = &asked.since else { return Ok(Place::START) };
    let since = config::duration(since).map_err(Refused::Since)?;
    Ok(Place::since(at.minus(since)))
}

/// The body, if a rule can ask for it; none if it is no longer there to be read.
async fn body<S: Store>(
    store: &S,
    webhook: &Summary,
    now: &RoutingTable,
    then: &RoutingTable,
) -> Result<Option<Bytes>, ReadError> {
    let subject = subject(webhook);
    if !now.asks_for_body(&subject) && !then.asks_for_body(&subject) {
        return Ok(Some(Bytes::new()));
    }
    match store.body(webhook).await {
        // One damaged record is no reason not to tell about all others.
        Err(ReadError::Damaged) => Ok(None),
        other => other,
    }
}

fn subject(webhook: &Summary) -> Subject<'_> {
    Subject {
        webhook_id: webhook.id,
        received_at: webhook.received_at,
        source: &webhook.source,
        activity: webhook.activity.as_deref(),
        resource: &webhook.resource,
        body: b"",
    }
}

fn answer(comparison: &Comparison, left_out: u64, next: Option<Place>) -> Value {
    let all = |counts: &BTreeMap<Box<str>, Counts>| -> Value {
        counts.iter().map(|(name, counts)| (name.to_string(), shown(*counts))).collect()
    };
    let example = |example: &Example| {
        json!({
            "webhook_id": example.webhook_id.to_string(),
            "activity": example.activity,
            "now": example.now,
            "then": example.then,
        })
    };
    json!({
        "examined": comparison.examined,
        "changed": comparison.changed,
        "left_out": left_out,
        "unrouted": shown(comparison.unrouted),
        "routes": all(&comparison.routes),
        "targets": all(&comparison.targets),
        "examples": comparison.examples.iter().map(example).collect::<Vec<_>>(),
        "next": next.map(|place| place.key().to_string()),
    })
}

fn shown(counts: Counts) -> Value {
    let Counts { now, then, gained, lost } = counts;
    json!({ "now": now, "then": then, "gained": gained, "lost": lost })
}
