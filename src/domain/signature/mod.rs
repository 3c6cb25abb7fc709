//! Proof over the exact bytes: how it is verified and how it is made.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderName;
use sha2::Sha256;
use subtle::ConstantTimeEq;

mod sign;
mod verify;

pub use sign::Signing;
pub use verify::{Verification, Verified, VerifyError};

/// A key for signatures. Its bytes can't be read back, printed or compared in variable time.
#[derive(Clone)]
pub struct Secret {
    label: Box<str>,
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
        Some(Self { label: label.into(), keyed })
    }

    /// Where it came from: never the secret itself.
    pub fn label(&self) -> &str {
        &self.label
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

/// How a signature is computed and carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Hex HMAC-SHA256 of the body in `Signature`.
    Aryeo,
    /// The same over `"{timestamp}.{body}"`, with `Timestamp` beside it.
    AryeoTimestamped,
}

impl Scheme {
    /// Its name in the routes file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aryeo => "aryeo",
            Self::AryeoTimestamped => "aryeo-timestamped",
        }
    }
}

/// The default header of both schemes.
pub const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// The header of the time that is signed along.
pub const TIMESTAMP: HeaderName = HeaderName::from_static("timestamp");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown_and_never_empty() {
        let secret = Secret::new("env:X", b"hunter2").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(env:X)");
        assert!(Secret::new("env:X", b"").is_none());
    }
}
