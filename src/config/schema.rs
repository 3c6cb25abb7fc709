//! `routes.yaml` as `serde_yaml` deserialises it. The only file that knows that crate.
//!
//! The types are as strict as [`crate::config::shape`], which finds every problem of form with its
//! position before this runs; a test holds the two together. What is text here (durations, URLs) is
//! understood by [`crate::config::compile`].

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use crate::config::node::{Kind, Meaning, Node, meaning};
use crate::config::problem::Position;

/// Up to here comparing a name with those before it costs less than keeping a table of them.
const NAMES_LOOKED_THROUGH: usize = 16;

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
    #[serde(default)]
    pub(super) tls: Tls,
}

/// The value of a header.
#[derive(PartialEq)]
pub(super) enum HeaderSetting {
    /// Text as it is.
    Text(String),
    /// From outside the file.
    Secret(HeaderSecret),
}

impl fmt::Debug for HeaderSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeaderSetting(…)")
    }
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

/// A value of `when`: what must equal, or what else must hold.
#[derive(Debug, PartialEq)]
pub(super) enum Condition {
    /// A bare value.
    Is(Scalar),
    /// Operators, all of which must hold.
    Holds(Box<Operators>),
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

/// A single value of whatever type. How a number is written is asked of the tree.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Boolean(bool),
    Null,
    Number(f64),
    Text(String),
}

/// Text, and nothing that YAML takes for a number, a boolean or nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

/// A whole number in decimal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Integer(pub(super) i64);

/// A name or a list of names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<Text>),
}

/// A map in file order that has no name twice.
#[derive(Debug, PartialEq)]
pub(super) struct Named<T>(pub(super) Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
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

/// A key that is there has a value: nothing at all does not mean the default.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Texts;

        impl Visitor<'_> for Texts {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
        }

        // Not `deserialize_str`, which takes a number without quotes for text.
        from.deserialize_any(Texts)
    }
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        i64::deserialize(from).map(Self)
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a list of names")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<OneOrMany, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(OneOrMany::Many)
            }
        }

        from.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for HeaderSetting {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = HeaderSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, {env: NAME} or {file: PATH}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HeaderSetting, E> {
                Ok(HeaderSetting::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HeaderSetting, A::Error> {
                HeaderSecret::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(HeaderSetting::Secret)
            }
        }

        from.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Scalars(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Scalars(PhantomData))
    }
}

/// Reads a single value as a [`Scalar`], or as what is made of one.
struct Scalars<T>(PhantomData<T>);

impl From<Scalar> for Condition {
    fn from(scalar: Scalar) -> Self {
        Self::Is(scalar)
    }
}

/// What a [`Scalars`] makes of a map.
trait FromMap<'de>: From<Scalar> {
    const EXPECTED: &'static str;

    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error>;
}

impl<'de> FromMap<'de> for Scalar {
    const EXPECTED: &'static str = "a single value";

    fn from_map<A: MapAccess<'de>>(_: A) -> Result<Self, A::Error> {
        Err(de::Error::invalid_type(de::Unexpected::Map, &Self::EXPECTED))
    }
}

impl<'de> FromMap<'de> for Condition {
    const EXPECTED: &'static str = "a single value or operators";

    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let operators = Operators::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(Self::Holds(Box::new(operators)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "how a number is written is asked of the tree")]
impl<'de, T: FromMap<'de>> Visitor<'de> for Scalars<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        Ok(Scalar::Boolean(value).into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        Ok(Scalar::Number(value as f64).into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        Ok(Scalar::Number(value as f64).into())
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<T, E> {
        Ok(Scalar::Number(value as f64).into())
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<T, E> {
        Ok(Scalar::Number(value as f64).into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        Ok(Scalar::Number(value).into())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok(Scalar::Text(text.to_owned()).into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        Ok(Scalar::Null.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut names = std::collections::HashSet::new();
                let mut entries: Vec<(String, T)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    // A table of the names pays only where there are many.
                    if entries.len() == NAMES_LOOKED_THROUGH {
                        names.extend(entries.iter().map(|(name, _)| name.clone()));
                    }
                    let is_there = if entries.len() < NAMES_LOOKED_THROUGH {
                        entries.iter().any(|(known, _)| *known == name)
                    } else {
                        !names.insert(name.clone())
                    };
                    if is_there {
                        return Err(de::Error::custom(format!("duplicate key \"{name}\"")));
                    }
                    entries.push((name, value));
                }
                Ok(Named(entries))
            }
        }

        from.deserialize_map(InOrder(PhantomData))
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

/// Whether `serde_yaml` takes the text for YAML at all.
#[cfg(test)]
pub(super) fn is_yaml_for_test(text: &str) -> bool {
    serde_yaml::from_str::<Value>(text).is_ok()
}
