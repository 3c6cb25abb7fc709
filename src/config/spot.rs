//! Places in the tree, found again while what was deserialised from it is compiled.

use std::ops::Range;

use crate::config::node::{Entry, Kind, Node};
use crate::config::problem::{Position, Span};

/// A place in the tree that follows what was deserialised from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) at: Span,
    /// Where it is said what is missing in it: at its key, if it is below that.
    name: Span,
    node: Option<&'a Node>,
}

impl<'a> Spot<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        Self { at: node.at, name: node.at, node: Some(node) }
    }

    /// The value of a key; where it is missing, the place of its map.
    pub(super) fn key(self, key: &str) -> Self {
        self.below_key(self.node.and_then(|node| node.get(key)))
    }

    /// The value of the first key if it is there, else of the second.
    pub(super) fn key_or(self, key: &str, other: &str) -> Self {
        let has_it = self.node.is_some_and(|node| node.get(key).is_some());
        self.key(if has_it { key } else { other })
    }

    /// The value of an entry by number.
    pub(super) fn entry(self, index: usize) -> Self {
        self.below_key(self.raw_entry(index))
    }

    /// A part of a single value, in bytes of its text; all of it where it has escapes.
    pub(super) fn part(self, part: &Range<usize>) -> Span {
        let (Some(Kind::Scalar { text, plain }), Some(width)) =
            (self.node.map(|node| &node.kind), self.at.width())
        else {
            return self.at;
        };
        let quote = usize::from(!plain);
        let columns = |text: &str| text.chars().count();
        let ends = [part.start, part.end].map(|end| text.get(..end).map(columns));
        let [Some(from), Some(to)] = ends else { return self.at };
        if columns(text) + 2 * quote != width || from == to {
            return self.at;
        }
        let start = self.at.start();
        let column = |count| Position { column: start.column + quote + count, ..start };
        Span::new(column(from), column(to))
    }

    /// A single value as it is written.
    pub(super) fn text(self) -> Option<&'a str> {
        self.node?.text()
    }

    /// The number of the entry with this key.
    pub(super) fn index_of(self, key: &str) -> Option<usize> {
        self.node?.entries().iter().position(|entry| &*entry.key == key)
    }

    /// The place of an entry's key.
    pub(super) fn entry_key(self, index: usize) -> Span {
        self.raw_entry(index).map_or(self.at, |entry| entry.key_at)
    }

    /// An item of a list.
    pub(super) fn item(self, index: usize) -> Self {
        match self.node.and_then(|node| node.items().get(index)) {
            Some(node) => Self::new(node),
            None => Self { at: self.name, name: self.name, node: None },
        }
    }

    fn raw_entry(self, index: usize) -> Option<&'a Entry> {
        self.node.and_then(|node| node.entries().get(index))
    }

    fn below_key(self, entry: Option<&'a Entry>) -> Self {
        let Some(Entry { key_at, value, .. }) = entry else {
            return Self { at: self.name, name: self.name, node: None };
        };
        let is_below = value.at.line() > key_at.line();
        Self { at: value.at, name: if is_below { *key_at } else { value.at }, node: Some(value) }
    }
}

/// Each name of a list, or the only one, with its place.
pub(super) fn listed_node(node: &Node) -> Vec<(&str, Span)> {
    let text = |node: &'_ Node| matches!(node.kind, Kind::Scalar { .. });
    let one = std::iter::once(node).filter(|node| text(node));
    let all = one.chain(node.items());
    all.filter_map(|node| Some((Spot::new(node).text()?, node.at))).collect()
}
