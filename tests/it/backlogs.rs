//! A target that is away for long, and webhooks that nobody wants: neither keeps others out.

use serde_json::Value;

use crate::support::eventually::eventually;
use crate::support::routes::SOON;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay};

const DOWN: (&str, &str) = ("target", "down");

/// Some twenty kilobytes.
fn body(nth: usize) -> Vec<u8> {
    let padding = "x".repeat(20_000);
    format!(r#"{{"object":"ORDER","id":"order-{nth}","padding":"{padding}"}}"#).into_bytes()
}

fn listed(relay: &TestRelay, name: &str) -> Value {
    let told = relay.told(&["targets", "list", "--format", "json"]);
    let all = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.into_iter().find(|target| target["name"] == name).unwrap()
}

#[test]
fn a_dead_target_s_oldest_are_dead_letters_and_nobody_else_notices() {
    const COUNT: usize = 150;
    const LIMIT: f64 = 1_048_576.0;
    let up = Receiver::willing();
    let down = Receiver::start(|_| Reply::Status(500));
    let routes = Routes::new()
        .target("down", &down.url(), &["backlog_limit: 1MiB", "retry: { first: 1h, max: 1h }"])
        .target("up", &up.url(), &[SOON])
        .all_to(&["down", "up"]);
    let mut relay = TestRelay::with(&routes).start();
    let metrics = relay.metrics();
    assert_eq!(metrics.value("relay_backlog_limit_bytes", &[DOWN]), LIMIT);
    let half = metrics.value("relay_store_limit_bytes", &[]) / 2.0;
    let limit_of_up = metrics.value("relay_backlog_limit_bytes", &[("target", "up")]);
    assert!((limit_of_up - half).abs() <= 100.0, "{limit_of_up} of twice {half}");

    let mut sender = Sender::new(&relay);
    let ids: Vec<String> = (0..COUNT).map(|nth| sender.post(&body(nth)).accepted()).collect();
    up.wait_for(COUNT);
    let backlog = || relay.metrics().value("relay_backlog_bytes", &[DOWN]);
    let dead = [DOWN, ("cause", "backlog_full")];
    eventually("the backlog is within its limit", || {
        let (bytes, dead) = (backlog(), relay.metrics().value("relay_dead_letters", &dead));
        let pending = relay.metrics().value("relay_deliveries_pending", &[DOWN]);
        let is_held = dead > 0.0 && dead + pending == COUNT as f64 && bytes > 0.0 && bytes <= LIMIT;
        if is_held { Ok(()) } else { Err(format!("{bytes} bytes, {pending} pending, {dead} dead")) }
    });
    let count = relay.metrics().value("relay_dead_letters", &dead);
    assert!(count >= 95.0, "{count} of {COUNT}: 20 KB each, and 1 MiB may wait");
    let settled = [DOWN, ("settlement", "dead_letter")];
    assert_eq!(relay.metrics().value("relay_deliveries_settled_total", &settled), count);
    let none = [("target", "up"), ("settlement", "dead_letter")];
    assert_eq!(relay.metrics().value("relay_deliveries_settled_total", &none), 0.0);
    assert_eq!(relay.get("/readyz").status, 200);

    // Once, with how many and whose.
    let is_it = |line: &&String| line.contains("ERROR") && line.contains("backlog_full");
    let logs = relay.logs();
    let errors: Vec<&String> = logs.iter().filter(is_it).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("down") && errors[0].contains("dead_letters"), "{errors:?}");

    let target = listed(&relay, "down");
    assert_eq!(target["backlog_limit_bytes"], 1 << 20);
    assert!(target["backlog_bytes"].as_u64() <= Some(1 << 20), "{target}");
    assert!(relay.told(&["targets", "list"]).contains("KiB of 1MiB"));
    // The oldest, but for those that were just being tried.
    let words = ["dead-letters", "list", "--cause", "backlog_full", "--limit", "200"];
    let told = relay.told(&words);
    assert!(!told.contains(&ids[COUNT - 1]), "the newest waits");
    relay.kill9();
    relay.start_again();
    relay.wait_for_metric("relay_dead_letters", &dead, count);
    assert_eq!(up.count(), COUNT);

    let before = down.count();
    // As long as they are there they can be brought back.
    down.set(|_| Reply::Status(200));
    relay.told(&["targets", "resume", "down"]);
    let back = ids.iter().find(|id| told.contains(id.as_str())).unwrap();
    let words = ["dead-letters", "redrive", "--cause", "backlog_full", back];
    assert_eq!(relay.told(&words), "1 dead letter redriven\n");
    eventually("it is delivered", || {
        let all = down.received();
        let is_it = |nth: usize| all[nth].webhook_id() == *back;
        (before..all.len()).any(is_it)
    });
}
