//! What an operator asks of a running relay: the API of its admin address, and the commands over it.

use std::fs;
use std::net::SocketAddr;

use crate::support::relay::{BINARY, Ended, command, folder, run};
use crate::support::sender::{Answer, Connection};
use crate::support::vectors::activity;
use crate::support::{Receiver, Request, Routes, Sender, TestRelay};

/// Posts to the admin address.
fn ask(admin: SocketAddr, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::unsigned(path, body.as_bytes()).without("host");
    let host = admin.to_string();
    if headers.iter().all(|(name, _)| *name != "host") {
        request = request.header("host", &host);
    }
    for (name, value) in headers {
        request = request.without(name).header(name, value);
    }
    Connection::open(admin, None).unwrap().send(&request).unwrap()
}

/// Another table over the same targets, with its own routes.
fn candidate(routes: &str) -> String {
    let nowhere = Routes::new()
        .target("crm", "https://crm.internal/", &["tls: { ca: /no/such/file }"])
        .target("desk", "https://desk.internal/", &[])
        .all_to(&["crm"])
        .yaml();
    let (head, _) = nowhere.split_once("routes:\n").unwrap();
    format!("{head}routes:\n{routes}")
}

fn diff(relay: &TestRelay, file: &str, arguments: &[&str]) -> Ended {
    let admin = format!("http://{}", relay.admin());
    run(command(BINARY).args(["diff", file, "--admin", &admin]).args(arguments))
}

/// Orders and listings for `crm`; their ids.
fn some_webhooks(relay: &TestRelay) -> Vec<String> {
    let mut sender = Sender::new(relay);
    let mut post = |name: &str, id: &str| sender.post(&activity(name, id, "ORDER")).accepted();
    let mut ids: Vec<String> = (0..3).map(|n| post("ORDER_CREATED", &n.to_string())).collect();
    ids.push(post("LISTING_MERGED", "l"));
    ids.push(post("ORDER_VIEWED", "v"));
    ids
}

fn one_target(crm: &Receiver) -> Routes {
    Routes::new().target("crm", &crm.url(), &[]).route(
        "orders",
        &["activity: [ORDER_CREATED, LISTING_MERGED]"],
        &["crm"],
    )
}

#[test]
fn diff_tells_what_another_table_would_have_done_and_changes_nothing() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&one_target(&crm)).start();
    let ids = some_webhooks(&relay);
    crm.wait_for(4);
    let folder = folder();
    let file = folder.path().join("new.yaml");
    let routes = "  - { name: orders, activity: \"ORDER_*\", to: [desk] }\n\
                  \x20 - { name: first, activity: ORDER_CREATED, when: { /id: \"0\" }, to: [crm] }\n";
    fs::write(&file, candidate(routes)).unwrap();
    let file = file.to_str().unwrap();

    let text = diff(&relay, file, &["--examples", "2"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(
        text.stdout.starts_with("5 webhooks of the last 24h: 5 would go elsewhere"),
        "{text:?}"
    );
    assert!(
        text.stdout.contains(&format!("{}  ORDER_CREATED  crm -> crm, desk", ids[0])),
        "{text:?}"
    );
    assert!(text.stdout.contains("and 3 more"), "{text:?}");

    let json = diff(&relay, file, &["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let counts = |now: u64, then: u64, gained: u64, lost: u64| serde_json::json!({ "now": now, "then": then, "gained": gained, "lost": lost });
    assert_eq!((&json["examined"], &json["changed"]), (&5.into(), &5.into()));
    assert_eq!(json["targets"]["crm"], counts(4, 1, 0, 3));
    assert_eq!(json["targets"]["desk"], counts(0, 4, 4, 0));
    assert_eq!(json["routes"]["orders"], counts(4, 4, 1, 1));
    assert_eq!(json["routes"]["first"], counts(0, 1, 1, 0));
    assert_eq!(json["unrouted"], counts(1, 1, 1, 1));
    let listed: Vec<&str> = json["examples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["webhook_id"].as_str().unwrap())
        .collect();
    assert_eq!(listed, ids);

    let same = diff(&relay, relay.path("routes.yaml").to_str().unwrap(), &["--since", "1h"]);
    assert_eq!(same.stdout.lines().count(), 1, "{same:?}");
    assert!(same.stdout.contains("5 webhooks of the last 1h: 0 would go elsewhere"), "{same:?}");
    assert_eq!(crm.count(), 4, "nothing was delivered again");
}

#[test]
fn a_candidate_that_can_not_be_used_is_told_as_check_tells_it() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&one_target(&crm)).start();
    let folder = folder();
    let file = folder.path().join("new.yaml");
    fs::write(&file, candidate("  - { name: orders, to: [biling] }\n")).unwrap();
    let ended = diff(&relay, file.to_str().unwrap(), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("new.yaml:"), "{ended:?}");
    assert!(ended.stdout.contains("error: unknown target \"biling\""), "{ended:?}");
    assert!(ended.stdout.contains("| "), "the line is quoted: {ended:?}");
    assert!(ended.stdout.contains("^^^^^^"), "{ended:?}");
    let nobody = run(command(BINARY).args([
        "diff",
        file.to_str().unwrap(),
        "--admin",
        "http://127.0.0.1:1",
    ]));
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert!(nobody.stderr.contains("no relay answers at http://127.0.0.1:1"), "{nobody:?}");
}

#[test]
fn no_page_of_another_site_and_no_form_can_ask() {
    let crm = Receiver::willing();
    let relay = TestRelay::with(&one_target(&crm)).start();
    let admin = relay.admin();
    let body =
        serde_json::json!({ "routes": candidate("  - { name: a, to: [crm] }\n") }).to_string();
    let path = "/api/v1/routes/diff";
    assert_eq!(ask(admin, path, &body, &[]).status, 200);
    for (headers, status) in [
        (&[("host", "rebound.example")][..], 403),
        (&[("origin", "https://evil.example")], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("content-type", "text/plain")], 415),
    ] {
        ask(admin, path, &body, headers).problem(status);
    }
    ask(admin, path, "not json", &[]).problem(400);
    ask(admin, path, r#"{"routes":"","since":"soon"}"#, &[]).problem(422);
    ask(admin, "/api/v1/nothing", "{}", &[]).problem(404);
    assert_eq!(relay.get("/api/v1/routes/diff").status, 405);
}
