//! Targets that are suspended or paused: what an operator sees, says, and finds after a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use crate::support::eventually::eventually;
use crate::support::receiver::Options;
use crate::support::routes::SOON;
use crate::support::vectors::activity;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay};

const CRM: [(&str, &str); 1] = [("target", "crm")];

/// A target that answers with the status that is set.
fn target(status: u16) -> (Receiver, Arc<AtomicU16>) {
    let answer = Arc::new(AtomicU16::new(status));
    let status = Arc::clone(&answer);
    let receiver = Options::default().start(move |_| Reply::Status(status.load(Ordering::SeqCst)));
    (receiver, answer)
}

fn routes(crm: &Receiver, more: &[&str]) -> Routes {
    Routes::new().target("crm", &crm.url(), &[&[SOON], more].concat()).all_to(&["crm"])
}

fn listed(relay: &TestRelay) -> Value {
    let told = relay.told(&["targets", "list", "--format", "json"]);
    serde_json::from_str(told.lines().next().unwrap()).unwrap()
}

fn post(relay: &TestRelay, name: &str, count: usize) {
    let mut sender = Sender::new(relay);
    for nth in 0..count {
        sender.post(&activity("ORDER_CREATED", &format!("{name}{nth}"), "ORDER")).accepted();
    }
}

#[test]
fn an_operators_pause_keeps_everything_over_a_kill_until_he_ends_it() {
    let (crm, _) = target(200);
    let mut relay = TestRelay::with(&routes(&crm, &[])).start();
    assert_eq!(relay.told(&["targets", "pause", "crm"]), "crm: paused\n");
    post(&relay, "a", 3);
    let text = relay.told(&["targets", "list"]);
    assert!(text.contains("paused") && text.contains("paused by an operator at 20"), "{text}");
    let id = relay.told(&["webhooks", "list", "--limit", "1"])[..36].to_owned();
    let shown = relay.told(&["webhooks", "show", &id]);
    assert!(shown.contains("held up: paused by an operator at 20"), "{shown}");
    relay.kill9();
    relay.start_again();
    relay.wait_for_metric("relay_target_paused", &CRM, 1.0);
    relay.wait_for_metric("relay_deliveries_pending", &CRM, 3.0);
    let crm_listed = listed(&relay);
    assert_eq!(crm_listed["paused_by"], serde_json::json!(["operator"]));
    assert_eq!((&crm_listed["state"], crm.count()), (&"paused".into(), 0));
    assert_eq!(relay.told(&["targets", "resume", "crm"]), "crm: running\n");
    crm.wait_for(3);
    relay.wait_for_metric("relay_target_paused", &CRM, 0.0);
    let refused = relay.ask(&["targets", "pause", "cmr"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no target \"cmr\": there are crm"), "{refused:?}");
}

#[test]
fn a_pause_in_the_table_holds_until_the_table_ends_it_whatever_the_operator_says() {
    let (crm, _) = target(200);
    let relay = TestRelay::with(&routes(&crm, &["paused: true"])).start();
    post(&relay, "t", 2);
    relay.wait_for_metric("relay_target_paused", &CRM, 1.0);
    let told = relay.told(&["targets", "resume", "crm"]);
    assert_eq!(told, "crm: paused, by the routing table: \"paused\" is true there\n");
    assert_eq!(crm.count(), 0);
    std::fs::write(relay.path("routes.yaml"), routes(&crm, &[]).yaml()).unwrap();
    crm.wait_for(2);
    relay.wait_for_metric("relay_target_paused", &CRM, 0.0);
}

#[test]
fn a_target_that_keeps_failing_is_suspended_also_after_a_kill_and_resumes_when_it_is_back() {
    let (crm, answer) = target(503);
    let mut relay = TestRelay::with(&routes(&crm, &[])).start();
    post(&relay, "s", 12);
    relay.wait_for_metric("relay_target_suspended", &CRM, 1.0);
    let before = eventually("a probe to fail", || {
        let crm = listed(&relay);
        crm["suspended"]["probes"].as_u64().filter(|probes| *probes > 0).map(|_| crm)
    });
    assert_eq!(
        (&before["state"], &before["suspended"]["status"]),
        (&"suspended".into(), &503.into())
    );
    assert_eq!(before["last_attempt"]["outcome"], "status");
    let logs = relay.logs();
    assert!(logs.iter().any(|line| line.contains("keeps failing and is suspended")), "{logs:?}");
    let text = relay.told(&["targets", "list"]);
    assert!(text.contains("suspended since 20") && text.contains(": status 503; "), "{text}");
    relay.kill9();
    relay.start_again();
    relay.wait_for_metric("relay_target_suspended", &CRM, 1.0);
    assert_eq!(listed(&relay)["suspended"]["since"], before["suspended"]["since"]);
    answer.store(200, Ordering::SeqCst);
    assert_eq!(relay.told(&["targets", "resume", "crm"]), "crm: running\n");
    relay.wait_for_metric("relay_deliveries_pending", &CRM, 0.0);
    relay.wait_for_metric("relay_target_suspended", &CRM, 0.0);
}

#[test]
fn a_suspended_target_comes_back_by_itself_where_what_failed_takes_all_memory() {
    let (crm, answer) = target(500);
    // What failed is due again at once: before what comes then.
    let routes = Routes::new()
        .target("crm", &crm.url(), &["retry: { first: 1ms, max: 1ms, for: 1h }"])
        .all_to(&["crm"]);
    let relay = TestRelay::with(&routes).flags(&["--delivery-memory", "512KiB"]).start();
    let mut sender = Sender::new(&relay);
    // A lane has half of that for what waits.
    for n in 0..3u8 {
        sender.post(&vec![b'a' + n; 70 << 10]).accepted();
    }
    relay.wait_for_metric("relay_target_suspended", &CRM, 1.0);
    // Never tried, it is what the next probe takes, and no room is left beside the others.
    sender.post(&vec![b'd'; 100 << 10]).accepted();
    answer.store(200, Ordering::SeqCst);
    relay.wait_for_metric("relay_deliveries_pending", &CRM, 0.0);
    relay.wait_for_metric("relay_target_suspended", &CRM, 0.0);
}

#[test]
fn an_operator_ends_what_a_target_asked_for() {
    let (crm, asked) = (AtomicU16::new(0), "3600".to_owned());
    let crm = Receiver::start(move |_| match crm.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::With(429, vec![("retry-after", asked.clone())]),
        _ => Reply::Status(200),
    });
    let relay = TestRelay::with(&routes(&crm, &[])).start();
    post(&relay, "a", 1);
    eventually("it is left alone", || listed(&relay)["held_until"].is_string());
    post(&relay, "b", 1);
    assert_eq!(relay.told(&["targets", "resume", "crm"]), "crm: running\n");
    // The first is due when it was asked for; all others go.
    crm.wait_for(2);
    relay.wait_for_metric("relay_deliveries_pending", &CRM, 1.0);
    assert!(listed(&relay)["held_until"].is_null());
}
