//! `check`: validates a routes file.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;

use crate::cli::Verdict;
use crate::cli::output::{Output, Style};
use crate::config::{self, Problem, Problems, ProcessEnvironment, Secrets, Severity};
use crate::domain::limit::ROUTES_FILE_BYTES_MAX;

/// What the standard input is called in problems.
const STDIN: &str = "<stdin>";

/// The flags of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The routes file; - is the standard input
    #[arg(value_name = "FILE", default_value = "routes.yaml")]
    pub file: PathBuf,
    /// Secrets that can't be read here are warnings: for CI
    #[arg(long)]
    pub no_secrets: bool,
    /// Warnings count as errors
    #[arg(long)]
    pub strict: bool,
    /// How problems are printed; as text `file:line:column: error: …`
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs: one object a line
    Json,
}

/// Validates the file.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let secrets = if args.no_secrets { Secrets::Warn } else { Secrets::Resolve };
    let is_stdin = args.file == Path::new("-");
    let file = if is_stdin { Path::new(STDIN) } else { &args.file };
    let problems = if is_stdin {
        let mut bytes = Vec::new();
        // One byte more than is allowed tells a file that is too large.
        let mut stdin = std::io::stdin().lock().take(ROUTES_FILE_BYTES_MAX as u64 + 1);
        stdin.read_to_end(&mut bytes).context("the standard input can't be read")?;
        config::check_bytes(&bytes, file, &ProcessEnvironment, secrets)
    } else {
        config::check(file, &ProcessEnvironment, secrets)
    };
    let output = Output::new();
    match args.format {
        Format::Text => print_text(&output, file, args.strict, &problems),
        Format::Json => output.line(json(file, &problems)),
    }
    let bad = problems.errors() > 0 || (args.strict && problems.warnings() > 0);
    Ok(if bad { Verdict::No } else { Verdict::Yes })
}

fn print_text(output: &Output, file: &Path, strict: bool, problems: &Problems) {
    for problem in problems {
        print_problem(output, problem);
    }
    if problems.unlisted() > 0 {
        output.line(format_args!("and {} more", problems.unlisted()));
    }
    let file = file.display();
    match (problems.errors(), problems.warnings()) {
        (0, 0) => output.line(format_args!("{file}: {}", output.paint(Style::Good, "good"))),
        (0, warnings) if strict => output.line(format_args!(
            "{file}: {}, which --strict takes for errors",
            count(warnings, "warning")
        )),
        (0, warnings) => output.line(format_args!("{file}: good, {}", count(warnings, "warning"))),
        (errors, 0) => output.line(format_args!("{file}: {}", count(errors, "error"))),
        (errors, warnings) => output.line(format_args!(
            "{file}: {}, {}",
            count(errors, "error"),
            count(warnings, "warning")
        )),
    }
}

/// As a problem prints itself, in colours where there are some.
pub(super) fn print_problem(output: &Output, problem: &Problem) {
    let style = match problem.severity {
        Severity::Error => Style::Bad,
        Severity::Warning => Style::Notice,
    };
    let whole = format!("{problem:#}");
    let Some((_, detail)) = whole.split_once('\n') else {
        return output.line(output.paint(style, whole));
    };
    let mut text = output.paint(style, problem).to_string();
    for line in detail.lines() {
        // The gutter ends at the first of these, on every line.
        let at = line.find(['|', '=']).map_or(0, |at| at + 1);
        let (gutter, rest) = line.split_at_checked(at).unwrap_or(("", line));
        let carets = rest.trim_start();
        text.push_str(&format!("\n{}", output.paint(Style::Dim, gutter)));
        if !carets.is_empty() && carets.bytes().all(|byte| byte == b'^') {
            text.push_str(&output.paint(style, rest).to_string());
        } else {
            text.push_str(rest);
        }
    }
    output.line(text);
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// What is wrong with a file, for a program.
pub(super) fn json(file: &Path, problems: &Problems) -> serde_json::Value {
    serde_json::json!({
        "file": file.display().to_string(),
        "errors": problems.errors(),
        "warnings": problems.warnings(),
        "unlisted": problems.unlisted(),
        "problems": problems.iter().map(Problem::json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_read_has_every_field_also_where_there_is_nothing_to_say() {
        let text = b"sources: {}\ntargets: {}\nroutes: []\nunrouted: kepp\nlog: x\n";
        let problems =
            config::check_bytes(text, Path::new("f"), &ProcessEnvironment, Secrets::Resolve);
        let json = json(Path::new("f"), &problems);
        assert_eq!(json["file"], "f");
        assert_eq!(
            (&json["errors"], &json["warnings"], &json["unlisted"]),
            (&5.into(), &0.into(), &0.into())
        );
        let expected = serde_json::json!({
            "file": "f", "severity": "error", "line": 4, "column": 11, "end_column": 15,
            "message": "unrouted: expected keep or drop, found \"kepp\"",
            "help": "did you mean \"keep\"?",
        });
        assert_eq!(json["problems"][3], expected);
        assert_eq!(json["problems"][4]["help"], serde_json::Value::Null);
    }
}
