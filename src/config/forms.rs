//! The values of a routes file that serde can't derive: text that is no number, one or many names,
//! what is text or a map, maps in file order.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::config::schema::{HeaderSecret, Operators};

/// Up to here comparing a name with those before it costs less than keeping a table of them.
const NAMES_LOOKED_THROUGH: usize = 16;

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

/// A value of `when`: what must equal, or what else must hold.
#[derive(Debug, PartialEq)]
pub(super) enum Condition {
    /// A bare value.
    Is(Scalar),
    /// Operators, all of which must hold.
    Holds(Box<Operators>),
}

/// A key that is there has a value: nothing at all does not mean the default.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
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
