//! What became of a webhook, asked of a running relay; dead letters brought back and ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use crate::support::receiver::Options;
use crate::support::routes::SOON;
use crate::support::vectors::{activity, listing_delivered};
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay};

/// A target that answers with the status that is set.
fn target(status: u16) -> (Receiver, Arc<AtomicU16>) {
    let answer = Arc::new(AtomicU16::new(status));
    let status = Arc::clone(&answer);
    let receiver = Options::default().start(move |_| Reply::Status(status.load(Ordering::SeqCst)));
    (receiver, answer)
}

fn relay(crm: &Receiver, billing: &Receiver) -> TestRelay {
    let routes = Routes::new()
        .target("crm", &crm.url(), &[SOON])
        .target("billing", &billing.url(), &[SOON])
        .route("listings", &["activity: LISTING_*"], &["crm"])
        .route("all-money", &["activity: [LISTING_DELIVERED, ORDER_*]"], &["billing"]);
    TestRelay::with(&routes).start()
}

fn json(relay: &TestRelay, words: &[&str]) -> Vec<Value> {
    let told = relay.told(&[words, &["--format", "json"]].concat());
    told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn dead_letters(relay: &TestRelay, count: f64) {
    let labels = [("target", "billing"), ("cause", "given_up")];
    relay.wait_for_metric("relay_dead_letters", &labels, count);
}

#[test]
fn show_tells_what_came_who_matched_and_every_attempt() {
    let (crm, _) = target(200);
    let (billing, _) = target(410);
    let relay = relay(&crm, &billing);
    let body = listing_delivered("a1");
    let id = Sender::new(&relay).post(&body).accepted();
    dead_letters(&relay, 1.0);
    crm.wait_for(1);
    let text = relay.told(&["webhooks", "show", &id]);
    for part in [
        &id as &str,
        "LISTING_DELIVERED LISTING/of-a1",
        "by source aryeo,",
        "at /webhooks/aryeo from 127.0.0.1, verified by env:ARYEO_WEBHOOK_SECRET_0",
        "by listings",
        "billing  dead letter (given_up) after 1 attempt",
        "by all-money",
        "given_up 410",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let whole = json(&relay, &["webhooks", "show", &id]).remove(0);
    assert_eq!(whole["body_bytes"], body.len());
    assert_eq!(whole["deliveries"][1]["history"][0]["status"], 410);
    assert_eq!(relay.told(&["webhooks", "show", &id, "--body"]).into_bytes(), body);
    let unknown = relay.ask(&["webhooks", "show", "01a213ed-646b-7000-80b3-4e15e05fd840"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("it never came"), "{unknown:?}");
    assert!(!format!("{whole}").contains(&crate::support::routes::target_secret("crm")));
}

#[test]
fn list_finds_webhooks_by_what_they_are_and_what_became_of_them() {
    let (crm, _) = target(200);
    let (billing, _) = target(410);
    let relay = relay(&crm, &billing);
    let mut sender = Sender::new(&relay);
    let listing = sender.post(&listing_delivered("l1")).accepted();
    let order = sender.post(&activity("ORDER_CREATED", "o1", "ORDER")).accepted();
    let nobody = sender.post(&activity("GROUP_CREATED", "g1", "GROUP")).accepted();
    dead_letters(&relay, 2.0);
    crm.wait_for(1);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let listed = |flags: &[&str]| -> Vec<String> {
        let all = json(&relay, &[&["webhooks", "list"], flags].concat());
        all.iter().map(|webhook| webhook["webhook_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&[]), [&*nobody, &order, &listing], "the newest first");
    assert_eq!(listed(&["--limit", "1"]), [&*nobody]);
    assert_eq!(listed(&["--activity", "ORDER_*"]), [&*order]);
    assert_eq!(listed(&["--unrouted"]), [&*nobody]);
    assert_eq!(listed(&["--state", "delivered"]), [&*listing]);
    assert_eq!(listed(&["--state", "dead_letter"]), [&*order, &listing]);
    assert_eq!(listed(&["--target", "crm"]), [&*listing]);
    assert_eq!(listed(&["--resource", "ORDER/of-o1"]), [&*order]);
    assert_eq!(listed(&["--since", "1h"]).len(), 3);
    assert!(listed(&["--until", "1h"]).is_empty() && listed(&["--source", "other"]).is_empty());
    let text = relay.told(&["webhooks", "list"]);
    assert!(
        text.lines().next().unwrap().ends_with("GROUP_CREATED GROUP/of-g1  unrouted"),
        "{text}"
    );
    assert!(text.contains("crm: delivered, billing: dead letter"), "{text}");
    let targets = relay.told(&["targets", "list"]);
    let billing = targets.lines().find(|line| line.starts_with("billing")).unwrap();
    let columns: Vec<_> = billing.split_whitespace().collect();
    assert_eq!(columns[..3], ["billing", "running", "0"]);
    assert!(billing.contains("  2  -  "), "{billing}");
    assert!(billing.contains(" given_up 410, "), "{billing}");
}

#[test]
fn a_redriven_dead_letter_reaches_the_target_with_its_id_and_a_restart_does_not_forget_it() {
    let (crm, _) = target(200);
    let (billing, answer) = target(410);
    let mut relay = relay(&crm, &billing);
    let body = activity("ORDER_CREATED", "r1", "ORDER");
    let id = Sender::new(&relay).post(&body).accepted();
    dead_letters(&relay, 1.0);
    let listed = json(&relay, &["dead-letters", "list", "--cause", "given_up"]);
    assert_eq!(
        (&listed[0]["webhook_id"], &listed[0]["target"]),
        (&id.clone().into(), &"billing".into())
    );
    assert_eq!(listed[0]["last_attempt"]["status"], 410);
    let shown = relay.told(&["dead-letters", "show", &id]);
    assert!(shown.contains("dead letter (given_up)"), "{shown}");

    let refused = relay.ask(&["dead-letters", "redrive"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("--all"), "{refused:?}");
    let dry = relay.told(&["dead-letters", "redrive", "--all", "--dry-run"]);
    assert_eq!(dry, "1 dead letter would be redriven\n");
    let none = relay.ask(&["dead-letters", "redrive", "--target", "crm"]);
    assert_eq!(none.code, Some(1), "there is none: {none:?}");

    answer.store(503, Ordering::SeqCst);
    assert_eq!(relay.told(&["dead-letters", "redrive", &id]), "1 dead letter redriven\n");
    billing.wait_for(2);
    relay.kill9();
    answer.store(200, Ordering::SeqCst);
    relay.start_again();
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "billing")], 0.0);
    let all = billing.wait_for(3);
    let last = all.last().unwrap();
    assert_eq!((last.webhook_id(), &last.body), (id.as_str(), &body));
    // Of an attempt that ended within the last milliseconds before the kill nothing may be known.
    assert!(last.attempt() >= 2, "it goes on counting");
    assert!(json(&relay, &["dead-letters", "list"]).is_empty());
}

#[test]
fn a_discarded_dead_letter_is_never_sent_again() {
    let (crm, _) = target(200);
    let (billing, answer) = target(410);
    let mut relay = relay(&crm, &billing);
    let id = Sender::new(&relay).post(&activity("ORDER_CREATED", "d1", "ORDER")).accepted();
    dead_letters(&relay, 1.0);
    let told_of = relay.told(&["dead-letters", "discard", "--target", "billing"]);
    assert_eq!(told_of, "1 dead letter discarded\n");
    answer.store(200, Ordering::SeqCst);
    relay.restart();
    let whole = json(&relay, &["webhooks", "show", &id]).remove(0);
    assert_eq!(whole["deliveries"][0]["state"], "discarded");
    assert_eq!(relay.metrics().value("relay_deliveries_pending", &[("target", "billing")]), 0.0);
    assert_eq!(billing.wait_for(1).len(), 1);
}

#[test]
fn a_webhook_is_listed_as_soon_as_it_was_acknowledged() {
    let (crm, _) = target(200);
    let (billing, _) = target(200);
    let relay = relay(&crm, &billing);
    let mut sender = Sender::new(&relay);
    for n in 0..20 {
        let id = sender.post(&listing_delivered(&format!("n{n}"))).accepted();
        let newest = json(&relay, &["webhooks", "list", "--limit", "1"]).remove(0);
        assert_eq!(newest["webhook_id"], id);
    }
}
