//! Whatever is in a body, reading what it says of itself ends; and where it is JSON, a reader of the
//! whole of it, which knows nothing of ours, reads the same.
//!
//! The input is the body; behind an "*" it is repeated, for what takes time or depth by its length.
#![no_main]

use std::fmt;

use aryeo_relay::domain::activity::{self, Facts, LONGEST_VALUE};
use libfuzzer_sys::fuzz_target;
use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

const REPEATED_BYTES_MAX: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    if let Some(unit @ [_, ..]) = bytes.strip_prefix(b"*") {
        return check(&activity::read(&unit.repeat(REPEATED_BYTES_MAX / unit.len())));
    }
    let facts = activity::read(bytes);
    check(&facts);
    if let Some(members) = std::str::from_utf8(bytes).ok().and_then(members).filter(is_readable) {
        assert_eq!(facts, naive(&members), "{}", String::from_utf8_lossy(bytes));
    }
});

/// What travels in headers can.
fn check(facts: &Facts) {
    for text in [&facts.activity, &facts.resource_type, &facts.resource_id].into_iter().flatten() {
        assert!(is_fit(text), "{text:?}");
    }
    assert!(facts.activity.is_some() || !facts.activity_id, "the id of no activity");
}

fn is_fit(text: &str) -> bool {
    let is_plain = |byte: u8| byte >= b' ' && byte != 0x7f;
    (1..=LONGEST_VALUE).contains(&text.len()) && text.bytes().all(is_plain)
}

/// The members of an object in their order, repeated keys too.
type Members = Vec<(String, Box<RawValue>)>;

/// None if it is not JSON, or no object.
fn members(text: &str) -> Option<Members> {
    struct Reader;

    impl<'a> Visitor<'a> for Reader {
        type Value = Members;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Members, A::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }

    let mut reader = serde_json::Deserializer::from_str(text);
    let members = reader.deserialize_map(Reader).ok()?;
    reader.end().ok()?;
    Some(members)
}

/// A key with half a surrogate pair is passed over within a value, and is none to who reads the keys: of
/// such a `resource` the judge knows nothing.
fn is_readable(members: &Members) -> bool {
    let resource = first(members, "resource").filter(|value| value.starts_with('{'));
    resource.is_none_or(|value| self::members(value).is_some())
}

/// The first value of a key.
fn first<'a>(members: &'a Members, key: &str) -> Option<&'a str> {
    members.iter().find(|(name, _)| name == key).map(|(_, value)| value.get())
}

/// The text that a value is, if it is one.
fn text(value: Option<&str>) -> Option<String> {
    serde_json::from_str(value?).ok()
}

fn fit(value: Option<&str>) -> Option<Box<str>> {
    text(value).filter(|text| is_fit(text)).map(Into::into)
}

/// The same, or a number as it is written.
fn fit_or_number(value: Option<&str>) -> Option<Box<str>> {
    let is_number = value?.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    if is_number { value.filter(|digits| is_fit(digits)).map(Into::into) } else { fit(value) }
}

/// The rules, one by one, on the whole body.
fn naive(members: &Members) -> Facts {
    let is_wrapper = text(first(members, "object")).as_deref() == Some("ACTIVITY");
    let is_event = !is_wrapper && text(first(members, "specversion")).is_some();
    let resource = first(members, "resource").and_then(self::members).unwrap_or_default();
    let (activity, holder) = match (is_wrapper, is_event) {
        (true, _) => (fit(first(members, "name")), Some(&resource)),
        (_, true) => (fit(first(members, "type")), None),
        _ => (None, Some(members)),
    };
    Facts {
        activity_id: activity.is_some() && fit(first(members, "id")).is_some(),
        activity,
        resource_type: holder.and_then(|holder| fit(first(holder, "object"))),
        resource_id: holder.and_then(|holder| fit_or_number(first(holder, "id"))),
    }
}
