//! TLS towards the sender: versions, protocols, certificates that can't be served.

use std::fs;
use std::path::Path;

use rustls::version::{TLS12, TLS13};
use rustls::{ProtocolVersion, SupportedProtocolVersion};

use crate::support::certs::Authority;
use crate::support::vectors::listing_delivered;
use crate::support::{AUTHORITY, Receiver, Routes, Sender, TestRelay, eventually};

fn relay(crm: &Receiver) -> TestRelay {
    TestRelay::with(&Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"])).start()
}

#[test]
fn tls_1_2_and_1_3_are_spoken() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let versions: [(&'static SupportedProtocolVersion, ProtocolVersion); 2] =
        [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)];
    for (version, expected) in versions {
        for protocols in [&["http/1.1"][..], &[]] {
            let config = AUTHORITY.client_config(&[version], protocols);
            let sender = Sender::new(&relay).tls_config(config);
            let mut connection = sender.connect();
            assert_eq!(connection.tls().unwrap().protocol_version(), Some(expected));
            let body = listing_delivered(&format!("{expected:?} {protocols:?}"));
            connection.send(&sender.request(&body)).unwrap().accepted();
        }
    }
    assert_eq!(crm.wait_for(4).len(), 4);
    let handshakes = relay.metrics().value("relay_tls_handshakes_total", &[("result", "ok")]);
    assert_eq!(handshakes, 4.0);
}

#[test]
fn http2_is_chosen_by_alpn_and_preferred() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    for (offered, chosen) in
        [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"][..], "http/1.1"), (&["h2"][..], "h2")]
    {
        let config = AUTHORITY.client_config(&[&TLS12, &TLS13], offered);
        let connection = Sender::new(&relay).tls_config(config).connect();
        let protocol = connection.tls().unwrap().alpn_protocol();
        assert_eq!(protocol, Some(chosen.as_bytes()), "{offered:?}");
    }
    Sender::new(&relay).post_http2(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_failed_handshake_is_counted_and_harms_nobody() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let stranger = Authority::new().client_config(&[&TLS13], &["http/1.1"]);
    assert!(Sender::new(&relay).tls_config(stranger).try_connect().is_err());
    let mut plain = crate::support::sender::Connection::open(relay.listen(), None).unwrap();
    plain.write(b"POST /webhooks/aryeo HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(plain.read_answer().is_err());
    eventually("failures are counted", || {
        relay.metrics().value("relay_tls_handshakes_total", &[("result", "failed")]) >= 2.0
    });
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_certificate_that_nobody_would_accept_is_refused_at_start_with_the_file_s_name() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    // The first line says it all, and says it once.
    let refused = |file: &str, reason: &str, change: &dyn Fn(&Path)| {
        let builder = TestRelay::with(&routes);
        change(&builder.path("certs"));
        let text = builder.refused().stderr;
        let first = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(first.contains(file) && first.contains(reason), "{text}");
        assert_eq!(text.matches(reason).count(), 1, "{text}");
        assert_eq!(text.contains("aryeo-relay certificate"), reason == "no such file", "{text}");
    };
    let write = |certs: &Path, name: &str, text: &str| fs::write(certs.join(name), text).unwrap();
    let (certificate, key) = ("certs/tls.crt", "certs/tls.key");
    refused(certificate, "no such file", &|certs| fs::remove_file(certs.join("tls.crt")).unwrap());
    refused(key, "no such file", &|certs| fs::remove_file(certs.join("tls.key")).unwrap());
    refused(key, "does not belong", &|certs| {
        write(certs, "tls.key", &AUTHORITY.server().key);
    });
    refused(certificate, "expired", &|certs| {
        let expired = AUTHORITY.expired();
        write(certs, "tls.crt", &expired.certificate);
        write(certs, "tls.key", &expired.key);
    });
    refused(certificate, "no certificate", &|certs| write(certs, "tls.crt", ""));
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    refused(certificate, "not valid PEM", &|certs| write(certs, "tls.crt", broken));
    // Even root can't read a folder as a file.
    refused(certificate, "it is not a file", &|certs| {
        fs::remove_file(certs.join("tls.crt")).unwrap();
        fs::create_dir(certs.join("tls.crt")).unwrap();
    });
}

#[test]
fn the_certificate_s_begin_and_end_are_metrics() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let metrics = relay.metrics();
    let of = |name: &str| metrics.value(name, &[("certificate", "localhost, 127.0.0.1")]);
    // 2020-01-01 and 2090-01-01, as the tests' authority issues them.
    assert_eq!(of("relay_certificate_begin_timestamp_seconds"), 1_577_836_800.0);
    assert_eq!(of("relay_certificate_expiry_timestamp_seconds"), 3_786_912_000.0);
}
