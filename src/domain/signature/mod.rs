//! Proof over the exact bytes: how it is verified and how it is made.

use std::fmt;
use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderName;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

mod sign;
mod verify;

pub use sign::Signing;
pub use verify::{Verification, Verified, VerifyError};

/// A key for signatures. Its bytes can't be read back, printed or compared in variable time.
#[derive(Clone)]
pub struct Secret {
    label: Box<str>,
    bytes: usize,
    // With the key already absorbed: two compressions less for each signature.
    keyed: Hmac<Sha256>,
}

impl Secret {
    /// A secret of these bytes; `label` says where it came from, such as `env:NAME`.
    ///
    /// An empty secret is no secret.
    pub fn new(label: impl Into<Box<str>>, bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let keyed = Hmac::new_from_slice(bytes).ok()?;
        Some(Self { label: label.into(), bytes: bytes.len(), keyed })
    }

    /// A secret as it is written for `scheme`: the bytes themselves, or those that they stand for.
    pub fn written(
        scheme: Scheme,
        label: impl Into<Box<str>>,
        bytes: &[u8],
    ) -> Result<Self, SecretError> {
        let decoded = match scheme {
            Scheme::Aryeo | Scheme::AryeoTimestamped | Scheme::Github => None,
            Scheme::StandardWebhooks => {
                // The specification's libraries read what has no prefix in the same way.
                let text = bytes.strip_prefix(b"whsec_").unwrap_or(bytes);
                let key = KEYS.decode(text).map_err(|_| SecretError::NotBase64)?;
                Some(Zeroizing::new(key))
            }
        };
        let key = decoded.as_ref().map_or(bytes, |key| key.as_slice());
        Self::new(label, key).ok_or(SecretError::Empty)
    }

    /// Where it came from: never the secret itself.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether it is as long as the scheme's specification wants it.
    pub fn has_length_of(&self, scheme: Scheme) -> bool {
        scheme.key_bytes().is_none_or(|bytes| bytes.contains(&self.bytes))
    }

    /// Whether these bytes are the secret, in constant time.
    pub fn is(&self, bytes: &[u8]) -> bool {
        let other = Hmac::<Sha256>::new_from_slice(bytes);
        other.is_ok_and(|other| {
            let other: [u8; 32] = other.finalize().into_bytes().into();
            bool::from(self.tag(&[]).ct_eq(&other))
        })
    }

    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.keyed.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Whether it is the same secret, wherever the two come from; in constant time.
    pub fn signs_as(&self, other: &Self) -> bool {
        bool::from(self.tag(&[]).ct_eq(&other.tag(&[])))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.label)
    }
}

impl PartialEq for Secret {
    /// Equal when they sign alike.
    fn eq(&self, other: &Self) -> bool {
        self.label == other.label && self.signs_as(other)
    }
}

/// Base64 as those libraries take it: padded or not, whatever the bits are that no byte needs.
const KEYS: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why something written is no secret. Says nothing of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// There is nothing in it.
    #[error("a secret can't be empty")]
    Empty,
    /// The scheme wants base64.
    #[error("a secret of standard-webhooks is base64, after \"whsec_\": this is not")]
    NotBase64,
}

/// How a signature is computed and carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Hex HMAC-SHA256 of the body in `Signature`.
    Aryeo,
    /// The same over `"{timestamp}.{body}"`, with `Timestamp` beside it.
    AryeoTimestamped,
    /// `v1,` and base64 HMAC-SHA256 of `"{id}.{timestamp}.{body}"` in `webhook-signature`, once for
    /// each secret, with `webhook-id` and `webhook-timestamp` beside it.
    StandardWebhooks,
    /// `sha256=` and hex HMAC-SHA256 of the body in `X-Hub-Signature-256`.
    Github,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Aryeo, Self::AryeoTimestamped, Self::StandardWebhooks, Self::Github];

    /// The scheme of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == name)
    }

    /// Its name in the routes file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aryeo => "aryeo",
            Self::AryeoTimestamped => "aryeo-timestamped",
            Self::StandardWebhooks => "standard-webhooks",
            Self::Github => "github",
        }
    }

    /// The header that carries the signature where none is named.
    pub const fn header(self) -> HeaderName {
        match self {
            Self::Aryeo | Self::AryeoTimestamped => SIGNATURE,
            Self::StandardWebhooks => HeaderName::from_static("webhook-signature"),
            Self::Github => HeaderName::from_static("x-hub-signature-256"),
        }
    }

    /// How many bytes a key has to have, where the scheme's specification says so. It is not for us to
    /// refuse others, for the one at the other end may have been given one.
    pub const fn key_bytes(self) -> Option<RangeInclusive<usize>> {
        match self {
            Self::Aryeo | Self::AryeoTimestamped | Self::Github => None,
            Self::StandardWebhooks => Some(24..=64),
        }
    }

    /// The headers beside that one, with what is signed along.
    pub fn beside(self) -> &'static [HeaderName] {
        static STAMP: [HeaderName; 1] = [TIMESTAMP];
        static ID_AND_STAMP: [HeaderName; 2] = [WEBHOOK_ID, WEBHOOK_TIMESTAMP];
        match self {
            Self::Aryeo | Self::Github => &[],
            Self::AryeoTimestamped => &STAMP,
            Self::StandardWebhooks => &ID_AND_STAMP,
        }
    }

    /// What is signed, in parts, so that no body is copied for it.
    const fn content<'a>(self, id: &'a [u8], timestamp: &'a [u8], body: &'a [u8]) -> [&'a [u8]; 5] {
        match self {
            Self::Aryeo | Self::Github => [b"", b"", b"", b"", body],
            Self::AryeoTimestamped => [b"", b"", timestamp, b".", body],
            Self::StandardWebhooks => [id, b".", timestamp, b".", body],
        }
    }
}

/// The default header of Aryeo's schemes.
pub const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// The header of the time that `aryeo-timestamped` signs along.
pub const TIMESTAMP: HeaderName = HeaderName::from_static("timestamp");

/// The headers of what `standard-webhooks` signs along.
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown_and_never_empty() {
        let secret = Secret::new("env:X", b"hunter2").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(env:X)");
        assert!(Secret::new("env:X", b"").is_none());
    }

    #[test]
    fn a_secret_of_standard_webhooks_is_base64_with_its_prefix_or_without() {
        let read = |text: &str| Secret::written(Scheme::StandardWebhooks, "s", text.as_bytes());
        let secret = Secret::new("s", b"the secret's key").unwrap();
        for written in [
            "whsec_dGhlIHNlY3JldCdzIGtleQ==",
            "dGhlIHNlY3JldCdzIGtleQ==",
            "whsec_dGhlIHNlY3JldCdzIGtleQ",
            // The last digit has bits that no byte needs.
            "whsec_dGhlIHNlY3JldCdzIGtleR",
        ] {
            assert_eq!(read(written), Ok(secret.clone()), "{written}");
        }
        for written in ["", "whsec_", "whsec_=="] {
            assert!(read(written).is_err(), "{written}");
        }
        for written in [
            "whsec_not base64",
            "whsec_dGhlIHNlY3JldCdzIGtleQ==\n",
            "whsec_whsec_dGhlIHNlY3JldCdzIGtleQ==",
            // A private key of the specification's other kind of signature.
            "whsk_dGhlIHNlY3JldCdzIGtleQ==",
            "the_secret",
        ] {
            assert_eq!(read(written), Err(SecretError::NotBase64), "{written}");
        }
    }

    #[test]
    fn only_standard_webhooks_says_how_long_a_key_is() {
        for (bytes, is_good) in [(1, false), (23, false), (24, true), (64, true), (65, false)] {
            let secret = Secret::new("s", &vec![b'x'; bytes]).unwrap();
            assert_eq!(secret.has_length_of(Scheme::StandardWebhooks), is_good, "{bytes}");
            for scheme in [Scheme::Aryeo, Scheme::AryeoTimestamped, Scheme::Github] {
                assert!(secret.has_length_of(scheme));
            }
        }
        // It is the key that counts, not its base64.
        let written = Secret::written(Scheme::StandardWebhooks, "s", &[b'A'; 24]).unwrap();
        assert!(!written.has_length_of(Scheme::StandardWebhooks));
    }

    #[test]
    fn secrets_of_the_other_schemes_are_the_bytes_themselves() {
        let written = b"whsec_dGhlIHNlY3JldCdzIGtleQ==";
        for scheme in [Scheme::Aryeo, Scheme::AryeoTimestamped, Scheme::Github] {
            assert_eq!(Secret::written(scheme, "s", written).ok(), Secret::new("s", written));
            assert_eq!(Secret::written(scheme, "s", b""), Err(SecretError::Empty));
        }
    }
}
