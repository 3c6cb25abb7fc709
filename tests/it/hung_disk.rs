//! A disk that hangs: no error comes, nothing comes. The probes say so, and nothing is lost.
//!
//! The relay runs under `strace`, which delays one sync of each thread.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::routes::SOON;
use crate::support::tools::has_strace;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay, eventually};

/// Longer than any sender waits, so that what is refused meanwhile can be told from what is slow.
const DELAY: &str = "delay_enter=8000000";

fn under_strace(crm: &Receiver, call: &str, which: u32) -> TestRelay {
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes);
    let path = builder.path("trace");
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{DELAY}:when={which}"));
    let flags = ["strace", "-D", "-f", "-e", &trace, "-e", "signal=none", "-e", &inject, "-o"];
    let flags: Vec<&str> = flags.into_iter().chain(path.to_str()).collect();
    builder.under(&flags).start_unready()
}

fn reasons(relay: &TestRelay) -> String {
    let answer = relay.get("/readyz");
    assert_eq!(answer.status == 200, answer.body == b"ok\n", "{answer:?}");
    String::from_utf8(answer.body).unwrap()
}

#[test]
fn a_commit_that_the_disk_holds_up_makes_it_unready_until_the_disk_goes_on() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::willing();
    // The first sync of the thread that commits is good, the second hangs.
    let relay = under_strace(&crm, "fdatasync", 2);
    relay.wait_until_ready();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("1")).accepted();
    sender.post(&listing_delivered("2")).problem(503);
    eventually("it is not ready", || match reasons(&relay) {
        text if text == "store_unavailable\n" => Ok(()),
        text => Err(text),
    });
    assert_eq!(relay.get("/livez").status, 200, "it has not been for long");
    assert_eq!(relay.get("/metrics").status, 200);
    relay.wait_until_ready();
    // What was refused may come all the same; what was accepted must.
    sender.post(&listing_delivered("3")).accepted();
    eventually("what was accepted is delivered", || {
        let received = crm.received();
        let came = |mark| received.iter().any(|one| one.body == listing_delivered(mark));
        came("1") && came("3")
    });
    let said = eventually("both ends of it are in the log", || {
        let lines = relay.logs();
        let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let about_disk = events.filter(|event| {
            event["message"].as_str().is_some_and(|text| text.starts_with("The disk "))
        });
        let levels: Vec<Value> = about_disk.map(|event| event["level"].clone()).collect();
        if levels.len() >= 2 { Ok(levels) } else { Err(format!("{levels:?}")) }
    });
    assert_eq!(said, ["ERROR", "WARN"]);
}

#[test]
fn asked_to_stop_while_it_starts_it_ends_with_0() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::willing();
    for signal in [Signal::TERM, Signal::INT] {
        let mut relay = under_strace(&crm, "fsync", 1);
        let logs = relay.log();
        // Not the end of it, before it is ready as little as later: its status would be another.
        relay.signal(Signal::HUP);
        assert_eq!(reasons(&relay), "starting\n");
        relay.signal(signal);
        assert_eq!(relay.wait().code(), Some(0), "{}", logs.all().join("\n"));
    }
}

#[test]
fn asked_to_reload_while_it_starts_it_reloads_when_it_has_started() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::willing();
    let relay = under_strace(&crm, "fsync", 1);
    assert_eq!(reasons(&relay), "starting\n");
    relay.signal(Signal::HUP);
    relay.wait_until_ready();
    let asked = |line: &String| line.contains("Asked to reload.") && line.contains("SIGHUP");
    eventually("it says so", || relay.logs().iter().any(asked));
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn until_its_store_is_open_it_is_alive_and_starting() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::willing();
    let relay = under_strace(&crm, "fsync", 1);
    assert_eq!(reasons(&relay), "starting\n");
    assert_eq!(relay.get("/livez").status, 200);
    assert_eq!(relay.get("/metrics").status, 200);
    relay.wait_until_ready();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}
