//! A listener's certificate that comes while it listens, and those that an authority wants to see first.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::acme::{CHALLENGE_PROTOCOL, Challenges};
use super::tls::{self, TlsError};

/// What new connections are shown; nobody can connect while it is empty.
#[derive(Debug, Default)]
pub struct Awaited {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    certificate: Option<Arc<CertifiedKey>>,
    /// By domain, in lower case as it stands in a connection's first message.
    challenges: BTreeMap<String, Arc<CertifiedKey>>,
}

impl Awaited {
    /// TLS that shows it, now and after each change.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = tls::server_config(Arc::clone(self) as Arc<dyn ResolvesServerCert>)?;
        config.alpn_protocols.push(CHALLENGE_PROTOCOL.to_vec());
        Ok(Arc::new(config))
    }

    /// Shows this one from now on.
    pub fn put(&self, certificate: Arc<CertifiedKey>) {
        self.write().certificate = Some(certificate);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Challenges for Awaited {
    fn present(&self, domain: &str, certificate: Arc<CertifiedKey>) {
        self.write().challenges.insert(domain.to_ascii_lowercase(), certificate);
    }

    fn withdraw(&self, domain: &str) {
        self.write().challenges.remove(&domain.to_ascii_lowercase());
    }
}

impl ResolvesServerCert for Awaited {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_challenge = hello
            .alpn()
            .is_some_and(|mut protocols| protocols.any(|name| name == CHALLENGE_PROTOCOL));
        if !is_challenge {
            return self.read().certificate.clone();
        }
        let domain = hello.server_name()?.to_ascii_lowercase();
        self.read().challenges.get(&domain).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Authority, Pair};
    use crate::net::tls::{Names, load_server_config, server_name};
    use rustls::version::TLS13;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn key(pair: &Pair) -> Arc<CertifiedKey> {
        let names = Names { certificate: "a", key: "b" };
        let (chain, key) = (pair.certificate.as_bytes(), pair.key.as_bytes());
        load_server_config(chain, key, names, 0).unwrap().key
    }

    /// The certificate that a client is shown, or none.
    async fn shown(
        awaited: &Arc<Awaited>,
        authority: &Authority,
        name: &str,
        alpn: &[u8],
    ) -> Option<Vec<u8>> {
        let (far, near) = tokio::io::duplex(64 * 1024);
        let connector = TlsConnector::from(authority.client_with(&TLS13, &[alpn]));
        let acceptor = TlsAcceptor::from(awaited.config().unwrap());
        let (client, server) =
            tokio::join!(connector.connect(server_name(name).unwrap(), far), acceptor.accept(near));
        server.ok()?;
        Some(client.ok()?.get_ref().1.peer_certificates()?[0].to_vec())
    }

    #[tokio::test]
    async fn senders_see_the_newest_certificate_and_authorities_the_challenge_for_their_domain() {
        let authority = Authority::new();
        let awaited = Arc::<Awaited>::default();
        assert_eq!(shown(&awaited, &authority, "a", b"h2").await, None);
        for pair in [authority.issue(&["a"]), authority.issue(&["a"])] {
            awaited.put(key(&pair));
            let expected = Some(pair.chain()[0].to_vec());
            assert_eq!(shown(&awaited, &authority, "a", b"h2").await, expected);
            assert_eq!(shown(&awaited, &authority, "a", CHALLENGE_PROTOCOL).await, None);
        }
        let challenge = authority.issue(&["a"]);
        awaited.present("A", key(&challenge));
        let expected = Some(challenge.chain()[0].to_vec());
        assert_eq!(shown(&awaited, &authority, "a", CHALLENGE_PROTOCOL).await, expected);
        assert_eq!(shown(&awaited, &authority, "b", CHALLENGE_PROTOCOL).await, None);
        assert_ne!(shown(&awaited, &authority, "a", b"h2").await, expected);
        awaited.withdraw("a");
        assert_eq!(shown(&awaited, &authority, "a", CHALLENGE_PROTOCOL).await, None);
    }
}
