//! `webhooks erase`: one webhook's bytes go.

use anyhow::bail;
use http::StatusCode;
use serde_json::{Value, json};

use crate::cli::Verdict;
use crate::cli::admin::AdminClient;
use crate::cli::filter::Asking;
use crate::cli::output::note;
use crate::cli::story::text;

/// The flags of `webhooks erase`.
#[derive(Debug, clap::Args)]
pub struct Erase {
    /// Its id, as targets get it in Relay-Webhook-Id; of what was sent again, without .1 and so on
    #[arg(value_name = "WEBHOOK_ID")]
    pub id: String,
    /// Only tell what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// Asks until it is done.
pub(super) async fn erase(args: &Erase) -> anyhow::Result<Verdict> {
    let client = AdminClient::new(&args.asking.admin)?;
    let id: String = form_urlencoded::byte_serialize(args.id.as_bytes()).collect();
    let path = format!("/api/v1/webhooks/{id}/erase");
    let mut is_under_way = false;
    let answer = loop {
        match client.post(&path, &json!({ "dry_run": args.dry_run })).await? {
            Ok(answer) if text(&answer, "state") == "under_way" => {
                if !is_under_way {
                    note(format_args!("the store is written again without it"));
                }
                is_under_way = true;
            }
            Ok(answer) => break answer,
            // It was there when we asked first.
            Err(refusal) if is_under_way && refusal.status == StatusCode::NOT_FOUND => {
                break json!({
                    "webhook_id": args.id, "state": "erased", "ended": null, "body_bytes": null,
                });
            }
            Err(refusal) => bail!(refusal.detail()),
        }
    };
    args.asking.print(&answer, told);
    Ok(Verdict::Yes)
}

fn told(answer: &Value) -> String {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64);
    let done = if text(answer, "state") == "stored" { "would be erased" } else { "erased" };
    let mut line = format!("{} {done}", text(answer, "webhook_id"));
    if let Some(bytes) = number("body_bytes") {
        line.push_str(&format!(", {bytes} bytes"));
    }
    match number("ended") {
        None | Some(0) => {}
        Some(1) => line.push_str("; 1 delivery was pending"),
        Some(ended) => line.push_str(&format!("; {ended} deliveries were pending")),
    }
    line
}
