//! Webhooks to try things with: bodies and signatures made by PHP, and fresh ones after them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use serde::Deserialize;

use crate::domain::time::Timestamp;

/// A webhook as PHP made it: `make.php` beside the file shows how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// What it is called here, such as `listing_delivered_brief`.
    pub name: Box<str>,
    /// The activity; none in a bare resource.
    pub activity: Option<Box<str>>,
    /// What it is signed with. Public, so good for a demonstration only.
    pub secret: Box<str>,
    /// The exact bytes.
    pub body: Bytes,
    /// The value of `Signature`, scheme `aryeo`.
    pub signature: HeaderValue,
}

#[derive(Deserialize)]
struct Line {
    name: Box<str>,
    activity: Option<Box<str>>,
    secret: Box<str>,
    body_base64: String,
    signature_hex: String,
}

/// All recorded webhooks; those of one activity begin with its most typical one.
pub fn recorded() -> Vec<Recorded> {
    let lines: Vec<Line> = serde_json::from_slice(include_bytes!("samples/samples.json"))
        .expect("samples.json is as make.php writes it");
    lines.into_iter().map(Recorded::from).collect()
}

impl From<Line> for Recorded {
    fn from(line: Line) -> Self {
        let Line { name, activity, secret, body_base64, signature_hex } = line;
        let body = STANDARD.decode(body_base64).expect("make.php writes base64").into();
        let signature = signature_hex.parse().expect("hex digits are a header value");
        Self { name, activity, secret, body, signature }
    }
}

/// A body as Aryeo would send it now, by the name of an activity or of a recorded webhook.
///
/// It has an id of its own, made of `random`, so that it is no duplicate of any other. An activity
/// that is not among the recorded ones has a plausible wrapper and little in it. None if the name
/// can't be an activity's.
pub fn fresh(name: &str, now: Timestamp, random: [u8; 16]) -> Option<Bytes> {
    let id = uuid_of(random);
    let known = recorded().into_iter().find(|sample| {
        *sample.name == *name || sample.activity.as_deref().is_some_and(|activity| activity == name)
    });
    match known {
        Some(sample) => Some(refreshed(&sample.body, &id, now)),
        None if is_activity_name(name) => {
            let resource_id = uuid_of(random.map(|byte| !byte));
            Some(wrapper(name, &id, &resource_id, now))
        }
        None => None,
    }
}

fn uuid_of(random: [u8; 16]) -> String {
    uuid::Builder::from_random_bytes(random).into_uuid().hyphenated().to_string()
}

/// Whether an activity could have this name. New ones come without notice, so that it is the form
/// that counts.
pub fn is_activity_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(letter)
}

/// The same body about another event: the top-level id and the time are replaced in the text, so
/// that all else stays as PHP wrote it.
fn refreshed(body: &[u8], id: &str, now: Timestamp) -> Bytes {
    let text = String::from_utf8_lossy(body).into_owned();
    let text = match value_after(&text, "\"id\":\"") {
        Some(old) => text.replace(old, id),
        None => text,
    };
    let text = match value_after(&text, "\"occurred_at\":\"") {
        Some(old) => text.replacen(old, &seconds(now), 1),
        None => text,
    };
    text.into()
}

/// The id that [`fresh`] gave a body: the random bytes that it was made of, but for the six bits by
/// which a UUID says what it is.
pub fn id_of(body: &[u8]) -> Option<[u8; 16]> {
    let text = str::from_utf8(body).ok()?;
    let id: uuid::Uuid = value_after(text, "\"id\":\"")?.parse().ok()?;
    Some(id.into_bytes())
}

fn value_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    rest.split_once('"').map(|(value, _)| value)
}

/// RFC 3339 without a fraction, as in Aryeo's bodies.
fn seconds(now: Timestamp) -> String {
    let text = now.to_string();
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// What Aryeo's activities are about, longest name first.
const RESOURCES: [&str; 9] = [
    "CUSTOMER_TEAM_MEMBERSHIP",
    "MARKETING_MATERIAL",
    "CUSTOMER_TEAM",
    "MEDIA_REQUEST",
    "ORDER_PAYMENT",
    "NOTIFICATION",
    "LISTING",
    "ORDER",
    "USER",
];

fn wrapper(activity: &str, id: &str, resource_id: &str, now: Timestamp) -> Bytes {
    let at = seconds(now);
    let title = title(activity);
    // An appointment is the one resource that does not say what it is.
    let object = RESOURCES
        .iter()
        .find(|resource| activity.starts_with(**resource))
        .map_or(String::new(), |resource| format!("\"object\":\"{resource}\","));
    format!(
        "{{\"object\":\"ACTIVITY\",\"id\":\"{id}\",\"title\":\"{title}\",\"name\":\"{activity}\",\
         \"description\":\"{title}, made up by \\u201caryeo-relay send\\u201d\",\
         \"source\":\"WEB\",\"occurred_at\":\"{at}\",\"payload\":[],\"html_payload\":null,\
         \"system_activity\":false,\"target_url\":\"https:\\/\\/www.aryeo.com\\/activities\\/{id}\",\
         \"target_label\":null,\"resource\":{{{object}\"id\":\"{resource_id}\"}}}}"
    )
    .into()
}

/// `ORDER_FEE_CREATED` as `Order Fee Created`.
fn title(activity: &str) -> String {
    let mut title = String::with_capacity(activity.len());
    let mut begins = true;
    for c in activity.chars() {
        match c {
            '_' => title.push(' '),
            _ if begins => title.push(c),
            _ => title.push(c.to_ascii_lowercase()),
        }
        begins = c == '_';
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::known;
    use crate::domain::signature::{SIGNATURE, Scheme, Secret, Verification};
    use http::HeaderMap;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_millis(1_772_359_500_123);

    #[test]
    fn what_php_signed_verifies_and_is_what_php_encodes() {
        let samples = recorded();
        assert!(samples.len() >= 8);
        for sample in &samples {
            let secret = Secret::new("sample", sample.secret.as_bytes()).unwrap();
            let verification = Verification {
                scheme: Scheme::Aryeo,
                secrets: vec![secret],
                header: SIGNATURE,
                tolerance: Duration::ZERO,
            };
            let headers = HeaderMap::from_iter([(SIGNATURE, sample.signature.clone())]);
            verification.verify(&headers, &sample.body, NOW).unwrap();
            let text = str::from_utf8(&sample.body).unwrap();
            assert!(text.is_ascii(), "{}", sample.name);
            assert!(text.contains("\\/") && text.contains("\\u"), "{}", sample.name);
            assert!((500..32_000).contains(&text.len()), "{}", sample.name);
        }
    }

    #[track_caller]
    fn json(body: &Bytes) -> serde_json::Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn a_fresh_body_is_about_another_event_and_otherwise_the_same() {
        for sample in recorded() {
            let body = fresh(&sample.name, NOW, [7; 16]).unwrap();
            assert_eq!(body.len(), sample.body.len());
            let (new, old) = (json(&body), json(&sample.body));
            assert_eq!(new["id"], "07070707-0707-4707-8707-070707070707");
            assert_ne!(new["id"], old["id"]);
            assert_eq!(new["resource"], old["resource"]);
            if sample.activity.is_some() {
                assert_eq!(new["occurred_at"], "2026-03-01T10:05:00Z");
            }
        }
    }

    #[test]
    fn every_known_activity_has_a_body() {
        for name in known::activities() {
            let body = json(&fresh(name, NOW, [9; 16]).unwrap());
            assert_eq!(body["object"], "ACTIVITY");
            assert_eq!(body["name"], name);
            assert_eq!(body["id"], "09090909-0909-4909-8909-090909090909");
            assert!(body["resource"]["id"].is_string());
        }
        let fee = json(&fresh("ORDER_FEE_CREATED", NOW, [9; 16]).unwrap());
        assert_eq!(
            (&fee["title"], &fee["resource"]["object"]),
            (&"Order Fee Created".into(), &"ORDER".into())
        );
    }

    #[test]
    fn the_id_of_a_body_is_found_again() {
        for sample in recorded().iter().filter(|sample| sample.activity.is_some()) {
            let body = fresh(&sample.name, NOW, [9; 16]).unwrap();
            assert_eq!(id_of(&body).map(|id| id[..6].to_vec()), Some(vec![9; 6]));
        }
        assert_eq!((id_of(b"\xff"), id_of(b"{}"), id_of(b"{\"id\":\"1\"}")), (None, None, None));
    }

    #[test]
    fn what_can_t_be_an_activity_has_none() {
        for name in ["", "listing", "ORDER CREATED", "_X", "ÉTAT", "A\"B"] {
            assert_eq!(fresh(name, NOW, [0; 16]), None, "{name}");
        }
    }
}
