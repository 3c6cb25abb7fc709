//! A relay replaced under load: its sockets are held by somebody else, the new one begins when the old one has
//! let go of the data directory, and nobody is refused meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::manager::Sockets;
use crate::support::receiver::Options;
use crate::support::relay::BINARY;
use crate::support::routes::SOON;
use crate::support::vectors::activity;
use crate::support::{Answer, Receiver, Reply, Routes, Sender, TestRelay, eventually};

const SENDERS: usize = 32;

/// Replacements of the relay: `RELAY_TEST_UPGRADES`.
fn upgrades() -> usize {
    std::env::var("RELAY_TEST_UPGRADES").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// What the senders saw.
#[derive(Default)]
struct Seen {
    /// The id that each body was acknowledged with.
    acknowledged: Mutex<BTreeMap<Vec<u8>, String>>,
    failed: Mutex<Vec<String>>,
    longest: Mutex<Duration>,
    count: AtomicUsize,
}

impl Seen {
    fn note(&self, body: Vec<u8>, took: Duration, answer: io::Result<Answer>) {
        let mut longest = self.longest.lock().unwrap();
        *longest = longest.max(took);
        drop(longest);
        match answer {
            Ok(answer) if answer.status == 202 => {
                self.acknowledged.lock().unwrap().insert(body, answer.webhook_id());
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                self.failed.lock().unwrap().push(format!("{} {text}", answer.status));
            }
            Err(error) => self.failed.lock().unwrap().push(format!("{error} after {took:?}")),
        }
    }

    /// Waits until each sender could have posted some more.
    fn go_on(&self) {
        let before = self.count.load(Ordering::Relaxed);
        eventually("senders go on", || {
            let failed = self.failed.lock().unwrap().len();
            failed > 0 || self.count.load(Ordering::Relaxed) >= before + 4 * SENDERS
        });
    }
}

/// Posts a body.
type Post = Box<dyn FnMut(&[u8]) -> io::Result<Answer> + Send>;

/// How each sender posts.
type How = fn(&TestRelay) -> Post;

/// As Aryeo: on a connection of its own.
fn on_a_new_connection(relay: &TestRelay) -> Post {
    let sender = Sender::new(relay);
    Box::new(move |body| sender.try_connect()?.send(&sender.request(body)))
}

/// As a proxy: on the one that it has, until it is told that it ends.
fn on_a_kept_connection(relay: &TestRelay) -> Post {
    let mut sender = Sender::new(relay);
    Box::new(move |body| sender.try_post(body))
}

/// The same over HTTP/2.
fn over_http2(relay: &TestRelay) -> Post {
    let mut sender = Sender::new(relay).over_http2();
    Box::new(move |body| sender.try_post(body))
}

/// Two files of the program, as an upgrade has them.
fn binaries(relay: &TestRelay) -> [PathBuf; 2] {
    ["old", "new"].map(|name| {
        let path = relay.path(name);
        std::fs::copy(BINARY, &path).unwrap();
        path
    })
}

/// What a target got: for each body the ids that it came with.
type Arrived = Arc<Mutex<BTreeMap<Vec<u8>, BTreeSet<String>>>>;

fn target() -> (Receiver, Arrived) {
    let arrived = Arrived::default();
    let notes = Arc::clone(&arrived);
    let crm = Options::default().forgetful().start(move |received| {
        received.assert_signed_for("crm");
        let id = received.webhook_id().to_owned();
        notes.lock().unwrap().entry(received.body.clone()).or_default().insert(id);
        Reply::Status(200)
    });
    (crm, arrived)
}

/// Posts one after the other until it is over.
fn keep_posting(mut post: Post, number: usize, seen: &Seen, over: &AtomicBool) {
    for count in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let body = activity("ORDER_CREATED", &format!("{number}-{count}"), "ORDER");
        let began = Instant::now();
        let answer = post(&body);
        seen.note(body, began.elapsed(), answer);
    }
}

/// Replaces a relay again and again while all senders post; what they saw.
fn upgraded_under_load(how: How) -> Seen {
    let (crm, arrived) = target();
    let lines = ["concurrency: 64", SOON];
    let routes = Routes::new().target("crm", &crm.url(), &lines).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).sockets(Sockets::open()).start();
    let binaries = binaries(&relay);
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..SENDERS {
            let (post, seen, over) = (how(&relay), &seen, &over);
            scope.spawn(move || keep_posting(post, number, seen, over));
        }
        for round in 0..upgrades() {
            seen.go_on();
            let began = Instant::now();
            relay.replace(&binaries[round % 2]);
            eprintln!("replaced within {:?}", began.elapsed());
        }
        seen.go_on();
        over.store(true, Ordering::Relaxed);
    });
    let acknowledged = seen.acknowledged.lock().unwrap();
    eventually("everything acknowledged arrives", || {
        let arrived = arrived.lock().unwrap();
        let missing = acknowledged.keys().filter(|body| !arrived.contains_key(*body)).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
    });
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    for (body, ids) in arrived.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(body);
        let id = acknowledged.get(body);
        let id = id.unwrap_or_else(|| panic!("arrived, and nobody was told: {text}"));
        assert_eq!(ids, &BTreeSet::from([id.clone()]), "another id than acknowledged: {text}");
    }
    eprintln!("{} posted, the longest wait {:?}", acknowledged.len(), seen.longest.lock().unwrap());
    drop(acknowledged);
    seen
}

#[test]
fn no_request_fails_while_it_is_replaced_and_none_is_lost_or_invented() {
    let seen = upgraded_under_load(on_a_new_connection);
    assert_eq!(*seen.failed.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn connections_that_are_kept_are_told_in_time() {
    let seen = upgraded_under_load(on_a_kept_connection);
    assert_eq!(*seen.failed.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn connections_over_http2_are_told_in_time() {
    let seen = upgraded_under_load(over_http2);
    assert_eq!(*seen.failed.lock().unwrap(), Vec::<String>::new());
}
