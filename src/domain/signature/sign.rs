//! How outgoing requests are signed.

use http::{HeaderName, HeaderValue};

use super::{Scheme, Secret, TIMESTAMP};
use crate::domain::time::Timestamp;
use crate::domain::webhook::Header;

/// How outgoing requests are signed.
#[derive(Debug, Clone, PartialEq)]
pub enum Signing {
    /// Not at all: `scheme: none`.
    None,
    /// With a secret.
    With {
        /// The scheme.
        scheme: Scheme,
        /// The secret that signs.
        secret: Secret,
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

    /// The headers that prove these bytes: exactly one signature line.
    pub fn sign(&self, body: &[u8], now: Timestamp) -> Vec<Header> {
        match self {
            Self::None => Vec::new(),
            Self::With { scheme: Scheme::Aryeo, secret, header } => {
                vec![(header.clone(), hex(&secret.tag(&[body])))]
            }
            Self::With { scheme: Scheme::AryeoTimestamped, secret, header } => {
                let secs = now.as_secs().to_string();
                let signature = hex(&secret.tag(&[secs.as_bytes(), b".", body]));
                let timestamp = HeaderValue::from(now.as_secs());
                vec![(header.clone(), signature), (TIMESTAMP, timestamp)]
            }
        }
    }

    /// The headers it sets, which the operator's headers can't.
    pub fn header_names(&self) -> Vec<HeaderName> {
        match self {
            Self::None => Vec::new(),
            Self::With { scheme: Scheme::Aryeo, header, .. } => vec![header.clone()],
            Self::With { scheme: Scheme::AryeoTimestamped, header, .. } => {
                vec![header.clone(), TIMESTAMP]
            }
        }
    }
}

fn hex(bytes: &[u8; 32]) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        if let [high, low] = pair {
            *high = DIGITS.get(usize::from(byte >> 4)).copied().unwrap_or(b'0');
            *low = DIGITS.get(usize::from(byte & 0x0f)).copied().unwrap_or(b'0');
        }
    }
    let mut value = HeaderValue::from_bytes(&text).expect("hex digits are a header value");
    // Never shown, never kept.
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::signature::SIGNATURE;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const BODY: &[u8] = br#"{"a":1}"#;
    const OF_ABC: &str = "1f14a62b15ba5095326d6c75c3e2e6b462dd71e1c4b7fbdac0f32309adb7be5f";

    #[test]
    fn what_we_sign_is_one_lower_case_line_that_verifies() {
        let signing = Signing::With {
            scheme: Scheme::Aryeo,
            secret: Secret::new("s", b"abc").unwrap(),
            header: SIGNATURE,
        };
        assert_eq!(signing.sign(BODY, NOW), vec![(SIGNATURE, HeaderValue::from_static(OF_ABC))]);
        assert_eq!(Signing::None.sign(BODY, NOW), vec![]);
    }
}
