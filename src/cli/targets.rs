//! `targets`: how each is, what waits for it, and an operator's pause.

use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};

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
    /// List targets: state, what waits for them, the last attempt
    List(Asking),
    /// Keep everything for a target and send it nothing, until it is resumed; also over a restart
    Pause(Which),
    /// End a pause, or a suspension: the target is asked again at once
    Resume(Which),
}

/// The flags of `targets pause` and `resume`.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The target's name
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// Asks, and prints the answer.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::List(asking) => block_on(list(asking))?,
        Command::Pause(which) => block_on(say(which, "pause"))?,
        Command::Resume(which) => block_on(say(which, "resume"))?,
    }
}

async fn say(which: &Which, word: &str) -> anyhow::Result<Verdict> {
    let client = AdminClient::new(&which.asking.admin)?;
    let output = Output::new();
    for name in &which.names {
        let path = format!("/api/v1/targets/{name}/{word}");
        let answer = client.post(&path, &json!({})).await?;
        let answer = answer.or_else(|refusal| bail!(refusal.detail()))?;
        if which.asking.format == Format::Json {
            output.line(&answer);
            continue;
        }
        let by_table = items(&answer, "paused_by").iter().any(|by| by == "table");
        let note = if by_table { ", by the routing table: \"paused\" is true there" } else { "" };
        output.line(format_args!("{name}: {}{note}", text(&answer, "state")));
    }
    Ok(Verdict::Yes)
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
    let head = format!(
        "{:width$}  {:<9} {:>9} {:>16} {:>12}  {:<24}  last attempt",
        "", "state", "pending", "backlog of limit", "dead letters", "oldest pending"
    );
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
    let oldest = match text(target, "oldest_pending_at") {
        "" => "-",
        oldest => oldest,
    };
    let state = text(target, "state");
    let padded = format!("{state:<9}");
    let padded = match state {
        "running" => padded,
        _ => output.paint(Style::Notice, padded).to_string(),
    };
    output.line(format_args!(
        "{:width$}  {padded} {pending:>9} {:>16} {dead:>12}  {oldest:<24}  {}",
        text(target, "name"),
        backlog(target),
        attempt(target.get("last_attempt").unwrap_or(&Value::Null)),
    ));
    for note in notes(target) {
        output.line(output.paint(Style::Dim, format!("{:width$}  {note}", "")));
    }
}

/// What waits for it takes so much of the store, and may take so much.
fn backlog(target: &Value) -> String {
    let bytes = |name: &str| target.get(name).and_then(Value::as_u64);
    let limit = bytes("backlog_limit_bytes").map(|limit| format!(" of {}", rounded(limit)));
    format!("{}{}", rounded(bytes("backlog_bytes").unwrap_or_default()), limit.unwrap_or_default())
}

/// A size in the largest unit of which there is one at least.
fn rounded(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0);
    unit.map_or_else(|| format!("{bytes}B"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

fn attempt(last: &Value) -> String {
    if last.is_null() {
        return "-".to_owned();
    }
    let status = last.get("status").and_then(Value::as_u64);
    let status = status.map(|status| format!(" {status}")).unwrap_or_default();
    let took = last.get("duration_ms").and_then(Value::as_u64).unwrap_or_default();
    format!("{} {}{status}, {took} ms", text(last, "at"), text(last, "outcome"))
}

/// What holds it back, and until when.
pub(super) fn notes(target: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    for by in items(target, "paused_by").iter().filter_map(Value::as_str) {
        notes.push(match by {
            "operator" => format!("paused by an operator at {}", text(target, "paused_at")),
            _ => "paused by the routing table".to_owned(),
        });
    }
    if let Some(suspended) = target.get("suspended").filter(|suspended| !suspended.is_null()) {
        let probes = suspended.get("probes").and_then(Value::as_u64).unwrap_or_default();
        notes.push(format!(
            "suspended since {}: {}; {probes} probes failed, the next one at {}",
            text(suspended, "since"),
            reason(suspended),
            text(suspended, "next_probe_at"),
        ));
    }
    if let Some(until) = target.get("held_until").and_then(Value::as_str) {
        notes.push(format!("it asked to be left alone until {until}"));
    }
    notes
}

fn reason(suspended: &Value) -> String {
    match suspended.get("status").and_then(Value::as_u64) {
        Some(status) => format!("{} {status}", text(suspended, "outcome")),
        None => text(suspended, "outcome").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_told_with_its_limit_where_it_has_one() {
        let target =
            |bytes: u64, limit| json!({ "backlog_bytes": bytes, "backlog_limit_bytes": limit });
        assert_eq!(backlog(&target(0, Some(50_u64 << 30))), "0B of 50GiB");
        assert_eq!(backlog(&target((3 << 20) - 1, Some(3 << 20))), "2MiB of 3MiB");
        assert_eq!(backlog(&target(1024, None)), "1KiB");
    }
}
