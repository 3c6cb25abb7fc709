//! How webhooks, deliveries and attempts are printed: from what the API answers.

use serde_json::Value;

use crate::cli::output::{Foreign, Output, Style};
use crate::domain::webhook::WebhookId;

/// The member that has what holds a delivery up besides its time: not of the API, but noted beside what it says.
pub const HELD_UP: &str = "held_up";

/// The text of a member, empty if there is none.
pub fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// Which repeat on purpose a delivery is, 0 for the first.
pub fn again(delivery: &Value) -> u32 {
    number(delivery, "again").try_into().unwrap_or_default()
}

/// Which delivery of its webhook it is. It reads as no other target: names have no spaces.
fn title(delivery: &Value) -> String {
    match (text(delivery, "target"), again(delivery)) {
        (target, 0) => target.to_owned(),
        (target, n) => format!("{target} again {n}"),
    }
}

/// The id as the target knows it, and the log.
fn known_as(webhook_id: &str, delivery: &Value) -> String {
    let id = WebhookId::parse(webhook_id);
    id.map_or_else(|| webhook_id.to_owned(), |id| id.known_as(again(delivery)))
}

/// The items of a list.
pub fn items<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// What a webhook is about.
fn about(webhook: &Value) -> String {
    let activity = match text(webhook, "activity") {
        "" => "no activity",
        activity => activity,
    };
    match (text(webhook, "resource_type"), text(webhook, "resource_id")) {
        ("", "") => activity.to_owned(),
        ("", id) => format!("{activity} {id}"),
        (object, id) => format!("{activity} {object}/{id}"),
    }
}

/// Where a delivery stands, in a few words.
fn standing(delivery: &Value) -> String {
    let attempts = match number(delivery, "attempts") {
        0 => String::new(),
        1 => " after 1 attempt".to_owned(),
        n => format!(" after {n} attempts"),
    };
    match text(delivery, "state") {
        "dead_letter" => format!("dead letter ({}){attempts}", text(delivery, "cause")),
        state => format!("{state}{attempts}"),
    }
}

fn style(delivery: &Value) -> Style {
    match text(delivery, "state") {
        "delivered" => Style::Good,
        "dead_letter" => Style::Bad,
        "pending" => Style::Notice,
        _ => Style::Dim,
    }
}

/// One webhook in one line.
pub fn print_line(output: &Output, webhook: &Value) {
    let deliveries = items(webhook, "deliveries").iter().map(|delivery| {
        let state = match text(delivery, "state") {
            "dead_letter" => "dead letter",
            state => state,
        };
        format!("{}: {}", title(delivery), output.paint(style(delivery), state))
    });
    let deliveries: Vec<_> = deliveries.collect();
    let deliveries = match deliveries.as_slice() {
        [] => output.paint(Style::Dim, "unrouted").to_string(),
        all => all.join(", "),
    };
    output.line(format_args!(
        "{}  {}  {}  {deliveries}",
        text(webhook, "webhook_id"),
        text(webhook, "received_at"),
        Foreign(&about(webhook)),
    ));
}

/// One dead letter in one line.
pub fn print_dead_line(output: &Output, dead: &Value) {
    let last = dead.get("last_attempt").filter(|last| !last.is_null());
    let is_gone = dead.get("bytes_gone").and_then(Value::as_bool).unwrap_or_default();
    output.line(format_args!(
        "{}  {}  {}  {}{}  {}{}",
        known_as(text(dead, "webhook_id"), dead),
        text(dead, "received_at"),
        text(dead, "target"),
        output.paint(Style::Bad, text(dead, "cause")),
        if is_gone { " (bytes gone)" } else { "" },
        Foreign(&about(dead)),
        last.map(|last| format!("  last: {}", came_to(last))).unwrap_or_default(),
    ));
}

/// What an attempt came to.
fn came_to(attempt: &Value) -> String {
    match attempt.get("status").and_then(Value::as_u64) {
        Some(status) => format!("{} {status}", text(attempt, "outcome")),
        None => text(attempt, "outcome").to_owned(),
    }
}

/// The whole story of a webhook; of its deliveries, those that are `wanted`.
pub fn print_whole(output: &Output, webhook: &Value, wanted: impl Fn(&Value) -> bool) {
    output.line(output.paint(Style::Bold, text(webhook, "webhook_id")));
    output.line(format_args!("  {}", Foreign(&about(webhook))));
    output.line(format_args!(
        "  received {} by source {}, {} bytes",
        text(webhook, "received_at"),
        text(webhook, "source"),
        number(webhook, "body_bytes"),
    ));
    print_record(output, webhook);
    let deliveries = items(webhook, "deliveries");
    if deliveries.is_empty() {
        output
            .line(format_args!("  {}", output.paint(Style::Notice, "unrouted: no route matched")));
    }
    for delivery in deliveries.iter().filter(|delivery| wanted(delivery)) {
        print_delivery(output, text(webhook, "webhook_id"), delivery);
    }
}

/// What only its record says, which may not be readable any more.
fn print_record(output: &Output, webhook: &Value) {
    if text(webhook, "record") != "whole" {
        output.line(format_args!("  {}", output.paint(Style::Bad, text(webhook, "record"))));
        return;
    }
    let peer = match text(webhook, "peer") {
        "" => "an unknown address",
        peer => peer,
    };
    output.line(format_args!(
        "  at {} from {peer}, verified by {}",
        Foreign(text(webhook, "path")),
        text(webhook, "secret"),
    ));
    output.line(format_args!("  routed by the table {}", text(webhook, "routes_sha256")));
}

fn print_delivery(output: &Output, webhook_id: &str, delivery: &Value) {
    output.line("");
    let standing = standing(delivery);
    output.line(format_args!(
        "  {}  {}",
        output.paint(Style::Bold, title(delivery)),
        output.paint(style(delivery), standing),
    ));
    if again(delivery) > 0 {
        output.line(format_args!("    Relay-Webhook-Id {}", known_as(webhook_id, delivery)));
    }
    let routes: Vec<_> = items(delivery, "routes").iter().filter_map(Value::as_str).collect();
    if !routes.is_empty() {
        output.line(format_args!("    by {}", routes.join(", ")));
    }
    let history = items(delivery, "history");
    let attempts = number(delivery, "attempts");
    let hidden = attempts.saturating_sub(history.len() as u64);
    if hidden > 0 {
        output.line(format_args!("    {hidden} of {attempts} attempts are no longer kept"));
    }
    for attempt in history {
        let excerpt = match text(attempt, "excerpt") {
            "" => String::new(),
            excerpt => format!("  {}", Foreign(excerpt)),
        };
        output.line(format_args!(
            "    {}  {} ms  {}{excerpt}",
            text(attempt, "at"),
            number(attempt, "duration_ms"),
            came_to(attempt),
        ));
    }
    if !text(delivery, "due_at").is_empty() {
        output.line(format_args!("    next attempt {}", text(delivery, "due_at")));
    }
    for note in items(delivery, HELD_UP).iter().filter_map(Value::as_str) {
        output.line(format_args!("    held up: {note}"));
    }
}
