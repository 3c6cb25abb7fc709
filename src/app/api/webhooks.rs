//! Webhooks and dead letters: what became of them, and what an operator decides.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::admin::api::Problem;
use crate::app::api::choice::Choice;
use crate::app::api::replay::{known_target, redirected};
use crate::app::api::wanted::{LIMIT_MAX, Wanted, cursor, known_as};
use crate::domain::delivery::{Cause, Settlement, State};
use crate::domain::outcome::Attempt;
use crate::domain::route::RoutingTable;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Header, Webhook, WebhookId};
use crate::store::archive::Archive;
use crate::store::listing::{Place, ReadError};
use crate::store::story::{DeliveryFilter, DeliveryStory, Filter, Order, Stories, Story, Whole};

/// Of one answer: then it says where to go on.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Webhooks of dead letters that go to another target: each is read.
const REDIRECTED_AT_ONCE: usize = 16;

/// A page of webhooks.
pub(super) async fn list<S: Archive>(
    store: &S,
    query: &str,
    now: Timestamp,
) -> Result<Value, Problem> {
    let wanted = Wanted::of_query(query)?;
    let (filter, order, limit) = (wanted.filter(now)?, wanted.order()?, wanted.limit()?);
    let found = collect(store, &filter, wanted.behind()?, order, limit).await?;
    let items: Vec<Value> = found.stories.iter().map(shown).collect();
    Ok(page(&items, found.next))
}

/// A page of dead letters. As many items as webhooks have, so that a page ends between two webhooks.
pub(super) async fn list_dead<S: Archive>(
    store: &S,
    query: &str,
    now: Timestamp,
) -> Result<Value, Problem> {
    let wanted = Wanted::of_query(query)?;
    let mut filter = wanted.filter(now)?;
    dead_only(&mut filter)?;
    let limit = wanted.limit()?;
    let mut found = collect(store, &filter, wanted.behind()?, wanted.order()?, limit).await?;
    let mut items = Vec::new();
    for (nth, story) in found.stories.iter().enumerate() {
        let dead: Vec<_> = dead(story, &filter.delivery).collect();
        if nth > 0 && items.len() + dead.len() > limit {
            found.next = found.stories.get(nth - 1).map(|last| Place::behind(last.id));
            break;
        }
        items.extend(dead.into_iter().map(|(delivery, cause)| shown_dead(story, delivery, cause)));
    }
    Ok(page(&items, found.next))
}

/// One webhook with everything that is known of it.
pub(super) async fn show<S: Archive>(store: &S, id: &str) -> Result<Value, Problem> {
    whole(store, id).await.map(|whole| shown_whole(&whole))
}

/// One webhook's exact bytes.
pub(super) async fn body<S: Archive>(store: &S, id: &str) -> Result<bytes::Bytes, Problem> {
    let whole = whole(store, id).await?;
    whole.record.map(|webhook| webhook.body).map_err(unread)
}

async fn whole<S: Archive>(store: &S, id: &str) -> Result<Whole, Problem> {
    let (id, again) = known_as(id)?;
    let found = store.whole(id).await.map_err(unread)?;
    let whole = found.ok_or_else(|| not_stored(id))?;
    has_repeat(&whole.story, again)?;
    Ok(whole)
}

/// Refuses the number of a repeat that there never was.
pub(super) fn has_repeat(story: &Story, again: u32) -> Result<(), Problem> {
    if again == 0 || story.deliveries.iter().any(|delivery| delivery.again == again) {
        return Ok(());
    }
    let (id, known_as) = (story.id, story.id.known_as(again));
    let detail = format!("webhook {id} is stored, but has no delivery that is known as {known_as}");
    Err(Problem::new(StatusCode::NOT_FOUND, detail))
}

/// How far a webhook has come, also where its record can't be read.
pub(super) async fn story<S: Archive>(store: &S, id: WebhookId) -> Result<Story, Problem> {
    let before = Some(Place::at_key(id.key().saturating_sub(1)));
    let found = store.stories(Filter::default(), before, Order::OldestFirst, 1).await;
    let first = found.map_err(unread)?.stories.pop();
    first.filter(|story| story.id == id).ok_or_else(|| not_stored(id))
}

pub(super) fn not_stored(id: WebhookId) -> Problem {
    let detail = format!(
        "no webhook {id} is stored: it never came, its retention is over, or it was erased"
    );
    Problem::new(StatusCode::NOT_FOUND, detail)
}

/// What is to be done with dead letters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    /// Redriven to this target instead.
    to: Option<String>,
    /// Only counts.
    #[serde(default)]
    dry_run: bool,
    /// Where the answer before said to go on.
    cursor: Option<String>,
}

/// Redrives or discards dead letters, for a second: then the answer says where to go on. Those that
/// are done are no dead letters any more, so that whoever begins anew does nothing twice.
pub(super) async fn decide<S: Archive>(
    store: &S,
    table: &RoutingTable,
    body: &[u8],
    settlement: Settlement,
    now: Timestamp,
) -> Result<Value, Problem> {
    let (mut choice, decision) = Choice::read::<Decision>(body, "dead letters", now)?;
    dead_only(&mut choice.filter)?;
    if let Some(to) = &decision.to {
        if settlement == Settlement::Discarded {
            let detail = "what is discarded goes to no target: leave \"to\" out";
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
        known_target(table, to)?;
    }
    let mut behind = cursor(decision.cursor.as_deref())?;
    let deadline = Instant::now() + TIME_MAX;
    let (mut found, mut settled, mut gone) = (0, 0, 0);
    let lot = if decision.to.is_some() { REDIRECTED_AT_ONCE } else { LIMIT_MAX };
    let next = loop {
        let mut some = choice.some(store, behind, lot).await?;
        for story in &some.stories {
            let count = dead(story, &choice.filter.delivery).count();
            found += count;
            gone += if story.bytes_gone { count } else { 0 };
        }
        if settlement != Settlement::Discarded {
            some.stories.retain(|story| !story.bytes_gone);
        }
        if !decision.dry_run {
            settled += match &decision.to {
                None => settle(store, &some.stories, &choice.filter.delivery, settlement).await?,
                Some(to) => redirect(store, &some.stories, &choice.filter.delivery, to).await?,
            };
        }
        match some.next {
            Some(next) if Instant::now() < deadline => behind = Some(next),
            next => break next,
        }
    };
    let answer = json!({ "found": found, settlement.name(): settled, "next": shown_place(next) });
    Ok(match settlement {
        Settlement::Discarded => answer,
        // There is nothing left to deliver.
        _ => with(answer, json!({ "gone": gone })),
    })
}

async fn settle<S: Archive>(
    store: &S,
    stories: &[Story],
    filter: &DeliveryFilter,
    settlement: Settlement,
) -> Result<usize, Problem> {
    let one = |story: &Story, delivery: &DeliveryStory| (story.id, delivery.number);
    let all = stories
        .iter()
        .flat_map(|story| dead(story, filter).map(move |(delivery, _)| one(story, delivery)));
    let all: Vec<_> = all.collect();
    if all.is_empty() {
        return Ok(0);
    }
    store.settle_dead(all, settlement).await.map_err(unread)
}

/// First the other target has it, then the dead letter ends. One that the other target has a delivery of
/// already stays.
async fn redirect<S: Archive>(
    store: &S,
    stories: &[Story],
    filter: &DeliveryFilter,
    to: &str,
) -> Result<usize, Problem> {
    let mut moved = Vec::new();
    for story in stories {
        for (delivery, _) in dead(story, filter) {
            let addition = redirected(store, story, delivery.number, to).await?;
            let added = store.add(addition.into_iter().collect()).await.map_err(unread)?;
            if added.iter().sum::<usize>() > 0 {
                moved.push((story.id, delivery.number));
            }
        }
    }
    if moved.is_empty() {
        return Ok(0);
    }
    store.settle_dead(moved, Settlement::Discarded).await.map_err(unread)
}

/// What a filter wants, until there is enough or it has taken its time.
async fn collect<S: Archive>(
    store: &S,
    filter: &Filter,
    mut behind: Option<Place>,
    order: Order,
    limit: usize,
) -> Result<Stories, Problem> {
    let deadline = Instant::now() + TIME_MAX;
    let mut all = Stories::default();
    loop {
        let left = limit - all.stories.len();
        let page = store.stories(filter.clone(), behind, order, left).await.map_err(unread)?;
        all.stories.extend(page.stories);
        match page.next {
            Some(next) if all.stories.len() < limit && Instant::now() < deadline => {
                behind = Some(next);
            }
            next => {
                all.next = next;
                return Ok(all);
            }
        }
    }
}

fn dead_only(filter: &mut Filter) -> Result<(), Problem> {
    let dead = State::NAMES.into_iter().find(|name| *name == "dead_letter");
    if filter.delivery.state.is_some_and(|state| Some(state) != dead) || filter.unrouted {
        let detail = "dead letters have the state dead_letter and are routed";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    filter.delivery.state = dead;
    Ok(())
}

fn dead<'a>(
    story: &'a Story,
    filter: &DeliveryFilter,
) -> impl Iterator<Item = (&'a DeliveryStory, Cause)> {
    let wanted = story.deliveries.iter().filter(|delivery| filter.wants(delivery));
    wanted.filter_map(|delivery| Some((delivery, delivery.state.cause()?)))
}

pub(super) fn unread(error: ReadError) -> Problem {
    let status = match error {
        ReadError::Closed | ReadError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ReadError::Gone => StatusCode::GONE,
        ReadError::Damaged => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let detail = match error {
        ReadError::Closed => "the relay is stopping".to_owned(),
        ReadError::Gone => error.to_string(),
        ReadError::Damaged => "its record is damaged: see the log and the runbook".to_owned(),
        ReadError::Unavailable => {
            "the disk does not answer; what was done before is in force: try again".to_owned()
        }
    };
    Problem::new(status, detail)
}

fn page(items: &[Value], next: Option<Place>) -> Value {
    json!({ "items": items, "next": shown_place(next) })
}

pub(super) fn shown_place(place: Option<Place>) -> Option<String> {
    place.map(|place| place.key().to_string())
}

fn shown(story: &Story) -> Value {
    json!({
        "webhook_id": story.id.to_string(),
        "received_at": story.received_at.to_string(),
        "source": &*story.source,
        "activity": story.activity.as_deref(),
        "resource_type": story.resource.object,
        "resource_id": story.resource.id,
        "body_bytes": story.body_bytes,
        "bytes_gone": story.bytes_gone,
        "deliveries": story.deliveries.iter().map(shown_delivery).collect::<Vec<_>>(),
    })
}

fn shown_delivery(delivery: &DeliveryStory) -> Value {
    let pending = delivery.state == State::Pending;
    json!({
        "target": &*delivery.target,
        "again": delivery.again,
        "state": delivery.state.name(),
        "cause": delivery.state.cause().map(Cause::name),
        "attempts": delivery.attempts,
        "due_at": pending.then(|| delivery.due_at.to_string()),
        "last_attempt": delivery.history.last().map(shown_attempt),
    })
}

fn shown_dead(story: &Story, delivery: &DeliveryStory, cause: Cause) -> Value {
    json!({
        "webhook_id": story.id.to_string(),
        "target": &*delivery.target,
        "again": delivery.again,
        "cause": cause.name(),
        "bytes_gone": story.bytes_gone,
        "received_at": story.received_at.to_string(),
        "source": &*story.source,
        "activity": story.activity.as_deref(),
        "resource_type": story.resource.object,
        "resource_id": story.resource.id,
        "attempts": delivery.attempts,
        "last_attempt": delivery.history.last().map(shown_attempt),
    })
}

/// An attempt; the excerpt is what the target said, as far as it is text.
pub(super) fn shown_attempt(attempt: &Attempt) -> Value {
    let excerpt = String::from_utf8_lossy(&attempt.excerpt);
    json!({
        "at": attempt.at.to_string(),
        "duration_ms": u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
        "outcome": attempt.outcome.name(),
        "status": attempt.status,
        "excerpt": (!excerpt.is_empty()).then_some(excerpt),
    })
}

fn shown_whole(whole: &Whole) -> Value {
    let Whole { story, record } = whole;
    let webhook = record.as_ref().ok();
    let deliveries = story.deliveries.iter().map(|delivery| {
        let number = usize::from(delivery.number);
        let routed = webhook.and_then(|webhook| webhook.deliveries.get(number));
        let routes = routed.iter().flat_map(|routed| &routed.routes).map(|route| &**route);
        let more = json!({
            "routes": routes.collect::<Vec<_>>(),
            "started_at": delivery.started_at.to_string(),
            "history": delivery.history.iter().map(shown_attempt).collect::<Vec<_>>(),
        });
        with(shown_delivery(delivery), more)
    });
    let more = json!({
        "deliveries": deliveries.collect::<Vec<_>>(),
        "record": record.as_ref().err().map(ToString::to_string),
    });
    let shown = with(shown(story), more);
    match webhook {
        Some(webhook) => with(shown, shown_record(webhook)),
        None => shown,
    }
}

/// What only the record says.
fn shown_record(webhook: &Webhook) -> Value {
    let table: String = webhook.table.iter().map(|byte| format!("{byte:02x}")).collect();
    let header = |(name, value): &Header| {
        (name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes())))
    };
    json!({
        "record": "whole",
        "path": webhook.path,
        "peer": webhook.peer,
        "secret": webhook.secret,
        "routes_sha256": format!("{table}…"),
        "headers": webhook.headers.iter().map(header).collect::<Map<_, _>>(),
    })
}

/// An object with more members; they take the place of those of the same name.
pub(super) fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}
