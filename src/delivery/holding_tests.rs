//! What holds a lane back and what ends that: suspension and pause, in paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::testing::{World, slow, status, target};
use crate::domain::lane::{Failure, Suspension};
use crate::domain::outcome::Outcome;
use crate::domain::target::Target;
use crate::domain::time::Timestamp;
use crate::store::marks::{Mark, MarkKeeper, Word};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A target that can be up or down, and a lane to it with this many webhooks that are due.
fn world(targets: Vec<Target>, webhooks: usize) -> (World, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let world = World::new(targets, move |sent| {
        let answers = &*sent.target != "crm" || is_up.load(Ordering::Relaxed);
        status(if answers { 200 } else { 503 })
    });
    for _ in 0..webhooks {
        world.add("crm", Duration::ZERO);
    }
    (world, up)
}

fn gauge(world: &World, name: &str) -> bool {
    world.metrics.render().contains(&format!("{name}{{target=\"crm\"}} 1"))
}

#[tokio::test(start_paused = true)]
async fn a_suspended_lane_probes_with_one_delivery_at_a_time_after_doubling_waits() {
    let (world, _) = world(vec![Target { concurrency: 10, ..target("crm") }, target("mail")], 1000);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.sent("crm").len(), 10, "all at once, and then no more");
    assert!(gauge(&world, "relay_target_suspended"));
    sleep(20 * MINUTE).await;
    let probes: Vec<_> = world.sent("crm").iter().skip(10).map(|sent| sent.at.as_secs()).collect();
    assert_eq!(probes[..9], [1, 3, 7, 15, 31, 63, 127, 255, 511]);
    assert_eq!(probes.len(), 11, "then every five minutes: {probes:?}");
    let tried = world.sent("crm");
    assert!(tried.iter().all(|sent| sent.attempt == 1), "those never tried first");
    world.add("mail", Duration::ZERO);
    sleep(SECOND).await;
    assert_eq!(world.sent("mail").len(), 1, "nobody else notices");
}

#[tokio::test(start_paused = true)]
async fn the_first_success_resumes_the_lane_and_its_backlog_is_delivered() {
    let (world, up) = world(vec![target("crm")], 1000);
    sleep(10 * SECOND).await;
    assert!(gauge(&world, "relay_target_suspended"));
    up.store(true, Ordering::Relaxed);
    sleep(10 * SECOND).await;
    assert_eq!(world.store.pending(), 0, "not one after the other");
    assert!(!gauge(&world, "relay_target_suspended"));
    assert!(world.store.marks().borrow().get("crm").is_none_or(|mark| mark.suspension.is_none()));
}

#[tokio::test(start_paused = true)]
async fn what_two_webhooks_do_to_a_target_suspends_nothing() {
    let (world, up) = world(vec![target("crm")], 2);
    sleep(30 * MINUTE).await;
    assert!(world.sent("crm").len() > 10 && !gauge(&world, "relay_target_suspended"));
    up.store(true, Ordering::Relaxed);
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    assert_eq!(world.sent("crm").last().unwrap().attempt, 1, "at once");
}

#[tokio::test(start_paused = true)]
async fn a_suspension_is_remembered_and_another_server_or_the_operator_ends_it() {
    let (world, up) = world(vec![target("crm")], 100);
    sleep(MINUTE).await;
    let marked = world.store.marks().borrow()["crm"].suspension.unwrap();
    assert!(marked.probes > 3 && marked.reason.status == Some(503), "{marked:?}");
    up.store(true, Ordering::Relaxed);
    let before = world.sent("crm").len();
    let now = marked.since;
    world.mark(move |marks| {
        marks.get_mut("crm").unwrap().word = Some(Word::Resume(now));
    });
    sleep(Duration::from_millis(1)).await;
    assert!(world.sent("crm").len() > before + 10, "at once, and not one after the other");

    let (world, _) = self::world(vec![target("crm")], 100);
    sleep(MINUTE).await;
    let before = world.sent("crm").len();
    world.reload(vec![Target { url: "http://elsewhere.test/".parse().unwrap(), ..target("crm") }]);
    sleep(Duration::from_millis(1)).await;
    assert!(world.sent("elsewhere").len() + world.sent("crm").len() > before + 9);
}

/// Suspended then, as it was written down before a restart.
fn suspended(since: Timestamp, word: Option<Word>) -> Mark {
    let reason = Failure { outcome: Outcome::Status, status: Some(503) };
    let suspension = Suspension { since, reason, probes: 9, next_probe_at: since.plus(MINUTE) };
    Mark { word, suspension: Some(suspension) }
}

#[tokio::test(start_paused = true)]
async fn a_suspension_of_a_time_that_is_far_away_is_probed_like_any_other() {
    let (world, up) = world(vec![target("crm")], 100);
    up.store(true, Ordering::Relaxed);
    let wrong = world.now().plus(365 * 24 * 60 * MINUTE);
    world.mark(|marks| marks.extend([("crm".into(), suspended(wrong, None))]));
    sleep(MINUTE).await;
    assert_eq!(world.sent("crm").len(), 0);
    sleep(5 * MINUTE).await;
    assert_eq!(world.store.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_said_holds_though_the_relay_was_killed_at_once() {
    let (world, up) = world(vec![target("crm")], 100);
    up.store(true, Ordering::Relaxed);
    let now = world.now();
    let mark = suspended(now.minus(SECOND), Some(Word::Resume(now)));
    world.mark(|marks| marks.extend([("crm".into(), mark)]));
    sleep(SECOND).await;
    assert_eq!(world.store.pending(), 0);
    // What came after it is not what he spoke of.
    let (world, _) = self::world(vec![target("crm")], 100);
    let mark = suspended(now, Some(Word::Resume(now.minus(MINUTE))));
    world.mark(|marks| marks.extend([("crm".into(), mark)]));
    sleep(SECOND).await;
    assert_eq!(world.sent("crm").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_paused_lane_begins_nothing_and_finishes_what_it_began() {
    let mut world = World::new(vec![target("crm")], |_| slow(10 * SECOND, 200));
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    let now = world.now();
    world.mark(move |marks| {
        marks.entry("crm".into()).or_default().word = Some(Word::Pause(now));
    });
    sleep(SECOND).await;
    assert!(gauge(&world, "relay_target_paused"));
    world.add("crm", Duration::ZERO);
    sleep(60 * MINUTE).await;
    assert_eq!((world.sent("crm").len(), world.store.pending()), (1, 1));
    // Both pauses have to end.
    world.reload(vec![Target { paused: true, ..target("crm") }]);
    world.mark(move |marks| marks.get_mut("crm").unwrap().word = Some(Word::Resume(now)));
    sleep(60 * MINUTE).await;
    assert_eq!(world.store.pending(), 1);
    world.reload(vec![target("crm")]);
    sleep(20 * SECOND).await;
    assert_eq!(world.store.pending(), 0);
    assert!(!gauge(&world, "relay_target_paused"));
    world.stopped().await;
}
