//! TLS towards a target: whom we trust, and what we show.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::load::{Names, certificates, identity, identity_error};
use super::{PROTOCOLS, TlsError, provider};

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
        Some(pem) => Arc::new(roots(pem, "ca")?),
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

/// The system's roots, read once; a failure is not remembered.
pub(super) fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
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

/// Roots (PEM), which messages call by `name`.
pub fn roots(pem: &[u8], name: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, name)? {
        roots.add(certificate).map_err(|error| TlsError::BadCertificate {
            name: name.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Authority;

    #[test]
    fn a_targets_settings_are_checked() {
        let authority = Authority::new();
        let pair = authority.issue(&["a"]);
        let ca = Some(authority.certificate.as_bytes());
        let identity = Some((pair.certificate.as_bytes(), pair.key.as_bytes()));
        let target = TargetTls { ca, identity };
        let config = client_config(target).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(format!("{target:?}"), "TargetTls { ca: true, identity: true }");
        let error = client_config(TargetTls { ca: Some(b"nothing"), identity }).unwrap_err();
        assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
        let other = authority.issue(&["a"]).key;
        let identity = Some((pair.certificate.as_bytes(), other.as_bytes()));
        let error = client_config(TargetTls { ca, identity }).unwrap_err();
        assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
        // Whatever this system has: roots, or the message that says how to get them.
        match client_config(TargetTls::default()) {
            Ok(_) => {}
            Err(error) => assert!(matches!(error, TlsError::NoSystemRoots { .. }), "{error}"),
        }
    }

    #[test]
    fn server_names_are_names_or_addresses() {
        assert!(matches!(server_name("crm.internal").unwrap(), ServerName::DnsName(_)));
        assert!(matches!(server_name("[::1]").unwrap(), ServerName::IpAddress(_)));
        assert!(matches!(server_name("10.0.0.1").unwrap(), ServerName::IpAddress(_)));
        assert!(matches!(server_name("a b").unwrap_err(), TlsError::BadServerName { .. }));
    }
}
