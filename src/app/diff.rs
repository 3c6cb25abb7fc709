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
use crate::store::archive::Archive;
use crate::store::listing::{Place, ReadError, Summary};

/// Of one answer: then it says where to go on.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Webhooks read at once; between two lots others have their turn. So few that a lot of the largest
/// ones from a slow disk still leaves time for the answer before its connection is closed.
const LOT: usize = 64;

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
pub(super) async fn diff<S: Archive>(
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
async fn body<S: Archive>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::time::sleep;

    use crate::domain::delivery::Settlement;
    use crate::domain::webhook::Resource;
    use crate::store::archive::{Addition, EraseError, Erased};
    use crate::store::listing::Page;
    use crate::store::story::{Filter, Order, Stories, Whole};

    /// Webhooks without end, on a disk that takes its time for each.
    struct Slow;

    const READ: Duration = Duration::from_millis(10);

    impl Archive for Slow {
        async fn page(&self, after: Place, max: usize) -> Result<Page, ReadError> {
            sleep(READ * u32::try_from(max).unwrap()).await;
            let ids = (after.key() + 1..).take(max).map(WebhookId::from_key);
            let webhooks: Vec<_> = ids.map(summary).collect();
            let next = webhooks.last().map(|webhook| Place::behind(webhook.id));
            Ok(Page { webhooks, next, left_out: 0 })
        }

        async fn body(&self, _: &Summary) -> Result<Option<Bytes>, ReadError> {
            sleep(READ).await;
            Ok(Some(Bytes::from_static(b"{}")))
        }

        async fn stories(
            &self,
            _: Filter,
            _: Option<Place>,
            _: Order,
            _: usize,
        ) -> Result<Stories, ReadError> {
            Err(ReadError::Closed)
        }

        async fn whole(&self, _: WebhookId) -> Result<Option<Whole>, ReadError> {
            Err(ReadError::Closed)
        }

        async fn add(&self, _: Vec<Addition>) -> Result<Vec<usize>, ReadError> {
            Err(ReadError::Closed)
        }

        async fn settle_dead(
            &self,
            _: Vec<(WebhookId, u16)>,
            _: Settlement,
        ) -> Result<usize, ReadError> {
            Err(ReadError::Closed)
        }

        async fn erase(&self, _: WebhookId) -> Result<Option<Erased>, EraseError> {
            Err(ReadError::Closed.into())
        }
    }

    fn summary(id: WebhookId) -> Summary {
        Summary {
            id,
            received_at: id.timestamp(),
            source: Arc::from("aryeo"),
            path: "/".into(),
            activity: None,
            resource: Resource::default(),
            table: [0; 8],
            body_bytes: 2,
            deliveries: Vec::new(),
            kept_at: [0; 3],
        }
    }

    const CANDIDATE: &str = "
sources: { aryeo: { path: /a, verify: { scheme: aryeo, secrets: [{ env: A }] } } }
targets: { crm: { url: http://crm.test/, sign: { scheme: none } } }
routes: [{ name: all, when: { /id: 1 }, to: [crm] }]
";

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_there_before_its_connection_ends_however_slow_the_disk() {
        let routes = CANDIDATE.to_owned();
        let asked = Asked { routes, since: None, cursor: None, examples: 0 };
        let table = config::load_bytes(
            CANDIDATE.as_bytes(),
            Path::new("routes.yaml"),
            &NoEnvironment,
            Secrets::Ignore,
        );
        let began = Instant::now();
        let now = Timestamp::from_millis(1);
        let answer = diff(&Slow, &table.unwrap().table, &asked, now).await.unwrap();
        // Paused time: what the disk takes, and nothing else.
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert!(answer["next"].is_string() && answer["examined"].as_u64() >= Some(64), "{answer}");
    }
}
