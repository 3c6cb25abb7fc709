//! What a service manager gives and is told: sockets, readiness, reloads, signs of life.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::process::Signal;

use crate::support::manager::{Notifications, Sockets, listening};
use crate::support::relay::folder;
use crate::support::routes::SOON;
use crate::support::tools::{has, has_strace};
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

#[test]
fn systemd_is_told_when_it_is_ready_reloads_and_stops() {
    let crm = Receiver::willing();
    let builder = TestRelay::with(&table(&crm));
    let path = builder.path("notify");
    let told = Notifications::at(&path);
    let mut relay = builder.environment("NOTIFY_SOCKET", path.to_str().unwrap()).start_unready();
    let ready = told.until("READY=1");
    assert_eq!(relay.get("/readyz").status, 200, "said when it is so");
    let status = format!("STATUS=Accepting on {} and delivering", relay.listen());
    assert!(ready.iter().any(|line| line.starts_with(&status)), "{ready:?}");
    for (text, said) in [(None, "good"), (Some("nothing: of use\n"), "REFUSED")] {
        if let Some(text) = text {
            std::fs::write(relay.path("routes.yaml"), text).unwrap();
        }
        relay.signal(Signal::HUP);
        let reloading = told.until("RELOADING=1");
        assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
        let reloaded = told.next();
        assert!(reloaded.contains(&"READY=1".to_owned()), "{reloaded:?}");
        assert!(reloaded.iter().any(|line| line.contains(said)), "no {said} in {reloaded:?}");
    }
    relay.terminate();
    told.until("STOPPING=1");
}

/// Half a second, in the unit of systemd.
const WATCHDOG: &str = "500000";

#[test]
fn the_watchdog_is_fed_for_as_long_as_the_store_answers() {
    if !has_strace() {
        return;
    }
    let crm = Receiver::willing();
    let builder = TestRelay::with(&table(&crm));
    let (path, trace) = (builder.path("notify"), builder.path("trace"));
    let told = Notifications::at(&path);
    // The second sync of the thread that commits hangs for a while: that of the settlement.
    let hang = "inject=fdatasync:delay_enter=4000000:when=2";
    let flags = ["strace", "-D", "-f", "-e", "trace=fdatasync", "-e", "signal=none", "-e", hang];
    let flags: Vec<&str> = flags.into_iter().chain(["-o", trace.to_str().unwrap()]).collect();
    let relay = builder
        .under(&flags)
        .environment("NOTIFY_SOCKET", path.to_str().unwrap())
        .environment("WATCHDOG_USEC", WATCHDOG)
        .start();
    for _ in 0..3 {
        told.until("WATCHDOG=1");
    }
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    let says = |text: &str| {
        eventually(text, || relay.logs().iter().any(|line| line.contains(text)));
    };
    says("The store does not answer: the service manager's watchdog is not fed.");
    // Of before, when it was well.
    told.forget();
    // Two seconds later, in which a mere timer would have gone off.
    says("The disk does not answer");
    assert_eq!(told.forget(), 0, "it was said to be alive");
    told.until("WATCHDOG=1");
    Sender::new(&relay).post(&listing_delivered("2")).accepted();
}

#[test]
fn without_a_service_manager_nothing_is_told() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&table(&crm))
        .environment("WATCHDOG_USEC", WATCHDOG)
        .environment("WATCHDOG_PID", "1")
        .environment("NOTIFY_SOCKET", "/nonexistent/notify")
        .start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
}
