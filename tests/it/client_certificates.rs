//! Senders that show a certificate, and sources that want one.

use std::fs;
use std::time::Duration;

use crate::support::certs::{Authority, Identity};
use crate::support::relay::Builder;
use crate::support::routes::{PATH, SECRET};
use crate::support::sender::Answer;
use crate::support::vectors::listing_delivered;
use crate::support::{AUTHORITY, Receiver, Request, Routes, Sender, TestRelay, eventually};

/// A source that wants a certificate beside the signature.
fn routes(crm: &Receiver) -> Routes {
    let lines = ["client_certificate: [hooks.test]"];
    let routes = Routes::bare().source("aryeo", PATH, &[SECRET], &lines);
    routes.target("crm", &crm.url(), &[]).all_to(&["crm"])
}

/// With another source, which wants nothing else.
fn relay(crm: &Receiver, roots: &Authority) -> Builder {
    let certified = "sources:\n  certified:\n    path: /certified\n    verify: { scheme: none }\n    \
                     client_certificate: [hooks.test, others.test]\n";
    let routes = routes(crm);
    let yaml = routes.yaml().replacen("sources:\n", certified, 1);
    let builder = TestRelay::with(&routes).file("routes.yaml", &yaml);
    builder.file("ca.pem", &roots.pem()).flags(&["--client-ca", "ca.pem"])
}

/// Posts over a new connection on which this is shown.
fn post(relay: &TestRelay, shown: Option<&Identity>, request: &Request) -> Option<Answer> {
    let sender = Sender::new(relay);
    let sender = match shown {
        None => sender,
        Some(identity) => sender.tls_config(AUTHORITY.client_showing(identity, &["http/1.1"])),
    };
    // With TLS 1.3 a certificate that is refused is told after the handshake.
    sender.try_connect().ok()?.send(request).ok()
}

#[test]
fn a_source_takes_only_whom_it_names_and_who_shows_nothing_may_post_elsewhere() {
    let (crm, clients) = (Receiver::willing(), Authority::new());
    let relay = relay(&crm, &clients).start();
    let [hooks, others, stranger] =
        ["hooks.test", "others.test", "x.test"].map(|name| clients.client_for(name));
    let signed = |text: &str| Request::signed(&listing_delivered(text));
    let certified = |text: &str| Request::unsigned("/certified", &listing_delivered(text));
    post(&relay, Some(&hooks), &signed("1")).unwrap().accepted();
    post(&relay, Some(&hooks), &certified("2")).unwrap().accepted();
    post(&relay, Some(&others), &certified("3")).unwrap().accepted();
    for (shown, request) in [
        (Some(&others), signed("4")),
        (Some(&stranger), signed("5")),
        (None, signed("6")),
        (Some(&stranger), certified("7")),
        (None, certified("8")),
    ] {
        post(&relay, shown, &request).unwrap().problem(403);
    }
    // A certificate does not stand for the signature where both are wanted.
    post(&relay, Some(&hooks), &Request::unsigned(PATH, b"{}")).unwrap().problem(401);
    // One of another root is no better than a wrong password.
    assert!(post(&relay, Some(&Authority::new().client_for("hooks.test")), &signed("9")).is_none());
    let config = AUTHORITY.client_showing(&hooks, &["h2"]);
    Sender::new(&relay).tls_config(config).post_http2(&listing_delivered("10")).accepted();
    crm.wait_for(4);
    assert_eq!(crm.count(), 4);
}

#[test]
fn its_roots_are_renewed_and_what_is_broken_leaves_those_before() {
    let (crm, clients) = (Receiver::willing(), Authority::new());
    let relay = relay(&crm, &clients).start();
    let old = clients.client_for("hooks.test");
    let others = Authority::new();
    let new = others.client_for("hooks.test");
    let signed = |text: &str| Request::signed(&listing_delivered(text));
    post(&relay, Some(&old), &signed("1")).unwrap().accepted();
    assert!(post(&relay, Some(&new), &signed("2")).is_none());
    let swap = |text: &str| {
        fs::write(relay.path("new"), text).unwrap();
        fs::rename(relay.path("new"), relay.path("ca.pem")).unwrap();
    };
    swap("nothing");
    eventually("it is told", || {
        relay.logs().iter().any(|line| line.contains("ca.pem") && line.contains("can't be renewed"))
    });
    post(&relay, Some(&old), &signed("3")).unwrap().accepted();
    swap(&others.pem());
    eventually("the new root is trusted", || post(&relay, Some(&new), &signed("4")).is_some());
    assert!(post(&relay, Some(&old), &signed("5")).is_none());
    crm.wait_for(3);
}

#[test]
fn a_source_that_wants_a_certificate_needs_a_listener_that_asks_for_one() {
    let crm = Receiver::willing();
    let told = TestRelay::with(&routes(&crm)).refused().stderr;
    assert!(told.contains("--client-ca") && told.contains("client_certificate"), "{told}");
    let builder = TestRelay::with(&routes(&crm)).flags(&["--client-ca", "none.pem"]);
    let told = builder.refused().stderr;
    assert!(told.contains("--client-ca: none.pem"), "{told}");
    // Nor is it taken over later.
    let plain = Routes::bare().source("aryeo", PATH, &[SECRET], &[]);
    let plain = plain.target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&plain).start();
    fs::write(relay.path("routes.yaml"), routes(&crm).yaml()).unwrap();
    relay.wait_for_metric("relay_routes_last_reload_successful", &[], 0.0);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_certificate_that_expires_is_refused_on_the_connection_that_it_opened() {
    let (crm, clients) = (Receiver::willing(), Authority::new());
    let relay = relay(&crm, &clients).start();
    let signed = |text: &str| Request::signed(&listing_delivered(text));
    // One that lives long enough for a first webhook, however slow this machine is.
    let opened = [2, 8, 32].into_iter().find_map(|seconds| {
        let shown = clients.client_for_moments("hooks.test", Duration::from_secs(seconds));
        let config = AUTHORITY.client_showing(&shown, &["http/1.1"]);
        let mut connection = Sender::new(&relay).tls_config(config).try_connect().ok()?;
        let answer = connection.send(&signed(&format!("first {seconds}"))).ok()?;
        (answer.status == 202).then_some((shown, connection))
    });
    let (shown, mut connection) = opened.expect("a first webhook is taken");
    let mut number = 0;
    let refused = eventually("it is refused", || {
        number += 1;
        let answer = connection.send(&signed(&number.to_string())).unwrap();
        (answer.status != 202).then_some(answer)
    });
    refused.problem(401);
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(connection.send(&signed("one more")).is_err(), "it has ended");
    assert!(post(&relay, Some(&shown), &signed("again")).is_none());
    let renewed = clients.client_for("hooks.test");
    post(&relay, Some(&renewed), &signed("renewed")).unwrap().accepted();
}
