//! What a webhook's trace tells of the request that brought it.

use http::HeaderMap;
use tokio::time::Instant;

use crate::domain::answer::Answer;
use crate::domain::trace::TraceContext;
use crate::ingress::answer::Taken;
use crate::ingress::journal::Exchange;
use crate::telemetry::traces::{Kind, Span, Times, Traces};

/// What has to be remembered of a webhook whose trace is recorded, until it is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traced {
    context: TraceContext,
    /// The sender's own. It is not believed: nothing but a link comes of it.
    link: Option<TraceContext>,
    commit_began: Instant,
    commit_ended: Instant,
}

impl Traced {
    /// Its commit begins.
    pub(super) fn commits(context: TraceContext, headers: &HeaderMap) -> Self {
        let mut lines = headers.get_all("traceparent").iter();
        let (first, more) = (lines.next(), lines.next());
        let link = first.filter(|_| more.is_none());
        let link = link.and_then(|line| TraceContext::parse(line.as_bytes()));
        let now = Instant::now();
        Self { context, link, commit_began: now, commit_ended: now }
    }

    /// Its commit has ended.
    pub(super) fn committed(self) -> Self {
        Self { commit_ended: Instant::now(), ..self }
    }
}

/// Has told what is known of a request that was taken in, and of which the sender was told this.
pub(super) fn record(traces: &Traces, exchange: &Exchange, taken: &Taken, told: Answer) {
    let Some(times) = traces.times() else { return };
    if let Some(traced) = &taken.traced {
        let request = Span {
            link: traced.link,
            attributes: {
                let mut all = attributes(exchange, taken, told);
                all.extend(taken.activity.as_deref().map(|name| ("relay.activity", name.into())));
                all
            },
            ..request(exchange, traced.context, told, &times)
        };
        let commit = Span {
            context: traced.context.with_span(fastrand::u64(..)),
            parent: Some(traced.context.span_id),
            link: None,
            name: "commit".to_owned(),
            kind: Kind::Internal,
            started_at: times.of(traced.commit_began),
            ended_at: times.of(traced.commit_ended),
            attributes: Vec::new(),
            error: None,
        };
        traces.record([request, commit]);
    } else if taken.answer == Answer::Duplicate
        && let Some(first) = taken.webhook_id.and_then(|id| traces.recorded(id))
    {
        // Beside what became of the first one, so that a sender's repeats are seen there.
        let context = first.with_span(fastrand::u64(..));
        let span = request(exchange, context, told, &times);
        let attributes = attributes(exchange, taken, told);
        traces.record([Span { parent: Some(first.span_id), attributes, ..span }]);
    }
}

fn request(exchange: &Exchange, context: TraceContext, told: Answer, times: &Times) -> Span {
    let path = exchange.source.as_ref().map_or("", |state| state.source.path.as_str());
    let is_our_fault = told.status().is_server_error();
    Span {
        context,
        parent: None,
        link: None,
        name: format!("POST {path}"),
        kind: Kind::Server,
        started_at: times.of(exchange.began),
        ended_at: times.of(Instant::now()),
        attributes: Vec::new(),
        error: is_our_fault.then(|| told.name().to_owned()),
    }
}

type Attributes = Vec<(&'static str, crate::telemetry::traces::Value)>;

fn attributes(exchange: &Exchange, taken: &Taken, told: Answer) -> Attributes {
    let mut all: Attributes = vec![
        ("http.request.method", "POST".into()),
        ("http.response.status_code", told.status().as_u16().into()),
        ("http.request.body.size", exchange.bytes.into()),
        ("relay.answer", told.name().into()),
        ("relay.source", exchange.source_name().into()),
    ];
    let path = exchange.source.as_ref().map(|state| state.source.path.as_str());
    all.extend(path.map(|path| ("http.route", path.into())));
    if let Some(id) = taken.webhook_id {
        all.push(("relay.webhook_id", (&*id.to_string()).into()));
    }
    if !taken.deliveries.is_empty() {
        all.push(("relay.targets", (&*taken.deliveries).into()));
    }
    all
}
