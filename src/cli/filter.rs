//! Which webhooks a command is about: the same flags everywhere.

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::cli::admin::Relay;
use crate::cli::check::Format;
use crate::cli::output::Output;

/// Where the relay is, and how it answers.
#[derive(Debug, Clone, clap::Args)]
pub struct Asking {
    /// Which.
    #[command(flatten)]
    pub admin: Relay,
    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

impl Asking {
    /// Prints an answer: whole for a program, as `told` for a person.
    pub fn print(&self, answer: &Value, told: impl FnOnce(&Value) -> String) {
        let output = Output::new();
        match self.format {
            Format::Json => output.line(answer),
            Format::Text => output.line(told(answer)),
        }
    }
}

/// The flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Filter {
    /// Posted by this source
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// With this activity; * and ? are wildcards
    #[arg(long, value_name = "NAME")]
    pub activity: Option<String>,
    /// About this resource: its id, or TYPE/ID
    #[arg(long, value_name = "ID")]
    pub resource: Option<String>,
    /// With a delivery to this target
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Received since: how long ago, such as 24h, or a moment, such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Received before: the same
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl Filter {
    /// What was said, under the names of the API.
    pub fn members(&self) -> Map<String, Value> {
        let Self { source, activity, resource, target, since, until } = self;
        let all = [
            ("source", source),
            ("activity", activity),
            ("resource", resource),
            ("target", target),
            ("since", since),
            ("until", until),
        ];
        let said = all.into_iter().filter_map(|(name, said)| Some((name, said.as_deref()?)));
        said.map(|(name, said)| (name.to_owned(), said.into())).collect()
    }
}

/// The flags where it may be any webhook, whatever became of it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AnyFilter {
    /// Which.
    #[command(flatten)]
    pub filter: Filter,
    /// With a delivery in this state
    #[arg(long, value_enum, value_name = "STATE")]
    pub state: Option<State>,
    /// With no delivery at all: what no route wanted when it came
    #[arg(long)]
    pub unrouted: bool,
}

/// A delivery's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Due, now or later
    Pending,
    /// The target has it
    Delivered,
    /// Nobody tries it any more
    #[value(name = "dead_letter", alias = "dead-letter")]
    DeadLetter,
    /// An operator ended it
    Discarded,
}

impl AnyFilter {
    /// What was said, under the names of the API.
    pub fn members(&self) -> Map<String, Value> {
        let mut members = self.filter.members();
        if let Some(name) = self.state.and_then(|state| state.to_possible_value()) {
            members.insert("state".to_owned(), name.get_name().into());
        }
        if self.unrouted {
            members.insert("unrouted".to_owned(), true.into());
        }
        members
    }
}

/// A path with the members as its query.
pub fn with_query(path: &str, members: &Map<String, Value>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in members {
        match value {
            Value::String(text) => query.append_pair(name, text),
            other => query.append_pair(name, &other.to_string()),
        };
    }
    format!("{path}?{}", query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_a_query() {
        let filter = Filter {
            activity: Some("ORDER_*".to_owned()),
            resource: Some("ORDER/1 7&x=y".to_owned()),
            ..Filter::default()
        };
        assert_eq!(
            with_query("/api/v1/webhooks", &filter.members()),
            "/api/v1/webhooks?activity=ORDER_*&resource=ORDER%2F1+7%26x%3Dy"
        );
        let filter = AnyFilter { state: Some(State::DeadLetter), unrouted: true, filter };
        let query = with_query("", &filter.members());
        assert!(query.ends_with("&state=dead_letter&unrouted=true"), "{query}");
    }
}
