//! `health` tells by its exit status how the relay is, and in one line why.

use std::net::TcpListener;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::relay::{BINARY, Ended, command, run};
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay, eventually};

fn table(crm: &Receiver) -> Routes {
    Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"])
}

/// Asks at the address that the environment tells, as in a container.
fn health(admin: &str, flags: &[&str]) -> Ended {
    run(command(BINARY).arg("health").args(flags).env("RELAY_ADMIN", admin))
}

#[track_caller]
fn says(ended: &Ended, code: i32, line: &str) {
    assert_eq!((ended.code, &*ended.stderr), (Some(code), ""), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    assert!(ended.stdout.starts_with(line), "{ended:?}");
}

#[test]
fn a_relay_is_well_by_every_name_of_its_address() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&table(&crm)).start();
    let address = relay.admin();
    for admin in [
        address.to_string(),
        format!("http://{address}"),
        // What `serve` is told in a container.
        format!("0.0.0.0:{}", address.port()),
    ] {
        says(&health(&admin, &[]), 0, "alive");
        says(&health(&admin, &["--ready"]), 0, "ready");
        // The others are told in the same way.
        let listed = run(command(BINARY).args(["targets", "list"]).env("RELAY_ADMIN", &admin));
        assert_eq!(listed.code, Some(0), "{listed:?}");
    }
    let flag = ["--admin", &address.to_string()];
    says(&health("127.0.0.1:1", &flag), 0, "alive");
}

#[test]
fn it_asks_by_a_socket_and_needs_no_token() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&table(&crm))
        .override_flag("--admin", "unix:admin.sock")
        .file("token", "only-the-operators")
        .flags(&["--admin-token-file", "token"])
        .start();
    let admin = format!("unix:{}", relay.path("admin.sock").display());
    says(&health(&admin, &[]), 0, "alive");
    let list = |token: &str| {
        let mut list = command(BINARY);
        list.args(["targets", "list"]).env("RELAY_ADMIN", &admin);
        run(list.env("RELAY_ADMIN_TOKEN_FILE", relay.path(token))).code
    };
    assert_eq!((list("token"), list("routes.yaml")), (Some(0), Some(1)));
}

#[test]
fn a_relay_that_stops_is_alive_and_not_ready() {
    let crm = Receiver::start(|_| Reply::After(Duration::from_secs(60), 200));
    let relay = TestRelay::with(&table(&crm)).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    relay.signal(Signal::TERM);
    let admin = relay.admin().to_string();
    let ended = eventually("it is not ready", || {
        let ended = health(&admin, &["--ready"]);
        if ended.code == Some(0) { Err(ended.stdout) } else { Ok(ended) }
    });
    says(&ended, 1, "not ready: 503: shutting_down\n");
    says(&health(&admin, &[]), 0, "alive");
}

#[test]
fn a_relay_that_is_not_there_or_does_not_answer_is_not_well() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = silent.local_addr().unwrap().to_string();
    says(&health(&admin, &[]), 1, &format!("not alive: http://{admin}/ did not answer within 2 s"));
    drop(silent);
    let ended = health(&admin, &[]);
    says(&ended, 1, &format!("not alive: no relay answers at http://{admin}/"));
    assert!(ended.stdout.contains("refused"), "{ended:?}");
    let nonsense = health("the relay", &[]);
    assert_eq!(nonsense.code, Some(1), "{nonsense:?}");
}
