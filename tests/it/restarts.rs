//! `kill -9` under load loses nothing that was acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::receiver::Options;
use crate::support::routes::SOON;
use crate::support::vectors::activity;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay, eventually};

const SENDERS: usize = 32;

/// Kills of the relay: `RELAY_TEST_ROUNDS`.
fn rounds() -> usize {
    std::env::var("RELAY_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// What the senders know, kept outside of the relay.
#[derive(Default)]
struct Ledger {
    /// Every body that was ever written to a connection.
    sent: HashMap<Vec<u8>, Sent>,
}

struct Sent {
    is_order: bool,
    /// The id it was acknowledged with.
    id: Option<String>,
}

impl Ledger {
    #[track_caller]
    fn acknowledge(&mut self, body: &[u8], id: String) {
        let sent = self.sent.get_mut(body).expect("it was noted before it was sent");
        if let Some(first) = &sent.id {
            assert_eq!(first, &id, "a repeat has another id");
        }
        sent.id = Some(id);
    }

    fn unanswered(&self) -> Vec<Vec<u8>> {
        let open = self.sent.iter().filter(|(_, sent)| sent.id.is_none());
        open.map(|(body, _)| body.clone()).collect()
    }
}

/// What a target saw: for each body the ids it came with and how often it came.
type Seen = Arc<Mutex<BTreeMap<Vec<u8>, (BTreeSet<String>, usize)>>>;

/// A target that answers slowly, sometimes with a failure, and checks what it gets.
fn target(name: &'static str, delay: Duration) -> (Receiver, Seen) {
    let seen = Seen::default();
    let notes = Arc::clone(&seen);
    let receiver = Options::default().forgetful().start(move |received| {
        received.assert_signed_for(name);
        if received.number % 7 == 0 {
            return Reply::Status(503);
        }
        let mut notes = notes.lock().unwrap();
        let (ids, times) = notes.entry(received.body.clone()).or_default();
        ids.insert(received.webhook_id().to_owned());
        *times += 1;
        Reply::After(delay, 200)
    });
    (receiver, seen)
}

/// Posts until the relay is gone.
fn keep_posting(
    relay: &TestRelay,
    round: usize,
    ledger: &Mutex<Ledger>,
    acknowledged: &AtomicUsize,
) {
    std::thread::scope(|scope| {
        for number in 0..SENDERS {
            let mut sender = Sender::new(relay);
            scope.spawn(move || {
                for count in 0.. {
                    let is_order = count % 2 == 0;
                    let name = if is_order { "ORDER_CREATED" } else { "LISTING_DELIVERED" };
                    let body = activity(name, &format!("{round}-{number}-{count}"), "ORDER");
                    let sent = Sent { is_order, id: None };
                    ledger.lock().unwrap().sent.insert(body.clone(), sent);
                    let Ok(answer) = sender.try_post(&body) else { return };
                    ledger.lock().unwrap().acknowledge(&body, answer.accepted());
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}

/// What the real sender does with what got no answer; and a copy of some that did.
fn post_again(relay: &TestRelay, ledger: &Mutex<Ledger>) {
    let mut sender = Sender::new(relay);
    let unanswered = ledger.lock().unwrap().unanswered();
    for body in unanswered {
        let answer = sender.post(&body);
        let said = || {
            let lines = relay.logs();
            let unusual = lines.into_iter().filter(|line| !line.contains("\"level\":\"INFO\""));
            unusual.collect::<Vec<_>>().join("\n")
        };
        assert!([200, 202].contains(&answer.status), "{}; it said: {}", answer.status, said());
        ledger.lock().unwrap().acknowledge(&body, answer.webhook_id());
    }
    let copies: Vec<(Vec<u8>, String)> = {
        let ledger = ledger.lock().unwrap();
        let answered = ledger
            .sent
            .iter()
            .filter_map(|(body, sent)| sent.id.as_ref().map(|id| (body.clone(), id.clone())));
        // The map's order is by chance.
        answered.take(10).collect()
    };
    for (body, id) in copies {
        let answer = sender.post(&body);
        let text = String::from_utf8_lossy(&body);
        assert_eq!(answer.status, 200, "a copy of {id} was not known: {answer:?} to {text}");
        assert_eq!(answer.duplicate(), id);
    }
}

/// Throws away what can be built again.
fn delete_index(relay: &TestRelay) -> usize {
    let mut deleted = 0;
    for entry in std::fs::read_dir(relay.data()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("index") {
            std::fs::remove_file(&path).unwrap();
            deleted += 1;
        }
    }
    deleted
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_invented_however_often_it_is_killed() {
    let (crm, at_crm) = target("crm", Duration::from_millis(10));
    let (billing, at_billing) = target("billing", Duration::from_millis(25));
    let fast = "concurrency: 64";
    let routes = Routes::new()
        .target("crm", &crm.url(), &[fast, SOON])
        .target("billing", &billing.url(), &[fast, SOON])
        .route("all", &[], &["crm"])
        .route("orders", &["activity: \"ORDER_*\""], &["billing"]);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let ledger = Mutex::new(Ledger::default());
    let mut relay = TestRelay::with(&routes).start();
    for round in 0..rounds() {
        post_again(&relay, &ledger);
        let kill_after = random.usize(1..300);
        let acknowledged = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let posting = scope.spawn(|| keep_posting(&relay, round, &ledger, &acknowledged));
            eventually("the round's acknowledgements", || {
                assert!(!posting.is_finished(), "the relay left, or a sender was refused");
                acknowledged.load(Ordering::Relaxed) >= kill_after
            });
            relay.signal(rustix::process::Signal::KILL);
        });
        relay.wait();
        if round % 2 == 1 {
            assert!(delete_index(&relay) > 0, "there is an index to delete");
        }
        relay.start_again();
    }
    post_again(&relay, &ledger);

    let ledger = ledger.into_inner().unwrap();
    println!("{} webhooks, {} rounds", ledger.sent.len(), rounds());
    let missing = |seen: &Seen, wanted: &dyn Fn(&Sent) -> bool| {
        let seen = seen.lock().unwrap();
        let wanted = ledger.sent.iter().filter(|(_, sent)| wanted(sent));
        let lost = wanted.filter(|(body, _)| !seen.contains_key(*body));
        lost.map(|(_, sent)| sent.id.clone().unwrap()).collect::<Vec<_>>()
    };
    for (name, seen, wanted) in [
        ("crm", &at_crm, &(|_: &Sent| true) as &dyn Fn(&Sent) -> bool),
        ("billing", &at_billing, &|sent: &Sent| sent.is_order),
    ] {
        eventually(&format!("everything acknowledged arrives at {name}"), || {
            match missing(seen, wanted) {
                none if none.is_empty() => Ok(()),
                some => Err(format!("{} are missing, such as {}", some.len(), some[0])),
            }
        });
        relay.wait_for_metric("relay_deliveries_pending", &[("target", name)], 0.0);
        let mut repeats = 0;
        for (body, (ids, times)) in seen.lock().unwrap().iter() {
            let text = String::from_utf8_lossy(body);
            let sent = ledger.sent.get(body);
            let sent = sent.unwrap_or_else(|| panic!("{name} got what nobody sent: {text}"));
            assert!(wanted(sent), "{name} got what no route gave it: {text}");
            let id = sent.id.clone().unwrap();
            assert_eq!(ids, &BTreeSet::from([id]), "{name}: another id than acknowledged: {text}");
            repeats += times - 1;
        }
        println!("{name}: {repeats} repeats");
    }
    let damaged = relay.metrics().value("relay_store_damaged_records_total", &[]);
    assert_eq!(damaged, 0.0);
}

#[test]
fn what_waits_for_a_target_waits_across_restarts_with_its_attempts_counted() {
    let crm = Receiver::start(|_| Reply::Status(500));
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    let ids: BTreeSet<String> = (0..50)
        .map(|n| sender.post(&activity("ORDER_CREATED", &n.to_string(), "ORDER")).accepted())
        .collect();
    // Those that led to its suspension, and a probe.
    crm.wait_for(11);
    relay.restart();
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 50.0);
    relay.terminate();
    assert!(delete_index(&relay) > 0);
    let before = crm.count();
    crm.set(|_| Reply::Status(200));
    relay.start_again();
    let received = crm.wait_for(before + 50);
    relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
    let after = &received[before..];
    assert_eq!(after.iter().map(|r| r.webhook_id().to_owned()).collect::<BTreeSet<_>>(), ids);
    assert_eq!(after.len(), 50, "none twice after a stop in order");
    for last in after {
        let earlier = received[..before].iter().filter(|r| r.webhook_id() == last.webhook_id());
        assert_eq!(last.attempt() as usize, earlier.count() + 1, "attempts are counted on");
    }
}

#[test]
fn a_delivered_webhook_is_not_sent_again_after_a_stop_in_order() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    for n in 0..20 {
        sender.post(&activity("ORDER_CREATED", &n.to_string(), "ORDER")).accepted();
    }
    crm.wait_for(20);
    for with_index in [true, false] {
        relay.terminate();
        if !with_index {
            delete_index(&relay);
        }
        relay.start_again();
        relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
        Sender::new(&relay)
            .post(&activity("ORDER_CREATED", &format!("then {with_index}"), "ORDER"))
            .accepted();
        let count = if with_index { 21 } else { 22 };
        assert_eq!(crm.wait_for(count).len(), count);
    }
}
