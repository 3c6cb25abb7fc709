//! Names with wildcards, and lists of them with exclusions.

use std::fmt;

/// Two patterns of more characters than this by each other are not compared: nobody wrote them.
const COMPARED_MAX: usize = 256 * 256;

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
        // Wildcards take themselves too, and a name is compared faster than taken apart.
        *self.0 == *name || self.takes(name, |_| true)
    }

    /// Whether every name that matches `other` matches this one too. It may say no where it is so,
    /// and never says yes where it is not.
    pub fn covers(&self, other: &Self) -> bool {
        if let Some(name) = other.exact() {
            return self.matches(name);
        }
        // The other pattern is read as a name: what stands there for one character is taken by a `?`
        // or `*` of this one, what stands for any number of them only by a `*`.
        self.is_comparable(other) && self.takes(&other.0, |c| c != '*')
    }

    /// Whether some name matches both. It may say yes where none does, if they are absurdly long.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.exact(), other.exact()) {
            (Some(name), _) => other.matches(name),
            (_, Some(name)) => self.matches(name),
            (None, None) => !self.is_comparable(other) || self.meets(other),
        }
    }

    /// Whether two patterns with wildcards have a name in common: all pairs of beginnings that have
    /// one, line by line.
    fn meets(&self, other: &Self) -> bool {
        let other: Vec<char> = other.0.chars().collect();
        // Before the first character of this one, only stars of the other go on.
        let mut before: Vec<bool> = Vec::with_capacity(other.len() + 1);
        before.push(true);
        before.extend(other.iter().scan(true, |meet, c| {
            *meet &= *c == '*';
            Some(*meet)
        }));
        for a in self.0.chars() {
            let mut here = Vec::with_capacity(before.len());
            let mut left = a == '*' && before.first() == Some(&true);
            here.push(left);
            for (b, pair) in other.iter().zip(before.windows(2)) {
                let [above_left, above] =
                    [pair.first(), pair.last()].map(|meet| meet == Some(&true));
                left = if a == '*' || *b == '*' {
                    // A star takes nothing, or what the other pattern has here.
                    above || left
                } else {
                    above_left && (a == *b || a == '?' || *b == '?')
                };
                here.push(left);
            }
            before = here;
        }
        before.last() == Some(&true)
    }

    fn is_comparable(&self, other: &Self) -> bool {
        self.0.len().saturating_mul(other.0.len()) <= COMPARED_MAX
    }

    /// What every match begins with.
    pub fn head(&self) -> &str {
        self.0.split(['*', '?']).next().unwrap_or_default()
    }

    /// What every match ends with.
    pub fn tail(&self) -> &str {
        self.0.rsplit(['*', '?']).next().unwrap_or_default()
    }

    /// Whether the whole of `name` is taken, where a `?` takes what `single` says.
    fn takes(&self, name: &str, single: impl Fn(char) -> bool) -> bool {
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
                (Some('?'), Some(b)) if single(b) => {}
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

    /// Whether every name in `other` is in this list too. As [`Pattern::covers`], it may say no where
    /// it is so, and never says yes where it is not.
    pub fn covers(&self, other: &Self) -> bool {
        let any = [Pattern::new("*")];
        let includes = if other.include.is_empty() { &any[..] } else { &other.include };
        includes.iter().all(|pattern| self.covers_part(pattern, other))
    }

    /// Whether every name in `other` that it has by this pattern is in this list.
    fn covers_part(&self, pattern: &Pattern, other: &Self) -> bool {
        let taken_out = |pattern: &Pattern| other.exclude.iter().any(|out| out.covers(pattern));
        if taken_out(pattern) {
            return true;
        }
        if let Some(name) = pattern.exact() {
            return self.matches(name);
        }
        (self.include.is_empty() || self.include.iter().any(|own| own.covers(pattern)))
            && self.exclude.iter().all(|own| !own.overlaps(pattern) || taken_out(own))
    }

    /// The patterns that include.
    pub fn includes(&self) -> &[Pattern] {
        &self.include
    }

    /// Each as it is written: what includes, then what excludes.
    pub fn written(&self) -> impl Iterator<Item = String> {
        let include = self.include.iter().map(|pattern| pattern.to_string());
        include.chain(self.exclude.iter().map(|pattern| format!("!{pattern}")))
    }

    /// How many patterns it has.
    pub const fn len(&self) -> usize {
        self.include.len() + self.exclude.len()
    }

    /// Whether it has none, and so means everything.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
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

    #[test]
    fn a_pattern_covers_what_matches_less() {
        for (wide, narrow, expected) in [
            ("*", "ORDER_*", true),
            ("ORDER_*", "*", false),
            ("ORDER_*", "ORDER_CREATED", true),
            ("ORDER_*", "ORDER_*_FAILED", true),
            ("ORDER_*", "ORDER*", false),
            ("*_CREATED", "ORDER_*_CREATED", true),
            ("*A*", "*A*A*", true),
            ("?*", "A*", true),
            ("?", "*", false),
            ("A?", "A*", false),
            ("A?", "A?", true),
            ("A", "?", false),
        ] {
            let [wide_one, narrow_one] = [wide, narrow].map(Pattern::new);
            assert_eq!(wide_one.covers(&narrow_one), expected, "{wide} covers {narrow}");
        }
        let long = Pattern::new(&format!("*{}", "a".repeat(COMPARED_MAX)));
        assert!(!Pattern::new("*b*").covers(&long) && Pattern::new("b*c").overlaps(&long));
    }

    #[test]
    fn a_list_covers_another_only_with_what_it_excludes() {
        let covers =
            |wide: &[&str], narrow: &[&str]| Patterns::new(wide).covers(&Patterns::new(narrow));
        assert!(covers(&["ORDER_*"], &["ORDER_PAID", "ORDER_*_FAILED"]));
        assert!(covers(&["ORDER_*", "LISTING_*"], &["LISTING_MERGED", "ORDER_*"]));
        assert!(!covers(&["ORDER_*", "!ORDER_VIEWED"], &["ORDER_*"]));
        assert!(covers(&["ORDER_*", "!ORDER_VIEWED"], &["ORDER_*", "!*_VIEWED"]));
        assert!(covers(&["ORDER_*", "!*_VIEWED"], &["ORDER_PAYMENT_*", "!*_VIEWED"]));
        assert!(covers(&["!LISTING_*"], &["ORDER_*"]));
        assert!(!covers(&["!ORDER_VIEWED"], &["ORDER_*"]));
        assert!(covers(&["*"], &["!ORDER_*"]));
        assert!(!covers(&["ORDER_*"], &["!LISTING_*"]));
    }

    /// All names of up to four letters out of three, one of which is in no pattern.
    fn names() -> Vec<String> {
        let mut names = vec![String::new()];
        let mut begin = 0;
        for _ in 0..4 {
            let longer: Vec<_> = names[begin..]
                .iter()
                .flat_map(|name| ["a", "b", "z"].map(|letter| format!("{name}{letter}")))
                .collect();
            begin = names.len();
            names.extend(longer);
        }
        names
    }

    proptest! {
        #[test]
        fn what_is_covered_matches_by_trying_every_name(
            wide in "[ab*?]{0,4}", narrow in "[ab*?]{0,4}",
        ) {
            let [wide, narrow] = [wide, narrow].map(|text| Pattern::new(&text));
            let more = names().into_iter().find(|name| narrow.matches(name) && !wide.matches(name));
            if wide.covers(&narrow) {
                prop_assert_eq!(more, None);
            }
        }

        #[test]
        fn overlaps_are_found_exactly(a in "[ab*?]{0,3}", b in "[ab*?]{0,3}") {
            let [a, b] = [a, b].map(|text| Pattern::new(&text));
            // A name of four letters has room for all that two such patterns ask for.
            let common = names().into_iter().any(|name| a.matches(&name) && b.matches(&name));
            prop_assert_eq!(a.overlaps(&b), common);
        }

        #[test]
        fn a_covered_list_has_no_other_name_by_trying_every_name(
            wide in prop::collection::vec("!?[ab*?]{1,3}", 0..4),
            narrow in prop::collection::vec("!?[ab*?]{1,3}", 0..4),
        ) {
            let [wide, narrow] = [wide, narrow].map(Patterns::new);
            if wide.covers(&narrow) {
                for name in names() {
                    prop_assert!(!narrow.matches(&name) || wide.matches(&name), "{}", name);
                }
            }
        }

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
