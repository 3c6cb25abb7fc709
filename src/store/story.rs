//! What became of webhooks, for an operator who asks.

use std::sync::Arc;

use crate::domain::delivery::{Cause, State};
use crate::domain::outcome::Attempt;
use crate::domain::pattern::Pattern;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Resource, Webhook, WebhookId};
use crate::store::listing::{Place, ReadError};

/// Which webhooks are asked for. What it leaves open does not matter.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Posted by this source.
    pub source: Option<Box<str>>,
    /// With an activity that this matches.
    pub activity: Option<Pattern>,
    /// About this resource: its id, or its type and id as `LISTING/1234`.
    pub resource: Option<Box<str>>,
    /// Received at this moment or later.
    pub since: Option<Timestamp>,
    /// Received before this moment.
    pub until: Option<Timestamp>,
    /// With no delivery.
    pub unrouted: bool,
    /// With a delivery that this wants.
    pub delivery: DeliveryFilter,
}

/// In which order webhooks are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// For those who go through all of them: what is accepted meanwhile comes at the end.
    OldestFirst,
    /// For those who want to know what happened lately.
    NewestFirst,
}

/// Which deliveries are asked for.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// To this target.
    pub target: Option<Box<str>>,
    /// In this state.
    pub state: Option<&'static str>,
    /// Dead for this cause.
    pub cause: Option<Cause>,
}

impl Filter {
    /// Whether a webhook is asked for.
    pub fn wants(&self, story: &Story) -> bool {
        self.wants_before_deliveries(story)
            && (self.delivery.is_open() || story.deliveries.iter().any(|d| self.delivery.wants(d)))
            && (!self.unrouted || story.deliveries.is_empty())
    }

    /// The same as far as it can be said without its deliveries.
    pub fn wants_before_deliveries(&self, story: &Story) -> bool {
        self.source.as_deref().is_none_or(|source| source == &*story.source)
            && self.since.is_none_or(|since| story.received_at >= since)
            && self.until.is_none_or(|until| story.received_at < until)
            && self.activity.as_ref().is_none_or(|pattern| {
                story.activity.as_deref().is_some_and(|activity| pattern.matches(activity))
            })
            && self.resource.as_deref().is_none_or(|wanted| is_about(&story.resource, wanted))
    }
}

fn is_about(resource: &Resource, wanted: &str) -> bool {
    let Some(id) = resource.id.as_deref() else { return false };
    let both = wanted.split_once('/');
    id == wanted
        || both.is_some_and(|(object, wanted)| {
            resource.object.as_deref() == Some(object) && id == wanted
        })
}

impl DeliveryFilter {
    /// Whether it wants any delivery, and a webhook without one too.
    pub fn is_open(&self) -> bool {
        self.target.is_none() && self.state.is_none() && self.cause.is_none()
    }

    /// Whether a delivery is asked for.
    pub fn wants(&self, delivery: &DeliveryStory) -> bool {
        self.target.as_deref().is_none_or(|target| target == &*delivery.target)
            && self.state.is_none_or(|state| state == delivery.state.name())
            && self.cause.is_none_or(|cause| delivery.state.cause() == Some(cause))
    }
}

/// A stored webhook and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// Its identity.
    pub id: WebhookId,
    /// When it was received.
    pub received_at: Timestamp,
    /// Which source posted it.
    pub source: Arc<str>,
    /// The activity, where it has one.
    pub activity: Option<Arc<str>>,
    /// What it is about.
    pub resource: Resource,
    /// The length of its body.
    pub body_bytes: u64,
    /// Whether its bytes are given up: nothing needs them any more but dead letters of a full backlog
    /// or beyond what their targets may pin. What became of it is still known; it can neither be read nor delivered again.
    pub bytes_gone: bool,
    /// Its deliveries in their order; none if it is unrouted.
    pub deliveries: Vec<DeliveryStory>,
}

/// How far a delivery has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryStory {
    /// Which of the webhook's deliveries.
    pub number: u16,
    /// The target's name.
    pub target: Arc<str>,
    /// Which repeat on purpose, 0 for the first.
    pub again: u32,
    /// Where it stands.
    pub state: State,
    /// Attempts so far.
    pub attempts: u32,
    /// When its time began: acceptance or redrive.
    pub started_at: Timestamp,
    /// When it is due, if it is pending.
    pub due_at: Timestamp,
    /// The attempts that are kept: the first ones and the last ones.
    pub history: Vec<Attempt>,
}

/// Some webhooks that follow each other.
#[derive(Debug, Clone, Default)]
pub struct Stories {
    /// In the order that was asked for.
    pub stories: Vec<Story>,
    /// Where to go on; none if nothing follows. There may be more there, or not.
    pub next: Option<Place>,
}

/// A webhook with all that is stored of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// How far it has come.
    pub story: Story,
    /// As it was accepted; of all its deliveries, those added later too, why they are. An error if
    /// its record can't be read or its bytes are gone: the story is known nevertheless.
    pub record: Result<Webhook, ReadError>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> Story {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let delivery = |number, target: &str, state| DeliveryStory {
            number,
            target: target.into(),
            again: 0,
            state,
            attempts: 1,
            started_at: now,
            due_at: now,
            history: Vec::new(),
        };
        Story {
            id: WebhookId::from_key(now.as_millis() << 12),
            received_at: now,
            source: "aryeo".into(),
            activity: Some("ORDER_CREATED".into()),
            resource: Resource { object: Some("ORDER".into()), id: Some("17".into()) },
            body_bytes: 3,
            bytes_gone: false,
            deliveries: vec![
                delivery(0, "crm", State::Delivered),
                delivery(1, "billing", State::DeadLetter(Cause::Expired)),
            ],
        }
    }

    #[track_caller]
    fn check(filter: &Filter, expected: bool) {
        assert_eq!(filter.wants(&story()), expected, "{filter:?}");
    }

    #[test]
    fn each_part_of_a_filter_leaves_out_what_it_does_not_want() {
        check(&Filter::default(), true);
        for (source, expected) in [("aryeo", true), ("other", false)] {
            check(&Filter { source: Some(source.into()), ..Filter::default() }, expected);
        }
        for (activity, expected) in
            [("ORDER_*", true), ("ORDER_CREATED", true), ("LISTING_*", false)]
        {
            check(
                &Filter { activity: Some(Pattern::new(activity)), ..Filter::default() },
                expected,
            );
        }
        for (resource, expected) in [
            ("17", true),
            ("ORDER/17", true),
            ("LISTING/17", false),
            ("7", false),
            ("ORDER", false),
        ] {
            check(&Filter { resource: Some(resource.into()), ..Filter::default() }, expected);
        }
        for later in [0, 1] {
            let moment = Some(Timestamp::from_millis(1_700_000_000_000 + later));
            check(&Filter { until: moment, ..Filter::default() }, later == 1);
            check(&Filter { since: moment, ..Filter::default() }, later == 0);
        }
        check(&Filter { unrouted: true, ..Filter::default() }, false);
    }

    #[test]
    fn what_is_said_of_deliveries_must_be_true_of_one_of_them() {
        let of = |target: Option<&str>, state, cause| Filter {
            delivery: DeliveryFilter { target: target.map(Box::from), state, cause },
            ..Filter::default()
        };
        check(&of(Some("crm"), None, None), true);
        check(&of(Some("crm"), Some("delivered"), None), true);
        check(&of(Some("crm"), Some("dead_letter"), None), false);
        check(&of(Some("billing"), Some("dead_letter"), Some(Cause::Expired)), true);
        check(&of(None, None, Some(Cause::GivenUp)), false);
        check(&of(Some("nobody"), None, None), false);
        check(&of(None, Some("pending"), None), false);
    }
}
