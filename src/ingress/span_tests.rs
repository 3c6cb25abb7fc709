//! What is traced of webhooks, and of what is none.

use std::time::Duration;

use tokio::time::sleep;

use super::testing::{ORDER, Rig, post, sign, signed};
use crate::domain::trace::Sampling;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{Queue, Span, Traces, Value};

fn traced(sampling: Sampling) -> (Rig, Queue) {
    let metrics = Metrics::default().spans();
    let (traces, queue) = Traces::new(sampling, || Duration::from_secs(60), 100, metrics);
    (Rig::traced(traces), queue)
}

fn spans(queue: &mut Queue) -> Vec<Span> {
    std::iter::from_fn(|| queue.spans.try_recv().ok()).collect()
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_was_stored_too_late_for_its_sender_says_so_in_its_trace() {
    let (rig, mut queue) = traced(Sampling::ALL);
    rig.store.open.send_replace(false);
    rig.send(signed(ORDER)).await.check(503, "store_unavailable");
    assert_eq!(spans(&mut queue), [], "it is not over yet");
    sleep(Duration::from_secs(10)).await;
    rig.store.open.send_replace(true);
    sleep(Duration::from_millis(1)).await;
    let [request, commit] = &spans(&mut queue)[..] else { panic!("two spans") };
    assert_eq!(request.context.trace_id, *rig.committed()[0].id.as_bytes());
    assert_eq!(request.error.as_deref(), Some("store_unavailable"));
    assert_eq!(attribute(request, "http.response.status_code"), Some(&Value::Number(503)));
    assert_eq!(commit.parent, Some(request.context.span_id));
    assert!(commit.ended_at - commit.started_at > 12_000_000_000, "{commit:?}");
}

#[tokio::test]
async fn what_is_refused_has_no_trace_however_much_of_it_comes() {
    let (rig, mut queue) = traced(Sampling::ALL);
    for _ in 0..10 {
        rig.send(post(ORDER, &sign(b"else"))).await.check(401, "unauthorized");
    }
    assert_eq!(spans(&mut queue), []);
}

#[tokio::test]
async fn what_is_not_sampled_leaves_no_span() {
    let (rig, mut queue) = traced(Sampling::share(1e-15).unwrap());
    rig.send(signed(ORDER)).await.check(202, "accepted");
    rig.send(signed(ORDER)).await.check(200, "duplicate");
    assert_eq!(spans(&mut queue), []);
}
