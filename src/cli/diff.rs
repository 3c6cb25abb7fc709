//! `diff`: which stored webhooks another table would route otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::admin::{AdminClient, Relay};
use crate::cli::check::{Format, print_problem};
use crate::cli::output::{Output, Style};
use crate::cli::{Verdict, block_on, value};
use crate::config::{self, ProcessEnvironment, Secrets};

/// What `--help` says before the flags.
pub const ABOUT: &str = "\
Ask a running relay which of its stored webhooks another routes file would route otherwise.

The relay routes what it has stored through the table in force and through the candidate, and tells what
would go elsewhere; it changes nothing, and looks up none of the candidate's secrets and paths. The
activity of a webhook is the one it was accepted with.";

/// The flags of `diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The candidate
    #[arg(value_name = "NEW.yaml")]
    pub candidate: PathBuf,
    /// How far back
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = value::duration_text)]
    pub since: String,
    /// Which relay.
    #[command(flatten)]
    pub admin: Relay,
    /// How many of the webhooks that would go elsewhere are listed
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub examples: usize,
    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// One answer of the relay, or the sum of several.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Difference {
    examined: u64,
    changed: u64,
    left_out: u64,
    unrouted: Counts,
    routes: BTreeMap<String, Counts>,
    targets: BTreeMap<String, Counts>,
    examples: Vec<Example>,
    #[serde(skip_serializing)]
    next: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Deserialize, Serialize)]
struct Counts {
    now: u64,
    then: u64,
    gained: u64,
    lost: u64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Example {
    webhook_id: String,
    activity: Option<String>,
    now: Vec<String>,
    then: Vec<String>,
}

/// Asks, and prints what would change.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let candidate = std::fs::read_to_string(&args.candidate)
        .with_context(|| format!("{} can't be read", args.candidate.display()))?;
    let client = AdminClient::new(&args.admin)?;
    let output = Output::new();
    let Some(difference) = block_on(ask(args, &client, &candidate))?? else {
        return Ok(Verdict::No);
    };
    match args.format {
        Format::Json => output.line(serde_json::to_string(&difference)?),
        Format::Text => print(&output, args, &difference),
    }
    Ok(Verdict::Yes)
}

/// The sum of all answers; none if the candidate can't be used, which has been said.
async fn ask(
    args: &Args,
    client: &AdminClient,
    candidate: &str,
) -> anyhow::Result<Option<Difference>> {
    let mut sum = Difference::default();
    let mut cursor: Option<String> = None;
    loop {
        let wanted = args.examples.saturating_sub(sum.examples.len());
        let asked = json!({
            "routes": candidate, "since": args.since, "cursor": cursor, "examples": wanted,
        });
        let answer = match client.post("/api/v1/routes/diff", &asked).await? {
            Ok(answer) => answer,
            Err(refusal) if refusal.problem.get("problems").is_some() => {
                explain(args, candidate, &refusal.problem);
                return Ok(None);
            }
            Err(refusal) => bail!(refusal.detail()),
        };
        let page: Difference =
            serde_json::from_value(answer).context("the relay's answer can't be read")?;
        cursor.clone_from(&page.next);
        sum.add(page);
        if cursor.is_none() {
            return Ok(Some(sum));
        }
    }
}

/// What is wrong with the candidate, as `check` says it: the file is here, the relay has no quotes.
fn explain(args: &Args, candidate: &str, refusal: &Value) {
    let output = Output::new();
    let path = &args.candidate;
    let own = config::check_bytes(candidate.as_bytes(), path, &ProcessEnvironment, Secrets::Ignore);
    if own.errors() == 0 {
        // A relay of another version knows another language.
        return print_problems(&output, args, refusal);
    }
    own.iter().for_each(|problem| print_problem(&output, problem));
}

/// The same in the relay's words.
fn print_problems(output: &Output, args: &Args, refusal: &Value) {
    let problems = refusal.get("problems").and_then(Value::as_array);
    for problem in problems.into_iter().flatten() {
        let text = |key: &str| problem.get(key).and_then(Value::as_str).unwrap_or_default();
        let place = ["line", "column"].map(|key| problem.get(key).and_then(Value::as_u64));
        let place = match place {
            [Some(line), Some(column)] => format!("{line}:{column}:"),
            _ => String::new(),
        };
        let (severity, message) = (text("severity"), text("message"));
        let style = if severity == "error" { Style::Bad } else { Style::Notice };
        let line = format!("{}:{place} {severity}: {message}", args.candidate.display());
        output.line(output.paint(style, line));
    }
}

impl Difference {
    fn add(&mut self, page: Self) {
        self.examined += page.examined;
        self.changed += page.changed;
        self.left_out += page.left_out;
        self.unrouted.add(page.unrouted);
        for (name, counts) in page.routes {
            self.routes.entry(name).or_default().add(counts);
        }
        for (name, counts) in page.targets {
            self.targets.entry(name).or_default().add(counts);
        }
        self.examples.extend(page.examples);
    }
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.now += more.now;
        self.then += more.then;
        self.gained += more.gained;
        self.lost += more.lost;
    }

    const fn differs(self) -> bool {
        self.gained > 0 || self.lost > 0
    }
}

fn print(output: &Output, args: &Args, difference: &Difference) {
    let Difference { examined, changed, left_out, unrouted, .. } = difference;
    let candidate = args.candidate.display();
    output.line(format_args!(
        "{examined} webhooks of the last {}: {changed} would go elsewhere by {candidate}",
        args.since
    ));
    if *left_out > 0 {
        let text = format!("{left_out} more can't be read and are left out");
        output.line(output.paint(Style::Notice, text));
    }
    if *changed > 0 || difference.routes.values().any(|counts| counts.differs()) {
        let named = |kind, counts: &BTreeMap<String, Counts>| {
            let differing = counts.iter().filter(|(_, counts)| counts.differs());
            differing.map(|(name, counts)| (format!("{kind} {name}"), *counts)).collect::<Vec<_>>()
        };
        let mut rows = named("target", &difference.targets);
        rows.extend(unrouted.differs().then(|| ("unrouted".to_owned(), *unrouted)));
        rows.extend(named("route", &difference.routes));
        table(output, &rows);
    }
    for example in &difference.examples {
        print_example(output, example);
    }
    let hidden = changed.saturating_sub(difference.examples.len() as u64);
    if hidden > 0 && !difference.examples.is_empty() {
        output
            .line(output.paint(Style::Dim, format!("and {hidden} more; --examples N lists more")));
    }
}

fn table(output: &Output, rows: &[(String, Counts)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    output.line("");
    let head = format!("{:width$}  {:>9} {:>9} {:>9} {:>9}", "", "now", "then", "gained", "lost");
    output.line(output.paint(Style::Dim, head));
    for (name, Counts { now, then, gained, lost }) in rows {
        output.line(format_args!("{name:width$}  {now:>9} {then:>9} {gained:>9} {lost:>9}"));
    }
    output.line("");
}

fn print_example(output: &Output, example: &Example) {
    let list = |names: &[String]| match names {
        [] => "unrouted".to_owned(),
        names => names.join(", "),
    };
    output.line(format_args!(
        "{}  {}  {} -> {}",
        example.webhook_id,
        example.activity.as_deref().unwrap_or("no activity"),
        list(&example.now),
        output.paint(Style::Bold, list(&example.then)),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_add_up() {
        let page = |examined, next: Value| -> Difference {
            let counts = json!({ "now": 2, "then": 1, "gained": 1, "lost": 2 });
            serde_json::from_value(json!({
                "examined": examined, "changed": 1, "left_out": 1, "unrouted": counts,
                "routes": { "r": counts }, "targets": { "t": counts },
                "examples": [{ "webhook_id": "x", "activity": null, "now": [], "then": ["t"] }],
                "next": next,
            }))
            .unwrap()
        };
        let mut sum = Difference::default();
        sum.add(page(3, json!("7")));
        sum.add(page(4, Value::Null));
        assert_eq!((sum.examined, sum.changed, sum.left_out, sum.examples.len()), (7, 2, 2, 2));
        let twice = Counts { now: 4, then: 2, gained: 2, lost: 4 };
        assert_eq!((sum.routes["r"], sum.targets["t"], sum.unrouted), (twice, twice, twice));
    }
}
