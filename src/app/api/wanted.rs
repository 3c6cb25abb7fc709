//! What a question about webhooks asks for: the same words in a query and in a body.

use http::StatusCode;
use serde::Deserialize;

use crate::admin::api::Problem;
use crate::config;
use crate::domain::delivery::{Cause, State};
use crate::domain::pattern::Pattern;
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::listing::Place;
use crate::store::story::{DeliveryFilter, Filter, Order};

/// Items of one answer, where nothing is said.
const LIMIT_DEFAULT: usize = 100;

/// Items of one answer at most.
pub(super) const LIMIT_MAX: usize = 1000;

/// Which webhooks, by their words. What is left out does not matter.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    source: Option<String>,
    activity: Option<String>,
    resource: Option<String>,
    target: Option<String>,
    state: Option<String>,
    cause: Option<String>,
    since: Option<String>,
    until: Option<String>,
    unrouted: Option<String>,
    order: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

fn wrong(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

impl Wanted {
    /// From the pairs of a query.
    pub(super) fn of_query(query: &str) -> Result<Self, Problem> {
        let mut members = serde_json::Map::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let before = members.insert(name.clone().into_owned(), value.into_owned().into());
            if before.is_some() {
                return Err(wrong(format!("{name} is there more than once")));
            }
        }
        Self::deserialize(serde_json::Value::Object(members))
            .map_err(|error| wrong(format!("the query: {error}")))
    }

    /// Whether it says nothing of which webhooks.
    pub(super) fn is_empty(&self) -> bool {
        let words = [
            &self.source,
            &self.activity,
            &self.resource,
            &self.target,
            &self.state,
            &self.cause,
            &self.since,
            &self.until,
            &self.unrouted,
        ];
        words.into_iter().all(Option::is_none)
    }

    /// The filter. `now` is what durations are counted back from.
    pub(super) fn filter(&self, now: Timestamp) -> Result<Filter, Problem> {
        let text = |text: &Option<String>| text.as_deref().map(Box::from);
        Ok(Filter {
            source: text(&self.source),
            activity: self.activity.as_deref().map(Pattern::new),
            resource: text(&self.resource),
            since: moment("since", self.since.as_deref(), now)?,
            until: moment("until", self.until.as_deref(), now)?,
            unrouted: match self.unrouted.as_deref() {
                None | Some("false") => false,
                Some("true" | "") => true,
                Some(_) => return Err(wrong("unrouted is true or false")),
            },
            delivery: DeliveryFilter {
                target: text(&self.target),
                state: self.state.as_deref().map(state).transpose()?,
                cause: self.cause.as_deref().map(cause).transpose()?,
            },
        })
    }

    /// In which order.
    pub(super) fn order(&self) -> Result<Order, Problem> {
        match self.order.as_deref() {
            None | Some("newest") => Ok(Order::NewestFirst),
            Some("oldest") => Ok(Order::OldestFirst),
            Some(_) => Err(wrong("order is newest or oldest")),
        }
    }

    /// How many items.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let Some(text) = &self.limit else { return Ok(LIMIT_DEFAULT) };
        let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
        limit.ok_or_else(|| wrong(format!("limit is a number from 1 to {LIMIT_MAX}")))
    }

    /// Where to go on.
    pub(super) fn behind(&self) -> Result<Option<Place>, Problem> {
        cursor(self.cursor.as_deref())
    }
}

/// The place of a cursor that an answer before had as `next`.
pub(super) fn cursor(text: Option<&str>) -> Result<Option<Place>, Problem> {
    let place = |text: &str| text.parse().map(Place::at_key);
    text.map(place).transpose().map_err(|_| wrong("this is no cursor of ours"))
}

/// A webhook, by its id or by that of something that was sent again: then which repeat that is, else 0.
pub(super) fn known_as(text: &str) -> Result<(WebhookId, u32), Problem> {
    WebhookId::parse_known_as(text).ok_or_else(|| {
        let detail = format!(
            "\"{text}\" is no webhook_id: that is a UUID, or UUID.1 and so on for what was sent \
             again, as in Relay-Webhook-Id"
        );
        wrong(detail)
    })
}

fn moment(name: &str, text: Option<&str>, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = text else { return Ok(None) };
    if let Some(moment) = Timestamp::parse(text) {
        return Ok(Some(moment));
    }
    match config::duration(text) {
        Ok(ago) => Ok(Some(now.minus(ago))),
        Err(_) => Err(wrong(format!(
            "{name} is how long ago, such as 24h, or a moment, such as 2026-01-31T08:00:00Z"
        ))),
    }
}

fn state(text: &str) -> Result<&'static str, Problem> {
    State::NAMES
        .into_iter()
        .find(|name| *name == text)
        .ok_or_else(|| wrong(format!("state is one of {}", State::NAMES.join(", "))))
}

fn cause(text: &str) -> Result<Cause, Problem> {
    Cause::ALL
        .into_iter()
        .find(|cause| cause.name() == text)
        .ok_or_else(|| wrong(format!("cause is one of {}", Cause::ALL.map(Cause::name).join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn a_query_says_which_webhooks_and_how_many() {
        let query = "source=aryeo&activity=ORDER_*&resource=ORDER%2F17&target=crm&state=dead_letter\
                     &cause=expired&since=1h&until=2023-11-14T22:00:00Z&limit=5&order=oldest&cursor=77";
        let wanted = Wanted::of_query(query).unwrap();
        let filter = wanted.filter(NOW).unwrap();
        assert_eq!(filter.source.as_deref(), Some("aryeo"));
        assert!(filter.activity.unwrap().matches("ORDER_CREATED"));
        assert_eq!(filter.resource.as_deref(), Some("ORDER/17"));
        assert_eq!(filter.since, Some(NOW.minus(std::time::Duration::from_secs(3600))));
        assert_eq!(filter.until, Timestamp::parse("2023-11-14T22:00:00Z"));
        assert!(!filter.unrouted);
        assert_eq!(filter.delivery.target.as_deref(), Some("crm"));
        assert_eq!(
            (filter.delivery.state, filter.delivery.cause),
            (Some("dead_letter"), Some(Cause::Expired))
        );
        assert_eq!((wanted.limit(), wanted.order()), (Ok(5), Ok(Order::OldestFirst)));
        assert_eq!(wanted.behind(), Ok(Some(Place::at_key(77))));
        let nothing = Wanted::of_query("").unwrap();
        assert_eq!((nothing.limit(), nothing.order()), (Ok(100), Ok(Order::NewestFirst)));
    }

    #[test]
    fn what_nobody_can_mean_is_refused_with_what_can_be_said() {
        for (query, expected) in [
            ("colour=red", "unknown field `colour`"),
            ("state=dead", "state is one of pending, delivered, dead_letter, discarded"),
            ("cause=bad_luck", "cause is one of backlog_full, damaged, expired"),
            ("since=yesterday", "since is how long ago, such as 24h"),
            ("unrouted=perhaps", "unrouted is true or false"),
            ("limit=0", "limit is a number from 1 to 1000"),
            ("limit=1001", "limit is a number from 1 to 1000"),
            ("order=random", "order is newest or oldest"),
            ("cursor=x", "no cursor of ours"),
            ("state=pending&state=pending", "more than once"),
        ] {
            let asked = Wanted::of_query(query).and_then(|wanted| {
                wanted.filter(NOW)?;
                wanted.order()?;
                wanted.limit()?;
                wanted.behind().map(|_| ())
            });
            let problem = asked.expect_err(query);
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.detail.contains(expected), "{query}: {}", problem.detail);
        }
    }
}
