//! `webhooks replay`: stored webhooks through today's rules.

use anyhow::bail;
use serde_json::{Map, Value, json};

use crate::cli::admin::AdminClient;
use crate::cli::check::Format;
use crate::cli::filter::{AnyFilter, Asking};
use crate::cli::output::{self, Output};
use crate::cli::story::text;
use crate::cli::{Usage, Verdict};

/// Ids of one request.
const IDS_AT_ONCE: usize = 500;

/// The flags of `webhooks replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// These webhooks
    #[arg(value_name = "WEBHOOK_ID")]
    pub ids: Vec<String>,
    /// Which.
    #[command(flatten)]
    pub filter: AnyFilter,
    /// To the targets that they have had, not by today's rules
    #[arg(long)]
    pub as_accepted: bool,
    /// Also to targets that have it already: they get it with the id WEBHOOK_ID.1, .2 and so on
    #[arg(long)]
    pub again: bool,
    /// All that are stored: needed where nothing else says which
    #[arg(long)]
    pub all: bool,
    /// Only count them
    #[arg(long)]
    pub dry_run: bool,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

#[derive(Default)]
struct Sum {
    found: u64,
    replayed: u64,
    deliveries: u64,
    unreadable: u64,
}

/// Asks until all are through.
pub(super) async fn replay(args: &Replay) -> anyhow::Result<Verdict> {
    let mut members = args.filter.members();
    if members.is_empty() && args.ids.is_empty() && !args.all {
        let text = "say which: WEBHOOK_ID, --unrouted, a filter such as --since 2h, or --all";
        return Err(Usage(text.to_owned()).into());
    }
    for (name, said) in [
        ("all", args.all),
        ("as_accepted", args.as_accepted),
        ("again", args.again),
        ("dry_run", args.dry_run),
    ] {
        members.insert(name.to_owned(), said.into());
    }
    let client = AdminClient::new(&args.asking.admin)?;
    let mut sum = Sum::default();
    if args.ids.is_empty() {
        go_through(&client, members, &mut sum).await?;
    } else {
        for ids in args.ids.chunks(IDS_AT_ONCE) {
            members.insert("webhook_ids".to_owned(), json!(ids));
            go_through(&client, members.clone(), &mut sum).await?;
        }
    }
    print(args, &sum);
    Ok(if sum.found == 0 || sum.unreadable > 0 { Verdict::No } else { Verdict::Yes })
}

fn print(args: &Replay, sum: &Sum) {
    let output = Output::new();
    let Sum { found, replayed, deliveries, unreadable } = *sum;
    if args.asking.format == Format::Json {
        output.line(json!({
            "found": found, "replayed": replayed, "deliveries": deliveries,
            "unreadable": unreadable,
        }));
        return;
    }
    let done = if args.dry_run { "would be replayed" } else { "replayed" };
    let rest = found - replayed - unreadable;
    output.line(format_args!(
        "{replayed} of {found} webhooks {done}, {deliveries} deliveries; {rest} had nowhere new to go"
    ));
    if unreadable > 0 {
        output::note(format_args!("{unreadable} can't be read: see the log and the runbook"));
    }
}

/// Goes on until there is no next page, and says how far it is. Interrupted, it can be typed again:
/// what was replayed has its deliveries.
async fn go_through(
    client: &AdminClient,
    mut members: Map<String, Value>,
    sum: &mut Sum,
) -> anyhow::Result<()> {
    loop {
        let answer =
            client.post("/api/v1/webhooks/replay", &Value::Object(members.clone())).await?;
        let answer = answer.or_else(|refusal| bail!(refusal.detail()))?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
        sum.found += number("found");
        sum.replayed += number("replayed");
        sum.deliveries += number("deliveries");
        sum.unreadable += number("unreadable");
        match text(&answer, "next") {
            "" => return Ok(()),
            next => members.insert("cursor".to_owned(), next.into()),
        };
        output::note(format_args!("{} of {} replayed so far", sum.replayed, sum.found));
    }
}
