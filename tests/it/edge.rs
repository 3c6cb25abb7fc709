//! Who is at the other end, and what follows from it.

use std::io;

use crate::support::routes::{PATH, SECRET};
use crate::support::sender::Answer;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay};

/// An address of this machine that is a proxy where it is trusted, and one that never is.
const PROXY: [u8; 4] = [127, 0, 0, 2];
const OTHER: [u8; 4] = [127, 0, 0, 3];

/// A relay whose source has these lines, and its target.
fn relay(lines: &[&str], flags: &[&str], plain: bool) -> (TestRelay, Receiver) {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source("aryeo", PATH, &[SECRET], lines)
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let builder = TestRelay::with(&routes).flags(flags);
    let relay = if plain { builder.plain_http() } else { builder }.start();
    (relay, crm)
}

/// Posts a new webhook from there, with these lines of `X-Forwarded-For`.
fn request(text: &str, forwarded: &[&str]) -> Request {
    let request = Request::signed(&listing_delivered(text));
    forwarded.iter().fold(request, |request, line| request.header("X-Forwarded-For", line))
}

/// From where the operator is told that a webhook came.
#[track_caller]
fn shown(relay: &TestRelay, webhook_id: &str) -> String {
    let webhook = relay.get(&format!("/api/v1/webhooks/{webhook_id}")).json();
    webhook["peer"].as_str().unwrap_or_else(|| panic!("no peer in {webhook}")).to_owned()
}

#[test]
fn the_client_is_whom_a_trusted_proxy_names_and_nobody_else_is_believed() {
    for plain in [false, true] {
        let (relay, crm) = relay(&[], &["--trusted-proxies", "127.0.0.2/32,10.0.0.0/8"], plain);
        let sender = Sender::new(&relay);
        let lines = ["192.0.2.66", "198.51.100.7:4711, 10.1.1.1"];
        for (number, (from, lines, client)) in [
            (PROXY, &lines[..], "198.51.100.7"),
            (PROXY, &["[2001:db8::7]:443"], "2001:db8::7"),
            (OTHER, &lines, "127.0.0.3"),
            (OTHER, &[], "127.0.0.3"),
            // What is not known is told as what is: from whom it came last.
            (PROXY, &[], "127.0.0.2"),
            (PROXY, &["198.51.100.7, unknown"], "127.0.0.2"),
        ]
        .into_iter()
        .enumerate()
        {
            let answer = sender.connect_from(from).send(&request(&number.to_string(), lines));
            assert_eq!(shown(&relay, &answer.unwrap().accepted()), client, "{lines:?}");
        }
        crm.wait_for(6);
    }
}

#[test]
fn a_source_takes_nothing_from_elsewhere_and_reads_no_body_for_that() {
    let lines = ["allow_from: [127.0.0.3, 198.51.100.0/24, \"2001:db8::/32\"]"];
    let (relay, crm) = relay(&lines, &["--trusted-proxies", "127.0.0.2"], false);
    let sender = Sender::new(&relay);
    let send = |from, text: &str, lines: &[&str]| {
        sender.connect_from(from).send(&request(text, lines)).unwrap()
    };
    send(OTHER, "1", &["203.0.113.9"]).accepted();
    send(PROXY, "2", &["203.0.113.9, 198.51.100.7"]).accepted();
    send(PROXY, "3", &["2001:db8::7"]).accepted();
    send(PROXY, "4", &["198.51.100.7, 203.0.113.9"]).problem(403);
    send(PROXY, "5", &[]).problem(403);
    send([127, 0, 0, 1], "6", &["198.51.100.7"]).problem(403);
    // Who waits to be told to go ahead is not.
    let waiting = request("7", &[]).header("Expect", "100-continue");
    let mut connection = sender.connect_from([127, 0, 0, 1]);
    connection.write(&waiting.head()).unwrap();
    let answer = connection.read_head().unwrap();
    assert_eq!(answer.status, 403);
    let labels = [("source", "aryeo"), ("answer", "forbidden")];
    assert_eq!(relay.metrics().value("relay_webhooks_received_total", &labels), 4.0);
    let logs = relay.logs().join("\n");
    assert!(logs.contains("its address is not known") && logs.contains("ERROR"), "{logs}");
    crm.wait_for(3);
}

/// Connects as a proxy does that speaks version 1 or 2 of its protocol, and posts.
fn post_for(relay: &TestRelay, from: [u8; 4], header: &[u8], text: &str) -> io::Result<Answer> {
    let mut connection = Sender::new(relay).connect_behind(from, header)?;
    connection.send(&request(text, &["198.51.100.66"]))
}

#[test]
fn a_proxy_s_header_comes_before_tls_and_only_from_where_it_is_trusted() {
    let line = b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 443\r\n";
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    binary.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    binary.extend([0; 20]);
    for plain in [false, true] {
        let flags = ["--trusted-proxies", "127.0.0.2", "--proxy-protocol"];
        let (relay, crm) = relay(&[], &flags, plain);
        let first = post_for(&relay, PROXY, line, "1").unwrap().accepted();
        assert_eq!(shown(&relay, &first), "203.0.113.9");
        let second = post_for(&relay, PROXY, &binary, "2").unwrap().accepted();
        assert_eq!(shown(&relay, &second), "2001:db8::7");
        let direct = post_for(&relay, OTHER, b"", "3").unwrap().accepted();
        assert_eq!(shown(&relay, &direct), "127.0.0.3");
        post_for(&relay, OTHER, line, "4").unwrap_err();
        post_for(&relay, PROXY, b"", "5").unwrap_err();
        for (reason, count) in [("not_a_proxy", 1.0), ("proxy_header", 1.0), ("address", 0.0)] {
            let labels = [("reason", reason)];
            assert_eq!(relay.metrics().value("relay_connections_refused_total", &labels), count);
        }
        crm.wait_for(3);
    }
}

#[test]
fn who_connects_behind_a_proxy_that_does_not_say_for_whom_is_nobody_whatever_he_writes() {
    let lines = ["allow_from: [198.51.100.0/24]"];
    let flags = ["--trusted-proxies", "127.0.0.2", "--proxy-protocol"];
    let (relay, crm) = relay(&lines, &flags, true);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for untold in [&b"PROXY UNKNOWN\r\n"[..], local] {
        post_for(&relay, PROXY, untold, "1").unwrap().problem(403);
    }
    let told = b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 443\r\n";
    post_for(&relay, PROXY, told, "2").unwrap().accepted();
    crm.wait_for(1);
}

#[test]
fn nobody_speaks_for_others_where_no_proxy_is_trusted() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let variable = |value| TestRelay::with(&routes).environment("RELAY_PROXY_PROTOCOL", value);
    for asked in [TestRelay::with(&routes).flags(&["--proxy-protocol"]), variable("yes")] {
        let ended = asked.run();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("--trusted-proxies"), "{ended:?}");
    }
    drop(variable("no").start());
}

#[test]
fn one_address_does_not_take_the_connections_of_others() {
    let flags = ["--connections-max", "40", "--connections-per-address-max", "4"];
    let (relay, crm) = relay(&[], &flags, false);
    let sender = Sender::new(&relay);
    // All of them have a request whose body does not come.
    let busy = |text: &str| {
        let mut connection = sender.connect_from(OTHER);
        let request = request(text, &[]).header("Expect", "100-continue");
        connection.write(&request.head()).unwrap();
        assert_eq!(connection.read_head().unwrap().status, 100);
        (connection, request)
    };
    let mut crowd: Vec<_> = ["1", "2", "3", "4"].map(busy).into();
    sender.connect_behind(OTHER, b"").unwrap_err();
    let labels = [("reason", "address")];
    assert!(relay.metrics().value("relay_connections_refused_total", &labels) >= 1.0);
    sender.connect_from(PROXY).send(&request("from elsewhere", &[])).unwrap().accepted();
    for (connection, request) in &mut crowd {
        connection.write(&request.body).unwrap();
        connection.read_answer().unwrap().accepted();
    }
    // They are idle now, and one of them ends for the next.
    sender.connect_from(OTHER).send(&request("the next", &[])).unwrap().accepted();
    crm.wait_for(6);
}

#[test]
fn a_flood_of_unsigned_requests_is_refused_unread_and_costs_no_webhook() {
    // In an hour nothing becomes free again.
    let (relay, crm) = relay(&[], &["--unverified-rate", "5/h"], false);
    let sender = Sender::new(&relay);
    let unsigned = || Request::unsigned(PATH, b"unsigned").header("Expect", "100-continue");
    let flood = |from, count: usize| {
        let mut connection = sender.connect_from(from);
        let send = |_| connection.send(&unsigned().without("Expect")).unwrap().status;
        (0..count).map(send).collect::<Vec<u16>>()
    };
    assert_eq!(flood(OTHER, 23), [&[401; 21][..], &[429; 2]].concat());
    // Nobody waits for a body any more.
    let mut connection = sender.connect_from(OTHER);
    connection.write(&unsigned().head()).unwrap();
    let answer = connection.read_answer().unwrap();
    answer.problem(429);
    assert!(answer.header("retry-after").is_some_and(|secs| secs.parse::<u32>().unwrap() > 600));
    // The sender is somewhere else; after that a flood from there costs it nothing, either.
    sender.connect_from(PROXY).send(&request("first", &[])).unwrap().accepted();
    assert_eq!(flood(PROXY, 50), [401; 50]);
    sender.connect_from(PROXY).send(&request("second", &[])).unwrap().accepted();
    let labels = [("source", "aryeo"), ("answer", "rate_limited")];
    assert_eq!(relay.metrics().value("relay_webhooks_received_total", &labels), 3.0);
    crm.wait_for(2);
}

#[test]
fn a_network_that_is_none_is_wrong_usage() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    for (networks, said) in [
        ("10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("10.0.0.0/8,proxy.internal", "not a network such as"),
    ] {
        let ended = TestRelay::with(&routes).flags(&["--trusted-proxies", networks]).run();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
}
