//! What of a file may be quoted. A secret is never shown, also where it does not belong.
//!
//! What is shown has been read as something that is no secret: a key, or a value that stands where
//! none is expected. All else is hidden: what stands under `value`, under keys that nobody knows, in
//! the place of a secret, a URL's user, password and query, values of headers but for placeholders,
//! and what looks like a token wherever it stands. Comments are left out. Where the file is not YAML from some place on, only words that every
//! routes file has are shown of the rest.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::config::keys;
use crate::config::node::{Entry, Kind, Node};
use crate::config::problem::Span;
use crate::config::quote::Page;
use crate::config::secret;
use crate::config::shape::{self, Record, Shape};
use crate::config::token::tokens;
use crate::config::value;
use crate::domain::known;
use crate::domain::signature::Scheme;

/// What becomes of a character of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Left out without a trace.
    Dropped,
    /// Something else stands in its place.
    Hidden,
    Shown,
}

/// What is known of the lines that are going to be quoted.
#[derive(Debug)]
pub(super) struct Mask<'a> {
    marks: HashMap<usize, Vec<Mark>>,
    /// Words that may be shown where nothing is known.
    words: HashSet<&'a str>,
    /// Whether nothing may be shown where nothing is known.
    is_strict: bool,
}

/// What becomes of a part of a line; columns from 1, the end not included.
#[derive(Debug)]
struct Mark {
    from: usize,
    to: usize,
    is_shown: bool,
}

/// How a value is judged.
#[derive(Clone, Copy)]
enum Rule {
    /// By what is expected in its place.
    As(&'static Shape),
    /// A text in its place would be a secret.
    Credential,
    Hidden,
    Shown,
}

/// After these words comes a secret, or it may.
const LEADING: [&str; 7] =
    ["Authorization", "password", "prefix", "secret", "secrets", "token", "value"];

impl<'a> Mask<'a> {
    pub(super) fn new(page: &Page<'a>, lines: &BTreeMap<usize, &'a str>) -> Self {
        let mut reader =
            Reader { lines, marks: HashMap::new(), is_whole: page.is_whole, last: Rule::Shown };
        if let Some(tree) = page.tree {
            reader.value(tree, Rule::As(&keys::ROOT));
        }
        // What comes next could still be the value that was read last, or be a part of it.
        let is_strict = page.is_whole || hides(reader.last, "");
        Self { marks: reader.marks, words: words(page.tree), is_strict }
    }

    /// What becomes of each character of a line.
    pub(super) fn fates(&self, number: usize, line: &str) -> Vec<Fate> {
        let chars: Vec<char> = line.chars().collect();
        let mut fates: Vec<Option<Fate>> = vec![None; chars.len()];
        for Mark { from, to, is_shown } in self.marks.get(&number).into_iter().flatten() {
            let fate = if *is_shown { Fate::Shown } else { Fate::Hidden };
            let range = from.saturating_sub(1)..to.saturating_sub(1).min(chars.len());
            fates.get_mut(range).unwrap_or_default().fill(Some(fate));
        }
        let mut is_strict = self.is_strict;
        let mut judged = Vec::with_capacity(chars.len());
        while let Some(c) = chars.get(judged.len()) {
            let at = judged.len();
            let is_open = |index: &usize| fates.get(*index) == Some(&None);
            let follows_blank = at == 0 || chars.get(at - 1).is_some_and(|c| c.is_whitespace());
            if let Some(Some(fate)) = fates.get(at) {
                judged.push(*fate);
            } else if *c == '#' && follows_blank {
                judged.resize(chars.len(), Fate::Dropped);
            } else if is_structure(*c) {
                judged.push(Fate::Shown);
            } else {
                let in_word = |index: &usize| {
                    is_open(index) && !chars.get(*index).copied().is_none_or(is_structure)
                };
                let word: String =
                    (at..).take_while(in_word).filter_map(|i| chars.get(i)).collect();
                let end = at + word.chars().count();
                // A key that was not taken into the tree, as one that is there twice.
                let is_key = chars.get(end) == Some(&':') && self.words.contains(&*word);
                let fate = self.fate_of_word(&word, &mut is_strict);
                judged.resize(end, if is_key { Fate::Shown } else { fate });
            }
        }
        judged
    }

    /// What becomes of a word of which nothing is known.
    fn fate_of_word(&self, word: &str, is_strict: &mut bool) -> Fate {
        let core = word.trim_matches(|c: char| c.is_ascii_punctuation() && c != '_');
        let is_known = core.is_empty() && word.len() <= 3
            || !*is_strict && (self.words.contains(core) || is_activity(core));
        *is_strict |= LEADING.contains(&core);
        if is_known { Fate::Shown } else { Fate::Hidden }
    }
}

/// What can be no part of a word.
fn is_structure(c: char) -> bool {
    c.is_whitespace() || matches!(c, '[' | ']' | '{' | '}' | ',' | ':' | '"' | '\'')
}

/// Whether it is made of words of which known activities are.
fn is_activity(core: &str) -> bool {
    let is_part = |word| known::activities().any(|name| name.split('_').any(|part| part == word));
    let mut words = core.split('_').filter(|word| !word.is_empty()).peekable();
    words.peek().is_some() && words.all(is_part)
}

/// The words of the language, and the names of sources and targets.
fn words(tree: Option<&Node>) -> HashSet<&str> {
    let mut words: HashSet<&str> = keys::words().collect();
    words.extend(["drop", "false", "keep", "none", "null", "true"]);
    words.extend(Scheme::ALL.map(Scheme::name));
    for section in ["sources", "targets"] {
        let names = tree.and_then(|tree| tree.get(section));
        words.extend(
            names
                .map(|entry| entry.value.entries())
                .unwrap_or_default()
                .iter()
                .map(|entry| &*entry.key),
        );
    }
    words
}

/// Goes through the tree once and marks what is in the lines in question.
struct Reader<'r, 'a> {
    lines: &'r BTreeMap<usize, &'a str>,
    marks: HashMap<usize, Vec<Mark>>,
    /// Whether nothing of the file is missing.
    is_whole: bool,
    /// How the last value was judged.
    last: Rule,
}

impl Reader<'_, '_> {
    fn value(&mut self, node: &Node, rule: Rule) {
        self.last = rule;
        match (&node.kind, rule) {
            (Kind::Broken, rule) => {
                // A name with a mark of YAML before it, and nothing more than that.
                let is_part = |c: char| c.is_ascii_alphanumeric() || "*?!&_-.".contains(c);
                let is_name = self.raw(node.at).is_some_and(|raw| raw.chars().all(is_part));
                let is_header = matches!(rule, Rule::As(Shape::Header));
                self.mark(node.at, is_name && !is_header && !hides(rule, ""));
            }
            (Kind::Scalar { text, plain }, rule) => self.scalar(node.at, text, *plain, rule),
            (Kind::List(items), rule) => {
                let rule = rule_of_items(rule);
                items.iter().for_each(|item| self.value(item, rule));
            }
            (Kind::Map(entries), Rule::As(Shape::Record(record))) => self.record(entries, record),
            (Kind::Map(entries), Rule::As(Shape::Header) | Rule::Credential) => {
                self.record(entries, &keys::HEADER);
            }
            (Kind::Map(entries), Rule::As(Shape::Condition)) => {
                self.record(entries, &keys::CONDITION);
            }
            (Kind::Map(entries), Rule::As(Shape::Map(_, shape))) => {
                for entry in entries {
                    let authenticates = matches!(shape, Shape::Header) && authenticates(&entry.key);
                    self.key(entry, shape::is_nameable_in_map(entry, shape));
                    self.value(
                        &entry.value,
                        if authenticates { Rule::Credential } else { Rule::As(shape) },
                    );
                }
            }
            (Kind::Map(entries), _) => {
                for entry in entries {
                    self.key(entry, false);
                    self.value(&entry.value, Rule::Hidden);
                }
            }
        }
    }

    fn record(&mut self, entries: &[Entry], record: &'static Record) {
        for entry in entries {
            let known = record.keys.iter().find(|key| key.name == &*entry.key);
            self.key(entry, known.is_some() || shape::is_nameable(entry, record));
            let is_prefix =
                std::ptr::eq(record, &raw const keys::HEADER) && &*entry.key == "prefix";
            let rule =
                known.filter(|_| !is_prefix).map_or(Rule::Hidden, |key| Rule::As(&key.shape));
            self.value(&entry.value, rule);
        }
    }

    fn key(&mut self, entry: &Entry, is_shown: bool) {
        let is_url = entry.key.contains("://") || entry.key.contains('@');
        let is_name = !is_url && tokens(&entry.key).next().is_none();
        self.mark(entry.key_at, is_shown && is_name && entry.key_at.width().is_some());
        self.last = Rule::Shown;
    }

    fn scalar(&mut self, at: Span, text: &str, plain: bool, rule: Rule) {
        if plain && text.is_empty() {
            // Nothing stands there, and its place is that of something else.
            return;
        }
        let is_url = text.contains("://")
            || text.contains('@')
            || matches!(rule, Rule::As(Shape::Text("a url")));
        let Some(raw) = self.raw(at) else { return self.mark(at, false) };
        let is_plain =
            if plain { raw == text } else { raw.get(1..raw.len().saturating_sub(1)) == Some(text) };
        // What has escapes in it is not found where it stands.
        let is_clear = is_plain || (is_quoted(&raw) && !is_url);
        if hides(rule, text) || !is_clear {
            return self.mark(at, false);
        }
        // Of a header's text only the placeholders are of interest; the rest may be a credential.
        let is_header = matches!(rule, Rule::As(Shape::Header));
        self.mark(at, !is_header);
        if is_header {
            if is_plain {
                self.mark_parts(at, plain, text, placeholders(text), true);
            }
            return;
        }
        if is_plain && is_url {
            self.mark_parts(at, plain, text, secrets_of_url(text, self.is_whole), false);
        }
        self.mark_parts(at, true, &raw, tokens(&raw), false);
    }

    /// Marks parts of a text in one line without escapes.
    fn mark_parts(
        &mut self,
        at: Span,
        plain: bool,
        text: &str,
        parts: impl Iterator<Item = (usize, usize)>,
        is_shown: bool,
    ) {
        let begin = at.start().column + usize::from(!plain);
        let column = |index| begin + text.get(..index).unwrap_or(text).chars().count();
        let parts = parts.map(|(from, to)| Mark { from: column(from), to: column(to), is_shown });
        self.marks.entry(at.line()).or_default().extend(parts);
    }

    /// What stands there, if it is in one line that is asked for.
    fn raw(&self, at: Span) -> Option<String> {
        let line = self.lines.get(&at.line())?;
        let width = at.width()?;
        Some(line.chars().skip(at.start().column - 1).take(width).collect())
    }

    fn mark(&mut self, at: Span, is_shown: bool) {
        let (start, end) = (at.start(), at.end());
        for (line, text) in self.lines.range(start.line..=end.line) {
            let from = if *line == start.line { start.column } else { 1 };
            let to = if *line == end.line { end.column } else { text.len() + 1 };
            self.marks.entry(*line).or_default().push(Mark { from, to, is_shown });
        }
    }
}

/// Whether a text in this place could be a secret.
fn hides(rule: Rule, text: &str) -> bool {
    match rule {
        Rule::Credential | Rule::Hidden => true,
        Rule::Shown => false,
        Rule::As(shape) => match shape {
            Shape::Text("the name of an environment variable") => !secret::is_conventional(text),
            Shape::Text("the name of a scheme" | "the name of a scheme that signs") => {
                !value::is_like_scheme(text)
            }
            shape => shape::takes_secret(shape),
        },
    }
}

fn rule_of_items(rule: Rule) -> Rule {
    match rule {
        Rule::As(Shape::List(shape)) => Rule::As(shape),
        Rule::As(shape @ Shape::Text(_)) => Rule::As(shape),
        Rule::As(shape) if !matches!(shape, Shape::Header) && !shape::takes_secret(shape) => {
            Rule::Shown
        }
        Rule::Shown => Rule::Shown,
        Rule::As(_) | Rule::Credential | Rule::Hidden => Rule::Hidden,
    }
}

fn is_quoted(raw: &str) -> bool {
    let ends = |quote: char| raw.len() >= 2 && raw.starts_with(quote) && raw.ends_with(quote);
    ends('"') || ends('\'')
}

/// The user, password, query and fragment of a url, wherever they begin. Where it may be the
/// beginning of one, everything behind its scheme.
fn secrets_of_url(text: &str, is_whole: bool) -> impl Iterator<Item = (usize, usize)> {
    let begin = text.find("://").map_or(0, |at| at + 3);
    let rest = text.get(begin..).unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let user = match rest.rfind('@') {
        Some(at) => Some(begin + at),
        // With its `@` lost, a user and a password are some strange host.
        None => {
            let authority = authority.split(['?', '#']).next().unwrap_or_default();
            (!is_host_and_port(authority)).then_some(begin + authority.len())
        }
    };
    // No url has a blank: what is behind it belongs to something else.
    let is_one = is_whole && !rest.contains(char::is_whitespace);
    let user = if is_one { user } else { Some(text.len()) };
    let host = user.unwrap_or(begin);
    let query = text.get(host..).and_then(|text| text.find(['?', '#'])).map(|at| host + at + 1);
    user.map(|at| (begin, at)).into_iter().chain(query.map(|at| (at, text.len())))
}

/// Whether it is a name or an address, with a port or without.
fn is_host_and_port(authority: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_address = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
    let (is_host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.bytes().all(is_address), port.strip_prefix(':')),
        None => match authority.split_once(':') {
            Some((host, port)) => (host.bytes().all(is_part), Some(port)),
            None => (authority.bytes().all(is_part), None),
        },
    };
    is_host && port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What stands in braces.
fn placeholders(text: &str) -> impl Iterator<Item = (usize, usize)> {
    text.match_indices('{').filter_map(|(from, _)| {
        let rest = text.get(from..)?;
        let inner = rest.get(1..)?.split(['{', '}']).next()?;
        Some((from, (from + inner.len() + 2).min(text.len())))
    })
}

/// Whether a header of this name says who sends it.
fn authenticates(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = ["auth", "cookie", "credential", "key", "pass", "secret", "sign", "token"];
    words.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests;
