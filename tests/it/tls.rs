//! TLS towards the sender: versions, protocols, certificates that can't be served.

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
    let refused = |change: &dyn Fn(&std::path::Path)| {
        let builder = TestRelay::with(&routes);
        change(&builder.path("certs"));
        builder.refused().stderr
    };
    let text = refused(&|certs| std::fs::remove_file(certs.join("tls.crt")).unwrap());
    assert!(text.contains("certs/tls.crt") && text.contains("no such file"), "{text}");
    let text = refused(&|certs| std::fs::remove_file(certs.join("tls.key")).unwrap());
    assert!(text.contains("certs/tls.key") && text.contains("no such file"), "{text}");
    let text = refused(&|certs| {
        std::fs::write(certs.join("tls.key"), AUTHORITY.server().key).unwrap();
    });
    assert!(text.contains("certs/tls.key") && text.contains("does not belong"), "{text}");
    let text = refused(&|certs| {
        let expired = AUTHORITY.expired();
        std::fs::write(certs.join("tls.crt"), expired.certificate).unwrap();
        std::fs::write(certs.join("tls.key"), expired.key).unwrap();
    });
    assert!(text.contains("certs/tls.crt") && text.contains("expired"), "{text}");
    let text = refused(&|certs| std::fs::write(certs.join("tls.crt"), "").unwrap());
    assert!(text.contains("certs/tls.crt") && text.contains("no certificate"), "{text}");
}

#[test]
fn the_certificate_s_end_is_a_metric() {
    let crm = Receiver::willing();
    let relay = relay(&crm);
    let end = relay.metrics().value("relay_certificate_expiry_timestamp_seconds", &[]);
    // 2090-01-01, as the tests' authority issues them.
    assert_eq!(end, 3_786_912_000.0);
}
