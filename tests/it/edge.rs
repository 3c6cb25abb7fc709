//! Who is at the other end, and what follows from it.

use crate::support::routes::{PATH, SECRET};
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
