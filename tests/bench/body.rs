//! A body as the sender makes them, brought to a size: what the benches post and read.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// The vector with a whole order in it.
const VECTOR: &str = "02_order_created_full";

const VECTORS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/aryeo/vectors.json"));

/// What the body's activity is, until another is asked for.
pub(crate) const ACTIVITY: &str = "ORDER_CREATED";

/// Where the first id begins: `{"object":"ACTIVITY","id":"`.
const ID_AT: usize = 27;

/// A uuid's last group, which is where a number goes.
const NUMBER_AT: usize = ID_AT + 24;
const NUMBER_LEN: usize = 12;

/// The sender's own body with an order (4,155 bytes), grown to `bytes` where that is more: what is
/// added lies behind all that the relay reads, as the rest of a larger order would.
pub(crate) fn of_size(bytes: usize) -> Vec<u8> {
    let mut body = of_vector(VECTOR);
    let more = br#","more":""#;
    if let Some(missing) = bytes.checked_sub(body.len()).filter(|n| *n > more.len() + 1) {
        let end = body.pop().expect("the vector is not empty");
        let filling: Vec<u8> = body.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
        body.extend_from_slice(more);
        body.extend(filling.iter().cycle().take(missing - more.len() - 1));
        body.extend([b'"', end]);
    }
    body
}

/// The body of a vector.
pub(crate) fn of_vector(name: &str) -> Vec<u8> {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).expect("the vectors are JSON");
    let vector = vectors.as_array().into_iter().flatten().find(|v| v["name"] == name);
    let text = vector.and_then(|v| v["body_base64"].as_str()).expect("the vector is there");
    BASE64_STANDARD.decode(text).expect("the vector is base64")
}

/// Makes the body one that no other is.
pub(crate) fn set_number(body: &mut [u8], number: u64) {
    let digits = format!("{number:0NUMBER_LEN$}");
    body[NUMBER_AT..NUMBER_AT + NUMBER_LEN].copy_from_slice(digits.as_bytes());
}

/// Which one it is.
pub(crate) fn number(body: &[u8]) -> Option<u64> {
    let digits = body.get(NUMBER_AT..NUMBER_AT + NUMBER_LEN)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
