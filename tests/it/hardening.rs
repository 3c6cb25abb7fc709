//! What a relay gives away to strangers and to its host, and how little it needs.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::process::Signal;

use crate::support::relay::folder;
use crate::support::routes::PATH;
use crate::support::tools::{can_go_on, has};
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay};

fn proc_file(relay: &TestRelay, name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{}/{name}", relay.process())).unwrap()
}

/// Lets a process dump a core as large as it likes, where the machine allows it at all.
const DUMPING: [&str; 3] = ["sh", "-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""];

#[test]
fn no_core_is_dumped_of_what_holds_secrets() {
    let place = folder();
    let mut other = Command::new(DUMPING[0]);
    other.args(&DUMPING[1..]).args(["sh", "-c", "kill -QUIT $$"]).current_dir(place.path());
    if !other.status().unwrap().core_dumped() {
        // As in a container that has no cores: then there is nothing to be seen here.
        println!("left out: nothing dumps a core on this machine");
        return;
    }
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).under(&DUMPING).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    relay.signal(Signal::QUIT);
    let status = relay.wait();
    assert_eq!(status.signal(), Some(Signal::QUIT.as_raw()), "{status}");
    assert!(!status.core_dumped(), "{status}");
}

#[test]
fn a_crash_leaves_no_core_with_secrets_in_it() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let limits = proc_file(&relay, "limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let fields: Vec<&str> = line.unwrap().split_ascii_whitespace().collect();
    assert_eq!(fields, ["0", "0", "bytes"]);
}

#[test]
fn no_answer_says_which_version_answers() {
    let crm = Receiver::willing();
    let routes = Routes::bare()
        .source("aryeo", PATH, &["the sender's secret"], &["body_limit: 10kB"])
        .target("crm", &crm.url(), &[])
        .all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let sender = Sender::new(&relay);
    let body = listing_delivered("1");
    let version = env!("CARGO_PKG_VERSION");
    for request in [
        Request::signed(&body),
        Request::signed(&body),
        Request::unsigned(PATH, &body),
        Request::signed(&body).path("/elsewhere"),
        Request::signed(&body).method("GET"),
        Request::signed(&vec![b'x'; 20_000]),
        Request::signed(&body).header("Bad Name", "x"),
        Request::signed(&body).header("X", &"y".repeat(100_000)),
    ] {
        let answer = sender.send(&request);
        assert_eq!(answer.header("server"), None, "{answer:?}");
        assert_eq!(answer.header("x-powered-by"), None, "{answer:?}");
        let headers = format!("{:?}", answer.headers);
        let text = format!("{headers}{}", String::from_utf8_lossy(&answer.body)).to_lowercase();
        for word in [version, "hyper", "rustls", "src/"] {
            assert!(!text.contains(word), "{word}: {answer:?}");
        }
    }
    crm.wait_for(1);
}

#[test]
fn it_needs_no_capability_and_can_gain_none() {
    if !has("setpriv", "--version") {
        return;
    }
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let mut under = vec!["setpriv", "--no-new-privs"];
    if rustix::process::geteuid().is_root() {
        under.extend(["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
    }
    let mut relay = TestRelay::with(&routes).under(&under).start();
    let status = proc_file(&relay, "status");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    relay.restart();
    Sender::new(&relay).post(&listing_delivered("2")).accepted();
    crm.wait_for(2);
}

#[test]
fn it_writes_nowhere_but_into_its_data_directory() {
    // In a view of the file system of its own, in which only that folder can be written.
    const READ_ONLY: &str = "for at in \"$DATA/..\" \"$DATA\"; do mount --bind \"$at\" \"$at\"; done && \
         mount -o remount,bind,ro \"$DATA/..\" && mount -o remount,bind,ro / && exec \"$@\"";
    let mut try_it = Command::new("unshare");
    let try_it = try_it
        .env("DATA", env!("CARGO_TARGET_TMPDIR"))
        .args(["-m", "sh", "-c", READ_ONLY, "sh", "true"]);
    let is_there = try_it.output().is_ok_and(|output| output.status.success());
    if !can_go_on(is_there, "no mounts of its own: only root may, and not in every container") {
        return;
    }
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes);
    let data = builder.path("data");
    std::fs::create_dir(&data).unwrap();
    let under = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh"];
    let builder = builder.under(&under).environment("DATA", data.to_str().unwrap());
    let mut relay = builder.start();
    let written = std::fs::write(relay.path("elsewhere"), "");
    assert!(written.is_ok(), "the tests' own view has changed");
    let inside = format!("/proc/{}/root{}", relay.process(), relay.path("elsewhere").display());
    let refused = std::fs::write(inside, "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    relay.restart();
    Sender::new(&relay).post(&listing_delivered("2")).accepted();
    crm.wait_for(2);
}
