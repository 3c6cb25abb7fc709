//! Reloads under load: no request and no handshake fails, and every webhook goes where the table in
//! force said.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use crate::certificates::{OF_CERTIFICATES, REFUSED, der, shown, swap};
use crate::reload::{in_force, reload, replace, sha256};
use crate::support::certs::Identity;
use crate::support::eventually::pause;
use crate::support::receiver::Options;
use crate::support::routes::SOON;
use crate::support::vectors::activity;
use crate::support::{AUTHORITY, Receiver, Reply, Routes, Sender, TestRelay, eventually, patience};

const SENDERS: usize = 32;

/// Webhooks that are accepted at least while each table is in force.
const WEBHOOKS: usize = 100;

/// Reloads: `RELAY_TEST_RELOADS`.
fn rounds() -> usize {
    std::env::var("RELAY_TEST_RELOADS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// Which targets got a body, and how often.
type Seen = Arc<Mutex<HashMap<Vec<u8>, [usize; 2]>>>;

fn target(index: usize, seen: &Seen) -> Receiver {
    let seen = Arc::clone(seen);
    Options::default().forgetful().start(move |received| {
        received.assert_signed_for(["a", "b"][index]);
        seen.lock().unwrap().entry(received.body.clone()).or_default()[index] += 1;
        Reply::Status(200)
    })
}

/// What the senders know of what was in force. Even: the table half of that modulo 2 and no other;
/// odd: perhaps already the next one.
#[derive(Default)]
struct Phase(AtomicUsize);

impl Phase {
    fn begin_switch(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) / 2 + 1
    }

    fn end_switch(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// What was accepted, each with the only table that can have been in force, where that is certain.
#[derive(Default)]
struct Ledger {
    accepted: Mutex<Vec<(Vec<u8>, Option<usize>)>>,
    count: AtomicUsize,
}

fn keep_posting(
    mut sender: Sender,
    number: usize,
    phase: &Phase,
    ledger: &Ledger,
    end: &AtomicBool,
) {
    for count in 0.. {
        if end.load(Ordering::Relaxed) {
            return;
        }
        let body = activity("ORDER_CREATED", &format!("{number}-{count}"), "ORDER");
        let before = phase.now();
        sender.post(&body).accepted();
        let is_certain = before.is_multiple_of(2) && before == phase.now();
        let table = is_certain.then_some(before / 2 % 2);
        ledger.accepted.lock().unwrap().push((body, table));
        ledger.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Has the relay see what was saved, each time in another way.
fn trigger(relay: &TestRelay, round: usize) {
    match round % 3 {
        0 => {}
        1 => relay.signal(Signal::HUP),
        _ => drop(reload(relay)),
    }
}

/// Waits for a condition on the metrics without asking for them all the time.
#[track_caller]
fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let tries = patience().as_millis() / 20;
    for _ in 0..tries {
        if holds() {
            return;
        }
        pause(Duration::from_millis(20));
    }
    panic!("{what}: not within {:?}", patience());
}

#[test]
fn reloads_under_load_fail_no_request_and_misroute_no_webhook() {
    let seen = Seen::default();
    let receivers = [target(0, &seen), target(1, &seen)];
    let tables = ["a", "b"].map(|to| {
        Routes::new()
            .target("a", &receivers[0].url(), &["concurrency: 64", SOON])
            .target("b", &receivers[1].url(), &["concurrency: 64", SOON])
            .route("orders", &["activity: ORDER_CREATED"], &[to])
    });
    let [a, _] = &tables;
    let flags = ["--duplicates-max", "1000"];
    let relay = TestRelay::with(a).flags(&flags).start();
    let (phase, ledger, end) = (Phase::default(), Ledger::default(), AtomicBool::new(false));
    let memory = || relay.metrics().value("process_resident_memory_bytes", &[]) / 1e6;
    let mut memories = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..SENDERS {
            let (sender, phase, ledger, end) = (Sender::new(&relay), &phase, &ledger, &end);
            scope.spawn(move || keep_posting(sender, number, phase, ledger, end));
        }
        // However this ends, the senders do.
        let _end = EndWhenDropped(&end);
        let mut table = 0;
        for round in 0..rounds() {
            let count = ledger.count.load(Ordering::Relaxed);
            wait_for("webhooks are accepted", || {
                ledger.count.load(Ordering::Relaxed) >= count + WEBHOOKS
            });
            if round % 5 == 4 {
                let broken =
                    format!("# {round}\n{}", tables[table].yaml()).replace("to: [", "too: [");
                replace(&relay, "routes.yaml", &broken);
                trigger(&relay, round);
                wait_for("the broken table is refused", || {
                    relay.metrics().value("relay_routes_last_reload_successful", &[]) == 0.0
                });
                assert_eq!(in_force(&relay), [sha256(&tables[table].yaml())]);
            } else {
                table = phase.begin_switch() % 2;
                let text = tables[table].yaml();
                replace(&relay, "routes.yaml", &text);
                trigger(&relay, round);
                wait_for("the table is in force", || in_force(&relay) == [sha256(&text)]);
                phase.end_switch();
            }
            memories.push(memory());
        }
    });

    let accepted = ledger.accepted.into_inner().unwrap();
    eventually("everything arrives", || {
        let missing = accepted.len() - seen.lock().unwrap().len();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
    });
    let seen = seen.lock().unwrap();
    let mut certain = 0;
    for (body, table) in &accepted {
        let text = String::from_utf8_lossy(body);
        let times = seen[body];
        assert!(times == [1, 0] || times == [0, 1], "{text}: {times:?}");
        if let Some(table) = table {
            assert_eq!(times[*table], 1, "{text} went to the other table's target");
            certain += 1;
        }
    }
    assert_eq!(seen.len(), accepted.len());
    assert!(certain > rounds() * WEBHOOKS / 2, "{certain} of {}", accepted.len());
    println!("{} reloads, {} webhooks, {certain} of them certain", rounds(), accepted.len());
    let early = memories.iter().take(rounds() / 5 + 1).copied().fold(0.0, f64::max);
    let late = memories.iter().skip(rounds() * 4 / 5).copied().fold(0.0, f64::max);
    println!("resident: {early:.1} MB in the first fifth, {late:.1} MB in the last");
    assert!(late < early * 1.3 + 10.0, "{memories:?}");
}

/// Tells threads to end, also where a test fails.
pub(crate) struct EndWhenDropped<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A name for each certificate.
const NAMES: [&str; 4] = ["localhost", "b.test", "c.test", "d.test"];

/// What became of the certificates of one name.
#[derive(Default)]
struct Issued {
    /// All that were ever in its file, oldest first.
    all: Mutex<Vec<Vec<u8>>>,
    /// Those before this one are not shown any more.
    in_force: AtomicUsize,
}

impl Issued {
    fn issue(&self, identity: &Identity) {
        self.all.lock().unwrap().push(der(identity));
    }

    /// Asks for it on a new connection: one that was in force before or is by now has to be shown.
    fn shake_hands(&self, relay: &TestRelay, name: &'static str) {
        let at_least = self.in_force.load(Ordering::SeqCst);
        let shown = shown(relay, name);
        let all = self.all.lock().unwrap();
        let position = all.iter().position(|known| *known == shown);
        let position = position.unwrap_or_else(|| panic!("{name} is shown what nobody issued"));
        assert!(position >= at_least, "{name} is shown {position} after {at_least}");
    }

    /// Waits until the newest is shown.
    fn wait(&self, relay: &TestRelay, name: &'static str) {
        let (newest, count) = {
            let all = self.all.lock().unwrap();
            (all.last().unwrap().clone(), all.len())
        };
        wait_for("the newest certificate is shown", || shown(relay, name) == newest);
        self.in_force.store(count - 1, Ordering::SeqCst);
    }
}

#[test]
fn certificates_are_renewed_under_load_and_no_handshake_fails() {
    let crm = Options::default().forgetful().start(|_| Reply::Status(200));
    let routes = Routes::new().target("crm", &crm.url(), &["concurrency: 64"]).all_to(&["crm"]);
    let issued = NAMES.map(|_| Issued::default());
    let files = |name: &str| [format!("{name}.crt"), format!("{name}.key")];
    let identity = |name: &str| AUTHORITY.server_for(&[name], 1, 30);
    let mut builder = TestRelay::with(&routes).without_certificate();
    for (name, issued) in NAMES.iter().zip(&issued) {
        let (identity, [certificate, key]) = (identity(name), files(name));
        issued.issue(&identity);
        builder = builder
            .file(&certificate, &identity.certificate)
            .file(&key, &identity.key)
            .flags(&["--tls-cert", &certificate, "--tls-key", &key]);
    }
    let relay = builder.start();
    let (end, handshakes, renewals) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // However this ends, the others do.
        let _end = EndWhenDropped(&end);
        for (name, issued) in NAMES.into_iter().zip(&issued) {
            let (relay, end, handshakes) = (&relay, &end, &handshakes);
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    issued.shake_hands(relay, name);
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (mut sender, end) = (Sender::new(&relay), &end);
        scope.spawn(move || {
            for number in 0.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                sender.post(&activity("ORDER_CREATED", &number.to_string(), "ORDER")).accepted();
            }
        });
        for round in 0..rounds().div_ceil(NAMES.len()) {
            // Now and then one of them is broken, until the next round.
            let broken = (round % 5 == 4).then_some(NAMES[round % NAMES.len()]);
            for (name, issued) in NAMES.iter().zip(&issued) {
                let [certificate, key] = files(name);
                if broken == Some(name) {
                    swap(&relay, &certificate, &format!("nothing {round}"));
                    continue;
                }
                let identity = identity(name);
                issued.issue(&identity);
                swap(&relay, &key, &identity.key);
                swap(&relay, &certificate, &identity.certificate);
                renewals.fetch_add(1, Ordering::Relaxed);
            }
            trigger(&relay, round);
            for (name, issued) in NAMES.into_iter().zip(&issued) {
                if broken != Some(name) {
                    issued.wait(&relay, name);
                }
            }
            let count = f64::from(u8::from(broken.is_some()));
            wait_for("what is broken is counted", || {
                (relay.metrics().value(REFUSED, OF_CERTIFICATES) - count).abs() < 0.5
            });
        }
    });
    let failed = relay.metrics().value("relay_tls_handshakes_total", &[("result", "failed")]);
    assert_eq!(failed, 0.0);
    println!("{} renewals, {} handshakes", renewals.into_inner(), handshakes.into_inner());
}
