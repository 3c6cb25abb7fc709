//! A request is believed if, and only if, one of its signatures is what an HMAC written down from its
//! definition says; and what we sign is believed.
//!
//! The input: a byte that chooses the scheme and the number of secrets, then lines of headers, each begun
//! by a letter for its name, an empty line, and the body. In a value "@" and a letter stand for what no
//! mutation would find: a signature or a time.
#![no_main]

use std::time::Duration;

use aryeo_relay::domain::signature::{Scheme, Secret, Signing, Verification, VerifyError};
use aryeo_relay::domain::time::Timestamp;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

const NOW: u64 = 1_700_000_000;
const TOLERANCE: u64 = 300;

/// The keys of the secrets that are believed, and one that is not.
const KEYS: [&[u8]; 3] =
    [b"abc", b"a key that is longer than a block of the hash, which is hashed itself", b"3"];
const STRANGER: &[u8] = b"stranger";

/// As many well-formed signatures of a request are looked at.
const CANDIDATES_MAX: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let scheme = Scheme::ALL[usize::from(choice % 4)];
    let keys = &KEYS[..1 + usize::from(choice >> 2) % KEYS.len()];
    let (lines, body) = parts(rest);
    let headers = headers(scheme, lines, body);
    let secrets: Vec<Secret> = keys.iter().map(|key| Secret::new("s", key).unwrap()).collect();

    let verification = Verification {
        scheme,
        secrets: secrets.clone(),
        header: scheme.header(),
        tolerance: Duration::from_secs(TOLERANCE),
    };
    let verify = |headers: &HeaderMap, body: &[u8]| {
        let verified = verification.verify(headers, body, Timestamp::from_millis(NOW * 1000));
        verified.map(|verified| (verified.secret, verified.digest))
    };
    assert_eq!(verify(&headers, body), expected(scheme, keys, &headers, body), "{headers:?}");

    // How a secret is written can't be known beforehand; that it is none may only be said.
    let _written = Secret::written(scheme, "s", body);

    let id = "0189c5f3-7a6b-7c3d-8e4f-5a6b7c8d9e0f.1";
    let (secret, also) = secrets.split_first().unwrap();
    let (secret, also) = (secret.clone(), also.to_vec());
    let signing = Signing::With { scheme, secret, also, header: scheme.header() };
    let signed = signing.sign(id, body, Timestamp::from_millis(NOW * 1000));
    let names: Vec<HeaderName> = signed.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, signing.header_names(), "other headers are set than are said to be");
    let signed: HeaderMap = signed.into_iter().collect();
    assert_eq!(verify(&signed, body).map(|(secret, _)| secret), Ok(0), "ours is not believed");
    let mut other = body.to_vec();
    match other.last_mut() {
        Some(last) => *last ^= 1,
        None => other.push(0),
    }
    assert_eq!(verify(&signed, &other), Err(VerifyError::Mismatch), "another body is believed");
});

/// The lines of headers, and what follows the empty one.
fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.windows(2).position(|pair| pair == b"\n\n");
    at.map_or((bytes, b""), |at| (&bytes[..at], &bytes[at + 2..]))
}

/// The headers that the lines stand for; a line that no header can carry is left out.
fn headers(scheme: Scheme, lines: &[u8], body: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // What is signed along goes first, as signatures stand for it.
    let of = |letter: u8| {
        lines.split(|byte| *byte == b'\n').filter_map(move |line| line.strip_prefix(&[letter]))
    };
    let [id, stamp] = [&b"i"[..], b"t"].map(|letter| {
        let name = match (scheme, letter) {
            (Scheme::StandardWebhooks, b"i") => "webhook-id",
            (Scheme::StandardWebhooks, _) => "webhook-timestamp",
            (_, b"i") => "id",
            _ => "timestamp",
        };
        let name = HeaderName::from_static(name);
        for line in of(letter[0]) {
            let text = line.iter().flat_map(|byte| match byte {
                b'@' => NOW.to_string().into_bytes(),
                byte => vec![*byte],
            });
            if let Ok(value) = HeaderValue::from_bytes(&text.collect::<Vec<_>>()) {
                headers.append(name.clone(), value);
            }
        }
        headers.get(&name).map(|value| value.as_bytes().to_vec()).unwrap_or_default()
    });
    let content = content(scheme, &id, &stamp, body);
    for line in of(b's') {
        let mut text = Vec::with_capacity(line.len());
        let mut letters = line.iter();
        while let Some(letter) = letters.next() {
            match (letter, letters.as_slice()) {
                (b'@', [which, ..]) => {
                    letters.next();
                    text.extend(stand_in(scheme, *which, &content));
                }
                (letter, _) => text.push(*letter),
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.append(scheme.header(), value);
        }
    }
    headers
}

/// The signature by one of the keys, well written or not.
fn stand_in(scheme: Scheme, which: u8, content: &[u8]) -> Vec<u8> {
    let key = KEYS.get(usize::from(which & 3)).copied().unwrap_or(STRANGER);
    let tag = hmac(key, content);
    let text = written(scheme, &tag);
    match which >> 2 & 3 {
        0 => text.into_bytes(),
        1 => text.to_uppercase().into_bytes(),
        2 => text.get(1..).unwrap_or_default().into(),
        _ => hex(&tag).into_bytes(),
    }
}

/// What the answer has to be.
fn expected(
    scheme: Scheme,
    keys: &[&[u8]],
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(usize, [u8; 32]), VerifyError> {
    let lines: Vec<&[u8]> =
        headers.get_all(scheme.header()).iter().map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return Err(VerifyError::Missing);
    }
    let separator = if scheme == Scheme::StandardWebhooks { b' ' } else { b',' };
    let parts = lines.iter().flat_map(|line| line.split(|byte| *byte == separator));
    let mut written_well: Vec<String> = parts.filter_map(|part| canonical(scheme, part)).collect();
    if written_well.is_empty() {
        return Err(VerifyError::Malformed);
    }
    written_well.truncate(CANDIDATES_MAX);

    let (mut id, mut stamp) = (b"".as_slice(), None);
    if scheme == Scheme::StandardWebhooks {
        id = headers.get("webhook-id").ok_or(VerifyError::Missing)?.as_bytes();
        stamp = Some(headers.get("webhook-timestamp").ok_or(VerifyError::Missing)?);
    } else if scheme == Scheme::AryeoTimestamped {
        stamp = Some(headers.get("timestamp").ok_or(VerifyError::Missing)?);
    }
    let stamp = stamp.map(HeaderValue::as_bytes);
    let at = match stamp {
        Some(digits) if is_time(digits) => {
            Some(std::str::from_utf8(digits).unwrap().parse::<u64>().unwrap())
        }
        Some(_) => return Err(VerifyError::Malformed),
        None => None,
    };
    let content = content(scheme, id, stamp.unwrap_or_default(), body);
    let tags = keys.iter().map(|key| hmac(key, &content));
    let found = tags.enumerate().find(|(_, tag)| written_well.contains(&written(scheme, tag)));
    let (secret, tag) = found.ok_or(VerifyError::Mismatch)?;
    match at {
        None => Ok((secret, tag)),
        Some(at) if at.abs_diff(NOW) > TOLERANCE => Err(VerifyError::Stale),
        Some(_) => Ok((secret, Sha256::digest(body).into())),
    }
}

fn is_time(digits: &[u8]) -> bool {
    (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
}

/// A signature as we would write it, if it is written as the scheme's are.
fn canonical(scheme: Scheme, part: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(part.trim_ascii()).ok()?;
    let is_hex =
        |text: &str| text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    match scheme {
        Scheme::Aryeo | Scheme::AryeoTimestamped => is_hex(text).then(|| text.to_lowercase()),
        Scheme::Github => {
            let digits = text.strip_prefix("sha256=").filter(|digits| is_hex(digits))?;
            Some(format!("sha256={}", digits.to_lowercase()))
        }
        Scheme::StandardWebhooks => {
            let digits = text.strip_prefix("v1,")?.strip_suffix('=')?;
            let is_digit = |digit: u8| digit.is_ascii_alphanumeric() || b"+/".contains(&digit);
            // The last digit has two bits that belong to no byte.
            let is_whole =
                digits.len() == 43 && "AEIMQUYcgkosw048".contains(digits.chars().last()?);
            (is_whole && digits.bytes().all(is_digit)).then(|| text.to_owned())
        }
    }
}

/// A signature as the scheme writes it.
fn written(scheme: Scheme, tag: &[u8; 32]) -> String {
    match scheme {
        Scheme::Aryeo | Scheme::AryeoTimestamped => hex(tag),
        Scheme::Github => format!("sha256={}", hex(tag)),
        Scheme::StandardWebhooks => format!("v1,{}", BASE64_STANDARD.encode(tag)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is signed.
fn content(scheme: Scheme, id: &[u8], stamp: &[u8], body: &[u8]) -> Vec<u8> {
    match scheme {
        Scheme::Aryeo | Scheme::Github => body.to_vec(),
        Scheme::AryeoTimestamped => [stamp, b".", body].concat(),
        Scheme::StandardWebhooks => [id, b".", stamp, b".", body].concat(),
    }
}

/// As RFC 2104 has it.
fn hmac(key: &[u8], content: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    match block.get_mut(..key.len()) {
        Some(begin) => begin.copy_from_slice(key),
        None => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(content);
    let outer = Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}
