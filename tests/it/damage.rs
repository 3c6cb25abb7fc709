//! A record that decayed on the disk: the log says which webhook to fetch again by hand.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::relay::{BINARY, command, run};
use crate::support::routes::SOON;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay, eventually};

const MARK: &[u8] = b"decays-on-the-disk";

fn segments(relay: &TestRelay) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(relay.data().join("segments")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Flips a bit in the body that has the mark; where that is in the file.
fn flip_a_bit(relay: &TestRelay) -> u64 {
    for path in segments(relay) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(MARK.len()).position(|window| window == MARK) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return at as u64;
        }
    }
    panic!("no segment has the body");
}

/// A relay that has three webhooks to deliver to nobody yet; the second one's id.
fn loaded(target: &Receiver) -> (TestRelay, String) {
    let routes = Routes::new().target("crm", &target.url(), &[SOON]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("1")).accepted();
    let id = sender.post(&listing_delivered(std::str::from_utf8(MARK).unwrap())).accepted();
    sender.post(&listing_delivered("3")).accepted();
    (relay, id)
}

fn wait_until_both_others_are_delivered(relay: &TestRelay) {
    relay.wait_for_metric("relay_store_damaged_records_total", &[], 1.0);
    let delivered = [("target", "crm"), ("settlement", "delivered")];
    relay.wait_for_metric("relay_deliveries_settled_total", &delivered, 2.0);
}

fn remove_index(relay: &TestRelay) {
    for entry in std::fs::read_dir(relay.data()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with("index") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// The one line of the log that says that this webhook's record is damaged.
fn the_line_about(relay: &TestRelay, id: &str) -> Value {
    let is_wanted = |line: &Value| {
        line["webhook_id"] == id
            && line["message"].as_str().unwrap().starts_with("a record is damaged")
    };
    let lines = eventually("the record is named in the log", || {
        let lines = relay.logs();
        let lines = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines: Vec<_> = lines.filter(is_wanted).collect();
        if lines.is_empty() { Err("it is not".to_owned()) } else { Ok(lines) }
    });
    let [line] = lines.as_slice() else { panic!("{lines:#?}") };
    assert_eq!((&line["level"], &line["activity"]), (&"ERROR".into(), &"LISTING_DELIVERED".into()));
    assert!(line["received_at"].as_str().unwrap().starts_with("20"), "{line}");
    assert_eq!(line["segment"], 1);
    line.clone()
}

#[test]
fn a_damaged_record_is_named_once_in_the_log_and_everything_else_is_delivered() {
    let target = Receiver::unwilling();
    let (mut relay, id) = loaded(&target);
    relay.kill9();
    let at = flip_a_bit(&relay);
    remove_index(&relay);
    target.take_all();
    relay.start_again();
    wait_until_both_others_are_delivered(&relay);
    let line = the_line_about(&relay, &id);
    assert_eq!(line["record"], "webhook");
    let [offset, bytes] = ["offset", "bytes"].map(|name| line[name].as_u64().unwrap());
    assert!((offset..offset + bytes).contains(&at), "{at} is not in {line}");
}

#[test]
fn where_the_index_knows_a_damaged_webhook_the_log_says_whose_delivery_is_a_dead_letter() {
    let target = Receiver::unwilling();
    let (mut relay, id) = loaded(&target);
    relay.terminate();
    flip_a_bit(&relay);
    target.take_all();
    relay.start_again();
    wait_until_both_others_are_delivered(&relay);
    let dead = [("target", "crm"), ("cause", "damaged")];
    relay.wait_for_metric("relay_dead_letters", &dead, 1.0);
    let line = the_line_about(&relay, &id);
    assert_eq!(line["target_name"], "crm");
    assert!(line["offset"].is_u64(), "{line}");
    let admin = format!("http://{}", relay.admin());
    let ask = |words: &[&str]| run(command(BINARY).args(words).args([&id, "--admin", &admin]));
    let shown = ask(&["webhooks", "show"]);
    assert!(shown.stdout.contains("the record is damaged"), "{shown:?}");
    assert!(shown.stdout.contains("crm  dead letter (damaged)"), "{shown:?}");
    let discarded = ask(&["dead-letters", "discard"]);
    assert_eq!(discarded.stdout, "1 dead letter discarded\n", "{discarded:?}");
}
