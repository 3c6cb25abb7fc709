//! Stored webhooks routed again, and dead letters sent elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};

use crate::support::receiver::Options;
use crate::support::routes::SOON;
use crate::support::sender::Connection;
use crate::support::vectors::activity;
use crate::support::{Receiver, Reply, Request, Routes, Sender, TestRelay};

fn two(crm: &Receiver, billing: &Receiver) -> Routes {
    Routes::new().target("crm", &crm.url(), &[SOON]).target("billing", &billing.url(), &[SOON])
}

fn order(name: &str) -> Vec<u8> {
    activity("ORDER_CREATED", name, "ORDER")
}

/// Goes to `to` twice, by a replay; answers its id and what the second delivery is known as.
fn sent_twice(relay: &TestRelay, body: &[u8], to: &Receiver) -> (String, String) {
    let id = Sender::new(relay).post(body).accepted();
    to.wait_for(1);
    relay.told(&["webhooks", "replay", &id, "--again"]);
    let again = to.wait_for(2).pop().unwrap().webhook_id().to_owned();
    assert_eq!(again, format!("{id}.1"));
    (id, again)
}

/// What each line of the list of dead letters begins with.
fn dead_letters(relay: &TestRelay) -> Vec<String> {
    let text = relay.told(&["dead-letters", "list"]);
    text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

fn save(relay: &TestRelay, routes: &Routes) {
    std::fs::write(relay.path("routes.yaml"), routes.yaml()).unwrap();
    let reloaded = crate::reload::reload(relay);
    assert_eq!(reloaded.status, 200, "{reloaded:?}");
}

#[test]
fn unrouted_webhooks_reach_their_target_once_the_rules_are_mended_also_after_a_kill() {
    let (crm, billing) = (Receiver::willing(), Receiver::willing());
    let wrong = two(&crm, &billing).route("orders", &["activity: ORDR_*"], &["crm", "billing"]);
    let mut relay = TestRelay::with(&wrong).start();
    let bodies: Vec<_> = (0..5).map(|n| order(&format!("u{n}"))).collect();
    let mut sender = Sender::new(&relay);
    let ids: Vec<_> = bodies.iter().map(|body| sender.post(body).accepted()).collect();
    save(&relay, &two(&crm, &billing).route("orders", &["activity: ORDER_*"], &["crm"]));
    let replay = ["webhooks", "replay", "--unrouted"];
    assert_eq!(
        relay.told(&[&replay[..], &["--dry-run"]].concat()),
        "5 of 5 webhooks would be replayed, 5 deliveries; 0 had nowhere new to go\n"
    );
    assert_eq!(crm.count(), 0);
    relay.told(&["targets", "pause", "crm"]);
    assert_eq!(
        relay.told(&replay),
        "5 of 5 webhooks replayed, 5 deliveries; 0 had nowhere new to go\n"
    );
    let nothing = relay.ask(&replay);
    assert_eq!(nothing.code, Some(1), "they are routed now: {nothing:?}");
    relay.kill9();
    relay.start_again();
    relay.told(&["targets", "resume", "crm"]);
    let received = crm.wait_for(5);
    let mut arrived: Vec<_> = received.iter().map(|r| r.webhook_id().to_owned()).collect();
    arrived.sort();
    assert_eq!(arrived, ids, "the same ids");
    for delivery in &received {
        delivery.assert_signed_for("crm");
        assert!(bodies.contains(&delivery.body), "the same bytes");
    }
    assert_eq!(billing.count(), 0);
}

#[test]
fn a_replay_goes_only_where_nothing_went_yet_unless_it_is_to_be_again() {
    let (crm, billing) = (Receiver::willing(), Receiver::willing());
    let before = two(&crm, &billing).all_to(&["crm"]);
    let relay = TestRelay::with(&before).start();
    let id = Sender::new(&relay).post(&order("again")).accepted();
    crm.wait_for(1);
    save(&relay, &two(&crm, &billing).all_to(&["crm", "billing"]));
    let refused = relay.ask(&["webhooks", "replay"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(
        relay.told(&["webhooks", "replay", "--since", "1h"]),
        "1 of 1 webhooks replayed, 1 deliveries; 0 had nowhere new to go\n"
    );
    billing.wait_for(1);
    assert_eq!(
        relay.told(&["webhooks", "replay", &id]),
        "0 of 1 webhooks replayed, 0 deliveries; 1 had nowhere new to go\n"
    );
    relay.told(&["webhooks", "replay", &id, "--again", "--as-accepted"]);
    let last = crm.wait_for(2).pop().unwrap();
    assert_eq!(last.webhook_id(), format!("{id}.1"));
    assert_eq!(last.header("idempotency-key"), Some(&*format!("{id}.1")));
    assert_eq!(billing.wait_for(2).len(), 2);
    let shown = relay.told(&["webhooks", "show", &id, "--format", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let told: Vec<_> = shown["deliveries"].as_array().unwrap().iter().collect();
    let told = told.iter().map(|d| (d["target"].as_str().unwrap(), d["again"].as_u64().unwrap()));
    assert_eq!(told.collect::<Vec<_>>(), [("crm", 0), ("billing", 0), ("crm", 1), ("billing", 1)]);
}

#[test]
fn a_replay_by_state_goes_over_each_once_though_each_is_in_that_state_still() {
    let (crm, billing) = (Receiver::willing(), Receiver::willing());
    let routes = two(&crm, &billing).route("orders", &["activity: ORDER_*"], &["crm"]).route(
        "listings",
        &["activity: LISTING_*"],
        &["billing"],
    );
    let relay = TestRelay::with(&routes).start();
    relay.told(&["targets", "pause", "crm"]);
    let mut sender = Sender::new(&relay);
    sender.post(&activity("LISTING_DELIVERED", "elsewhere", "LISTING")).accepted();
    // More than are gone over at once.
    let ids: Vec<_> = (0..40).map(|n| sender.post(&order(&format!("s{n}"))).accepted()).collect();
    billing.wait_for(1);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "billing")], 0.0);
    let nothing = relay.ask(&["webhooks", "replay", "--state", "dead_letter", "--again"]);
    assert_eq!(nothing.code, Some(1), "there is none: {nothing:?}");
    let replay = ["webhooks", "replay", "--state", "pending"];
    assert_eq!(
        relay.told(&replay),
        "0 of 40 webhooks replayed, 0 deliveries; 40 had nowhere new to go\n"
    );
    assert_eq!(
        relay.told(&[&replay[..], &["--again", "--dry-run"]].concat()),
        "40 of 40 webhooks would be replayed, 40 deliveries; 0 had nowhere new to go\n"
    );

    // Who is interrupted goes on behind what was done.
    let first = relay.get("/api/v1/webhooks?state=pending&order=oldest&limit=20").json();
    let rest = json!({ "state": "pending", "again": true, "cursor": first["next"] });
    let rest = Request::unsigned("/api/v1/webhooks/replay", rest.to_string().as_bytes());
    let done = Connection::open(relay.admin(), None).unwrap().send(&rest).unwrap().json();
    assert_eq!((&done["found"], &done["deliveries"]), (&json!(20), &json!(20)), "{done}");
    assert_eq!(
        relay.told(&[&replay[..], &["--again"]].concat()),
        "40 of 40 webhooks replayed, 40 deliveries; 0 had nowhere new to go\n"
    );

    relay.told(&["targets", "resume", "crm"]);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let mut received: Vec<_> = crm.received().iter().map(|r| r.webhook_id().to_owned()).collect();
    received.sort();
    let mut expected: Vec<_> = ids.iter().flat_map(|id| [id.clone(), format!("{id}.1")]).collect();
    expected.extend(ids[20..].iter().map(|id| format!("{id}.2")));
    expected.sort();
    assert_eq!(received, expected);
    assert_eq!(billing.count(), 1, "it was delivered before");
}

#[test]
fn what_was_sent_again_is_told_apart_from_what_was_sent_first() {
    let (crm, billing) = (Receiver::willing(), Receiver::willing());
    let relay = TestRelay::with(&two(&crm, &billing).all_to(&["crm"])).start();
    let (id, again) = sent_twice(&relay, &order("twice"), &crm);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let list = relay.told(&["webhooks", "list"]);
    assert!(list.ends_with("  crm: delivered, crm again 1: delivered\n"), "{list}");
    let shown = relay.told(&["webhooks", "show", &id]);
    assert!(shown.contains("  crm  delivered after 1 attempt\n    by everything\n"), "{shown}");
    let second = format!(
        "  crm again 1  delivered after 1 attempt\n    Relay-Webhook-Id {again}\n    by everything\n"
    );
    assert!(shown.contains(&second), "{shown}");
}

/// A relay whose one webhook is two dead letters of billing's, their ids, and the other target.
fn died_twice() -> (TestRelay, String, String, Receiver) {
    let (crm, billing) = (Receiver::willing(), Receiver::start(|_| Reply::Status(410)));
    let relay = TestRelay::with(&two(&crm, &billing).all_to(&["billing"])).start();
    let (id, again) = sent_twice(&relay, &order("dead"), &billing);
    let dead = [("target", "billing"), ("cause", "given_up")];
    relay.wait_for_metric("relay_dead_letters", &dead, 2.0);
    (relay, id, again, crm)
}

#[test]
fn of_a_webhook_that_died_twice_each_dead_letter_is_listed_as_the_log_has_it() {
    let (relay, id, again, _crm) = died_twice();
    assert_eq!(dead_letters(&relay), [id, again]);
}

#[test]
fn what_was_sent_again_is_found_by_the_id_that_its_target_got_but_not_erased_by_it() {
    let (crm, billing) = (Receiver::willing(), Receiver::willing());
    let relay = TestRelay::with(&two(&crm, &billing).all_to(&["crm"])).start();
    let body = order("found");
    let (id, again) = sent_twice(&relay, &body, &crm);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let shown = relay.told(&["webhooks", "show", &id]);
    assert_eq!(relay.told(&["webhooks", "show", &again]), shown);
    assert_eq!(relay.told(&["webhooks", "show", &again, "--body"]).into_bytes(), body);
    assert_eq!(
        relay.told(&["webhooks", "replay", &again, &id]),
        "0 of 1 webhooks replayed, 0 deliveries; 1 had nowhere new to go\n"
    );
    let never = format!("{id}.2");
    for (words, reason) in [
        (["show", &*never], format!("no delivery that is known as {never}")),
        (["replay", &*never], format!("no delivery that is known as {never}")),
        (["show", "crm.1"], "\"crm.1\" is no webhook_id".to_owned()),
        (["erase", &*again], format!("say {id} to have it erased")),
    ] {
        let refused = relay.ask(&[&["webhooks"], &words[..]].concat());
        assert_eq!(refused.code, Some(1), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(&reason), "{words:?}: {refused:?}");
    }
    assert_eq!(relay.told(&["webhooks", "show", &id]), shown, "nothing was erased");
}

#[test]
fn of_a_webhook_that_died_twice_either_dead_letter_or_both_can_be_decided_on() {
    let (relay, id, again, crm) = died_twice();
    for (name, count, told) in [(&id, 2, "2 dead letters"), (&again, 1, "1 dead letter")] {
        let shown = relay.told(&["dead-letters", "show", name]);
        assert_eq!(shown.matches("dead letter (given_up)").count(), count, "{shown}");
        assert!(shown.contains("billing again 1  dead letter"), "{shown}");
        let dry = relay.told(&["dead-letters", "redrive", name, "--dry-run"]);
        assert_eq!(dry, format!("{told} would be redriven\n"));
    }
    let discarded = relay.told(&["dead-letters", "discard", &again]);
    assert_eq!(discarded, "1 dead letter discarded\n");
    assert_eq!(dead_letters(&relay), std::slice::from_ref(&id), "the first one is as it was");
    let none = relay.ask(&["dead-letters", "redrive", &again]);
    assert_eq!(none.code, Some(1), "it is no dead letter any more: {none:?}");
    let redrive = ["dead-letters", "redrive", &id, "--to", "crm"];
    assert_eq!(relay.told(&redrive), "1 dead letter redriven\n");
    assert_eq!(crm.wait_for(1)[0].webhook_id(), id);
}

#[test]
fn a_dead_letter_can_be_redriven_to_another_target() {
    let crm = Receiver::willing();
    let answer = Arc::new(AtomicU16::new(410));
    let status = Arc::clone(&answer);
    let billing = Options::default().start(move |_| Reply::Status(status.load(Ordering::SeqCst)));
    let relay = TestRelay::with(&two(&crm, &billing).all_to(&["billing"])).start();
    let body = order("moved");
    let id = Sender::new(&relay).post(&body).accepted();
    let dead = [("target", "billing"), ("cause", "given_up")];
    relay.wait_for_metric("relay_dead_letters", &dead, 1.0);
    let unknown = relay.ask(&["dead-letters", "redrive", "--target", "billing", "--to", "cmr"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("no target \"cmr\" in the table"), "{unknown:?}");
    let redrive = ["dead-letters", "redrive", "--target", "billing", "--to", "crm"];
    assert_eq!(relay.told(&redrive), "1 dead letter redriven\n");
    let received = crm.wait_for(1).remove(0);
    assert_eq!((received.webhook_id(), &received.body[..]), (&*id, &body[..]));
    received.assert_signed_for("crm");
    relay.wait_for_metric("relay_dead_letters", &dead, 0.0);
    assert_eq!(billing.count(), 1);
}
