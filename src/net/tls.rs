//! Certificates, keys and roots: from PEM to what rustls wants, with errors an operator can act on.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What is offered by ALPN, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why certificates, keys or roots can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is no such file.
    #[error("{name}: no such file")]
    Missing {
        /// The file.
        name: String,
    },
    /// The file is there but can't be read.
    #[error("{name}: can't be read: {source}")]
    Unreadable {
        /// The file.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The text is not PEM.
    #[error("{name}: not valid PEM: {reason}")]
    BadPem {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate in it.
    #[error("{name}: no certificate in it (no BEGIN CERTIFICATE line)")]
    NoCertificate {
        /// The file.
        name: String,
    },
    /// No key in it.
    #[error("{name}: no private key in it (no BEGIN PRIVATE KEY line)")]
    NoKey {
        /// The file.
        name: String,
    },
    /// The key needs a password, which nobody is there to type.
    #[error("{name}: the private key is encrypted: store it without a password")]
    EncryptedKey {
        /// The file.
        name: String,
    },
    /// More keys than one.
    #[error("{name}: {count} private keys in it, one is wanted")]
    SeveralKeys {
        /// The file.
        name: String,
        /// How many.
        count: usize,
    },
    /// A kind of key we can't use.
    #[error("{name}: the private key can't be used: {source}")]
    UnsupportedKey {
        /// The file.
        name: String,
        /// Why not.
        source: rustls::Error,
    },
    /// The key is another certificate's.
    #[error("{key}: the private key does not belong to the certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
    },
    /// The certificate can't be read or used.
    #[error("{name}: the certificate can't be used: {reason}")]
    BadCertificate {
        /// The file.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Its time is over.
    #[error("{name}: the certificate expired on {date}")]
    Expired {
        /// The file.
        name: String,
        /// When, RFC 3339.
        date: String,
    },
    /// No roots on this system.
    #[error(
        "this system has no root certificates{reason}: install its ca-certificates package, set \
         SSL_CERT_FILE, or give the target a `ca`"
    )]
    NoSystemRoots {
        /// What the search ran into, with a colon before it, or nothing.
        reason: String,
    },
    /// Not a name a certificate can be for.
    #[error("{name:?} is neither a host name nor an address")]
    BadServerName {
        /// The text.
        name: String,
    },
    /// The TLS library refuses to work at all.
    #[error("TLS can't be set up: {0}")]
    Setup(#[source] rustls::Error),
}

/// A certificate that is ready to serve.
#[derive(Clone, Debug)]
pub struct LoadedCertificate {
    /// TLS 1.2 and 1.3, session tickets, HTTP/2 and HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// When it begins to be valid, in unix seconds. In the future it is worth a warning: our clock
    /// or the sender's may differ, so it is served all the same.
    pub not_before_unix: i64,
    /// When it ends, in unix seconds.
    pub not_after_unix: i64,
    /// The host names and addresses it is for, separated by a comma; its subject if it has none.
    pub names: String,
}

/// What the certificate and the key are called in messages.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The certificate's file.
    pub certificate: &'a str,
    /// The key's file.
    pub key: &'a str,
}

/// [`load_server_config`] from two files, which may be the same one.
pub fn load_server_files(
    certificate: &Path,
    key: &Path,
    now_unix: i64,
) -> Result<LoadedCertificate, TlsError> {
    let certificate_pem = read_file(certificate)?;
    let key_pem = zeroize::Zeroizing::new(read_file(key)?);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let names = Names { certificate: &certificate, key: &key };
    load_server_config(&certificate_pem, &key_pem, names, now_unix)
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| {
        let name = path.display().to_string();
        match source.kind() {
            io::ErrorKind::NotFound => TlsError::Missing { name },
            _ => TlsError::Unreadable { name, source },
        }
    })
}

/// Takes a certificate chain, leaf first, and its key; refuses what no client would accept.
pub fn load_server_config(
    certificate_pem: &[u8],
    key_pem: &[u8],
    names: Names<'_>,
    now_unix: i64,
) -> Result<LoadedCertificate, TlsError> {
    let (chain, key) = identity(certificate_pem, key_pem, names)?;
    let facts = facts(&chain, names.certificate)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| identity_error(error, names))?;
    if facts.not_after_unix <= now_unix {
        let date = date(facts.not_after_unix);
        return Err(TlsError::Expired { name: names.certificate.to_owned(), date });
    }
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    config.ticketer = ring::Ticketer::new().map_err(TlsError::Setup)?;
    // One ticket is enough for a sender that reconnects; each costs a write.
    config.send_tls13_tickets = 1;
    let Facts { not_before_unix, not_after_unix, names } = facts;
    Ok(LoadedCertificate { config: Arc::new(config), not_before_unix, not_after_unix, names })
}

/// TLS towards a target.
#[derive(Clone, Copy, Default)]
pub struct TargetTls<'a> {
    /// Trust these roots (PEM) instead of the system's.
    pub ca: Option<&'a [u8]>,
    /// Show this certificate chain and key (PEM).
    pub identity: Option<(&'a [u8], &'a [u8])>,
}

impl std::fmt::Debug for TargetTls<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TargetTls")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

/// TLS 1.2 and 1.3 towards a target, with HTTP/2 and HTTP/1.1 offered.
///
/// Which name the target's certificate must have is the connection's matter.
pub fn client_config(target: TargetTls<'_>) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match target.ca {
        Some(pem) => Arc::new(roots(pem)?),
        None => system_roots()?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_webpki_verifier(verifier);
    let mut config = match target.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let names = Names { certificate: "certificate", key: "key" };
            let (chain, key) = identity(certificate, key, names)?;
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|error| identity_error(error, names))?
        }
    };
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

/// The name a target's certificate must have: a host name, or an address with or without brackets.
pub fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    ServerName::try_from(bare.to_owned())
        .map_err(|_| TlsError::BadServerName { name: name.to_owned() })
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}

/// The system's roots, read once; a failure is not remembered.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(Arc::clone(roots));
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(TlsError::NoSystemRoots { reason });
    }
    Ok(Arc::clone(ROOTS.get_or_init(|| Arc::new(roots))))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "ca")? {
        roots.add(certificate).map_err(|error| TlsError::BadCertificate {
            name: "ca".to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(certificate: &[u8], key: &[u8], names: Names<'_>) -> Result<Identity, TlsError> {
    Ok((certificates(certificate, names.certificate)?, private_key(key, names.key)?))
}

fn identity_error(error: rustls::Error, names: Names<'_>) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            certificate: names.certificate.to_owned(),
            key: names.key.to_owned(),
        },
        rustls::Error::InvalidCertificate(error) => TlsError::BadCertificate {
            name: names.certificate.to_owned(),
            reason: error.to_string(),
        },
        source => TlsError::UnsupportedKey { name: names.key.to_owned(), source },
    }
}

fn certificates(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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
    not_before_unix: i64,
    not_after_unix: i64,
    names: String,
}

fn facts(chain: &[CertificateDer<'_>], name: &str) -> Result<Facts, TlsError> {
    let bad = |reason: String| TlsError::BadCertificate { name: name.to_owned(), reason };
    let leaf = chain.first().ok_or_else(|| TlsError::NoCertificate { name: name.to_owned() })?;
    let leaf = Certificate::from_der(leaf).map_err(|error| bad(error.to_string()))?;
    let leaf = leaf.tbs_certificate();
    let unix = |time: x509_cert::time::Time| {
        i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
    };
    let alternatives = leaf
        .get_extension::<SubjectAltName>()
        .map_err(|error| bad(error.to_string()))?
        .map(|(_, SubjectAltName(names))| names)
        .unwrap_or_default();
    let mut names: Vec<String> = alternatives.iter().filter_map(host).collect();
    if names.is_empty() {
        names.push(leaf.subject().to_string());
    }
    Ok(Facts {
        not_before_unix: unix(leaf.validity().not_before),
        not_after_unix: unix(leaf.validity().not_after),
        names: names.join(", "),
    })
}

fn host(name: &GeneralName) -> Option<String> {
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

fn date(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix} (unix seconds)"))
}
