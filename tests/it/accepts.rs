//! What a sender posts rightly is acknowledged, kept and passed on unchanged.

use crate::support::routes::{PATH, SECRET};
use crate::support::vectors::{self, activity, listing_delivered};
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, sign};

/// A relay that knows the secret of every vector and passes everything to `crm`.
fn relay_for_vectors(crm: &Receiver) -> TestRelay {
    let mut secrets: Vec<String> = vectors::all().into_iter().map(|v| v.secret).collect();
    secrets.sort();
    secrets.dedup();
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let routes = Routes::bare().source("aryeo", PATH, &secrets, &[]);
    TestRelay::with(&routes.target("crm", &crm.url(), &[]).all_to(&["crm"])).start()
}

fn signed_vector(vector: &vectors::Vector) -> Request {
    Request::unsigned(PATH, &vector.body).header("Signature", &vector.signature)
}

#[test]
fn every_vector_of_the_real_sender_is_accepted_and_delivered_byte_for_byte() {
    let crm = Receiver::willing();
    let relay = relay_for_vectors(&crm);
    let sender = Sender::new(&relay);
    let vectors = vectors::all();
    assert!(vectors.len() >= 11);
    let sent: Vec<_> = vectors
        .into_iter()
        .map(|vector| (sender.send(&signed_vector(&vector)).accepted(), vector))
        .collect();
    let received = crm.wait_for(sent.len());
    assert_eq!(received.len(), sent.len());
    for (id, vector) in &sent {
        let name = &vector.name;
        let of_id: Vec<_> = received.iter().filter(|r| r.webhook_id() == id).collect();
        assert_eq!(of_id.len(), 1, "{name}");
        let delivery = of_id[0];
        assert!(delivery.body == vector.body, "{name}: the bytes differ");
        delivery.assert_signed_for("crm");
        let Some(expect) = &vector.expect else {
            assert_eq!(delivery.header("relay-activity"), None, "{name}");
            continue;
        };
        assert_eq!(delivery.header("relay-activity"), expect.activity.as_deref(), "{name}");
        let resource = match (&expect.object, &expect.id) {
            (Some(object), Some(id)) => Some(format!("{object}/{id}")),
            _ => None,
        };
        assert_eq!(delivery.header("relay-resource"), resource.as_deref(), "{name}");
    }
    let metrics = relay.metrics();
    for (_, vector) in &sent {
        let activity = vector.expect.as_ref().and_then(|e| e.activity.as_deref()).unwrap_or("none");
        let labels = [("source", "aryeo"), ("activity", activity)];
        assert!(metrics.value("relay_webhooks_accepted_total", &labels) >= 1.0, "{}", vector.name);
    }
}

#[test]
fn strange_bodies_are_kept_and_delivered_as_they_are() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let deep = format!("{}1{}", "{\"a\":".repeat(511), "}".repeat(511));
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"not json".to_vec(),
        vec![0, 159, 146, 150, 255, b'\r', b'\n', 0],
        b"[]".to_vec(),
        b" {\"a\" :1.0 }\n".to_vec(),
        deep.into_bytes(),
        br#"{"object":"ACTIVITY","name":5}"#.to_vec(),
        br#"{"object":"ACTIVITY","name":"ORDER_CREATED","name":"LISTING_DELIVERED"}"#.to_vec(),
        br#"{"object":"GROUP","name":"ORDER_CREATED","id":"g"}"#.to_vec(),
        br#"{"specversion":"1.0","id":"e","source":"s","type":"article.updated","data":{}}"#
            .to_vec(),
        vec![b'x'; 300 * 1024],
        format!("{{\"big\":\"{}\"}}", "y".repeat(1024 * 1024 + 7)).into_bytes(),
    ];
    let ids: Vec<String> = bodies.iter().map(|body| sender.post(body).accepted()).collect();
    let received = crm.wait_for(bodies.len());
    let activities = [
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        Some("ORDER_CREATED"),
        None,
        Some("article.updated"),
        None,
        None,
    ];
    for ((id, body), activity) in ids.iter().zip(&bodies).zip(activities) {
        let delivery = received.iter().find(|r| r.webhook_id() == id).unwrap();
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]);
        assert!(&delivery.body == body, "{start}: the bytes differ");
        assert_eq!(delivery.header("relay-activity"), activity, "{start}");
        delivery.assert_signed_for("crm");
    }
    assert_eq!(received.len(), bodies.len());
}

#[test]
fn chunked_bodies_upper_case_hex_two_signature_lines_and_either_secret_are_accepted() {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source("aryeo", PATH, &["old", "new"], &[])
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let sender = Sender::new(&relay);
    let body = |n: u32| listing_delivered(&n.to_string());
    let unsigned = |n: u32| Request::unsigned(PATH, &body(n));

    let chunked = unsigned(1).header("Signature", &sign("new", &body(1))).chunked();
    sender.send(&chunked).accepted();
    let upper = sign("old", &body(2)).to_uppercase();
    sender.send(&unsigned(2).header("Signature", &upper)).accepted();
    let lines = unsigned(3)
        .header("signature", "set by hand and wrong")
        .header("Signature", &sign("new", &body(3)));
    sender.send(&lines).accepted();
    let lines = unsigned(4)
        .header("Signature", &sign("old", &body(4)))
        .header("Signature", &sign("nobody's", &body(4)));
    sender.send(&lines).accepted();
    // What becomes of two lines on the way through a proxy.
    let joined = format!("set by hand and wrong, {}", sign("old", &body(6)));
    sender.send(&unsigned(6).header("Signature", &joined)).accepted();
    let query = unsigned(5).path(&format!("{PATH}?token=hidden"));
    sender.send(&query.header("Signature", &sign("old", &body(5)))).accepted();

    for delivery in crm.wait_for(6) {
        delivery.assert_signed_for("crm");
    }
    let metrics = relay.metrics();
    let verified = |n: u32| {
        let secret = format!("env:ARYEO_WEBHOOK_SECRET_{n}");
        let labels = [("source", "aryeo"), ("secret", secret.as_str()), ("result", "ok")];
        metrics.value("relay_signature_verifications_total", &labels)
    };
    assert_eq!((verified(0), verified(1)), (4.0, 2.0));
    assert!(!relay.logs().join("\n").contains("hidden"), "the query string was logged");
}

#[test]
fn several_webhooks_on_one_connection_and_over_http2_are_accepted() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let mut connection = sender.connect();
    for n in 0..5 {
        let request = sender.request(&listing_delivered(&format!("a{n}")));
        connection.send(&request).unwrap().accepted();
    }
    let pipelined: Vec<u8> = (0..5)
        .flat_map(|n| {
            let request = sender.request(&listing_delivered(&format!("b{n}")));
            [request.head(), request.encoded_body()].concat()
        })
        .collect();
    connection.write(&pipelined).unwrap();
    for _ in 0..5 {
        connection.read_answer().unwrap().accepted();
    }
    let body = listing_delivered("c");
    let id = sender.post_http2(&body).accepted();
    assert_eq!(sender.post(&body).duplicate(), id);
    assert_eq!(crm.wait_for(11).len(), 11);
}

#[test]
fn the_same_bytes_again_are_a_duplicate_with_the_first_one_s_id_also_after_a_restart() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).start();
    let bodies = [listing_delivered("1"), br#"{"object":"LISTING","id":"bare"}"#.to_vec()];
    let mut sender = Sender::new(&relay);
    let ids: Vec<String> = bodies.iter().map(|body| sender.post(body).accepted()).collect();
    assert_ne!(ids[0], ids[1]);
    let again = |relay: &TestRelay| {
        let mut sender = Sender::new(relay);
        for (body, id) in bodies.iter().zip(&ids) {
            assert_eq!(&sender.post(body).duplicate(), id);
            // No unsigned header takes part.
            let other = sender.request(body).header("X-Attempt", "2");
            assert_eq!(&sender.send(&other).duplicate(), id);
        }
    };
    again(&relay);
    crm.wait_for(2);
    relay.restart();
    again(&relay);
    relay.kill9();
    relay.start_again();
    again(&relay);
    // Something else still gets through, and is the only new delivery.
    Sender::new(&relay).post(&listing_delivered("2")).accepted();
    let received = crm.wait_for(3);
    assert_eq!(received[2].body, listing_delivered("2"));
    assert_eq!(
        relay.metrics().value("relay_webhooks_received_total", &[("answer", "duplicate")]),
        4.0
    );
}

#[test]
fn copies_that_arrive_together_become_one_webhook() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    for round in 0..10 {
        let body = listing_delivered(&format!("round {round}"));
        let answers: Vec<_> = std::thread::scope(|scope| {
            let copies: Vec<_> = (0..8)
                .map(|_| {
                    let (body, mut sender) = (&body, Sender::new(&relay));
                    scope.spawn(move || sender.post(body))
                })
                .collect();
            copies.into_iter().map(|copy| copy.join().unwrap()).collect()
        });
        let ids: std::collections::BTreeSet<String> =
            answers.iter().map(super::support::Answer::webhook_id).collect();
        assert_eq!(ids.len(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 7, "{answers:?}");
    }
    Sender::new(&relay).post(&listing_delivered("last")).accepted();
    assert_eq!(crm.wait_for(11).len(), 11);
}

#[test]
fn the_same_bytes_on_another_path_or_of_another_source_are_another_webhook() {
    let crm = Receiver::willing();
    let routes = Routes::new()
        .source("orders", "/webhooks/orders", &[SECRET], &[])
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let body = br#"{"object":"ORDER","id":"one"}"#;
    let first = Sender::new(&relay).post(body).accepted();
    let second = Sender::new(&relay).path("/webhooks/orders").post(body).accepted();
    assert_ne!(first, second);
    let received = crm.wait_for(2);
    let sources: std::collections::BTreeSet<_> =
        received.iter().map(|r| (r.webhook_id(), r.header("relay-source").unwrap())).collect();
    assert_eq!(sources, [(first.as_str(), "aryeo"), (second.as_str(), "orders")].into());
}

#[test]
fn an_unrouted_webhook_is_accepted_and_kept_and_one_dropped_by_the_table_is_not() {
    let crm = Receiver::willing();
    let table = Routes::new().target("crm", &crm.url(), &[]).route(
        "orders",
        &["activity: \"ORDER_*\""],
        &["crm"],
    );
    let relay = TestRelay::with(&table).start();
    let mut sender = Sender::new(&relay);
    let unknown = activity("SOMETHING_NEW", "1", "LISTING");
    let id = sender.post(&unknown).accepted();
    assert_eq!(sender.post(&unknown).duplicate(), id, "kept, so that a copy is known");
    sender.post(b"not json").accepted();
    sender.post(&activity("ORDER_CREATED", "2", "ORDER")).accepted();
    assert_eq!(crm.wait_for(1).len(), 1);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("relay_unrouted_total", &[("source", "aryeo")]), 2.0);
    let other = [("source", "aryeo"), ("activity", "other")];
    assert_eq!(metrics.value("relay_webhooks_accepted_total", &other), 1.0);

    let relay = TestRelay::with(&table.line("unrouted: drop")).start();
    let mut sender = Sender::new(&relay);
    let answer = sender.post(&unknown);
    assert_eq!((answer.status, answer.json()), (200, serde_json::json!({"status": "dropped"})));
    let answer = sender.post(&unknown);
    assert_eq!(answer.json()["status"], "dropped", "it was not stored");
}

#[test]
fn routes_decide_who_gets_what() {
    let (crm, billing, rest) = (Receiver::willing(), Receiver::willing(), Receiver::willing());
    let routes = Routes::new()
        .target("crm", &crm.url(), &["headers: { X-Tenant: realtour, X-Kept: own }"])
        .target("billing", &billing.url(), &[])
        .target("rest", &rest.url(), &[])
        .route(
            "orders",
            &["activity: [\"ORDER_*\", \"!ORDER_VIEWED\"]", "headers: { x-tenant: orders }"],
            &["crm", "billing"],
        )
        .route("paid", &["activity: ORDER_PAYMENT_COMPLETED", "final: true"], &["billing"])
        .route("listings", &["resource: LISTING"], &["crm"])
        .route("everything", &[], &["rest"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let created = sender.post(&activity("ORDER_CREATED", "1", "ORDER")).accepted();
    let viewed = sender.post(&activity("ORDER_VIEWED", "2", "ORDER")).accepted();
    let paid = sender.post(&activity("ORDER_PAYMENT_COMPLETED", "3", "ORDER_PAYMENT")).accepted();
    let listing = sender.post(br#"{"object":"LISTING","id":"4"}"#).accepted();
    let ids = |receiver: &Receiver, count| {
        let received = receiver.wait_for(count);
        let mut ids: Vec<String> = received.iter().map(|r| r.webhook_id().to_owned()).collect();
        ids.sort();
        ids
    };
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&crm, 3), sorted(&[&created, &paid, &listing]));
    assert_eq!(ids(&billing, 2), sorted(&[&created, &paid]));
    assert_eq!(ids(&rest, 3), sorted(&[&created, &viewed, &listing]));
    for delivery in crm.received() {
        delivery.assert_signed_for("crm");
        assert_eq!(delivery.header("x-kept"), Some("own"));
        let tenant = if delivery.webhook_id() == listing { "realtour" } else { "orders" };
        assert_eq!(delivery.header("x-tenant"), Some(tenant));
    }
    for delivery in billing.received() {
        delivery.assert_signed_for("billing");
    }
}

/// A POST that is signed as `aryeo-timestamped` says, at this moment.
fn timestamped(path: &str, header: &str, body: &[u8], unix: i64) -> Request {
    let signed = [unix.to_string().as_bytes(), b".", body].concat();
    Request::unsigned(path, body)
        .header(header, &sign(SECRET, signed.as_slice()))
        .header("Timestamp", &unix.to_string())
}

#[test]
fn a_signed_timestamp_is_taken_within_five_minutes_either_way() {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source_verified("stamped", "/stamped", &[SECRET], "scheme: aryeo-timestamped", &[])
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut connection = Sender::new(&relay).connect();
    let mut post = |request: &Request| connection.send(request).unwrap();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let at =
        |mark: &str, unix| timestamped("/stamped", "Signature", &listing_delivered(mark), unix);
    let first = post(&at("1", now)).accepted();
    // A retry is signed anew, and is the same webhook all the same.
    assert_eq!(post(&at("1", now + 1)).duplicate(), first);
    post(&at("2", now - 240)).accepted();
    post(&at("3", now + 240)).accepted();
    for unix in [now - 400, now + 400, 0] {
        post(&at("4", unix)).problem(401);
    }
    let moved = at("5", now).without("Timestamp").header("Timestamp", &(now + 1).to_string());
    post(&moved).problem(401);
    post(&at("6", now).without("Timestamp")).problem(401);
    post(&Request::signed(&listing_delivered("7")).path("/stamped")).problem(401);
    let received = crm.wait_for(3);
    assert_eq!(received.len(), 3);
    let stale = [("source", "stamped"), ("result", "stale")];
    assert_eq!(relay.metrics().value("relay_signature_verifications_total", &stale), 3.0);
}

#[test]
fn a_source_may_have_its_signature_in_another_header() {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source_verified("plain", "/plain", &[SECRET], "scheme: aryeo, header: X-Proof", &[])
        .source_verified(
            "stamped",
            "/stamped",
            &[SECRET],
            "scheme: aryeo-timestamped, header: X-Proof",
            &[],
        )
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut connection = Sender::new(&relay).connect();
    let mut post = |request: &Request| connection.send(request).unwrap();
    let body = listing_delivered("1");
    post(&Request::unsigned("/plain", &body).header("x-proof", &sign(SECRET, &body))).accepted();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    post(&timestamped("/stamped", "X-Proof", &body, now)).accepted();
    // There a signature in the usual header is none.
    post(&Request::signed(&body).path("/plain")).problem(401);
    post(&timestamped("/stamped", "Signature", &body, now)).problem(401);
    let received = crm.wait_for(2);
    let passed_on = |name: &str| received.iter().any(|one| one.header(name).is_some());
    assert!(!passed_on("x-proof"), "the sender's proof is nobody else's business");
}
