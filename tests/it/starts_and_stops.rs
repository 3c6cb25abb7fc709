//! What keeps it from starting, and the order in which it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::delivers::walk;
use crate::support::relay::{BINARY, command, folder, run};
use crate::support::routes::{PATH, SOON};
use crate::support::sender::Connection;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Reply, Request, Routes, Sender, TestRelay, eventually};

fn table(crm: &Receiver) -> Routes {
    Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"])
}

#[test]
fn the_first_line_of_the_log_says_what_runs_where() {
    let crm = Receiver::willing();
    let mut relay = TestRelay::with(&table(&crm)).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    for _ in 0..2 {
        says_what_runs_where(&relay);
        // The same when there is something to repair.
        relay.kill9();
        relay.start_again();
    }
    says_what_runs_where(&relay);
}

fn says_what_runs_where(relay: &TestRelay) {
    let first: serde_json::Value = serde_json::from_str(&relay.logs()[0]).unwrap();
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(first["listen"], relay.listen().to_string());
    assert_eq!(first["admin"], relay.admin().to_string());
    let data = fs::canonicalize(first["data"].as_str().unwrap()).unwrap();
    assert_eq!(data, fs::canonicalize(relay.data()).unwrap());
    let hash = first["routes_sha256"].as_str().unwrap();
    assert!(hash.len() >= 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
    let info = relay.metrics().labels("relay_routes_info", "sha256");
    assert_eq!(info, [hash]);
}

#[test]
fn its_data_belongs_to_it_alone() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&table(&crm)).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(relay.data()), 0o700);
    for file in walk(relay.data()) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn asked_to_stop_it_is_not_ready_finishes_attempts_while_still_accepting_and_ends_with_0() {
    let crm = Receiver::start(|_| Reply::After(Duration::from_secs(2), 200));
    let mut relay = TestRelay::with(&table(&crm)).start();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("in flight")).accepted();
    crm.wait_for(1);
    let mut idle = sender.connect();
    relay.signal(Signal::TERM);
    eventually("it is not ready any more", || {
        let answer = relay.get("/readyz");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        (answer.status == 503 && text.contains("shutting_down")).then_some(()).ok_or(text)
    });
    assert_eq!(relay.get("/livez").status, 200);
    // Senders that have not heard of it yet are still served, on new connections and old ones.
    let late = Sender::new(&relay).post(&listing_delivered("late")).accepted();
    let request = sender.request(&listing_delivered("on an old connection"));
    let old = idle.send(&request).unwrap().accepted();
    assert_eq!(relay.has_ended(), None, "the attempt is not over");
    assert_eq!(relay.wait().code(), Some(0));
    assert_eq!(crm.count(), 1, "no new attempt begins while it stops");

    crm.set(|_| Reply::Status(200));
    relay.start_again();
    let received = crm.wait_for(3);
    let mut ids: Vec<&str> = received[1..].iter().map(|r| r.webhook_id()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [late.as_str(), old.as_str()], "the attempt that was finished counts");
    assert!(received[1..].iter().all(|received| received.attempt() == 1));
}

#[test]
fn requests_that_are_being_read_when_it_stops_are_finished() {
    let crm = Receiver::willing();
    let mut relay = TestRelay::with(&table(&crm)).start();
    let sender = Sender::new(&relay);
    let request = sender.request(&listing_delivered("slow"));
    let mut connection = sender.connect();
    connection.write(&request.head()).unwrap();
    connection.write(&request.body[..5]).unwrap();
    // Its head has been read once a request after it has been answered.
    Sender::new(&relay).post(&listing_delivered("another")).accepted();
    relay.signal(Signal::TERM);
    eventually("the listener is closed", || Connection::open(relay.listen(), None).is_err());
    connection.write(&request.body[5..]).unwrap();
    connection.read_answer().unwrap().accepted();
    assert_eq!(relay.wait().code(), Some(0));
    relay.start_again();
    assert_eq!(crm.wait_for(2).len(), 2);
}

#[test]
fn a_body_that_does_not_come_keeps_it_from_stopping_no_longer_than_a_sender_waits() {
    let crm = Receiver::willing();
    // Far longer than a test waits.
    let mut relay = TestRelay::with(&table(&crm)).flags(&["--shutdown-timeout", "10m"]).start();
    let request = Request::unsigned(PATH, b"never whole");
    let mut stranger = Sender::new(&relay).connect();
    stranger.write(&request.head()).unwrap();
    stranger.write(&request.body[..1]).unwrap();
    // Its head has been read once a request after it has been answered.
    Sender::new(&relay).post(&listing_delivered("another")).accepted();
    relay.signal(Signal::TERM);
    let told = stranger.read_answer().unwrap();
    told.problem(503);
    assert_eq!(told.json()["type"], "urn:aryeo-relay:shutting_down");
    assert_eq!(relay.wait().code(), Some(0));
}

#[test]
fn an_idle_relay_stops_at_once_also_with_idle_connections() {
    let crm = Receiver::willing();
    let mut relay = TestRelay::with(&table(&crm)).start();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let idle = sender.connect();
    let began = Instant::now();
    relay.terminate();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(idle);
}

#[test]
fn what_does_not_finish_in_time_is_left_for_the_next_start() {
    let crm = Receiver::start(|_| Reply::Hang);
    let routes = Routes::new().target("crm", &crm.url(), &["timeout: 60s", SOON]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).flags(&["--shutdown-timeout", "1s"]).start();
    let id = Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    let began = Instant::now();
    relay.signal(Signal::TERM);
    relay.wait();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    crm.set(|_| Reply::Status(200));
    relay.start_again();
    assert_eq!(crm.wait_for(2)[1].webhook_id(), id);
}

#[test]
fn attempts_that_hang_do_not_keep_it_from_stopping_in_order() {
    let crm = Receiver::start(|_| Reply::Hang);
    // One attempt hangs, the others wait for their turn.
    let lines = ["timeout: 60s", "concurrency: 1", SOON];
    let routes = Routes::new().target("crm", &crm.url(), &lines).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).flags(&["--shutdown-timeout", "4s"]).start();
    let logs = relay.log();
    let sender = Sender::new(&relay);
    let id = Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    let halves = ["finished", "never finished"].map(|mark| {
        let request = sender.request(&listing_delivered(mark));
        let mut connection = sender.connect();
        connection.write(&request.head()).unwrap();
        connection.write(&request.body[..5]).unwrap();
        (connection, request.body)
    });
    // Their heads have been read once a request after them has been answered.
    let late = Sender::new(&relay).post(&listing_delivered("2")).accepted();
    relay.signal(Signal::TERM);
    eventually("it is stopping", || relay.get("/readyz").status == 503);
    let later = Sender::new(&relay).post(&listing_delivered("3")).accepted();
    eventually("the listener is closed", || Connection::open(relay.listen(), None).is_err());
    assert_eq!(relay.has_ended(), None, "requests that were begun are finished first");
    let [(mut finished, body), (mut unfinished, _)] = halves;
    finished.write(&body[5..]).unwrap();
    let finished = finished.read_answer().unwrap().accepted();
    let refused = unfinished.read_answer().unwrap();
    refused.problem(503);
    assert_eq!(refused.json()["type"], "urn:aryeo-relay:shutting_down");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(relay.wait().code(), Some(0));
    assert!(logs.all().iter().all(|line| !line.contains("the store is closed")));

    crm.set(|_| Reply::Status(200));
    relay.start_again();
    let received = crm.wait_for(5);
    let mut ids: Vec<&str> = received[1..].iter().map(|r| r.webhook_id()).collect();
    ids.sort_unstable();
    let mut expected = [&*id, &*late, &*later, &*finished];
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[test]
fn a_second_signal_stops_at_once() {
    let crm = Receiver::start(|_| Reply::Hang);
    let routes = Routes::new().target("crm", &crm.url(), &["timeout: 60s", SOON]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).flags(&["--shutdown-timeout", "60s"]).start();
    let id = Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    relay.signal(Signal::TERM);
    eventually("it is stopping", || relay.get("/readyz").status == 503);
    let began = Instant::now();
    relay.signal(Signal::INT);
    relay.wait();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    crm.set(|_| Reply::Status(200));
    relay.start_again();
    assert_eq!(crm.wait_for(2)[1].webhook_id(), id);
}

#[test]
fn a_second_process_on_the_same_data_is_refused_and_the_first_does_not_notice() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&table(&crm)).start();
    let refused = relay.second();
    let data = relay.data().display().to_string();
    assert!(refused.stderr.contains(&data), "{}", refused.stderr);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_bad_table_is_refused_with_the_text_of_check() {
    let crm = Receiver::willing();
    let yaml = table(&crm).yaml().replace("url:", "adress:");
    let line = 1 + yaml.lines().position(|line| line.contains("adress:")).unwrap();
    let column = 1 + yaml.lines().nth(line - 1).unwrap().find("adress").unwrap();
    let builder = TestRelay::with_file(&yaml)
        .environment("ARYEO_WEBHOOK_SECRET_0", "s")
        .environment("CRM_SECRET", "s");
    let refused = builder.refused();
    let place = format!("routes.yaml:{line}:{column}: error: ");
    assert!(refused.stderr.contains(&place), "no {place:?} in:\n{}", refused.stderr);
    let check = run(command(BINARY)
        .arg("check")
        .arg(builder.path("routes.yaml"))
        .env("ARYEO_WEBHOOK_SECRET_0", "s")
        .env("CRM_SECRET", "s"));
    assert_eq!(check.code, Some(1));
    let problem = check.stdout.lines().find(|line| line.contains(&place));
    let problem = problem.unwrap_or_else(|| panic!("no {place:?} in {check:?}"));
    assert!(refused.stderr.contains(problem), "{}", refused.stderr);
    let quoted = check.stdout.lines().skip_while(|line| *line != problem).nth(1);
    let quoted = quoted.unwrap_or_else(|| panic!("{check:?}"));
    assert!(quoted.contains("| ") && refused.stderr.contains(quoted), "{}", refused.stderr);
    assert!(!builder.path("data").join("index").exists());
}

#[test]
fn a_missing_or_empty_secret_is_refused() {
    let crm = Receiver::willing();
    let builder = TestRelay::with_file(&table(&crm).yaml()).environment("CRM_SECRET", "s");
    let refused = builder.refused();
    assert!(refused.stderr.contains("ARYEO_WEBHOOK_SECRET_0"), "{}", refused.stderr);
    let refused = builder.environment("ARYEO_WEBHOOK_SECRET_0", "").refused();
    assert!(refused.stderr.contains("ARYEO_WEBHOOK_SECRET_0"), "{}", refused.stderr);
    assert!(refused.stderr.contains("empty"), "{}", refused.stderr);
}

#[test]
fn a_missing_table_is_refused() {
    let builder = TestRelay::with_file("");
    fs::remove_file(builder.path("routes.yaml")).unwrap();
    assert!(builder.refused().stderr.contains("routes.yaml"));
}

#[test]
fn data_in_memory_is_refused_unless_it_is_asked_for() {
    let crm = Receiver::willing();
    let volatile = tempfile::Builder::new().prefix("relay-").tempdir_in("/dev/shm").unwrap();
    let data = volatile.path().join("data");
    let refused = TestRelay::with(&table(&crm)).data_in(&data).refused();
    assert!(refused.stderr.contains("--allow-volatile-data"), "{}", refused.stderr);
    assert!(!data.exists(), "what is refused is not made");
    let relay =
        TestRelay::with(&table(&crm)).data_in(&data).flags(&["--allow-volatile-data"]).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_directory_that_is_not_its_own_is_refused_and_left_as_it_is() {
    let crm = Receiver::willing();
    let folder = folder();
    let data = folder.path().join("shared");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(data.join("somebody.else"), "").unwrap();
    let refused = TestRelay::with(&table(&crm)).data_in(&data).refused();
    let first = refused.stderr.lines().find(|line| line.contains("error:")).unwrap();
    for word in [&*data.display().to_string(), "somebody.else", "--data"] {
        assert!(first.contains(word), "no {word} in {first}");
    }
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
}

#[test]
fn an_address_that_can_not_be_had_is_refused_with_its_name_and_why() {
    let crm = Receiver::willing();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Set aside for documents (RFC 5737): no machine has it.
    let addresses = [(address.as_str(), "another process"), ("192.0.2.1:8443", "no interface")];
    for (flag, (address, why)) in
        ["--listen", "--admin"].into_iter().flat_map(|flag| addresses.map(|case| (flag, case)))
    {
        let refused = TestRelay::with(&table(&crm)).override_flag(flag, address).refused();
        assert!(
            refused.stderr.contains(&format!("{flag} {address} can't be bound")),
            "{refused:?}"
        );
        assert!(refused.stderr.contains(why), "{flag} {address}: {refused:?}");
    }
}

#[test]
fn a_thousand_waiting_webhooks_do_not_delay_the_start() {
    let mut crm = Receiver::willing();
    crm.stop();
    let mut relay = TestRelay::with(&table(&crm)).start();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let mut sender = Sender::new(&relay);
            scope.spawn(move || {
                for count in 0..125 {
                    sender.post(&listing_delivered(&format!("{number}-{count}"))).accepted();
                }
            });
        }
    });
    relay.kill9();
    let began = Instant::now();
    relay.start_again();
    Sender::new(&relay).post(&listing_delivered("first")).accepted();
    // A second is promised for a release build; this one is not optimised.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    crm.start_again();
    assert_eq!(crm.wait_for(1001).len(), 1001);
}

#[test]
fn the_environment_has_settings_of_lower_rank_than_flags_and_much_else() {
    let crm = Receiver::willing();
    let builder = TestRelay::with(&table(&crm))
        .environment("RELAY_PLAIN_HTTP", "true")
        .environment("RELAY_CONNECTIONS_MAX", "3")
        // On the command line this is another one.
        .environment("RELAY_LISTEN", "192.0.2.1:1")
        // What Kubernetes puts there for a service called `relay`.
        .environment("RELAY_PORT", "tcp://192.0.2.1:8443")
        .environment("RELAY_SERVICE_HOST", "192.0.2.1");
    let relay = builder.start();
    let first: serde_json::Value = serde_json::from_str(&relay.logs()[0]).unwrap();
    assert_eq!(first["tls"], false);
    let mut connections: Vec<Connection> =
        (0..4).map(|_| Connection::open(relay.listen(), None).unwrap()).collect();
    let request = Request::signed(&listing_delivered("1"));
    // The oldest gives way, so that the newest is served.
    connections[3].send(&request).unwrap().accepted();
    relay.wait_for_metric("relay_connections", &[], 3.0);
    let wrong = TestRelay::with(&table(&crm)).environment("RELAY_RETAIN", "soon");
    let ended = wrong.run();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("--retain"), "{ended:?}");
}

#[test]
fn a_hangup_is_logged_and_changes_nothing() {
    let crm = Receiver::willing();
    let mut relay = TestRelay::with(&table(&crm)).start();
    relay.signal(Signal::HUP);
    eventually("it says so", || relay.logs().iter().any(|line| line.contains("SIGHUP")));
    assert_eq!(relay.has_ended(), None);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}
