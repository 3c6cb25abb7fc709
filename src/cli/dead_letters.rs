//! `dead-letters`: deliveries that nobody tries any more, and what is done with them.

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use crate::cli::admin::AdminClient;
use crate::cli::check::Format;
use crate::cli::filter::{Asking, Filter};
use crate::cli::output::{self, Output};
use crate::cli::story::{again, items, print_dead_line, print_whole, text};
use crate::cli::webhooks::{each, one, say_more};
use crate::cli::{Usage, Verdict, block_on};
use crate::domain::webhook::WebhookId;

/// What `--help` says before the flags.
pub const ABOUT: &str = "\
Ask a running relay for the deliveries that nobody tries any more, and bring them back or end them.";

/// The flags of `dead-letters`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List dead letters, the newest first
    List(List),
    /// Tell everything about a webhook's dead letters
    Show(Show),
    /// Make dead letters due again: same bytes, same id, the target as it is now
    Redrive(Redrive),
    /// End dead letters for good
    Discard(Decide),
}

/// Why nobody tries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Cause {
    /// It was among the oldest of a target that pinned more of the store than it may
    BacklogFull,
    /// Its record is damaged
    Damaged,
    /// It failed for longer than the target's retry.for
    Expired,
    /// The target answered with a status of its give_up_on
    GivenUp,
    /// The target was gone from the table for longer than its time
    TargetRemoved,
}

/// The flags of `dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Which.
    #[command(flatten)]
    pub filter: Filter,
    /// Dead for this cause
    #[arg(long, value_enum, value_name = "CAUSE")]
    pub cause: Option<Cause>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// The flags of `dead-letters show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The webhook's id; of WEBHOOK_ID.1 (.2 …) only what was sent again as that
    #[arg(value_name = "WEBHOOK_ID")]
    pub id: String,
    /// Only the one of this target
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// The flags of `dead-letters redrive`.
#[derive(Debug, clap::Args)]
pub struct Redrive {
    /// Which.
    #[command(flatten)]
    pub decide: Decide,
    /// To this target instead; the dead letter ends when that one has its delivery
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,
}

/// The flags of `dead-letters redrive` and `discard`.
#[derive(Debug, clap::Args)]
pub struct Decide {
    /// Those of these webhooks; of WEBHOOK_ID.1 (.2 …) only what was sent again as that
    #[arg(value_name = "WEBHOOK_ID")]
    pub ids: Vec<String>,
    /// Which.
    #[command(flatten)]
    pub filter: Filter,
    /// Dead for this cause
    #[arg(long, value_enum, value_name = "CAUSE")]
    pub cause: Option<Cause>,
    /// All of them: needed where nothing else says which
    #[arg(long)]
    pub all: bool,
    /// Only count them
    #[arg(long)]
    pub dry_run: bool,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// Ids of one request.
const IDS_AT_ONCE: usize = 500;

/// Asks, and prints the answer.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::List(args) => block_on(list(args))?,
        Command::Show(args) => block_on(show(args))?,
        Command::Redrive(Redrive { decide: args, to }) => {
            block_on(decide(args, "redrive", "redriven", to.as_deref()))?
        }
        Command::Discard(args) => block_on(decide(args, "discard", "discarded", None))?,
    }
}

fn members(filter: &Filter, cause: Option<Cause>) -> Map<String, Value> {
    let mut members = filter.members();
    if let Some(name) = cause.and_then(|cause| cause.to_possible_value()) {
        members.insert("cause".to_owned(), name.get_name().into());
    }
    members
}

async fn list(args: &List) -> anyhow::Result<Verdict> {
    let output = Output::new();
    let print = |dead: &Value| match args.asking.format {
        Format::Json => output.line(dead),
        Format::Text => print_dead_line(&output, dead),
    };
    let members = members(&args.filter, args.cause);
    let more = each(&args.asking, "/api/v1/dead-letters", members, args.limit, print).await?;
    say_more(&output, &args.asking, more);
    Ok(Verdict::Yes)
}

async fn show(args: &Show) -> anyhow::Result<Verdict> {
    let Some(mut webhook) = one(&args.asking, &args.id).await? else { return Ok(Verdict::No) };
    let repeat = WebhookId::parse_known_as(&args.id).map_or(0, |(_, again)| again);
    let wanted = |delivery: &Value| {
        text(delivery, "state") == "dead_letter"
            && (repeat == 0 || again(delivery) == repeat)
            && args.target.as_deref().is_none_or(|target| text(delivery, "target") == target)
    };
    let found: Vec<Value> =
        items(&webhook, "deliveries").iter().filter(|one| wanted(one)).cloned().collect();
    if found.is_empty() {
        output::note(format_args!("webhook {} has no such dead letter", args.id));
        return Ok(Verdict::No);
    }
    let output = Output::new();
    match args.asking.format {
        Format::Json => {
            if let Some(deliveries) = webhook.get_mut("deliveries") {
                *deliveries = found.into();
            }
            output.line(&webhook);
        }
        Format::Text => print_whole(&output, &webhook, wanted),
    }
    Ok(Verdict::Yes)
}

/// How many were found and settled.
#[derive(Default)]
struct Sum {
    found: u64,
    settled: u64,
    /// Of those found: there is nothing left to redrive.
    gone: u64,
}

async fn decide(
    args: &Decide,
    verb: &str,
    done: &str,
    to: Option<&str>,
) -> anyhow::Result<Verdict> {
    let mut members = members(&args.filter, args.cause);
    if members.is_empty() && args.ids.is_empty() && !args.all {
        let text =
            format!("say which: WEBHOOK_ID, a filter such as --target, or --all to {verb} all");
        return Err(Usage(text).into());
    }
    members.insert("all".to_owned(), args.all.into());
    members.insert("dry_run".to_owned(), args.dry_run.into());
    members.extend(to.map(|to| ("to".to_owned(), to.into())));
    let client = AdminClient::new(&args.asking.admin)?;
    let path = format!("/api/v1/dead-letters/{verb}");
    let mut sum = Sum::default();
    if args.ids.is_empty() {
        go_through(&client, &path, done, members, &mut sum).await?;
    } else {
        for ids in args.ids.chunks(IDS_AT_ONCE) {
            members.insert("webhook_ids".to_owned(), json!(ids));
            go_through(&client, &path, done, members.clone(), &mut sum).await?;
        }
    }
    let output = Output::new();
    let Sum { found, settled, gone } = sum;
    let there = found.saturating_sub(gone);
    match (args.asking.format, args.dry_run) {
        (Format::Json, _) if gone > 0 => {
            output.line(json!({ "found": found, done: settled, "gone": gone }));
        }
        (Format::Json, _) => output.line(json!({ "found": found, done: settled })),
        (Format::Text, true) => output.line(format_args!("{} would be {done}", dead(there))),
        (Format::Text, false) => output.line(format_args!("{} {done}", dead(settled))),
    }
    if let (Some(to), false, 1..) = (to, args.dry_run, there.saturating_sub(settled)) {
        let rest = dead(there - settled);
        output::note(format_args!("{rest} stay: {to} has a delivery of them already"));
    }
    if gone > 0 {
        let gone = dead(gone);
        output::note(format_args!(
            "{gone} can't be {done}: the bytes are gone, as the backlog_limit had no room for them"
        ));
    }
    Ok(if there == 0 { Verdict::No } else { Verdict::Yes })
}

fn dead(count: u64) -> String {
    match count {
        1 => "1 dead letter".to_owned(),
        n => format!("{n} dead letters"),
    }
}

/// Goes on until there is no next page, and says how far it is. Interrupted, it can be typed again:
/// what was done is no dead letter any more.
async fn go_through(
    client: &AdminClient,
    path: &str,
    done: &str,
    mut members: Map<String, Value>,
    sum: &mut Sum,
) -> anyhow::Result<()> {
    loop {
        let answer = client.post(path, &Value::Object(members.clone())).await?;
        let answer = answer.or_else(|refusal| bail!(refusal.detail()))?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
        sum.found += number("found");
        sum.settled += number(done);
        sum.gone += number("gone");
        match text(&answer, "next") {
            "" => return Ok(()),
            next => members.insert("cursor".to_owned(), next.into()),
        };
        output::note(format_args!("{} {done} so far", sum.settled));
    }
}
