//! What a service manager gives: sockets.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::support::manager::{Sockets, listening};
use crate::support::relay::folder;
use crate::support::routes::SOON;
use crate::support::tools::has;
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Routes, Sender, TestRelay, eventually};

fn table(crm: &Receiver) -> Routes {
    Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"])
}

#[test]
fn sockets_that_it_is_given_take_the_places_of_its_own() {
    let crm = Receiver::willing();
    let sockets = Sockets::open();
    let webhooks = sockets.webhooks();
    // Flags that could not be served: nobody may bind these.
    let mut relay = TestRelay::with(&table(&crm))
        .override_flag("--listen", "192.0.2.1:1")
        .override_flag("--admin", "192.0.2.1:2")
        .sockets(sockets)
        .start();
    assert_eq!(relay.listen(), webhooks);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
    assert_eq!(relay.get("/livez").status, 200);
    let sender = Sender::new(&relay);
    relay.terminate();
    // Whoever connects while nobody is there waits for the next.
    let early = std::thread::spawn(move || sender.send(&sender.request(&listing_delivered("2"))));
    relay.start_again();
    early.join().unwrap().accepted();
    crm.wait_for(2);
}

#[test]
fn one_socket_is_enough() {
    let crm = Receiver::willing();
    let socket = listening();
    let address = socket.local_addr().unwrap();
    let relay = TestRelay::with(&table(&crm)).sockets(Sockets::one(socket, "webhooks")).start();
    assert_eq!(relay.listen(), address);
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
}

#[test]
fn an_admin_socket_in_a_file_stays_with_whoever_made_it() {
    let crm = Receiver::willing();
    let builder = TestRelay::with(&table(&crm));
    let path = builder.path("admin.sock");
    let file = UnixListener::bind(&path).unwrap();
    let mut relay = builder.sockets(Sockets::named(listening(), file, "webhooks:admin")).start();
    assert_eq!(relay.admin_text(), format!("unix:{}", path.display()));
    relay.terminate();
    UnixStream::connect(&path).unwrap();
    relay.start_again();
}

#[test]
fn what_can_not_be_meant_is_refused_with_what_to_do() {
    let crm = Receiver::willing();
    let table = table(&crm);
    let file = || UnixListener::bind(folder().path().join("socket")).unwrap();
    for (sockets, said) in [
        (Sockets::one(listening(), "aryeo-relay.socket"), "FileDescriptorName="),
        (Sockets::one(listening(), "unknown"), "FileDescriptorName="),
        (Sockets::named(listening(), listening(), "webhooks:webhooks"), "two sockets"),
        (Sockets::named(listening(), listening(), "webhooks:admin:third"), "LISTEN_FDS"),
        (Sockets::named(file(), listening(), "webhooks:admin"), "no socket that listens on TCP"),
    ] {
        let builder = TestRelay::with(&table).sockets(sockets);
        let refused = builder.refused();
        assert!(refused.stderr.contains(said), "no {said:?} in {}", refused.stderr);
        assert!(!builder.path("data").exists(), "nothing was begun");
    }
    // Meant for somebody else, as what a process leaves to those that it starts: its own are opened.
    let relay = TestRelay::with(&table)
        .environment("LISTEN_PID", "1")
        .environment("LISTEN_FDS", "2")
        .start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
}

#[test]
fn systemd_itself_passes_sockets_and_the_first_connection_starts_it() {
    if !has("systemd-socket-activate", "--version") {
        return;
    }
    let crm = Receiver::willing();
    let table = table(&crm);
    let builder = TestRelay::with(&table);
    let admin = builder.path("admin.sock");
    // It takes no port 0; that for webhooks is the relay's own here.
    let mut under = vec!["systemd-socket-activate", "--fdname=admin", "-l"];
    under.extend(admin.to_str());
    under.extend(table.secrets().iter().flat_map(|(name, _)| ["-E", name]));
    let asking = admin.clone();
    let asking = std::thread::spawn(move || {
        let mut asking = eventually("systemd listens", || UnixStream::connect(&asking).ok());
        asking.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).unwrap();
        answer
    });
    let relay = builder.under(&under).start();
    let answer = asking.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(relay.admin_text(), format!("unix:{}", admin.display()));
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    crm.wait_for(1);
}
