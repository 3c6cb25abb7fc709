//! `check`: validates a routes file.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::Verdict;
use crate::cli::output::{Output, Style};
use crate::config::{self, Problem, Problems, ProcessEnvironment, Secrets, Severity};

/// The flags of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The routes file
    #[arg(value_name = "FILE", default_value = "routes.yaml")]
    pub file: PathBuf,
    /// Secrets that can't be read here are warnings: for CI
    #[arg(long)]
    pub no_secrets: bool,
    /// Warnings count as errors
    #[arg(long)]
    pub strict: bool,
    /// How problems are printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: `file:line:column: error: …`
    #[default]
    Text,
    /// For programs
    Json,
}

/// Validates the file.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let secrets = if args.no_secrets { Secrets::Warn } else { Secrets::Resolve };
    let problems = config::check(&args.file, &ProcessEnvironment, secrets);
    let output = Output::new();
    match args.format {
        Format::Text => print_text(&output, args, &problems),
        Format::Json => output.line(json(&problems)),
    }
    let bad = problems.errors() > 0 || (args.strict && problems.warnings() > 0);
    Ok(if bad { Verdict::No } else { Verdict::Yes })
}

fn print_text(output: &Output, args: &Args, problems: &Problems) {
    problems.iter().for_each(|problem| print_problem(output, problem));
    let file = args.file.display();
    match (problems.errors(), problems.warnings()) {
        (0, 0) => output.line(format_args!("{file}: good")),
        (0, warnings) => output.line(format_args!("{file}: good, {warnings} to look at")),
        (errors, 0) => output.line(format_args!("{file}: {errors} to mend")),
        (errors, warnings) => {
            output.line(format_args!("{file}: {errors} to mend, {warnings} to look at"));
        }
    }
}

/// Prints one problem.
pub(super) fn print_problem(output: &Output, problem: &Problem) {
    let style = match problem.severity {
        Severity::Error => Style::Bad,
        Severity::Warning => Style::Notice,
    };
    output.line(output.paint(style, problem));
}

fn json(problems: &Problems) -> serde_json::Value {
    let one = |problem: &Problem| {
        serde_json::json!({
            "severity": problem.severity.name(),
            "file": problem.file.display().to_string(),
            "line": problem.position.map(|place| place.line),
            "column": problem.position.map(|place| place.column),
            "message": problem.message,
        })
    };
    serde_json::json!({
        "errors": problems.errors(),
        "warnings": problems.warnings(),
        "problems": problems.iter().map(one).collect::<Vec<_>>(),
    })
}
