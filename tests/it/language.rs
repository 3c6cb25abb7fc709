//! What a table can ask and say, in a running relay.

use crate::support::vectors::activity;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay};

/// A bare order with these members.
fn order(members: &str) -> Vec<u8> {
    format!(r#"{{"object":"ORDER","id":"o-1",{members}}}"#).into_bytes()
}

#[test]
fn conditions_on_the_body_choose_the_targets() {
    let (gold, large, rest) = (Receiver::willing(), Receiver::willing(), Receiver::willing());
    let routes = Routes::new()
        .target("gold", &gold.url(), &[])
        .target("large", &large.url(), &[])
        .target("rest", &rest.url(), &[])
        .route("gold", &[r"when: { /customer/tier: { in: [gold, platinum] } }"], &["gold"])
        .route("large", &[r"when: { /total_amount: { gte: 100000, lt: 1e9 } }"], &["large"])
        .route("rest", &[r"when: { /total_amount: { not: { gte: 100000 } } }"], &["rest"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let mut post = |members: &str| sender.post(&order(members)).accepted();
    let both = post(r#""customer":{"tier":"gold"},"total_amount":100000.0"#);
    let text = post(r#""total_amount":"100000""#);
    let platinum = post(r#""customer":{"tier":"platinum"}"#);

    let ids = |receiver: &Receiver, count: usize| {
        let mut ids: Vec<_> =
            receiver.wait_for(count).iter().map(|r| r.webhook_id().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&rest, 2), [text, platinum.clone()], "text is no number, and none is not more");
    assert_eq!(ids(&gold, 2), [both.clone(), platinum]);
    assert_eq!(ids(&large, 1), [both]);
}

#[test]
fn headers_are_rendered_from_the_webhook_and_counted_when_they_cannot_be() {
    let crm = Receiver::willing();
    let lines = [r#"headers: { X-City: "{body:/resource/city}", X-Source: "{source}" }"#];
    let routes = Routes::new()
        .line(r#"defaults: { headers: { X-Tenant: realtour, X-Id: "{webhook_id}" }, timeout: 5s }"#)
        .target("crm", &crm.url(), &lines)
        .route(
            "r",
            &[r#"headers: { X-About: "{resource_type} {resource_id} for {target}" }"#],
            &["crm"],
        );
    let relay = TestRelay::with(&routes).start();
    let id = Sender::new(&relay).post(&activity("ORDER_CREATED", "1", "ORDER")).accepted();
    let body = br#"{"object":"ACTIVITY","id":"2","name":"ORDER_CREATED","resource":{"city":"Caf\u00e9 5%"}}"#;
    let received = crm.wait_for(1).remove(0);
    for (name, value) in [
        ("x-tenant", Some("realtour")),
        ("x-id", Some(&*id)),
        ("x-source", Some("aryeo")),
        ("x-about", Some("ORDER of-1 for crm")),
        ("x-city", None),
    ] {
        assert_eq!(received.header(name), value, "{name}");
    }
    Sender::new(&relay).post(body).accepted();
    let received = crm.wait_for(2).remove(1);
    assert_eq!(received.header("x-city"), Some("Caf%C3%A9 5%25"));
    assert_eq!(received.header("x-about"), None, "it has neither type nor id");
    relay.wait_for_metric("relay_headers_left_out_total", &[("target", "crm")], 2.0);
}

#[test]
fn the_path_or_the_source_names_the_activity_of_a_body_that_does_not() {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source("paths", "/hooks/{activity}", &["a"], &[])
        .source("fixed", "/orders", &["b"], &["activity: ORDER_PLACED"])
        .target("crm", &crm.url(), &[])
        .route("named", &["activity: [ORDER_PLACED, LISTING_MERGED]"], &["crm"]);
    let relay = TestRelay::with(&routes).start();
    let bare = order(r#""n":1"#);
    let post = |secret, path, body: &[u8]| {
        Sender::new(&relay).secret(secret).path(path).post(body).accepted()
    };
    post("a", "/hooks/LISTING_MERGED?x=1", &bare);
    assert_eq!(crm.wait_for(1)[0].header("relay-activity"), Some("LISTING_MERGED"));
    post("b", "/orders", &bare);
    assert_eq!(crm.wait_for(2)[1].header("relay-activity"), Some("ORDER_PLACED"));
    // What is signed goes first, and names another activity.
    post("a", "/hooks/LISTING_MERGED", &activity("ORDER_VIEWED", "1", "ORDER"));
    // The same bytes on another path are another webhook, which nobody wants.
    post("a", "/hooks/UNKNOWN", &bare);
    let unrouted = [("source", "paths")];
    relay.wait_for_metric("relay_unrouted_total", &unrouted, 2.0);
    assert_eq!(crm.count(), 2);
    Sender::new(&relay).secret("a").path("/hooks/").post(&bare).problem(404);
}

#[test]
fn a_required_header_proves_what_a_signature_would() {
    let crm = Receiver::willing();
    let lines = ["forward_headers: [X-Kept]"];
    let yaml = Routes::new().target("crm", &crm.url(), &lines).all_to(&["crm"]).yaml().replace(
        "targets:\n",
        "  token:\n    path: /token\n    verify: { scheme: none }\n    require_headers: { X-Token: { env: TOKEN } }\n\
         \x20 both:\n    path: /both\n    verify: { scheme: aryeo, secrets: [{ env: ARYEO_WEBHOOK_SECRET_0 }] }\n    require_headers: { X-Token: { env: TOKEN } }\ntargets:\n",
    );
    let routes = Routes::new().target("crm", &crm.url(), &lines);
    let mut builder = TestRelay::with_file(&yaml).environment("TOKEN", "t0ken");
    for (name, value) in routes.secrets() {
        builder = builder.environment(name, value);
    }
    let relay = builder.start();
    let sender = Sender::new(&relay);
    let body = order(r#""n":1"#);
    let unsigned = |path: &str, token: &str| {
        let request = Request::unsigned(path, &body).header("X-Kept", "kept");
        if token.is_empty() { request } else { request.header("X-Token", token) }
    };
    let answers: Vec<_> = ["", "t0keN", "t0ken2"]
        .into_iter()
        .map(|token| sender.send(&unsigned("/token", token)))
        .chain([sender.send(&unsigned("/both", "t0ken"))])
        .chain([sender.send(&Request::signed(&body).path("/both"))])
        .collect();
    for answer in &answers {
        answer.problem(401);
        assert_eq!(answer.body, answers[0].body, "the same bytes, whatever is wrong");
    }
    let id = sender.send(&unsigned("/token", "t0ken")).accepted();
    assert_eq!(sender.send(&unsigned("/token", "t0ken")).duplicate(), id);
    sender.send(&Request::signed(&body).path("/both").header("X-Token", "t0ken")).accepted();
    let received = crm.wait_for(2);
    assert!(received.iter().all(|received| received.header("x-token").is_none()));
    // They were delivered at the same time.
    assert!(received.iter().any(|received| received.header("x-kept") == Some("kept")));
    let ok = [("source", "token"), ("secret", "none"), ("result", "ok")];
    assert_eq!(relay.metrics().value("relay_signature_verifications_total", &ok), 2.0);
    assert!(!relay.logs().iter().any(|line| line.contains("t0ke")));
    let segments = std::fs::read_dir(relay.data().join("segments")).unwrap();
    for segment in segments {
        let bytes = std::fs::read(segment.unwrap().path()).unwrap();
        assert!(!bytes.windows(5).any(|window| window == b"t0ken"), "a secret is in the store");
    }
}
