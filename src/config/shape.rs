//! Which keys there are and what kind of value each takes; finds every problem of form at once.
//!
//! [`check`] returns the tree without what is wrong, so that the rest can be looked at for problems
//! of meaning in the same run. What a later version brings is refused by its name.

use crate::config::position::{Entry, Kind, Meaning, Node, meaning};
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
    noun: &'static str,
    pub(super) keys: &'static [Key],
    /// Of no use without one of the keys that are written.
    whole: bool,
}

pub(super) struct Key {
    pub(super) name: &'static str,
    presence: Presence,
    pub(super) shape: Shape,
}

#[derive(Clone, Copy, PartialEq)]
enum Presence {
    Mandatory,
    /// Comes with a later version.
    NotYet,
    Optional,
}

const fn must(name: &'static str, shape: Shape) -> Key {
    Key { name, presence: Presence::Mandatory, shape }
}

const fn may(name: &'static str, shape: Shape) -> Key {
    Key { name, presence: Presence::Optional, shape }
}

const fn not_yet(name: &'static str) -> Key {
    Key { name, presence: Presence::NotYet, shape: Shape::Boolean }
}

const DURATION: Shape = Shape::Text("a duration such as 10s");
const RATE: Shape = Shape::Text("a rate such as 100/s");
const HEADERS: Shape = Shape::Map("names of headers", &Shape::Header);
const HEADER_NAME: Shape = Shape::Text("the name of a header");
const VARIABLE: Shape = Shape::Text("the name of an environment variable");
const SECRET_TEXT: Shape = Shape::Text("the secret");
const PATH: Shape = Shape::Text("the path of a file");

/// The whole file.
pub(super) static ROOT: Shape = Shape::Record(&FILE);

static FILE: Record = Record {
    noun: "the file",
    keys: &[
        must("sources", Shape::Map("names of sources", &Shape::Record(&SOURCE))),
        must("targets", Shape::Map("names of targets", &Shape::Record(&TARGET))),
        must("routes", Shape::List(&Shape::Record(&ROUTE))),
        may("unrouted", Shape::Text("keep or drop")),
        may("defaults", Shape::Record(&DEFAULTS)),
    ],
    whole: false,
};

static SOURCE: Record = Record {
    noun: "a source",
    keys: &[
        must("path", Shape::Text("a path such as /webhooks/aryeo")),
        must("verify", Shape::Record(&VERIFY)),
        may("body_limit", Shape::Text("a size such as 2MiB")),
        may("rate_limit", RATE),
        may("duplicates", Shape::Record(&DUPLICATES)),
        may("silence_after", DURATION),
        may("require_headers", Shape::Map("names of headers", &Shape::Record(&SECRET))),
        may("activity", Shape::Text("the name of an activity")),
        not_yet("allow_from"),
        not_yet("client_certificate"),
    ],
    whole: false,
};

static VERIFY: Record = Record {
    noun: "verify",
    keys: &[
        must("scheme", Shape::Text("the name of a scheme")),
        may("secrets", Shape::List(&Shape::Record(&SECRET))),
        may("header", HEADER_NAME),
    ],
    whole: false,
};

static SIGN: Record = Record {
    noun: "sign",
    keys: &[
        must("scheme", Shape::Text("the name of a scheme")),
        may("secrets", Shape::List(&Shape::Record(&SECRET))),
        may("header", HEADER_NAME),
    ],
    whole: false,
};

static SECRET: Record = Record {
    noun: "a secret",
    keys: &[may("env", VARIABLE), may("file", PATH), may("value", SECRET_TEXT)],
    whole: true,
};

static DUPLICATES: Record = Record {
    noun: "duplicates",
    keys: &[may("activities", DURATION), may("bare", DURATION)],
    whole: false,
};

static TARGET: Record = Record {
    noun: "a target",
    keys: &[
        must("url", Shape::Text("a url")),
        must("sign", Shape::Record(&SIGN)),
        may("headers", HEADERS),
        may("forward_headers", Shape::List(&HEADER_NAME)),
        may("timeout", DURATION),
        may("retry", Shape::Record(&RETRY)),
        may("concurrency", Shape::Integer),
        may("rate_limit", RATE),
        may("tls", Shape::Record(&TLS)),
        not_yet("backlog_limit"),
        not_yet("paused"),
    ],
    whole: false,
};

static DEFAULTS: Record = Record {
    noun: "defaults",
    keys: &[
        may("headers", HEADERS),
        may("forward_headers", Shape::List(&HEADER_NAME)),
        may("timeout", DURATION),
        may("retry", Shape::Record(&RETRY)),
        may("concurrency", Shape::Integer),
        may("rate_limit", RATE),
        may("tls", Shape::Record(&TLS)),
        not_yet("backlog_limit"),
        not_yet("paused"),
    ],
    whole: false,
};

pub(super) static HEADER: Record = Record {
    noun: "a header's value",
    keys: &[may("env", VARIABLE), may("file", PATH), may("prefix", Shape::Text("text"))],
    whole: true,
};

static RETRY: Record = Record {
    noun: "retry",
    keys: &[
        may("first", DURATION),
        may("max", DURATION),
        may("for", DURATION),
        may("give_up_on", Shape::List(&Shape::Integer)),
    ],
    whole: false,
};

static TLS: Record = Record {
    noun: "tls",
    keys: &[
        may("ca", PATH),
        may("certificate", PATH),
        may("key", PATH),
        may("server_name", Shape::Text("a host name")),
    ],
    whole: false,
};

static ROUTE: Record = Record {
    noun: "a route",
    keys: &[
        must("name", Shape::Text("a name")),
        may("source", Shape::OneOrMany),
        may("activity", Shape::OneOrMany),
        may("resource", Shape::OneOrMany),
        must("to", Shape::List(&Shape::Text("the name of a target"))),
        may("headers", HEADERS),
        may("final", Shape::Boolean),
        may("when", Shape::Map("JSON pointers", &Shape::Condition)),
    ],
    whole: false,
};

pub(super) static CONDITION: Record = Record {
    noun: "a condition",
    keys: &[
        may("equals", Shape::Scalar),
        may("not", Shape::Condition),
        may("in", Shape::List(&Shape::Scalar)),
        may("gt", Shape::Scalar),
        may("gte", Shape::Scalar),
        may("lt", Shape::Scalar),
        may("lte", Shape::Scalar),
        may("prefix", Shape::Text("text")),
        may("suffix", Shape::Text("text")),
        may("exists", Shape::Boolean),
    ],
    whole: true,
};

static TESTS: Record = Record {
    noun: "the file",
    keys: &[must("routes", PATH), must("tests", Shape::List(&Shape::Record(&TEST)))],
    whole: false,
};

static TEST: Record = Record {
    noun: "a test",
    keys: &[
        may("name", Shape::Text("text")),
        may("source", Shape::Text("the name of a source")),
        may("activity", Shape::Text("the name of an activity")),
        may("body", Shape::Anything),
        may("body_file", PATH),
        must("expect", Shape::OneOrMany),
        may(
            "headers",
            Shape::Map("names of targets", &Shape::Map("names of headers", &Shape::Scalar)),
        ),
    ],
    whole: false,
};

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
            let key = match known {
                Some(key) if key.presence != Presence::NotYet => key,
                Some(key) => {
                    let message = format!("\"{}\" is not supported by this version", key.name);
                    self.report.error(entry.key_at, message);
                    continue;
                }
                None => {
                    self.unknown_key(entry, record);
                    continue;
                }
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
                if let Some(owner) = owner_of(key) {
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
    fn known(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().filter(|key| key.presence != Presence::NotYet).map(|key| key.name)
    }

    fn meant(&self, key: &str) -> Option<&'static str> {
        suggest::nearest(key, self.known())
    }
}

/// Every record, the outer ones first.
static RECORDS: [&Record; 13] = [
    &FILE,
    &SOURCE,
    &TARGET,
    &DEFAULTS,
    &ROUTE,
    &VERIFY,
    &SIGN,
    &SECRET,
    &DUPLICATES,
    &HEADER,
    &RETRY,
    &TLS,
    &CONDITION,
];

/// All keys of the language.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    RECORDS.iter().flat_map(|record| record.keys).map(|key| key.name)
}

/// What else has a key of this name.
fn owner_of(key: &str) -> Option<&'static str> {
    let owner = RECORDS.iter().find(|record| record.known().any(|known| known == key));
    owner.map(|record| record.noun)
}

/// Whether an unknown key may be shown. Where secrets are written, a word without a value is more
/// likely one of them than a key, and so is what looks like no key of any program.
pub(super) fn is_nameable(entry: &Entry, record: &Record) -> bool {
    let of_secrets = ["a header's value", "a secret", "sign", "verify"].contains(&record.noun);
    let has_value = !entry.value.is_blank() && entry.value.kind != Kind::Broken;
    let is_word = entry.key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let is_likely = if of_secrets { has_value && is_word } else { has_value || is_word };
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
        Shape::Record(_) => "a map of keys",
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
