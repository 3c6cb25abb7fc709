//! What protects the API: the token, and what a request must and must not bring.

use std::fs;
use std::net::SocketAddr;

use crate::support::relay::{BINARY, Builder, Ended, command, run};
use crate::support::sender::{Answer, Connection};
use crate::support::vectors::listing_delivered;
use crate::support::{Receiver, Request, Routes, TestRelay, eventually};

const TOKEN: &str = "0pen-Sesame.~+/=";
const NEXT: &str = "an0ther-One";

/// Every address of this machine, which are not only those of the loopback interface.
const EVERYWHERE: &str = "0.0.0.0:0";

fn relay(crm: &Receiver) -> Builder {
    TestRelay::with(&Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]))
}

fn with_token(crm: &Receiver) -> Builder {
    relay(crm).file("token", &format!("{TOKEN}\n")).flags(&["--admin-token-file", "token"])
}

fn ask(admin: SocketAddr, request: &Request) -> Answer {
    Connection::open(admin, None).unwrap().send(request).unwrap()
}

fn get(path: &str) -> Request {
    Request::unsigned(path, b"").method("GET").without("content-type")
}

fn bearer(request: Request, token: &str) -> Request {
    request.header("Authorization", &format!("Bearer {token}"))
}

#[track_caller]
fn wants_a_token(answer: &Answer) {
    answer.problem(401);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{answer:?}");
    assert!(!String::from_utf8_lossy(&answer.body).contains(TOKEN), "{answer:?}");
}

#[test]
fn off_loopback_and_without_a_token_only_the_plain_paths_answer() {
    let crm = Receiver::willing();
    let relay = relay(&crm).override_flag("--admin", EVERYWHERE).start();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(relay.get(path).status, 200, "{path}");
    }
    let answer = relay.get("/api/v1/targets");
    answer.problem(403);
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("--admin-token-file"), "{detail}");
    ask(relay.admin(), &bearer(get("/api/v1/targets"), TOKEN)).problem(403);
}

#[test]
fn where_a_token_is_set_the_api_wants_it_on_loopback_and_off_it() {
    let crm = Receiver::willing();
    for address in ["127.0.0.1:0", EVERYWHERE] {
        let mut relay = with_token(&crm).override_flag("--admin", address).start();
        let admin = relay.admin();
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(relay.get(path).status, 200, "{path}");
        }
        let plain = get("/api/v1/targets");
        wants_a_token(&ask(admin, &plain));
        wants_a_token(&ask(admin, &get("/api/v1/no/such/path")));
        wants_a_token(&ask(admin, &Request::unsigned("/api/v1/reload", b"{}")));
        for wrong in ["", "0pen-Sesame.~+/", NEXT] {
            wants_a_token(&ask(admin, &bearer(plain.clone(), wrong)));
        }
        wants_a_token(&ask(admin, &bearer(bearer(plain.clone(), NEXT), TOKEN)));
        wants_a_token(&ask(admin, &get(&format!("/api/v1/targets?token={TOKEN}"))));
        assert_eq!(ask(admin, &bearer(plain, TOKEN)).status, 200);
        let log = relay.log();
        relay.terminate();
        let text = log.all().join("\n");
        assert!(text.contains("Stopped.") && !text.contains(TOKEN), "{text}");
    }
}

#[test]
fn another_token_is_in_force_when_it_is_saved_and_a_bad_file_changes_nothing() {
    let crm = Receiver::willing();
    let relay = with_token(&crm).start();
    let status = |token| ask(relay.admin(), &bearer(get("/api/v1/targets"), token)).status;
    assert_eq!((status(TOKEN), status(NEXT)), (200, 401));
    fs::write(relay.path("token"), NEXT).unwrap();
    eventually("the next one is in force", || status(NEXT) == 200);
    assert_eq!(status(TOKEN), 401);
    fs::write(relay.path("token"), "\n").unwrap();
    let reload = bearer(Request::unsigned("/api/v1/reload", b"{}"), NEXT);
    let answer = ask(relay.admin(), &reload);
    answer.problem(422);
    assert!(answer.json()["problems"][0]["message"].to_string().contains("is empty"));
    fs::remove_file(relay.path("token")).unwrap();
    ask(relay.admin(), &reload).problem(422);
    assert_eq!(status(NEXT), 200);
}

#[test]
fn it_does_not_start_with_a_file_that_holds_no_token() {
    let crm = Receiver::willing();
    for (content, expected) in [
        ("\n", "--admin-token-file: token is empty"),
        ("two words", "--admin-token-file: token is no token"),
    ] {
        let refused = with_token(&crm).file("token", content).refused();
        assert!(refused.stderr.contains(expected), "{refused:?}");
        assert!(!refused.stderr.contains("words"), "{refused:?}");
    }
    let missing = relay(&crm).flags(&["--admin-token-file", "none"]).refused();
    assert!(missing.stderr.contains("--admin-token-file: none can't be read"), "{missing:?}");
}

#[test]
fn every_command_that_asks_a_relay_brings_the_token_of_a_file() {
    let crm = Receiver::willing();
    let relay = with_token(&crm).file("wrong", NEXT).start();
    fs::write(relay.path("body.json"), listing_delivered("1")).unwrap();
    let admin = format!("http://{}", relay.admin());
    let typed = |words: &[&str], more: &[&str]| -> Ended {
        let mut command = command(BINARY);
        command.args(words).args(["--admin", &admin]).args(more).current_dir(relay.path(""));
        run(&mut command)
    };
    for words in [
        &["webhooks", "list"][..],
        &["dead-letters", "list"],
        &["targets", "list"],
        &["targets", "pause", "crm"],
        &["diff", "routes.yaml"],
        &["route", "body.json"],
    ] {
        let nothing = typed(words, &[]);
        assert_eq!(nothing.code, Some(1), "{nothing:?}");
        assert!(
            nothing.stderr.contains("wants its admin token: --admin-token-file"),
            "{nothing:?}"
        );
        let wrong = typed(words, &["--admin-token-file", "wrong"]);
        assert_eq!(wrong.code, Some(1), "{wrong:?}");
        assert!(wrong.stderr.contains("does not take the admin token of wrong"), "{wrong:?}");
        let right = typed(words, &["--admin-token-file", "token"]);
        assert_eq!(right.code, Some(0), "{right:?}");
        for ended in [nothing, wrong, right] {
            let text = ended.stdout + &ended.stderr;
            assert!(!text.contains(TOKEN) && !text.contains(NEXT), "{text}");
        }
    }
    let missing = typed(&["targets", "list"], &["--admin-token-file", "none"]);
    assert!(missing.stderr.contains("--admin-token-file: none can't be read"), "{missing:?}");
}
