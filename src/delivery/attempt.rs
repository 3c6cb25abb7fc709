//! One attempt: request, exchange, outcome, settlement.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderValue, Method, Request};
use http_body_util::Full;
use tokio::time::Instant;

use super::Random;
use super::client::{Outgoing, SendRequest};
use super::journal::{self, Journal};
use super::spans::Told;
use crate::domain::delivery::{Progress, Settlement, settle};
use crate::domain::limit::ANSWER_EXCERPT_BYTES_MAX;
use crate::domain::outcome::{Attempt, Outcome, holds_lane, retry_after};
use crate::domain::redaction;
use crate::domain::request::{self, Content};
use crate::domain::target::Target;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::trace::TraceContext;
use crate::domain::webhook::WebhookId;
use crate::net::client::{Answer, SendFailure};
use crate::store::{Delivery, Lease, Store};
use crate::telemetry::target::TargetMetrics;
use crate::telemetry::traces::Traces;

/// After a panic a delivery waits so long: it neither spins nor keeps the others from their turn.
const PANIC_WAIT: Duration = Duration::from_secs(60);

/// What all attempts of a lane share.
pub(super) struct Tools<S> {
    /// Where deliveries are settled.
    pub(super) store: Arc<S>,
    /// The time.
    pub(super) clock: Arc<dyn Clock>,
    /// For the jitter of retries.
    pub(super) random: Random,
    /// The target's.
    pub(super) metrics: TargetMetrics,
    /// Where attempts are told.
    pub(super) journal: Journal,
    /// Where they are traced.
    pub(super) traces: Traces,
}

/// An attempt that ended, as its lane has to know of it.
pub(super) struct Ended {
    /// Whose it was.
    pub(super) webhook: WebhookId,
    /// What it came to; nothing if it broke.
    pub(super) attempt: Option<Attempt>,
    /// Until when the lane is to hold still, if the target asked for it.
    pub(super) hold: Option<Timestamp>,
    /// It was to show whether the target is back.
    pub(super) probe: bool,
}

/// Makes one attempt and settles its delivery. Cut off, the lease lapses.
pub(super) async fn run<S: Store, C: SendRequest>(
    tools: &Tools<S>,
    client: &C,
    target: &Target,
    lease: Lease,
    probe: bool,
) -> Ended {
    let began = Began::now(tools);
    // Of the request that brought the webhook, and of this attempt.
    let parent = tools.traces.of_webhook(lease.delivery.webhook.id);
    let context = parent.map(|parent| parent.with_span((tools.random)()));
    let exchanged = {
        let what = Exchanged { target, delivery: &lease.delivery, trace: context };
        let mut exchange = pin!(exchange(tools, client, what, began.instant));
        // One delivery that makes us panic must not stand in the way of the others for ever.
        poll_fn(|context| {
            match catch_unwind(AssertUnwindSafe(|| exchange.as_mut().poll(context))) {
                Ok(polled) => polled.map(Some),
                Err(_) => Poll::Ready(None),
            }
        })
        .await
    };
    let now = tools.clock.now();
    let webhook = lease.delivery.webhook.id;
    let Some(result) = exchanged else {
        tracing::error!(
            webhook_id = %journal::id(&lease.delivery),
            target_name = &*target.name,
            "an attempt panicked; its delivery is tried again later"
        );
        tools.store.settle(lease, None, Settlement::Retry { at: now.plus(PANIC_WAIT) });
        return Ended { webhook, attempt: None, hold: None, probe };
    };
    let came_to = CameTo::of(result, target, now, tools.clock.wall());
    let attempts = lease.delivery.attempts.saturating_add(1);
    let started_at = lease.delivery.started_at;
    let age = tools.clock.certain().map_or(Duration::ZERO, |certain| certain.since(started_at));
    let progress = Progress { attempts, age };
    let settlement =
        settle(came_to.outcome, progress, &target.retry, came_to.not_before, now, (tools.random)());
    let attempt = Attempt {
        at: began.at,
        duration: began.instant.elapsed(),
        outcome: came_to.outcome,
        status: came_to.status,
        excerpt: came_to.excerpt,
    };
    tools.metrics.attempted(attempt.outcome, attempt.duration);
    tools.metrics.settled(settlement, now.since(lease.delivery.webhook.received_at));
    tools.journal.attempted(&lease.delivery, &attempt, attempts, settlement);
    if let Some(((parent, context), times)) = parent.zip(context).zip(tools.traces.times())
        && context.sampled
    {
        let told = Told {
            context,
            parent,
            began: began.instant,
            target,
            delivery: &lease.delivery,
            number: attempts,
            attempt: &attempt,
            settlement,
        };
        tools.traces.record([told.span(&times)]);
    }
    tools.store.settle(lease, Some(attempt.clone()), settlement);
    Ended { webhook, attempt: Some(attempt), hold: came_to.hold, probe }
}

/// An attempt in flight, counted until it is dropped, however it ends.
struct Began<'a> {
    at: Timestamp,
    instant: Instant,
    metrics: &'a TargetMetrics,
}

impl<'a> Began<'a> {
    fn now<S>(tools: &'a Tools<S>) -> Self {
        tools.metrics.attempt_began();
        Self { at: tools.clock.now(), instant: Instant::now(), metrics: &tools.metrics }
    }
}

impl Drop for Began<'_> {
    fn drop(&mut self) {
        self.metrics.attempt_over();
    }
}

/// What an exchange is about.
#[derive(Clone, Copy)]
struct Exchanged<'a> {
    target: &'a Target,
    delivery: &'a Delivery,
    trace: Option<TraceContext>,
}

async fn exchange<S, C: SendRequest>(
    tools: &Tools<S>,
    client: &C,
    what: Exchanged<'_>,
    began: Instant,
) -> Result<Answer, SendFailure> {
    let target = what.target;
    let request = build(tools, what);
    let values = request.headers().values();
    let sent: Vec<HeaderValue> = values.filter(|value| value.is_sensitive()).cloned().collect();
    let answer = client.send(request, began + target.timeout).await?;
    // The beginning of an answer is kept, and a page about an error may show the request.
    let confidences = target.confidences(&sent);
    let excerpt = redaction::without(&answer.excerpt, &confidences, ANSWER_EXCERPT_BYTES_MAX);
    Ok(Answer { excerpt: short(&excerpt), ..answer })
}

/// The request of the delivery's next attempt; its signature is compared with the target's clock.
fn build<S>(tools: &Tools<S>, what: Exchanged<'_>) -> Outgoing {
    let Exchanged { target, delivery, trace } = what;
    let webhook = &delivery.webhook;
    let content = Content {
        webhook_id: webhook.id,
        again: delivery.again,
        source: &webhook.source,
        activity: webhook.activity.as_deref(),
        resource: &webhook.resource,
        received_at: webhook.received_at,
        inbound: &webhook.headers,
        route_headers: &delivery.headers,
        body: &webhook.body,
        attempt: delivery.attempts.saturating_add(1),
        trace,
    };
    let mut request = Request::new(Full::new(webhook.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.url.clone();
    let built = request::headers(target, &content, tools.clock.wall());
    *request.headers_mut() = built.headers;
    tools.metrics.headers_left_out(built.left_out);
    // Said even of an empty body: some servers answer 411 without it.
    request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(webhook.body.len()));
    request
}

/// What an exchange came to.
struct CameTo {
    outcome: Outcome,
    status: Option<u16>,
    excerpt: Bytes,
    not_before: Option<Timestamp>,
    hold: Option<Timestamp>,
}

impl CameTo {
    fn of(
        result: Result<Answer, SendFailure>,
        target: &Target,
        now: Timestamp,
        wall: Timestamp,
    ) -> Self {
        let answer = match result {
            Ok(answer) => answer,
            Err(failure) => return Self::failed(&failure),
        };
        let status = answer.status.as_u16();
        let outcome = Outcome::of_status(status, &target.retry.give_up_on);
        if outcome == Outcome::Delivered {
            let excerpt = Bytes::new();
            return Self { outcome, status: Some(status), excerpt, not_before: None, hold: None };
        }
        let asked = answer.headers.get(RETRY_AFTER).map(HeaderValue::as_bytes);
        // A date is by the target's clock, the store's times are by ours.
        let not_before =
            retry_after(asked, wall, target.retry.max).map(|at| now.plus(at.since(wall)));
        Self {
            outcome,
            status: Some(status),
            excerpt: answer.excerpt,
            not_before,
            hold: not_before.filter(|_| holds_lane(status)),
        }
    }

    fn failed(failure: &SendFailure) -> Self {
        let outcome = match failure {
            SendFailure::Refused(_) => Outcome::Refused,
            SendFailure::Timeout => Outcome::Timeout,
            SendFailure::Tls(_) => Outcome::Tls,
            SendFailure::Reset(_) => Outcome::Reset,
            SendFailure::AnswerTooLarge => Outcome::AnswerTooLarge,
        };
        let excerpt = short(failure.to_string().as_bytes());
        Self { outcome, status: None, excerpt, not_before: None, hold: None }
    }
}

// Copied, so that what is kept does not keep a larger buffer alive.
fn short(text: &[u8]) -> Bytes {
    Bytes::copy_from_slice(text.get(..ANSWER_EXCERPT_BYTES_MAX).unwrap_or(text))
}
