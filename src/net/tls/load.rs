//! A certificate and its key: from PEM to what is served.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::InconsistentKeys;
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::chain::{self, Chain};
use super::target::system_roots;
use super::{TlsError, provider};

/// A certificate that is ready to serve.
#[derive(Clone, Debug)]
pub struct LoadedCertificate {
    /// The chain, leaf first, and what signs for it.
    pub key: Arc<CertifiedKey>,
    /// The host names that it is for, in lower case; with a wildcard perhaps, and none where it is
    /// for addresses only.
    pub hosts: Vec<String>,
    /// When it begins to be valid, in unix seconds. In the future it is worth a warning: our clock
    /// or the sender's may differ, so it is served all the same.
    pub not_before_unix: i64,
    /// When it ends itself, in unix seconds.
    pub not_after_unix: i64,
    /// The host names and addresses it is for, separated by a comma; its subject if it has none.
    pub names: String,
    /// What is to be said of the chain behind it.
    pub chain: Chain,
}

/// What the certificate and the key are called in messages.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The certificate's file.
    pub certificate: &'a str,
    /// The key's file.
    pub key: &'a str,
}

/// [`load_certificate`] from two files, which may be the same one.
pub fn load_files(
    certificate: &Path,
    key: &Path,
    now_unix: i64,
) -> Result<LoadedCertificate, TlsError> {
    let certificate_pem = read_file(certificate)?;
    let key_pem = zeroize::Zeroizing::new(read_file(key)?);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let names = Names { certificate: &certificate, key: &key };
    load_certificate(&certificate_pem, &key_pem, names, now_unix)
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|reason| {
        let name = path.display().to_string();
        match reason.kind() {
            io::ErrorKind::NotFound => TlsError::Missing { name },
            _ => TlsError::Unreadable { name, reason },
        }
    })
}

/// Takes a certificate chain, leaf first, and its key; refuses what no client would accept.
pub fn load_certificate(
    certificate_pem: &[u8],
    key_pem: &[u8],
    names: Names<'_>,
    now_unix: i64,
) -> Result<LoadedCertificate, TlsError> {
    let (chain, key) = identity(certificate_pem, key_pem, names)?;
    let facts = facts(&chain, names.certificate)?;
    let key = CertifiedKey::from_der(chain, key, &provider())
        .map_err(|error| identity_error(error, names))?;
    if facts.not_after_unix <= now_unix {
        let date = date(facts.not_after_unix);
        return Err(TlsError::Expired { name: names.certificate.to_owned(), date });
    }
    let Facts { hosts, not_before_unix, not_after_unix, names } = facts;
    let chain = chain::examine(&key.cert, || system_roots().ok(), now_unix);
    let key = Arc::new(key);
    Ok(LoadedCertificate { key, hosts, not_before_unix, not_after_unix, names, chain })
}

pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(super) fn identity(
    certificate: &[u8],
    key: &[u8],
    names: Names<'_>,
) -> Result<Identity, TlsError> {
    Ok((certificates(certificate, names.certificate)?, private_key(key, names.key)?))
}

pub(super) fn identity_error(error: rustls::Error, names: Names<'_>) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            certificate: names.certificate.to_owned(),
            key: names.key.to_owned(),
        },
        rustls::Error::InvalidCertificate(error) => TlsError::BadCertificate {
            name: names.certificate.to_owned(),
            reason: error.to_string(),
        },
        reason => TlsError::UnsupportedKey { name: names.key.to_owned(), reason },
    }
}

pub(super) fn certificates(
    pem: &[u8],
    name: &str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| bad_pem(name, &error))?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate { name: name.to_owned() });
    }
    Ok(found)
}

fn private_key(pem: &[u8], name: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, der) = section.map_err(|error| bad_pem(name, &error))?;
        keys.extend(PrivateKeyDer::from_pem(kind, der));
    }
    let count = keys.len();
    match keys.pop() {
        Some(key) if count == 1 => Ok(key),
        Some(_) => Err(TlsError::SeveralKeys { name: name.to_owned(), count }),
        None if is_encrypted(pem) => Err(TlsError::EncryptedKey { name: name.to_owned() }),
        None => Err(TlsError::NoKey { name: name.to_owned() }),
    }
}

fn is_encrypted(pem: &[u8]) -> bool {
    const LABEL: &[u8] = b"BEGIN ENCRYPTED PRIVATE KEY";
    pem.windows(LABEL.len()).any(|window| window == LABEL)
}

fn bad_pem(name: &str, error: &pem::Error) -> TlsError {
    TlsError::BadPem { name: name.to_owned(), reason: error.to_string() }
}

/// What the leaf says of itself.
struct Facts {
    hosts: Vec<String>,
    not_before_unix: i64,
    not_after_unix: i64,
    names: String,
}

fn facts(chain: &[CertificateDer<'_>], name: &str) -> Result<Facts, TlsError> {
    let bad = |reason: String| TlsError::BadCertificate { name: name.to_owned(), reason };
    let leaf = chain.first().ok_or_else(|| TlsError::NoCertificate { name: name.to_owned() })?;
    let leaf = Certificate::from_der(leaf).map_err(|error| bad(error.to_string()))?;
    let leaf = leaf.tbs_certificate();
    let next = chain.get(1).map(|next| Certificate::from_der(next)).transpose();
    next.map_err(|error| bad(error.to_string()))?;
    let alternatives = leaf
        .get_extension::<SubjectAltName>()
        .map_err(|error| bad(error.to_string()))?
        .map(|(_, SubjectAltName(names))| names)
        .unwrap_or_default();
    let hosts = alternatives.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    });
    let mut names: Vec<String> = alternatives.iter().filter_map(shown).collect();
    if names.is_empty() {
        names.push(leaf.subject().to_string());
    }
    Ok(Facts {
        hosts: hosts.collect(),
        not_before_unix: unix(leaf.validity().not_before),
        not_after_unix: unix(leaf.validity().not_after),
        names: names.join(", "),
    })
}

fn shown(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()?;
            Some(address.to_string())
        }
        _ => None,
    }
}

pub(super) fn unix(time: x509_cert::time::Time) -> i64 {
    i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
}

pub(super) fn date(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix} (unix seconds)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Authority, Pair};

    const NAMES: Names<'_> = Names { certificate: "tls.crt", key: "tls.key" };

    fn load(certificate: &str, key: &str, now: i64) -> Result<LoadedCertificate, TlsError> {
        load_certificate(certificate.as_bytes(), key.as_bytes(), NAMES, now)
    }

    #[test]
    fn a_good_pair_is_loaded_with_its_facts() {
        let pair = Authority::new().issue_between(
            &["relay.example.com", "127.0.0.1", "::1"],
            1_000_000_000,
            2_000_000_000,
        );
        let loaded = load(&pair.certificate, &pair.key, 1_500_000_000).unwrap();
        assert_eq!(loaded.not_before_unix, 1_000_000_000);
        assert_eq!(loaded.not_after_unix, 2_000_000_000);
        assert_eq!(loaded.names, "relay.example.com, 127.0.0.1, ::1");
        assert_eq!(loaded.hosts, ["relay.example.com"]);
        let both = format!("{}{}", pair.key, pair.certificate);
        load(&both, &both, 1_500_000_000).expect("one file with both is common");
        load(&pair.certificate, &pair.key, 0).expect("not yet valid is served");
    }

    #[test]
    fn each_mistake_has_its_message() {
        let authority = Authority::new();
        let pair = authority.issue_between(&["a"], 0, 1_000_000_000);
        let Pair { certificate, key } = &pair;
        let other = authority.issue(&["a"]).key;
        let broken = certificate.replacen("MII", "!!!", 1);
        let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let locked =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let odd = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (certificate, key, expected) in [
            (key.as_str(), key.as_str(), "tls.crt: no certificate in it"),
            ("", key, "tls.crt: no certificate in it"),
            (&broken, key, "tls.crt: not valid PEM"),
            (not_der, key, "tls.crt: the certificate can't be used"),
            (certificate, certificate, "tls.key: no private key in it"),
            (certificate, &format!("{key}{other}"), "tls.key: 2 private keys in it"),
            (certificate, locked, "tls.key: the private key is encrypted"),
            (certificate, odd, "tls.key: the private key can't be used"),
            (
                certificate,
                &other,
                "tls.key: the private key does not belong to the certificate in tls.crt",
            ),
            (certificate, key, "tls.crt: the certificate expired on 2001-09-09T01:46:40Z"),
        ] {
            let error = load(certificate, key, 1_000_000_000).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error:?} should be {expected:?}");
        }
    }

    #[test]
    fn files_are_named_in_messages() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("c"), directory.path().join("k"));
        let error = load_files(&certificate, &key, 0).unwrap_err();
        assert!(matches!(&error, TlsError::Missing { name } if name.ends_with("/c")), "{error}");
        let pair = Authority::new().issue(&["a"]);
        std::fs::write(&certificate, &pair.certificate).unwrap();
        let error = load_files(&certificate, &key, 0).unwrap_err();
        assert!(matches!(&error, TlsError::Missing { name } if name.ends_with("/k")), "{error}");
        std::fs::create_dir(&key).unwrap();
        let error = load_files(&certificate, &key, 0).unwrap_err();
        assert!(matches!(&error, TlsError::Unreadable { .. }), "{error}");
        std::fs::remove_dir(&key).unwrap();
        std::fs::write(&key, &pair.key).unwrap();
        load_files(&certificate, &key, 0).unwrap();
    }
}
