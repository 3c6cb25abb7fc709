//! `store`: what is in a data directory, asked while no relay runs.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;

use crate::app::offline::{self, Refused};
use crate::cli::check::Format;
use crate::cli::output::{Foreign, Output, Style};
use crate::cli::story::{items, text};
use crate::cli::{Usage, Verdict};

/// What `help` says first.
pub const ABOUT: &str = "\
Check, count or copy a data directory that no relay is running on. Nothing in it is changed.

An index of it is made in the folder for temporary files (TMPDIR): about a twentieth of the log. Exit
status: 0 good, 1 something that was acknowledged is damaged, 2 the directory can't be looked at.";

/// The flags of `store`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verify every record, and the index against them; say what a start would do
    Check(Which),
    /// Count what is in it
    Stats(Which),
    /// Copy it into another directory, which a relay can be started with
    Backup(Backup),
}

/// Which directory.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The data directory
    #[arg(
        long,
        env = "RELAY_DATA",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "data"
    )]
    pub data: PathBuf,
    /// How results are printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// The flags of `store backup`.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Where to: a directory that is empty or not there yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

/// Looks at the directory.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let output = Output::new();
    match &args.command {
        Command::Check(which) => {
            let (found, is_good) = offline::check(&which.data).map_err(refused)?;
            print(&output, which, &found, print_check);
            Ok(verdict(is_good))
        }
        Command::Stats(which) => {
            let found = offline::stats(&which.data).map_err(refused)?;
            print(&output, which, &found, print_stats);
            Ok(Verdict::Yes)
        }
        Command::Backup(Backup { which, to }) => {
            let (found, is_good) = offline::backup(&which.data, to).map_err(refused)?;
            print(&output, which, &found, print_backup);
            Ok(verdict(is_good))
        }
    }
}

fn verdict(is_good: bool) -> Verdict {
    if is_good { Verdict::Yes } else { Verdict::No }
}

/// One line, with what lay behind it.
fn refused(error: Refused) -> anyhow::Error {
    let whole = format!("{:#}", anyhow::Error::new(error));
    anyhow::Error::new(Usage(whole))
}

fn print(output: &Output, which: &Which, found: &Value, print: fn(&Output, &Value)) {
    match which.format {
        Format::Json => output.line(found),
        Format::Text => print(output, found),
    }
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or_default()
}

fn print_check(output: &Output, found: &Value) {
    for flaw in items(found, "damaged") {
        output.line(output.paint(Style::Bad, format!("damaged: {}", flaw_line(flaw))));
        output.line(format_args!("  {}", text(flaw, "means")));
    }
    for missing in items(found, "missing") {
        let line = format!(
            "missing: webhook {} received {}, which the index has at segment {} offset {}",
            text(missing, "webhook_id"),
            text(missing, "received_at"),
            number(missing, "segment"),
            number(missing, "offset"),
        );
        output.line(output.paint(Style::Bad, line));
    }
    for (list, what) in [("unreadable", "can't be read"), ("not_understood", "is not understood")] {
        for part in items(found, list) {
            output.line(output.paint(Style::Bad, format!("{what}: {}", place(part))));
        }
    }
    for (more, what) in [("damaged_unnamed", "damaged"), ("missing_unnamed", "missing")] {
        if number(found, more) > 0 {
            output.line(format_args!("{what}: {} more", number(found, more)));
        }
    }
    for flaw in items(found, "torn") {
        output.line(format_args!("torn: {}; nobody was told that it was stored", flaw_line(flaw)));
    }
    for note in items(found, "notes").iter().filter_map(Value::as_str) {
        output.line(output.paint(Style::Notice, format!("note: {}", Foreign(note))));
    }
    let index = found.get("index").unwrap_or(&Value::Null);
    output.line(format_args!("index: {}: {}", text(index, "state"), text(index, "means")));
    for (name, what) in [
        ("pending_only_in_log", "deliveries are pending in the log and not in the index"),
        ("otherwise_pending", "deliveries are pending in only one of the log and the index"),
    ] {
        if number(index, name) > 0 {
            output.line(format_args!("index: {} {what}", number(index, name)));
        }
    }
    for step in items(found, "start").iter().filter_map(Value::as_str) {
        output.line(format_args!("a start: {}", Foreign(step)));
    }
    let is_good = found.get("good") == Some(&Value::Bool(true));
    let (style, word) = if is_good { (Style::Good, "good") } else { (Style::Bad, "damaged") };
    output.line(format_args!(
        "{}: {}; {} of {} in {}, {}",
        Foreign(text(found, "data")),
        output.paint(style, word),
        count(number(found, "records"), "record"),
        count(number(found, "webhooks"), "webhook"),
        count(number(found, "segments"), "segment"),
        bytes(number(found, "bytes")),
    ));
}

fn place(part: &Value) -> String {
    match part.get("offset").and_then(Value::as_u64) {
        Some(offset) => format!(
            "segment {} offset {offset}, {} bytes",
            number(part, "segment"),
            number(part, "bytes")
        ),
        None => format!("segment {}", number(part, "segment")),
    }
}

fn flaw_line(flaw: &Value) -> String {
    let mut line = match text(flaw, "webhook_id") {
        "" => "a record".to_owned(),
        id => format!("webhook {id}"),
    };
    if !matches!(text(flaw, "record"), "" | "webhook") {
        line.push_str(&format!(", its {} record", text(flaw, "record")));
    }
    if !text(flaw, "activity").is_empty() {
        line.push_str(&format!(" {}", Foreign(text(flaw, "activity"))));
    }
    if !text(flaw, "received_at").is_empty() {
        line.push_str(&format!(" received {}", text(flaw, "received_at")));
    }
    format!("{line}, {}", place(flaw))
}

fn print_stats(output: &Output, found: &Value) {
    let line = |name: &str, value: String| output.line(format_args!("{name:<16} {value}"));
    let n = |name| number(found, name);
    line("data", Foreign(text(found, "data")).to_string());
    line("segments", format!("{}, {}", n("segments"), bytes(n("segment_bytes"))));
    for (kind, tally) in found.get("records").and_then(Value::as_object).into_iter().flatten() {
        let (records, size) = (number(tally, "records"), bytes(number(tally, "bytes")));
        line("  records", format!("{records} {kind}, {size}"));
    }
    line("  live, dead", format!("{}, {}", bytes(n("live_bytes")), bytes(n("dead_bytes"))));
    if n("damaged_records") > 0 {
        line("  damaged", format!("{}: `store check` names them", n("damaged_records")));
    }
    line("webhooks", format!("{}, of which {} unrouted", n("webhooks"), n("unrouted")));
    if n("webhooks") > 0 {
        line("  oldest", text(found, "oldest_received_at").to_owned());
        line("  newest", text(found, "newest_received_at").to_owned());
    }
    for target in items(found, "targets") {
        let mut value = format!("{} pending", number(target, "pending"));
        let dead = target.get("dead_letters").and_then(Value::as_object);
        for (cause, n) in dead.into_iter().flatten() {
            value.push_str(&format!(", {n} dead letters ({cause})"));
        }
        let name = format!("  {}", Foreign(text(target, "name")));
        line(&name, value);
    }
    line("index", bytes(n("index_bytes")));
    line(
        "quarantine",
        format!("{}, {}", count(n("quarantine_files"), "file"), bytes(n("quarantine_bytes"))),
    );
}

fn print_backup(output: &Output, found: &Value) {
    let n = |name| number(found, name);
    output.line(format_args!(
        "{} copied to {}: {}, {}; {}, {} pending",
        Foreign(text(found, "data")),
        Foreign(text(found, "to")),
        count(n("files"), "file"),
        bytes(n("bytes")),
        count(n("webhooks"), "webhook"),
        plural(n("pending"), "delivery", "deliveries"),
    ));
    if n("damaged") > 0 {
        let text = format!("{} copied as it is", count(n("damaged"), "damaged record"));
        output.line(output.paint(Style::Bad, text));
    }
    if n("unreadable_bytes") > 0 {
        let text = format!("{} could not be read: zeros are there", bytes(n("unreadable_bytes")));
        output.line(output.paint(Style::Bad, text));
    }
    let to = Foreign(text(found, "to"));
    output.line(format_args!("start with it: aryeo-relay serve --data {to} …"));
}

fn count(number: u64, noun: &str) -> String {
    plural(number, noun, &format!("{noun}s"))
}

fn plural(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.into_iter().find(|(_, size)| bytes >= *size);
    match unit {
        None => format!("{bytes} bytes"),
        Some((name, size)) => {
            let tenths = bytes.saturating_mul(10) / size;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
    }
}
