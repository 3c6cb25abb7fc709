//! What a webhook's trace tells, and what a receiver of traces that is away does to nobody.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::support::otlp::Otlp;
use crate::support::pebble::free_port;
use crate::support::routes::{PATH, SECRET, SOON, target_secret};
use crate::support::vectors::activity;
use crate::support::{
    Received, Receiver, Reply, Request, Routes, Sender, TestRelay, eventually, sign,
};

const REQUEST: &str = "POST /webhooks/aryeo";

/// Another one's trace, in the words of W3C.
const THEIRS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn order(nth: usize) -> Vec<u8> {
    activity("ORDER_CREATED", &format!("a-private-thing-{nth}"), "ORDER")
}

#[track_caller]
fn tracing(otlp: &Otlp, routes: &Routes, more: &[&str]) -> TestRelay {
    let flags = otlp.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    TestRelay::with(routes).flags(&flags).start()
}

fn trace_of(id: &str) -> String {
    id.replace('-', "")
}

/// What a target was told of the trace: its id, the attempt's span, the flags.
fn told(received: &Received) -> (String, String, String) {
    let line = received.header("traceparent").expect("a target is told the trace");
    let parts: Vec<&str> = line.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else { panic!("{line}") };
    (trace.to_owned(), span.to_owned(), flags.to_owned())
}

/// An attribute.
fn is(span: &Value, name: &str) -> Value {
    span["is"][name].clone()
}

#[track_caller]
fn is_the_request(root: &Value, id: &str, bytes: usize) {
    assert_eq!((&root["parent"], &root["kind"]), (&json!(""), &json!("SPAN_KIND_SERVER")));
    let theirs = json!({
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736", "span": "00f067aa0ba902b7", "flags": 0x301,
    });
    assert_eq!(root["links"], json!([theirs]));
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!(PATH)),
        ("http.response.status_code", json!(202)),
        ("http.request.body.size", json!(bytes)),
        ("relay.webhook_id", json!(id)),
        ("relay.source", json!("aryeo")),
        ("relay.activity", json!("ORDER_CREATED")),
        ("relay.answer", json!("accepted")),
        ("relay.targets", json!("crm,billing")),
    ] {
        assert_eq!(is(root, name), value, "{name}");
    }
}

/// One that was refused with 503, and one that was taken; each as the target was told of it.
#[track_caller]
fn are_the_attempts(spans: &[Value], received: &[Received], id: &str) {
    for (nth, (status, outcome, settlement, code)) in [
        (503, "status", "retry", "STATUS_CODE_ERROR"),
        (200, "delivered", "delivered", "STATUS_CODE_UNSET"),
    ]
    .into_iter()
    .enumerate()
    {
        let span = &spans[nth];
        assert_eq!(span["kind"], "SPAN_KIND_CLIENT");
        assert_eq!((&span["status"], is(span, "relay.attempt")), (&json!(code), json!(nth + 1)));
        assert_eq!(is(span, "http.response.status_code"), status);
        assert_eq!(is(span, "relay.outcome"), outcome);
        assert_eq!(is(span, "relay.settlement"), settlement);
        let (trace, parent, flags) = told(&received[nth]);
        assert_eq!((trace, flags.as_str()), (trace_of(id), "01"));
        assert_eq!(span["span"], parent, "the target's own span has the attempt's as its parent");
    }
    assert_eq!(is(&spans[1], "http.request.resend_count"), 1);
}

#[track_caller]
fn has_no_secret(bytes: &str, body: &[u8]) {
    for secret in [
        "a-private-thing",
        "query-secret",
        "token=",
        "tenant=",
        "/hooks",
        SECRET,
        &sign(SECRET, body),
        &target_secret("crm"),
        &sign(target_secret("crm"), body),
        "theirs=1",
    ] {
        assert!(!bytes.contains(secret), "{secret} is exported");
    }
}

#[test]
fn a_webhook_s_trace_has_its_request_its_commit_and_every_attempt() {
    let Some(otlp) = Otlp::willing() else { return };
    let crm = Receiver::willing();
    let billing = Receiver::start(|received| match received.number {
        1 => Reply::Status(503),
        _ => Reply::Status(200),
    });
    let routes = Routes::new()
        .target("crm", &crm.url(), &["forward_headers: [traceparent, tracestate]"])
        .target("billing", &billing.url(), &[SOON])
        .all_to(&["crm", "billing"]);
    let relay = tracing(&otlp, &routes, &[]);
    let body = order(1);
    let request = Request::signed(&body)
        .path(&format!("{PATH}?token=query-secret"))
        .header("traceparent", THEIRS)
        .header("tracestate", "theirs=1");
    let sender = Sender::new(&relay);
    let id = sender.send(&request).accepted();
    let spans = otlp.wait_for(&[(REQUEST, 1), ("commit", 1), ("POST crm", 1), ("POST billing", 2)]);
    assert_eq!(sender.send(&request).duplicate(), id);
    let spans_then = otlp.wait_for(&[(REQUEST, 2)]);

    let all: Vec<&Value> = spans_then.values().flatten().collect();
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|span| span["trace"] == trace_of(&id)), "{all:#?}");
    let different: HashSet<_> = all.iter().map(|span| span["span"].as_str().unwrap()).collect();
    assert_eq!(different.len(), 6, "each span is one");
    assert!(all.iter().all(|span| span["from"].as_u64() <= span["to"].as_u64()), "{all:#?}");
    assert!(all.iter().all(|span| span["flags"] == 0x101 && span["scope"] == "aryeo-relay"));
    assert!(all.iter().all(|span| span["resource"]["service.name"] == "aryeo-relay"));

    let root = &spans[REQUEST][0];
    is_the_request(root, &id, body.len());
    let repeat = &spans_then[REQUEST][1];
    assert_eq!(is(repeat, "relay.answer"), "duplicate");
    for child in all.iter().filter(|span| span["span"] != root["span"]) {
        assert_eq!(child["parent"], root["span"], "{child:#}");
    }
    let commit = &spans["commit"][0];
    assert!(root["from"].as_u64() <= commit["from"].as_u64(), "{root:#} {commit:#}");

    are_the_attempts(&spans["POST billing"], &billing.received(), &id);
    let forwarded = crm.received().remove(0);
    assert_eq!(told(&forwarded).1, spans["POST crm"][0]["span"].as_str().unwrap());
    assert_eq!(forwarded.header("tracestate"), None, "it is of the sender's trace");

    has_no_secret(&otlp.bytes(), &body);
    relay.wait_for_metric("relay_spans_exported_total", &[], 6.0);
    assert_eq!(relay.metrics().value("relay_spans_dropped_total", &[]), 0.0);
}

#[test]
fn an_attempt_after_kill_9_and_a_restart_is_in_the_trace_of_the_request() {
    let Some(otlp) = Otlp::willing() else { return };
    let crm = Receiver::unwilling();
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    let mut relay = tracing(&otlp, &routes, &[]);
    let id = Sender::new(&relay).post(&order(1)).accepted();
    let before = otlp.wait_for(&[(REQUEST, 1), ("POST crm", 1)]);
    relay.kill9();
    crm.take_all();
    relay.start_again();
    let delivered = |spans: HashMap<String, Vec<Value>>| {
        let attempts = spans.get("POST crm").cloned().unwrap_or_default();
        attempts.into_iter().find(|span| span["is"]["relay.outcome"] == "delivered")
    };
    let late = eventually("the late attempt is traced", || delivered(otlp.wait_for(&[])));
    assert_eq!(late["trace"], trace_of(&id));
    assert_eq!(late["parent"], before[REQUEST][0]["span"]);
    assert_ne!(late["resource"]["process.pid"], before[REQUEST][0]["resource"]["process.pid"]);
    let (trace, span, _) = told(crm.received().last().unwrap());
    assert_eq!((trace, json!(span)), (trace_of(&id), late["span"].clone()));
}

#[test]
fn without_the_flag_there_is_no_trace_and_targets_get_what_the_sender_said() {
    let crm = Receiver::willing();
    let routes = Routes::new()
        .target("crm", &crm.url(), &["forward_headers: [traceparent]"])
        .target("billing", &crm.url(), &[])
        .all_to(&["crm", "billing"]);
    let relay = TestRelay::with(&routes).flags(&["--otlp-sample", "1"]).start();
    Sender::new(&relay).send(&Request::signed(&order(1)).header("traceparent", THEIRS)).accepted();
    let received = crm.wait_for(2);
    let mut lines: Vec<_> = received.iter().map(|one| one.header("traceparent")).collect();
    lines.sort();
    assert_eq!(lines, [None, Some(THEIRS)]);
    let page = relay.metrics();
    for name in ["relay_spans_exported_total", "relay_spans_dropped_total"] {
        assert_eq!(page.value(name, &[]), 0.0, "{name}");
    }
}

#[test]
fn a_share_of_the_webhooks_is_traced_whole_and_targets_are_told_which() {
    const WEBHOOKS: usize = 60;
    let Some(otlp) = Otlp::willing() else { return };
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let mut relay = tracing(&otlp, &routes, &["--otlp-sample", "0.5"]);
    let mut sender = Sender::new(&relay);
    for nth in 0..WEBHOOKS {
        sender.post(&order(nth)).accepted();
    }
    crm.wait_for(WEBHOOKS);
    // What is left is exported before it ends.
    relay.terminate();
    let traced: HashSet<String> =
        otlp.spans().iter().map(|span| span["trace"].as_str().unwrap().to_owned()).collect();
    assert_eq!(otlp.spans().len(), 3 * traced.len(), "request, commit and attempt of each");
    assert!((5..WEBHOOKS - 5).contains(&traced.len()), "{}", traced.len());
    for received in crm.received() {
        let (trace, _, flags) = told(&received);
        assert_eq!(trace, trace_of(received.webhook_id()));
        assert_eq!(flags, if traced.contains(&trace) { "01" } else { "00" });
    }
}

/// A webhook for eight targets makes ten spans.
fn many_targets(crm: &Receiver) -> Routes {
    let names: Vec<String> = (0..8).map(|nth| format!("crm{nth}")).collect();
    let routes =
        names.iter().fold(Routes::new(), |routes, name| routes.target(name, &crm.url(), &[]));
    routes.all_to(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn events(lines: &[String], words: &str) -> Vec<Value> {
    let lines = lines.iter().filter(|line| line.contains(words));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_receiver_that_is_away_costs_no_webhook_and_what_is_lost_is_counted_and_told_once() {
    // More than what waits and what is in hand.
    const WEBHOOKS: usize = 950;
    let crm = Receiver::willing();
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let builder = TestRelay::with(&many_targets(&crm));
    let mut relay = builder.flags(&["--otlp-endpoint", &endpoint]).start();
    let mut sender = Sender::new(&relay);
    for nth in 0..WEBHOOKS {
        sender.post(&order(nth)).accepted();
    }
    crm.wait_for(8 * WEBHOOKS);
    eventually("some spans are lost", || {
        relay.metrics().value("relay_spans_dropped_total", &[]) > 0.0
    });
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm7")], 0.0);
    assert_eq!(relay.metrics().value("relay_spans_exported_total", &[]), 0.0);
    let log = relay.log();
    relay.terminate();
    let lines = log.all();
    assert_eq!(events(&lines, "Spans can't be exported").len(), 1);
    let last = events(&lines, "The last spans are not all exported.");
    assert_eq!(last[0]["spans_lost"], 10 * WEBHOOKS, "all of them, told at the end");
}

#[test]
fn a_receiver_that_comes_back_gets_what_waited() {
    let Some(otlp) = Otlp::start(|received| match received.number {
        1 => Reply::With(503, vec![("retry-after", "1".to_owned())]),
        2 => Reply::Reset,
        _ => Reply::Status(200),
    }) else {
        return;
    };
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = tracing(&otlp, &routes, &[]);
    let id = Sender::new(&relay).post(&order(1)).accepted();
    relay.wait_for_metric("relay_spans_exported_total", &[], 3.0);
    assert_eq!(relay.metrics().value("relay_spans_dropped_total", &[]), 0.0);
    let received = otlp.receiver().received();
    assert!(received.iter().all(|one| one.body == received[0].body), "the same at each try");
    assert_eq!(otlp.spans()[0]["trace"], trace_of(&id));
    eventually("it is told that it is over", || {
        events(&relay.logs(), "Spans are exported again.").len() == 1
    });
    assert_eq!(events(&relay.logs(), "Spans can't be exported").len(), 1);
}

#[test]
fn spans_that_a_receiver_rejects_are_lost_however_much_it_says_of_them() {
    // ExportTraceServiceResponse { partial_success: { rejected_spans: 2, error_message: 2,000 bytes } }
    let partial = [&[0x08, 2, 0x12, 0xd0, 0x0f][..], &[b'x'; 2000]].concat();
    let answer = [&[0x0a, 0xd5, 0x0f][..], &partial].concat();
    let Some(otlp) = Otlp::start(move |_| Reply::Body(answer.clone())) else { return };
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = tracing(&otlp, &routes, &[]);
    Sender::new(&relay).post(&order(1)).accepted();
    eventually("they are counted", || {
        // Two of each batch, of which there may be more than one.
        relay.metrics().value("relay_spans_dropped_total", &[]) >= 2.0
    });
    eventually("it is told", || {
        events(&relay.logs(), "Spans can't be exported").iter().any(|event| {
            event["reason"].as_str().is_some_and(|reason| reason.contains("rejects spans: xxx"))
        })
    });
}

#[test]
fn a_receiver_that_wants_nothing_or_hangs_holds_up_no_stop() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let Some(refuses) = Otlp::start(|_| Reply::Status(400)) else { return };
    let relay = tracing(&refuses, &routes, &[]);
    Sender::new(&relay).post(&order(1)).accepted();
    relay.wait_for_metric("relay_spans_dropped_total", &[], 3.0);
    assert_eq!(refuses.receiver().count(), 1, "it is not asked again");

    let hangs = Otlp::start(|_| Reply::Hang).unwrap();
    // What is lost is told, however short the stop has to be.
    let mut relay = tracing(&hangs, &routes, &["--shutdown-timeout", "1s"]);
    Sender::new(&relay).post(&order(2)).accepted();
    crm.wait_for(2);
    hangs.receiver().wait_for(1);
    let log = relay.log();
    relay.terminate();
    let last = events(&log.all(), "The last spans are not all exported.");
    assert_eq!(last[0]["spans_lost"], 3);
    assert!(events(&log.all(), "Stopped.").len() == 1);
}
