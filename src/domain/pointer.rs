//! Values inside a body, found by JSON pointers (RFC 6901): all that a table asks for, in one pass.
//!
//! The pass follows only the keys that somebody asks for and jumps over the rest, so that neither
//! depth nor size costs more than reading the bytes once. It reads to the end, unlike
//! [`activity`](crate::domain::activity): what one rule finds must not depend on what other rules
//! look for. A body that is not JSON has no values.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::domain::json::{Json, Malformed, Text, Value};
use crate::domain::number::Decimal;

/// Deeper than this nobody looks; the pass descends once a level.
pub const POINTER_DEPTH_MAX: usize = 64;

/// A longer pointer, in bytes, is a mistake.
pub const POINTER_BYTES_MAX: usize = 1024;

/// Where in a body a value stands: `/resource/address/city`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pointer(Arc<str>);

/// Why a text is no pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// `~` stands for nothing but `~0` and `~1`.
    #[error("in a JSON pointer ~ is written ~0, and / inside a key ~1")]
    Escape,
    /// Too deep or too long.
    #[error("a JSON pointer has at most {POINTER_DEPTH_MAX} parts and {POINTER_BYTES_MAX} bytes")]
    Long,
    /// The body as a whole is never asked about.
    #[error("a JSON pointer begins with /, as in /resource/id")]
    Slash,
}

impl Pointer {
    /// Reads a pointer.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        if !text.starts_with('/') {
            return Err(PointerError::Slash);
        }
        if text.len() > POINTER_BYTES_MAX || text.matches('/').count() > POINTER_DEPTH_MAX {
            return Err(PointerError::Long);
        }
        let well_escaped = |rest: &str| rest.starts_with('0') || rest.starts_with('1');
        if !text.split('~').skip(1).all(well_escaped) {
            return Err(PointerError::Escape);
        }
        Ok(Self(text.into()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parts(&self) -> impl Iterator<Item = String> {
        self.0.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~"))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a pointer among those of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerId(usize);

/// All pointers of a table, merged into a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pointers {
    ids: HashMap<Pointer, PointerId>,
    root: Branch,
    branches: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Branch {
    /// Its number among all.
    number: usize,
    /// The value here is wanted.
    wanted: Option<PointerId>,
    keys: HashMap<Box<[u8]>, Self>,
    /// The same children where they can be positions in an array, in order.
    items: Vec<(usize, Box<[u8]>)>,
}

impl Pointers {
    /// The number of this pointer; the same for the same pointer.
    pub fn add(&mut self, pointer: &Pointer) -> PointerId {
        if let Some(id) = self.ids.get(pointer) {
            return *id;
        }
        let id = PointerId(self.ids.len());
        let mut branch = &mut self.root;
        for part in pointer.parts() {
            let key: Box<[u8]> = part.as_bytes().into();
            if let Some(index) = position(&part)
                && let Err(at) = branch.items.binary_search_by_key(&index, |(index, _)| *index)
            {
                branch.items.insert(at, (index, key.clone()));
            }
            branch = branch.keys.entry(key).or_insert_with(|| {
                self.branches += 1;
                Branch { number: self.branches, ..Branch::default() }
            });
        }
        branch.wanted = Some(id);
        self.ids.insert(pointer.clone(), id);
        id
    }

    /// The pointer with this number.
    pub fn pointer(&self, id: PointerId) -> Option<&Pointer> {
        self.ids.iter().find(|(_, known)| **known == id).map(|(pointer, _)| pointer)
    }

    fn read<'a>(&self, body: &'a [u8]) -> Vec<Option<Field<'a>>> {
        let mut reading = Reading {
            json: Json::new(body),
            found: Vec::new(),
            visited: vec![false; self.branches + 1],
        };
        reading.found.resize_with(self.ids.len(), || None);
        match reading.whole(&self.root) {
            Ok(()) => reading.found,
            Err(Malformed) => Vec::new(),
        }
    }
}

/// A position in an array: digits without a needless zero.
fn position(part: &str) -> Option<usize> {
    let plain = part == "0" || !part.starts_with(['0', '+']);
    part.parse().ok().filter(|_| plain)
}

struct Reading<'a> {
    json: Json<'a>,
    found: Vec<Option<Field<'a>>>,
    /// Of a repeated key the first value counts, so a pass comes to each branch once.
    visited: Vec<bool>,
}

impl Reading<'_> {
    fn whole(&mut self, root: &Branch) -> Result<(), Malformed> {
        match self.json.peek()? {
            b'{' | b'[' => self.value(root)?,
            // Nothing can be pointed at in it.
            _ => return Err(Malformed),
        }
        if self.json.is_over() { Ok(()) } else { Err(Malformed) }
    }

    /// Reads the value at `branch`; recursion ends where the pointers do.
    fn value(&mut self, branch: &Branch) -> Result<(), Malformed> {
        if let Some(visited) = self.visited.get_mut(branch.number) {
            *visited = true;
        }
        let field = match self.json.peek()? {
            b'{' if !branch.keys.is_empty() => {
                self.members(branch)?;
                Field::Nested
            }
            b'[' if !branch.items.is_empty() => {
                self.items(branch)?;
                Field::Nested
            }
            _ => Field::of(self.json.value()?),
        };
        if let Some(PointerId(id)) = branch.wanted
            && let Some(slot) = self.found.get_mut(id)
        {
            *slot = Some(field);
        }
        Ok(())
    }

    fn members(&mut self, branch: &Branch) -> Result<(), Malformed> {
        let mut key = self.json.first_key()?;
        while let Some(name) = key {
            match branch.keys.get(&*name.as_key()) {
                Some(child) if !self.is_visited(child) => self.value(child)?,
                _ => _ = self.json.value()?,
            }
            key = self.json.next_key()?;
        }
        Ok(())
    }

    fn is_visited(&self, branch: &Branch) -> bool {
        self.visited.get(branch.number).is_some_and(|visited| *visited)
    }

    fn items(&mut self, branch: &Branch) -> Result<(), Malformed> {
        let mut wanted = branch.items.iter().peekable();
        let mut more = self.json.first_item()?;
        let mut index = 0;
        while more {
            let here = wanted.next_if(|(wanted, _)| *wanted == index);
            match here.and_then(|(_, key)| branch.keys.get(key)) {
                Some(child) => self.value(child)?,
                None => _ = self.json.value()?,
            }
            more = self.json.next_item()?;
            index += 1;
        }
        Ok(())
    }
}

/// A value that somebody asks for.
#[derive(Debug)]
pub enum Field<'a> {
    /// Characters.
    Text(FieldText<'a>),
    /// A number, and how it is written.
    Number(Decimal<'a>, &'a str),
    /// `true` or `false`.
    Boolean(bool),
    /// `null`.
    Null,
    /// An object or an array: it is there, and equals nothing.
    Nested,
}

/// Characters whose escapes are resolved once, when somebody looks.
#[derive(Debug)]
pub struct FieldText<'a> {
    text: Text<'a>,
    decoded: OnceCell<Option<Cow<'a, str>>>,
}

impl FieldText<'_> {
    /// The characters; none where the body's bytes mean none (half of a surrogate pair).
    pub fn get(&self) -> Option<&str> {
        self.decoded.get_or_init(|| self.text.decoded(usize::MAX)).as_deref()
    }
}

impl<'a> Field<'a> {
    fn of(value: Value<'a>) -> Self {
        match value {
            Value::Text(text) => Self::Text(FieldText { text, decoded: OnceCell::new() }),
            Value::Number(digits) => match (Decimal::parse(digits), str::from_utf8(digits)) {
                (Some(number), Ok(digits)) => Self::Number(number, digits),
                _ => Self::Nested,
            },
            Value::Boolean(value) => Self::Boolean(value),
            Value::Null => Self::Null,
            Value::Nested => Self::Nested,
        }
    }
}

/// A body and what is asked of it, read when the first question comes.
#[derive(Debug)]
pub struct Document<'a> {
    body: &'a [u8],
    pointers: &'a Pointers,
    fields: OnceCell<Vec<Option<Field<'a>>>>,
}

impl<'a> Document<'a> {
    /// Nothing is read yet.
    pub const fn new(body: &'a [u8], pointers: &'a Pointers) -> Self {
        Self { body, pointers, fields: OnceCell::new() }
    }

    /// The value that one of its pointers finds.
    pub fn get(&self, PointerId(id): PointerId) -> Option<&Field<'a>> {
        self.fields.get_or_init(|| self.pointers.read(self.body)).get(id)?.as_ref()
    }

    /// Whether the body is an object or array of JSON, in which something can be pointed at.
    pub fn is_json(&self) -> bool {
        self.pointers.ids.is_empty()
            || !self.fields.get_or_init(|| self.pointers.read(self.body)).is_empty()
    }

    /// Whether anybody has asked.
    pub fn was_read(&self) -> bool {
        self.fields.get().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(field: Option<&Field<'_>>) -> String {
        match field {
            None => "missing".to_owned(),
            Some(Field::Text(text)) => format!("{:?}", text.get()),
            Some(Field::Number(_, digits)) => (*digits).to_owned(),
            Some(Field::Boolean(value)) => value.to_string(),
            Some(Field::Null) => "null".to_owned(),
            Some(Field::Nested) => "nested".to_owned(),
        }
    }

    fn look(body: &[u8], pointers: &[&str]) -> Vec<String> {
        let mut set = Pointers::default();
        let ids: Vec<_> =
            pointers.iter().map(|text| set.add(&Pointer::parse(text).unwrap())).collect();
        let document = Document::new(body, &set);
        ids.into_iter().map(|id| show(document.get(id))).collect()
    }

    #[test]
    fn values_are_found_by_key_and_position_in_one_pass() {
        let body = br#" {"a":{"b":[10,{"c":"x\u00e9"}],"n":null},"t":true,"a/b":1.50,"m~n":{},"":5,"0":"zero"} "#;
        assert_eq!(
            look(
                body,
                &[
                    "/a/b/0", "/a/b/1/c", "/a/n", "/t", "/a~1b", "/m~0n", "/", "/0", "/a",
                    "/a/b/2", "/a/b/-", "/a/b/00", "/x/y"
                ]
            ),
            [
                "10",
                "Some(\"xé\")",
                "null",
                "true",
                "1.50",
                "nested",
                "5",
                "Some(\"zero\")",
                "nested",
                "missing",
                "missing",
                "missing",
                "missing"
            ]
        );
    }

    #[test]
    fn of_repeated_keys_the_first_counts_however_it_is_written() {
        assert_eq!(look(br#"{"a":1,"a":{"b":2},"a":3}"#, &["/a", "/a/b"]), ["1", "missing"]);
        assert_eq!(
            look(br#"{"\u0061":{"b":2},"a":{"b":3,"c":4}}"#, &["/a/b", "/a/c"]),
            ["2", "missing"]
        );
    }

    #[test]
    fn what_is_not_json_to_its_end_has_no_values() {
        for body in [
            &b""[..],
            b"5",
            b"\"a\"",
            b"{\"a\":1",
            b"{\"a\":1}x",
            b"{\"a\":1}{}",
            b"[1,]",
            b"{\"a\":01}",
            b"\xff",
        ] {
            assert_eq!(look(body, &["/a", "/0"]), ["missing", "missing"], "{body:?}");
        }
        assert_eq!(look(br#"{"a":"\ud800","b":1}"#, &["/a", "/b"]), ["None", "1"]);
    }

    #[test]
    fn depth_is_no_obstacle() {
        let deep = format!("{{\"x\":{}1{},\"a\":2}}", "[".repeat(500_000), "]".repeat(500_000));
        assert_eq!(look(deep.as_bytes(), &["/a", "/x/0/0"]), ["2", "nested"]);
        let nested = format!("{}7{}", "{\"k\":".repeat(511), "}".repeat(511));
        let pointer = "/k".repeat(POINTER_DEPTH_MAX);
        assert_eq!(look(nested.as_bytes(), &[&pointer]), ["nested"]);
        assert_eq!(Pointer::parse(&"/k".repeat(POINTER_DEPTH_MAX + 1)), Err(PointerError::Long));
    }

    #[test]
    fn pointers_are_checked() {
        assert_eq!(Pointer::parse(""), Err(PointerError::Slash));
        assert_eq!(Pointer::parse("a/b"), Err(PointerError::Slash));
        assert_eq!(Pointer::parse("/a~"), Err(PointerError::Escape));
        assert_eq!(Pointer::parse("/a~2b"), Err(PointerError::Escape));
        assert!(Pointer::parse("/a~01/~1").is_ok());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i32>().prop_map(Into::into),
            "[ab\"\\\\/é~]{0,4}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map("[ab0-2/~]{0,2}", inner, 0..5)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_pointer_finds_what_serde_json_finds(
            value in json(),
            pointers in prop::collection::vec("(/([ab0-2]|~0|~1){0,2}){1,4}", 1..8),
        ) {
            prop_assume!(value.is_object() || value.is_array());
            let body = value.to_string();
            let texts: Vec<&str> = pointers.iter().map(String::as_str).collect();
            for (pointer, found) in texts.iter().zip(look(body.as_bytes(), &texts)) {
                let expected = match value.pointer(pointer) {
                    None => "missing".to_owned(),
                    Some(serde_json::Value::String(text)) => format!("{:?}", Some(text.as_str())),
                    Some(serde_json::Value::Array(_) | serde_json::Value::Object(_)) => "nested".to_owned(),
                    Some(other) => other.to_string(),
                };
                prop_assert_eq!(found, expected, "{} in {}", pointer, body);
            }
        }

        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..60)) {
            drop(look(&body, &["/a", "/0/1"]));
        }
    }
}
