//! `webhooks`: what became of them.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::Value;

use crate::cli::admin::AdminClient;
use crate::cli::check::Format;
use crate::cli::erase::{Erase, erase};
use crate::cli::filter::{AnyFilter, Asking, with_query};
use crate::cli::output::{Output, Style};
use crate::cli::replay::{Replay, replay};
use crate::cli::story::{HELD_UP, items, print_line, print_whole, text};
use crate::cli::targets::notes;
use crate::cli::{Verdict, block_on};

/// What `--help` says before the flags.
pub const ABOUT: &str = "\
Ask a running relay what became of webhooks: which came, where they went, each attempt; and route them
again, or erase one.";

/// Items of one answer.
const PAGE: usize = 500;

/// The flags of `webhooks`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List webhooks, the newest first
    List(List),
    /// Tell everything about one webhook
    Show(Show),
    /// Route stored webhooks again: to targets that have not had them yet
    Replay(Replay),
    /// Remove one webhook's bytes: its body, its headers, what targets answered
    Erase(Erase),
}

/// The flags of `webhooks list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Which.
    #[command(flatten)]
    pub filter: AnyFilter,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// The flags of `webhooks show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Its id, as targets get it in Relay-Webhook-Id
    #[arg(value_name = "WEBHOOK_ID")]
    pub id: String,
    /// Print its exact bytes, and nothing else
    #[arg(long)]
    pub body: bool,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// Asks, and prints the answer.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    match &args.command {
        Command::List(args) => block_on(list(args))?,
        Command::Show(args) => block_on(show(args))?,
        Command::Replay(args) => block_on(replay(args))?,
        Command::Erase(args) => block_on(erase(args))?,
    }
}

async fn list(args: &List) -> anyhow::Result<Verdict> {
    let members = args.filter.members();
    let output = Output::new();
    let print = |webhook: &Value| match args.asking.format {
        Format::Json => output.line(webhook),
        Format::Text => print_line(&output, webhook),
    };
    let more = each(&args.asking, "/api/v1/webhooks", members, args.limit, print).await?;
    say_more(&output, &args.asking, more);
    Ok(Verdict::Yes)
}

/// There are more than were listed.
pub(super) fn say_more(output: &Output, asking: &Asking, more: bool) {
    if more && asking.format == Format::Text {
        output.line(output.paint(Style::Dim, "and more; --limit N lists more"));
    }
}

/// Calls `print` for each item of a list, at most `limit`; answers whether there are more.
pub(super) async fn each(
    asking: &Asking,
    path: &str,
    mut members: serde_json::Map<String, Value>,
    limit: u64,
    mut print: impl FnMut(&Value),
) -> anyhow::Result<bool> {
    let client = AdminClient::new(&asking.admin)?;
    let mut left = limit;
    loop {
        members.insert("limit".to_owned(), left.min(PAGE as u64).into());
        let page = client.get(&with_query(path, &members)).await?;
        let page = page.or_else(|refusal| bail!(refusal.detail()))?;
        let found = items(&page, "items");
        found.iter().for_each(&mut print);
        left = left.saturating_sub(found.len() as u64);
        match text(&page, "next") {
            "" => return Ok(false),
            _ if left == 0 => return Ok(true),
            next => members.insert("cursor".to_owned(), next.into()),
        };
    }
}

async fn show(args: &Show) -> anyhow::Result<Verdict> {
    let output = Output::new();
    if args.body {
        return body(args).await;
    }
    let Some(mut webhook) = one(&args.asking, &args.id).await? else { return Ok(Verdict::No) };
    match args.asking.format {
        Format::Json => output.line(&webhook),
        Format::Text => {
            note_hold_ups(&args.asking, &mut webhook).await?;
            print_whole(&output, &webhook, |_| true);
        }
    }
    Ok(Verdict::Yes)
}

/// Notes beside what is pending what else holds it up: its time says nothing where its target is paused,
/// suspended, held or gone.
async fn note_hold_ups(asking: &Asking, webhook: &mut Value) -> anyhow::Result<()> {
    let deliveries = webhook.get_mut("deliveries").and_then(Value::as_array_mut);
    let mut pending: Vec<&mut Value> =
        deliveries.into_iter().flatten().filter(|one| text(one, "state") == "pending").collect();
    if pending.is_empty() {
        return Ok(());
    }
    let client = AdminClient::new(&asking.admin)?;
    let targets =
        client.get("/api/v1/targets").await?.or_else(|refusal| bail!(refusal.detail()))?;
    for delivery in &mut pending {
        let mut targets = items(&targets, "items").iter();
        let target = targets.find(|target| text(target, "name") == text(delivery, "target"));
        // It may have gone since it was asked for.
        let Some(target) = target else { continue };
        let held_up = match text(target, "state") {
            "removed" => vec!["its target is not in the routing table".to_owned()],
            _ => notes(target),
        };
        if let Some(members) = delivery.as_object_mut() {
            members.insert(HELD_UP.to_owned(), held_up.into());
        }
    }
    Ok(())
}

/// A webhook; none if it is not stored, which has been said.
pub(super) async fn one(asking: &Asking, id: &str) -> anyhow::Result<Option<Value>> {
    let client = AdminClient::new(&asking.admin)?;
    match client.get(&format!("/api/v1/webhooks/{}", segment(id))).await? {
        Ok(webhook) => Ok(Some(webhook)),
        Err(refusal) => bail!(refusal.detail()),
    }
}

async fn body(args: &Show) -> anyhow::Result<Verdict> {
    let client = AdminClient::new(&args.asking.admin)?;
    let path = format!("/api/v1/webhooks/{}/body", segment(&args.id));
    match client.get_bytes(&path).await? {
        Ok(body) => {
            let mut stdout = std::io::stdout().lock();
            let written = stdout.write_all(&body).and_then(|()| stdout.flush());
            written.context("the body can't be written")?;
            Ok(Verdict::Yes)
        }
        Err(refusal) => bail!(refusal.detail()),
    }
}

/// Something that was typed, as one segment of a path.
fn segment(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
