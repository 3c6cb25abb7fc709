//! A certificate from an authority, without anybody's doing: a real one (Pebble) on this machine.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::certs::Identity;
use crate::support::pebble::{Pebble, deactivate, free_port, has_pebble, kept};
use crate::support::relay::{BINARY, Builder, command, run};
use crate::support::routes::PATH;
use crate::support::sender::Request;
use crate::support::vectors::listing_delivered;
use crate::support::{AUTHORITY, Receiver, Routes, TestRelay, eventually, patience};

const DOMAIN: &str = "relay.test";

/// Longer than any test, so that nothing is renewed in it.
const LONG: u32 = 90 * 86_400;

const EXPIRY: &str = "relay_certificate_expiry_timestamp_seconds";

/// A target, an authority, and where that looks for the relay.
struct World {
    crm: Receiver,
    port: u16,
    pebble: Pebble,
}

impl World {
    /// With certificates that live for so many seconds; none where there is no Pebble. It does not run yet.
    fn new(seconds: u32) -> Option<Self> {
        has_pebble().then(|| Self::at(free_port(), seconds))
    }

    fn at(port: u16, seconds: u32) -> Self {
        Self { crm: Receiver::willing(), port, pebble: Pebble::new(port, seconds) }
    }

    /// The same, and it runs.
    fn running(seconds: u32) -> Option<Self> {
        let mut world = Self::new(seconds)?;
        world.pebble.start();
        Some(world)
    }

    /// A relay that is to get its certificate there.
    fn relay(&self, domains: &[&str]) -> Builder {
        let Self { crm, port, pebble } = self;
        let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
        let builder = TestRelay::with(&routes)
            .without_certificate()
            .override_flag("--listen", &format!("127.0.0.1:{port}"))
            .flags(&["--acme-directory", &pebble.directory(), "--acme-contact", "ops@relay.test"])
            .override_flag("--acme-ca", pebble.ca().to_str().unwrap());
        // As the unit of `deploy/systemd` has them, and the image.
        let builder = builder.environment("RELAY_TLS_CERT", "/tls.crt");
        let builder = builder.environment("RELAY_TLS_KEY", "/tls.key");
        domains.iter().fold(builder, |builder, domain| builder.flags(&["--acme-domain", domain]))
    }
}

/// A connection by a name, verified by these roots (PEM).
fn connect(
    relay: SocketAddr,
    name: &str,
    roots: &[&str],
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    connect_with(relay, name, roots, &[])
}

fn connect_with(
    relay: SocketAddr,
    name: &str,
    roots: &[&str],
    protocols: &[&[u8]],
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(relay).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(patience())).unwrap();
    let mut stream = StreamOwned::new(client, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|error| error.to_string())?;
    }
    Ok(stream)
}

/// The certificate that is served for a name.
fn served(relay: &TestRelay, name: &str, roots: &[&str]) -> Result<Vec<u8>, String> {
    let stream = connect(relay.listen(), name, roots)?;
    Ok(stream.conn.peer_certificates().unwrap()[0].to_vec())
}

/// Posts a webhook, which is accepted.
#[track_caller]
fn post(stream: &mut StreamOwned<ClientConnection, TcpStream>, number: &str) {
    let body = listing_delivered(number);
    let request = Request::signed(&body);
    assert_eq!(request.path, PATH);
    stream.write_all(&request.head()).unwrap();
    stream.write_all(&request.encoded_body()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 202");
    // The rest of it is of no interest, but may not be taken for the next answer.
    let mut rest = Vec::new();
    while !rest.ends_with(b"}") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        rest.push(byte[0]);
    }
}

/// Waits until the relay has said this; the line.
#[track_caller]
fn said(relay: &TestRelay, text: &str) -> String {
    eventually(&format!("the relay says {text:?}"), || {
        relay.logs().into_iter().find(|line| line.contains(text))
    })
}

fn times(relay: &TestRelay, text: &str) -> usize {
    relay.logs().iter().filter(|line| line.contains(text)).count()
}

/// Puts another certificate in the place of the one that was got.
fn replace(data: &Path, identity: &Identity) {
    let text = format!("{}{}", identity.key, identity.certificate);
    fs::write(kept(data, "certificate.pem"), text).unwrap();
}

const GAVE: &str = "The authority gave a certificate";

#[test]
fn the_first_certificate_is_got_while_the_relay_runs_and_is_there_after_a_restart() {
    let Some(mut world) = World::new(LONG) else { return };
    // Three times in a row for the same request are one too many; then it is asked to try again.
    world.pebble = world.pebble.wants_again(15);
    let domains = [DOMAIN, "www.relay.test"];
    let mut relay = world.relay(&domains).start_unready();
    // It is up, and says what it lacks and why.
    assert_eq!(relay.get("/livez").status, 200);
    eventually("it only lacks the certificate", || {
        let answer = relay.get("/readyz");
        answer.status == 503 && answer.body == b"no_certificate\n"
    });
    said(&relay, "forward TCP port 443");
    said(&relay, "There is no certificate, and none could be got");
    assert!(connect(relay.listen(), DOMAIN, &[]).is_err());
    assert_eq!(relay.metrics().get(EXPIRY, &[]), None);

    world.pebble.start();
    let mut failures = 0;
    eventually("there is a certificate", || {
        let failed = times(&relay, "none could be got");
        if failed > failures {
            failures = failed;
            relay.signal(Signal::HUP);
        }
        times(&relay, GAVE) == 1
    });
    relay.wait_until_ready();
    let root = world.pebble.root();
    let first = served(&relay, DOMAIN, &[&root]).unwrap();
    assert_eq!(served(&relay, "www.relay.test", &[&root]).unwrap(), first);
    post(&mut connect(relay.listen(), DOMAIN, &[&root]).unwrap(), "1");
    world.crm.wait_for(1);
    assert!(relay.metrics().value(EXPIRY, &[]) > 1_700_000_000.0);
    // Nobody is shown the challenges any more.
    assert!(connect_with(relay.listen(), DOMAIN, &[&root], &[b"acme-tls/1"]).is_err());

    is_kept_for_its_owner(relay.data());
    world.pebble.stop();
    relay.restart();
    assert_eq!(served(&relay, DOMAIN, &[&root]).unwrap(), first);
    assert_eq!(times(&relay, "A certificate is ordered"), 0);

    // As a copy elsewhere has it.
    relay.terminate();
    let copy = relay.path("copy");
    let words = ["store", "backup", "--to", copy.to_str().unwrap(), "--data"];
    let copied = run(command(BINARY).args(words).arg(relay.data()));
    assert_eq!(copied.code, Some(0), "{copied:?}");
    let restored = world.relay(&domains).data_in(&copy).start();
    assert_eq!(served(&restored, DOMAIN, &[&root]).unwrap(), first);
    is_kept_for_its_owner(&copy);
}

/// Account and certificate are there, and nobody else can read them.
#[track_caller]
fn is_kept_for_its_owner(data: &Path) {
    for name in ["account.json", "certificate.pem"] {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = kept(data, name);
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700), "{name}");
    }
}

#[test]
fn a_certificate_is_renewed_in_its_time_and_open_connections_stay() {
    // Renewed after eight seconds.
    let Some(world) = World::running(12) else { return };
    let relay = world.relay(&[DOMAIN]).start();
    let root = world.pebble.root();
    let mut connection = connect(relay.listen(), DOMAIN, &[&root]).unwrap();
    let first = connection.conn.peer_certificates().unwrap()[0].to_vec();
    let ends = relay.metrics().value(EXPIRY, &[]);
    post(&mut connection, "1");
    eventually("another one is served", || match served(&relay, DOMAIN, &[&root]) {
        Ok(other) if other != first => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(relay.metrics().value(EXPIRY, &[]) > ends);
    post(&mut connection, "2");
    world.crm.wait_for(2);
    assert_eq!(times(&relay, "An account is made"), 1, "it is used again");
}

#[test]
fn an_authority_that_is_down_costs_nothing_but_time_and_one_that_forgot_the_account_gets_another() {
    let Some(mut world) = World::running(LONG) else { return };
    let mut relay = world.relay(&[DOMAIN]).start();
    relay.terminate();
    world.pebble.stop();
    // It was renewed long ago: a tenth of its time is left.
    let old = AUTHORITY.server_for(&[DOMAIN], 90, 10);
    replace(relay.data(), &old);
    relay.start_again();
    let roots = AUTHORITY.pem();
    let before = served(&relay, DOMAIN, &[&roots]).unwrap();
    let failure = said(&relay, "could not be renewed");
    assert!(failure.contains("can't be reached") && failure.contains("next_try"), "{failure}");
    assert!(failure.contains("ERROR"), "its end is near: {failure}");
    relay.signal(Signal::HUP);
    eventually("it tries again when it is asked", || times(&relay, "could not be renewed") == 2);
    assert_eq!(served(&relay, DOMAIN, &[&roots]).unwrap(), before);
    let account = fs::read(kept(relay.data(), "account.json")).unwrap();

    // Another Pebble, as far as accounts and roots are concerned.
    world.pebble.start();
    relay.signal(Signal::HUP);
    said(&relay, "another one is made");
    said(&relay, GAVE);
    let root = world.pebble.root();
    eventually("the new one is served", || served(&relay, DOMAIN, &[&root]));
    eventually("the new one is kept", || {
        fs::read(kept(relay.data(), "account.json")).unwrap() != account
    });
}

#[test]
fn an_account_that_was_ended_at_the_authority_is_replaced() {
    let Some(world) = World::running(LONG) else { return };
    let mut relay = world.relay(&[DOMAIN]).start();
    relay.terminate();
    let account = kept(relay.data(), "account.json");
    deactivate(&account, &world.pebble);
    let before = fs::read(&account).unwrap();
    replace(relay.data(), &AUTHORITY.server_for(&[DOMAIN], 90, 10));
    relay.start_again();
    let warning = said(&relay, "another one is made");
    assert!(warning.contains("WARN") && warning.contains("deactivated"), "{warning}");
    said(&relay, GAVE);
    assert_ne!(fs::read(&account).unwrap(), before);
    let root = world.pebble.root();
    served(&relay, DOMAIN, &[&root]).unwrap();
    // One order was refused, the other one was not.
    assert_eq!(times(&relay, "could not be renewed"), 0);
}

#[test]
fn other_domains_get_another_certificate() {
    let Some(world) = World::running(LONG) else { return };
    let folder = crate::support::relay::folder();
    let data = folder.path().join("data");
    let root = world.pebble.root();
    let mut first = world.relay(&[DOMAIN]).data_in(&data).start();
    let before = served(&first, DOMAIN, &[&root]).unwrap();
    first.terminate();
    let relay = world.relay(&[DOMAIN, "other.test"]).data_in(&data).start();
    eventually("the new domain is served", || served(&relay, "other.test", &[&root]));
    assert_ne!(served(&relay, DOMAIN, &[&root]).unwrap(), before);
    assert_eq!(times(&relay, "An account is made"), 0, "the account is the same");
}

#[test]
fn what_the_authority_could_not_check_is_said_in_its_words() {
    let Some(mut world) = World::running(LONG) else { return };
    // It looks where nobody is.
    world.port = free_port();
    let relay = world.relay(&[DOMAIN]).start_unready();
    let failure = said(&relay, "none could be got");
    assert!(failure.contains(&format!("check of {DOMAIN} failed")), "{failure}");
    assert!(failure.contains("Failed to connect"), "{failure}");
}

#[test]
fn what_excludes_each_other_is_wrong_usage() {
    let world = World::at(free_port(), LONG);
    let refused = |flags: &[&str], said: &str| {
        let ended = world.relay(&[DOMAIN]).flags(flags).run();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    };
    refused(&["--plain-http"], "--plain-http");
    refused(&["--tls-cert", "certs/tls.crt"], "--tls-cert");
    refused(&["--tls-key", "certs/tls.key"], "--tls-key");
    refused(&["--acme-test"], "--acme-test");
    refused(&["--acme-domain", "*.relay.test"], "wildcard");
    let alone = |builder: Builder| builder.without_certificate().flags(&["--acme-test"]).run();
    let routes = Routes::new().target("crm", &world.crm.url(), &[]).all_to(&["crm"]);
    assert_eq!(alone(TestRelay::with(&routes)).code, Some(2));
    // What is there but can't be used is found before anything listens.
    let missing = world.relay(&[DOMAIN]);
    let missing = missing.override_flag("--acme-ca", "nowhere.pem").refused();
    assert!(missing.stderr.contains("--acme-ca: nowhere.pem"), "{missing:?}");
}
