//! What strangers can write into the log, and the level of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::relay::Logs;
use crate::support::routes::PATH;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, eventually, patience};

/// No address is refused unseen.
const UNBOUNDED: [&str; 2] = ["--unverified-rate", "1000000/s"];

/// Another address of this machine than the others'.
const OTHER: [u8; 4] = [127, 0, 0, 9];

fn relay(flags: &[&str]) -> (TestRelay, Receiver) {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    (TestRelay::with(&routes).flags(flags).start(), crm)
}

fn events(log: &Logs) -> Vec<Value> {
    log.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Says something that is no TLS, and waits until the relay has heard it.
fn no_tls(relay: &TestRelay) {
    let mut stream = TcpStream::connect(relay.listen()).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // An alert, and the end; or a reset.
    drop(stream.read_to_end(&mut Vec::new()));
}

#[test]
fn a_flood_of_what_is_refused_writes_few_lines_and_every_webhook_has_its_own() {
    const EACH: u64 = 500;
    let (mut relay, crm) = relay(&UNBOUNDED);
    let body = listing_delivered("a body");
    let refused = [
        ("unauthorized", Request::unsigned(PATH, &body)),
        ("not_found", Request::unsigned("/elsewhere", &body)),
        ("method_not_allowed", Request::unsigned(PATH, b"").method("GET")),
    ];
    let sender = Sender::new(&relay);
    let mut connection = sender.connect();
    let mut ids = Vec::new();
    for nth in 0..EACH {
        for (_, request) in &refused {
            assert!(connection.send(request).unwrap().status >= 400);
        }
        if nth % 10 == 0 {
            let webhook = Request::signed(&listing_delivered(&nth.to_string()));
            ids.push(connection.send(&webhook).unwrap().accepted());
        }
    }
    (0..50).for_each(|_| no_tls(&relay));
    crm.wait_for(ids.len());
    let log = relay.log();
    relay.terminate();

    let events = events(&log);
    for (answer, _) in refused {
        let of_it = || events.iter().filter(|event| event["answer"] == answer);
        let left_out: u64 = of_it().filter_map(|event| event["requests"].as_u64()).sum();
        let told = of_it().filter(|event| event.get("requests").is_none()).count() as u64;
        assert_eq!(told + left_out, EACH, "{answer}: each is told, or counted");
        assert!(of_it().count() as u64 * 4 < EACH, "{answer}: {} lines", of_it().count());
    }
    for (word, key) in [("accepted", "answer"), ("delivered", "settlement")] {
        let mut told: Vec<_> = events
            .iter()
            .filter(|event| event[key] == word)
            .map(|event| event["webhook_id"].as_str().unwrap().to_owned())
            .collect();
        told.sort();
        assert_eq!(told, ids, "{word}");
    }
    assert!(log.all().iter().all(|line| !line.contains("handshake")), "of scanners not a word");
}

#[test]
fn a_flood_of_refused_connections_is_told_by_its_number() {
    const CONNECTIONS: usize = 60;
    let (mut relay, crm) =
        relay(&["--connections-max", "40", "--connections-per-address-max", "1"]);
    let sender = Sender::new(&relay);
    // Busy: its body does not come yet.
    let mut busy = sender.connect_from(OTHER);
    let request = Request::signed(&listing_delivered("1")).header("Expect", "100-continue");
    busy.write(&request.head()).unwrap();
    assert_eq!(busy.read_head().unwrap().status, 100);
    (0..CONNECTIONS).for_each(|_| drop(sender.connect_behind(OTHER, b"").unwrap_err()));
    busy.write(&request.body).unwrap();
    busy.read_answer().unwrap().accepted();
    crm.wait_for(1);
    let log = relay.log();
    relay.terminate();
    let events = events(&log);
    let of_it = || events.iter().filter(|event| event["reason"] == "address");
    let left_out: u64 = of_it().filter_map(|event| event["times"].as_u64()).sum();
    let told = of_it().filter(|event| event.get("times").is_none()).count();
    assert_eq!(told as u64 + left_out, CONNECTIONS as u64, "each is told, or counted");
    assert!(told * 2 < CONNECTIONS, "{told} lines");
}

#[test]
fn how_many_were_left_out_is_told_also_when_nothing_more_is_refused() {
    let (relay, _crm) = relay(&UNBOUNDED);
    let mut connection = Sender::new(&relay).connect();
    (0..40).for_each(|_| drop(connection.send(&Request::unsigned("/elsewhere", b""))));
    let told = eventually("the others are counted", || {
        let events = events(&relay.log());
        events.into_iter().find(|event| event["requests"].is_u64())
    });
    assert_eq!((&told["answer"], &told["requests"]), (&"not_found".into(), &30.into()));
    assert_eq!(told["level"], "WARN");
}

#[test]
fn the_level_changes_while_it_runs_and_comes_back_by_itself() {
    let (relay, _crm) = relay(&[]);
    let failed = |count: f64| {
        let labels = [("result", "failed")];
        relay.wait_for_metric("relay_tls_handshakes_total", &labels, count);
    };
    // What is written after it is there when it is.
    let heard = |path: &str| {
        Sender::new(&relay).send(&Request::unsigned(path, b"")).problem(404);
        eventually("the log has come so far", || {
            relay.logs().iter().any(|line| line.contains(&format!("\"{path}\"")))
        });
        relay.logs().iter().filter(|line| line.contains("A TLS handshake failed.")).count()
    };
    let changes = || {
        let told = |event: Value| event["log_level"].as_str().map(str::to_owned);
        events(&relay.log()).into_iter().filter_map(told).collect::<Vec<_>>()
    };
    assert_eq!(relay.told(&["log-level"]), "info\n");
    no_tls(&relay);
    failed(1.0);
    assert_eq!(heard("/one"), 0);

    let told = relay.told(&["log-level", "debug"]);
    assert_eq!(told, "debug until the relay ends; it was started with info\n");
    no_tls(&relay);
    failed(2.0);
    assert_eq!(heard("/two"), 1);

    assert_eq!(relay.told(&["log-level", "info"]), "info\n");
    no_tls(&relay);
    failed(3.0);
    assert_eq!(heard("/three"), 1);
    assert_eq!(changes(), ["debug", "info"]);

    let told = relay.told(&["log-level", "warn", "--for", "1s"]);
    assert!(told.starts_with("warn until ") && told.ends_with(", then info\n"), "{told}");
    eventually("it is as before", || relay.told(&["log-level"]) == "info\n");
    assert_eq!(changes(), ["debug", "info", "warn", "info"]);
    assert_eq!(relay.ask(&["log-level", "loud"]).code, Some(2));
    assert_eq!(relay.ask(&["log-level", "debug", "--for", "8d"]).code, Some(1));
}
