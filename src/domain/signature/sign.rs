//! How outgoing requests are signed.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue};

use super::{Scheme, Secret, TIMESTAMP, WEBHOOK_ID, WEBHOOK_TIMESTAMP};
use crate::domain::time::Timestamp;
use crate::domain::webhook::Header;

/// How outgoing requests are signed.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a target has one, and nearly all of them sign")]
pub enum Signing {
    /// Not at all: `scheme: none`.
    None,
    /// With a secret.
    With {
        /// The scheme.
        scheme: Scheme,
        /// The secret that signs.
        secret: Secret,
        /// Those that sign too, where the scheme carries a signature of each.
        also: Vec<Secret>,
        /// The header that carries the signature.
        header: HeaderName,
    },
}

impl Signing {
    /// How the signature is computed, where there is one.
    pub const fn scheme(&self) -> Option<Scheme> {
        match self {
            Self::None => None,
            Self::With { scheme, .. } => Some(*scheme),
        }
    }

    /// The secrets that sign.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let (one, also) = match self {
            Self::None => (None, [].as_slice()),
            Self::With { secret, also, .. } => (Some(secret), also.as_slice()),
        };
        one.into_iter().chain(also)
    }

    /// The headers that prove these bytes: exactly one signature line.
    ///
    /// `id` is the same at each attempt and has only what a header can carry; not all schemes use
    /// it. The specification wants no "." in what is before the body unless it is the signer's own:
    /// our ids are nobody else's, and that of a repeat on purpose ends with one and a number.
    pub fn sign(&self, id: &str, body: &[u8], now: Timestamp) -> Vec<Header> {
        let Self::With { scheme, secret, header, .. } = self else { return Vec::new() };
        let stamp = now.as_secs().to_string();
        let content = scheme.content(id.as_bytes(), stamp.as_bytes(), body);
        let text = match scheme {
            Scheme::Aryeo | Scheme::AryeoTimestamped => hex("", &secret.tag(&content)),
            Scheme::Github => hex("sha256=", &secret.tag(&content)),
            Scheme::StandardWebhooks => {
                let each = self.secrets().map(|secret| base64("v1,", &secret.tag(&content)));
                each.collect::<Vec<_>>().join(" ")
            }
        };
        let mut signature = HeaderValue::try_from(text).expect("these digits are a header value");
        // Never shown, never kept.
        signature.set_sensitive(true);
        let mut headers = vec![(header.clone(), signature)];
        match scheme {
            Scheme::Aryeo | Scheme::Github => {}
            Scheme::AryeoTimestamped => {
                headers.push((TIMESTAMP, HeaderValue::from(now.as_secs())));
            }
            Scheme::StandardWebhooks => {
                let id = HeaderValue::from_str(id).expect("the caller has a header's id");
                headers.push((WEBHOOK_ID, id));
                headers.push((WEBHOOK_TIMESTAMP, HeaderValue::from(now.as_secs())));
            }
        }
        headers
    }

    /// The headers it sets, which the operator's headers can't.
    pub fn header_names(&self) -> Vec<HeaderName> {
        match self {
            Self::None => Vec::new(),
            Self::With { scheme, header, .. } => {
                [std::slice::from_ref(header), scheme.beside()].concat()
            }
        }
    }
}

fn base64(prefix: &str, bytes: &[u8; 32]) -> String {
    let mut text = prefix.to_owned();
    BASE64_STANDARD.encode_string(bytes, &mut text);
    text
}

fn hex(prefix: &str, bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| DIGITS.get(usize::from(half)).copied().map_or('0', char::from);
    let mut text = String::with_capacity(prefix.len() + 64);
    text.push_str(prefix);
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 0x0f));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::signature::Verification;
    use http::HeaderMap;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const BODY: &[u8] = br#"{"a":1}"#;
    const OF_ABC: &str = "1f14a62b15ba5095326d6c75c3e2e6b462dd71e1c4b7fbdac0f32309adb7be5f";

    fn signing(scheme: Scheme, secret: &str) -> Signing {
        let secret = Secret::written(scheme, "s", secret.as_bytes()).unwrap();
        Signing::With { scheme, secret, also: Vec::new(), header: scheme.header() }
    }

    #[track_caller]
    fn check(signing: &Signing, id: &str, expected: &[(&str, &str)]) {
        let headers = signing.sign(id, BODY, NOW);
        let lines: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(lines, expected);
        let names: Vec<_> = headers.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(signing.header_names(), names);
        assert!(headers.first().is_none_or(|(_, value)| value.is_sensitive()));
    }

    #[test]
    fn what_we_sign_is_one_lower_case_line_that_verifies() {
        check(&signing(Scheme::Aryeo, "abc"), "id", &[("signature", OF_ABC)]);
        let line = format!("sha256={OF_ABC}");
        check(&signing(Scheme::Github, "abc"), "id", &[("x-hub-signature-256", &line)]);
        check(&Signing::None, "id", &[]);
    }

    #[test]
    fn standard_webhooks_carries_the_id_the_time_and_a_signature_of_each_secret() {
        let scheme = Scheme::StandardWebhooks;
        let secret = |text: &[u8]| Secret::written(scheme, "s", text).unwrap();
        let (old, new) = (secret(b"whsec_b2xk"), secret(b"bmV3"));
        let one = Signing::With {
            scheme,
            secret: new.clone(),
            also: Vec::new(),
            header: scheme.header(),
        };
        // printf '%s' 'id.2.1700000000.{"a":1}' | openssl dgst -sha256 -hmac new -binary | base64
        let of_new = "v1,nCDeWp+KZQwepYvttmbtT3oVqVo4/1iG4ClAv+0TtSM=";
        let of_old = "v1,ORFiuFVZHfcGcpz0PRrJUe1HNyxlNqGaITqQLl6bqN8=";
        let beside = [("webhook-id", "id.2"), ("webhook-timestamp", "1700000000")];
        check(&one, "id.2", &[&[("webhook-signature", of_new)][..], &beside].concat());
        let both = format!("{of_new} {of_old}");
        let header = HeaderName::from_static("x-mine");
        let two = Signing::With { scheme, secret: new.clone(), also: vec![old.clone()], header };
        check(&two, "id.2", &[&[("x-mine", &*both)][..], &beside].concat());

        let map: HeaderMap = two.sign("id.2", BODY, NOW).into_iter().collect();
        for secret in [old, new] {
            let verification = Verification {
                scheme,
                secrets: vec![secret],
                header: HeaderName::from_static("x-mine"),
                tolerance: Duration::ZERO,
            };
            assert!(verification.verify(&map, BODY, NOW).is_ok());
        }
    }
}
