//! What a webhook's trace tells of an attempt.

use tokio::time::Instant;

use super::journal;
use crate::domain::delivery::Settlement;
use crate::domain::outcome::{Attempt, Outcome};
use crate::domain::target::Target;
use crate::domain::trace::TraceContext;
use crate::store::Delivery;
use crate::telemetry::traces::{Kind, Span, Times, Value};

/// An attempt that ended.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    /// Where it is in its trace.
    pub(super) context: TraceContext,
    /// The span of the request that brought its webhook, however long ago.
    pub(super) parent: TraceContext,
    /// When it began.
    pub(super) began: Instant,
    /// To whom.
    pub(super) target: &'a Target,
    /// Of what.
    pub(super) delivery: &'a Delivery,
    /// From 1.
    pub(super) number: u32,
    /// What it came to.
    pub(super) attempt: &'a Attempt,
    /// What follows from that.
    pub(super) settlement: Settlement,
}

impl Told<'_> {
    /// The span that tells it. Of the target's URL only where it leads: its path may be a secret.
    pub(super) fn span(&self, times: &Times) -> Span {
        let Self { delivery, attempt, settlement, .. } = *self;
        let began = times.of(self.began);
        let took = u64::try_from(attempt.duration.as_nanos()).unwrap_or(u64::MAX);
        let delivered = attempt.outcome == Outcome::Delivered;
        Span {
            context: self.context,
            parent: Some(self.parent.span_id),
            link: None,
            name: format!("POST {}", delivery.target),
            kind: Kind::Client,
            started_at: began,
            ended_at: began.saturating_add(took),
            attributes: attributes(self),
            error: (!delivered).then(|| {
                let cause = match settlement {
                    Settlement::DeadLetter(cause) => format!("dead letter ({}): ", cause.name()),
                    _ => String::new(),
                };
                let why = journal::reason(attempt).unwrap_or_else(|| attempt.outcome.name());
                format!("{cause}{why}")
            }),
        }
    }
}

fn attributes(told: &Told<'_>) -> Vec<(&'static str, Value)> {
    let Told { target, delivery, attempt, number, settlement, .. } = *told;
    let mut all: Vec<(&'static str, Value)> = vec![
        ("http.request.method", "POST".into()),
        ("http.request.body.size", delivery.webhook.body.len().into()),
        ("relay.webhook_id", (&*journal::id(delivery)).into()),
        ("relay.source", (&*delivery.webhook.source).into()),
        ("relay.target", (&*delivery.target).into()),
        ("relay.attempt", number.into()),
        ("relay.outcome", attempt.outcome.name().into()),
        ("relay.settlement", settlement.name().into()),
    ];
    all.extend(target.url.scheme_str().map(|scheme| ("url.scheme", scheme.into())));
    all.extend(target.url.host().map(|host| ("server.address", host.into())));
    all.extend(target.url.port_u16().map(|port| ("server.port", port.into())));
    let activity = delivery.webhook.activity.as_deref();
    all.extend(activity.map(|activity| ("relay.activity", activity.into())));
    all.extend(attempt.status.map(|status| ("http.response.status_code", status.into())));
    if number > 1 {
        all.push(("http.request.resend_count", (number - 1).into()));
    }
    if attempt.outcome != Outcome::Delivered {
        let kind = attempt.status.map(|status| status.to_string());
        all.push(("error.type", kind.as_deref().unwrap_or(attempt.outcome.name()).into()));
    }
    all
}
