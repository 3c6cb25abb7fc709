//! A data directory checked, counted and copied while no relay runs on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::relay::{BINARY, Ended, command, run};
use crate::support::routes::SOON;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay, eventually};

const MARK: &str = "decays-on-the-disk";

fn routes(target: &Receiver) -> Routes {
    Routes::new().target("crm", &target.url(), &[SOON]).all_to(&["crm"])
}

/// A relay that has three webhooks to deliver to nobody yet; their ids.
fn loaded(target: &Receiver) -> (TestRelay, Vec<String>) {
    let relay = TestRelay::with(&routes(target)).start();
    let mut sender = Sender::new(&relay);
    let ids = ["1", MARK, "3"].map(|text| sender.post(&listing_delivered(text)).accepted());
    (relay, ids.to_vec())
}

fn store(words: &[&str], data: &Path) -> Ended {
    run(command(BINARY).arg("store").args(words).arg("--data").arg(data))
}

fn told(words: &[&str], data: &Path) -> (Option<i32>, Value) {
    let ended = run(command(BINARY)
        .arg("store")
        .args(words)
        .args(["--format", "json", "--data"])
        .arg(data));
    let json = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    (ended.code, json)
}

/// Every file below a directory with its bytes.
fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(bytes_of(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

fn flip_a_bit(data: &Path) {
    for (path, mut bytes) in bytes_of(&data.join("segments")) {
        if let Some(at) = bytes.windows(MARK.len()).position(|w| w == MARK.as_bytes()) {
            bytes[at] ^= 1;
            std::fs::write(path, bytes).unwrap();
            return;
        }
    }
    panic!("no segment has the body");
}

fn remove_index(data: &Path) {
    for path in bytes_of(data).into_keys() {
        if path.file_name().unwrap().to_str().unwrap().starts_with("index") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn what_a_killed_relay_left_is_good_and_looking_at_it_changes_no_byte() {
    let target = Receiver::unwilling();
    let (mut relay, _) = loaded(&target);
    relay.kill9();
    let before = bytes_of(relay.data());
    let checked = store(&["check"], relay.data());
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.contains(": good; "), "{checked:?}");
    let (code, stats) = told(&["stats"], relay.data());
    assert_eq!((code, &stats["webhooks"]), (Some(0), &3.into()), "{stats}");
    assert_eq!(stats["records"]["webhook"]["records"], 3);
    let target = &stats["targets"][0];
    assert_eq!((&target["name"], &target["pending"]), (&"crm".into(), &3.into()));
    remove_index(relay.data());
    let without = bytes_of(relay.data());
    let (code, json) = told(&["check"], relay.data());
    assert_eq!((code, &json["index"]["state"]), (Some(0), &"absent".into()), "{json}");
    assert_eq!(json["start"][0], "makes the index from the log");
    assert_eq!(bytes_of(relay.data()), without);
    assert!(before.len() > without.len());
    assert!(without.iter().all(|(path, bytes)| before.get(path) == Some(bytes)));
}

#[test]
fn a_flipped_bit_names_its_webhook_and_a_start_keeps_the_bytes() {
    let target = Receiver::unwilling();
    let (mut relay, ids) = loaded(&target);
    relay.kill9();
    flip_a_bit(relay.data());
    let before = bytes_of(relay.data());
    let checked = store(&["check"], relay.data());
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let line = format!("damaged: webhook {} LISTING_DELIVERED received 20", ids[1]);
    assert!(checked.stdout.contains(&line), "{checked:?}");
    let (_, json) = told(&["check"], relay.data());
    let [flaw] = json["damaged"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((flaw["webhook_id"].as_str(), &flaw["acknowledged"]), {
        (Some(&*ids[1]), &Value::Bool(true))
    });
    assert_eq!(bytes_of(relay.data()), before);
    remove_index(relay.data());
    target.take_all();
    relay.start_again();
    let delivered = [("target", "crm"), ("settlement", "delivered")];
    relay.wait_for_metric("relay_deliveries_settled_total", &delivered, 2.0);
    let name = format!("00000001-{}.bin", flaw["offset"]);
    let kept = std::fs::read(relay.data().join("quarantine").join(&name)).unwrap();
    assert_eq!(kept.len() as u64, flaw["bytes"]);
    let is_named = |line: &String| line.contains(&ids[1]) && line.contains(&name);
    eventually("the log names the webhook and the file", || {
        let lines = relay.logs();
        if lines.iter().any(is_named) { Ok(()) } else { Err(lines.join("\n")) }
    });
}

#[test]
fn a_running_relays_directory_and_one_that_is_none_are_refused() {
    let target = Receiver::unwilling();
    let (relay, _) = loaded(&target);
    let to = relay.path("copy");
    for words in [&["check"][..], &["stats"], &["backup", "--to", to.to_str().unwrap()]] {
        let refused = store(words, relay.data());
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("stop that relay first"), "{refused:?}");
        assert!(refused.stderr.contains(&relay.process().to_string()), "{refused:?}");
        let refused = store(words, &relay.path("certs"));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("it has no folder `segments`"), "{refused:?}");
        let refused = store(words, &relay.path("nowhere"));
        assert!(refused.stderr.contains("it does not exist"), "{refused:?}");
    }
    assert!(!to.exists() && !relay.path("nowhere").exists());
}

#[test]
fn a_backup_starts_elsewhere_and_delivers_what_was_pending() {
    let target = Receiver::unwilling();
    let (mut relay, ids) = loaded(&target);
    relay.told(&["targets", "pause", "crm"]);
    relay.kill9();
    let before = bytes_of(relay.data());
    let to = relay.path("copies/today");
    let copied = store(&["backup", "--to", to.to_str().unwrap()], relay.data());
    assert_eq!(copied.code, Some(0), "{copied:?}");
    assert!(copied.stdout.contains("3 webhooks, 3 deliveries pending"), "{copied:?}");
    assert_eq!(bytes_of(relay.data()), before);
    let beside: Vec<_> = std::fs::read_dir(relay.path("copies")).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    let again = store(&["backup", "--to", to.to_str().unwrap()], relay.data());
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.stderr.contains("it is not empty"), "{again:?}");
    target.take_all();
    let other = TestRelay::with(&routes(&target)).data_in(&to).start();
    assert!(other.told(&["targets", "list"]).contains("paused"));
    other.told(&["targets", "resume", "crm"]);
    let delivered = [("target", "crm"), ("settlement", "delivered")];
    other.wait_for_metric("relay_deliveries_settled_total", &delivered, 3.0);
    let shown = other.told(&["webhooks", "list"]);
    assert!(ids.iter().all(|id| shown.contains(id)), "{shown}");
}
