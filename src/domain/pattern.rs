//! Names with wildcards, and lists of them with exclusions.

use std::fmt;

/// A name in which `*` stands for any characters and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// The pattern as written, without a leading `!`.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The name, if there is no wildcard in it.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains(['*', '?'])).then_some(&*self.0)
    }

    /// What is fixed in it.
    fn anchor(&self) -> Anchor<'_> {
        let wild = ['*', '?'];
        let (Some(first), Some(last)) = (self.0.find(wild), self.0.rfind(wild)) else {
            return Anchor::Exact(&self.0);
        };
        let prefix = self.0.get(..first).unwrap_or_default();
        let suffix = self.0.get(last + 1..).unwrap_or_default();
        match (prefix, suffix) {
            ("", "") => Anchor::None,
            ("", suffix) => Anchor::Suffix(suffix),
            (prefix, _) => Anchor::Prefix(prefix),
        }
    }

    /// Whether `name` matches. Linear in practice: at most one place to come back to.
    pub fn matches(&self, name: &str) -> bool {
        let mut pattern = self.0.chars();
        let mut name = name.chars();
        let mut back: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
        loop {
            let name_here = name.clone();
            match (pattern.next(), name.next()) {
                (None, None) => return true,
                (Some('*'), _) => {
                    name = name_here;
                    back = Some((pattern.clone(), name.clone()));
                    if pattern.as_str().is_empty() {
                        return true;
                    }
                }
                (Some('?'), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => {
                    // Let the last `*` swallow one more character and try from there.
                    let Some((after_star, mut rest)) = back.take() else { return false };
                    if rest.next().is_none() {
                        return false;
                    }
                    pattern = after_star.clone();
                    name = rest.clone();
                    back = Some((after_star, rest));
                }
            }
        }
    }
}

/// What every name has that matches a pattern, for finding rules by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor<'a> {
    /// It is this name.
    Exact(&'a str),
    /// Nothing in particular.
    None,
    /// It begins so.
    Prefix(&'a str),
    /// It ends so.
    Suffix(&'a str),
}

/// A list of patterns and exclusions, as in `activity: ["ORDER_*", "!ORDER_VIEWED"]`.
///
/// An exclusion wins whatever the order; a list of exclusions only means all others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patterns {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Patterns {
    /// From the list as written.
    pub fn new<T: AsRef<str>>(list: impl IntoIterator<Item = T>) -> Self {
        let mut patterns = Self::default();
        for text in list {
            let text = text.as_ref();
            match text.strip_prefix('!') {
                Some(text) => patterns.exclude.push(Pattern::new(text)),
                None => patterns.include.push(Pattern::new(text)),
            }
        }
        patterns
    }

    /// Whether `name` is in the list.
    pub fn matches(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|pattern| pattern.matches(name)))
            && !self.exclude.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether it includes by name rather than everything, or everything but a few.
    pub fn is_selective(&self) -> bool {
        !self.include.is_empty() && self.include.iter().all(|pattern| &*pattern.0 != "*")
    }

    /// The pattern that excludes `name`.
    pub fn exclusion(&self, name: &str) -> Option<&Pattern> {
        self.exclude.iter().find(|pattern| pattern.matches(name))
    }

    /// What names must have to be in the list, one for each pattern that includes. None where the
    /// list has only exclusions.
    pub fn anchors(&self) -> Option<Vec<Anchor<'_>>> {
        let anchors: Vec<_> = self.include.iter().map(Pattern::anchor).collect();
        (!anchors.is_empty()).then_some(anchors)
    }

    /// The literal names in it, for bounded labels.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.include.iter().filter_map(Pattern::exact)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Patterns {
    /// What includes, then what excludes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let include = self.include.iter().map(|pattern| ("", pattern));
        let exclude = self.exclude.iter().map(|pattern| ("!", pattern));
        for (index, (mark, pattern)) in include.chain(exclude).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{mark}{pattern}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_match_as_an_operator_expects() {
        for (pattern, name, expected) in [
            ("ORDER_*", "ORDER_CREATED", true),
            ("ORDER_*", "ORDER_", true),
            ("ORDER_*", "ORDER", false),
            ("ORDER_*", "REORDER_CREATED", false),
            ("*_CREATED", "ORDER_CREATED", true),
            ("*_CREATED", "ORDER_CREATED_X", false),
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "x", false),
            ("?", "é", true),
            ("?", "", false),
            ("A?C", "ABC", true),
            ("*A*B*", "xxAyyBzz", true),
            ("*A*B", "AxBxA", false),
            ("*ab*abc", "ababababc", true),
            ("order_*", "ORDER_CREATED", false),
            ("**", "x", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn an_exclusion_wins_whatever_the_order_and_exclusions_only_mean_all_others() {
        for list in [["ORDER_*", "!ORDER_VIEWED"], ["!ORDER_VIEWED", "ORDER_*"]] {
            let patterns = Patterns::new(list);
            assert!(patterns.matches("ORDER_CREATED"));
            assert!(!patterns.matches("ORDER_VIEWED"));
            assert!(!patterns.matches("LISTING_DELIVERED"));
        }
        let patterns = Patterns::new(["!*_VIEWED"]);
        assert!(patterns.matches("ORDER_CREATED"));
        assert!(!patterns.matches("LISTING_VIEWED"));
        assert_eq!(patterns.anchors(), None);
    }

    #[test]
    fn an_anchor_is_what_every_match_has() {
        let anchors = [
            ("AB", Anchor::Exact("AB")),
            ("A*", Anchor::Prefix("A")),
            ("é?B", Anchor::Prefix("é")),
            ("*A?é", Anchor::Suffix("é")),
            ("*A*", Anchor::None),
            ("", Anchor::Exact("")),
        ];
        let found = Patterns::new(anchors.map(|(pattern, _)| pattern));
        assert_eq!(found.anchors(), Some(anchors.map(|(_, anchor)| anchor).to_vec()));
    }

    fn naive(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                naive(rest, name) || (!name.is_empty() && naive(pattern, &name[1..]))
            }
            (Some(('?', rest)), Some((_, tail))) => naive(rest, tail),
            (Some((a, rest)), Some((b, tail))) => a == b && naive(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                Pattern::new(&pattern).matches(&name),
                naive(&chars(&pattern), &chars(&name))
            );
        }
    }
}
