//! The text as a small tree in which every value knows its place.
//!
//! `serde_yaml` deserialises but keeps no positions and stops at its first error. This pass reads the
//! same text with a parser that keeps them, within bounds, and refuses what the format of routes
//! files has no use for: aliases, anchors, tags, several documents, keys that are there twice.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as ParserSpan, Tag};

use crate::config::node::{Entry, Kind, Node};
use crate::config::problem::{Position, Report, Span};
use crate::config::{keys, quote};

/// The deepest value of a routes file lies at 8; more is a mistake or an attack.
const DEPTH_MAX: usize = 24;

/// Lists, maps, keys and values. 10,000 routes have about 200,000.
const NODES_MAX: usize = 1_000_000;

/// The parser holds back what could still be a key until the line ends.
pub(super) const LINE_BYTES_MAX: usize = 256 * 1024;

/// Stands for a star without quotes, which no parser goes on behind. In a text it means nothing.
const STAR: char = '\u{e000}';

/// So many of them are read past.
const STARS_MAX: usize = 100;

/// And no more is read again for that.
const READ_AGAIN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Up to here comparing a key with those before it costs less than keeping a table of them.
const KEYS_LOOKED_THROUGH: usize = 16;

/// Reads the text.
///
/// # Errors
///
/// What was read until it was not YAML or not within bounds, which is reported.
pub(super) fn parse(text: &str, report: &mut Report) -> Result<Node, Option<Node>> {
    if let Some(position) = unprintable(text) {
        report
            .error(position, "an unprintable character: only tabs and newlines may be in the file");
        return Err(None);
    }
    if let Some(index) = quote::lines(text).position(|line| line.len() > LINE_BYTES_MAX) {
        let message = format!("a line of more than {LINE_BYTES_MAX} bytes: break it up");
        report.error(Position { line: index + 1, column: 1 }, message);
        return Err(None);
    }
    let mut found = report.empty();
    let mut tree = read(text, &mut found);
    if let Err((_, Some(star))) = tree
        && !text.contains(STAR)
    {
        (tree, found) = read_past(star, text, report).unwrap_or((tree, found));
    }
    *report = found;
    tree.map_err(|(so_far, _)| so_far)
}

/// What was read; an error says how far, and where a star without quotes ended it.
type Read = Result<Node, (Option<Node>, Option<Position>)>;

/// A star without quotes ends what the parser can read: what is behind it is read all the same.
fn read_past(star: Position, text: &str, report: &Report) -> Option<(Read, Report)> {
    let mut mended = text.to_owned();
    let (mut star, mut last) = (Some(star), None);
    for _ in 0..STARS_MAX.min(READ_AGAIN_BYTES_MAX / text.len().max(1)) {
        let Some(at) = star.filter(|at| mend(&mut mended, *at)) else { break };
        let mut found = report.empty();
        let tree = read(&mended, &mut found);
        star = tree.as_ref().err().and_then(|(_, star)| *star).filter(|next| *next != at);
        last = Some((tree, found));
    }
    last
}

fn read(text: &str, report: &mut Report) -> Read {
    let blanks = Blanks { chars: text.chars(), index: 0, count: 0 };
    let mut tree = Tree { report, blanks, stack: Vec::new(), root: None, nodes: 0, documents: 0 };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (taken, star) = match event {
            Ok((event, span)) => (tree.take(event, span), None),
            Err(error) => (None, explain(&error, text, tree.report)),
        };
        if taken.is_none() {
            return Err((tree.read_so_far(), star));
        }
    }
    match tree.root {
        Some(root) if !root.is_blank() => Ok(root),
        root => {
            let message = "the file is empty: it needs sources, targets and routes";
            report.error(Position::START, message);
            Err((root, None))
        }
    }
}

/// Puts [`STAR`] in the place of the star there; false if there is none.
fn mend(text: &mut String, at: Position) -> bool {
    let lines = text.split_inclusive('\n');
    let before: usize = lines.take(at.line.saturating_sub(1)).map(str::len).sum();
    let line = text.get(before..).unwrap_or_default();
    let Some((offset, '*')) = line.char_indices().nth(at.column.saturating_sub(1)) else {
        return false;
    };
    let place = before + offset;
    text.replace_range(place..=place, STAR.encode_utf8(&mut [0; 4]));
    true
}

fn unprintable(text: &str) -> Option<Position> {
    let bad = |c: char| {
        (c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
            // Line breaks to YAML 1.1 but not to 1.2: two readers would see two files.
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    let (before, _) = text.split_at_checked(text.find(bad)?)?;
    Some(quote::position_after(before))
}

/// Reports an error of the parser, where it is and what to do about it. Answers where a star without
/// quotes is, if that is what it is.
fn explain(error: &ScanError, text: &str, report: &mut Report) -> Option<Position> {
    let position =
        Position { line: error.marker().line().max(1), column: error.marker().col() + 1 };
    let line = quote::lines(text).nth(position.line - 1).unwrap_or_default();
    let before = |count: usize| line.chars().skip(position.column.saturating_sub(count + 1));
    let here = before(0).next();
    let is_here = |c: char| here == Some(c) || before(1).next() == Some(c);
    let indent = line.len() - line.trim_start().len();
    if is_here('*') {
        let from = usize::from(here != Some('*'));
        report.error(position, star(before(from)));
        return Some(Position { column: position.column.saturating_sub(from), ..position });
    } else if is_here('!') {
        let message =
            "text that begins with `!` is a tag to YAML: quote it, as in \"!ORDER_VIEWED\"";
        report.error(position, message);
    } else if is_here('&') {
        report.error(position, "text that begins with `&` is an anchor to YAML: quote it");
    } else if line.chars().take(indent).any(|c| c == '\t') || here == Some('\t') {
        report.error(position, "a tab: YAML is indented with spaces");
    } else if error.info().starts_with("mapping values are not allowed") {
        let message =
            "a second `: ` in one value: quote text that has one in it, or mend the indentation";
        report.error(position, message);
    } else {
        let reported = report.error(position, format!("this is not YAML: {}", error.info()));
        if let Some(help) = help_for(error.info()) {
            reported.help(help);
        }
    }
    None
}

/// What to do about a star without quotes, with which the rest of the line begins.
fn star(rest: impl Iterator<Item = char>) -> String {
    let example = pattern_at(rest).unwrap_or_else(|| "*".to_owned());
    format!("text that begins with `*` is an alias to YAML: quote it, as in \"{example}\"")
}

/// What to look for, where the parser names only what it did not find.
fn help_for(info: &str) -> Option<&'static str> {
    let helps = [
        ("flow", "a [ or { above is without its end"),
        ("illegal placement of ':'", "a [ or { above is without its end"),
        ("quoted scalar", "a quote is without its end: each \" or ' wants a second one"),
        ("found a tab", "write blanks in place of the tab, or put quotes around the value"),
        (
            "did not find expected",
            "keys of one map, and items of one list, begin in the same column",
        ),
    ];
    helps.iter().find(|(words, _)| info.contains(words)).map(|(_, help)| *help)
}

/// The name of activities without its quotes; nothing else, which could be a secret.
fn pattern_at(rest: impl Iterator<Item = char>) -> Option<String> {
    let pattern: String = rest.take_while(|c| !" \t,]}#".contains(*c)).collect();
    let is_name = |c: char| c.is_ascii_uppercase() || "*?_".contains(c);
    pattern.chars().all(is_name).then_some(pattern)
}

enum Frame {
    List {
        at: Span,
        items: Vec<Node>,
    },
    /// In `keys` is where each key is, once there are so many that looking through them takes long.
    Map {
        at: Span,
        entries: Vec<Entry>,
        keys: HashMap<Box<str>, usize>,
        key: Option<Key>,
    },
}

struct Key {
    text: Box<str>,
    at: Span,
    twice: bool,
}

/// Counts the blanks before a place; places are asked for in the order of the text.
struct Blanks<'a> {
    chars: std::str::Chars<'a>,
    index: usize,
    count: usize,
}

impl Blanks<'_> {
    fn before(&mut self, index: usize) -> usize {
        for c in self.chars.by_ref().take(index.saturating_sub(self.index)) {
            self.count = if matches!(c, ' ' | '\t') { self.count + 1 } else { 0 };
        }
        self.index = self.index.max(index);
        self.count
    }
}

struct Tree<'a> {
    report: &'a mut Report,
    blanks: Blanks<'a>,
    stack: Vec<Frame>,
    root: Option<Node>,
    nodes: usize,
    documents: usize,
}

impl Tree<'_> {
    /// Takes one event; `None` when there is no going on.
    fn take(&mut self, event: Event<'_>, span: ParserSpan) -> Option<()> {
        let at = span_of(span);
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
                if plain && let Some(rest) = text.strip_prefix(STAR) {
                    self.report.error(at.start(), star(std::iter::once('*').chain(rest.chars())));
                    return self.put(Node { at, kind: Kind::Broken });
                }
                let is_quoted =
                    matches!(style, ScalarStyle::DoubleQuoted | ScalarStyle::SingleQuoted);
                let at = if is_quoted { self.without_blanks(at, span.end.index()) } else { at };
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
                let node = self.stack.pop()?.close(at);
                return self.put(node);
            }
        }
        Some(())
    }

    /// The parser counts blanks behind a closing quote to what is quoted.
    fn without_blanks(&mut self, at: Span, end_index: usize) -> Span {
        let (start, end) = (at.start(), at.end());
        let column = end.column.saturating_sub(self.blanks.before(end_index));
        Span::new(start, Position { column: column.max(1), ..end })
    }

    fn stop(&mut self, at: Span, message: impl Into<String>) -> Option<()> {
        self.report.error(at, message);
        None
    }

    /// Refuses tags and anchors.
    fn untagged(&mut self, at: Span, kind: Kind, anchor: usize, tag: Option<&Tag>) -> Kind {
        if let Some(tag) = tag {
            let tag = if tag.is_yaml_core_schema() {
                format!("!!{}", tag.suffix)
            } else {
                format!("{}{}", tag.handle, tag.suffix)
            };
            let message = if self.is_name_expected() {
                format!("`{tag}` without quotes is a tag to YAML: quote it, as in \"{tag}\"")
            } else {
                // It could be a secret that begins so.
                "text that begins with `!` is a tag to YAML: quote it".to_owned()
            };
            self.report.error(at, message);
            return Kind::Broken;
        }
        if anchor > 0 {
            self.report
                .error(at, "anchors are not supported; text that begins with `&` wants quotes");
            return Kind::Broken;
        }
        kind
    }

    /// Whether what comes next is the name of an activity, resource, source or target.
    fn is_name_expected(&self) -> bool {
        let key = self.stack.iter().rev().find_map(|frame| match frame {
            Frame::List { .. } => None,
            Frame::Map { key, .. } => Some(key.as_ref().map(|key| &*key.text)),
        });
        matches!(key.flatten(), Some("activity" | "resource" | "source" | "to"))
    }

    fn open(&mut self, at: Span, frame: Frame, kind: &Kind) -> Option<()> {
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

    fn count(&mut self, at: Span) -> Option<()> {
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
                    let first = first_line(&text, entries, keys);
                    *key = Some(Key { text, at: node.at, twice: first.is_some() });
                    if let Some(line) = first {
                        self.report_twice(node.at, line);
                    }
                }
            },
        }
        Some(())
    }

    /// Reports a key that is there already. It is named where names are written, or if it is a word
    /// of the language: elsewhere it could be anything, a secret too.
    fn report_twice(&mut self, at: Span, line: usize) {
        let mut keys = self.stack.iter().rev().filter_map(|frame| match frame {
            Frame::List { .. } => None,
            Frame::Map { key, .. } => Some(key.as_ref().map_or("", |key| &*key.text)),
        });
        let key = keys.next().unwrap_or_default();
        let owner = keys.next().unwrap_or_default();
        let of_names = ["", "headers", "require_headers", "sources", "targets", "when"];
        let message = if of_names.contains(&owner) || keys::words().any(|word| word == key) {
            format!("the key \"{key}\" is there already, in line {line}")
        } else {
            format!("this key is there already, in line {line}")
        };
        self.report.error(at, message);
    }

    /// Everything that was read, when there is no going on.
    fn read_so_far(mut self) -> Option<Node> {
        while let Some(mut frame) = self.stack.pop() {
            if let Frame::Map { entries, key, .. } = &mut frame
                && let Some(Key { text, at, .. }) = key.take()
            {
                let value = Node { at: Span::new(at.end(), at.end()), kind: Kind::Broken };
                entries.push(Entry { key: text, key_at: at, value });
            }
            let (Frame::List { at, .. } | Frame::Map { at, .. }) = frame;
            let node = frame.close(at);
            match self.stack.last_mut() {
                None => self.root = Some(node),
                Some(Frame::List { items, .. }) => items.push(node),
                Some(Frame::Map { entries, key, .. }) => {
                    let Key { text, at, .. } = key.take()?;
                    entries.push(Entry { key: text, key_at: at, value: node });
                }
            }
        }
        self.root
    }
}

/// The line of a key that is there already.
fn first_line(text: &str, entries: &[Entry], keys: &mut HashMap<Box<str>, usize>) -> Option<usize> {
    if entries.len() < KEYS_LOOKED_THROUGH {
        let found = entries.iter().find(|entry| &*entry.key == text);
        return found.map(|entry| entry.key_at.line());
    }
    // No key is in the list twice: as many as are known are at its beginning.
    let unknown = entries.iter().skip(keys.len());
    keys.extend(unknown.map(|entry| (entry.key.clone(), entry.key_at.line())));
    keys.get(text).copied()
}

fn span_of(span: ParserSpan) -> Span {
    let [start, end] =
        [span.start, span.end].map(|at| Position { line: at.line().max(1), column: at.col() + 1 });
    Span::new(start, end)
}

impl Frame {
    /// The complete value. `end` is where the parser saw that it is: at its bracket, or at what
    /// follows it.
    fn close(self, end: Span) -> Node {
        let (at, last) = match &self {
            Self::List { at, items } => (*at, items.last().map(|item| item.at)),
            Self::Map { at, entries, .. } => (*at, entries.last().map(|entry| entry.value.at)),
        };
        // In front of its first value only a list or map in brackets has something of its own.
        let in_brackets = at.width() != Some(0);
        let bracket = Position { column: end.start().column + 1, ..end.start() };
        let end = if in_brackets { bracket } else { last.map_or(at.end(), Span::end) };
        let at = Span::new(at.start(), end);
        match self {
            Self::List { items, .. } => Node { at, kind: Kind::List(items) },
            Self::Map { entries, .. } => Node { at, kind: Kind::Map(entries) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(text: &str) -> (Option<Node>, String) {
        let mut report = Report::new(Path::new("f"));
        let node = parse(text, &mut report).ok();
        (node, report.finish().to_string())
    }

    #[test]
    fn every_value_knows_its_place_in_characters() {
        let (node, problems) = read("# é\nä:\n  - x\n  - ü: [1, \"é\", y]\n");
        assert_eq!(problems, "");
        let node = node.unwrap();
        let list = &node.entries()[0].value;
        assert_eq!(list.items()[0].at.start(), Position { line: 3, column: 5 });
        let inner = list.items()[1].get("ü").unwrap();
        assert_eq!(inner.key_at.start(), Position { line: 4, column: 5 });
        assert_eq!(inner.value.items()[2].at.start(), Position { line: 4, column: 17 });
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
}
