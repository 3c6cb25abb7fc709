//! A webhook whose bytes have to go: personal data.

use std::fs;

use crate::support::routes::SOON;
use crate::support::vectors::activity;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay};

/// Whether any file of the log has these bytes.
fn is_in_log(relay: &TestRelay, text: &str) -> bool {
    let files = fs::read_dir(relay.data().join("segments")).unwrap();
    files
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .any(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[test]
fn an_erased_webhook_is_in_no_file_is_sent_to_nobody_and_stays_away_after_a_kill() {
    let crm = Receiver::willing();
    let down = Receiver::start(|_| Reply::Status(503));
    let routes = Routes::new()
        .target("crm", &crm.url(), &[SOON])
        .target("down", &down.url(), &[SOON])
        .all_to(&["crm", "down"]);
    let mut relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let kept = sender.post(&activity("ORDER_CREATED", "kept-order", "ORDER")).accepted();
    let body = activity("ORDER_CREATED", "somebody-s-address", "ORDER");
    let id = sender.post(&body).accepted();
    crm.wait_for(2);
    assert!(is_in_log(&relay, "somebody-s-address"));
    let told = relay.told(&["webhooks", "erase", &id, "--dry-run"]);
    let expected = format!("{id} would be erased, {} bytes; 1 delivery was pending\n", body.len());
    assert_eq!(told, expected);
    assert!(is_in_log(&relay, "somebody-s-address"));

    assert_eq!(relay.told(&["webhooks", "erase", &id]), expected.replace("would be ", ""));

    assert!(!is_in_log(&relay, "somebody-s-address"));
    assert!(is_in_log(&relay, "kept-order"));
    for command in ["show", "erase"] {
        let nothing = relay.ask(&["webhooks", command, &id]);
        assert_eq!(nothing.code, Some(1), "{nothing:?}");
        assert!(nothing.stderr.contains("is stored"), "{nothing:?}");
    }
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "down")], 1.0);
    relay.kill9();
    fs::remove_file(relay.data().join("index.sqlite")).unwrap();
    relay.start_again();
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "down")], 1.0);
    assert!(relay.told(&["webhooks", "show", &kept]).contains("crm  delivered"));
    let list = relay.told(&["webhooks", "list"]);
    assert!(list.contains(&kept) && !list.contains(&id), "{list}");
}
