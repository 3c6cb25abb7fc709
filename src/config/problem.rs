//! What is wrong with a routes file, and where.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// More problems than this are counted, not listed: nobody reads them, and a bad file is bounded.
const PROBLEMS_MAX: usize = 200;

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

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// The file as it was named.
    pub file: Arc<Path>,
    /// Where; `None` if it concerns the file as a whole.
    pub position: Option<Position>,
    /// What, for a person. Never contains a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    /// `routes.yaml:34:9: error: unknown target "biling"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}: {}", self.severity.name(), self.message)
    }
}

/// Everything that is wrong with a file, in file order; errors and warnings.
///
/// As an error it has at least one [`Severity::Error`] in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    list: Vec<Problem>,
    unlisted: usize,
}

impl Problems {
    /// The problems that are listed.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// How many errors are listed.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many warnings are listed.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    /// How many more there are than are listed.
    pub const fn unlisted(&self) -> usize {
        self.unlisted
    }

    /// Whether nothing is wrong.
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|problem| problem.severity == severity).count()
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

impl From<Vec<Problem>> for Problems {
    fn from(list: Vec<Problem>) -> Self {
        Self { list, unlisted: 0 }
    }
}

impl fmt::Display for Problems {
    /// One line each, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        if self.unlisted > 0 {
            write!(f, "\nand {} more", self.unlisted)?;
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
    failed: bool,
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.into(), problems: Problems::default(), failed: false }
    }

    pub(super) fn error(&mut self, position: Position, message: impl Into<String>) {
        self.push(Severity::Error, Some(position), message.into());
    }

    pub(super) fn warning(&mut self, position: Position, message: impl Into<String>) {
        self.push(Severity::Warning, Some(position), message.into());
    }

    /// An error of the file as a whole.
    pub(super) fn file_error(&mut self, message: impl Into<String>) {
        self.push(Severity::Error, None, message.into());
    }

    /// Whether there was an error.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed
    }

    /// All of them, in file order.
    pub(super) fn finish(mut self) -> Problems {
        self.problems.list.sort_by_key(|problem| problem.position);
        self.problems
    }

    fn push(&mut self, severity: Severity, position: Option<Position>, message: String) {
        self.failed |= severity == Severity::Error;
        if self.problems.list.len() < PROBLEMS_MAX {
            let file = Arc::clone(&self.file);
            self.problems.list.push(Problem { severity, file, position, message });
        } else {
            // An error must be among the listed ones, or the file would be refused without a word.
            let warning = self.problems.list.iter_mut().rfind(|p| p.severity == Severity::Warning);
            if severity == Severity::Error
                && let Some(problem) = warning
            {
                (problem.severity, problem.position, problem.message) =
                    (severity, position, message);
            }
            self.problems.unlisted += 1;
        }
    }
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
        assert_eq!((problems.errors(), problems.warnings()), (1, PROBLEMS_MAX - 1));
        assert_eq!(problems.unlisted(), 1);
        assert!(problems.to_string().ends_with("and 1 more"));
    }
}
