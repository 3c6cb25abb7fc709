//! Tools that others wrote to break servers: `slowhttptest` and `sslscan`, against a running relay.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::eventually::pause;
use crate::support::relay::{Background, command, run};
use crate::support::routes::PATH;
use crate::support::tools::has;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay, eventually};

const HONEST: usize = 16;

/// Between two webhooks of an honest sender.
const PACE: Duration = Duration::from_millis(50);

fn connections() -> usize {
    let count = std::env::var("RELAY_TEST_SLOW_CONNECTIONS").ok().and_then(|t| t.parse().ok());
    count.unwrap_or(200)
}

/// Lets `slowhttptest` open its connections while the honest senders post.
#[track_caller]
fn slow_strangers_harm_nobody(mode: &[&str]) {
    if !has("slowhttptest", "-h") {
        return;
    }
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let count = connections();
    let slow = Background::start(slowhttptest(&relay, mode, count).args(mode));
    let over = AtomicBool::new(false);
    let (posted, slowest) = std::thread::scope(|scope| {
        let honest: Vec<_> = (0..HONEST)
            .map(|number| {
                scope.spawn({
                    let (relay, over) = (&relay, &over);
                    move || honest(relay, number, over)
                })
            })
            .collect();
        let labels = [("result", "ok")];
        let all = (HONEST + count) as f64;
        eventually("they have all connected", || {
            let connected = relay.metrics().value("relay_tls_handshakes_total", &labels);
            (connected >= all).then_some(()).ok_or(format!("{connected} of {all}"))
        });
        // While they hold on to what they have.
        pause(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        let ended = honest.into_iter().map(|honest| honest.join().unwrap());
        ended.fold((0, Duration::ZERO), |(posted, slowest), (more, slow)| {
            (posted + more, slowest.max(slow))
        })
    });
    drop(slow);
    eprintln!(
        "{mode:?}: {count} slow connections, {posted} webhooks, the slowest answer after {slowest:?}"
    );
    assert_eq!(crm.wait_for(posted).len(), posted);
}

/// One honest sender: how many webhooks it posted, and the longest that it waited for an answer.
fn honest(relay: &TestRelay, number: usize, over: &AtomicBool) -> (usize, Duration) {
    let mut sender = Sender::new(relay);
    let (mut posted, mut slowest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) || posted < 10 {
        let began = Instant::now();
        sender.post(&listing_delivered(&format!("{number}-{posted}"))).accepted();
        slowest = slowest.max(began.elapsed());
        posted += 1;
        pause(PACE);
    }
    (posted, slowest)
}

fn slowhttptest(relay: &TestRelay, mode: &[&str], count: usize) -> Command {
    let url = format!("https://{}{PATH}", relay.listen());
    let count = count.to_string();
    let mut command = command("slowhttptest");
    command.current_dir(relay.path(".")).args(["-c", &count, "-r", &count, "-l", "60", "-u", &url]);
    if !mode.contains(&"-X") {
        command.args(["-t", "POST", "-i", "1", "-x", "24"]);
    }
    command
}

#[test]
fn heads_that_come_slowly_harm_nobody() {
    slow_strangers_harm_nobody(&["-H"]);
}

#[test]
fn bodies_that_come_slowly_harm_nobody() {
    slow_strangers_harm_nobody(&["-B", "-s", "8192"]);
}

#[test]
fn answers_that_are_read_slowly_harm_nobody() {
    slow_strangers_harm_nobody(&["-X", "-w", "16", "-y", "32", "-n", "5", "-z", "8", "-k", "3"]);
}

/// The elements of `sslscan`'s report, which has one on a line.
fn elements<'a>(report: &'a str, name: &str) -> Vec<BTreeMap<&'a str, &'a str>> {
    let start = format!("<{name} ");
    let found = report.lines().filter_map(|line| line.trim().strip_prefix(&start));
    found
        .map(|line| {
            let mut attributes = BTreeMap::new();
            let mut rest = line;
            while let Some((key, after)) = rest.split_once("=\"") {
                let Some((value, after)) = after.split_once('"') else { break };
                attributes.insert(key.trim(), value);
                rest = after;
            }
            attributes
        })
        .collect()
}

#[test]
fn sslscan_finds_nothing_to_complain_of() {
    if !has("sslscan", "--version") {
        return;
    }
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let address = relay.listen().to_string();
    let ended = run(command("sslscan").args(["--xml=-", "--no-colour", &address]));
    let report = &ended.stdout;
    let all = |name| {
        let found = elements(report, name);
        assert!(!found.is_empty(), "no {name} in:\n{report}");
        found
    };
    let enabled: Vec<_> = all("protocol")
        .iter()
        .filter(|protocol| protocol["enabled"] != "0")
        .map(|protocol| format!("{} {}", protocol["type"], protocol["version"]))
        .collect();
    assert_eq!(enabled, ["tls 1.2", "tls 1.3"], "{report}");
    // Some builds of it can't ask for that.
    let compression = elements(report, "compression");
    assert!(compression.iter().all(|found| found["supported"] == "0"), "{report}");
    assert!(all("heartbleed").iter().all(|found| found["vulnerable"] == "0"), "{report}");
    // None is as good as a secure one.
    let is_safe =
        |found: &BTreeMap<&str, &str>| found["supported"] == "0" || found["secure"] == "1";
    assert!(all("renegotiation").iter().all(is_safe), "{report}");
    for cipher in all("cipher") {
        assert!(["strong", "acceptable"].contains(&cipher["strength"]), "{cipher:?}");
        let name = cipher["cipher"];
        assert!(
            name.starts_with("TLS_") || name.starts_with("ECDHE-"),
            "{name} keeps no past secret"
        );
    }
}
