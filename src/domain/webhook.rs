//! One HTTP request as received, and its identity.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::domain::time::Timestamp;

/// The identity of a webhook: a UUIDv7 whose first 60 bits are unique in a store and grow with time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebhookId([u8; 16]);

impl WebhookId {
    /// From its bytes as stored.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to store.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses the usual text form.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(|uuid| Self(uuid.into_bytes()))
    }

    /// The 48 bits of time and the 12 bits of counter: unique in a store, growing, below 2^60.
    pub fn key(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        let high = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        (high << 12) | (u64::from(g & 0x0f) << 8) | u64::from(h)
    }

    /// What differs between ids, in 122 bits: the key and the bits of chance.
    pub fn to_bits(self) -> u128 {
        let [.., i, j, k, l, m, n, o, p] = self.0;
        let random = u64::from_be_bytes([i & 0x3f, j, k, l, m, n, o, p]);
        (u128::from(self.key()) << 62) | u128::from(random)
    }

    /// The id of these bits; higher ones do not matter.
    pub fn from_bits(bits: u128) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "60 bits are left, and 62 are taken")]
        let (key, random) = (((bits << 6) >> 68) as u64, bits as u64);
        Self::new(key, random)
    }

    /// The id as targets know it: a repeat on purpose has `<webhook_id>.<n>`.
    pub fn known_as(self, again: u32) -> String {
        match again {
            0 => self.to_string(),
            n => format!("{self}.{n}"),
        }
    }

    /// Parses what targets know: the id, and which repeat on purpose it names; 0 where it names none.
    pub fn parse_known_as(text: &str) -> Option<(Self, u32)> {
        let Some((id, again)) = text.split_once('.') else { return Some((Self::parse(text)?, 0)) };
        let number = again.parse().ok().filter(|number: &u32| *number > 0)?;
        // One way to write each.
        (number.to_string() == again).then_some((Self::parse(id)?, number))
    }

    /// An id with this key, where no more of it is known.
    pub fn from_key(key: u64) -> Self {
        Self::new(key, 0)
    }

    /// When it was made.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from_millis(self.key() >> 12)
    }

    /// The id of a key and 62 bits of chance.
    fn new(key: u64, random: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = (key >> 12).to_be_bytes();
        let [.., g, h] = key.to_be_bytes();
        let [i, rest @ ..] = random.to_be_bytes();
        let [j, k, l, m, n, o, p] = rest;
        Self([a, b, c, d, e, f, 0x70 | (g & 0x0f), h, 0x80 | (i & 0x3f), j, k, l, m, n, o, p])
    }
}

impl fmt::Display for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes ids: each [`WebhookId::key`] is greater than all before.
#[derive(Debug, Default)]
pub struct WebhookIds {
    last: AtomicU64,
}

impl WebhookIds {
    /// Ids that come after everything made up to and including the millisecond of `newest`.
    pub fn after(newest: Timestamp) -> Self {
        Self { last: AtomicU64::new((newest.as_millis() << 12) | 0xfff) }
    }

    /// The next id. More than 4,096 in one millisecond borrow from the next.
    pub fn next(&self, now: Timestamp, random: u64) -> WebhookId {
        let floor = now.as_millis() << 12;
        let step = |last: u64| floor.max(last + 1);
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(step(last)))
            .unwrap_or_else(|last| last);
        WebhookId::new(step(last), random)
    }
}

/// What makes two webhooks the same: source, concrete path and the digest of the exact bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DuplicateKey([u8; 16]);

impl DuplicateKey {
    /// The key of a body with this `digest` (its verified signature, or its SHA-256) at that place.
    pub fn new(source: &str, path: &str, digest: &[u8; 32]) -> Self {
        let mut place = Sha256::new();
        place.update((source.len() as u64).to_be_bytes());
        place.update(source.as_bytes());
        place.update(path.as_bytes());
        let place = place.finalize();
        let mut key = [0; 16];
        for (byte, (a, b)) in key.iter_mut().zip(place.iter().zip(digest)) {
            *byte = a ^ b;
        }
        Self(key)
    }

    /// From its bytes as stored.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to store.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for DuplicateKey {
    /// Half of a signature is in it, so it is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DuplicateKey(…)")
    }
}

/// What a webhook is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// Its `object` type, such as `LISTING`.
    pub object: Option<Box<str>>,
    /// Its id.
    pub id: Option<Box<str>>,
}

/// A header line that is stored or sent.
pub type Header = (HeaderName, HeaderValue);

/// A verified request and what was decided about it, ready to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its identity.
    pub id: WebhookId,
    /// When it was received.
    pub received_at: Timestamp,
    /// Which source posted it.
    pub source: Arc<str>,
    /// The concrete path, without its query.
    pub path: Box<str>,
    /// Where it came from, as far as known.
    pub peer: Option<Box<str>>,
    /// The label of the secret that matched, such as `env:NAME`.
    pub secret: Box<str>,
    /// The first eight bytes of the SHA-256 of the routing table that routed it.
    pub table: [u8; 8],
    /// The activity, where it has one.
    pub activity: Option<Box<str>>,
    /// The body carries an id of its activity, so that the long duplicates window applies.
    pub activity_id: bool,
    /// What it is about.
    pub resource: Resource,
    /// What makes a second one the same.
    pub duplicate_key: DuplicateKey,
    /// The inbound headers that may be kept: never a secret, never the signature.
    pub headers: Vec<Header>,
    /// The exact bytes.
    pub body: Bytes,
    /// One for each target that it is to reach; none when it is unrouted.
    pub deliveries: Vec<NewDelivery>,
}

/// A delivery as routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// The target's name.
    pub target: Arc<str>,
    /// The headers of the matching routes, rendered at acceptance.
    pub headers: Vec<Header>,
    /// The names of the matching routes, in file order.
    pub routes: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_and_grow_even_within_a_millisecond_and_when_the_clock_stands() {
        let ids = WebhookIds::default();
        let now = Timestamp::from_millis(1_700_000_000_000);
        let mut last = None;
        for random in 0..10_000 {
            let id = ids.next(now, random | 0xffff_0000_0000_0000);
            let uuid = uuid::Uuid::from_bytes(*id.as_bytes());
            assert_eq!(uuid.get_version_num(), 7);
            assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
            assert!(last < Some(id.key()), "{last:?} then {id}");
            last = Some(id.key());
        }
        assert_eq!(ids.next(Timestamp::from_millis(1_800_000_000_000), 1).timestamp(), {
            Timestamp::from_millis(1_800_000_000_000)
        });
    }

    #[test]
    fn ids_after_a_restart_come_after_all_before_it() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let before = WebhookIds::default();
        let first: Vec<_> = (0..100).map(|n| before.next(now, n).key()).collect();
        let after = WebhookIds::after(now).next(now, 0).key();
        assert!(first.iter().all(|key| *key < after));
    }

    #[test]
    fn an_id_survives_its_text_form() {
        let id = WebhookIds::default().next(Timestamp::from_millis(1_700_000_000_000), u64::MAX);
        assert_eq!(WebhookId::parse(&id.to_string()), Some(id));
        assert_eq!(WebhookId::parse("nonsense"), None);
    }

    #[test]
    fn what_targets_know_a_delivery_by_names_its_webhook_and_the_repeat() {
        let id = WebhookIds::default().next(Timestamp::from_millis(1_700_000_000_000), 7);
        for again in [0, 1, 12, u32::MAX] {
            assert_eq!(WebhookId::parse_known_as(&id.known_as(again)), Some((id, again)));
        }
        for wrong in ["", ".", ".0", ".01", ".+1", ".-1", ".x", ".1.1", ".4294967296"] {
            let text = if wrong.is_empty() { "crm.1".to_owned() } else { format!("{id}{wrong}") };
            assert_eq!(WebhookId::parse_known_as(&text), None, "{text}");
        }
    }

    #[test]
    fn the_same_bytes_on_another_path_or_source_are_another_webhook() {
        let digest = [7; 32];
        let key = DuplicateKey::new("aryeo", "/a", &digest);
        assert_eq!(key, DuplicateKey::new("aryeo", "/a", &digest));
        assert_ne!(key, DuplicateKey::new("aryeo", "/b", &digest));
        assert_ne!(key, DuplicateKey::new("aryeo/", "a", &digest));
        assert_ne!(key, DuplicateKey::new("aryeo", "/a", &[8; 32]));
    }
}
