//! Taking in a webhook: the steps in the order in which trust is gained.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::domain::activity;
use crate::domain::answer::Answer;
use crate::domain::limit::{ANSWER_WAIT_MAX, HEADER_LINES_MAX};
use crate::domain::proof::Proven;
use crate::domain::route::{Routed, Subject, Unrouted};
use crate::domain::source::{CertificateError, Source};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, NewDelivery, Resource, Webhook, WebhookId};
use crate::ingress::Ingress;
use crate::ingress::answer::{Outcome, Refusal, Taken, Told};
use crate::ingress::budget::Place;
use crate::ingress::client::Client;
use crate::ingress::headers;
use crate::ingress::journal::Exchange;
use crate::ingress::sources::{Snapshot, SourceState};
use crate::ingress::spans::Traced;
use crate::net::body::{self, BodyError};
use crate::store::Store;
use crate::store::claims::Claim;

/// Into what a body's error can be turned.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl<S: Store> Ingress<S> {
    /// Takes in one webhook. Each step may refuse; nothing is remembered before the commit.
    ///
    /// An error is a refusal from before the request was verified; from there on all is decided,
    /// recorded and told by a task that no sender can cancel.
    pub(super) async fn receive<B>(
        self: &Arc<Self>,
        head: Parts,
        body: &mut B,
        exchange: &mut Exchange,
        client: Client<'_>,
    ) -> Result<Told, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
    {
        let snapshot = self.snapshot();
        let (state, named) = self.look_at(&head, &snapshot, exchange, client)?;
        let mut place = self.enter(body, &state.source, &head.headers, client)?;
        let bytes = self.read(body, &state, &head, &mut place, exchange).await?;
        let now = self.clock.now();
        let proven = state.verify(&head.headers, &bytes, self.clock.wall())?;
        place.verified(bytes.len());
        self.strangers.verified(client.counted);

        // Nothing was awaited since the last byte came, and from here on a sender that hangs up
        // cancels nothing.
        let (ingress, shown) = (Arc::clone(self), client.shown);
        let work = async move {
            let _place = place;
            let source = &state.source;
            state.turn().await?;
            let path = head.uri.path();
            let key = DuplicateKey::new(&source.name, path, &proven.digest);
            let claimed = match ingress.store.claim(key, source.duplicates).await {
                Claim::Duplicate(first) => return Ok(Taken::duplicate(first)),
                Claim::First(claimed) => claimed,
            };
            let facts = activity::read(&bytes);
            let resource = Resource { object: facts.resource_type, id: facts.resource_id };
            // What is signed goes first.
            let activity = facts.activity.or(named).or_else(|| source.activity.clone());
            let id = ingress.ids.next(now, fastrand::u64(..));
            let Routed { deliveries, left_out } = snapshot.table.route(&Subject {
                webhook_id: id,
                received_at: now,
                source: &source.name,
                activity: activity.as_deref(),
                resource: &resource,
                body: &bytes,
            });
            let unrouted = deliveries.is_empty();
            if unrouted && snapshot.table.unrouted == Unrouted::Drop {
                state.metrics.unrouted();
                return Ok(Taken::dropped(activity));
            }
            let webhook = Webhook {
                id,
                received_at: now,
                source: Arc::clone(&source.name),
                path: path.into(),
                peer: shown.map(|address| address.to_string().into()),
                secret: secret_label(source, proven),
                table: first_eight(&snapshot.table.sha256),
                activity,
                activity_id: facts.activity_id,
                resource,
                duplicate_key: key,
                headers: headers::kept(&head.headers, &source.verify),
                body: bytes,
                deliveries,
            };
            let taken = Taken::accepted(&webhook);
            let recorded = ingress.traces.recorded(id);
            let traced = recorded.map(|context| Traced::commits(context, &head.headers));
            // The connection's read buffer need not stay for as long as the disk takes.
            drop(head);
            ingress.store.commit(webhook, claimed).await?;
            let taken = Taken { traced: traced.map(Traced::committed), ..taken };
            state.count_accepted(&taken, unrouted, ingress.clock.wall());
            left_out.iter().for_each(|target| ingress.metrics.headers_left_out(target, 1));
            Ok(taken)
        };
        Ok(self.detached(exchange.clone(), work).await)
    }

    /// What a request's head tells: whose it is, and whether it may go on.
    fn look_at(
        &self,
        head: &Parts,
        snapshot: &Snapshot,
        exchange: &mut Exchange,
        client: Client<'_>,
    ) -> Result<(Arc<SourceState>, Option<Box<str>>), Refusal> {
        let found = find_source(snapshot, head, exchange);
        let is_signed = || snapshot.is_signed(&head.headers);
        if let Some(wait) = self.strangers.over(client.counted, is_signed) {
            let reason = "too much from its address that is not verified";
            return Err(Refusal::because(Answer::RateLimited, reason).after(wait));
        }
        if head.headers.len() > HEADER_LINES_MAX {
            return Err(Answer::HeadersTooLarge.into());
        }
        let (state, named) = found?;
        only_post(&head.method)?;
        only_from(client, &state.source, &head.headers).inspect_err(|_| {
            if client.forwards {
                self.journal.unbelieved(exchange);
            }
        })?;
        only_certified(client, &state.source, &head.headers, self.clock.wall())?;
        Ok((state, named))
    }

    /// A place in the budget, before a byte of the body is asked for.
    fn enter<B: Body>(
        &self,
        body: &B,
        source: &Source,
        headers: &HeaderMap,
        client: Client<'_>,
    ) -> Result<Place, Refusal> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > source.body_bytes_max {
            return Err(too_large(source, headers));
        }
        if self.shutting_down.is_cancelled() {
            return Err(Answer::ShuttingDown.into());
        }
        self.budget.enter(client.counted).ok_or_else(|| Answer::Overloaded.into())
    }

    /// Reads the body, bounded in bytes and time, until the request has to give way.
    async fn read<B>(
        &self,
        body: &mut B,
        state: &SourceState,
        head: &Parts,
        place: &mut Place,
        exchange: &mut Exchange,
    ) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
    {
        exchange.body_wanted = true;
        let source = &state.source;
        let deadline = Instant::now() + self.limits.body_timeout;
        let ended = place.ended();
        let read = tokio::select! {
            // A body that is complete counts, whoever wants its place.
            biased;
            read = body::read(body, head.version, source.body_bytes_max, deadline, place) => read,
            _ = ended => Err(BodyError::GaveWay),
            () = self.shutting_down.cancelled() => return Err(Answer::ShuttingDown.into()),
        };
        match read {
            Ok(bytes) => {
                exchange.bytes = bytes.len();
                Ok(bytes)
            }
            Err(BodyError::TooLarge { .. }) => Err(too_large(source, &head.headers)),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs the work on one webhook to its end on a task of its own, and waits for the answer: its
    /// outcome, or that it took too long.
    async fn detached(
        self: &Arc<Self>,
        exchange: Exchange,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> Told {
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        let (tell, told) = oneshot::channel();
        let ingress = Arc::clone(self);
        drop(self.tracker.spawn(async move {
            let mut work = pin!(work);
            let in_time = timeout_at(deadline, &mut work).await;
            let late = in_time.is_err();
            let outcome = in_time.unwrap_or_else(|_| Err(took_too_long()));
            // The sender may be gone; then nobody wants to know.
            let _nobody = tell.send(Told::from(&outcome));
            ingress.journal.answered(&exchange, &outcome);
            if late {
                let outcome = work.await;
                ingress.journal.ended_late(&exchange, &outcome);
            }
        }));
        told.await.unwrap_or_else(|_| {
            tracing::error!("the work on a webhook ended without an answer");
            Told::from(&Refusal::from(Answer::StoreUnavailable))
        })
    }
}

impl Taken {
    fn accepted(webhook: &Webhook) -> Self {
        Self {
            answer: Answer::Accepted,
            webhook_id: Some(webhook.id),
            activity: webhook.activity.clone(),
            deliveries: join_targets(&webhook.deliveries),
            traced: None,
        }
    }

    fn dropped(activity: Option<Box<str>>) -> Self {
        let deliveries = String::new();
        Self { answer: Answer::Dropped, webhook_id: None, activity, deliveries, traced: None }
    }

    fn duplicate(first: WebhookId) -> Self {
        Self {
            answer: Answer::Duplicate,
            webhook_id: Some(first),
            activity: None,
            deliveries: String::new(),
            traced: None,
        }
    }
}

impl SourceState {
    /// `at` is what the wall clock showed: alerts compare with their own.
    fn count_accepted(&self, taken: &Taken, unrouted: bool, at: Timestamp) {
        self.last_at.fetch_max(at.as_millis(), Ordering::Relaxed);
        self.metrics.accepted(taken.activity.as_deref(), at);
        if unrouted {
            self.metrics.unrouted();
        }
    }
}

/// The source on this path, whatever the method, and the activity that the path names.
fn find_source(
    snapshot: &Snapshot,
    head: &Parts,
    exchange: &mut Exchange,
) -> Result<(Arc<SourceState>, Option<Box<str>>), Refusal> {
    if let Some((state, named)) = snapshot.source(head.uri.path()) {
        exchange.source = Some(Arc::clone(state));
        return Ok((Arc::clone(state), named));
    }
    exchange.lost_way(head.uri.path());
    let alarm = snapshot.is_signed(&head.headers).then_some(
        "a signed request came to a path that no source has: if this is the sender, its webhooks \
         are being lost",
    );
    Err(Refusal { alarm, ..Answer::NotFound.into() })
}

fn only_post(method: &Method) -> Result<(), Refusal> {
    if method == Method::POST { Ok(()) } else { Err(Answer::MethodNotAllowed.into()) }
}

fn only_from(client: Client<'_>, source: &Source, headers: &HeaderMap) -> Result<(), Refusal> {
    if source.is_open_to(client.address) {
        return Ok(());
    }
    let reason = match client.address {
        Some(_) => "not in the source's allow_from",
        None => "its address is not known: no trusted proxy says it",
    };
    let alarm = source.is_signed(headers).then_some(
        "a signed request came from where the source's allow_from lets nobody in: if this is the \
         sender, its webhooks are being lost",
    );
    Err(Refusal { alarm, ..Refusal::because(Answer::Forbidden, reason) })
}

fn only_certified(
    client: Client<'_>,
    source: &Source,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Err(error) = source.takes(client.certificate, now) else { return Ok(()) };
    let (answer, reason) = match error {
        CertificateError::Missing => (Answer::Forbidden, "it showed no certificate"),
        CertificateError::Unwanted => {
            (Answer::Forbidden, "its certificate is not in the source's client_certificate")
        }
        // What it proved is not proved any more.
        CertificateError::Expired => {
            (Answer::Unauthorized, "its certificate expired since it connected")
        }
    };
    let alarm = source.is_signed(headers).then_some(
        "a signed request came without a certificate that the source takes: if this is the sender, its \
         webhooks are being lost",
    );
    let outlived = error == CertificateError::Expired;
    Err(Refusal { alarm, outlived, ..Refusal::because(answer, reason) })
}

fn too_large(source: &Source, headers: &HeaderMap) -> Refusal {
    let alarm = source.is_signed(headers).then_some(
        "a signed request was larger than the source's body_limit: if this is the sender, its \
         webhooks are being lost",
    );
    Refusal { alarm, ..Answer::TooLarge.into() }
}

fn took_too_long() -> Refusal {
    Refusal::because(Answer::StoreUnavailable, "it took too long; it goes on")
}

fn secret_label(source: &Source, proven: Proven) -> Box<str> {
    let secret = proven.secret.and_then(|index| source.verify.secrets().get(index));
    secret.map_or("none", |secret| secret.label()).into()
}

fn first_eight(sha256: &[u8; 32]) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *sha256;
    [a, b, c, d, e, f, g, h]
}

fn join_targets(deliveries: &[NewDelivery]) -> String {
    let mut names = String::with_capacity(deliveries.iter().map(|d| d.target.len() + 1).sum());
    for delivery in deliveries {
        if !names.is_empty() {
            names.push(',');
        }
        names.push_str(&delivery.target);
    }
    names
}
