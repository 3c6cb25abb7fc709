//! Several certificates of files, and their renewal while the relay runs.

use std::fs;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;

use crate::reload_load::EndWhenDropped;
use crate::support::certs::Identity;
use crate::support::eventually::pause;
use crate::support::vectors::listing_delivered;
use crate::support::{AUTHORITY, Receiver, Routes, Sender, TestRelay, eventually};

/// The certificate that who asks for this name is shown.
#[track_caller]
fn shown(relay: &TestRelay, name: &'static str) -> Vec<u8> {
    let config = AUTHORITY.client_config(&[&TLS13], &["http/1.1"]);
    let mut tls = ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
    let mut tcp = TcpStream::connect(relay.listen()).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).unwrap();
    }
    tls.peer_certificates().unwrap()[0].to_vec()
}

fn der(identity: &Identity) -> Vec<u8> {
    CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap().to_vec()
}

/// Puts another file in the place of one, as who renews certificates does.
fn swap(relay: &TestRelay, name: &str, text: &str) {
    let (new, old) = (relay.path("new"), relay.path(name));
    fs::write(&new, text).unwrap();
    fs::rename(new, old).unwrap();
}

/// A relay with the usual certificate and a second one, in `b.crt` with its chain.
fn with_second(crm: &Receiver, second: &Identity) -> TestRelay {
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let chain = format!("{}{}", second.certificate, AUTHORITY.pem());
    TestRelay::with(&routes)
        .without_certificate()
        .file("b.crt", &chain)
        .file("b.key", &second.key)
        .flags(&["--tls-cert", "certs/tls.crt,b.crt", "--tls-key", "certs/tls.key,b.key"])
        .start()
}

#[test]
fn of_several_certificates_the_name_chooses_and_each_is_renewed_by_itself() {
    let crm = Receiver::willing();
    let other = AUTHORITY.server_for(&["b.test", "*.c.test"], 1, 30);
    let relay = with_second(&crm, &other);
    let of_first = shown(&relay, "localhost");
    for name in ["b.test", "x.c.test"] {
        assert_eq!(shown(&relay, name), der(&other), "{name}");
    }
    assert_ne!(of_first, der(&other));
    let series =
        || relay.metrics().labels("relay_certificate_expiry_timestamp_seconds", "certificate");
    assert_eq!(series(), ["b.test, *.c.test", "localhost, 127.0.0.1"]);
    // What senders may refuse is told: the first has no chain behind it, the second has.
    let told = |name: &str| {
        relay
            .logs()
            .iter()
            .any(|line| line.contains("Append the intermediate") && line.contains(name))
    };
    assert!(told("tls.crt") && !told("b.crt"));

    // One is broken, and the other renewed at the same time.
    swap(&relay, "b.crt", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    let new = AUTHORITY.server_until(2080);
    swap(&relay, "certs/tls.key", &new.key);
    swap(&relay, "certs/tls.crt", &new.certificate);
    eventually("the first is renewed", || shown(&relay, "localhost") == der(&new));
    eventually("the second is told to be broken", || {
        relay.logs().iter().any(|line| line.contains("can't be renewed") && line.contains("b.crt"))
    });
    assert_eq!(shown(&relay, "b.test"), der(&other), "the one from before is served");
    assert_eq!(series().len(), 2);
    let renewed = AUTHORITY.server_for(&["b.test"], 1, 60);
    swap(&relay, "b.key", &renewed.key);
    swap(&relay, "b.crt", &renewed.certificate);
    eventually("the second is renewed", || shown(&relay, "b.test") == der(&renewed));
    assert_eq!(series(), ["b.test", "localhost, 127.0.0.1"]);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_certificate_whose_file_never_rests_holds_up_no_other_s_renewal() {
    let crm = Receiver::willing();
    let relay = with_second(&crm, &AUTHORITY.server_for(&["b.test"], 1, 30));
    let (writes, end) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let number = writes.fetch_add(1, Ordering::Relaxed);
                fs::write(relay.path("b.crt"), format!("not whole yet: {number}")).unwrap();
                pause(Duration::from_millis(10));
            }
        });
        // However this ends, the writer does.
        let _end = EndWhenDropped(&end);
        eventually("it is being written", || writes.load(Ordering::Relaxed) > 0);
        let new = AUTHORITY.server_until(2080);
        swap(&relay, "certs/tls.key", &new.key);
        swap(&relay, "certs/tls.crt", &new.certificate);
        eventually("the other one is renewed", || shown(&relay, "localhost") == der(&new));
    });
    let renewed = AUTHORITY.server_for(&["b.test"], 1, 60);
    swap(&relay, "b.key", &renewed.key);
    swap(&relay, "b.crt", &renewed.certificate);
    eventually("it is renewed when it rests", || shown(&relay, "b.test") == der(&renewed));
}
