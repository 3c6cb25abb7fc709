//! What the sender is told, whatever happens.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::Full;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

use super::testing::{
    AHEAD, NOW, ORDER, PATH, Pieces, Rig, SECRET, post, sign, signed, source, table, verification,
};
use crate::domain::limit::{UNREAD_STREAM_WAIT, UNREAD_STREAMS_MAX};
use crate::domain::proof::Proof;
use crate::domain::route::Unrouted;
use crate::domain::signature::{SIGNATURE, Scheme, Secret, Signing, TIMESTAMP, Verification};
use crate::domain::target::Rate;
use crate::domain::webhook::WebhookId;
use crate::ingress::IngressLimits;
use crate::store::{CommitError, Health};

#[tokio::test]
async fn a_signed_webhook_is_durable_before_it_is_accepted() {
    let rig = Rig::new();
    let answered = rig.send(signed(ORDER)).await;
    answered.check(202, "accepted");
    assert_eq!(answered.headers["content-type"], "application/json");
    let [webhook] = &rig.committed()[..] else { panic!("one webhook") };
    let id = answered.field("webhook_id").unwrap();
    assert_eq!(WebhookId::parse(&id), Some(webhook.id));
    assert_eq!(webhook.received_at, NOW.plus(AHEAD), "the order of records goes on");
    assert_eq!((&*webhook.source, &*webhook.path), ("aryeo", PATH));
    assert_eq!(webhook.peer.as_deref(), Some("192.0.2.7"));
    assert_eq!((&*webhook.secret, webhook.table), ("env:S", [9; 8]));
    assert_eq!(webhook.activity.as_deref(), Some("ORDER_CREATED"));
    assert!(webhook.activity_id);
    assert_eq!(webhook.resource.object.as_deref(), Some("ORDER"));
    assert_eq!(webhook.resource.id.as_deref(), Some("o1"));
    assert_eq!(&webhook.body[..], ORDER);
    let names: Vec<_> = webhook.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["content-type", "user-agent"]);
    let targets: Vec<_> = webhook.deliveries.iter().map(|d| &*d.target).collect();
    assert_eq!(targets, ["crm", "billing"]);
    for line in [
        r#"relay_webhooks_received_total{source="aryeo",answer="accepted"} 1"#,
        r#"relay_webhooks_accepted_total{source="aryeo",activity="ORDER_CREATED"} 1"#,
        r#"relay_signature_verifications_total{source="aryeo",secret="env:S",result="ok"} 1"#,
        r#"relay_unrouted_total{source="aryeo"} 0"#,
        r#"relay_last_webhook_timestamp_seconds{source="aryeo"} 1700000000"#,
        r#"relay_webhook_duration_seconds_count{source="aryeo",answer="accepted"} 1"#,
    ] {
        rig.check_metric(line);
    }
}

#[tokio::test]
async fn every_real_body_is_accepted_byte_for_byte() {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let vectors: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../tests/data/aryeo/vectors.json")).unwrap();
    for vector in vectors {
        let text = |key: &str| vector[key].as_str().unwrap().to_owned();
        let mut source = source();
        let secrets = vec![Secret::new("env:V", text("secret").as_bytes()).unwrap()];
        source.verify =
            Proof::new(Some(Verification { secrets, ..verification() }), Vec::new()).unwrap();
        source.body_bytes_max = 2 * 1024 * 1024;
        let rig = Rig::with(source, Unrouted::Keep, IngressLimits::default());
        let body = BASE64_STANDARD.decode(text("body_base64")).unwrap();
        let answered = rig.send(post(&body, &text("signature_hex"))).await;
        answered.check(202, "accepted");
        assert_eq!(rig.committed()[0].body, body, "{}", text("name"));
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_signature_the_answer_is_the_same() {
    let mut source = source();
    let stamped = Verification { scheme: Scheme::AryeoTimestamped, ..verification() };
    source.verify = Proof::new(Some(stamped), Vec::new()).unwrap();
    let rig = Rig::with(source, Unrouted::Keep, IngressLimits::default());
    let secret = Secret::new("s", SECRET.as_bytes()).unwrap();
    let signing = Signing::With {
        scheme: Scheme::AryeoTimestamped,
        secret,
        also: Vec::new(),
        header: SIGNATURE,
    };
    let at = |moment| {
        let mut request = post(ORDER, "");
        for (name, value) in signing.sign("", ORDER, moment) {
            request.headers_mut().insert(name, value);
        }
        request
    };
    rig.send(at(NOW)).await.check(202, "accepted");
    let (mut missing, mut malformed, mut mismatch) = (at(NOW), at(NOW), at(NOW));
    missing.headers_mut().remove(SIGNATURE);
    malformed.headers_mut().insert(SIGNATURE, "sha256=00".parse().unwrap());
    mismatch.headers_mut().insert(SIGNATURE, sign(b"else").parse().unwrap());
    let stale = at(NOW.minus(Duration::from_secs(301)));
    let mut unstamped = at(NOW);
    unstamped.headers_mut().remove(TIMESTAMP);
    let first = rig.send(missing).await;
    first.check(401, "unauthorized");
    for other in [malformed, mismatch, stale, unstamped] {
        assert_eq!(rig.send(other).await, first);
    }
    assert_eq!(rig.committed().len(), 1);
    for (result, count) in [("missing", 2), ("malformed", 1), ("mismatch", 1), ("stale", 1)] {
        rig.check_metric(&format!(
            "relay_signature_verifications_total\
             {{source=\"aryeo\",secret=\"none\",result=\"{result}\"}} {count}"
        ));
    }
}

#[tokio::test]
async fn an_unknown_path_is_not_found_whatever_the_method_and_a_known_one_takes_post_only() {
    let rig = Rig::new();
    let request = |method: Method, path: &str| {
        Request::builder().method(method).uri(path).body(Full::new(Bytes::new())).unwrap()
    };
    for method in [Method::POST, Method::GET, Method::PUT, Method::PATCH, Method::OPTIONS] {
        let slash = format!("{PATH}/");
        rig.send(request(method.clone(), &slash)).await.check(404, "not_found");
        if method != Method::POST {
            let answered = rig.send(request(method, PATH)).await;
            answered.check(405, "method_not_allowed");
            assert_eq!(answered.headers["allow"], "POST");
            assert!(!answered.headers.contains_key("connection"));
        }
    }
    // Over HTTP/2 nobody else leaves the body of an answer to HEAD out.
    let answered = rig.send(request(Method::HEAD, PATH)).await;
    assert_eq!((answered.status, answered.body.len()), (405, 0));
    rig.check_metric(r#"relay_webhooks_received_total{source="none",answer="not_found"} 5"#);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_unread_where_it_waits_to_be_asked_for() {
    let rig = Rig::new();
    let (pieces, body) = Pieces::new(Some(64 * 1024 + 1));
    pieces.send(Bytes::from_static(b"x")).await.unwrap();
    let request = Request::post(PATH).header("expect", "100-continue").body(body).unwrap();
    let answered = rig.send(request).await;
    answered.check(413, "too_large");
    assert_eq!(answered.headers["connection"], "close");

    let answered = rig.send(signed(&vec![b'x'; 64 * 1024 + 1])).await;
    answered.check(413, "too_large");
    assert!(!answered.headers.contains_key("connection"), "it was read to its end");
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_read_on_for_a_while_so_that_the_answer_arrives() {
    let rig = Rig::new();
    for (more, closes) in [(3, false), (5, true)] {
        let (pieces, body) = Pieces::new(None);
        for _ in 0..=more {
            pieces.send(Bytes::from(vec![b'x'; 65 * 1024])).await.unwrap();
        }
        drop(pieces);
        let answered = rig.send(Request::post(PATH).body(body).unwrap()).await;
        answered.check(413, "too_large");
        assert_eq!(answered.headers.contains_key("connection"), closes);
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_stream_is_not_reset_before_its_answer_has_arrived() {
    let rig = Rig::new();
    let mut streams = Vec::new();
    for _ in 0..UNREAD_STREAMS_MAX + 2 {
        let (pieces, body) = Pieces::new(None);
        for _ in 0..6 {
            pieces.send(Bytes::from(vec![b'x'; 65 * 1024])).await.unwrap();
        }
        let request = Request::post(PATH).version(Version::HTTP_2).body(body).unwrap();
        rig.send(request).await.check(413, "too_large");
        streams.push(pieces);
    }
    let open = |streams: &[Sender<Bytes>]| streams.iter().filter(|one| !one.is_closed()).count();
    assert_eq!(open(&streams), UNREAD_STREAMS_MAX);
    // Whatever comes is read.
    sleep(Duration::from_millis(1)).await;
    assert!(streams.iter().all(|pieces| pieces.capacity() == pieces.max_capacity()));
    sleep(UNREAD_STREAM_WAIT).await;
    assert_eq!(open(&streams), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_hangs_times_out() {
    let rig = Rig::new();
    let (_pieces, body) = Pieces::new(Some(10));
    let begun = Instant::now();
    let answered = rig.send(Request::post(PATH).body(body).unwrap()).await;
    answered.check(408, "timeout");
    assert_eq!(answered.headers["connection"], "close");
    assert_eq!(begun.elapsed().as_secs(), 20);
}

#[tokio::test]
async fn the_same_bytes_are_a_duplicate_of_the_first_within_their_window() {
    let rig = Rig::new();
    let first = rig.send(signed(ORDER)).await;
    rig.clock.advance(Duration::from_secs(3600));
    let second = rig.send(signed(ORDER)).await;
    second.check(200, "duplicate");
    assert_eq!(second.field("webhook_id"), first.field("webhook_id"));
    rig.clock.advance(Duration::from_secs(24 * 3600));
    rig.send(signed(ORDER)).await.check(202, "accepted");

    rig.send(signed(b"{}")).await.check(202, "accepted");
    rig.send(signed(b"{}")).await.check(200, "duplicate");
    rig.clock.advance(Duration::from_secs(150));
    rig.send(signed(b"{}")).await.check(202, "accepted");
}

#[tokio::test]
async fn a_copy_waits_for_the_first_and_is_its_duplicate_or_takes_its_place() {
    for failing in [None, Some(CommitError::Unavailable)] {
        let rig = Rig::new();
        rig.store.open.send_replace(false);
        let first = rig.send_apart(ORDER);
        rig.begun(1).await;
        let second = rig.send_apart(ORDER);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.store.begun.available_permits(), 0, "the second waits");
        *rig.store.failing.lock().unwrap() = failing;
        rig.store.open.send_replace(true);
        let first = first.await.unwrap();
        match failing {
            None => {
                first.check(202, "accepted");
                let second = second.await.unwrap();
                second.check(200, "duplicate");
                assert_eq!(second.field("webhook_id"), first.field("webhook_id"));
            }
            Some(_) => {
                first.check(503, "store_unavailable");
                second.await.unwrap().check(202, "accepted");
            }
        }
        assert_eq!(rig.committed().len(), 1);
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_never_accepted() {
    let rig = Rig::new();
    for (error, name) in [
        (CommitError::Closed, "shutting_down"),
        (CommitError::DiskFull, "disk_full"),
        (CommitError::Overloaded, "overloaded"),
        (CommitError::Unavailable, "store_unavailable"),
    ] {
        *rig.store.failing.lock().unwrap() = Some(error);
        let answered = rig.send(signed(ORDER)).await;
        answered.check(503, name);
        assert!(answered.headers.contains_key("retry-after"));
    }
    rig.send(signed(ORDER)).await.check(202, "accepted");
    rig.ingress.shut_down();
    rig.send(signed(ORDER)).await.check(503, "shutting_down");
}

#[tokio::test]
async fn a_sender_that_hangs_up_after_its_last_byte_cancels_nothing() {
    let rig = Rig::new();
    rig.store.open.send_replace(false);
    let sender = rig.send_apart(ORDER);
    rig.begun(1).await;
    sender.abort();
    assert!(sender.await.unwrap_err().is_cancelled());
    rig.store.open.send_replace(true);
    rig.tracker.close();
    rig.tracker.wait().await;
    assert_eq!(rig.committed().len(), 1);
    rig.check_metric(r#"relay_webhooks_received_total{source="aryeo",answer="accepted"} 1"#);
    rig.send(signed(ORDER)).await.check(200, "duplicate");
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_is_answered_for_in_time_and_its_commit_goes_on() {
    let rig = Rig::new();
    rig.store.open.send_replace(false);
    let begun = Instant::now();
    let copy = rig.send_apart(ORDER);
    rig.send(signed(ORDER)).await.check(503, "store_unavailable");
    assert!(begun.elapsed() <= Duration::from_millis(2_501), "{:?}", begun.elapsed());
    copy.await.unwrap().check(503, "store_unavailable");
    assert!(rig.committed().is_empty());
    rig.store.open.send_replace(true);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.committed().len(), 1);
    rig.send(signed(ORDER)).await.check(200, "duplicate");
    let received = "relay_webhooks_received_total{source=\"aryeo\",answer=";
    rig.check_metric(&format!("{received}\"store_unavailable\"}} 2"));
    rig.check_metric(&format!("{received}\"accepted\"}} 0"));
    rig.check_metric(r#"relay_webhooks_accepted_total{source="aryeo",activity="ORDER_CREATED"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn the_slowest_stranger_gives_way_to_the_sender_and_who_is_verified_goes_on() {
    let limits =
        IngressLimits { in_flight_max: 4, peers_are_clients: false, ..IngressLimits::default() };
    let rig = Rig::with(source(), Unrouted::Keep, limits);
    rig.store.open.send_replace(false);
    let verified = rig.send_apart(ORDER);
    rig.begun(1).await;
    let strangers = [(); 2].map(|()| {
        let (pieces, body) = Pieces::new(Some(10));
        let (ingress, request) =
            (Arc::clone(&rig.ingress), Request::post(PATH).body(body).unwrap());
        let hanging = rig.tracker.spawn(async move { ingress.serve(request, None, None).await });
        (pieces, hanging)
    });
    sleep(Duration::from_millis(1)).await;
    let second = rig.send_apart(b"{}");
    rig.begun(1).await;
    let third = rig.send_apart(b"[]");
    rig.begun(1).await;
    let [(_first, slowest), (pieces, slow)] = strangers;
    let slowest = slowest.await.unwrap();
    assert_eq!(
        (slowest.status().as_u16(), slowest.headers()["connection"].to_str().unwrap()),
        (408, "close")
    );
    rig.check_metric(r#"relay_webhooks_received_total{source="aryeo",answer="timeout"} 1"#);
    rig.store.open.send_replace(true);
    for webhook in [verified, second, third] {
        webhook.await.unwrap().check(202, "accepted");
    }
    pieces.send(Bytes::from_static(b"ten bytes.")).await.unwrap();
    drop(pieces);
    assert_eq!(slow.await.unwrap().status(), 401);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_can_give_way_the_answer_is_that_it_is_too_much() {
    let limits = IngressLimits { in_flight_max: 1, ..IngressLimits::default() };
    let rig = Rig::with(source(), Unrouted::Keep, limits);
    rig.store.open.send_replace(false);
    let verified = rig.send_apart(ORDER);
    rig.begun(1).await;
    let answered = rig.send(signed(b"{}")).await;
    answered.check(503, "overloaded");
    assert_eq!(answered.headers["retry-after"], "1");
    rig.store.open.send_replace(true);
    verified.await.unwrap().check(202, "accepted");
    rig.send(signed(b"{}")).await.check(202, "accepted");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_charged_after_verification_and_waits_a_second_at_most() {
    let rate =
        |count| Rate { count: NonZeroU32::new(count).unwrap(), per: Duration::from_secs(60) };
    let limited = |count| {
        let mut source = source();
        source.rate_limit = Some(rate(count));
        source
    };
    let rig = Rig::with(limited(2), Unrouted::Keep, IngressLimits::default());
    for _ in 0..5 {
        rig.send(post(ORDER, "00")).await.check(401, "unauthorized");
    }
    rig.send(signed(b"1")).await.check(202, "accepted");
    rig.send(signed(b"2")).await.check(202, "accepted");
    let refused = rig.send(signed(b"3")).await;
    refused.check(429, "rate_limited");
    assert_eq!(refused.headers["retry-after"], "30");

    // A reload that leaves the rate as it is gives no new allowance; another rate does.
    rig.tables.send_replace(table(limited(2), Unrouted::Keep));
    rig.send(signed(b"3")).await.check(429, "rate_limited");
    sleep(Duration::from_millis(29_500)).await;
    rig.send(signed(b"3")).await.check(202, "accepted");
    rig.tables.send_replace(table(limited(1), Unrouted::Keep));
    rig.send(signed(b"4")).await.check(202, "accepted");
    rig.send(signed(b"5")).await.check(429, "rate_limited");
}

#[tokio::test(start_paused = true)]
async fn a_flood_from_one_address_is_refused_unread_and_costs_the_sender_nothing() {
    let rig = Rig::new();
    let wrong = sign(b"else");
    for _ in 0..100 {
        rig.send(post(ORDER, &wrong)).await.check(401, "unauthorized");
        let elsewhere = Request::post("/elsewhere").body(Full::new(Bytes::new())).unwrap();
        rig.send(elsewhere).await.check(404, "not_found");
    }
    let unsigned = || {
        let (mut head, body) = signed(b"unsigned").into_parts();
        head.headers.remove("signature");
        Request::from_parts(head, body)
    };
    rig.send(unsigned()).await.check(401, "unauthorized");
    let refused = rig.send(unsigned()).await;
    refused.check(429, "rate_limited");
    assert_eq!(refused.headers["retry-after"], "1");
    // This may be the sender, whom nobody knows yet.
    rig.send(post(ORDER, &wrong)).await.check(401, "unauthorized");
    rig.send_from("192.0.2.8", signed(b"1")).await.check(202, "accepted");
    // Of one who does not bring it, a body is not waited for.
    let (_pieces, never) = Pieces::new(Some(10));
    let (head, _) = post(ORDER, &wrong).into_parts();
    rig.send(Request::from_parts(head, never)).await.check(429, "rate_limited");
    rig.check_metric(r#"relay_webhooks_received_total{source="aryeo",answer="rate_limited"} 2"#);
    for number in 0..300 {
        rig.send_from("192.0.2.8", post(ORDER, &wrong)).await.check(401, "unauthorized");
        let body = number.to_string();
        rig.send_from("192.0.2.8", signed(body.as_bytes())).await;
    }
    assert_eq!(rig.committed().len(), 300);
    // Where it came from once, it may always come from again.
    sleep(Duration::from_secs(10)).await;
    rig.send(signed(b"from here")).await.check(202, "accepted");
    for _ in 0..300 {
        rig.send(unsigned()).await.check(401, "unauthorized");
    }
}

#[tokio::test]
async fn what_no_route_wants_is_kept_or_dropped_as_the_table_says() {
    let rig = Rig::new();
    for body in [&b""[..], b"no json", br#"{"object":"GROUP","id":"g","name":"ORDER_CREATED"}"#] {
        rig.send(signed(body)).await.check(202, "accepted");
    }
    assert_eq!(rig.committed().len(), 3);
    assert!(rig.committed().iter().all(|webhook| webhook.deliveries.is_empty()));
    rig.check_metric(r#"relay_unrouted_total{source="aryeo"} 3"#);
    rig.check_metric(r#"relay_webhooks_accepted_total{source="aryeo",activity="none"} 3"#);

    // The next request sees the new table.
    rig.tables.send_replace(table(source(), Unrouted::Drop));
    for _ in 0..2 {
        let answered = rig.send(signed(b"dropped")).await;
        answered.check(200, "dropped");
        assert_eq!(answered.field("webhook_id"), None);
    }
    rig.send(signed(ORDER)).await.check(202, "accepted");
    assert_eq!(rig.committed().len(), 4);
    rig.check_metric(r#"relay_unrouted_total{source="aryeo"} 5"#);
}

#[tokio::test]
async fn what_the_store_knows_of_a_source_is_shown() {
    let rig = Rig::new();
    rig.check_metric(r#"relay_duplicates_window_seconds{source="aryeo"} 86400"#);
    rig.ingress.observe(&Health {
        duplicates_reach: Some(Duration::from_secs(60)),
        newest_by_source: vec![("aryeo".into(), NOW), ("gone".into(), NOW)],
        ..Health::default()
    });
    rig.check_metric(r#"relay_duplicates_window_seconds{source="aryeo"} 60"#);
    rig.check_metric(r#"relay_last_webhook_timestamp_seconds{source="aryeo"} 1700000000"#);
    rig.check_metric(r#"relay_silence_after_seconds{source="aryeo"} 86400"#);
}

#[tokio::test]
async fn a_record_from_the_future_does_not_put_the_alert_on_silence_to_sleep() {
    let rig = Rig::new();
    let newest_by_source = vec![("aryeo".into(), NOW.plus(AHEAD))];
    let health = Health { newest_by_source, ..Health::default() };
    for _ in 0..2 {
        rig.ingress.observe(&health);
        // What was received at the latest when it started, and does not creep.
        rig.check_metric(r#"relay_last_webhook_timestamp_seconds{source="aryeo"} 1700000000"#);
        rig.clock.advance(Duration::from_secs(60));
    }
    rig.send(signed(ORDER)).await.check(202, "accepted");
    rig.ingress.observe(&health);
    rig.check_metric(r#"relay_last_webhook_timestamp_seconds{source="aryeo"} 1700000120"#);
}
