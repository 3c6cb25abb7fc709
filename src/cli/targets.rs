//! `targets`: what waits for each.

use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;

use crate::cli::admin::AdminClient;
use crate::cli::check::Format;
use crate::cli::filter::Asking;
use crate::cli::output::{Output, Style};
use crate::cli::story::{items, text};
use crate::cli::{Verdict, block_on};

/// The flags of `targets`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List targets and what waits for them
    List(Asking),
}

/// Asks, and prints the answer.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::List(asking) => block_on(list(asking))?,
    }
}

async fn list(asking: &Asking) -> anyhow::Result<Verdict> {
    let client = AdminClient::new(&asking.admin)?;
    let answer = client.get("/api/v1/targets").await?.or_else(|refusal| bail!(refusal.detail()))?;
    let output = Output::new();
    let targets = items(&answer, "items");
    if asking.format == Format::Json {
        targets.iter().for_each(|target| output.line(target));
        return Ok(Verdict::Yes);
    }
    let width = targets.iter().map(|target| text(target, "name").len()).max().unwrap_or_default();
    let head = format!("{:width$}  {:>9} {:>12}  oldest pending", "", "pending", "dead letters");
    output.line(output.paint(Style::Dim, head));
    for target in targets {
        print(&output, target, width);
    }
    Ok(Verdict::Yes)
}

fn print(output: &Output, target: &Value, width: usize) {
    let dead = target.get("dead_letters").and_then(Value::as_object);
    let dead: u64 = dead.into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    let pending = target.get("pending").and_then(Value::as_u64).unwrap_or_default();
    let gone = target.get("in_table") == Some(&Value::Bool(false));
    let oldest = match text(target, "oldest_pending_at") {
        "" => "-",
        oldest => oldest,
    };
    let note = if gone { "  gone from the table" } else { "" };
    output.line(format_args!(
        "{:width$}  {pending:>9} {dead:>12}  {oldest}{}",
        text(target, "name"),
        output.paint(Style::Notice, note),
    ));
}
