//! What a source's requests must bring to be believed: a signature, secret headers, or both.

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use crate::domain::signature::{Scheme, Secret, Verification, VerifyError};
use crate::domain::time::Timestamp;

/// Everything that is demanded of a request; at least one thing, or else a certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    signature: Option<Verification>,
    headers: Vec<RequiredHeader>,
}

/// A header whose value is a secret between the sender and us.
#[derive(Debug, Clone, PartialEq)]
pub struct RequiredHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub secret: Secret,
}

/// A request that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proven {
    /// Which of the signature's secrets matched; none where no signature is demanded.
    pub secret: Option<usize>,
    /// A digest of the exact body.
    pub digest: [u8; 32],
}

impl Proof {
    /// None if nothing is demanded: whoever asks for no proof believes everybody, and that can't be
    /// left to an accident.
    pub fn new(signature: Option<Verification>, headers: Vec<RequiredHeader>) -> Option<Self> {
        (signature.is_some() || !headers.is_empty()).then_some(Self { signature, headers })
    }

    /// The same where the sender has to show a certificate as well, which may be all.
    pub fn beside_certificate(
        signature: Option<Verification>,
        headers: Vec<RequiredHeader>,
    ) -> Self {
        Self { signature, headers }
    }

    /// Checks everything, in constant time, over the exact bytes.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Proven, VerifyError> {
        let proven = match &self.signature {
            Some(signature) => {
                let verified = signature.verify(headers, body, now)?;
                Proven { secret: Some(verified.secret), digest: verified.digest }
            }
            None => Proven { secret: None, digest: Sha256::digest(body).into() },
        };
        for required in &self.headers {
            let mut lines = headers.get_all(&required.name).iter().peekable();
            if lines.peek().is_none() {
                return Err(VerifyError::Missing);
            }
            // A header of the sender's may come beside a proxy's of the same name.
            if !lines.any(|line| required.secret.is(line.as_bytes())) {
                return Err(VerifyError::Mismatch);
            }
        }
        Ok(proven)
    }

    /// The signature's secrets; any one may match.
    pub fn secrets(&self) -> &[Secret] {
        self.signature.as_ref().map_or(&[], |signature| &signature.secrets)
    }

    /// How the signature is computed, where one is demanded.
    pub fn scheme(&self) -> Option<Scheme> {
        self.signature.as_ref().map(|signature| signature.scheme)
    }

    /// The header that carries the signature, where one is demanded.
    pub fn signature_header(&self) -> Option<&HeaderName> {
        self.signature.as_ref().map(|signature| &signature.header)
    }

    /// The headers whose values prove something: never to be kept, shown or passed on.
    pub fn header_names(&self) -> impl Iterator<Item = &HeaderName> {
        let required = self.headers.iter().map(|required| &required.name);
        self.signature_header().into_iter().chain(required)
    }

    /// Whether a header proves something or only this attempt has it.
    pub fn claims(&self, name: &HeaderName) -> bool {
        let beside = self.scheme().map_or(&[][..], Scheme::beside);
        self.header_names().any(|own| own == name) || beside.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::signature::{SIGNATURE, TIMESTAMP};
    use http::HeaderValue;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const BODY: &[u8] = br#"{"a":1}"#;
    const OF_ABC: &str = "1f14a62b15ba5095326d6c75c3e2e6b462dd71e1c4b7fbdac0f32309adb7be5f";

    fn secret(text: &str) -> Secret {
        Secret::new("env:S", text.as_bytes()).unwrap()
    }

    fn signature() -> Verification {
        Verification {
            scheme: Scheme::Aryeo,
            secrets: vec![secret("abc")],
            header: SIGNATURE,
            tolerance: Duration::from_secs(300),
        }
    }

    fn token(value: &str) -> RequiredHeader {
        RequiredHeader { name: HeaderName::from_static("x-token"), secret: secret(value) }
    }

    #[track_caller]
    fn check(
        proof: &Proof,
        lines: &[(&'static str, &str)],
        expected: Result<Option<usize>, VerifyError>,
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let result = proof.verify(&headers, BODY, NOW);
        assert_eq!(result.map(|proven| proven.secret), expected, "{lines:?}");
    }

    #[test]
    fn a_proof_of_nothing_is_none() {
        assert_eq!(Proof::new(None, Vec::new()), None);
    }

    #[test]
    fn a_required_header_must_be_there_and_be_the_secret() {
        let proof = Proof::new(None, vec![token("s3cret")]).unwrap();
        check(&proof, &[("x-token", "s3cret")], Ok(None));
        check(&proof, &[("x-token", "other"), ("x-token", "s3cret")], Ok(None));
        check(&proof, &[], Err(VerifyError::Missing));
        for wrong in ["", "s3cre", "s3crett", "S3CRET"] {
            check(&proof, &[("x-token", wrong)], Err(VerifyError::Mismatch));
        }
    }

    #[test]
    fn a_signature_and_a_header_must_both_hold() {
        let proof = Proof::new(Some(signature()), vec![token("s3cret")]).unwrap();
        check(&proof, &[("signature", OF_ABC), ("x-token", "s3cret")], Ok(Some(0)));
        check(&proof, &[("signature", OF_ABC)], Err(VerifyError::Missing));
        check(&proof, &[("signature", OF_ABC), ("x-token", "x")], Err(VerifyError::Mismatch));
        check(&proof, &[("x-token", "s3cret")], Err(VerifyError::Missing));
        let other = OF_ABC.replace('1', "2");
        check(&proof, &[("signature", &other), ("x-token", "s3cret")], Err(VerifyError::Mismatch));
    }

    #[test]
    fn without_a_signature_the_same_bytes_have_the_same_digest() {
        let proof = Proof::new(None, vec![token("a")]).unwrap();
        let headers: HeaderMap =
            [(HeaderName::from_static("x-token"), HeaderValue::from_static("a"))]
                .into_iter()
                .collect();
        let digest = |body: &[u8]| proof.verify(&headers, body, NOW).unwrap().digest;
        assert_eq!(digest(BODY), digest(BODY));
        assert_ne!(digest(BODY), digest(b""));
    }

    #[test]
    fn what_proves_something_is_claimed() {
        let proof = Proof::new(Some(signature()), vec![token("a")]).unwrap();
        assert!(proof.claims(&SIGNATURE) && proof.claims(&HeaderName::from_static("x-token")));
        assert!(!proof.claims(&TIMESTAMP));
        let stamped = Verification { scheme: Scheme::AryeoTimestamped, ..signature() };
        assert!(Proof::new(Some(stamped), Vec::new()).unwrap().claims(&TIMESTAMP));
    }
}
