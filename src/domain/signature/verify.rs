//! Whether a request's signature is one of ours.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{Scheme, Secret, TIMESTAMP, WEBHOOK_ID, WEBHOOK_TIMESTAMP};
use crate::domain::time::Timestamp;

/// How inbound requests are verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    /// The scheme.
    pub scheme: Scheme,
    /// Any one may match; at least one.
    pub secrets: Vec<Secret>,
    /// The header that carries the signature.
    pub header: HeaderName,
    /// How far a timestamp may be from now.
    pub tolerance: Duration,
}

/// A request that has been verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Which secret matched.
    pub secret: usize,
    /// A digest of the exact body, under that secret.
    pub digest: [u8; 32],
}

/// Why a request was not verified. The sender is told none of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum VerifyError {
    /// Nothing in the header is written as a signature of the scheme, or there is no readable
    /// timestamp.
    #[error("the signature is malformed")]
    Malformed,
    /// No secret made this signature of these bytes.
    #[error("the signature matches no secret")]
    Mismatch,
    /// There is no signature header.
    #[error("there is no signature")]
    Missing,
    /// The timestamp is too far from now.
    #[error("the timestamp is out of tolerance")]
    Stale,
}

impl VerifyError {
    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Missing => "missing",
            Self::Stale => "stale",
        }
    }

    /// The names that are labels, with `ok`.
    pub const NAMES: [&'static str; 5] = ["ok", "missing", "malformed", "mismatch", "stale"];
}

impl Verification {
    /// Checks the signature over the exact bytes, in constant time for each pair of a candidate and
    /// a secret.
    ///
    /// Several header lines are accepted if one matches: the sender can emit two.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Verified, VerifyError> {
        let candidates = self.candidates(headers)?;
        let (id, timestamp) = match self.scheme {
            Scheme::Aryeo | Scheme::Github => (b"".as_slice(), None),
            Scheme::AryeoTimestamped => {
                (b"".as_slice(), Some(single_timestamp(headers, &TIMESTAMP)?))
            }
            Scheme::StandardWebhooks => {
                let id = headers.get(&WEBHOOK_ID).ok_or(VerifyError::Missing)?;
                (id.as_bytes(), Some(single_timestamp(headers, &WEBHOOK_TIMESTAMP)?))
            }
        };
        let stamp = timestamp.map_or("", |(text, _)| text);
        let content = self.scheme.content(id, stamp.as_bytes(), body);
        let mut found: Option<(usize, [u8; 32])> = None;
        for (index, secret) in self.secrets.iter().enumerate() {
            let tag = secret.tag(&content);
            let mut matched = Choice::from(0);
            for candidate in &candidates {
                matched = Choice::conditional_select(
                    &matched,
                    &Choice::from(1),
                    candidate.as_slice().ct_eq(&tag),
                );
            }
            if bool::from(matched) {
                found = Some((index, tag));
                break;
            }
        }
        let (secret, tag) = found.ok_or(VerifyError::Mismatch)?;
        let digest = match timestamp {
            None => tag,
            Some((_, at)) => {
                if now.since(at).max(at.since(now)) > self.tolerance {
                    return Err(VerifyError::Stale);
                }
                // This signature is another at each attempt: the bytes need a digest of their own.
                Sha256::digest(body).into()
            }
        };
        Ok(Verified { secret, digest })
    }

    fn candidates(&self, headers: &HeaderMap) -> Result<Vec<[u8; 32]>, VerifyError> {
        let mut candidates = Vec::with_capacity(1);
        let mut lines = headers.get_all(&self.header).iter().peekable();
        if lines.peek().is_none() {
            return Err(VerifyError::Missing);
        }
        // A proxy in between may have joined two lines with a comma.
        let (separator, read): (u8, ReadSignature) = match self.scheme {
            Scheme::Aryeo | Scheme::AryeoTimestamped => (b',', parse_hex),
            Scheme::Github => (b',', |part| parse_hex(part.strip_prefix(b"sha256=")?)),
            Scheme::StandardWebhooks => (b' ', |part| parse_base64(part.strip_prefix(b"v1,")?)),
        };
        for part in lines.flat_map(|line| line.as_bytes().split(move |byte| *byte == separator)) {
            if let Some(candidate) = read(part.trim_ascii())
                && candidates.len() < CANDIDATES_MAX
            {
                candidates.push(candidate);
            }
        }
        if candidates.is_empty() { Err(VerifyError::Malformed) } else { Ok(candidates) }
    }
}

/// Reads a signature as a scheme writes it.
type ReadSignature = fn(&[u8]) -> Option<[u8; 32]>;

/// More signatures than this in one request are not looked at.
const CANDIDATES_MAX: usize = 8;

fn single_timestamp<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<(&'a str, Timestamp), VerifyError> {
    let value = headers.get(name).ok_or(VerifyError::Missing)?;
    let text = value.to_str().map_err(|_| VerifyError::Malformed)?;
    if text.is_empty() || text.len() > 15 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(VerifyError::Malformed);
    }
    let secs: u64 = text.parse().map_err(|_| VerifyError::Malformed)?;
    Ok((text, Timestamp::from_millis(secs.saturating_mul(1000))))
}

fn parse_base64(text: &[u8]) -> Option<[u8; 32]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

fn parse_hex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = (nibble(*high)? << 4) | nibble(*low)?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::signature::{SIGNATURE, Signing};
    use http::HeaderValue;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const BODY: &[u8] = br#"{"a":1}"#;
    const OF_ABC: &str = "1f14a62b15ba5095326d6c75c3e2e6b462dd71e1c4b7fbdac0f32309adb7be5f";

    fn verification(scheme: Scheme, secrets: &[&str]) -> Verification {
        Verification {
            scheme,
            secrets: secrets.iter().map(|s| Secret::new(*s, s.as_bytes()).unwrap()).collect(),
            header: SIGNATURE,
            tolerance: Duration::from_secs(300),
        }
    }

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let line = |(name, value): &(HeaderName, &str)| {
            (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            map.append(name, value);
        }
        map
    }

    #[track_caller]
    fn check(secrets: &[&str], lines: &[&str], body: &[u8], expected: Result<usize, VerifyError>) {
        let lines: Vec<_> = lines.iter().map(|line| (SIGNATURE, *line)).collect();
        let result = verification(Scheme::Aryeo, secrets).verify(&headers(&lines), body, NOW);
        assert_eq!(result.map(|verified| verified.secret), expected);
    }

    #[test]
    fn the_sender_library_s_own_vectors_verify() {
        check(&["abc"], &[OF_ABC], BODY, Ok(0));
        let other = "345611a3626cf5e080a7a412184001882ab231b8bdb465dc76dbf709f01f210a";
        check(&["abc"], &[other], br#"{"a":"1"}"#, Ok(0));
        let third = "24554f6285363dd1791a2b1840bbbb4e4608c0a6ed1d48551ea83184f4e26e42";
        check(&["abc", "abc123"], &[third], BODY, Ok(1));
    }

    #[test]
    fn what_is_not_the_signature_of_these_bytes_is_refused() {
        check(&["abc"], &[], BODY, Err(VerifyError::Missing));
        check(&["abc"], &[""], BODY, Err(VerifyError::Malformed));
        check(&["abc"], &[OF_ABC.strip_suffix('f').unwrap()], BODY, Err(VerifyError::Malformed));
        check(&["abc"], &[&format!("{OF_ABC}00")], BODY, Err(VerifyError::Malformed));
        check(&["abc"], &[&format!("sha256={OF_ABC}")], BODY, Err(VerifyError::Malformed));
        check(&["abd"], &[OF_ABC], BODY, Err(VerifyError::Mismatch));
        check(&["abc"], &[OF_ABC], br#"{"a":2}"#, Err(VerifyError::Mismatch));
        check(&["abc"], &[OF_ABC], b"", Err(VerifyError::Mismatch));
    }

    #[test]
    fn upper_case_and_several_lines_are_accepted_if_one_matches() {
        let wrong = "0".repeat(64);
        check(&["abc"], &[&OF_ABC.to_uppercase()], BODY, Ok(0));
        check(&["abc"], &[&wrong, OF_ABC], BODY, Ok(0));
        check(&["abc"], &["junk", OF_ABC], BODY, Ok(0));
        check(&["abc"], &[&format!("{wrong}, {OF_ABC}")], BODY, Ok(0));
        check(&["abc"], &[&wrong, &wrong], BODY, Err(VerifyError::Mismatch));
    }

    #[test]
    fn a_timestamp_is_signed_along_and_bounded_both_ways() {
        let verification = verification(Scheme::AryeoTimestamped, &["abc"]);
        let signing = Signing::With {
            scheme: Scheme::AryeoTimestamped,
            secret: Secret::new("s", b"abc").unwrap(),
            also: Vec::new(),
            header: SIGNATURE,
        };
        let map: HeaderMap = signing.sign("", BODY, NOW).into_iter().collect();
        let at = |secs: i64| {
            let ms = NOW.as_millis().checked_add_signed(secs * 1000).unwrap();
            verification.verify(&map, BODY, Timestamp::from_millis(ms)).map(|v| v.digest)
        };
        assert_eq!(at(0), Ok(Sha256::digest(BODY).into()));
        assert!(at(300).is_ok() && at(-300).is_ok());
        assert_eq!(at(301), Err(VerifyError::Stale));
        assert_eq!(at(-301), Err(VerifyError::Stale));

        let mut moved = map.clone();
        moved.insert(TIMESTAMP, HeaderValue::from(NOW.as_secs() + 1));
        assert_eq!(verification.verify(&moved, BODY, NOW), Err(VerifyError::Mismatch));
        moved.insert(TIMESTAMP, HeaderValue::from_static("soon"));
        assert_eq!(verification.verify(&moved, BODY, NOW), Err(VerifyError::Malformed));
        moved.remove(TIMESTAMP);
        assert_eq!(verification.verify(&moved, BODY, NOW), Err(VerifyError::Missing));
    }

    /// What the specification's libraries are tested with.
    const STANDARD: [(&str, &str); 3] = [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ];

    #[track_caller]
    fn check_standard(lines: &[(&'static str, &str)], expected: Result<(), VerifyError>) {
        let scheme = Scheme::StandardWebhooks;
        let secret = Secret::written(scheme, "s", b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let verification = Verification {
            secrets: vec![secret.unwrap()],
            header: scheme.header(),
            ..verification(scheme, &[])
        };
        let lines: Vec<_> =
            lines.iter().map(|(name, value)| (HeaderName::from_static(name), *value)).collect();
        let now = Timestamp::from_millis(1_614_265_330_000);
        let result = verification.verify(&headers(&lines), br#"{"test": 2432232314}"#, now);
        assert_eq!(result.map(|_| ()), expected, "{lines:?}");
    }

    #[test]
    fn the_specification_s_own_vector_verifies_and_nothing_beside_it() {
        let [id, timestamp, (name, signature)] = STANDARD;
        check_standard(&STANDARD, Ok(()));
        let other = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=";
        let (bare, later) = (signature.replace("v1,", ""), signature.replace("v1", "v2"));
        let several = format!("v1a,abc= {other} {later} {signature}");
        check_standard(&[id, timestamp, (name, &several)], Ok(()));
        check_standard(&[id, timestamp, (name, other)], Err(VerifyError::Mismatch));
        let next = ("webhook-timestamp", "1614265331");
        check_standard(&[id, next, (name, signature)], Err(VerifyError::Mismatch));
        let another = ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJel");
        check_standard(&[another, timestamp, (name, signature)], Err(VerifyError::Mismatch));
        for malformed in ["", "v1,", "v1,abc=", &bare, &later] {
            check_standard(&[id, timestamp, (name, malformed)], Err(VerifyError::Malformed));
        }
        let soon = ("webhook-timestamp", "soon");
        check_standard(&[id, soon, (name, signature)], Err(VerifyError::Malformed));
        check_standard(&[id, timestamp], Err(VerifyError::Missing));
        check_standard(&[id, (name, signature)], Err(VerifyError::Missing));
        check_standard(&[timestamp, (name, signature)], Err(VerifyError::Missing));
    }

    #[test]
    fn github_s_own_vector_verifies_and_only_with_its_prefix() {
        let of_secret = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let verification = Verification {
            header: Scheme::Github.header(),
            ..verification(Scheme::Github, &["It's a Secret to Everybody"])
        };
        let check = |line: &str, expected| {
            let map = headers(&[(HeaderName::from_static("x-hub-signature-256"), line)]);
            let result = verification.verify(&map, b"Hello, World!", NOW);
            assert_eq!(result.map(|verified| verified.secret), expected, "{line}");
        };
        check(&format!("sha256={of_secret}"), Ok(0));
        check(of_secret, Err(VerifyError::Malformed));
        check(&format!("sha1={of_secret}"), Err(VerifyError::Malformed));
        check(&format!("sha256={}", of_secret.replace('7', "8")), Err(VerifyError::Mismatch));
    }
}
