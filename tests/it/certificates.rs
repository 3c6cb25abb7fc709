//! Several certificates of files, and their renewal while the relay runs.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use rustls::ClientConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;
use time::OffsetDateTime;

use crate::reload::reload;
use crate::reload_load::EndWhenDropped;
use crate::support::certs::{Authority, Identity};
use crate::support::eventually::pause;
use crate::support::vectors::listing_delivered;
use crate::support::{AUTHORITY, Receiver, Routes, Sender, TestRelay, eventually};

/// What is saved and can't be used.
pub(crate) const REFUSED: &str = "relay_files_refused";
pub(crate) const OF_CERTIFICATES: &[(&str, &str)] = &[("file", "certificate")];

/// The certificate that who asks for this name is shown.
#[track_caller]
pub(crate) fn shown(relay: &TestRelay, name: &'static str) -> Vec<u8> {
    let config = AUTHORITY.client_config(&[&TLS13], &["http/1.1"]);
    let mut tls = ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
    let mut tcp = TcpStream::connect(relay.listen()).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).unwrap();
    }
    tls.peer_certificates().unwrap()[0].to_vec()
}

pub(crate) fn der(identity: &Identity) -> Vec<u8> {
    CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap().to_vec()
}

/// Puts another file in the place of one, as who renews certificates does.
pub(crate) fn swap(relay: &TestRelay, name: &str, text: &str) {
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
            .any(|line| line.contains("append the intermediate") && line.contains(name))
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
    relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 1.0);
    let renewed = AUTHORITY.server_for(&["b.test"], 1, 60);
    swap(&relay, "b.key", &renewed.key);
    swap(&relay, "b.crt", &renewed.certificate);
    eventually("the second is renewed", || shown(&relay, "b.test") == der(&renewed));
    assert_eq!(series(), ["b.test", "localhost, 127.0.0.1"]);
    relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 0.0);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}

#[test]
fn a_pair_that_can_t_be_used_at_a_start_stops_no_other_and_is_taken_when_it_is_mended() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let good = AUTHORITY.server_for(&["b.test"], 1, 30);
    let expired = AUTHORITY.server_for(&["b.test"], 30, -1);
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_owned();
    for (certificate, key, why) in [
        (&expired.certificate, &expired.key, "expired on"),
        (&broken, &good.key, "not valid PEM"),
        (&good.certificate, &expired.key, "does not belong"),
    ] {
        // It is the first of the two: who asks for no name gets the other one.
        let relay = TestRelay::with(&routes)
            .without_certificate()
            .file("b.crt", certificate)
            .file("b.key", key)
            .flags(&["--tls-cert", "b.crt,certs/tls.crt", "--tls-key", "b.key,certs/tls.key"])
            .start();
        let of_other = shown(&relay, "localhost");
        assert_eq!(shown(&relay, "127.0.0.1"), of_other, "{why}");
        relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 1.0);
        let is_told = |line: &String| {
            line.contains("ERROR") && line.contains(why) && line.contains("serves without it")
        };
        assert!(relay.logs().iter().any(is_told), "{why}: {:?}", relay.logs());
        Sender::new(&relay).post(&listing_delivered("1")).accepted();
        let told = reload(&relay);
        assert_eq!(told.status, 422, "{told:?}");
        assert!(String::from_utf8_lossy(&told.body).contains(why), "{told:?}");

        swap(&relay, "b.key", &good.key);
        swap(&relay, "b.crt", &good.certificate);
        relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 0.0);
        assert_eq!(shown(&relay, "b.test"), der(&good), "{why}");
        assert_eq!(shown(&relay, "localhost"), of_other, "the other one stays");
        assert_eq!(reload(&relay).status, 200);
    }
}

#[test]
fn a_start_is_refused_where_no_pair_is_good_or_a_file_is_not_there() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let expired = AUTHORITY.server_for(&["b.test"], 30, -1);
    let builder = |certificates: &str, keys: &str| {
        TestRelay::with(&routes)
            .without_certificate()
            .file("b.crt", &expired.certificate)
            .file("b.key", &expired.key)
            .file("c.crt", "")
            .flags(&["--tls-cert", certificates, "--tls-key", keys])
            .refused()
            .stderr
    };
    let text = builder("b.crt,c.crt", "b.key,b.key");
    let first = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(first.contains("b.crt: the certificate expired"), "{text}");
    assert!(first.contains("c.crt: no certificate in it"), "{text}");
    // A name that was typed wrong is found by whoever typed it, not by senders.
    for (certificates, keys, missing) in [
        ("certs/tls.crt,d.crt", "certs/tls.key,b.key", "d.crt: no such file"),
        ("certs/tls.crt,b.crt", "certs/tls.key,d.key", "d.key: no such file"),
    ] {
        let text = builder(certificates, keys);
        assert!(text.contains(missing), "{text}");
    }
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
        // Nor do those who asked for a reload and are gone keep others from asking.
        for _ in 0..100 {
            relay.signal(Signal::HUP);
            pause(Duration::from_millis(2));
        }
        // On a busy machine it may rest for a moment, and is refused.
        eventually("who asks is told that it does not rest", || {
            let told = reload(&relay);
            let text = String::from_utf8_lossy(&told.body).into_owned();
            if told.status == 503 && text.contains("keep changing") { Ok(()) } else { Err(text) }
        });
    });
    let renewed = AUTHORITY.server_for(&["b.test"], 1, 60);
    swap(&relay, "b.key", &renewed.key);
    swap(&relay, "b.crt", &renewed.certificate);
    eventually("it is renewed when it rests", || shown(&relay, "b.test") == der(&renewed));
}

/// Waits until it is told that what was saved can't be used, and why.
#[track_caller]
fn refused(relay: &TestRelay, why: &str) {
    eventually(&format!("it is refused: {why}"), || {
        let is_told = |line: &String| line.contains("can't be renewed") && line.contains(why);
        let lines = relay.logs();
        if lines.iter().any(is_told) { Ok(()) } else { Err(lines.join("\n")) }
    });
    relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 1.0);
}

#[test]
fn a_certificate_behind_the_swapped_link_of_a_mounted_secret_is_renewed() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let flags = ["--tls-cert", "mounted/tls.crt", "--tls-key", "mounted/tls.key"];
    let builder = TestRelay::with(&routes).without_certificate().flags(&flags);
    let mounted = builder.path("mounted");
    // As kubelet writes a secret, and with cert-manager's names.
    let write = |version: &str, certificate: &str, key: &str| {
        let folder = mounted.join(version);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("tls.crt"), certificate).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        symlink(version, mounted.join("..data_tmp")).unwrap();
        fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    };
    let renew = |version: &str, identity: &Identity, before: &str| {
        write(version, &identity.certificate, &identity.key);
        fs::remove_dir_all(mounted.join(before)).unwrap();
    };
    let (first, second, third) =
        (AUTHORITY.server(), AUTHORITY.server_until(2080), AUTHORITY.server_until(2081));
    write("..1", &first.certificate, &first.key);
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), mounted.join(name)).unwrap();
    }
    let relay = builder.start();
    assert_eq!(shown(&relay, "localhost"), der(&first));
    let sender = Sender::new(&relay);
    let mut open = sender.connect();
    let mut post = |number: &str| {
        open.send(&sender.request(&listing_delivered(number))).unwrap().accepted();
    };
    post("1");
    renew("..2", &second, "..1");
    eventually("the second is shown", || shown(&relay, "localhost") == der(&second));
    post("2");
    write("..3", "nothing", &third.key);
    refused(&relay, "no certificate in it");
    assert_eq!(shown(&relay, "localhost"), der(&second));
    renew("..4", &third, "..3");
    eventually("the third is shown", || shown(&relay, "localhost") == der(&third));
    relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 0.0);
    post("3");
    crm.wait_for(3);
}

#[test]
fn a_certificate_that_certbot_renews_is_taken_when_its_key_is_there_too() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let live = "live/relay.test";
    let [certificate, key] = ["fullchain", "privkey"].map(|name| format!("{live}/{name}.pem"));
    let builder = TestRelay::with(&routes).without_certificate().flags(&[
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ]);
    let archive = builder.path("archive/relay.test");
    for folder in [&archive, &builder.path(live)] {
        fs::create_dir_all(folder).unwrap();
    }
    let keep = |number: u32, identity: &Identity| {
        let fullchain = format!("{}{}", identity.certificate, AUTHORITY.pem());
        fs::write(archive.join(format!("fullchain{number}.pem")), fullchain).unwrap();
        fs::write(archive.join(format!("privkey{number}.pem")), &identity.key).unwrap();
    };
    // It takes a link away before it makes the new one.
    let lead = |link: &Path, name: &str, number: u32| {
        _ = fs::remove_file(link);
        symlink(format!("../../archive/relay.test/{name}{number}.pem"), link).unwrap();
    };
    let [certificate, key] = [builder.path(&certificate), builder.path(&key)];
    let (first, second) = (AUTHORITY.server(), AUTHORITY.server_until(2080));
    keep(1, &first);
    lead(&certificate, "fullchain", 1);
    lead(&key, "privkey", 1);
    let relay = builder.start();
    assert_eq!(shown(&relay, "localhost"), der(&first));
    keep(2, &second);
    // Whatever holds it up between the two.
    lead(&key, "privkey", 2);
    refused(&relay, "does not belong");
    assert_eq!(shown(&relay, "localhost"), der(&first));
    lead(&certificate, "fullchain", 2);
    eventually("the second is shown", || shown(&relay, "localhost") == der(&second));
    relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 0.0);
    // A link that leads nowhere is said, too, and harms nobody.
    fs::remove_file(&certificate).unwrap();
    refused(&relay, "no such file");
    assert_eq!(shown(&relay, "localhost"), der(&second));
    lead(&certificate, "fullchain", 2);
    relay.wait_for_metric(REFUSED, OF_CERTIFICATES, 0.0);
    let lines = relay.logs();
    let renewals = lines.iter().filter(|line| line.contains("A new certificate is in force"));
    assert_eq!(renewals.count(), 1);
}

#[test]
fn pairs_in_the_environment_are_separated_by_commas_and_each_certificate_needs_its_key() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let other = AUTHORITY.server_for(&["b.test"], 1, 30);
    let builder = |certificates: &str, keys: &str| {
        TestRelay::with(&routes)
            .without_certificate()
            .file("b.crt", &other.certificate)
            .file("b.key", &other.key)
            .environment("RELAY_TLS_CERT", certificates)
            .environment("RELAY_TLS_KEY", keys)
    };
    for (certificates, keys, counts) in [
        ("certs/tls.crt,b.crt", "certs/tls.key", "--tls-cert names 2 files and --tls-key 1:"),
        ("certs/tls.crt", "certs/tls.key,b.key", "--tls-cert names 1 files and --tls-key 2:"),
    ] {
        let ended = builder(certificates, keys).run();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let first = ended.stderr.lines().next().unwrap_or_default();
        let is_clear = first.contains(counts) && first.contains("each certificate needs its key");
        assert!(is_clear, "{ended:?}");
    }
    let relay = builder("certs/tls.crt,b.crt", "certs/tls.key,b.key").start();
    assert_eq!(shown(&relay, "b.test"), der(&other));
    assert_ne!(shown(&relay, "localhost"), der(&other));
}

#[test]
fn what_senders_may_refuse_of_a_chain_is_told_and_its_first_end_is_the_certificate_s() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let [good, namesake, expired, deep] = [("good", 20), ("good", 20), ("old", -1), ("deep", 20)]
        .map(|(name, left)| AUTHORITY.intermediate(name, left));
    let deeper = deep.intermediate("deeper", 20);
    let chain = |issuer: &Authority, behind: &Authority| {
        let leaf = issuer.server_for(&["a.test"], 1, 30);
        (format!("{}{}", leaf.certificate, behind.pem()), leaf.key)
    };
    for ((certificate, key), told) in [
        (chain(&good, &good), None),
        (chain(&good, &namesake), Some(("a.test", "not signed with the key"))),
        (chain(&expired, &expired), Some(("CN=old", "it expired on"))),
        (chain(&deeper, &deeper), Some(("CN=deeper", "its issuer (CN=deep) does not follow it"))),
    ] {
        let relay = TestRelay::with(&routes)
            .without_certificate()
            .file("a.crt", &certificate)
            .file("a.key", &key)
            .file("roots.pem", &AUTHORITY.pem())
            .environment("SSL_CERT_FILE", "roots.pem")
            .flags(&["--tls-cert", "a.crt", "--tls-key", "a.key"])
            .start();
        let lines = relay.logs();
        let doubts: Vec<_> = lines.iter().filter(|line| line.contains("for its chain")).collect();
        assert_eq!(doubts.len(), usize::from(told.is_some()), "{lines:?}");
        if let Some((subject, why)) = told {
            let is_named = [subject, why, "a.crt", "WARN"].iter().all(|it| doubts[0].contains(it));
            assert!(is_named, "{doubts:?}");
        }
        let end = relay.metrics().value("relay_certificate_expiry_timestamp_seconds", &[]);
        let days = (end - OffsetDateTime::now_utc().unix_timestamp() as f64) / 86_400.0;
        let expected = if certificate.contains(&expired.pem()) { -1.0 } else { 20.0 };
        assert!((days - expected).abs() < 0.5, "{days} are left");
    }
}
