//! What a target gets, and what happens when it does not take it.

use std::time::Duration;

use http::Version;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::support::certs::Identity;
use crate::support::receiver::Options;
use crate::support::routes::SOON;
use crate::support::sender::Framing;
use crate::support::vectors::{activity, listing_delivered};
use crate::support::{
    AUTHORITY, Received, Receiver, Reply, Request, Routes, Sender, TestRelay, eventually,
};

/// Long before the relay would try again by itself.
const ON_TIME: Duration = Duration::from_secs(2);

/// `bad` gets everything first; `good` must not notice.
fn beside_a_good_one(bad: &Receiver, good: &Receiver, lines: &[&str]) -> Routes {
    Routes::new()
        .target("bad", &bad.url(), lines)
        .target("good", &good.url(), &[])
        .all_to(&["bad", "good"])
}

/// Posts so many webhooks; their ids.
fn post(relay: &TestRelay, count: usize) -> Vec<String> {
    let mut sender = Sender::new(relay);
    (0..count).map(|n| sender.post(&listing_delivered(&n.to_string())).accepted()).collect()
}

/// The good target has everything already, once and on its first attempt.
#[track_caller]
fn arrived_on_time(good: &Receiver, ids: &[String], since: Instant) {
    let received = good.wait_for(ids.len());
    assert!(since.elapsed() < ON_TIME, "after {:?}", since.elapsed());
    let mut arrived: Vec<&str> = received.iter().map(Received::webhook_id).collect();
    arrived.sort_unstable();
    let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    ids.sort_unstable();
    assert_eq!(arrived, ids);
    assert!(received.iter().all(|received| received.attempt() == 1));
}

#[track_caller]
fn outcomes(relay: &TestRelay, target: &str, outcome: &str) -> f64 {
    let labels = [("target", target), ("outcome", outcome)];
    relay.metrics().value("relay_attempts_total", &labels)
}

#[track_caller]
fn settled(relay: &TestRelay, target: &str, settlement: &str, count: usize) {
    let labels = [("target", target), ("settlement", settlement)];
    relay.wait_for_metric("relay_deliveries_settled_total", &labels, count as f64);
}

#[test]
fn a_target_gets_the_headers_of_the_design() {
    let crm = Receiver::willing();
    let lines = [
        "headers: { X-Tenant: realtour, Authorization: { env: CRM_TOKEN, prefix: \"Bearer \" } }",
        "forward_headers: [X-Forwarded-Kept]",
    ];
    let routes = Routes::new().target("crm", &crm.url(), &lines).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).environment("CRM_TOKEN", "the token").start();
    let body = activity("ORDER_CREATED", "1", "ORDER");
    let before = OffsetDateTime::now_utc();
    let request = Request::signed(&body)
        .header("X-Forwarded-Kept", "kept")
        .header("X-Custom", "not asked for")
        .header("Cookie", "session=1")
        .header("Authorization", "Basic c2VuZGVy")
        .header("Relay-Attempt", "99")
        .header("Idempotency-Key", "the sender's own");
    let id = Sender::new(&relay).send(&request).accepted();
    let delivery = crm.wait_for(1).remove(0);

    assert_eq!((delivery.method.as_str(), delivery.path.as_str()), ("POST", "/hooks?tenant=7"));
    assert!(delivery.body == body);
    delivery.assert_signed_for("crm");
    let agent = concat!("aryeo-relay/", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("content-type", "application/json"),
        ("user-agent", agent),
        ("idempotency-key", &id),
        ("relay-webhook-id", &id),
        ("relay-source", "aryeo"),
        ("relay-activity", "ORDER_CREATED"),
        ("relay-resource", "ORDER/of-1"),
        ("relay-attempt", "1"),
        ("x-tenant", "realtour"),
        ("authorization", "Bearer the token"),
        ("x-forwarded-kept", "kept"),
        ("content-length", &body.len().to_string()),
    ] {
        assert_eq!(delivery.header(name), Some(value), "{name}");
    }
    for name in ["x-custom", "cookie", "transfer-encoding", "content-encoding", "expect"] {
        assert_eq!(delivery.header(name), None, "{name}");
    }
    let received_at = delivery.header("relay-received-at").unwrap();
    assert!(received_at.ends_with('Z') && received_at.len() == 24, "{received_at}");
    let received_at = OffsetDateTime::parse(received_at, &Rfc3339).unwrap();
    assert!((received_at - before).abs() < time::Duration::seconds(10));
    let host = delivery.header("host").unwrap().to_owned();
    assert!(crm.url().contains(&host), "{host}");

    // What must never be stored or shown is nowhere on the disk and in no log.
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let logs = relay.logs().join("\n");
    for hidden in ["the token", "Basic c2VuZGVy", "session=1", "of-1\""] {
        assert!(!logs.contains(hidden), "{hidden} was logged");
    }
    for entry in walk(relay.data()) {
        let bytes = std::fs::read(&entry).unwrap();
        for hidden in ["the token", "Basic c2VuZGVy", "session=1", crate::support::routes::SECRET] {
            let found = bytes.windows(hidden.len()).any(|window| window == hidden.as_bytes());
            assert!(!found, "{hidden} is in {}", entry.display());
        }
    }
}

/// All files below.
pub(crate) fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_content_type_and_encoding_of_the_sender_go_along_and_json_is_assumed_without_one() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let sender = Sender::new(&relay);
    let typed = |kind: &str, body: &[u8]| {
        Request::signed(body).without("Content-Type").header("Content-Type", kind)
    };
    let event = typed("application/cloudevents+json", b"1").header("Content-Encoding", "gzip");
    let one = sender.send(&event).accepted();
    let two = sender.send(&Request::signed(b"2").without("Content-Type")).accepted();
    let received = crm.wait_for(2);
    let of = |id: &str| received.iter().find(|r| r.webhook_id() == id).unwrap();
    assert_eq!(of(&one).header("content-type"), Some("application/cloudevents+json"));
    assert_eq!(of(&one).header("content-encoding"), Some("gzip"));
    assert_eq!(of(&two).header("content-type"), Some("application/json"));
    assert_eq!(of(&two).header("content-encoding"), None);
}

#[test]
fn the_schemes_none_and_aryeo_timestamped_and_a_renamed_header_are_signed_as_written() {
    let (plain, stamped, renamed) = (Receiver::willing(), Receiver::willing(), Receiver::willing());
    let yaml = format!(
        "sources:\n  aryeo:\n    path: /webhooks/aryeo\n    verify: {{ scheme: aryeo, secrets: \
         [{{ env: IN }}] }}\ntargets:\n  plain: {{ url: \"{}\", sign: {{ scheme: none }} }}\n  \
         stamped: {{ url: \"{}\", sign: {{ scheme: aryeo-timestamped, secrets: [{{ env: OUT }}, \
         {{ env: IN }}] }} }}\n  renamed: {{ url: \"{}\", sign: {{ scheme: aryeo, header: \
         X-Hub, secrets: [{{ file: secret.txt }}] }} }}\nroutes:\n  - name: all\n    to: [plain, \
         stamped, renamed]\n",
        plain.url(),
        stamped.url(),
        renamed.url()
    );
    let relay = TestRelay::with_file(&yaml)
        .environment("IN", crate::support::routes::SECRET)
        .environment("OUT", "out")
        .file("secret.txt", "from a file\n")
        .start();
    let body = listing_delivered("1");
    Sender::new(&relay).post(&body).accepted();
    let delivery = plain.wait_for(1).remove(0);
    assert_eq!((delivery.header("signature"), delivery.header("timestamp")), (None, None));

    let delivery = stamped.wait_for(1).remove(0);
    let stamp = delivery.header("timestamp").unwrap().to_owned();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    assert!((now - stamp.parse::<i64>().unwrap()).abs() < 30, "{stamp}");
    let content = [stamp.as_bytes(), b".", &body].concat();
    assert_eq!(delivery.lines("signature"), [crate::support::sign("out", &content)]);

    let delivery = renamed.wait_for(1).remove(0);
    assert_eq!(delivery.lines("x-hub"), [crate::support::sign("from a file", &body)]);
    assert_eq!(delivery.header("signature"), None);
}

#[test]
fn a_target_that_is_down_for_many_attempts_and_comes_back_gets_everything_once() {
    let (mut bad, good) = (Receiver::willing(), Receiver::willing());
    bad.stop();
    let relay = TestRelay::with(&beside_a_good_one(&bad, &good, &[SOON])).start();
    let began = Instant::now();
    // Two of them suspend nothing, however often they fail.
    let ids = post(&relay, 2);
    arrived_on_time(&good, &ids, began);
    eventually("many attempts were refused", || outcomes(&relay, "bad", "refused") >= 20.0);
    assert_eq!(bad.count(), 0);
    bad.start_again();
    let received = bad.wait_for(2);
    settled(&relay, "bad", "delivered", 2);
    let mut arrived: Vec<_> = received.iter().map(|r| r.webhook_id().to_owned()).collect();
    arrived.sort();
    let mut ids = ids;
    ids.sort();
    assert_eq!(arrived, ids);
    for delivery in &received {
        delivery.assert_signed_for("bad");
        assert!(delivery.attempt() >= 2, "attempts are counted on");
    }
    assert_eq!(bad.count(), 2, "delivered, and not sent again");
}

#[test]
fn a_target_that_fails_first_gets_the_same_bytes_and_id_again_with_a_growing_attempt() {
    let (good, bad) = (Receiver::willing(), Receiver::willing());
    bad.set(|received| Reply::Status(if received.number <= 4 { 500 } else { 204 }));
    let relay = TestRelay::with(&beside_a_good_one(&bad, &good, &[SOON])).start();
    let began = Instant::now();
    let ids = post(&relay, 1);
    arrived_on_time(&good, &ids, began);
    let received = bad.wait_for(5);
    settled(&relay, "bad", "delivered", 1);
    for (index, delivery) in received.iter().enumerate() {
        assert_eq!(delivery.webhook_id(), ids[0]);
        assert_eq!(delivery.header("idempotency-key"), Some(ids[0].as_str()));
        assert_eq!(delivery.attempt() as usize, index + 1);
        assert_eq!(delivery.body, listing_delivered("0"));
        delivery.assert_signed_for("bad");
    }
    // The wait doubles from 50 ms, drawn from its upper half, to 200 ms.
    for (index, at_least) in [25, 50, 100, 100].into_iter().enumerate() {
        let wait = received[index + 1].at - received[index].at;
        assert!(wait >= Duration::from_millis(at_least), "wait {index} was {wait:?}");
    }
    assert_eq!(outcomes(&relay, "bad", "status"), 4.0);
    assert_eq!(outcomes(&relay, "bad", "delivered"), 1.0);
    settled(&relay, "bad", "retry", 4);
}

#[test]
fn one_that_hangs_or_answers_endlessly_or_resets_delays_nobody_else_and_loses_nothing() {
    let hang: fn(&Received) -> Reply = |_| Reply::Hang;
    let flood: fn(&Received) -> Reply = |_| Reply::Endless(Duration::from_micros(100));
    let drip: fn(&Received) -> Reply = |_| Reply::Endless(Duration::from_millis(30));
    let reset: fn(&Received) -> Reply = |_| Reply::Reset;
    for (what, script, outcome) in [
        ("hangs", hang, "timeout"),
        ("floods", flood, "answer_too_large"),
        ("drips", drip, "timeout"),
        ("resets", reset, "reset"),
    ] {
        let (bad, good) = (Receiver::start(script), Receiver::willing());
        let lines = ["timeout: 300ms", "concurrency: 4", SOON];
        let relay = TestRelay::with(&beside_a_good_one(&bad, &good, &lines)).start();
        let began = Instant::now();
        let ids = post(&relay, 12);
        arrived_on_time(&good, &ids, began);
        eventually(&format!("attempts end with {outcome} at one that {what}"), || {
            match outcomes(&relay, "bad", outcome) {
                enough if enough >= 4.0 => Ok(()),
                fewer => Err(format!("{fewer}; {}", relay.logs().join("\n"))),
            }
        });
        bad.set(|_| Reply::Status(200));
        settled(&relay, "bad", "delivered", 12);
        let in_flight = relay.metrics().value("relay_attempts_in_flight", &[("target", "bad")]);
        assert_eq!(in_flight, 0.0);
    }
}

#[test]
fn a_redirect_is_a_failure_and_is_never_followed() {
    let (elsewhere, good) = (Receiver::willing(), Receiver::willing());
    let bad = Receiver::willing();
    let place = elsewhere.url();
    bad.set(move |received| match received.number {
        1 => Reply::With(302, vec![("location", place.clone())]),
        2 => Reply::With(307, vec![("location", place.clone())]),
        3 => Reply::With(301, vec![("location", place.clone())]),
        4 => Reply::Status(304),
        _ => Reply::Status(200),
    });
    let relay = TestRelay::with(&beside_a_good_one(&bad, &good, &[SOON])).start();
    let ids = post(&relay, 1);
    let received = bad.wait_for(5);
    settled(&relay, "bad", "delivered", 1);
    assert!(received.iter().all(|r| r.webhook_id() == ids[0] && r.method == "POST"));
    assert_eq!(outcomes(&relay, "bad", "status"), 4.0);
    assert_eq!(elsewhere.count(), 0);
}

#[test]
fn a_status_in_give_up_on_is_a_dead_letter_at_once() {
    let (bad, good) = (Receiver::start(|_| Reply::Status(410)), Receiver::willing());
    let mut relay = TestRelay::with(&beside_a_good_one(&bad, &good, &[SOON])).start();
    let began = Instant::now();
    let ids = post(&relay, 3);
    arrived_on_time(&good, &ids, began);
    settled(&relay, "bad", "dead_letter", 3);
    assert_eq!(outcomes(&relay, "bad", "given_up"), 3.0);
    let dead = [("target", "bad"), ("cause", "given_up")];
    relay.wait_for_metric("relay_dead_letters", &dead, 3.0);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "bad")], 0.0);
    assert_eq!(bad.count(), 3, "nobody tries a dead letter");
    // It stays one.
    relay.restart();
    relay.wait_for_metric("relay_dead_letters", &dead, 3.0);
    assert_eq!(bad.count(), 3);
}

#[test]
fn what_can_not_be_delivered_in_time_becomes_a_dead_letter() {
    let (bad, good) = (Receiver::start(|_| Reply::Status(500)), Receiver::willing());
    let lines = ["retry: { first: 50ms, max: 100ms, for: 1s, give_up_on: [] }"];
    let relay = TestRelay::with(&beside_a_good_one(&bad, &good, &lines)).start();
    let ids = post(&relay, 2);
    settled(&relay, "bad", "dead_letter", 2);
    relay.wait_for_metric("relay_dead_letters", &[("target", "bad"), ("cause", "expired")], 2.0);
    for id in &ids {
        let received = bad.received();
        let tries: Vec<_> = received.iter().filter(|r| r.webhook_id() == id).collect();
        assert!(tries.len() >= 3, "{}", tries.len());
        let span = tries.last().unwrap().at - tries[0].at;
        assert!(span >= Duration::from_millis(850), "given up after {span:?}");
    }
}

#[test]
fn a_retry_after_is_kept_and_on_503_and_429_holds_the_whole_lane() {
    for status in [429, 503] {
        let (bad, good) = (Receiver::willing(), Receiver::willing());
        bad.set(move |received| match received.number {
            1 => Reply::With(status, vec![("retry-after", "2".to_owned())]),
            _ => Reply::Status(200),
        });
        let lines = ["concurrency: 1", SOON];
        let relay = TestRelay::with(&beside_a_good_one(&bad, &good, &lines)).start();
        let began = Instant::now();
        let ids = post(&relay, 5);
        arrived_on_time(&good, &ids, began);
        let received = bad.wait_for(6);
        for later in &received[1..] {
            let wait = later.at - received[0].at;
            assert!(wait >= Duration::from_millis(1900), "{status}: after {wait:?}");
            assert!(wait < Duration::from_secs(10), "{status}: after {wait:?}");
        }
        settled(&relay, "bad", "delivered", 5);
    }
}

#[test]
fn concurrency_and_rate_limit_of_a_target_are_kept() {
    let narrow = Receiver::start(|_| Reply::After(Duration::from_millis(40), 200));
    let slow = Receiver::willing();
    let routes = Routes::new()
        .target("narrow", &narrow.url(), &["concurrency: 2"])
        .target("slow", &slow.url(), &["rate_limit: 20/s"])
        .all_to(&["narrow", "slow"]);
    let relay = TestRelay::with(&routes).start();
    post(&relay, 40);
    let received = narrow.wait_for(40);
    // Two at a time: the third of any three begins when the first is over.
    for three in received.windows(3) {
        let wait = three[2].at - three[0].at;
        assert!(wait >= Duration::from_millis(35), "three at once, within {wait:?}");
    }
    // An attempt that begins while the connection of the one before it is on its way back opens
    // another beside it: more may be open for a moment, but none stays.
    settled(&relay, "narrow", "delivered", 40);
    eventually("no more connections stay open than attempts may run", || {
        let open = narrow.open();
        if open <= 2 { Ok(()) } else { Err(format!("{open} are open")) }
    });
    let received = slow.wait_for(40);
    // A second's worth may come at once; the other twenty take a second.
    let span = received[39].at - received[0].at;
    assert!(span >= Duration::from_millis(900), "40 within {span:?}");
}

#[test]
fn connections_are_kept_and_a_stale_one_costs_no_attempt() {
    let mut crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &["concurrency: 1"]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    for n in 1..=10 {
        sender.post(&listing_delivered(&format!("a{n}"))).accepted();
        crm.wait_for(n);
    }
    settled(&relay, "crm", "delivered", 10);
    // One may be opened while the one from before is not free again.
    assert!(crm.connections() < 5, "{} connections", crm.connections());
    crm.stop();
    crm.start_again();
    sender.post(&listing_delivered("after")).accepted();
    let received = crm.wait_for(11);
    assert_eq!(received[10].attempt(), 1);
    settled(&relay, "crm", "delivered", 11);
    assert_eq!(relay.metrics().value("relay_attempts_total", &[("target", "crm")]), 11.0);
}

#[test]
fn https_targets_are_reached_over_http2_or_1_with_a_private_ca_and_a_client_certificate() {
    let two = Options::default().tls(&["h2", "http/1.1"], false).start(|_| Reply::Status(200));
    let one = Options::default().tls(&["http/1.1"], false).start(|_| Reply::Status(200));
    let shown = Options::default().tls(&["h2"], true).start(|_| Reply::Status(200));
    let Identity { certificate, key } = AUTHORITY.client();
    let ca = "tls: { ca: certs/ca.crt }";
    let named = shown.url().replace("127.0.0.1", "localhost");
    let routes = Routes::new()
        .target("two", &two.url(), &[ca])
        .target("one", &one.url(), &["tls: { ca: certs/ca.crt, server_name: localhost }"])
        .target(
            "shown",
            &named,
            &["tls: { ca: certs/ca.crt, certificate: client.crt, key: client.key }"],
        )
        .all_to(&["two", "one", "shown"]);
    let relay =
        TestRelay::with(&routes).file("client.crt", &certificate).file("client.key", &key).start();
    Sender::new(&relay).post(&listing_delivered("first")).accepted();
    for target in ["two", "one", "shown"] {
        let delivered = [("target", target), ("settlement", "delivered")];
        relay.wait_for_metric("relay_deliveries_settled_total", &delivered, 1.0);
    }
    post(&relay, 9);
    for (name, receiver, version) in [
        ("two", &two, Version::HTTP_2),
        ("one", &one, Version::HTTP_11),
        ("shown", &shown, Version::HTTP_2),
    ] {
        for delivery in receiver.wait_for(10) {
            assert_eq!(delivery.version, version, "{name}");
            assert_eq!(delivery.client_certificate, name == "shown");
            assert_eq!(delivery.attempt(), 1);
            assert_eq!(delivery.path, "/hooks?tenant=7");
            delivery.assert_signed_for(name);
        }
    }
    assert_eq!(two.connections(), 1, "once there is one over HTTP/2 all share it");
}

#[test]
fn a_target_whose_certificate_is_not_trusted_or_that_wants_ours_gets_nothing() {
    let unknown = Options::default().tls(&["http/1.1"], false).start(|_| Reply::Status(200));
    let strict = Options::default().tls(&["http/1.1"], true).start(|_| Reply::Status(200));
    let misnamed = Options::default().tls(&["http/1.1"], false).start(|_| Reply::Status(200));
    let other = crate::support::certs::Authority::new().pem();
    let routes = Routes::new()
        .target("unknown", &unknown.url(), &["tls: { ca: other.crt }", SOON])
        .target("strict", &strict.url(), &["tls: { ca: certs/ca.crt }", SOON])
        .target(
            "misnamed",
            &misnamed.url(),
            &["tls: { ca: certs/ca.crt, server_name: elsewhere.example }", SOON],
        )
        .all_to(&["unknown", "strict", "misnamed"]);
    let relay = TestRelay::with(&routes).file("other.crt", &other).start();
    post(&relay, 1);
    for target in ["unknown", "misnamed"] {
        eventually("TLS fails", || outcomes(&relay, target, "tls") >= 3.0);
    }
    // TLS 1.3 tells the client only after its handshake: the alert may come as a broken connection.
    eventually("the strict one refuses", || {
        outcomes(&relay, "strict", "tls") + outcomes(&relay, "strict", "reset") >= 3.0
    });
    assert_eq!(unknown.count() + strict.count() + misnamed.count(), 0);
}

#[test]
fn large_bodies_and_a_backlog_under_little_memory_arrive() {
    let bad = Receiver::start(|_| Reply::Status(500));
    let good = Receiver::willing();
    let routes = beside_a_good_one(&bad, &good, &[SOON]);
    let relay = TestRelay::with(&routes).flags(&["--delivery-memory", "4MiB"]).start();
    let mut sender = Sender::new(&relay);
    let bodies: Vec<Vec<u8>> =
        (0..16u8).map(|n| vec![b'a' + n; 1024 * 1024 + usize::from(n)]).collect();
    for body in &bodies {
        sender.post(body).accepted();
    }
    let mut arrived: Vec<_> = good.wait_for(16).into_iter().map(|r| r.body).collect();
    arrived.sort();
    assert!(arrived == bodies);
    bad.set(|_| Reply::Status(200));
    settled(&relay, "bad", "delivered", 16);
}

#[test]
fn a_target_that_is_gone_from_the_table_keeps_its_deliveries() {
    let (bad, good) = (Receiver::start(|_| Reply::Status(500)), Receiver::willing());
    let routes = beside_a_good_one(&bad, &good, &[SOON]);
    let mut relay = TestRelay::with(&routes).start();
    let ids = post(&relay, 3);
    good.wait_for(3);
    bad.wait_for(3);
    let yaml = std::fs::read_to_string(relay.path("routes.yaml")).unwrap();
    let without = Routes::new().target("good", &good.url(), &[]).all_to(&["good"]).yaml();
    std::fs::write(relay.path("routes.yaml"), without).unwrap();
    relay.restart();
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "bad")], 3.0);
    bad.set(|_| Reply::Status(200));
    let before = bad.count();
    std::fs::write(relay.path("routes.yaml"), yaml).unwrap();
    relay.restart();
    settled(&relay, "bad", "delivered", 3);
    let mut arrived: Vec<_> =
        bad.received()[before..].iter().map(|r| r.webhook_id().to_owned()).collect();
    arrived.sort();
    assert_eq!(arrived, ids);
}

#[test]
fn a_chunked_webhook_goes_out_with_a_length() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let request = Request::signed(&listing_delivered("1")).chunked();
    assert_eq!(request.framing, Framing::Chunked);
    Sender::new(&relay).send(&request).accepted();
    let delivery = crm.wait_for(1).remove(0);
    assert_eq!(delivery.header("content-length"), Some(request.body.len().to_string().as_str()));
    assert_eq!(delivery.header("transfer-encoding"), None);
}
