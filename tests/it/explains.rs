//! `route` and `test`: what a table does, told without sending anything.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use crate::support::relay::{BINARY, Ended, command, folder, run};
use crate::support::{Receiver, Routes, TestRelay};

/// A table with conditions and headers. None of its secrets is set anywhere.
const TABLE: &str = r#"
sources:
  aryeo:
    path: /webhooks/aryeo
    verify: { scheme: aryeo, secrets: [{ env: NOT_SET_ANYWHERE }] }
targets:
  crm:
    url: https://crm.internal/
    sign: { scheme: aryeo, secrets: [{ file: /no/such/file }] }
    headers: { X-Token: { env: NOT_SET_EITHER }, X-Id: "{resource_id}" }
  desk: { url: "https://desk.internal/", sign: { scheme: none } }
routes:
  - { name: orders, activity: "ORDER_*", to: [crm] }
  - { name: large, activity: "ORDER_*", when: { /resource/total: { gte: 100 } }, to: [desk], final: true }
  - { name: rest, resource: GROUP, to: [desk] }
"#;

fn relay(arguments: &[&str]) -> Ended {
    run(command(BINARY).args(arguments))
}

fn table(folder: &Path) -> String {
    let file = folder.join("routes.yaml");
    fs::write(&file, TABLE).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn route_tells_for_each_route_why_and_shows_no_secret() {
    let folder = folder();
    let routes = table(folder.path());
    let body = folder.path().join("body.json");
    fs::write(&body, r#"{"object":"ACTIVITY","name":"ORDER_PLACED","resource":{"object":"ORDER","id":"o-1","total":99.5}}"#).unwrap();
    let body = body.to_str().unwrap();
    let ended = relay(&["route", "--routes", &routes, body, "--expect", "crm"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in [
        "source aryeo, activity ORDER_PLACED, resource ORDER o-1",
        "yes  orders  -> crm",
        "no   large   when: /resource/total: {gte: 100}; the body has 99.5",
        "no   rest    resource: ORDER is not among GROUP",
        "x-token: (secret from env:NOT_SET_EITHER)",
        "x-id: o-1",
        "signature: (made with file:/no/such/file)",
    ] {
        assert!(ended.stdout.contains(part), "{part} is not in\n{}", ended.stdout);
    }
    let other = relay(&["route", "--routes", &routes, body, "--expect", "desk,crm"]);
    assert_eq!(other.code, Some(1));
    assert!(other.stdout.contains("expected crm, desk, found crm"), "{other:?}");
}

#[test]
fn route_reads_stdin_and_takes_an_activity_alone_and_speaks_json() {
    let folder = folder();
    let routes = table(folder.path());
    let mut child = command(BINARY)
        .args(["route", "--routes", &routes, "-", "--format", "json", "--expect", "desk"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"object":"GROUP","name":"Ada"}"#).unwrap();
    let ended = child.wait_with_output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((ended.status.code(), &json["as_expected"]), (Some(0), &true.into()));
    assert_eq!(json["activity"], serde_json::Value::Null);
    assert_eq!(json["routes"][0]["because"], "activity");
    assert_eq!(json["targets"][0]["target"], "desk");
    let alone = relay(&[
        "route",
        "--routes",
        &routes,
        "--activity",
        "LISTING_MERGED",
        "--expect",
        "unrouted",
    ]);
    assert_eq!(alone.code, Some(0), "{alone:?}");
    assert!(alone.stdout.contains("goes nowhere: kept as unrouted"), "{alone:?}");
    let nothing = relay(&["route", "--routes", &routes]);
    assert_eq!(nothing.code, Some(2), "{nothing:?}");
    let source = relay(&["route", "--routes", &routes, "--source", "other", "--activity", "A"]);
    assert_eq!(source.code, Some(2));
    assert!(source.stderr.contains("unknown source \"other\": there is aryeo"), "{source:?}");
}

#[test]
fn route_asks_the_table_in_force_of_a_running_relay() {
    let crm = Receiver::willing();
    let relay_ = TestRelay::with(&Routes::new().target("crm", &crm.url(), &[]).route(
        "orders",
        &["activity: \"ORDER_*\""],
        &["crm"],
    ))
    .start();
    let admin = format!("http://{}", relay_.admin());
    let ended =
        relay(&["route", "--admin", &admin, "--activity", "ORDER_PLACED", "--expect", "crm"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("yes  orders  -> crm"), "{ended:?}");
    assert!(ended.stdout.contains("signature: (made with env:CRM_SECRET)"), "{ended:?}");
    let wrong = relay(&["route", "--admin", &admin, "--source", "x", "--activity", "A"]);
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains("unknown source"), "{wrong:?}");
    assert_eq!(crm.count(), 0);
}

#[test]
fn tests_of_the_rules_fail_readably_and_count_what_they_cover() {
    let folder = folder();
    table(folder.path());
    let file = folder.path().join("routes.test.yaml");
    fs::write(
        &file,
        "routes: routes.yaml\ntests:\n  - name: good\n    activity: ORDER_PLACED\n    expect: [crm]\n  \
         - name: large ones reach the desk\n    body: { object: ACTIVITY, name: ORDER_PLACED, resource: { total: 99 } }\n    \
         expect: [desk]\n    headers: { desk: { X-A: b } }\n  - { activity: LISTING_MERGED, expect: unrouted }\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let ended = relay(&["test", file, "--fail-under", "50"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in [
        "routes.test.yaml:6: large ones reach the desk",
        "  expected  desk",
        "  found     crm",
        "  crm by route orders",
        "  desk not by route large: when: /resource/total: {gte: 100}; the body has 99",
        "  x-a of desk: expected \"b\", found nothing",
        "2 passed, 1 failed",
        "routes: 1 of 3 covered, 33 %; without a test: large, rest",
        "less than --fail-under 50",
    ] {
        assert!(ended.stdout.contains(part), "{part} is not in\n{}", ended.stdout);
    }
    let json = relay(&["test", file, "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["passed"], &json["failed"]), (&2.into(), &1.into()));
    assert_eq!(json["failures"][0]["line"], 6);
    assert_eq!(json["routes"]["missing"], serde_json::json!(["large", "rest"]));

    fs::write(file, "routes: routes.yaml\ntests:\n  - { activity: A, expekt: crm }\n").unwrap();
    let wrong = relay(&["test", file]);
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.stdout.contains("routes.test.yaml:3:20: error: unknown key \"expekt\""),
        "{wrong:?}"
    );
}

#[test]
fn the_shipped_tests_cover_the_shipped_table() {
    let ended = run(command(BINARY)
        .args(["test", "tests/data/routes.test.yaml", "--fail-under", "100"])
        .current_dir(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("0 failed"), "{ended:?}");
}

#[test]
fn a_file_that_can_not_be_used_is_told_as_json_where_that_is_asked() {
    let folder = folder();
    let routes = folder.path().join("routes.yaml");
    fs::write(&routes, "sources: {}\ntargets: {}\nroutes: []\nunrouted: kepp\n").unwrap();
    let routes = routes.to_str().unwrap();
    let value = |words: &[&str]| -> serde_json::Value {
        let ended = relay(words);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    };
    let checked = value(&["check", routes, "--format", "json"]);
    assert_eq!(checked["problems"][3]["help"], "did you mean \"keep\"?");
    let told = value(&["route", "--routes", routes, "--activity", "A", "--format", "json"]);
    assert_eq!(told, checked);
    let missing = value(&["test", "no-such-file.yaml", "--format", "json"]);
    assert_eq!(missing["broken"][0]["file"], "no-such-file.yaml");
    let text = relay(&["test", "no-such-file.yaml"]);
    assert!(!text.stdout.contains("100 %"), "nothing is summed up: {text:?}");
}
