//! Holds a file to the keys of the language and finds every problem of form at once.
//!
//! [`check`] returns the tree without what is wrong, so that the rest can be looked at for problems
//! of meaning in the same run.

use crate::config::keys::{self, CONDITION, HEADER, ROOT, SECRET, TESTS};
use crate::config::node::{Entry, Kind, Meaning, Node, meaning};
use crate::config::problem::{Report, Span};
use crate::config::suggest;

/// What kind of value is expected.
pub(super) enum Shape {
    /// Whatever it is.
    Anything,
    Boolean,
    /// A single value of any type, or a map of operators.
    Condition,
    /// Text, a map or a record.
    Header,
    Integer,
    List(&'static Self),
    Map(&'static str, &'static Self),
    OneOrMany,
    Record(&'static Record),
    /// A single value of any type.
    Scalar,
    /// Text; what it says.
    Text(&'static str),
}

/// A map with known keys.
pub(super) struct Record {
    pub(super) noun: &'static str,
    pub(super) keys: &'static [Key],
    /// Of no use without one of the keys that are written.
    pub(super) whole: bool,
}

pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) presence: Presence,
    pub(super) shape: Shape,
    /// What an editor says about it.
    pub(super) about: &'static str,
    /// A value of it as JSON, or nothing where the kind says enough.
    pub(super) example: &'static str,
}

impl Key {
    pub(super) const fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    pub(super) const fn example(self, example: &'static str) -> Self {
        Self { example, ..self }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Presence {
    Mandatory,
    Optional,
}

pub(super) const fn must(name: &'static str, shape: Shape) -> Key {
    Key { name, presence: Presence::Mandatory, shape, about: "", example: "" }
}

pub(super) const fn may(name: &'static str, shape: Shape) -> Key {
    Key { name, presence: Presence::Optional, shape, about: "", example: "" }
}

/// The same for a file of tests.
pub(super) fn check_tests(root: &Node, report: &mut Report) -> Option<Node> {
    Checker { report }.value(root, &Shape::Record(&TESTS), "the file", root.at)
}

/// Reports every problem of form. `None` if nothing usable is left.
pub(super) fn check(root: &Node, report: &mut Report) -> Option<Node> {
    Checker { report }.value(root, &ROOT, "the file", root.at.start().into())
}

struct Checker<'a> {
    report: &'a mut Report,
}

impl Checker<'_> {
    /// `what` names the value in messages; `owner` is where its absence of keys is reported.
    fn value(&mut self, node: &Node, shape: &Shape, what: &str, owner: Span) -> Option<Node> {
        let kind = match (shape, &node.kind) {
            (_, Kind::Broken) => return None,
            (Shape::Anything, kind) => kind.clone(),
            (Shape::Record(record), Kind::Map(entries)) => self.record(entries, record, owner)?,
            (Shape::Header, Kind::Map(entries)) => self.record(entries, &HEADER, owner)?,
            (Shape::Condition, Kind::Map(entries)) => self.record(entries, &CONDITION, owner)?,
            (Shape::Map(_, shape), Kind::Map(entries)) => self.map(entries, shape),
            // A heading whose entries are all commented out.
            (Shape::Record(record), _) if node.is_blank() => self.record(&[], record, owner)?,
            (Shape::Map(..), _) if node.is_blank() => Kind::Map(Vec::new()),
            (Shape::List(_), _) if node.is_blank() => Kind::List(Vec::new()),
            (Shape::List(shape), Kind::List(items)) => self.list(items, shape, what)?,
            (Shape::OneOrMany, Kind::List(items)) => {
                self.list(items, &Shape::Text("a name"), what)?
            }
            (_, Kind::Scalar { text, plain }) if fits(shape, text, *plain) => node.kind.clone(),
            (_, found) => {
                let message = format!("{what}: {}", mismatch(shape, found));
                let reported = self.report.error(node.at, message);
                match (shape, found.text()) {
                    (Shape::List(_), Some(text)) if !takes_secret(shape) => {
                        reported.help(format!("write it in brackets: [{text}]"));
                    }
                    (Shape::Boolean, Some("yes" | "no" | "on" | "off")) => {
                        reported.help("only true and false are booleans to YAML");
                    }
                    _ => {}
                }
                return None;
            }
        };
        Some(Node { at: node.at, kind })
    }

    fn record(&mut self, entries: &[Entry], record: &Record, owner: Span) -> Option<Kind> {
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let known = record.keys.iter().find(|key| key.name == &*entry.key);
            let Some(key) = known else {
                self.unknown_key(entry, record);
                continue;
            };
            if let Some(value) = self.value(&entry.value, &key.shape, key.name, entry.key_at) {
                kept.push(Entry { value, ..entry.clone_key() });
            }
        }
        let mandatory = record.keys.iter().filter(|key| key.presence == Presence::Mandatory);
        let mut complete = !record.whole || kept.len() == entries.len();
        for key in mandatory {
            if !entries.iter().any(|entry| &*entry.key == key.name) {
                self.report.error(owner, format!("{} needs \"{}\"", record.noun, key.name));
            }
            complete &= kept.iter().any(|entry| &*entry.key == key.name);
        }
        complete.then_some(Kind::Map(kept))
    }

    fn unknown_key(&mut self, entry: &Entry, record: &Record) {
        let known: Vec<_> = record.known().collect();
        let has = format!("{} has {}", record.noun, known.join(", "));
        let key = &entry.key;
        if !is_nameable(entry, record) {
            // Without its blank, `env:NAME` is one word.
            let is_glued = key.split_once(':').is_some_and(|(key, _)| known.contains(&key));
            let message = format!("this is no key: {has}");
            let reported = self.report.error(entry.key_at, message);
            return if is_glued {
                reported.help("write a blank behind the colon")
            };
        }
        let reported = self.report.error(entry.key_at, format!("unknown key \"{key}\": {has}"));
        match record.meant(key) {
            Some(meant) => reported.help(format!("did you mean \"{meant}\"?")),
            None => {
                if let Some(owner) = keys::owner_of(key) {
                    reported.help(format!("\"{key}\" is a key of {owner}"));
                }
            }
        }
    }

    fn map(&mut self, entries: &[Entry], shape: &Shape) -> Kind {
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let name = format!("\"{}\"", entry.key);
            let what = if is_nameable_in_map(entry, shape) { name } else { "this".to_owned() };
            if let Some(value) = self.value(&entry.value, shape, &what, entry.key_at) {
                kept.push(Entry { value, ..entry.clone_key() });
            }
        }
        Kind::Map(kept)
    }

    fn list(&mut self, items: &[Node], shape: &Shape, what: &str) -> Option<Kind> {
        let kept: Vec<_> =
            items.iter().filter_map(|item| self.value(item, shape, what, item.at)).collect();
        // Empty for our reasons is not empty as written, which is another problem.
        (!kept.is_empty() || items.is_empty()).then_some(Kind::List(kept))
    }
}

impl Record {
    /// The keys of this version.
    pub(super) fn known(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name)
    }

    fn meant(&self, key: &str) -> Option<&'static str> {
        suggest::nearest(key, self.known())
    }
}

/// Whether an unknown key may be shown. Where secrets are written, a word without a value is more
/// likely one of them than a key, and so is what looks like no key of any program.
pub(super) fn is_nameable(entry: &Entry, record: &Record) -> bool {
    let of_secrets = ["a header's value", "a secret", "sign", "verify"].contains(&record.noun);
    let has_value = !entry.value.is_blank() && entry.value.kind != Kind::Broken;
    let is_word = entry.key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    // With more in it than keys have, it is what stood before or behind one.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_key = has_value && entry.key.bytes().all(is_name);
    let is_likely = if of_secrets { has_value && is_word } else { is_key || is_word };
    is_likely || record.meant(&entry.key).is_some()
}

/// The same of a key of the operator's own: where credentials are written, `X-Key:secret` without
/// the blank in it is a key without a value.
pub(super) fn is_nameable_in_map(entry: &Entry, shape: &Shape) -> bool {
    let is_credential = matches!(shape, Shape::Header) || takes_secret(shape);
    let has_value = !entry.value.is_blank() && entry.value.kind != Kind::Broken;
    let is_word = entry.key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    !is_credential || has_value || is_word
}

/// Whether what stands here, or could stand in it, is a secret.
pub(super) fn takes_secret(shape: &Shape) -> bool {
    match shape {
        Shape::List(inner) | Shape::Map(_, inner) => takes_secret(inner),
        Shape::Record(record) => record.keys.iter().any(|key| takes_secret(&key.shape)),
        Shape::Text("the secret") => true,
        Shape::Anything
        | Shape::Boolean
        | Shape::Condition
        | Shape::Header
        | Shape::Integer
        | Shape::OneOrMany
        | Shape::Scalar
        | Shape::Text(_) => false,
    }
}

impl Entry {
    fn clone_key(&self) -> Self {
        let value = Node { at: self.value.at, kind: Kind::Broken };
        Self { key: self.key.clone(), key_at: self.key_at, value }
    }
}

fn fits(shape: &Shape, text: &str, plain: bool) -> bool {
    match shape {
        Shape::Boolean => plain && matches!(meaning(text), Meaning::Boolean(_)),
        Shape::Integer => plain && matches!(meaning(text), Meaning::Integer(_)),
        Shape::Header | Shape::OneOrMany | Shape::Text(_) => {
            !plain || meaning(text) == Meaning::Text
        }
        Shape::Condition | Shape::Scalar => !plain || !text.is_empty(),
        Shape::Anything => true,
        Shape::List(_) | Shape::Map(..) | Shape::Record(_) => false,
    }
}

fn mismatch(shape: &Shape, found: &Kind) -> String {
    let expected = match shape {
        Shape::Anything => "anything",
        Shape::Boolean => "true or false",
        Shape::Condition => "a value, or a condition such as {gte: 100}",
        Shape::Scalar => "a single value",
        Shape::Header => "text, {env: NAME} or {file: PATH}",
        Shape::Integer => "a whole number",
        Shape::List(_) => "a list, as in [a, b]",
        Shape::Map(names, _) => return format!("expected a map of {names}, found {}", kind(found)),
        Shape::OneOrMany => "a name or a list of names",
        Shape::Record(record) if std::ptr::eq(*record, &raw const SECRET) => {
            "a secret, as in {env: NAME}"
        }
        Shape::Record(record) => {
            let keys: Vec<_> = record.known().take(3).collect();
            return format!(
                "expected a map of keys such as {}, found {}",
                keys.join(", "),
                kind(found)
            );
        }
        Shape::Text(what) => what,
    };
    let text_wanted = matches!(
        shape,
        Shape::Header | Shape::OneOrMany | Shape::Text("text" | "a name" | "the secret")
    );
    let hint = match found {
        Kind::Scalar { text, plain: true } if text_wanted && !text.is_empty() => ": quote it",
        _ => "",
    };
    format!("expected {expected}, found {}{hint}", kind(found))
}

fn kind(found: &Kind) -> String {
    match found {
        Kind::Broken => "something else".to_owned(),
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "a map".to_owned(),
        Kind::Scalar { plain: false, .. } => "text".to_owned(),
        // Never the text itself: it could be a secret in a wrong place.
        Kind::Scalar { text, plain: true } => match meaning(text) {
            Meaning::Boolean(value) => format!("{value}"),
            Meaning::Null => "nothing".to_owned(),
            Meaning::Integer(_) | Meaning::Number => "a number".to_owned(),
            Meaning::Text => "text".to_owned(),
        },
    }
}
