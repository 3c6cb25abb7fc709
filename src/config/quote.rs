//! The line that a problem is about, as it is shown: what could be a secret is left out by
//! [`mask`](crate::config::mask), the rest stands where an editor shows it, and a run of carets
//! stands under what is meant.

use std::collections::BTreeMap;
use std::fmt;

use unicode_width::UnicodeWidthChar;

use crate::config::mask::{Fate, Mask};
use crate::config::node::Node;
use crate::config::position::LINE_BYTES_MAX;
use crate::config::problem::Position;

/// What stands in the place of what is not shown. Always the same, so that it tells no length.
pub(super) const MASKED: &str = "***";

/// Wider lines are shown around the place in question.
const COLUMNS_MAX: usize = 100;

/// How much is shown before that place then.
const COLUMNS_BEFORE: usize = 40;

/// Where the next tab goes to. Terminals do not agree, so tabs are shown as spaces.
const TAB_COLUMNS: usize = 4;

/// A line of the file, and what in it is meant.
///
/// ```text
///    17 |     to: [crm, biling]
///       |               ^^^^^^
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    line: usize,
    text: String,
    /// Columns of a terminal before the carets.
    before: usize,
    carets: usize,
}

impl Quote {
    /// The number of the line.
    pub const fn line(&self) -> usize {
        self.line
    }

    /// The line as it is shown.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What stands under it.
    pub fn marks(&self) -> String {
        format!("{}{}", " ".repeat(self.before), "^".repeat(self.carets))
    }

    /// How wide the column of line numbers is.
    pub fn gutter(&self) -> usize {
        // One more than the number, so that no line of a quote is taken for that of a problem.
        1 + self.line.to_string().len().max(4)
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gutter, line, text) = (self.gutter(), self.line, &self.text);
        write!(f, "{line:>gutter$} | {text}\n{:>gutter$} | {}", "", self.marks())
    }
}

/// A file to quote from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<'a> {
    pub(super) text: &'a str,
    /// As far as it could be read.
    pub(super) tree: Option<&'a Node>,
    /// Whether it could be read to its end.
    pub(super) is_whole: bool,
}

/// The lines of a page that are going to be quoted.
#[derive(Debug)]
pub(super) struct Sheet<'a> {
    lines: BTreeMap<usize, &'a str>,
    mask: Mask<'a>,
}

impl<'a> Page<'a> {
    /// The lines with these numbers, which grow, but for those that are no lines to look at.
    pub(super) fn sheet(&self, wanted: impl Iterator<Item = usize>) -> Sheet<'a> {
        let mut numbered = lines(self.text).zip(1_usize..);
        let mut found = BTreeMap::new();
        let mut last = 0;
        for wanted in wanted {
            if wanted > last
                && let Some((line, _)) = numbered.find(|(_, number)| *number == wanted)
                && line.len() <= LINE_BYTES_MAX
            {
                found.insert(wanted, line);
            }
            last = wanted;
        }
        let mask = Mask::new(self, &found);
        Sheet { lines: found, mask }
    }
}

/// The lines of a text, as YAML counts them.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    // What Windows has at the end of a line is one line break, and a lone CR is one too.
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// The position behind this beginning of a text.
pub(super) fn position_after(beginning: &str) -> Position {
    let (mut number, mut last) = (0, "");
    for line in lines(beginning) {
        (number, last) = (number + 1, line);
    }
    // A CR at the very end is one half of a line break, or all of it.
    if beginning.ends_with('\r') {
        (number, last) = (number + 1, "");
    }
    Position { line: number, column: last.chars().count() + 1 }
}

impl Sheet<'_> {
    pub(super) fn line(&self, number: usize) -> Option<Line> {
        let text = *self.lines.get(&number)?;
        let fates = self.mask.fates(number, text);
        let mut line = Line { number, cells: Vec::new(), places: Vec::new() };
        let mut column = 0;
        let mut masked: Option<usize> = None;
        for (c, fate) in text.chars().zip(fates) {
            let begin = line.cells.len();
            match fate {
                Fate::Dropped => {}
                Fate::Hidden => {
                    let from = *masked.get_or_insert(begin);
                    if from == begin {
                        line.cells.extend(MASKED.chars().map(|c| (c, 1)));
                        column += MASKED.len();
                    }
                    line.places.push((from, line.cells.len()));
                    continue;
                }
                Fate::Shown if c == '\t' => {
                    let blanks = TAB_COLUMNS - column % TAB_COLUMNS;
                    line.cells.extend(std::iter::repeat_n((' ', 1), blanks));
                    column += blanks;
                }
                Fate::Shown => {
                    let c = if c.is_control() || is_invisible(c) { '\u{fffd}' } else { c };
                    let width = c.width().unwrap_or(1);
                    line.cells.push((c, width));
                    column += width;
                }
            }
            masked = None;
            line.places.push((begin, line.cells.len()));
        }
        let end = line.cells.iter().rposition(|(c, _)| *c != ' ').map_or(0, |last| last + 1);
        line.cells.truncate(end);
        Some(line)
    }
}

/// A line, ready to be quoted.
#[derive(Debug)]
pub(super) struct Line {
    number: usize,
    /// What is shown, and how wide it is on a terminal.
    cells: Vec<(char, usize)>,
    /// For each character of the file, the cells that show it.
    places: Vec<(usize, usize)>,
}

impl Line {
    pub(super) const fn number(&self) -> usize {
        self.number
    }

    /// The column behind what begins at `column`; to the end of the line if nobody knows.
    pub(super) fn end(&self, column: usize, end: Option<usize>) -> usize {
        let shown = |(from, to): &(usize, usize)| from < to && *from < self.cells.len();
        let last = self.places.iter().rposition(shown).map_or(0, |last| last + 1);
        end.unwrap_or(last + 1).max(column + 1)
    }

    /// Quotes it with carets from `column` to before `end`, both from 1; nothing where nothing can
    /// be shown.
    pub(super) fn quote(&self, column: usize, end: usize) -> Option<Quote> {
        if self.cells.is_empty() {
            return None;
        }
        let place = |column: usize| self.places.get(column.saturating_sub(1));
        let from = place(column).map_or(self.cells.len(), |(from, _)| *from);
        let from = from.min(self.cells.len());
        let to = place(end.saturating_sub(1)).map_or(self.cells.len(), |(_, to)| *to);
        let to = to.min(self.cells.len()).max(from);
        let is_wide = self.cells.iter().map(|(_, width)| width).sum::<usize>() > COLUMNS_MAX;
        let begin = if is_wide && from > COLUMNS_BEFORE { from - COLUMNS_BEFORE } else { 0 };
        let mut quote = Quote { line: self.number, text: String::new(), before: 0, carets: 0 };
        let mut columns = 0;
        if begin > 0 {
            quote.text.push('…');
            (columns, quote.before) = (1, 1);
        }
        for (index, (c, width)) in self.cells.iter().enumerate().skip(begin) {
            if columns + width > COLUMNS_MAX {
                quote.text.push('…');
                break;
            }
            quote.text.push(*c);
            columns += width;
            if index < from {
                quote.before += width;
            } else if index < to {
                quote.carets += width;
            }
        }
        quote.carets = quote.carets.max(1);
        Some(quote)
    }
}

/// Characters that take no room or turn the direction of writing around: what is read would not be
/// what is there.
pub(super) const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2028}'..='\u{2029}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::position;
    use crate::config::problem::Report;
    use proptest::prelude::*;
    use std::path::Path;

    fn quote(text: &str, line: usize, column: usize, end: Option<usize>) -> String {
        let mut report = Report::new(Path::new("f"));
        let tree = position::parse(text, &mut report);
        let is_whole = tree.is_ok();
        let tree = tree.unwrap_or_else(|seen| seen.expect("something was read"));
        let page = Page { text, tree: Some(&tree), is_whole };
        let line = page.sheet([line].into_iter()).line(line).unwrap();
        line.quote(column, line.end(column, end)).unwrap().to_string()
    }

    #[test]
    fn carets_stand_under_what_is_meant() {
        let text = "routes:\n  - to: [crm, biling] # soon\n";
        assert_eq!(
            quote(text, 2, 15, Some(21)),
            "    2 |   - to: [crm, biling]\n      |               ^^^^^^"
        );
        assert!(quote(text, 2, 5, None).ends_with("\n      |     ^^^^^^^^^^^^^^^^^"));
        assert!(quote(text, 1, 8, None).ends_with("|        ^"), "behind the end");
    }

    #[test]
    fn neither_tabs_nor_wide_characters_move_the_carets() {
        let text = "routes: [{\tname: \"日本\",\tto: [家, é, x] }]\n";
        let column = 1 + text.chars().position(|c| c == 'é').unwrap();
        assert_eq!(
            quote(text, 1, column, Some(column + 1)),
            "    1 | routes: [{  name: \"日本\",   to: [家, é, x] }]\n      |                                      ^"
        );
        let column = 1 + text.chars().position(|c| c == '家').unwrap();
        assert!(
            quote(text, 1, column, Some(column + 1))
                .ends_with("|                                  ^^")
        );
    }

    #[test]
    fn long_lines_are_shown_around_the_place() {
        let text =
            format!("routes: [{} {{ to: [biling] }},{}]", "a, ".repeat(500), " b,".repeat(500));
        let column = 1 + text.find("biling").unwrap();
        let shown = quote(&text, 1, column, Some(column + 6));
        let (line, carets) = shown.split_once('\n').unwrap();
        assert!(
            line.chars().count() < 120 && line.ends_with('…') && line.contains("| …"),
            "{shown}"
        );
        let caret = carets.chars().position(|c| c == '^').unwrap();
        assert_eq!(line.chars().skip(caret).take(6).collect::<String>(), "biling", "{shown}");
    }

    #[test]
    fn a_line_too_long_to_be_read_is_not_quoted() {
        for (length, is_quoted) in [(LINE_BYTES_MAX, true), (LINE_BYTES_MAX + 1, false)] {
            let text = "x".repeat(length);
            let page = Page { text: &text, tree: None, is_whole: false };
            assert_eq!(page.sheet([1].into_iter()).line(1).is_some(), is_quoted);
        }
    }

    #[test]
    fn a_mask_has_always_the_same_width() {
        for secret in ["x", "\"a b\"", "1234567890"] {
            let text = format!("targets: {{ crm: {{ value: {secret}, odd: x }} }}\n");
            let column = 1 + text.find("odd").unwrap();
            assert_eq!(
                quote(&text, 1, column, Some(column + 3)),
                "    1 | targets: { crm: { value: ***, odd: *** } }\n      |                               ^^^",
                "{secret}"
            );
        }
    }

    #[test]
    fn every_line_break_of_yaml_is_one() {
        let text = "a\r\nb\rc\n\nd\r";
        assert_eq!(lines(text).collect::<Vec<_>>(), ["a", "b", "c", "", "d"]);
        assert_eq!(position_after("a\r\nb\rcd"), Position { line: 3, column: 3 });
        assert_eq!(position_after("a\r"), Position { line: 2, column: 1 });
        assert_eq!(position_after(""), Position { line: 1, column: 1 });
    }

    proptest! {
        #[test]
        fn any_line_and_place_can_be_quoted(
            text in "[a-c日é\t \u{301}👩\u{200d}#:,\\[\\]{}\"'*&!|-]{1,40}", column in 1..60_usize, end in 1..60_usize,
        ) {
            let lossy = Page { text: &text, tree: None, is_whole: false };
            let Some(line) = lossy.sheet([1].into_iter()).line(1) else { return Ok(()) };
            for end in [None, Some(end)] {
                let Some(quote) = line.quote(column, line.end(column, end)) else { continue };
                let shown = quote.to_string();
                prop_assert_eq!(shown.lines().count(), 2);
                prop_assert!(shown.lines().all(|line| line.starts_with(' ')));
                prop_assert!(quote.marks().trim_start().bytes().all(|byte| byte == b'^'));
                prop_assert!(quote.marks().contains('^'));
            }
        }
    }
}
