//! What protects the API: the token, and what a request must and must not bring.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

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
        &["log-level", "warn"],
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

/// Sends these bytes as they are.
fn raw(relay: &TestRelay, text: &str) -> Answer {
    let mut connection = Connection::open(relay.admin(), None).unwrap();
    connection.write(text.as_bytes()).unwrap();
    connection.read_answer().unwrap()
}

/// A request with these lines, and a body if there is one.
fn request(first: &str, lines: &[&str], body: &str) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let length =
        if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{first} HTTP/1.1\r\n{lines}{length}\r\n{body}")
}

const JSON: &str = "Content-Type: application/json";
const LOCALHOST: &str = "Host: localhost";
const PAUSE: &str = "POST /api/v1/targets/crm/pause";

fn is_paused(relay: &TestRelay) -> bool {
    raw(relay, &request("GET /api/v1/targets", &[LOCALHOST], "")).json()["items"][0]["state"]
        == "paused"
}

#[test]
fn a_page_that_gives_its_own_name_this_address_is_refused() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    for host in [
        "evil.test",
        "evil.test:9464",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "0x7f000001",
        "2130706433.",
        "",
    ] {
        let host = format!("Host: {host}");
        raw(&relay, &request("GET /api/v1/webhooks", &[&host], "")).problem(403);
        raw(&relay, &request(PAUSE, &[&host, JSON], "{}")).problem(403);
    }
    // Another name in the request's own target does not help, nor does a second one.
    for lines in [&["Host: evil.test", LOCALHOST][..], &[]] {
        let answer = raw(&relay, &request(PAUSE, &[lines, &[JSON]].concat(), "{}"));
        assert!([400, 403].contains(&answer.status), "{lines:?}: {answer:?}");
    }
    let absolute = request("GET http://evil.test/api/v1/webhooks", &["Host: evil.test"], "");
    raw(&relay, &absolute).problem(403);
    assert!(!is_paused(&relay));
    for host in ["localhost", "LocalHost:1", "127.0.0.1:9464", "[::1]:9464"] {
        let host = format!("Host: {host}");
        assert_eq!(raw(&relay, &request("GET /api/v1/webhooks", &[&host], "")).status, 200);
    }
}

#[test]
fn a_page_of_another_site_is_refused_whatever_it_can_send() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    for line in [
        "Origin: https://evil.test",
        "Origin: null",
        "Origin: http://localhost:9464",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        for first in ["GET /api/v1/webhooks", "GET /api/v1/openapi.json"] {
            raw(&relay, &request(first, &[LOCALHOST, line], "")).problem(403);
        }
        raw(&relay, &request(PAUSE, &[LOCALHOST, JSON, line], "{}")).problem(403);
        let preflight = request("OPTIONS /api/v1/targets/crm/pause", &[LOCALHOST, line], "");
        let preflight = raw(&relay, &preflight);
        preflight.problem(403);
        let allows = |(name, _): &(String, String)| name.starts_with("access-control-");
        assert!(!preflight.headers.iter().any(allows), "{preflight:?}");
    }
    // What a form can send without asking first.
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"]
    {
        let kind = format!("Content-Type: {kind}");
        raw(&relay, &request(PAUSE, &[LOCALHOST, &kind], "{}")).problem(415);
    }
    raw(&relay, &request(PAUSE, &[LOCALHOST], "{}")).problem(415);
    assert!(!is_paused(&relay));
    assert_eq!(raw(&relay, &request(PAUSE, &[LOCALHOST, JSON], "{}")).status, 200);
    assert!(is_paused(&relay));
}

#[test]
fn another_method_is_refused_with_those_that_are_taken() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    for (path, allowed) in [
        ("webhooks", "GET"),
        ("webhooks/01a213ed-646b-7000-80b3-4e15e05fd840", "GET"),
        ("targets", "GET"),
        ("targets/crm/pause", "POST"),
        ("webhooks/01a213ed-646b-7000-80b3-4e15e05fd840/body", "GET"),
        ("dead-letters/redrive", "POST"),
        ("reload", "POST"),
    ] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
            if method == allowed {
                continue;
            }
            let first = format!("{method} /api/v1/{path}");
            let answer = raw(&relay, &request(&first, &[LOCALHOST, JSON], ""));
            answer.problem(405);
            assert_eq!(answer.header("allow"), Some(allowed), "{first}");
        }
    }
    raw(&relay, &request("GET /api/v1/", &[LOCALHOST], "")).problem(404);
    raw(&relay, &request("GET /api/v1/targets/", &[LOCALHOST], "")).problem(404);
    assert!(!is_paused(&relay));
}

#[test]
fn what_nobody_reads_may_not_stand_in_a_query_or_a_body() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    for (first, part) in [
        ("GET /api/v1/webhooks?colour=red", "unknown field `colour`"),
        ("GET /api/v1/dead-letters?Target=crm", "unknown field `Target`"),
        ("GET /api/v1/targets?limit=1", "nothing may stand behind a ?"),
        ("GET /api/v1/webhooks/01a213ed-646b-7000-80b3-4e15e05fd840?body=1", "nothing may stand"),
    ] {
        let answer = raw(&relay, &request(first, &[LOCALHOST], ""));
        answer.problem(400);
        assert!(answer.json()["detail"].to_string().contains(part), "{first}: {answer:?}");
    }
    for (first, body) in [
        ("POST /api/v1/targets/crm/pause?dry_run=true", "{}"),
        (PAUSE, r#"{"dry_run": true}"#),
        (PAUSE, "[]"),
        ("POST /api/v1/dead-letters/redrive", r#"{"all": true, "dry-run": true}"#),
        ("POST /api/v1/webhooks/replay", r#"{"all": true, "targt": "crm"}"#),
        ("POST /api/v1/reload", "not json"),
    ] {
        raw(&relay, &request(first, &[LOCALHOST, JSON], body)).problem(400);
    }
    assert!(!is_paused(&relay));
}

#[test]
fn a_body_is_read_as_far_as_it_may_be_and_no_further() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    let large = format!("{{}}{}", " ".repeat(1023));
    raw(&relay, &request(PAUSE, &[LOCALHOST, JSON], &large)).problem(413);
    let announced = request(PAUSE, &[LOCALHOST, JSON, "Content-Length: 99999999999"], "");
    raw(&relay, &announced).problem(413);
    let chunked = request(PAUSE, &[LOCALHOST, JSON, "Transfer-Encoding: chunked"], "");
    let endless = format!("{chunked}{}", format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(2));
    raw(&relay, &endless).problem(413);
    raw(&relay, &request("GET /api/v1/targets", &[LOCALHOST], "{}")).problem(413);
    assert!(!is_paused(&relay));
    let just = format!("{{}}{}", " ".repeat(1022));
    assert_eq!(raw(&relay, &request(PAUSE, &[LOCALHOST, JSON], &just)).status, 200);
}

/// In the relay's folder: a path from the root may be longer than a socket's can be.
const SOCKET: &str = "unix:admin.sock";

/// A relay at [`SOCKET`], whose process makes files that all may use where it says nothing else.
fn at_a_socket(builder: Builder) -> TestRelay {
    let umask = "umask 0000; exec \"$0\" \"$@\"";
    builder.override_flag("--admin", SOCKET).under(&["sh", "-c", umask]).start()
}

fn typed_at_a_socket(relay: &TestRelay, words: &[&str]) -> Ended {
    run(command(BINARY).args(words).args(["--admin", SOCKET]).current_dir(relay.path("")))
}

/// Sends these bytes to a socket, and answers what comes until it is closed.
fn raw_at(path: &Path, text: &str) -> String {
    // Its path from the root may be too long.
    let fd = fs::File::open(path.parent().unwrap()).unwrap();
    let place = format!("/proc/self/fd/{}/admin.sock", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let mut stream = UnixStream::connect(place).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_socket_answers_its_owner_as_loopback_does() {
    let crm = Receiver::willing();
    let mut relay = at_a_socket(relay(&crm));
    let path = relay.path("admin.sock");
    let file = fs::symlink_metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    for words in [&["targets", "list"][..], &["webhooks", "list"], &["route", "--activity", "A"]] {
        let ended = typed_at_a_socket(&relay, words);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    for plain in ["/livez", "/readyz", "/metrics"] {
        let answer = raw_at(&path, &request(&format!("GET {plain}"), &[], ""));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let from_a_page = request(PAUSE, &[LOCALHOST, JSON, "Origin: null"], "{}");
    assert!(raw_at(&path, &from_a_page).starts_with("HTTP/1.1 403 "));
    relay.terminate();
    assert!(!path.exists(), "it is gone with the relay");
    let nobody = typed_at_a_socket(&relay, &["targets", "list"]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.stderr.contains("no relay answers at unix:admin.sock"), "{nobody:?}");
}

#[test]
fn the_socket_of_a_killed_relay_is_replaced_and_that_of_a_running_one_is_not() {
    let crm = Receiver::willing();
    let mut relay = at_a_socket(relay(&crm));
    let second = relay.second();
    assert!(second.stderr.contains("--admin unix:admin.sock can't be bound"), "{second:?}");
    assert!(second.stderr.contains("another process listens there"), "{second:?}");
    assert_eq!(typed_at_a_socket(&relay, &["targets", "list"]).code, Some(0));
    relay.kill9();
    assert!(relay.path("admin.sock").exists());
    relay.start_again();
    assert_eq!(typed_at_a_socket(&relay, &["targets", "list"]).code, Some(0));
}

#[test]
fn a_token_is_wanted_at_a_socket_too_and_a_file_that_is_no_socket_stays() {
    let crm = Receiver::willing();
    let relay = at_a_socket(with_token(&crm));
    let nothing = typed_at_a_socket(&relay, &["targets", "list"]);
    assert!(nothing.stderr.contains("unix:admin.sock wants its admin token"), "{nothing:?}");
    let brought = ["targets", "list", "--admin-token-file", "token"];
    assert_eq!(typed_at_a_socket(&relay, &brought).code, Some(0));
    let other = self::relay(&crm).file("admin.sock", "precious").override_flag("--admin", SOCKET);
    let refused = other.refused();
    assert!(refused.stderr.contains("there is a file of that name"), "{refused:?}");
    assert_eq!(fs::read_to_string(other.path("admin.sock")).unwrap(), "precious");
}

#[test]
fn a_relay_is_asked_by_any_name_that_leads_to_it() {
    let crm = Receiver::willing();
    let relay = relay(&crm).start();
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    let lines = hosts.lines().filter_map(|line| line.strip_prefix("127.0.0.1"));
    let names = lines.flat_map(str::split_whitespace).take_while(|name| !name.starts_with('#'));
    for host in names.chain(["127.0.0.1", "localhost"]) {
        let admin = format!("http://{host}:{}", relay.admin().port());
        let ended = run(command(BINARY).args(["targets", "list", "--admin", &admin]));
        assert_eq!(ended.code, Some(0), "{host}: {ended:?}");
    }
}
