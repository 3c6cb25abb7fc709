//! What lanes promise, against a store in memory and a scripted network, in paused time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use tokio::sync::watch;
use tokio::time::sleep;

use super::testing::{Log, Reply, START, World, answer, rule, slow, status, target};
use crate::domain::delivery::{Cause, Settlement};
use crate::domain::outcome::Outcome;
use crate::domain::signature::{SIGNATURE, Scheme, Secret, Signing, TIMESTAMP};
use crate::domain::target::Rate;
use crate::domain::template::{HeaderRule, HeaderText};
use crate::net::client::{Answer, SendFailure};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn retry(at: Duration) -> Settlement {
    Settlement::Retry { at: START.plus(at) }
}

#[tokio::test(start_paused = true)]
async fn every_answer_and_every_failure_is_settled_and_kept_with_its_attempt() {
    let failed = |failure: SendFailure| Reply::After(Duration::ZERO, Err(failure));
    type Case = (fn() -> Result<u16, SendFailure>, Outcome, Settlement, &'static str);
    let cases: [Case; 8] = [
        (|| Ok(204), Outcome::Delivered, Settlement::Delivered, ""),
        (|| Ok(410), Outcome::GivenUp, Settlement::DeadLetter(Cause::GivenUp), "x"),
        (|| Ok(302), Outcome::Status, retry(SECOND), "x"),
        (|| Err(SendFailure::Refused("nobody".into())), Outcome::Refused, retry(SECOND), "nobody"),
        (|| Err(SendFailure::Timeout), Outcome::Timeout, retry(SECOND), "no complete"),
        (|| Err(SendFailure::Tls("bad ca".into())), Outcome::Tls, retry(SECOND), "bad ca"),
        (|| Err(SendFailure::Reset("cut".into())), Outcome::Reset, retry(SECOND), "cut"),
        (|| Err(SendFailure::AnswerTooLarge), Outcome::AnswerTooLarge, retry(SECOND), "the answer"),
    ];
    for (reply, outcome, settlement, excerpt) in cases {
        let mut world = World::new(vec![target("crm")], move |_| match reply() {
            Ok(code) => status(code),
            Err(failure) => failed(failure),
        });
        world.add("crm", Duration::ZERO);
        sleep(Duration::from_millis(1)).await;
        world.stopped().await;
        let settled = world.store.settled();
        assert_eq!(settled.len(), 1);
        let attempt = settled[0].attempt.clone().unwrap();
        assert_eq!((attempt.outcome, settled[0].settlement), (outcome, settlement));
        assert_eq!(attempt.status, reply().ok());
        assert!(attempt.excerpt.starts_with(excerpt.as_bytes()) && attempt.excerpt.len() <= 1024);
        assert_eq!(attempt.excerpt.is_empty(), outcome == Outcome::Delivered);
        let page = world.metrics.render();
        let counted =
            format!("relay_attempts_total{{target=\"crm\",outcome=\"{}\"}} 1", outcome.name());
        assert!(page.contains(&counted), "{page}");
        assert!(page.contains("relay_attempts_in_flight{target=\"crm\"} 0"), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_shows_the_request_is_kept_without_our_secrets() {
    let mut crm = target("crm");
    let mut value = HeaderValue::from_static("Bearer s3cret");
    value.set_sensitive(true);
    let value = HeaderText::Secret { label: "env:TOKEN".into(), value, begins: 7 };
    crm.headers.push(HeaderRule { name: AUTHORIZATION, value });
    crm.sign = Signing::With {
        scheme: Scheme::Aryeo,
        secret: Secret::new("env:CRM", b"key").unwrap(),
        also: Vec::new(),
        header: SIGNATURE,
    };
    let mut world = World::new(vec![crm], |sent| {
        let [token, signature] =
            [AUTHORIZATION, SIGNATURE].map(|name| sent.headers[name].to_str().unwrap().to_owned());
        let bare = token.trim_start_matches("Bearer ");
        let excerpt = format!("auth {token}, {bare}; signed {signature}").into();
        Reply::After(Duration::ZERO, Ok(Answer { excerpt, ..answer(500, &[]) }))
    });
    world.add("crm", Duration::ZERO);
    sleep(Duration::from_millis(1)).await;
    world.stopped().await;
    let attempt = world.store.settled()[0].attempt.clone().unwrap();
    assert_eq!(attempt.excerpt, Bytes::from_static(b"auth ***, ***; signed ***"));
}

#[tokio::test(start_paused = true)]
async fn the_request_carries_the_exact_bytes_to_the_whole_url() {
    let world = World::new(vec![target("crm")], |_| status(200));
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    let sent = &world.sent("crm")[0];
    assert_eq!(sent.url, "http://crm.test/hook?tenant=1");
    assert_eq!(sent.body, Bytes::from_static(b"{\"a\": 1}"));
    assert_eq!(sent.headers[CONTENT_LENGTH], "8");
    assert_eq!(sent.headers["relay-activity"], "ORDER_CREATED");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_down_is_tried_again_at_doubling_waits_until_it_is_back() {
    let world =
        World::new(vec![target("crm")], |sent| status(if sent.attempt < 5 { 500 } else { 200 }));
    world.add("crm", Duration::ZERO);
    sleep(Duration::from_secs(60)).await;
    let sent = world.sent("crm");
    let times: Vec<_> = sent.iter().map(|sent| sent.at.as_millis() / 100).collect();
    assert_eq!(times, [0, 10, 30, 70, 150]);
    assert_eq!(sent.iter().map(|sent| sent.attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(world.store.settlements().last(), Some(&Settlement::Delivered));
    assert_eq!(world.store.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn retry_after_on_429_holds_the_whole_lane_and_no_other() {
    let world = World::new(vec![target("crm"), target("mail")], |sent| {
        match (&*sent.target, sent.at < Duration::from_secs(30)) {
            ("crm", true) => {
                Reply::After(Duration::ZERO, Ok(answer(429, &[("retry-after", "30")])))
            }
            _ => status(200),
        }
    });
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    world.add("crm", Duration::ZERO);
    world.add("mail", Duration::ZERO);
    sleep(Duration::from_secs(28)).await;
    assert_eq!((world.sent("crm").len(), world.sent("mail").len()), (1, 1));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.sent("crm").len(), 3);
    assert_eq!(world.store.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn retry_after_on_another_status_holds_only_its_delivery() {
    let world = World::new(vec![target("crm")], |sent| match sent.at < SECOND {
        true => Reply::After(Duration::ZERO, Ok(answer(500, &[("retry-after", "30")]))),
        false => status(200),
    });
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    assert_eq!((world.sent("crm").len(), world.store.pending()), (2, 1));
    sleep(Duration::from_secs(29)).await;
    assert_eq!(world.store.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn attempts_at_the_same_time_never_exceed_the_concurrency_and_reach_it() {
    let mut crm = target("crm");
    crm.concurrency = 3;
    let world = World::new(vec![crm], |_| slow(SECOND, 200));
    (0..30).for_each(|_| world.add("crm", Duration::ZERO));
    sleep(Duration::from_millis(10_500)).await;
    let sent = world.sent("crm");
    assert_eq!((sent.len(), world.store.pending()), (30, 0));
    assert_eq!(sent.iter().map(|sent| sent.in_flight).max(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_is_kept_without_holding_leases() {
    let mut crm = target("crm");
    crm.rate_limit = Some(Rate { count: NonZeroU32::new(2).unwrap(), per: SECOND });
    let world = World::new(vec![crm], |_| status(200));
    sleep(Duration::from_secs(600)).await;
    (0..20).for_each(|_| world.add("crm", Duration::ZERO));
    sleep(Duration::from_millis(4_750)).await;
    assert_eq!((world.sent("crm").len(), world.store.leased()), (10, 0));
    sleep(Duration::from_secs(5)).await;
    let times: Vec<_> = world.sent("crm").iter().map(|sent| sent.at.as_millis()).collect();
    assert_eq!(times.len(), 20);
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 500), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_delays_no_other() {
    let world = World::new(vec![target("hangs"), target("crm")], |sent| match &*sent.target {
        "hangs" => slow(HOUR, 200),
        _ => status(200),
    });
    for _ in 0..100 {
        world.add("hangs", Duration::ZERO);
        world.add("crm", Duration::ZERO);
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!((world.sent("hangs").len(), world.sent("crm").len()), (16, 100));
    sleep(Duration::from_secs(10)).await;
    assert!(world.store.settlements().contains(&retry(Duration::from_secs(11))));
}

#[tokio::test(start_paused = true)]
async fn new_settings_are_for_the_next_attempt_and_leave_those_in_flight() {
    let world = World::new(vec![target("crm")], |sent| match sent.url.host() {
        Some("crm.test") => slow(Duration::from_secs(5), 200),
        _ => status(200),
    });
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    let mut moved = target("crm");
    moved.url = "https://new.test/".parse().unwrap();
    world.reload(vec![moved.clone()]);
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    assert_eq!(world.store.settlements(), [Settlement::Delivered]);
    moved.headers = vec![rule("x-a", "1")];
    world.reload(vec![moved]);
    world.add("crm", Duration::ZERO);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(world.store.settlements(), [Settlement::Delivered; 3]);
    let sent = world.sent("crm");
    assert_eq!(sent[1].url.host(), Some("new.test"));
    assert_eq!(sent[2].headers["x-a"], "1");
    let clients: Vec<_> = sent.iter().map(|sent| sent.client).collect();
    assert_eq!(clients, [1, 2, 2], "connections are kept unless they lead elsewhere");
}

#[tokio::test(start_paused = true)]
async fn a_removed_target_finishes_its_attempts_keeps_its_deliveries_and_may_come_back() {
    let world = World::new(vec![target("crm")], |_| slow(Duration::from_secs(5), 200));
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    world.reload(vec![target("mail")]);
    sleep(SECOND).await;
    world.add("crm", Duration::ZERO);
    sleep(HOUR).await;
    assert_eq!((world.sent("crm").len(), world.store.settled().len()), (1, 1));
    assert_eq!((world.store.pending(), world.store.leased()), (1, 0));
    world.reload(vec![target("crm")]);
    sleep(Duration::from_secs(6)).await;
    assert_eq!((world.sent("crm").len(), world.store.pending()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_target_back_before_its_attempts_end_is_still_one_lane() {
    let mut crm = target("crm");
    crm.concurrency = 2;
    let world = World::new(vec![crm.clone()], |_| slow(Duration::from_secs(5), 200));
    (0..6).for_each(|_| world.add("crm", Duration::ZERO));
    for _ in 0..4 {
        sleep(SECOND).await;
        world.reload(Vec::new());
        sleep(Duration::from_millis(10)).await;
        world.reload(vec![crm.clone()]);
    }
    sleep(Duration::from_secs(60)).await;
    let sent = world.sent("crm");
    assert_eq!((sent.len(), world.store.pending()), (6, 0));
    assert!(sent.iter().all(|sent| sent.in_flight <= 2));
}

#[tokio::test(start_paused = true)]
async fn stopping_leases_no_more_and_finishes_what_is_in_flight() {
    let mut world = World::new(vec![target("crm")], |_| slow(Duration::from_secs(5), 200));
    (0..20).for_each(|_| world.add("crm", Duration::ZERO));
    sleep(SECOND).await;
    world.stopped().await;
    assert_eq!(world.store.settlements(), [Settlement::Delivered; 16]);
    assert_eq!((world.sent("crm").len(), world.store.pending()), (16, 4));
}

#[tokio::test(start_paused = true)]
async fn attempts_that_are_cut_off_lapse() {
    let mut world = World::new(vec![target("crm")], |_| slow(Duration::from_secs(5), 200));
    (0..3).for_each(|_| world.add("crm", Duration::ZERO));
    sleep(SECOND).await;
    assert_eq!(world.store.leased(), 3);
    world.tasks.shutdown().await;
    sleep(SECOND).await;
    assert_eq!((world.store.leased(), world.store.pending()), (0, 3));
    assert!(world.metrics.render().contains("relay_attempts_in_flight{target=\"crm\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_neither_the_lane_nor_the_delivery_and_blocks_no_other() {
    let mut crm = target("crm");
    crm.concurrency = 1;
    let panics = AtomicU32::new(0);
    let world = World::new(vec![crm], move |_| match panics.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Panic,
        _ => status(200),
    });
    world.add("crm", Duration::ZERO);
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    let first: Vec<_> = world.store.settlements();
    assert_eq!(first, [retry(Duration::from_secs(60)), Settlement::Delivered]);
    assert!(world.store.settled()[0].attempt.is_none());
    sleep(Duration::from_secs(60)).await;
    assert_eq!((world.sent("crm").len(), world.store.pending()), (3, 0));
    assert!(world.metrics.render().contains("relay_attempts_in_flight{target=\"crm\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_breaks_starts_again_and_stops_no_other() {
    let world = World::new(vec![target("breaks"), target("crm")], |_| status(200));
    world.add("breaks", Duration::ZERO);
    world.add("crm", Duration::ZERO);
    sleep(Duration::from_millis(900)).await;
    assert_eq!((world.sent("breaks").len(), world.sent("crm").len()), (0, 1));
    sleep(Duration::from_millis(200)).await;
    assert_eq!((world.sent("breaks").len(), world.store.pending()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_past_its_time_is_tried_once_before_it_is_a_dead_letter() {
    let world = World::new(vec![target("crm"), target("mail")], |sent| {
        status(if &*sent.target == "crm" { 500 } else { 200 })
    });
    world.add("crm", 100 * HOUR);
    world.add("mail", 100 * HOUR);
    sleep(SECOND).await;
    assert_eq!((world.sent("crm").len(), world.sent("mail").len()), (1, 1));
    for settled in world.store.settled() {
        let expected = match &*settled.delivery.target {
            "crm" => Settlement::DeadLetter(Cause::Expired),
            _ => Settlement::Delivered,
        };
        assert_eq!(settled.settlement, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn deliveries_of_a_removed_target_become_dead_letters_when_their_time_is_over() {
    let world = World::new(vec![target("crm")], |_| status(200));
    (0..250).for_each(|_| world.add("gone", 71 * HOUR));
    world.add("gone", Duration::ZERO);
    sleep(HOUR - SECOND).await;
    assert_eq!(world.store.pending(), 251);
    sleep(Duration::from_secs(62)).await;
    assert_eq!(world.store.pending(), 1);
    let dead = Settlement::DeadLetter(Cause::TargetRemoved);
    assert!(world.store.settlements().iter().all(|settlement| *settlement == dead));
    assert!(world.sent("gone").is_empty());
    let counted = "relay_deliveries_settled_total{target=\"gone\",settlement=\"dead_letter\"} 250";
    assert!(world.metrics.render().contains(counted));
}

#[tokio::test(start_paused = true)]
async fn a_removed_target_s_deliveries_are_kept_for_as_long_as_it_asked() {
    let (mut short, mut long) = (target("short"), target("long"));
    short.retry.keep_for = 10 * HOUR;
    long.retry.keep_for = 100 * HOUR;
    let world = World::new(vec![short, long], |_| status(500));
    sleep(SECOND).await;
    world.reload(vec![target("crm")]);
    sleep(SECOND).await;
    world.add("short", 9 * HOUR);
    world.add("long", 90 * HOUR);
    sleep(2 * HOUR).await;
    assert_eq!(world.store.pending(), 1);
    assert_eq!(&*world.store.settled()[0].delivery.target, "short");
    sleep(9 * HOUR).await;
    assert_eq!(world.store.pending(), 0);
    let dead = Settlement::DeadLetter(Cause::TargetRemoved);
    assert_eq!(world.store.settlements(), [dead, dead]);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_nobody_changes_any_more_stays_in_force() {
    let mut world = World::new(vec![target("crm")], |_| status(200));
    let table = Arc::clone(&world.table.borrow());
    world.table = watch::channel(table).0;
    sleep(HOUR).await;
    world.add("crm", Duration::ZERO);
    sleep(SECOND).await;
    assert_eq!(world.store.settlements(), [Settlement::Delivered]);
    world.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_one_event_with_all_fields_and_nothing_secret() {
    let (log, _guard) = Log::capture();
    let mut crm = target("crm");
    crm.headers = vec![rule("x-a", "h1dden")];
    let world = World::new(vec![crm], |sent| status([500, 200, 410][sent.attempt as usize - 1]));
    world.add("crm", Duration::ZERO);
    sleep(Duration::from_secs(5)).await;
    world.add("gone", Duration::ZERO);
    let mut gone = target("crm");
    gone.retry.give_up_on = vec![500];
    world.reload(vec![gone]);
    world.add("crm", Duration::ZERO);
    sleep(Duration::from_secs(5)).await;
    let (text, events) = (log.text(), log.events());
    let told: Vec<_> = events
        .iter()
        .map(|event| (event["level"].as_str().unwrap(), event["fields"]["settlement"].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("WARN", Some("retry")),
            ("INFO", Some("delivered")),
            ("WARN", None),
            ("ERROR", Some("dead_letter")),
        ]
    );
    let fields = &events[0]["fields"];
    assert_eq!(fields["next_attempt_at"], "2023-11-14T22:13:21.000Z");
    for (name, value) in
        [("target_name", "crm"), ("outcome", "status"), ("activity", "ORDER_CREATED")]
    {
        assert_eq!(fields[name], value);
    }
    for (name, value) in [("attempt", 1), ("status", 500), ("duration_ms", 0)] {
        assert_eq!(fields[name], value);
    }
    assert_eq!(events[2]["fields"]["pending"], 1);
    for hidden in ["h1dden", "xxxx", "\\\"a\\\"", "{\"a\": 1}"] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_expires_while_the_clock_is_in_doubt() {
    let world = World::new(vec![target("crm")], |_| status(500));
    world.doubt(true);
    world.add("crm", HOUR * 200);
    world.add("gone", HOUR * 200);
    sleep(HOUR).await;
    assert_eq!(world.store.pending(), 2, "neither expired nor removed");
    world.doubt(false);
    sleep(HOUR * 2).await;
    assert_eq!(world.store.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn times_of_records_that_are_ahead_of_the_wall_clock_age_nothing_and_sign_nothing() {
    let mut crm = target("crm");
    let secret = Secret::new("s", b"abc").unwrap();
    crm.sign = Signing::With {
        scheme: Scheme::AryeoTimestamped,
        secret,
        also: Vec::new(),
        header: SIGNATURE,
    };
    let world = World::new(vec![crm], |sent| match sent.attempt {
        1 => {
            // By the target's clock, which is the wall clock: a minute from then.
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + WALL + SECOND * 60);
            Reply::After(Duration::ZERO, Ok(answer(503, &[("retry-after", &date)])))
        }
        _ => status(200),
    });
    world.fall_behind(AHEAD);
    world.add("crm", AHEAD - HOUR);
    sleep(SECOND * 59).await;
    let sent = world.sent("crm");
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].headers[TIMESTAMP], WALL.as_secs().to_string());
    assert_eq!(world.store.settlements(), [retry(SECOND * 60)], "an hour old, whatever it says");
    sleep(SECOND * 2).await;
    assert_eq!(world.store.pending(), 0);
}

const AHEAD: Duration = Duration::from_secs(240 * 3600);

/// What the wall clock shows when records are ahead of it.
const WALL: Duration = Duration::from_millis(START.as_millis()).checked_sub(AHEAD).unwrap();
