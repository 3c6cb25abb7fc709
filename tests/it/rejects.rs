//! Every answer that is not an acknowledgement.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::eventually::eventually;
use crate::support::routes::{PATH, SECRET};
use crate::support::sender::chunk_of;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, sign};

fn relay(lines: &[&str], flags: &[&str]) -> (TestRelay, Receiver) {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source("aryeo", PATH, &[SECRET], lines)
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    (TestRelay::with(&routes).flags(flags).start(), crm)
}

/// Nothing of what was refused went on, and the relay still works.
#[track_caller]
fn only_the_next_arrives(relay: &TestRelay, crm: &Receiver) {
    let body = listing_delivered("the next one");
    Sender::new(relay).post(&body).accepted();
    let received = crm.wait_for(1);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].body, body);
}

fn answered(relay: &TestRelay, source: &str, answer: &str) -> f64 {
    let labels = [("source", source), ("answer", answer)];
    relay.metrics().value("relay_webhooks_received_total", &labels)
}

#[test]
fn an_unknown_path_is_404_and_a_trailing_slash_or_another_case_is_another_path() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    let body = listing_delivered("1");
    let slash = format!("{PATH}/");
    for path in ["/", "/webhooks", slash.as_str(), "/Webhooks/aryeo", "/webhooks/aryeo/x", "//"] {
        sender.send(&Request::signed(&body).path(path)).problem(404);
    }
    for path in ["/metrics", "/livez", "/readyz"] {
        sender.send(&Request::signed(b"").method("GET").path(path)).problem(404);
    }
    assert_eq!(answered(&relay, "none", "not_found"), 9.0);
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn every_method_but_post_is_405_with_allow() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    let body = listing_delivered("1");
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let answer = sender.send(&Request::signed(&body).method(method));
        answer.problem(405);
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    // What a redirect that was followed looks like: a GET without a body, signature kept.
    let empty = Request::signed(&body);
    let empty = Request { body: Vec::new(), ..empty }.method("GET");
    sender.send(&empty).problem(405);
    let head = sender.send(&Request::signed(b"").method("HEAD"));
    assert_eq!(head.status, 405);
    assert_eq!(head.header("allow"), Some("POST"));
    assert_eq!(answered(&relay, "aryeo", "method_not_allowed"), 7.0);
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn whatever_is_wrong_with_the_signature_the_answer_is_the_same_401() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    let body = listing_delivered("1");
    let good = sign(SECRET, &body);
    let mut flipped = body.clone();
    flipped[body.len() / 2] ^= 1;
    let unsigned = || Request::unsigned(PATH, &body);
    let with = |signature: &str| unsigned().header("Signature", signature);
    let mut last_digit = good.clone();
    let other = if last_digit.pop() == Some('0') { '1' } else { '0' };
    last_digit.push(other);
    let requests = [
        unsigned(),
        with(""),
        with(&good[..63]),
        with(&good[..32]),
        with(&format!("{good}0")),
        with(&format!("sha256={good}")),
        with(&last_digit),
        with("not hex at all, but sixty-four characters long: zzzzzzzzzzzzzzzz"),
        with(&sign("another secret", &body)),
        with(&sign(SECRET, b"another body")),
        Request::unsigned(PATH, &flipped).header("Signature", &good),
        Request::unsigned(PATH, &body[..body.len() - 1]).header("Signature", &good),
        Request::unsigned(PATH, &[&body[..], b"\n"].concat()).header("Signature", &good),
        Request::unsigned(PATH, b"").header("Signature", &good),
        unsigned().header("X-Signature", &good),
        with(&sign("another secret", &body)).header("signature", "two, and both wrong"),
    ];
    let count = requests.len();
    let mut answers = BTreeSet::new();
    for request in requests {
        let answer = sender.send(&request);
        answer.problem(401);
        let headers: Vec<_> = answer
            .headers
            .iter()
            .filter(|(name, _)| name != "date")
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        answers.insert((headers, answer.body));
    }
    assert_eq!(answers.len(), 1, "the answer tells what was wrong: {answers:?}");
    assert_eq!(answered(&relay, "aryeo", "unauthorized"), count as f64);
    let metrics = relay.metrics();
    let failed = |result| {
        let labels = [("source", "aryeo"), ("secret", "none"), ("result", result)];
        metrics.value("relay_signature_verifications_total", &labels)
    };
    assert!(failed("missing") >= 2.0);
    assert!(failed("mismatch") >= 6.0);
    let logs = relay.logs().join("\n");
    assert!(logs.contains("\"ERROR\""), "three in a row are an error:\n{logs}");
    assert!(!logs.contains(SECRET) && !logs.contains(&good), "a secret was logged");
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn a_body_over_the_limit_is_413_by_its_length_and_while_it_is_read() {
    let (relay, crm) = relay(&["body_limit: 10kB"], &[]);
    let sender = Sender::new(&relay);
    let large = vec![b'x'; 10_001];
    // Each on a connection that stays open, so that the answer must really come.
    sender.send(&Request::signed(&large)).problem(413);
    sender.send(&Request::signed(&large).chunked()).problem(413);
    let larger = vec![b'x'; 200_000];
    sender.send(&Request::signed(&larger)).problem(413);
    sender.send(&Request::signed(&larger).chunked()).problem(413);
    let mut announced = sender.connect();
    let head = Request::signed(b"").without("Content-Length").head();
    let head = String::from_utf8(head).unwrap().replace("Length: 0", "Length: 99999999999999");
    announced.write(head.as_bytes()).unwrap();
    announced.read_answer().unwrap().problem(413);
    assert_eq!(answered(&relay, "aryeo", "too_large"), 5.0);

    let exactly = vec![b'x'; 10_000];
    sender.send(&Request::signed(&exactly)).accepted();
    let mut one_less = exactly;
    one_less.pop();
    sender.send(&Request::signed(&one_less).chunked()).accepted();
    assert_eq!(crm.wait_for(2).len(), 2);
}

#[test]
fn the_default_limit_is_2_mib() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    sender.send(&Request::signed(&vec![b'x'; 2 * 1024 * 1024])).accepted();
    sender.send(&Request::signed(&vec![b'x'; 2 * 1024 * 1024 + 1])).problem(413);
    assert_eq!(crm.wait_for(1)[0].body.len(), 2 * 1024 * 1024);
}

#[test]
fn a_body_that_does_not_come_in_time_is_408() {
    let (relay, crm) = relay(&[], &["--body-timeout", "1s"]);
    let sender = Sender::new(&relay);
    let request = Request::signed(&listing_delivered("slow"));
    let began = Instant::now();
    let mut connection = sender.connect();
    connection.write(&request.head()).unwrap();
    connection.write(&request.body[..10]).unwrap();
    connection.read_answer().unwrap().problem(408);
    assert!(began.elapsed() >= Duration::from_millis(900));

    // A byte now and then does not help.
    let mut connection = sender.connect();
    connection.write(&request.clone().chunked().head()).unwrap();
    connection.tcp().set_read_timeout(Some(Duration::from_millis(250))).unwrap();
    let answer = request.body[..40].iter().find_map(|byte| {
        connection.write(&chunk_of(&[*byte])).unwrap();
        connection.read_answer().map_err(|error| assert!(is_timeout(&error), "{error}")).ok()
    });
    answer.expect("counted anew from each byte").problem(408);
    assert_eq!(answered(&relay, "aryeo", "timeout"), 2.0);
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn a_head_that_does_not_come_in_time_ends_the_connection() {
    let (relay, crm) = relay(&[], &["--header-timeout", "300ms", "--handshake-timeout", "300ms"]);
    let mut connection = Sender::new(&relay).connect();
    connection.write(b"POST /webhooks/aryeo HTTP/1.1\r\nHost: loc").unwrap();
    match connection.read_answer() {
        Ok(answer) => assert!([400, 408].contains(&answer.status), "{answer:?}"),
        Err(error) => assert!(!is_timeout(&error), "it is still open"),
    }
    // Nobody says hello.
    let silent = std::net::TcpStream::connect(relay.listen()).unwrap();
    silent.set_read_timeout(Some(crate::support::patience())).unwrap();
    match std::io::Read::read(&mut &silent, &mut [0; 64]) {
        Ok(_) => {}
        Err(error) => assert!(!is_timeout(&error), "it is still open"),
    }
    only_the_next_arrives(&relay, &crm);
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[test]
fn malformed_http_is_400_or_the_end_of_the_connection() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    for bytes in [
        &b"nonsense\r\n\r\n"[..],
        b"POST /webhooks/aryeo HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /webhooks/aryeo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /webhooks/aryeo HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n",
        b"POST /webhooks/aryeo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut connection = sender.connect();
        connection.write(bytes).unwrap();
        match connection.read_answer() {
            Ok(answer) => assert_eq!(answer.status, 400, "{answer:?}"),
            Err(error) => assert!(!is_timeout(&error), "it is still open"),
        }
    }
    // The last one had a head that could be read.
    let labels = [("source", "none"), ("answer", "bad_request")];
    relay.wait_for_metric("relay_webhooks_received_total", &labels, 4.0);
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn headers_that_are_too_large_are_431() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    let mut request = Request::signed(&listing_delivered("1"));
    for n in 0..100 {
        request = request.header(&format!("X-Large-{n}"), &"y".repeat(2000));
    }
    assert_eq!(sender.send(&request).status, 431);
    let labels = [("source", "none"), ("answer", "headers_too_large")];
    relay.wait_for_metric("relay_webhooks_received_total", &labels, 1.0);
    eventually("it is logged", || {
        relay.logs().iter().any(|line| line.contains("headers_too_large"))
    });
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn over_the_rate_limit_is_429_with_retry_after_and_unverified_requests_do_not_count() {
    let (relay, crm) = relay(&["rate_limit: 2/m"], &[]);
    let mut sender = Sender::new(&relay);
    for _ in 0..5 {
        sender.send(&Request::unsigned(PATH, b"x")).problem(401);
    }
    let mut accepted = 0;
    let refused = (0..10)
        .find_map(|n| {
            let began = Instant::now();
            let answer = sender.post(&listing_delivered(&n.to_string()));
            assert!(began.elapsed() < Duration::from_millis(2500));
            accepted += usize::from(answer.status == 202);
            (answer.status != 202).then_some(answer)
        })
        .expect("ten at once are over two in a minute");
    refused.problem(429);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert!((1..=3).contains(&accepted), "{accepted}");
    assert_eq!(answered(&relay, "aryeo", "rate_limited"), 1.0);
    assert_eq!(crm.wait_for(accepted).len(), accepted);
}

#[test]
fn a_short_burst_over_the_rate_waits_for_its_turn() {
    let (relay, crm) = relay(&["rate_limit: 10/s"], &[]);
    let mut sender = Sender::new(&relay);
    for n in 0..15 {
        sender.post(&listing_delivered(&n.to_string())).accepted();
    }
    assert_eq!(crm.wait_for(15).len(), 15);
}

#[test]
fn expect_100_continue_is_honoured_only_after_the_cheap_checks() {
    let (relay, crm) = relay(&["body_limit: 3MiB"], &[]);
    let sender = Sender::new(&relay);
    let body = vec![b'x'; 1024 * 1024 + 1];
    let expecting = |request: Request| {
        let mut connection = sender.connect();
        connection.write(&request.header("Expect", "100-Continue").head()).unwrap();
        let head = connection.read_head().unwrap();
        (connection, head.status)
    };
    let (mut connection, status) = expecting(Request::signed(&body));
    assert_eq!(status, 100);
    connection.write(&body).unwrap();
    connection.read_answer().unwrap().accepted();

    let (_, status) = expecting(Request::signed(&body).path("/elsewhere"));
    assert_eq!(status, 404);
    let (_, status) = expecting(Request::signed(&body).method("PUT"));
    assert_eq!(status, 405);
    let (_, status) = expecting(Request::signed(&vec![b'x'; 3 * 1024 * 1024 + 1]));
    assert_eq!(status, 413);
    assert_eq!(crm.wait_for(1).len(), 1);
}

#[test]
fn http2_gets_the_same_answers() {
    let (relay, crm) = relay(&["body_limit: 10kB"], &[]);
    let sender = Sender::new(&relay);
    // The rest of the first is read, that of the others is not.
    for size in [200_000, 1_000_000, 10_000_000] {
        sender.post_http2(&vec![b'x'; size]).problem(413);
    }
    Sender::new(&relay).secret("another").post_http2(b"x").problem(401);
    Sender::new(&relay).path("/elsewhere").post_http2(b"x").problem(404);
    only_the_next_arrives(&relay, &crm);
}

#[test]
fn after_a_refusal_the_connection_is_still_in_step() {
    let (relay, crm) = relay(&[], &[]);
    let sender = Sender::new(&relay);
    let mut connection = sender.connect();
    let body = listing_delivered("1");
    connection.send(&Request::unsigned(PATH, &body)).unwrap().problem(401);
    let next = connection.send(&Request::signed(&body).path("/elsewhere"));
    match next {
        Ok(answer) => answer.problem(404),
        // Closing is right too: what follows on it must never be taken for a request.
        Err(error) => assert!(!is_timeout(&error)),
    }
    only_the_next_arrives(&relay, &crm);
}
