//! Which webhooks a decision is about: named by their ids, or by a filter.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::admin::api::Problem;
use crate::app::api::wanted::{LIMIT_MAX, Wanted, known_as};
use crate::app::api::webhooks::{has_repeat, story, unread};
use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::archive::Archive;
use crate::store::listing::Place;
use crate::store::story::{Filter, Order, Stories};

/// The words that say which.
const WORDS: [&str; 9] =
    ["source", "activity", "resource", "target", "state", "cause", "since", "until", "unrouted"];

/// Which webhooks.
#[derive(Debug)]
pub(super) struct Choice {
    ids: Option<Named>,
    /// What they have to be like besides.
    pub(super) filter: Filter,
}

/// Webhooks in their order; of each which repeats on purpose, where 0 means all that there is of it.
type Named = BTreeMap<WebhookId, BTreeSet<u32>>;

#[derive(Debug, Default, Deserialize)]
struct Said {
    webhook_ids: Option<Vec<String>>,
    /// All of them: so that nobody says it by leaving something out.
    #[serde(default)]
    all: bool,
}

impl Choice {
    /// Reads a request: what says which, and all else as a `T`. `things` are what is chosen.
    pub(super) fn read<T: DeserializeOwned>(
        body: &[u8],
        things: &str,
        now: Timestamp,
    ) -> Result<(Self, T), Problem> {
        let mut rest: Map<String, Value> = serde_json::from_slice(body).map_err(of_body)?;
        let mut take = |names: &[&str]| -> Map<String, Value> {
            names.iter().filter_map(|name| rest.remove_entry(*name)).collect()
        };
        let said = take(&["webhook_ids", "all"]);
        let words = take(&WORDS).into_iter().map(|(name, value)| match value {
            Value::Bool(flag) => (name, flag.to_string().into()),
            value => (name, value),
        });
        let wanted = Wanted::deserialize(Value::Object(words.collect())).map_err(of_body)?;
        let said = Said::deserialize(Value::Object(said)).map_err(of_body)?;
        let rest = T::deserialize(Value::Object(rest)).map_err(of_body)?;
        if said.webhook_ids.is_none() && wanted.is_empty() && !said.all {
            let detail =
                format!("say which {things}, by webhook_ids or a filter, or \"all\": true");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
        let ids = said.webhook_ids.map(|ids| named(&ids)).transpose()?;
        Ok((Self { ids, filter: wanted.filter(now)? }, rest))
    }

    /// Some of them, the oldest first, behind a place. Where single deliveries of a webhook were named
    /// it has no others.
    pub(super) async fn some<S: Archive>(
        &self,
        store: &S,
        behind: Option<Place>,
        max: usize,
    ) -> Result<Stories, Problem> {
        let Some(ids) = &self.ids else {
            let found = store.stories(self.filter.clone(), behind, Order::OldestFirst, max).await;
            return found.map_err(unread);
        };
        let mut stories = Vec::with_capacity(ids.len());
        for (id, repeats) in ids {
            let mut story = story(store, *id).await?;
            repeats.iter().try_for_each(|again| has_repeat(&story, *again))?;
            if !repeats.contains(&0) {
                story.deliveries.retain(|delivery| repeats.contains(&delivery.again));
            }
            if self.filter.wants(&story) {
                stories.push(story);
            }
        }
        Ok(Stories { stories, next: None })
    }
}

fn named(ids: &[String]) -> Result<Named, Problem> {
    if ids.len() > LIMIT_MAX {
        let detail = format!("no more than {LIMIT_MAX} webhook_ids at once");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let mut named = Named::new();
    for id in ids {
        let (id, again) = known_as(id)?;
        named.entry(id).or_default().insert(again);
    }
    Ok(named)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn of_body(error: serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("the body: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rest {
        #[serde(default)]
        dry_run: bool,
    }

    fn read(body: &str) -> Result<(Choice, Rest), String> {
        Choice::read(body.as_bytes(), "webhooks", Timestamp::default()).map_err(|p| p.detail)
    }

    #[test]
    fn what_is_chosen_has_to_be_said_and_nothing_else_is_taken() {
        for body in ["{}", r#"{"dry_run": true}"#, r#"{"all": false}"#] {
            let refused = read(body).unwrap_err();
            assert_eq!(refused, "say which webhooks, by webhook_ids or a filter, or \"all\": true");
        }
        for (body, part) in [
            ("[]", "the body: invalid type"),
            (r#"{"all": true, "targt": "crm"}"#, "unknown field `targt`"),
            (r#"{"target": 7}"#, "invalid type: integer `7`"),
            (r#"{"webhook_ids": ["x"]}"#, "\"x\" is no webhook_id"),
            (r#"{"unrouted": "perhaps"}"#, "unrouted is true or false"),
        ] {
            let refused = read(body).unwrap_err();
            assert!(refused.contains(part), "{body}: {refused}");
        }
        let (choice, rest) = read(r#"{"unrouted": true, "dry_run": true}"#).unwrap();
        assert!(choice.filter.unrouted && choice.ids.is_none() && rest.dry_run);
        let id = WebhookId::from_key(7);
        let (choice, _) = read(&format!(r#"{{"webhook_ids": ["{id}", "{id}"]}}"#)).unwrap();
        let once = Named::from([(id, BTreeSet::from([0]))]);
        assert_eq!(choice.ids, Some(once), "once is enough");
        let (choice, _) = read(&format!(r#"{{"webhook_ids": ["{id}.2", "{id}.1"]}}"#)).unwrap();
        assert_eq!(choice.ids, Some(Named::from([(id, BTreeSet::from([1, 2]))])));
    }
}
