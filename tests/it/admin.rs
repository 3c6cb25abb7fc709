//! Probes and metrics.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use aryeo_relay::telemetry::reference::{Kind, Metric, REFERENCE};
use rustix::net::{self, AddressFamily, SocketType};

use crate::support::routes::SOON;
use crate::support::sender::Connection;
use crate::support::vectors::{activity, listing_delivered};
use crate::support::{Receiver, Reply, Request, Routes, Sender, TestRelay, eventually, patience};

const ANSWERS: &[&str] = &[
    "accepted",
    "bad_request",
    "disk_full",
    "dropped",
    "duplicate",
    "forbidden",
    "headers_too_large",
    "method_not_allowed",
    "not_found",
    "overloaded",
    "rate_limited",
    "shutting_down",
    "store_unavailable",
    "timeout",
    "too_large",
    "unauthorized",
];

fn relay(crm: &Receiver) -> TestRelay {
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    TestRelay::with(&routes.source("other", "/other", &["s"], &["silence_after: 2h"])).start()
}

#[test]
fn the_probes_answer() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    for path in ["/livez", "/readyz"] {
        let answer = relay.get(path);
        assert_eq!(answer.status, 200, "{path}");
    }
    assert_eq!(relay.get("/elsewhere").status, 404);
    assert_eq!(relay.get("/webhooks/aryeo").status, 404);
    let mut connection = Connection::open(relay.admin(), None).unwrap();
    let post = Request::unsigned("/metrics", b"x");
    assert_eq!(connection.send(&post).unwrap().status, 405);
}

#[test]
fn a_dead_target_does_not_make_it_unready() {
    let crm = Receiver::willing();
    crm.stop();
    let relay = relay(&crm);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    eventually("attempts fail", || {
        relay.metrics().value("relay_attempts_total", &[("outcome", "refused")]) >= 3.0
    });
    assert_eq!(relay.get("/readyz").status, 200);
    let age = || relay.metrics().value("relay_oldest_pending_age_seconds", &[("target", "crm")]);
    eventually("the oldest grows older", || age() > 0.0);
}

#[test]
fn every_metric_is_there_from_the_start_with_its_labels_at_zero() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let metrics = relay.metrics();
    for Metric { name, kind, .. } in REFERENCE {
        assert!(metrics.is_described(name), "{name} has no HELP and TYPE");
        let is_histogram = *kind == Kind::Histogram;
        let sample = if is_histogram { format!("{name}_count") } else { (*name).to_owned() };
        assert!(metrics.get(&sample, &[]).is_some(), "no sample of {name}:\n{}", metrics.text);
    }
    for source in ["aryeo", "other", "none"] {
        for answer in ANSWERS {
            let labels = [("source", source), ("answer", *answer)];
            assert_eq!(metrics.value("relay_webhooks_received_total", &labels), 0.0);
        }
    }
    for name in ["LISTING_DELIVERED", "ORDER_CREATED", "none", "other"] {
        let labels = [("source", "aryeo"), ("activity", name)];
        assert_eq!(metrics.value("relay_webhooks_accepted_total", &labels), 0.0);
    }
    let outcomes = metrics.labels("relay_attempts_total", "outcome");
    let expected = [
        "answer_too_large",
        "delivered",
        "given_up",
        "refused",
        "reset",
        "status",
        "timeout",
        "tls",
    ];
    assert_eq!(outcomes, expected);
    let silence = |source| metrics.value("relay_silence_after_seconds", &[("source", source)]);
    assert_eq!((silence("aryeo"), silence("other")), (86_400.0, 7_200.0));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(metrics.value("relay_build_info", &version), 1.0);
    assert_eq!(metrics.value("relay_routes_last_reload_successful", &[]), 1.0);
}

#[test]
fn metrics_tell_what_happened() {
    let crm =
        Receiver::start(|received| Reply::Status(if received.number == 1 { 500 } else { 200 }));
    let mut relay = relay(&crm);
    let mut sender = Sender::new(&relay);
    let before = time::OffsetDateTime::now_utc().unix_timestamp() - 1;
    sender.post(&listing_delivered("1")).accepted();
    sender.post(&listing_delivered("1")).duplicate();
    sender.post(&activity("A_NEW_ONE", "2", "LISTING")).accepted();
    sender.post(b"bare").accepted();
    crm.wait_for(4);
    let crm_label = ("target", "crm");
    let settled = [crm_label, ("settlement", "delivered")];
    relay.wait_for_metric("relay_deliveries_settled_total", &settled, 3.0);
    let metrics = relay.metrics();
    let accepted = |activity| {
        let labels = [("source", "aryeo"), ("activity", activity)];
        metrics.value("relay_webhooks_accepted_total", &labels)
    };
    assert_eq!(accepted("LISTING_DELIVERED"), 1.0);
    assert_eq!((accepted("other"), accepted("none")), (1.0, 1.0));
    assert_eq!(metrics.value("relay_webhook_duration_seconds_count", &[("source", "aryeo")]), 4.0);
    assert_eq!(metrics.value("relay_attempts_total", &[crm_label]), 4.0);
    assert_eq!(metrics.value("relay_attempt_duration_seconds_count", &[crm_label]), 4.0);
    assert_eq!(metrics.value("relay_delivery_latency_seconds_count", &[crm_label]), 3.0);
    assert_eq!(metrics.value("relay_deliveries_settled_total", &[("settlement", "retry")]), 1.0);
    assert_eq!(metrics.value("relay_commit_batch_webhooks_sum", &[]), 3.0);
    assert!(metrics.value("relay_store_bytes", &[]) > 0.0);
    assert!(metrics.value("relay_store_available_bytes", &[]) > 0.0);
    assert!(metrics.value("relay_connections", &[]) >= 1.0);
    assert!(metrics.value("process_resident_memory_bytes", &[]) > 0.0);
    let last = |relay: &TestRelay, source| {
        relay.metrics().value("relay_last_webhook_timestamp_seconds", &[("source", source)])
    };
    assert!(last(&relay, "aryeo") >= before as f64);
    assert_eq!(last(&relay, "other"), 0.0);
    // Restored, so that the silence alert does not fire or sleep because of a restart.
    let was = last(&relay, "aryeo");
    relay.restart();
    assert!((last(&relay, "aryeo") - was).abs() < 1.0, "{was} became {}", last(&relay, "aryeo"));
}

#[test]
fn the_log_has_one_event_for_each_webhook_and_each_attempt() {
    let crm =
        Receiver::start(|received| Reply::Status(if received.number == 1 { 500 } else { 200 }));
    let relay = relay(&crm);
    let id = Sender::new(&relay).post(&activity("ORDER_CREATED", "7", "ORDER")).accepted();
    crm.wait_for(2);
    let settled = [("target", "crm"), ("settlement", "delivered")];
    relay.wait_for_metric("relay_deliveries_settled_total", &settled, 1.0);
    let events = eventually("three events", || {
        let lines = relay.logs();
        let events: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .filter(|event: &serde_json::Value| event["webhook_id"] == id.as_str())
            .collect();
        if events.len() == 3 { Ok(events) } else { Err(format!("{events:#?}")) }
    });
    // A delivery may be quicker than the answer to the sender.
    let (webhook, attempts): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event["answer"] == "accepted");
    assert_eq!(webhook.len(), 1, "{events:#?}");
    assert_eq!(webhook[0]["activity"], "ORDER_CREATED");
    assert_eq!(webhook[0]["source"], "aryeo");
    for (event, (attempt, outcome, status, settlement)) in
        attempts.iter().zip([(1, "status", 500, "retry"), (2, "delivered", 200, "delivered")])
    {
        assert_eq!(event["target_name"], "crm", "{event}");
        assert_eq!(event["attempt"], attempt, "{event}");
        assert_eq!(event["outcome"], outcome, "{event}");
        assert_eq!(event["status"], status, "{event}");
        assert_eq!(event["settlement"], settlement, "{event}");
        assert!(event["duration_ms"].is_number(), "{event}");
    }
}

/// A connection with so little room that its answer stays at the other end.
fn without_room(address: SocketAddr) -> TcpStream {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    net::sockopt::set_socket_recv_buffer_size(&socket, 1024).unwrap();
    net::connect(&socket, &address).unwrap();
    TcpStream::from(socket)
}

#[test]
fn those_who_ask_nothing_keep_no_probe_out() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let mut silent: Vec<TcpStream> =
        (0..80).map(|_| TcpStream::connect(relay.admin()).unwrap()).collect();
    assert_eq!(relay.get("/readyz").status, 200);
    // The oldest had to go for it, the newest had not.
    let (mut oldest, newest) = (silent.remove(0), silent.pop().unwrap());
    assert_eq!(oldest.read(&mut [0]).unwrap_or(0), 0);
    newest.set_nonblocking(true).unwrap();
    let open = (&newest).read(&mut [0]).unwrap_err();
    assert_eq!(open.kind(), ErrorKind::WouldBlock);
}

#[test]
fn scrapers_that_do_not_read_keep_no_probe_out() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let request = b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n".repeat(100);
    let held: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut stream = without_room(relay.admin());
            // What it does not take any more it need not take.
            stream.set_nonblocking(true).unwrap();
            let _written = stream.write(&request);
            stream
        })
        .collect();
    for path in ["/readyz", "/livez", "/metrics"] {
        assert_eq!(relay.get(path).status, 200, "{path}");
    }
    drop(held);
}

#[test]
fn a_thousand_connections_to_the_senders_side_do_not_keep_the_probes_from_answering() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    // All of them come from one address.
    let flags = ["--connections-max", "50", "--connections-per-address-max", "50"];
    let relay = TestRelay::with(&routes).flags(&flags).start();
    let held: Vec<_> = (0..200).map(|_| TcpStream::connect(relay.listen()).unwrap()).collect();
    eventually("all places are taken", || relay.metrics().value("relay_connections", &[]) >= 50.0);
    assert!(relay.metrics().value("relay_connections", &[]) <= 50.0);
    assert_eq!(relay.get("/livez").status, 200);
    assert_eq!(relay.get("/readyz").status, 200);
    drop(held);
    let mut sender = Sender::new(&relay);
    assert!(patience().as_secs() > 0);
    sender.post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}
