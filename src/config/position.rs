//! The text as a small tree in which every value knows its place.
//!
//! `serde_yaml` deserialises but keeps no positions and stops at its first error. This pass reads the
//! same text with a parser that keeps them, within bounds, and refuses what the format of routes
//! files has no use for: aliases, anchors, tags, several documents, keys that are there twice.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::config::problem::{Position, Report};

/// The deepest value of a routes file lies at 8; more is a mistake or an attack.
const DEPTH_MAX: usize = 24;

/// Lists, maps, keys and values. 10,000 routes have about 200,000.
const NODES_MAX: usize = 1_000_000;

/// The parser holds back what could still be a key until the line ends.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) at: Position,
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
    pub(super) key_at: Position,
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

/// Reads the text. `None` if it is not YAML or not within bounds, which is reported.
pub(super) fn parse(text: &str, report: &mut Report) -> Option<Node> {
    if let Some(position) = unprintable(text) {
        report
            .error(position, "an unprintable character: only tabs and newlines may be in the file");
        return None;
    }
    if let Some(index) = text.split('\n').position(|line| line.len() > LINE_BYTES_MAX) {
        let message = format!("a line of more than {LINE_BYTES_MAX} bytes: break it up");
        report.error(Position { line: index + 1, column: 1 }, message);
        return None;
    }
    let mut tree = Tree { report, stack: Vec::new(), root: None, nodes: 0, documents: 0 };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => tree.take(event, span)?,
            Err(error) => {
                let (position, message) = explain(&error, text);
                tree.report.error(position, message);
                return None;
            }
        }
    }
    let root = tree.root;
    if root.as_ref().is_none_or(Node::is_blank) {
        report.error(Position::START, "the file is empty: it needs sources, targets and routes");
        return None;
    }
    root
}

fn unprintable(text: &str) -> Option<Position> {
    let bad = |c: char| {
        (c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
            // Line breaks to YAML 1.1 but not to 1.2: two readers would see two files.
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    let (before, _) = text.split_at_checked(text.find(bad)?)?;
    let line = before.rsplit('\n').next().unwrap_or(before);
    Some(Position { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 })
}

/// Where an error of the parser is and what to do about it.
fn explain(error: &ScanError, text: &str) -> (Position, String) {
    let position =
        Position { line: error.marker().line().max(1), column: error.marker().col() + 1 };
    let line = text.lines().nth(position.line - 1).unwrap_or_default();
    let here = line.chars().nth(position.column - 1);
    let before_here = line.chars().take(position.column - 1).last();
    let indent = line.len() - line.trim_start().len();
    let message = if here == Some('*') || before_here == Some('*') {
        "text that begins with `*` is an alias to YAML: quote it, as in \"*\"".to_owned()
    } else if here == Some('!') || before_here == Some('!') {
        "text that begins with `!` is a tag to YAML: quote it, as in \"!ORDER_VIEWED\"".to_owned()
    } else if here == Some('&') || before_here == Some('&') {
        "text that begins with `&` is an anchor to YAML: quote it".to_owned()
    } else if line.chars().take(indent).any(|c| c == '\t') || here == Some('\t') {
        "a tab: YAML is indented with spaces".to_owned()
    } else if error.info().starts_with("mapping values are not allowed") {
        "a second `: ` in one value: quote text that has one in it, or mend the indentation"
            .to_owned()
    } else {
        format!("this is not YAML: {}", error.info())
    };
    (position, message)
}

enum Frame {
    List { at: Position, items: Vec<Node> },
    Map { at: Position, entries: Vec<Entry>, keys: HashMap<Box<str>, usize>, key: Option<Key> },
}

struct Key {
    text: Box<str>,
    at: Position,
    twice: bool,
}

struct Tree<'a> {
    report: &'a mut Report,
    stack: Vec<Frame>,
    root: Option<Node>,
    nodes: usize,
    documents: usize,
}

impl Tree<'_> {
    /// Takes one event; `None` when there is no going on.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let at = Position { line: span.start.line().max(1), column: span.start.col() + 1 };
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return self.stop(at, "a second YAML document: a routes file is one");
                }
            }
            Event::Alias(_) => {
                self.report.error(
                    at,
                    "aliases are not supported: write it out; text that begins with `*` wants quotes",
                );
                return self.put(Node { at, kind: Kind::Broken });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let kind = Kind::Scalar { text: text.as_ref().into(), plain };
                let kind = self.untagged(at, kind, anchor, tag.as_deref());
                return self.put(Node { at, kind });
            }
            Event::SequenceStart(anchor, tag) => {
                let broken = self.untagged(at, Kind::List(Vec::new()), anchor, tag.as_deref());
                return self.open(at, Frame::List { at, items: Vec::new() }, &broken);
            }
            Event::MappingStart(anchor, tag) => {
                let broken = self.untagged(at, Kind::Map(Vec::new()), anchor, tag.as_deref());
                let (entries, keys) = (Vec::new(), HashMap::new());
                return self.open(at, Frame::Map { at, entries, keys, key: None }, &broken);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.stack.pop()? {
                    Frame::List { at, items } => Node { at, kind: Kind::List(items) },
                    Frame::Map { at, entries, .. } => Node { at, kind: Kind::Map(entries) },
                };
                return self.put(node);
            }
        }
        Some(())
    }

    fn stop(&mut self, at: Position, message: impl Into<String>) -> Option<()> {
        self.report.error(at, message);
        None
    }

    /// Refuses tags and anchors.
    fn untagged(&mut self, at: Position, kind: Kind, anchor: usize, tag: Option<&Tag>) -> Kind {
        if let Some(tag) = tag {
            let tag = if tag.is_yaml_core_schema() {
                format!("!!{}", tag.suffix)
            } else {
                format!("{}{}", tag.handle, tag.suffix)
            };
            self.report.error(
                at,
                format!("`{tag}` without quotes is a tag to YAML: quote it, as in \"{tag}\""),
            );
            return Kind::Broken;
        }
        if anchor > 0 {
            self.report
                .error(at, "anchors are not supported; text that begins with `&` wants quotes");
            return Kind::Broken;
        }
        kind
    }

    fn open(&mut self, at: Position, frame: Frame, kind: &Kind) -> Option<()> {
        if self.stack.len() >= DEPTH_MAX {
            return self.stop(at, format!("nested more than {DEPTH_MAX} levels deep"));
        }
        if matches!(self.stack.last(), Some(Frame::Map { key: None, .. })) {
            return self.stop(at, "a key must be text; text with braces or brackets wants quotes");
        }
        // What is inside is still looked at: it may have problems of its own.
        if *kind == Kind::Broken && self.stack.is_empty() {
            return None;
        }
        self.count(at)?;
        self.stack.push(frame);
        Some(())
    }

    fn count(&mut self, at: Position) -> Option<()> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return self.stop(at, format!("more than {NODES_MAX} values: this file is too large"));
        }
        Some(())
    }

    /// Puts a complete value where it belongs.
    fn put(&mut self, mut node: Node) -> Option<()> {
        self.count(node.at)?;
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, keys, key, .. }) => match key.take() {
                Some(key) => {
                    if node.is_blank() {
                        // The parser puts nothing where the next thing begins.
                        node.at = key.at;
                    }
                    if !key.twice {
                        entries.push(Entry { key: key.text, key_at: key.at, value: node });
                    }
                }
                None => {
                    let Kind::Scalar { text, .. } = node.kind else {
                        return self.stop(node.at, "a key must be text");
                    };
                    let first = keys.get(&text).copied();
                    match first {
                        Some(line) => self.report.error(
                            node.at,
                            format!("the key \"{text}\" is there already, in line {line}"),
                        ),
                        None => _ = keys.insert(text.clone(), node.at.line),
                    }
                    *key = Some(Key { text, at: node.at, twice: first.is_some() });
                }
            },
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(text: &str) -> (Option<Node>, String) {
        let mut report = Report::new(Path::new("f"));
        let node = parse(text, &mut report);
        (node, report.finish().to_string())
    }

    #[test]
    fn every_value_knows_its_place_in_characters() {
        let (node, problems) = read("# é\nä:\n  - x\n  - ü: [1, \"é\", y]\n");
        assert_eq!(problems, "");
        let node = node.unwrap();
        let list = &node.entries()[0].value;
        assert_eq!(list.items()[0].at, Position { line: 3, column: 5 });
        let inner = list.items()[1].get("ü").unwrap();
        assert_eq!(inner.key_at, Position { line: 4, column: 5 });
        assert_eq!(inner.value.items()[2].at, Position { line: 4, column: 17 });
    }

    #[test]
    fn line_ends_of_windows_change_no_position() {
        let (unix, _) = read("a:\n  b: c\nd: \"e\"\n");
        let (windows, problems) = read("a:\r\n  b: c\r\nd: \"e\"\r\n");
        assert_eq!(problems, "");
        assert_eq!(unix, windows);
    }

    #[test]
    fn bounds_hold() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert_eq!(read(&deep).1, "f:1:25: error: nested more than 24 levels deep");
        let wide = format!("[{}]", "a,\n".repeat(NODES_MAX + 10));
        assert!(read(&wide).1.contains("more than 1000000 values"));
        let long = format!("a: b\n{{{}", "a,".repeat(LINE_BYTES_MAX));
        assert_eq!(read(&long).1, "f:2:1: error: a line of more than 262144 bytes: break it up");
        let blocks = "- ".repeat(100_000);
        assert!(read(&blocks).1.contains("levels deep"));
    }

    #[test]
    fn a_bomb_of_aliases_is_refused_at_its_first_alias() {
        let (_, problems) = read("a: &a [x, x]\nb: [*a, *a]\n");
        assert!(problems.starts_with("f:1:4: error: anchors are not supported"), "{problems}");
        assert!(problems.contains("f:2:5: error: aliases are not supported"), "{problems}");
    }

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
