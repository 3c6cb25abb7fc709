//! A disk that fails, turns read-only, or whose directory is gone: nothing more is acknowledged, what was
//! is delivered, and it takes webhooks again when the disk does.

use std::fs;

use rustix::process::Signal;

use crate::support::routes::SOON;
use crate::support::tools::has_strace;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay, eventually};

fn table(crm: &Receiver) -> Routes {
    Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"])
}

/// A relay in which these calls fail: `when` is which of each thread.
fn failing(routes: &Routes, calls: &str, error: &str, when: &str) -> TestRelay {
    let builder = TestRelay::with(routes);
    let path = builder.path("trace");
    let (trace, inject) =
        (format!("trace={calls}"), format!("inject={calls}:error={error}:when={when}"));
    let flags = ["strace", "-D", "-f", "-e", &trace, "-e", "signal=none", "-e", &inject, "-o"];
    let flags: Vec<&str> = flags.into_iter().chain(path.to_str()).collect();
    builder.under(&flags).start()
}

/// Has the target take what comes from now on; answers how many it refused.
fn willing(crm: &Receiver) -> usize {
    crm.take_all();
    crm.count()
}

/// Whether all of these came since so many, and nothing else ever.
#[track_caller]
fn came(crm: &Receiver, since: usize, marks: &[String]) {
    eventually("all that was accepted is delivered", || {
        let received = crm.received();
        let came =
            |mark: &String| received[since..].iter().any(|one| one.body == listing_delivered(mark));
        marks.iter().all(came)
    });
    let accepted = |body: &[u8]| marks.iter().any(|mark| body == listing_delivered(mark));
    assert!(crm.received().iter().all(|one| accepted(&one.body)), "refused ones came too");
}

fn logged(relay: &TestRelay, text: &str) {
    eventually("it is logged", || relay.logs().iter().any(|line| line.contains(text)));
}

fn ready(relay: &TestRelay, expected: &str) {
    eventually(&format!("it says {expected:?}"), || {
        let answer = relay.get("/readyz");
        let text = String::from_utf8(answer.body).unwrap();
        if text.trim() == expected { Ok(()) } else { Err(text) }
    });
}

#[test]
fn an_error_of_the_disk_refuses_what_it_met_and_the_next_ones_are_taken() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::start(|_| Reply::Status(500));
    let mut relay = failing(&table(&crm), "fdatasync", "EIO", "3");
    let mut sender = Sender::new(&relay);
    let mut accepted = Vec::new();
    let mut refused = 0;
    for nth in 0..8 {
        let mark = nth.to_string();
        let answer = sender.post(&listing_delivered(&mark));
        if answer.status == 202 {
            accepted.push(mark);
        } else {
            answer.problem(503);
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            refused += 1;
        }
    }
    assert_eq!((accepted.len(), refused), (7, 1));
    ready(&relay, "ok");
    logged(&relay, "Input/output error");
    relay.kill9();
    let since = willing(&crm);
    let _again = TestRelay::with(&table(&crm)).data_in(relay.data()).start();
    came(&crm, since, &accepted);
}

#[test]
fn a_file_system_that_turns_read_only_takes_nothing_more_and_what_was_accepted_is_there() {
    if !has_strace() {
        return;
    }
    let [crm, down] = [500, 500].map(|status| Receiver::start(move |_| Reply::Status(status)));
    let routes = Routes::new()
        .target("crm", &crm.url(), &[SOON])
        .target("down", &down.url(), &[SOON])
        .all_to(&["crm", "down"]);
    let calls = "pwritev,fdatasync,fallocate,ftruncate";
    let mut relay = failing(&routes, calls, "EROFS", "12+");
    let mut sender = Sender::new(&relay);
    let mut accepted = Vec::new();
    let refused = (0..50).find_map(|nth: u32| {
        let answer = sender.post(&listing_delivered(&nth.to_string()));
        if answer.status == 202 {
            accepted.push(nth.to_string());
            return None;
        }
        Some(answer)
    });
    refused.expect("the disk takes no more").problem(503);
    assert!(!accepted.is_empty());
    for nth in 100..103 {
        sender.post(&listing_delivered(&nth.to_string())).problem(503);
    }
    ready(&relay, "store_unavailable");
    logged(&relay, "Read-only file system");
    assert_eq!(relay.get("/livez").status, 200);
    // Those that are there are delivered, though nothing can be written down of it.
    came(&crm, willing(&crm), &accepted);
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait().code(), Some(0), "it stops in order");
    let since = willing(&down);
    let _again = TestRelay::with(&routes).data_in(relay.data()).start();
    came(&down, since, &accepted);
}

#[test]
fn a_directory_that_is_moved_away_takes_nothing_more_until_it_is_back() {
    let crm = Receiver::start(|_| Reply::Status(500));
    let mut relay = TestRelay::with(&table(&crm)).start();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("0")).accepted();
    let (data, aside) = (relay.data().to_owned(), relay.path("aside"));
    fs::rename(&data, &aside).unwrap();
    for mark in ["1", "2"] {
        sender.post(&listing_delivered(mark)).problem(503);
    }
    ready(&relay, "store_unavailable");
    logged(&relay, "was removed, moved or replaced");
    came(&crm, willing(&crm), &["0".to_owned()]);
    fs::rename(&aside, &data).unwrap();
    ready(&relay, "ok");
    crm.set(|_| Reply::Status(500));
    sender.post(&listing_delivered("3")).accepted();
    relay.kill9();
    let since = willing(&crm);
    relay.start_again();
    eventually("what was accepted is there", || {
        crm.received()[since..].iter().any(|one| one.body == listing_delivered("3"))
    });
    let is_refused = |body: &[u8]| ["1", "2"].iter().any(|mark| body == listing_delivered(mark));
    assert!(!crm.received().iter().any(|one| is_refused(&one.body)));
}
