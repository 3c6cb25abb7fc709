//! What is wrong with a routes file, and where.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::config::quote::{self, Line, MASKED, Page, Quote};
use crate::config::suggest;
use crate::config::token::tokens;

/// More problems than this are counted, not listed: nobody reads them, and a bad file is bounded.
const PROBLEMS_MAX: usize = 200;

/// A longer message, in characters, has somebody's whole file in it.
const MESSAGE_CHARS_MAX: usize = 1000;

/// A longer list of names is no help.
const NAMES_TOLD_MAX: usize = 10;

/// Whether a problem keeps the file from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file can't be used.
    Error,
    /// The file can be used; somebody should look.
    Warning,
}

impl Severity {
    /// Its name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// The first character of the file.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// From one place in the file to another, which is not included. Half the size of two positions: a
/// file can have a million of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Span {
    line: u32,
    column: u32,
    end_line: u32,
    end_column: u32,
}

impl Span {
    pub(super) fn new(start: Position, end: Position) -> Self {
        // A file has fewer lines and columns than fit: it is at most 16 MiB large.
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            line: short(start.line),
            column: short(start.column),
            end_line: short(end.line),
            end_column: short(end.column),
        }
    }

    pub(super) fn start(self) -> Position {
        Self::position(self.line, self.column)
    }

    pub(super) fn end(self) -> Position {
        Self::position(self.end_line, self.end_column)
    }

    /// The line in which it begins.
    pub(super) fn line(self) -> usize {
        self.start().line
    }

    /// How many columns it has, if it ends in its line.
    pub(super) fn width(self) -> Option<usize> {
        let (start, end) = (self.start(), self.end());
        (start.line == end.line).then(|| end.column.saturating_sub(start.column))
    }

    fn position(line: u32, column: u32) -> Position {
        let long = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Position { line: long(line), column: long(column) }
    }
}

impl From<Position> for Span {
    /// One character.
    fn from(at: Position) -> Self {
        Self::new(at, Position { column: at.column + 1, ..at })
    }
}

/// One thing that is wrong.
///
/// Displayed, it is one line that editors can jump to and scripts can parse; with `{:#}` the quoted
/// line and the help follow in lines of their own, which begin with blanks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// The file as it was named.
    pub file: Arc<Path>,
    /// Where; `None` if it concerns the file as a whole.
    pub position: Option<Position>,
    /// The column behind the last character that it is about, in the same line.
    pub end_column: Option<usize>,
    /// What, for a person. Never contains a secret.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The line in question, with everything left out that could be a secret.
    pub quote: Option<Quote>,
}

impl Problem {
    /// What is wrong with a file as a whole, whichever file.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            position: None,
            end_column: None,
            message: clean(message.into()),
            help: None,
            quote: None,
        }
    }

    /// For a program: the same everywhere.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "severity": self.severity.name(),
            "file": self.file.display().to_string(),
            "line": self.position.map(|place| place.line),
            "column": self.position.map(|place| place.column),
            "end_column": self.end_column,
            "message": self.message,
            "help": self.help,
        })
    }
}

impl fmt::Display for Problem {
    /// `routes.yaml:34:9: error: unknown target "biling"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}: {}", self.severity.name(), self.message)?;
        if !f.alternate() {
            return Ok(());
        }
        if let Some(quote) = &self.quote {
            write!(f, "\n{quote}")?;
        }
        match (&self.help, &self.quote) {
            (Some(help), Some(quote)) => write!(f, "\n{:>1$} = help: {help}", "", quote.gutter()),
            (Some(help), None) => write!(f, "\n  = help: {help}"),
            (None, _) => Ok(()),
        }
    }
}

/// Everything that is wrong with a file, in file order; errors and warnings.
///
/// As an error it has at least one [`Severity::Error`] in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    list: Vec<Problem>,
    errors: usize,
    warnings: usize,
}

impl Problems {
    /// One error.
    pub fn of(error: Problem) -> Self {
        Self { list: vec![error], errors: 1, warnings: 0 }
    }

    /// The problems that are listed.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// How many errors there are, listed or not.
    pub const fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings there are, listed or not.
    pub const fn warnings(&self) -> usize {
        self.warnings
    }

    /// How many more there are than are listed.
    pub const fn unlisted(&self) -> usize {
        self.errors + self.warnings - self.list.len()
    }

    /// Whether nothing is wrong.
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The same with the lines that they are about. They are in file order.
    pub(super) fn quoted(mut self, page: &Page<'_>) -> Self {
        let wanted = self.list.iter().filter_map(|problem| Some(problem.position?.line));
        let sheet = page.sheet(wanted);
        // One line at a time: each can be long, and often has several problems.
        let mut line: Option<Line> = None;
        for problem in &mut self.list {
            let Some(position) = problem.position else { continue };
            if line.as_ref().is_none_or(|line| line.number() != position.line) {
                line = sheet.line(position.line);
            }
            let Some(line) = &line else { continue };
            let end = line.end(position.column, problem.end_column);
            problem.end_column = Some(end);
            problem.quote = line.quote(position.column, end);
        }
        self
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl fmt::Display for Problems {
    /// Each in full, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem:#}")?;
        }
        if self.unlisted() > 0 {
            write!(f, "\nand {} more", self.unlisted())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems of one file.
#[derive(Debug)]
pub(super) struct Report {
    file: Arc<Path>,
    problems: Problems,
}

/// A problem that was just reported, to say more about it.
#[derive(Debug)]
pub(super) struct Reported<'a>(Option<&'a mut Problem>);

impl Reported<'_> {
    /// What to do about it.
    pub(super) fn help(self, text: impl Into<String>) {
        if let Some(problem) = self.0 {
            problem.help = Some(clean(text.into()));
        }
    }

    /// Which of the known words was probably meant, if one looks much like it. Nothing is compared
    /// for a problem that is not listed.
    pub(super) fn suggest<'k, I: IntoIterator<Item = &'k str>>(self, found: &str, known: I) {
        if let Some(problem) = self.0
            && let Some(meant) = suggest::nearest(found, known)
        {
            problem.help = Some(clean(format!("did you mean \"{meant}\"?")));
        }
    }

    /// The same of names, of which all are told where they are few and none looks much like it.
    pub(super) fn suggest_name(self, found: &str, known: &HashSet<&str>) {
        let Some(problem) = self.0 else { return };
        let mut names: Vec<&str> = known.iter().copied().collect();
        names.sort_unstable();
        match suggest::nearest(found, names.iter().copied()) {
            Some(meant) => problem.help = Some(clean(format!("did you mean \"{meant}\"?"))),
            None if (1..=NAMES_TOLD_MAX).contains(&names.len()) => {
                let verb = if names.len() == 1 { "is" } else { "are" };
                problem.help = Some(clean(format!("there {verb} {}", names.join(", "))));
            }
            None => {}
        }
    }
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.into(), problems: Problems::default() }
    }

    /// Another one of the same file.
    pub(super) fn empty(&self) -> Self {
        Self { file: Arc::clone(&self.file), problems: Problems::default() }
    }

    pub(super) fn error(
        &mut self,
        at: impl Into<Span>,
        message: impl Into<String>,
    ) -> Reported<'_> {
        self.push(Severity::Error, Some(at.into()), message.into())
    }

    pub(super) fn warning(
        &mut self,
        at: impl Into<Span>,
        message: impl Into<String>,
    ) -> Reported<'_> {
        self.push(Severity::Warning, Some(at.into()), message.into())
    }

    /// An error of the file as a whole.
    pub(super) fn file_error(&mut self, message: impl Into<String>) -> Reported<'_> {
        self.push(Severity::Error, None, message.into())
    }

    /// Whether there was an error.
    pub(super) const fn has_failed(&self) -> bool {
        self.problems.errors > 0
    }

    /// Whether there was an error inside of `span`. Where not all are listed there may have been.
    pub(super) fn has_failed_in(&self, span: Span) -> bool {
        let inside = |problem: &Problem| {
            problem.severity == Severity::Error
                && problem.position.is_none_or(|at| span.start() <= at && at < span.end())
        };
        let is_error = |problem: &&Problem| problem.severity == Severity::Error;
        let listed = self.problems.iter().filter(is_error).count();
        self.problems.errors > listed || self.problems.iter().any(inside)
    }

    /// Whether another problem would be listed.
    pub(super) const fn has_room(&self) -> bool {
        self.problems.list.len() < PROBLEMS_MAX
    }

    /// All of them, in file order.
    pub(super) fn finish(mut self) -> Problems {
        self.problems.list.sort_by_key(|problem| problem.position);
        self.problems
    }

    fn push(&mut self, severity: Severity, at: Option<Span>, message: String) -> Reported<'_> {
        match severity {
            Severity::Error => self.problems.errors += 1,
            Severity::Warning => self.problems.warnings += 1,
        }
        let has_room = self.has_room();
        let list = &mut self.problems.list;
        if !has_room {
            // An error must be among the listed ones, or the file would be refused without a word.
            let warning = list.iter().rposition(|p| p.severity == Severity::Warning);
            match warning.filter(|_| severity == Severity::Error) {
                Some(index) => _ = list.remove(index),
                None => return Reported(None),
            }
        }
        let position = at.map(Span::start);
        // What goes on in another line is quoted to the end of its first one.
        let end_column = at.and_then(|at| Some(at.start().column + at.width()?));
        Reported(Some(list.push_mut(Problem {
            severity,
            file: Arc::clone(&self.file),
            position,
            end_column,
            message: clean(message),
            help: None,
            quote: None,
        })))
    }
}

/// One line that is not endless and has nothing in it that a terminal would obey: names come from
/// the file.
fn clean(message: String) -> String {
    let message = without_tokens(without_passwords(message));
    let is_odd = |c: char| c.is_control() || quote::is_invisible(c);
    if message.len() <= MESSAGE_CHARS_MAX && !message.contains(is_odd) {
        return message;
    }
    let mut cleaned = String::with_capacity(message.len().min(2 * MESSAGE_CHARS_MAX));
    for (index, c) in message.chars().enumerate() {
        match c {
            _ if index == MESSAGE_CHARS_MAX => {
                cleaned.push('…');
                break;
            }
            _ if is_odd(c) => cleaned.extend(c.escape_default()),
            _ => cleaned.push(c),
        }
    }
    cleaned
}

/// A text without the user, password and query of urls in it: they are found in every place.
fn without_passwords(mut text: String) -> String {
    // A password may have anything in it, also what ends a url elsewhere, or be of no proper url.
    if let Some(end) = text.rfind('@') {
        let before = text.get(..end).unwrap_or_default();
        let scheme = before.find("://").map(|at| at + "://".len());
        let begin = scheme.or_else(|| Some(before.rfind(['"', ' ', '['])? + 1));
        text.replace_range(begin.unwrap_or(0)..end, MASKED);
    }
    let mut begin = 0;
    while let Some(at) = text.get(begin..).and_then(|rest| rest.find("://")) {
        begin += at + "://".len();
        let rest = text.get(begin..).unwrap_or_default();
        let url = rest.split(['"', ' ', ']']).next().unwrap_or_default();
        if let Some(query) = url.find(['?', '#']) {
            text.replace_range(begin + query + 1..begin + url.len(), MASKED);
        }
    }
    text
}

/// A text without what looks like a token in it.
fn without_tokens(mut text: String) -> String {
    let found: Vec<_> = tokens(&text).collect();
    for (from, to) in found.into_iter().rev() {
        text.replace_range(from..to, MASKED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_that_editors_can_jump_to() {
        let mut report = Report::new(Path::new("etc/routes.yaml"));
        report.error(Position { line: 34, column: 9 }, r#"unknown target "biling""#);
        report.warning(Position { line: 2, column: 1 }, "look");
        report.file_error("gone");
        assert_eq!(
            report.finish().to_string(),
            "etc/routes.yaml: error: gone\n\
             etc/routes.yaml:2:1: warning: look\n\
             etc/routes.yaml:34:9: error: unknown target \"biling\""
        );
    }

    #[test]
    fn the_list_is_bounded_and_an_error_is_never_left_out_for_warnings() {
        let mut report = Report::new(Path::new("f"));
        for line in 1..=PROBLEMS_MAX {
            report.warning(Position { line, column: 1 }, "look");
        }
        report.error(Position { line: 9, column: 9 }, "bad");
        assert!(report.has_failed());
        let problems = report.finish();
        assert_eq!((problems.errors(), problems.warnings()), (1, PROBLEMS_MAX));
        assert!(problems.iter().any(|problem| problem.message == "bad"));
        assert_eq!(problems.unlisted(), 1);
        assert!(problems.to_string().ends_with("and 1 more"));
    }

    #[test]
    fn whatever_a_file_has_in_it_a_message_is_one_line_of_bounded_length() {
        let mut report = Report::new(Path::new("f"));
        report.error(Position::START, "a\nb\u{1b}[2J\u{202e}é").help("c\nd");
        report.error(Position::START, "é".repeat(100_000)).help("d");
        let url = r#"no "https://u:p4 "ss@host/?t=p4" and "http://a/" or "x://b/?p4""#;
        report.error(Position::START, url).help(format!("[{url}]"));
        report.error(Position { line: 2, column: 1 }, "x").suggest("biling", ["billing"]);
        let shown = report.finish().to_string();
        assert!(shown.starts_with("f:1:1: error: a\\nb\\u{1b}[2J\\u{202e}é\n  = help: c\\nd\n"));
        assert!(shown.ends_with("f:2:1: error: x\n  = help: did you mean \"billing\"?"));
        assert!(shown.chars().count() < 2 * MESSAGE_CHARS_MAX);
        let url = r#"no "https://***@host/?***" and "http://a/" or "x://b/?***""#;
        assert!(shown.contains(url) && !shown.contains("p4"), "{shown}");
    }
}
