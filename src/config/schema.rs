//! `routes.yaml` as `serde_yaml` deserialises it. The only file that knows that crate.
//!
//! The types are as strict as [`crate::config::shape`], which finds every problem of form with its
//! position before this runs; a test holds the two together. What is text here (durations, URLs) is
//! understood by [`crate::config::compile`].

use std::fmt;

use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use crate::config::forms::{
    Condition, HeaderSetting, Integer, Named, OneOrMany, Scalar, Text, present,
};
use crate::config::node::{Kind, Meaning, Node, meaning};
use crate::config::problem::Position;

/// The whole file.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) sources: Named<Source>,
    pub(super) targets: Named<Target>,
    pub(super) routes: Vec<Route>,
    #[serde(default)]
    pub(super) defaults: Defaults,
    #[serde(default, deserialize_with = "present")]
    pub(super) unrouted: Option<Text>,
}

/// `sources.NAME`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) path: Text,
    pub(super) verify: Scheme,
    #[serde(default)]
    pub(super) require_headers: Named<Secret>,
    #[serde(default, deserialize_with = "present")]
    pub(super) activity: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) body_limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) allow_from: Option<Vec<Text>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) client_certificate: Option<Vec<Text>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) rate_limit: Option<Text>,
    #[serde(default)]
    pub(super) duplicates: Duplicates,
    #[serde(default, deserialize_with = "present")]
    pub(super) silence_after: Option<Text>,
}

/// `verify` and `sign`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scheme {
    pub(super) scheme: Text,
    #[serde(default, deserialize_with = "present")]
    pub(super) secrets: Option<Vec<Secret>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) header: Option<Text>,
}

/// `{env: NAME}`, `{file: PATH}` or `{value: "…"}`.
#[derive(PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    #[serde(default, deserialize_with = "present")]
    pub(super) env: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) file: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) value: Option<Text>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `duplicates`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Duplicates {
    #[serde(default, deserialize_with = "present")]
    pub(super) activities: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) bare: Option<Text>,
}

/// `targets.NAME`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub(super) url: Text,
    pub(super) sign: Scheme,
    #[serde(default)]
    pub(super) headers: Named<HeaderSetting>,
    #[serde(default, deserialize_with = "present")]
    pub(super) forward_headers: Option<Vec<Text>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Text>,
    #[serde(default)]
    pub(super) retry: Retry,
    #[serde(default, deserialize_with = "present")]
    pub(super) concurrency: Option<Integer>,
    #[serde(default, deserialize_with = "present")]
    pub(super) rate_limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) backlog_limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) paused: Option<bool>,
    #[serde(default)]
    pub(super) tls: Tls,
}

/// `defaults`: what a target has that does not say otherwise.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Defaults {
    #[serde(default)]
    pub(super) headers: Named<HeaderSetting>,
    #[serde(default, deserialize_with = "present")]
    pub(super) forward_headers: Option<Vec<Text>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Text>,
    #[serde(default)]
    pub(super) retry: Retry,
    #[serde(default, deserialize_with = "present")]
    pub(super) concurrency: Option<Integer>,
    #[serde(default, deserialize_with = "present")]
    pub(super) rate_limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) backlog_limit: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) paused: Option<bool>,
    #[serde(default)]
    pub(super) tls: Tls,
}

/// `{env: NAME, prefix: "Bearer "}` or `{file: PATH}`.
#[derive(PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderSecret {
    #[serde(default, deserialize_with = "present")]
    pub(super) env: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) file: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) prefix: Option<Text>,
}

/// `retry`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    #[serde(default, deserialize_with = "present")]
    pub(super) first: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) max: Option<Text>,
    #[serde(default, rename = "for", deserialize_with = "present")]
    pub(super) keep_for: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) give_up_on: Option<Vec<Integer>>,
}

/// `tls`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    #[serde(default, deserialize_with = "present")]
    pub(super) ca: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) certificate: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) key: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) server_name: Option<Text>,
}

/// One of `routes`.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) name: Text,
    #[serde(default, deserialize_with = "present")]
    pub(super) source: Option<OneOrMany>,
    #[serde(default, deserialize_with = "present")]
    pub(super) activity: Option<OneOrMany>,
    #[serde(default, deserialize_with = "present")]
    pub(super) resource: Option<OneOrMany>,
    #[serde(default)]
    pub(super) when: Named<Condition>,
    pub(super) to: Vec<Text>,
    #[serde(default)]
    pub(super) headers: Named<HeaderSetting>,
    #[serde(default, rename = "final", deserialize_with = "present")]
    pub(super) end: Option<bool>,
}

/// The operators of a condition.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operators {
    #[serde(default, deserialize_with = "present")]
    pub(super) equals: Option<Scalar>,
    #[serde(default, deserialize_with = "present")]
    pub(super) not: Option<Condition>,
    #[serde(default, rename = "in", deserialize_with = "present")]
    pub(super) one_of: Option<Vec<Scalar>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) gt: Option<Scalar>,
    #[serde(default, deserialize_with = "present")]
    pub(super) gte: Option<Scalar>,
    #[serde(default, deserialize_with = "present")]
    pub(super) lt: Option<Scalar>,
    #[serde(default, deserialize_with = "present")]
    pub(super) lte: Option<Scalar>,
    #[serde(default, deserialize_with = "present")]
    pub(super) prefix: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) suffix: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    pub(super) exists: Option<bool>,
}

/// Why it could not be deserialised.
#[derive(Debug)]
pub(super) struct SchemaError {
    pub(super) position: Position,
    pub(super) message: String,
}

/// Deserialises the text.
pub(super) fn from_text(text: &str) -> Result<File, SchemaError> {
    serde_yaml::from_str(text).map_err(|error| explain(&error))
}

/// Deserialises what is left of a tree after everything wrong was taken out.
pub(super) fn from_node(node: &Node) -> Result<File, SchemaError> {
    serde_yaml::from_value(to_value(node)).map_err(|error| explain(&error))
}

fn explain(error: &serde_yaml::Error) -> SchemaError {
    let position = error.location().map_or(Position::START, |location| Position {
        line: location.line().max(1),
        column: location.column().max(1),
    });
    let message = format!("not every reader of YAML takes this: {error}");
    SchemaError { position, message }
}

fn to_value(node: &Node) -> Value {
    match &node.kind {
        Kind::Broken => Value::Null,
        Kind::List(items) => Value::Sequence(items.iter().map(to_value).collect()),
        Kind::Map(entries) => {
            let pairs =
                entries.iter().map(|entry| (Value::from(&*entry.key), to_value(&entry.value)));
            Value::Mapping(pairs.collect::<Mapping>())
        }
        Kind::Scalar { text, plain: false } => Value::from(&**text),
        Kind::Scalar { text, plain: true } => match meaning(text) {
            Meaning::Boolean(value) => Value::from(value),
            Meaning::Integer(value) => Value::from(value),
            Meaning::Null => Value::Null,
            Meaning::Number => text.parse::<f64>().map_or(Value::Null, Value::from),
            Meaning::Text => Value::from(&**text),
        },
    }
}

/// What `serde_yaml` takes a scalar without quotes for.
#[cfg(test)]
pub(super) fn meaning_for_test(text: &str) -> Meaning {
    match serde_yaml::from_str::<Value>(text).expect("a scalar") {
        Value::Bool(value) => Meaning::Boolean(value),
        Value::Null => Meaning::Null,
        Value::Number(number) => number.as_i64().map_or(Meaning::Number, Meaning::Integer),
        Value::String(_) => Meaning::Text,
        other => panic!("{other:?} is not a scalar"),
    }
}

/// The text as an editor sees it, if it is YAML.
#[cfg(test)]
pub(super) fn json_for_test(text: &str) -> Option<serde_json::Value> {
    serde_yaml::from_str(text).ok()
}

/// Whether `serde_yaml` takes the text for YAML at all.
#[cfg(test)]
pub(super) fn is_yaml_for_test(text: &str) -> bool {
    serde_yaml::from_str::<Value>(text).is_ok()
}
