//! Targets beyond their `backlog_limit`.

use std::time::Duration;

use tokio::time::sleep;

use super::fake_store::PINNED_BY_ONE;
use super::testing::{Log, World, status, target};
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::target::{BacklogLimit, Target};

const SECOND: Duration = Duration::from_secs(1);

/// A target that keeps everything, and may keep so many.
fn held(name: &str, max: u64) -> Target {
    Target { paused: true, backlog_limit: BacklogLimit::Bytes(max * PINNED_BY_ONE), ..target(name) }
}

fn add(world: &World, target: &str, count: u64) {
    (0..count)
        .for_each(|nth| world.add(target, SECOND * 600 - SECOND * u32::try_from(nth).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn what_is_beyond_its_limit_ends_the_oldest_first_and_nobody_else_s() {
    let world = World::new(vec![held("crm", 10), held("billing", 10)], |_| status(200));
    sleep(SECOND).await;
    add(&world, "crm", 250);
    add(&world, "billing", 10);
    sleep(SECOND * 3).await;
    let settled = world.store.settled();
    assert_eq!((settled.len(), world.store.pending()), (240, 20));
    let dead = Settlement::DeadLetter(Cause::BacklogFull);
    assert!(settled.iter().all(|s| s.settlement == dead && *s.delivery.target == *"crm"));
    assert!(settled.iter().all(|s| s.attempt.is_none()));
    let counted = "relay_deliveries_settled_total{target=\"crm\",settlement=\"dead_letter\"} 240";
    assert!(world.metrics.render().contains(counted));
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_held_to_as_it_is_now_and_by_a_target_that_is_gone() {
    let world = World::new(vec![held("crm", 10)], |_| status(200));
    sleep(SECOND).await;
    add(&world, "crm", 8);
    sleep(SECOND * 5).await;
    assert_eq!(world.store.pending(), 8);
    world.reload(vec![held("crm", 6)]);
    sleep(SECOND).await;
    assert_eq!(world.store.pending(), 6, "at once");
    world.reload(vec![held("billing", 10)]);
    add(&world, "crm", 2);
    sleep(SECOND * 3).await;
    assert_eq!(world.store.pending(), 6, "what waits for one that is gone takes room too");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_give_up_their_bytes_before_anything_that_waits_ends_and_that_is_told_once() {
    let (log, _guard) = Log::capture();
    let world = World::new(vec![held("crm", 300), held("billing", 10)], |_| status(200));
    sleep(SECOND).await;
    add(&world, "crm", 40);
    world.store.keep_dead("crm", 700);
    world.store.keep_dead("billing", 10);
    sleep(SECOND * 3).await;
    let kept = |target: &str| world.store.keep_dead(target, 0);
    assert_eq!((kept("crm"), kept("billing"), world.store.pending()), (260, 10, 40));
    world.store.keep_dead("crm", 1);
    sleep(SECOND * 3).await;
    add(&world, "crm", 300);
    sleep(SECOND * 3).await;
    assert_eq!((kept("crm"), world.store.pending()), (0, 300), "those go first");
    let told = |level: &str, what: &str| -> Vec<serde_json::Value> {
        let is_it = |event: &serde_json::Value| {
            let message = event["fields"]["message"].as_str().unwrap();
            event["level"] == level && message.starts_with(what)
        };
        log.events().into_iter().filter(is_it).collect()
    };
    let errors = told("ERROR", "the target's dead letters");
    assert_eq!(errors.len(), 1, "{errors:?}");
    for (name, value) in [
        ("dead_letters", 440),
        ("dead_letters_bytes", 700 * PINNED_BY_ONE),
        ("backlog_bytes", 40 * PINNED_BY_ONE),
        ("limit_bytes", 300 << 20),
    ] {
        assert_eq!(errors[0]["fields"][name], value, "{name}");
    }
    assert_eq!(told("ERROR", "more waits").len(), 1);
    world.reload(vec![Target { paused: false, ..held("crm", 300) }]);
    sleep(SECOND * 3).await;
    let over = told("INFO", "what the target pins");
    assert_eq!(over.len(), 1, "{over:?}");
    assert_eq!(over[0]["fields"]["dead_letters"], 440 + 1 + 260);
}

#[tokio::test(start_paused = true)]
async fn an_episode_is_told_once_and_when_it_is_over() {
    let (log, _guard) = Log::capture();
    let world = World::new(vec![held("crm", 8)], |_| status(200));
    sleep(SECOND).await;
    for _ in 0..5 {
        add(&world, "crm", 9);
        sleep(SECOND * 3).await;
    }
    let told = |level: &str| -> Vec<serde_json::Value> {
        let is_it = |event: &serde_json::Value| {
            event["level"] == level && event["fields"]["cause"] == "backlog_full"
        };
        log.events().into_iter().filter(is_it).collect()
    };
    let errors = told("ERROR");
    assert_eq!(errors.len(), 1, "{errors:?}");
    for (name, value) in
        [("dead_letters", 1), ("backlog_bytes", 9 * PINNED_BY_ONE), ("limit_bytes", 8 << 20)]
    {
        assert_eq!(errors[0]["fields"][name], value, "{name}");
    }
    assert_eq!(errors[0]["fields"]["target_name"], "crm");
    assert_eq!(told("INFO"), Vec::<serde_json::Value>::new(), "it stays at its limit");
    world.reload(vec![Target { paused: false, ..held("crm", 8) }]);
    sleep(SECOND * 3).await;
    let over = told("INFO");
    assert_eq!(over.len(), 1, "{over:?}");
    assert_eq!(over[0]["fields"]["dead_letters"], 37);
    world.reload(vec![held("crm", 8)]);
    add(&world, "crm", 9);
    sleep(SECOND * 3).await;
    assert_eq!(told("ERROR").len(), 2, "another one");
}
