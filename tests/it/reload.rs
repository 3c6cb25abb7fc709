//! Files that change while the relay runs: all or nothing, between two requests, and nothing fails.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::support::eventually::pause;
use crate::support::relay::{command, run};
use crate::support::routes::SOON;
use crate::support::sender::Connection;
use crate::support::vectors::listing_delivered;
use crate::support::{
    AUTHORITY, Answer, Receiver, Reply, Request, Routes, Sender, TestRelay, eventually,
};

/// Two readings that agree are so far apart.
const SETTLE_MS: u128 = 250;

pub(crate) fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hashes that are shown as in force.
pub(crate) fn in_force(relay: &TestRelay) -> Vec<String> {
    let metrics = relay.metrics();
    let mut hashes = metrics.labels("relay_routes_info", "sha256");
    hashes.retain(|hash| metrics.value("relay_routes_info", &[("sha256", hash)]) == 1.0);
    hashes
}

#[track_caller]
pub(crate) fn wait_for_table(relay: &TestRelay, text: &str) {
    let expected = [sha256(text)];
    eventually("the table is in force", || {
        let shown = in_force(relay);
        if shown == expected { Ok(()) } else { Err(format!("{shown:?}")) }
    });
}

pub(crate) fn replace(relay: &TestRelay, name: &str, text: &str) {
    let new = relay.path("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, relay.path(name)).unwrap();
}

pub(crate) fn ask(relay: &TestRelay, request: &Request) -> Answer {
    Connection::open(relay.admin(), None).unwrap().send(request).unwrap()
}

pub(crate) fn reload(relay: &TestRelay) -> Answer {
    ask(relay, &Request::unsigned("/api/v1/reload", b"{}"))
}

fn successful(relay: &TestRelay) -> f64 {
    relay.metrics().value("relay_routes_last_reload_successful", &[])
}

/// The events whose message contains this.
fn events(relay: &TestRelay, message: &str) -> Vec<Value> {
    let events = relay.logs().into_iter().filter_map(|line| serde_json::from_str(&line).ok());
    events
        .filter(|event: &Value| event["message"].as_str().is_some_and(|m| m.contains(message)))
        .collect()
}

const REFUSED: &str = "The routes file can't be used";

/// A table whose number its target hears of.
fn numbered(crm: &Receiver, number: usize) -> Routes {
    let header = format!("headers: {{ X-Table: \"{number}\" }}");
    Routes::new().target("crm", &crm.url(), &[SOON, &header]).all_to(&["crm"])
}

fn shell(folder: &Path, script: &str) {
    let ended = run(command("sh").args(["-ec", script]).current_dir(folder));
    assert_eq!(ended.code, Some(0), "{script}: {}", ended.stderr);
}

#[test]
fn however_it_is_saved_it_is_in_force_within_moments() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&numbered(&crm, 0)).start();
    let folder = relay.path("");
    let mut sender = Sender::new(&relay);
    for (index, script) in [
        // vim with a backup.
        "mv routes.yaml routes.yaml~; cat new >routes.yaml; rm routes.yaml~ new",
        // vim without one that it could trust: a copy, then in place.
        "cp -p routes.yaml routes.yaml~; cat new >routes.yaml; rm routes.yaml~",
        "sed -i 's/X-Table: \"[0-9]*\"/X-Table: \"3\"/' routes.yaml",
        "cp new routes.yaml",
        "mv new routes.yaml",
        // The same size and time as before.
        "cp new routes.yaml; touch -d 2001-01-01 routes.yaml",
        "cp new routes.yaml; touch -d 2001-01-01 routes.yaml",
        // Kubernetes: the file is a link into a folder that is a link.
        "mkdir ..1; mv new ..1/routes.yaml; ln -s ..1 ..data; ln -sf ..data/routes.yaml routes.yaml",
        "mkdir ..2; mv new ..2/routes.yaml; ln -s ..2 ..tmp; mv -T ..tmp ..data; rm -r ..1",
        "rm routes.yaml; mv new routes.yaml",
    ]
    .into_iter()
    .enumerate()
    {
        let number = index + 1;
        let text = numbered(&crm, number).yaml();
        fs::write(folder.join("new"), &text).unwrap();
        shell(&folder, script);
        wait_for_table(&relay, &text);
        sender.post(&listing_delivered(&number.to_string())).accepted();
        let received = crm.wait_for(number).remove(index);
        assert_eq!(received.header("x-table"), Some(&*number.to_string()), "{script}");
    }
    assert_eq!(successful(&relay), 1.0);
    // Old tables are shown, but not for ever.
    assert_eq!(relay.metrics().labels("relay_routes_info", "sha256").len(), 8);
}

#[test]
fn half_a_file_is_never_in_force() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&numbered(&crm, 0)).start();
    let half = numbered(&crm, 1).yaml();
    let whole = format!("{half}  - {{ name: last, to: [crm] }}\n");
    let mut tries = 0;
    loop {
        tries += 1;
        // Each try is a table of its own.
        let [half, whole] = [&half, &whole].map(|text| format!("# {tries}\n{text}"));
        let began = Instant::now();
        fs::write(relay.path("routes.yaml"), &half).unwrap();
        pause(Duration::from_millis(120));
        fs::write(relay.path("routes.yaml"), &whole).unwrap();
        let took = began.elapsed().as_millis();
        wait_for_table(&relay, &whole);
        if took < SETTLE_MS {
            let seen = relay.metrics().labels("relay_routes_info", "sha256");
            assert!(!seen.contains(&sha256(&half)), "after {took} ms, try {tries}");
            return;
        }
        // This machine is too slow to be quick: it was at rest for long enough.
        assert!(tries < 100);
    }
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_once() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&numbered(&crm, 1)).start();
    let good = numbered(&crm, 1).yaml();
    let since = relay.metrics().value("relay_routes_last_reload_success_timestamp_seconds", &[]);
    let bad = good.replace("to: [crm]", "to: [crmm, bill]");
    for _ in 0..2 {
        replace(&relay, "routes.yaml", &bad);
        relay.wait_for_metric("relay_routes_last_reload_successful", &[], 0.0);
    }
    assert_eq!(relay.get("/readyz").status, 200);
    assert_eq!(in_force(&relay), [sha256(&good)]);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    assert_eq!(crm.wait_for(1)[0].header("x-table"), Some("1"));

    // Another bad one is another diagnosis.
    replace(&relay, "routes.yaml", "sources: [");
    let told = eventually("both are told", || {
        let told = events(&relay, REFUSED);
        if told.len() >= 2 { Ok(told) } else { Err(format!("{told:?}")) }
    });
    assert_eq!(told.len(), 2, "{told:#?}");
    let line = 1 + bad.lines().position(|line| line.contains("crmm")).unwrap();
    let problems = told[0]["problems"].as_str().unwrap();
    assert!(problems.contains(&format!("routes.yaml:{line}:")), "{problems}");
    assert!(problems.contains("crmm") && problems.contains("bill"), "all of it: {problems}");
    assert_eq!(told[0]["level"], "WARN");

    fs::remove_file(relay.path("routes.yaml")).unwrap();
    eventually("that it is gone is told", || events(&relay, REFUSED).len() == 3);
    replace(&relay, "routes.yaml", &good);
    relay.wait_for_metric("relay_routes_last_reload_successful", &[], 1.0);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("relay_routes_last_reload_success_timestamp_seconds", &[]), since);
    assert_eq!(metrics.labels("relay_routes_info", "sha256"), [sha256(&good)]);
    assert!(events(&relay, "A new routing table").is_empty(), "it was in force all the time");
}

#[test]
fn the_api_reloads_and_answers_with_what_came_of_it() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&numbered(&crm, 1)).start();
    let answer = reload(&relay);
    assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("unchanged")));
    let text = numbered(&crm, 2).yaml();
    replace(&relay, "routes.yaml", &text);
    let answer = reload(&relay);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(in_force(&relay), [sha256(&text)]);
    let json = answer.json();
    assert_eq!(json["sha256"], sha256(&text));
    // The file's own change may have been quicker.
    if json["status"] == "changed" {
        assert_eq!(json["targets"]["changed"], serde_json::json!(["crm"]));
    }
    let bad = text.replace("[crm]", "[nobody]");
    replace(&relay, "routes.yaml", &bad);
    for _ in 0..2 {
        let answer = reload(&relay);
        answer.problem(422);
        let json = answer.json();
        assert_eq!(json["sha256"], sha256(&text), "still that one: {json}");
        let problems = json["problems"].as_array().unwrap();
        let errors: Vec<_> = problems.iter().filter(|one| one["severity"] == "error").collect();
        let [problem] = errors.as_slice() else { panic!("{json}") };
        let line = 1 + bad.lines().position(|line| line.contains("nobody")).unwrap();
        assert_eq!(problem["line"], line, "{json}");
        assert!(problem["message"].as_str().unwrap().contains("nobody"), "{json}");
    }
    let request = Request::unsigned("/api/v1/reload", b"");
    assert_eq!(ask(&relay, &request.clone().method("GET")).status, 405);
    let strange = request.clone().without("Host").header("Host", "relay.example.com");
    ask(&relay, &strange).problem(403);
    ask(&relay, &request.clone().header("Origin", "http://localhost")).problem(403);
    ask(&relay, &request.without("Content-Type")).problem(415);
    assert_eq!(in_force(&relay), [sha256(&text)]);
}

#[test]
fn off_loopback_there_is_no_api() {
    let crm = Receiver::willing();
    let builder = TestRelay::with(&numbered(&crm, 1)).override_flag("--admin", "0.0.0.0:0");
    let relay = builder.start();
    let answer = reload(&relay);
    answer.problem(403);
    assert!(answer.json()["detail"].as_str().unwrap().contains("loopback"), "{answer:?}");
    assert_eq!(relay.get("/metrics").status, 200);
}

#[test]
fn sighup_reloads_and_ends_nothing() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&numbered(&crm, 1)).start();
    relay.signal(Signal::HUP);
    eventually("it says that nothing is new", || events(&relay, "as it is in force").len() == 1);
    let text = numbered(&crm, 2).yaml();
    replace(&relay, "routes.yaml", &text);
    relay.signal(Signal::HUP);
    wait_for_table(&relay, &text);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    assert_eq!(crm.wait_for(1)[0].header("x-table"), Some("2"));
}

#[test]
fn secrets_are_rotated_in_their_files_and_the_last_good_one_stays() {
    let crm = Receiver::willing();
    let yaml = |n| {
        let text = numbered(&crm, n).yaml();
        text.replace("{ env: ARYEO_WEBHOOK_SECRET_0 }", "{ file: in.txt }")
            .replace("{ env: CRM_SECRET }", "{ file: out.txt }")
    };
    let builder = TestRelay::with_file(&yaml(1)).file("in.txt", "one\n").file("out.txt", "old\n");
    let relay = builder.start();
    let status = |secret: &str, body: &str| {
        Sender::new(&relay).secret(secret).post(&listing_delivered(body)).status
    };
    assert_eq!((status("one", "1"), status("two", "2")), (202, 401));
    replace(&relay, "in.txt", "two\n");
    eventually("the new secret is accepted", || status("two", "3") == 202);
    assert_eq!(status("one", "4"), 401);

    // A target's secret is another from the next attempt on.
    let signed = |secret: &str| {
        let received = crm.received();
        let last = received.last().unwrap();
        last.lines("signature") == [crate::support::sign(secret, &last.body)]
    };
    crm.wait_for(2);
    assert!(signed("old"));
    fs::write(relay.path("out.txt"), "new").unwrap();
    eventually("it is signed by the new one", || {
        let count = crm.count();
        assert_eq!(status("two", &format!("out {count}")), 202);
        crm.wait_for(count + 1);
        signed("new")
    });

    fs::write(relay.path("in.txt"), "").unwrap();
    relay.wait_for_metric("relay_routes_last_reload_successful", &[], 0.0);
    // The page may say it before the line of the log is read.
    eventually("it is told", || !events(&relay, REFUSED).is_empty());
    let told = events(&relay, REFUSED);
    assert!(told[0]["problems"].as_str().unwrap().contains("in.txt is empty"), "{told:?}");
    assert_eq!(status("two", "5"), 202, "the last good one stays");
    // All or nothing: a good table waits until its secrets are there.
    replace(&relay, "routes.yaml", &yaml(2));
    eventually("it is refused", || events(&relay, REFUSED).len() == 2);
    assert_eq!(in_force(&relay), [sha256(&yaml(1))]);
    for strange in ["rm in.txt; mkfifo in.txt", "rm in.txt; truncate -s 10M in.txt"] {
        shell(&relay.path(""), strange);
        reload(&relay).problem(422);
        assert_eq!(status("two", strange), 202);
    }
    replace(&relay, "in.txt", "three");
    wait_for_table(&relay, &yaml(2));
    assert_eq!((status("three", "6"), status("two", "7")), (202, 401));
    assert!(relay.logs().iter().all(|line| !line.contains("three")));
}

#[test]
fn the_certificate_is_renewed_and_open_connections_go_on() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&numbered(&crm, 1)).start();
    let sender = Sender::new(&relay);
    let served = || {
        let connection = sender.connect();
        connection.tls().unwrap().peer_certificates().unwrap()[0].to_vec()
    };
    let mut open = sender.connect();
    let before = served();
    let new = AUTHORITY.server_until(2080);
    replace(&relay, "certs/tls.crt", &new.certificate);
    eventually("that they do not belong together is told", || {
        events(&relay, "can't be renewed").len() == 1
    });
    assert_eq!(served(), before);
    let answer = reload(&relay);
    answer.problem(422);
    let json = answer.json();
    assert!(json["problems"][0]["message"].as_str().unwrap().contains("does not belong"), "{json}");
    assert_eq!(relay.get("/readyz").status, 200);

    replace(&relay, "certs/tls.key", &new.key);
    eventually("the new one is served", || served() != before);
    open.send(&sender.request(&listing_delivered("1"))).unwrap().accepted();
    Sender::new(&relay).post(&listing_delivered("2")).accepted();
    let ends = || {
        let metrics = relay.metrics();
        assert_eq!(
            metrics.labels("relay_certificate_expiry_timestamp_seconds", "certificate").len(),
            1
        );
        metrics.value("relay_certificate_expiry_timestamp_seconds", &[])
    };
    assert_eq!(ends(), 3_471_292_800.0, "2080-01-01");
    let expired = AUTHORITY.expired();
    replace(&relay, "certs/tls.crt", &expired.certificate);
    replace(&relay, "certs/tls.key", &expired.key);
    reload(&relay).problem(422);
    assert_eq!(ends(), 3_471_292_800.0);
    Sender::new(&relay).post(&listing_delivered("3")).accepted();
}

#[test]
fn a_removed_target_strands_its_deliveries_with_a_warning_and_gets_them_when_it_is_back() {
    let (crm, mail) = (Receiver::start(|_| Reply::Status(500)), Receiver::willing());
    let both = Routes::new()
        .target("crm", &crm.url(), &[SOON])
        .target("mail", &mail.url(), &[])
        .all_to(&["crm", "mail"]);
    let mail_only = Routes::new().target("mail", &mail.url(), &[]).all_to(&["mail"]);
    let relay = TestRelay::with(&both).start();
    let mut sender = Sender::new(&relay);
    let mut ids: Vec<_> =
        (0..7).map(|n| sender.post(&listing_delivered(&n.to_string())).accepted()).collect();
    crm.wait_for(7);
    replace(&relay, "routes.yaml", &mail_only.yaml());
    wait_for_table(&relay, &mail_only.yaml());
    let told = eventually("it is told how many wait", || {
        events(&relay, "has no such target").first().cloned()
    });
    assert_eq!((&told["target_name"], &told["pending"]), (&"crm".into(), &7.into()), "{told}");
    assert_eq!(told["level"], "WARN");
    relay.wait_for_metric("relay_attempts_in_flight", &[("target", "crm")], 0.0);
    crm.set(|_| Reply::Status(200));
    let count = crm.count();
    sender.post(&listing_delivered("8")).accepted();
    mail.wait_for(8);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 7.0);
    assert_eq!(crm.count(), count, "nobody is asked who is not in the table");
    let shown = relay.told(&["webhooks", "show", &ids[0]]);
    assert!(shown.contains("held up: its target is not in the routing table"), "{shown}");

    replace(&relay, "routes.yaml", &both.yaml());
    let received = crm.wait_for(count + 7).split_off(count);
    let mut got: Vec<_> = received.iter().map(|r| r.webhook_id().to_owned()).collect();
    ids.sort();
    got.sort();
    assert_eq!(got, ids);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
}

#[test]
fn a_reload_leaves_other_lanes_alone_and_shows_what_is_new_at_once() {
    let (crm, mail) = (Receiver::willing(), Receiver::willing());
    let table = |lines: &[&str]| {
        Routes::new()
            .target("crm", &crm.url(), &[])
            .target("mail", &mail.url(), lines)
            .all_to(&["crm", "mail"])
    };
    let relay = TestRelay::with(&table(&[])).environment("OTHER_WEBHOOK_SECRET_0", "s").start();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    mail.wait_for(1);
    let more = table(&["timeout: 3s", "headers: { X-New: new }"])
        .target("third", &mail.url(), &[])
        .source("other", "/other", &["s"], &[])
        .yaml()
        .replace("{ env: THIRD_SECRET }", "{ value: v }");
    replace(&relay, "routes.yaml", &more);
    wait_for_table(&relay, &more);
    let metrics = relay.metrics();
    for (name, labels) in [
        ("relay_deliveries_pending", [("target", "third")]),
        ("relay_attempts_total", [("target", "third")]),
        ("relay_webhooks_received_total", [("source", "other")]),
    ] {
        assert_eq!(metrics.get(name, &labels), Some(0.0), "{name}");
    }
    sender.post(&listing_delivered("2")).accepted();
    crm.wait_for(2);
    assert_eq!(mail.wait_for(2)[1].header("x-new"), Some("new"));
    assert_eq!(crm.connections(), 1, "its connection is kept");

    // What is gone raises no alert.
    replace(&relay, "routes.yaml", &table(&[]).yaml());
    wait_for_table(&relay, &table(&[]).yaml());
    let silence = relay.metrics().value("relay_silence_after_seconds", &[("source", "other")]);
    assert_eq!(silence, f64::INFINITY);
}
