//! A full disk refuses new webhooks; it never damages what was accepted.
//!
//! The relay gets a small file system in memory, mounted in a namespace of its own; what fills it
//! is put there from outside.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::relay::{Background, command, run};
use crate::support::routes::SOON;
use crate::support::tools::can_go_on;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay, eventually};

const SIZE: u64 = 256 * 1024 * 1024;

/// Mounts `$0` and becomes what follows.
const SCRIPT: &str =
    "mkdir -p \"$0\" && mount -t tmpfs -o size=256m,mode=0700 none \"$0\" && exec \"$@\"";

const ALONE: [&str; 5] = ["unshare", "--user", "--map-root-user", "--mount", "--"];

fn can_mount() -> bool {
    let tried =
        run(command(ALONE[0]).args(&ALONE[1..]).args(["mount", "-t", "tmpfs", "none", "/mnt"]));
    let what = format!("no file system can be mounted here: {}", tried.stderr.trim());
    can_go_on(tried.code == Some(0), &what)
}

#[test]
fn a_full_disk_refuses_with_503_until_there_is_room_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let crm = Receiver::start(|_| Reply::Status(500));
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes).flags(&["--allow-volatile-data"]);
    let data = builder.path("data").display().to_string();
    let under: Vec<&str> = ALONE.into_iter().chain(["sh", "-c", SCRIPT, &data]).collect();
    let relay = builder.under(&under).start();
    let inside = PathBuf::from(format!("/proc/{}/root{data}", relay.process()));
    assert!(fs::read_dir(&inside).unwrap().count() > 0, "the data is in there");
    let mut sender = Sender::new(&relay);
    let body = |n: u32| format!("{n} {}", "x".repeat(1024 * 1024)).into_bytes();
    sender.post(&body(0)).accepted();

    // All that is left, and then some.
    let filler = inside.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let piece = vec![0; 1024 * 1024];
    let mut filled = 0;
    while file.write_all(&piece).is_ok() {
        filled += piece.len() as u64;
        assert!(filled < SIZE, "it is not full");
    }
    let mut accepted = vec![body(0)];
    let refused = (1..300)
        .find_map(|n| {
            let answer = sender.post(&body(n));
            if answer.status == 202 {
                accepted.push(body(n));
                return None;
            }
            Some(answer)
        })
        .expect("300 MiB do not fit");
    refused.problem(503);
    assert!(refused.header("retry-after").is_some());
    let full = [("source", "aryeo"), ("answer", "disk_full")];
    assert!(relay.metrics().value("relay_webhooks_received_total", &full) >= 1.0);
    let ready = relay.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(String::from_utf8_lossy(&ready.body).contains("disk_full"));
    assert_eq!(relay.get("/livez").status, 200);

    // What was accepted is delivered even now.
    crm.set(|_| Reply::Status(200));
    let settled = [("target", "crm"), ("settlement", "delivered")];
    let count = accepted.len();
    relay.wait_for_metric("relay_deliveries_settled_total", &settled, count as f64);

    drop(file);
    fs::remove_file(&filler).unwrap();
    let last = body(1000);
    let answer = eventually("it accepts again", || {
        let answer = sender.post(&last);
        if answer.status == 503 { Err(format!("{answer:?}")) } else { Ok(answer) }
    });
    answer.accepted();
    eventually("it is ready again", || relay.get("/readyz").status == 200);
    relay.wait_for_metric("relay_deliveries_settled_total", &settled, count as f64 + 1.0);
    accepted.push(last);
    let received = crm.received();
    for body in &accepted {
        assert!(received.iter().any(|received| &received.body == body), "one is lost");
    }
    assert!(received.iter().all(|received| accepted.contains(&received.body)), "one was refused");
}

/// Mounts `$0`, says as which process, and keeps it.
const KEEPER: &str = "mkdir -p \"$0\" && mount -t tmpfs -o size=48m,mode=0700 none \"$0\" && \
     echo $$ && exec sleep infinity";

/// Takes all that is left, to the last byte; again, what was given back since.
fn fill(dir: &Path) {
    for size in [1 << 20, 4096, 1] {
        let file = dir.join(format!("filler-{size}"));
        let mut file = fs::File::options().create(true).append(true).open(file).unwrap();
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}

fn make_room(dir: &Path) {
    for size in [1 << 20, 4096, 1] {
        fs::remove_file(dir.join(format!("filler-{size}"))).unwrap();
    }
}

#[test]
fn a_start_on_a_full_disk_delivers_what_was_accepted_whatever_was_left_of_the_index() {
    if !can_mount() {
        return;
    }
    // More than a lane has in memory: the rest comes from the index.
    const COUNT: usize = 1200;
    let down = "retry: { first: 3s, max: 3s, for: 1h }";
    let crm = Receiver::start(|_| Reply::Status(500));
    let routes = Routes::new().target("crm", &crm.url(), &[down]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes).flags(&["--allow-volatile-data"]);
    let data = builder.path("data").display().to_string();
    let keeper =
        Background::start(command(ALONE[0]).args(&ALONE[1..]).args(["sh", "-c", KEEPER, &data]));
    let process = eventually("the file system is mounted", || keeper.lines().first().cloned());
    let inside = PathBuf::from(format!("/proc/{process}/root{data}"));
    let enter = ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", &process];
    let mut relay = builder.under(&enter).start();
    assert!(inside.join("lock").exists(), "the data is in there");
    let mut total = 0;
    for stage in ["killed", "stopped", "killed, without its index"] {
        crm.set(|_| Reply::Status(500));
        let mut sender = Sender::new(&relay);
        for n in 0..COUNT {
            sender.post(format!("{stage} {n}").as_bytes()).accepted();
        }
        total += COUNT;
        if stage == "stopped" {
            relay.terminate()
        } else {
            relay.kill9()
        }
        if stage.ends_with("index") {
            fs::remove_file(inside.join("index.sqlite")).unwrap();
            fs::remove_file(inside.join("index.sqlite-wal")).unwrap();
            fs::remove_file(inside.join("index.sqlite-shm")).unwrap();
        }
        fill(&inside);
        relay.launch_again();
        let mut sender = Sender::new(&relay);
        // An index that can't be written goes to memory; what it had on the disk holds a few more.
        let large = |n: usize| format!("{stage}, {n} more {}", "x".repeat(64 * 1024)).into_bytes();
        let mut more = 0;
        eventually("it says that the disk is full and refuses", || {
            fill(&inside);
            let answer = sender.post(&large(more));
            if answer.status == 202 {
                more += 1;
                return Err("it accepts".to_owned());
            }
            answer.problem(503);
            let ready = relay.get("/readyz");
            let text = String::from_utf8_lossy(&ready.body).into_owned();
            if ready.status == 503 && text.contains("disk_full") { Ok(()) } else { Err(text) }
        });
        assert_eq!(relay.get("/livez").status, 200, "{stage}");
        total += more;
        crm.set(|_| Reply::Status(200));
        let settled = [("target", "crm"), ("settlement", "delivered")];
        let pending = COUNT + more;
        relay.wait_for_metric("relay_deliveries_settled_total", &settled, pending as f64);
        make_room(&inside);
        eventually("it is ready again", || relay.get("/readyz").status == 200);
        // What was settled while nothing could be written is written now.
        relay.restart();
        relay.wait_for_metric("relay_deliveries_pending", &[("target", "crm")], 0.0);
        let received = crm.received();
        let bodies: HashSet<&[u8]> = received.iter().map(|received| &*received.body).collect();
        assert!(!bodies.contains(&*large(more)), "{stage}: it was refused");
        assert_eq!(bodies.len(), total, "{stage}");
    }
}

#[test]
fn a_limit_of_the_size_of_files_is_a_full_disk_and_not_the_end() {
    let crm = Receiver::start(|_| Reply::Status(500));
    let routes = Routes::new().target("crm", &crm.url(), &[SOON]).all_to(&["crm"]);
    let mut relay = TestRelay::with(&routes).under(&["prlimit", "--fsize=2097152"]).start();
    let mut sender = Sender::new(&relay);
    let body = |n: usize| format!("{n} {}", "x".repeat(700 * 1024)).into_bytes();
    // Segments are as small as they have to be.
    for n in 0..8 {
        sender.post(&body(n)).accepted();
    }
    // No segment takes this one.
    let large = "y".repeat(2000 * 1024).into_bytes();
    sender.post(&large).problem(503);
    relay.kill9();
    relay.launch_again();
    let mut sender = Sender::new(&relay);
    sender.post(&body(8)).accepted();
    crm.set(|_| Reply::Status(200));
    let settled = [("target", "crm"), ("settlement", "delivered")];
    relay.wait_for_metric("relay_deliveries_settled_total", &settled, 9.0);
    let received = crm.received();
    for n in 0..9 {
        assert!(received.iter().any(|received| received.body == body(n)), "{n} is lost");
    }
    assert!(!received.iter().any(|received| received.body == large), "it was refused");
}
