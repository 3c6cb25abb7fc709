//! Certificates, settings and a recording observer for the tests of this module.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::{Client, ClientSettings};
use super::listener::{HandshakeResult, ListenerLimits, ListenerObserver, Proxies, Refused};
use super::resolve::Resolver;
use super::tls::{self, LoadedCertificate, TargetTls};

/// No test waits longer than this for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A certificate and its key in PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pair {
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let pem = self.certificate.as_bytes();
        CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect()
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    pub(super) fn loaded(&self) -> LoadedCertificate {
        let names = tls::Names { certificate: "tls.crt", key: "tls.key" };
        let (certificate, key) = (self.certificate.as_bytes(), self.key.as_bytes());
        tls::load_certificate(certificate, key, names, 0).unwrap()
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        tls::serve_one(self.loaded()).unwrap()
    }
}

/// A private authority.
pub(super) struct Authority {
    pub(super) certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(super) fn issue(&self, names: &[&str]) -> Pair {
        self.issue_between(names, 0, 4_000_000_000)
    }

    pub(super) fn issue_between(&self, names: &[&str], from: i64, to: i64) -> Pair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(to).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    pub(super) fn client_config(&self) -> Arc<ClientConfig> {
        let ca = Some(self.certificate.as_bytes());
        tls::client_config(TargetTls { ca, identity: None }).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// A client that speaks one version and offers `alpn` only.
    pub(super) fn client_with(
        &self,
        version: &'static SupportedProtocolVersion,
        alpn: &[&[u8]],
    ) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// A server that wants a certificate of this authority from its clients.
    pub(super) fn demanding_server(&self, pair: &Pair, alpn: &[u8]) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(self.roots());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(pair.chain(), pair.private_key())
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }
}

pub(super) fn limits() -> ListenerLimits {
    ListenerLimits {
        connections_max: 100,
        connections_per_address_max: 100,
        proxies: Proxies::default(),
        requests_per_connection_max: u32::MAX,
        handshake_timeout: PATIENCE,
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
    }
}

pub(super) fn settings(tls: Option<Arc<ClientConfig>>) -> ClientSettings {
    let nowhere = std::path::PathBuf::from("/nonexistent");
    ClientSettings {
        tls,
        server_name: None,
        idle_max: 4,
        connect_timeout: PATIENCE,
        resolver: Resolver::with_files(nowhere.join("hosts"), nowhere.join("resolv.conf")),
    }
}

pub(super) fn client(tls: Option<Arc<ClientConfig>>) -> Client {
    Client::new(settings(tls))
}

pub(super) fn post(uri: &str, body: &'static str) -> Request<Full<bytes::Bytes>> {
    Request::post(uri).body(Full::from(body)).unwrap()
}

/// What a listener told.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Event {
    Opened,
    Closed,
    Full,
    Handshake(HandshakeResult),
    Refused(Refused),
}

pub(super) struct Recorder(pub(super) mpsc::Sender<Event>);

impl Recorder {
    fn tell(&self, event: Event) {
        self.0.try_send(event).expect("a test has few events");
    }
}

impl ListenerObserver for Recorder {
    fn connection_opened(&self) {
        self.tell(Event::Opened);
    }
    fn connection_closed(&self) {
        self.tell(Event::Closed);
    }
    fn connections_full(&self) {
        self.tell(Event::Full);
    }
    fn connection_refused(&self, why: Refused, _: SocketAddr) {
        self.tell(Event::Refused(why));
    }
    fn handshake(&self, result: HandshakeResult) {
        self.tell(Event::Handshake(result));
    }
    fn accept_error(&self, error: &io::Error) {
        panic!("accept failed: {error}");
    }
}
