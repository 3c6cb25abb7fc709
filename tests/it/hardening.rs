//! What an attacker does not get from the process itself.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::process::Signal;

use crate::support::relay::folder;
use crate::support::routes::PATH;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay};

/// Lets a process dump a core as large as it likes, where the machine allows it at all.
const DUMPING: [&str; 3] = ["sh", "-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""];

fn relay(crm: &Receiver) -> crate::support::relay::Builder {
    TestRelay::with(&Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]))
}

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
    let mut relay = relay(&crm).under(&DUMPING).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    relay.signal(Signal::QUIT);
    let status = relay.wait();
    assert_eq!(status.signal(), Some(Signal::QUIT.as_raw()), "{status}");
    assert!(!status.core_dumped(), "{status}");
}

#[test]
fn no_answer_to_the_internet_says_what_runs_here() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    let sender = Sender::new(&relay);
    let body = listing_delivered("1");
    for request in [
        Request::signed(&body),
        Request::signed(&body),
        Request::unsigned(PATH, &body),
        Request::unsigned("/elsewhere", &body),
        Request::signed(&body).method("GET"),
        Request::signed(&body).header("X-Long", &"x".repeat(100_000)),
    ] {
        let answer = sender.connect().send(&request).unwrap();
        let text = format!("{answer:?}").to_lowercase();
        for word in ["server\"", "hyper", "rust", env!("CARGO_PKG_VERSION"), "aryeo-relay"] {
            assert!(!text.contains(word), "{word} is in {text}");
        }
        assert_eq!(answer.header("server"), None, "{answer:?}");
    }
}
