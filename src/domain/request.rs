//! The outgoing request of an attempt, built without I/O.

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::pointer::Document;
use crate::domain::route::set_header;
use crate::domain::target::Target;
use crate::domain::template::{HeaderRule, Values, carried};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::domain::webhook::{Header, Resource, WebhookId};

/// What a request says of its webhook.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The id.
    pub webhook_id: WebhookId,
    /// Which repeat on purpose it is: a replay with `again` has the id `<webhook_id>.<n>`.
    pub again: u32,
    /// The source.
    pub source: &'a str,
    /// The activity.
    pub activity: Option<&'a str>,
    /// The resource.
    pub resource: &'a Resource,
    /// When it was received.
    pub received_at: Timestamp,
    /// The inbound headers that were kept.
    pub inbound: &'a [Header],
    /// The routes' headers.
    pub route_headers: &'a [Header],
    /// The exact bytes.
    pub body: &'a [u8],
    /// This attempt, from 1.
    pub attempt: u32,
    /// Where it is in a trace, if there are traces.
    pub trace: Option<TraceContext>,
}

const AGENT: &str = concat!("aryeo-relay/", env!("CARGO_PKG_VERSION"));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const RELAY_WEBHOOK_ID: HeaderName = HeaderName::from_static("relay-webhook-id");
const RELAY_SOURCE: HeaderName = HeaderName::from_static("relay-source");
const RELAY_ACTIVITY: HeaderName = HeaderName::from_static("relay-activity");
const RELAY_RESOURCE: HeaderName = HeaderName::from_static("relay-resource");
const RELAY_RECEIVED_AT: HeaderName = HeaderName::from_static("relay-received-at");
const RELAY_ATTEMPT: HeaderName = HeaderName::from_static("relay-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The headers of an attempt.
#[derive(Debug)]
pub struct Built {
    /// The relay's, the scheme's, then the operator's.
    pub headers: HeaderMap,
    /// The operator's that were left out, because a placeholder had nothing to stand for.
    pub left_out: usize,
}

/// The headers of an attempt to deliver `content` to `target`.
pub fn headers(target: &Target, content: &Content<'_>, now: Timestamp) -> Built {
    let mut map = HeaderMap::with_capacity(16);
    let inbound =
        |name: &HeaderName| content.inbound.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    map.insert(CONTENT_TYPE, inbound(&CONTENT_TYPE).unwrap_or(JSON));
    if let Some(encoding) = inbound(&CONTENT_ENCODING) {
        map.insert(CONTENT_ENCODING, encoding);
    }
    map.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let id = content.webhook_id.known_as(content.again);
    insert_text(&mut map, IDEMPOTENCY_KEY, &id);
    insert_text(&mut map, RELAY_WEBHOOK_ID, &id);
    insert_text(&mut map, RELAY_SOURCE, content.source);
    if let Some(activity) = content.activity {
        insert_text(&mut map, RELAY_ACTIVITY, activity);
    }
    if let Resource { object: Some(object), id: Some(id) } = content.resource {
        insert_text(&mut map, RELAY_RESOURCE, &format!("{object}/{id}"));
    }
    insert_text(&mut map, RELAY_RECEIVED_AT, &content.received_at.to_string());
    map.insert(RELAY_ATTEMPT, HeaderValue::from(content.attempt));
    for name in target.forward_headers.iter().filter(|name| !is_reserved(name)) {
        if let Some(value) = inbound(name) {
            map.insert(name.clone(), value);
        }
    }
    if let Some(trace) = &content.trace {
        // The sender's own trace has ended with its answer, and what it says of it is not of this one.
        map.insert(TRACEPARENT, trace.traceparent());
        map.remove(TRACESTATE);
    }
    let (operator, left_out) = operators(target, content);
    for (name, value) in operator {
        // Checked at load; a table of another version may have stored what is refused today.
        if !is_reserved(&name) {
            map.insert(name, value);
        }
    }
    // Last, so that nothing an operator wrote can stand in the signature's place.
    for (name, value) in target.sign.sign(&id, content.body, now) {
        map.insert(name, value);
    }
    Built { headers: map, left_out }
}

/// The target's own headers, with its routes' on top, and how many had to be left out.
pub fn operators(target: &Target, content: &Content<'_>) -> (Vec<Header>, usize) {
    let document = Document::new(content.body, &target.pointers);
    let values = Values {
        activity: content.activity,
        source: content.source,
        webhook_id: content.webhook_id,
        again: content.again,
        resource: content.resource,
        received_at: content.received_at,
        document: &document,
    };
    let mut headers = Vec::with_capacity(target.headers.len() + content.route_headers.len());
    let mut left_out = 0;
    for HeaderRule { name, value } in &target.headers {
        match value.render(&values, &target.name) {
            Some(value) => headers.push((name.clone(), value)),
            None => left_out += 1,
        }
    }
    for (name, value) in content.route_headers {
        set_header(&mut headers, name.clone(), value.clone());
    }
    (headers, left_out)
}

/// Whether an operator's header can't have this name, the scheme's own aside.
pub fn is_reserved(name: &HeaderName) -> bool {
    [CONTENT_LENGTH, CONTENT_TYPE, HOST, IDEMPOTENCY_KEY].contains(name)
        || name.as_str().starts_with("relay-")
        || is_hop_by_hop(name)
}

/// Whether a header concerns one connection only.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name.as_str())
}

/// Sets a header; bytes that it can't carry are percent-encoded.
fn insert_text(map: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(&carried(text)) {
        map.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pointer::Pointers;
    use crate::domain::retry::RetrySchedule;
    use crate::domain::signature::{SIGNATURE, Scheme, Secret, Signing};
    use crate::domain::target::{BacklogLimit, TargetTls};
    use crate::domain::template::HeaderText;
    use crate::domain::trace::Sampling;
    use std::time::Duration;

    fn target() -> Target {
        Target {
            name: "crm".into(),
            url: "https://crm.internal/hooks".parse().unwrap(),
            sign: Signing::With {
                scheme: Scheme::Aryeo,
                secret: Secret::new("s", b"abc").unwrap(),
                also: Vec::new(),
                header: SIGNATURE,
            },
            headers: vec![rule("x-tenant", "realtour"), rule("x-kept", "own")],
            pointers: Pointers::default(),
            forward_headers: vec![HeaderName::from_static("x-trace")],
            timeout: Duration::from_secs(10),
            retry: RetrySchedule::default(),
            concurrency: 16,
            rate_limit: None,
            backlog_limit: BacklogLimit::default(),
            paused: false,
            tls: TargetTls::default(),
        }
    }

    fn header(name: &'static str, value: &'static str) -> Header {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    fn rule(name: &'static str, value: &'static str) -> HeaderRule {
        let (name, value) = header(name, value);
        HeaderRule { name, value: HeaderText::Fixed(value) }
    }

    fn built(target: &Target, inbound: &[Header], route_headers: &[Header]) -> HeaderMap {
        let resource = Resource { object: Some("LISTING".into()), id: Some("ö1".into()) };
        let webhook_id = WebhookId::parse("018f0000-0000-7000-8000-000000000001").unwrap();
        let content = Content {
            webhook_id,
            again: 0,
            source: "aryeo",
            activity: Some("LISTING_DELIVERED"),
            resource: &resource,
            received_at: Timestamp::from_millis(1_678_755_880_007),
            inbound,
            route_headers,
            body: br#"{"a":1}"#,
            attempt: 3,
            trace: None,
        };
        headers(target, &content, Timestamp::from_millis(1_700_000_000_000)).headers
    }

    #[test]
    fn a_target_gets_the_relay_s_headers_the_signature_and_the_operator_s() {
        let inbound = [header("x-trace", "t"), header("x-other", "o")];
        let map = built(&target(), &inbound, &[header("x-tenant", "other")]);
        let lines: Vec<_> = map.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        let agent = concat!("aryeo-relay/", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            lines,
            [
                ("content-type", "application/json"),
                ("user-agent", agent),
                ("idempotency-key", "018f0000-0000-7000-8000-000000000001"),
                ("relay-webhook-id", "018f0000-0000-7000-8000-000000000001"),
                ("relay-source", "aryeo"),
                ("relay-activity", "LISTING_DELIVERED"),
                ("relay-resource", "LISTING/%C3%B61"),
                ("relay-received-at", "2023-03-14T01:04:40.007Z"),
                ("relay-attempt", "3"),
                ("x-trace", "t"),
                ("x-tenant", "other"),
                ("x-kept", "own"),
                ("signature", "1f14a62b15ba5095326d6c75c3e2e6b462dd71e1c4b7fbdac0f32309adb7be5f"),
            ]
        );
    }

    #[test]
    fn a_signed_id_is_the_one_to_deduplicate_by_also_of_a_repeat_on_purpose() {
        let scheme = Scheme::StandardWebhooks;
        let mut target = target();
        target.sign = Signing::With {
            scheme,
            secret: Secret::new("s", b"abc").unwrap(),
            also: Vec::new(),
            header: scheme.header(),
        };
        let webhook_id = WebhookId::parse("018f0000-0000-7000-8000-000000000001").unwrap();
        for (again, id) in [(0, webhook_id.to_string()), (2, format!("{webhook_id}.2"))] {
            let content = Content {
                webhook_id,
                again,
                source: "aryeo",
                activity: None,
                resource: &Resource::default(),
                received_at: Timestamp::default(),
                inbound: &[],
                route_headers: &[header("webhook-id", "x"), header("webhook-signature", "x")],
                body: b"{}",
                attempt: 1,
                trace: None,
            };
            let map = headers(&target, &content, Timestamp::from_millis(1_700_000_000_999)).headers;
            assert_eq!(map["webhook-id"], id);
            assert_eq!(map["webhook-id"], map["relay-webhook-id"]);
            assert_eq!(map["webhook-timestamp"], "1700000000", "of this attempt");
            assert_ne!(map["webhook-signature"], "x");
        }
    }

    #[test]
    fn the_inbound_type_and_encoding_go_along() {
        let inbound = [header("content-type", "text/plain"), header("content-encoding", "gzip")];
        let map = built(&target(), &inbound, &[]);
        assert_eq!(map["content-type"], "text/plain");
        assert_eq!(map["content-encoding"], "gzip");
    }

    #[test]
    fn nothing_an_operator_wrote_replaces_the_signature_or_a_reserved_name() {
        let map = built(
            &target(),
            &[],
            &[header("signature", "x"), header("relay-attempt", "9"), header("host", "evil")],
        );
        assert_eq!(map.get_all("signature").iter().count(), 1);
        assert_ne!(map["signature"], "x");
        assert_eq!(map["relay-attempt"], "3");
        assert!(!map.contains_key("host"));
    }

    #[test]
    fn where_there_are_traces_the_attempt_s_is_told_and_not_the_sender_s() {
        let mut target = target();
        let names = ["traceparent", "tracestate"].map(HeaderName::from_static);
        target.forward_headers.extend(names);
        let inbound = [header("traceparent", "theirs"), header("tracestate", "theirs")];
        let webhook_id = WebhookId::parse("018f0000-0000-7000-8000-000000000001").unwrap();
        let of_webhook = TraceContext::of_webhook(webhook_id, Sampling::ALL);
        let content = Content {
            webhook_id,
            again: 0,
            source: "aryeo",
            activity: None,
            resource: &Resource::default(),
            received_at: Timestamp::default(),
            inbound: &inbound,
            route_headers: &[],
            body: b"{}",
            attempt: 1,
            trace: None,
        };
        let map = headers(&target, &content, Timestamp::default()).headers;
        assert_eq!((&map["traceparent"], &map["tracestate"]), (&inbound[0].1, &inbound[1].1));
        let content = Content { trace: Some(of_webhook.with_span(5)), ..content };
        let map = headers(&target, &content, Timestamp::default()).headers;
        assert_eq!(map["traceparent"], "00-018f0000000070008000000000000001-0000000000000005-01");
        assert!(!map.contains_key("tracestate"));
    }
}
