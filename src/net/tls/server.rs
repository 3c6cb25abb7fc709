//! TLS towards senders: one configuration, whose certificates come from a [`Resolver`].

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::sni::{CHALLENGE_PROTOCOL, Owner, Resolver};
use super::{LoadedCertificate, PROTOCOLS, TlsError, provider};

/// What a listener is told beside its certificates.
#[derive(Clone, Debug, Default)]
pub struct ServerTls {
    /// Answers TLS-ALPN-01 challenges (RFC 8737), as far as the resolver has any.
    pub challenges: bool,
    /// Asks for a certificate by one of these roots. Who shows none is served as well; who shows
    /// another one is not.
    pub client_roots: Option<Arc<RootCertStore>>,
}

/// TLS 1.2 and 1.3, session tickets, HTTP/2 and HTTP/1.1.
///
/// Certificates are the resolver's to change; this stays, and with it the keys of session tickets, so
/// that senders resume across renewals.
pub fn server_config(
    resolver: Arc<Resolver>,
    settings: &ServerTls,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?;
    let builder = match &settings.client_roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = verifier
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    if settings.challenges {
        // The last, so that it is agreed on only with who offers nothing else that is served.
        config.alpn_protocols.push(CHALLENGE_PROTOCOL.to_vec());
    }
    config.ticketer = ring::Ticketer::new().map_err(TlsError::Setup)?;
    // One ticket is enough for a sender that reconnects; each costs a write.
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// Serves one certificate to everybody.
pub fn serve_one(certificate: LoadedCertificate) -> Result<Arc<ServerConfig>, TlsError> {
    let resolver = Arc::new(Resolver::default());
    resolver.replace(Owner::Files, vec![Arc::new(certificate)]);
    server_config(resolver, &ServerTls::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Authority;
    use crate::net::tls::server_name;

    #[test]
    fn what_is_offered_depends_on_challenges() {
        let offered = |challenges| {
            let config =
                server_config(Arc::default(), &ServerTls { challenges, client_roots: None })
                    .unwrap();
            assert!(config.ticketer.enabled());
            config.alpn_protocols.clone()
        };
        assert_eq!(offered(false), [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(offered(true), [b"h2".to_vec(), b"http/1.1".to_vec(), b"acme-tls/1".to_vec()]);
    }

    #[tokio::test]
    async fn a_second_handshake_is_resumed() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let authority = Authority::new();
        let server = authority.issue(&["relay"]).server_config();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = authority.client_with(version, &[b"h2"]);
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let (far, near) = tokio::io::duplex(64 * 1024);
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(&client));
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&server));
                let (client, server) = tokio::join!(
                    connector.connect(server_name("relay").unwrap(), far),
                    acceptor.accept(near)
                );
                let (mut client, mut server) = (client.unwrap(), server.unwrap());
                server.write_all(b"x").await.unwrap();
                server.flush().await.unwrap();
                client.read_u8().await.unwrap();
                kinds.push(server.get_ref().1.handshake_kind());
            }
            assert_eq!(kinds[1], Some(rustls::HandshakeKind::Resumed), "{version:?}");
        }
    }

    /// What a client that offers these gets: the leaf and the protocol.
    async fn shown(
        server: &Arc<ServerConfig>,
        authority: &Authority,
        offered: &[&[u8]],
    ) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let client = authority.client_with(&rustls::version::TLS13, offered);
        let (far, near) = tokio::io::duplex(64 * 1024);
        let connector = tokio_rustls::TlsConnector::from(client);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(server));
        let name = server_name("relay.test").unwrap();
        let (client, server) = tokio::join!(connector.connect(name, far), acceptor.accept(near));
        let (client, _server) = (client.ok()?, server.ok()?);
        let connection = client.get_ref().1;
        let leaf = connection.peer_certificates()?.first()?.to_vec();
        Some((leaf, connection.alpn_protocol().map(<[u8]>::to_vec)))
    }

    #[tokio::test]
    async fn a_challenge_is_answered_over_its_own_protocol_only() {
        let authority = Authority::new();
        let issue = || authority.issue(&["relay.test"]).loaded();
        let (service, proof) = (issue(), issue());
        let leaf = |certificate: &LoadedCertificate| certificate.key.cert[0].to_vec();
        let resolver = Arc::new(Resolver::default());
        let challenges = ServerTls { challenges: true, client_roots: None };
        let config = server_config(Arc::clone(&resolver), &challenges).unwrap();
        let plain = server_config(Arc::clone(&resolver), &ServerTls::default()).unwrap();
        let challenge = &[CHALLENGE_PROTOCOL][..];
        assert_eq!(shown(&config, &authority, &[b"h2"]).await, None, "no certificate yet");
        resolver.replace(Owner::Acme, vec![Arc::new(service.clone())]);
        assert_eq!(shown(&config, &authority, challenge).await, None, "no challenge yet");
        resolver.answer_challenge("relay.test", Arc::clone(&proof.key));
        let expected = (leaf(&proof), Some(CHALLENGE_PROTOCOL.to_vec()));
        assert_eq!(shown(&config, &authority, challenge).await, Some(expected));
        assert_eq!(shown(&config, &authority, &[CHALLENGE_PROTOCOL, b"h2"]).await, None);
        assert_eq!(shown(&plain, &authority, challenge).await, None, "it was not asked for");
        let expected = (leaf(&service), Some(b"h2".to_vec()));
        assert_eq!(shown(&config, &authority, &[b"h2"]).await, Some(expected));
        assert_eq!(shown(&config, &authority, &[]).await, Some((leaf(&service), None)));
    }
}
