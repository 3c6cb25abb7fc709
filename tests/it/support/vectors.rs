//! Bodies and signatures made by PHP with the sender library's own signer.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// One body and its signature.
#[derive(Debug, Clone)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) secret: String,
    pub(crate) body: Vec<u8>,
    pub(crate) signature: String,
    /// What a receiver should read out of it, where the vector says so.
    pub(crate) expect: Option<Expect>,
}

/// What is in a body.
#[derive(Debug, Clone)]
pub(crate) struct Expect {
    pub(crate) activity: Option<String>,
    pub(crate) object: Option<String>,
    pub(crate) id: Option<String>,
}

/// All of `tests/data/aryeo/vectors.json`.
pub(crate) fn all() -> Vec<Vector> {
    let text = include_str!("../../data/aryeo/vectors.json");
    let vectors: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    vectors
        .iter()
        .map(|vector| Vector {
            name: text(&vector["name"]).unwrap(),
            secret: text(&vector["secret"]).unwrap(),
            body: BASE64_STANDARD.decode(vector["body_base64"].as_str().unwrap()).unwrap(),
            signature: text(&vector["signature_hex"]).unwrap(),
            expect: vector.get("expect").map(|expect| Expect {
                activity: text(&expect["activity"]),
                object: text(&expect["resource_object"]),
                id: text(&expect["resource_id"]),
            }),
        })
        .collect()
}

/// The body that Aryeo's documentation shows, with an id of its own.
pub(crate) fn listing_delivered(id: &str) -> Vec<u8> {
    activity("LISTING_DELIVERED", id, "LISTING")
}

/// A body as Aryeo wraps an activity.
pub(crate) fn activity(name: &str, id: &str, object: &str) -> Vec<u8> {
    format!(
        r#"{{"object":"ACTIVITY","id":"{id}","name":"{name}","occurred_at":"2023-03-14T01:04:40Z","resource":{{"object":"{object}","id":"of-{id}","url":"https:\/\/aryeo.com\/{id}","caf\u00e9":0.30000000000000004}}}}"#
    )
    .into_bytes()
}
