//! Certificates, keys and roots: from PEM to what rustls wants, with errors an operator can act on.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};

mod chain;
mod load;
mod server;
mod sni;
mod subjects;
mod target;

pub use chain::{Chain, Doubt, Flaw};
pub use load::{LoadedCertificate, Names, load_certificate, load_files};
pub use server::{ServerTls, serve_one, server_config};
pub use sni::{CHALLENGE_PROTOCOL, Clash, Owner, Resolver, clashes};
pub use subjects::client_certificate;
pub use target::{TargetTls, client_config, roots, server_name};

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
    #[error("{name}: can't be read: {reason}")]
    Unreadable {
        /// The file.
        name: String,
        /// Why not; not a source, which would be told once more.
        reason: io::Error,
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
    #[error("{name}: the private key can't be used: {reason}")]
    UnsupportedKey {
        /// The file.
        name: String,
        /// Why not.
        reason: rustls::Error,
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
    Setup(rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}
