//! A file as a small tree in which every value knows its place.

use crate::config::problem::Span;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) at: Span,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Not to be looked at: its problem has been reported.
    Broken,
    /// A list.
    List(Vec<Node>),
    /// A map, in file order.
    Map(Vec<Entry>),
    /// Text, a number, a boolean or nothing; `plain` without quotes.
    Scalar { text: Box<str>, plain: bool },
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    pub(super) key_at: Span,
    pub(super) value: Node,
}

/// What a scalar means: YAML 1.2's core schema as `serde_yaml` reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Meaning {
    Boolean(bool),
    /// An integer that fits.
    Integer(i64),
    Null,
    /// Any other number.
    Number,
    Text,
}

impl Kind {
    /// A single value as it is written.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar { text, .. } => Some(text),
            Self::Broken | Self::List(_) | Self::Map(_) => None,
        }
    }
}

impl Node {
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Map(entries) => entries,
            Kind::Broken | Kind::List(_) | Kind::Scalar { .. } => &[],
        }
    }

    pub(super) fn items(&self) -> &[Self] {
        match &self.kind {
            Kind::List(items) => items,
            Kind::Broken | Kind::Map(_) | Kind::Scalar { .. } => &[],
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| &*entry.key == key)
    }

    /// A single value as it is written.
    pub(super) fn text(&self) -> Option<&str> {
        self.kind.text()
    }

    /// Nothing written at all, as after `headers:` on a line of its own.
    pub(super) fn is_blank(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if text.is_empty())
    }
}

/// What a scalar without quotes means.
pub(super) fn meaning(text: &str) -> Meaning {
    match text {
        "" | "null" | "Null" | "NULL" | "~" => return Meaning::Null,
        "true" | "True" | "TRUE" => return Meaning::Boolean(true),
        "false" | "False" | "FALSE" => return Meaning::Boolean(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF"
        | ".nan" | ".NaN" | ".NAN" => return Meaning::Number,
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if unsigned.starts_with(['+', '-']) {
        return Meaning::Text;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = unsigned.strip_prefix(prefix) {
            if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
                return Meaning::Text;
            }
            let sign = if text.starts_with('-') { "-" } else { "" };
            return match i64::from_str_radix(&format!("{sign}{digits}"), radix) {
                Ok(integer) => Meaning::Integer(integer),
                Err(_) => Meaning::Number,
            };
        }
    }
    let digits = !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit());
    if digits && unsigned.len() > 1 && unsigned.starts_with('0') {
        return Meaning::Text;
    }
    if digits && let Ok(integer) = text.parse() {
        return Meaning::Integer(integer);
    }
    match unsigned.parse::<f64>() {
        Ok(float) if float.is_finite() => Meaning::Number,
        _ => Meaning::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_mean_what_they_mean_to_serde_yaml() {
        for text in [
            "1",
            "-1",
            "+1",
            "007",
            "0",
            "1e3",
            "1.5",
            ".5",
            "5.",
            "0x1f",
            "0o7",
            "0b1",
            "0xg",
            "-0x1",
            "~",
            "null",
            "true",
            "False",
            "yes",
            "x",
            "1_000",
            "+-1",
            "+",
            ".inf",
            "-.inf",
            ".nan",
            "inf",
            "nan",
            "infinity",
            "1e999",
            "0x",
            "12:30",
            "10s",
            "+.inf",
            "0777",
            "-007",
            "1e",
            "e1",
            "+0x1f",
            "9223372036854775808",
            "0.0",
            "00.5",
        ] {
            assert_eq!(crate::config::schema::meaning_for_test(text), meaning(text), "{text}");
        }
    }
}
