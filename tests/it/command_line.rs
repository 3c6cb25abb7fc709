//! What an operator types, and exit statuses.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::relay::{BINARY, Background, Ended, command, folder, run};
use crate::support::routes::{SECRET, SOON, target_secret};
use crate::support::sender::Connection;
use crate::support::vectors::{activity, listing_delivered};
use crate::support::{Receiver, Request, Routes, Sender, TestRelay, eventually, sign};

fn relay(arguments: &[&str]) -> Ended {
    run(command(BINARY).args(arguments))
}

#[track_caller]
fn code(ended: &Ended, code: i32) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

const COMMANDS: [&str; 11] = [
    "serve",
    "demo",
    "check",
    "route",
    "test",
    "diff",
    "schema",
    "send",
    "receive",
    "certificate",
    "torture",
];

#[test]
fn help_and_version_go_to_stdout_with_0() {
    let help = relay(&["--help"]);
    code(&help, 0);
    for word in COMMANDS {
        assert!(help.stdout.contains(word), "{word} is not in:\n{}", help.stdout);
    }
    let version = relay(&["--version"]);
    code(&version, 0);
    assert_eq!(version.stdout.trim(), concat!("aryeo-relay ", env!("CARGO_PKG_VERSION")));
    for name in COMMANDS {
        code(&relay(&[name, "--help"]), 0);
    }
}

#[test]
fn wrong_usage_is_2_on_stderr() {
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["serve", "--no-such-flag"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--log-format", "xml"],
        &["serve", "--body-timeout", "soon"],
        &["check", "a.yaml", "b.yaml"],
        &["send", "--secret", "on the command line", "--url", "https://localhost"],
    ] {
        let ended = relay(arguments);
        code(&ended, 2);
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn check_says_yes_with_0_and_no_with_1_and_every_place() {
    let folder = folder();
    let file = folder.path().join("table.yaml");
    let routes = Routes::new().target("crm", "https://crm.example/hooks", &[]).all_to(&["crm"]);
    fs::write(&file, routes.yaml()).unwrap();
    let check = || {
        let mut check = command(BINARY);
        check.arg("check").arg("table.yaml").current_dir(folder.path());
        check.envs(routes.secrets().iter().map(|(name, value)| (name, value)));
        run(&mut check)
    };
    code(&check(), 0);

    let bad = routes
        .clone()
        .route("second", &["activty: x"], &["crm"])
        .route("third", &[], &["nobody"])
        .yaml();
    fs::write(&file, &bad).unwrap();
    let ended = check();
    code(&ended, 1);
    for mistake in ["activty", "nobody"] {
        let line = 1 + bad.lines().position(|line| line.contains(mistake)).unwrap();
        let column = 1 + bad.lines().nth(line - 1).unwrap().find(mistake).unwrap();
        let place = format!("table.yaml:{line}:{column}: error: ");
        let found = ended.stdout.contains(&place);
        assert!(found, "no {place:?} in:\n{}{}", ended.stdout, ended.stderr);
    }

    for bad in ["", "sources: [", "- a\n- b\n", "a: &x [*x]\n", "\u{0}", "sources: {}\nroutes: 5\n"]
    {
        fs::write(&file, bad).unwrap();
        let ended = check();
        code(&ended, 1);
        assert!(ended.stdout.contains("table.yaml:"), "{bad:?}: {ended:?}");
    }
    fs::remove_file(&file).unwrap();
    let ended = check();
    code(&ended, 1);
    assert!(format!("{ended:?}").contains("table.yaml"), "{ended:?}");
}

#[test]
fn check_quotes_the_line_and_says_what_was_meant() {
    let folder = folder();
    let routes = Routes::new().target("crm", "https://crm.example/hooks", &[]).all_to(&["crm"]);
    let bad = routes.clone().route("second", &[], &["cmr"]).yaml();
    fs::write(folder.path().join("table.yaml"), &bad).unwrap();
    let line = 1 + bad.lines().position(|line| line.contains("cmr")).unwrap();
    let column = 1 + bad.lines().nth(line - 1).unwrap().find("cmr").unwrap();
    let check = |arguments: &[&str]| {
        let mut check = command(BINARY);
        check.arg("check").args(arguments).arg("table.yaml").current_dir(folder.path());
        check.envs(routes.secrets().iter().map(|(name, value)| (name, value)));
        run(&mut check)
    };
    let ended = check(&[]);
    code(&ended, 1);
    let lines: Vec<_> = ended.stdout.lines().collect();
    let [problem, quote, carets, help, summary] = lines.as_slice() else { panic!("{ended:?}") };
    assert_eq!(*problem, format!("table.yaml:{line}:{column}: error: unknown target \"cmr\""));
    let source = bad.lines().nth(line - 1).unwrap();
    assert!(quote.starts_with(' ') && quote.ends_with(source), "{quote}");
    assert_eq!(carets.find('^'), quote.find("cmr"));
    assert_eq!(help.trim(), "= help: did you mean \"crm\"?");
    assert_eq!(*summary, "table.yaml: 1 error");

    let ended = check(&["--format", "json"]);
    code(&ended, 1);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&json["file"], &json["errors"]), (&"table.yaml".into(), &1.into()));
    let problem = &json["problems"][0];
    assert_eq!((&problem["line"], &problem["column"]), (&line.into(), &column.into()));
    assert_eq!(problem["end_column"], column + 3);
    assert_eq!(problem["help"], "did you mean \"crm\"?");
}

#[test]
fn check_takes_warnings_for_errors_only_when_it_is_told_to() {
    let folder = folder();
    let routes = Routes::new().target("crm", "https://crm.example/hooks", &[]).all_to(&["crm"]);
    let doubtful = routes.route("second", &["activity: LISTING_MERGD"], &["crm"]).yaml();
    fs::write(folder.path().join("table.yaml"), &doubtful).unwrap();
    let check = |arguments: &[&str]| {
        let mut check = command(BINARY);
        run(check.arg("check").args(arguments).arg("table.yaml").current_dir(folder.path()))
    };
    let ended = check(&["--no-secrets"]);
    code(&ended, 0);
    assert!(ended.stdout.contains("did you mean \"LISTING_MERGED\"?"), "{ended:?}");
    assert!(ended.stdout.ends_with("table.yaml: good, 3 warnings\n"), "{ended:?}");
    code(&check(&["--no-secrets", "--strict"]), 1);
    code(&check(&[]), 1);
}

#[test]
fn check_reads_the_standard_input() {
    let folder = folder();
    let file = folder.path().join("table.yaml");
    fs::write(&file, "sources: [\n").unwrap();
    let mut check = command(BINARY);
    let ended = run(check.args(["check", "-"]).stdin(fs::File::open(&file).unwrap()));
    code(&ended, 1);
    assert!(ended.stdout.starts_with("<stdin>:2:1: error: "), "{ended:?}");
}

#[test]
fn the_demo_shows_the_main_job_and_ends_with_0() {
    let folder = folder();
    let ended = run(command(BINARY).args(["demo", "--once"]).current_dir(folder.path()));
    code(&ended, 0);
    let text = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!text.contains('\u{1b}'), "colours in a pipe:\n{text}");
    assert!(ended.stdout.lines().count() >= 5, "{}", ended.stdout);
}

#[test]
fn certificate_makes_one_that_serves_and_replaces_nothing() {
    let folder = folder();
    let make = || run(command(BINARY).arg("certificate").current_dir(folder.path()));
    let ended = make();
    code(&ended, 0);
    let (certificate, key) =
        (folder.path().join("certs/tls.crt"), folder.path().join("certs/tls.key"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&key).unwrap();
    let again = make();
    assert_ne!(again.code, Some(2), "{again:?}");
    assert_eq!(fs::read(&key).unwrap(), before, "a key that is in use was overwritten");

    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes);
    fs::copy(&certificate, builder.path("certs/tls.crt")).unwrap();
    fs::copy(&key, builder.path("certs/tls.key")).unwrap();
    let relay = builder.start();
    let body = folder.path().join("body.json");
    fs::write(&body, listing_delivered("1")).unwrap();
    let url = format!("https://localhost:{}/webhooks/aryeo", relay.listen().port());
    let send = |more: &[&str], secret: &str| {
        let mut send = command(BINARY);
        send.args(["send", "--url", &url, "--secret-env", "SECRET"]).args(more);
        send.arg("--body").arg(&body).env("SECRET", secret);
        run(&mut send)
    };
    assert_eq!(send(&[], SECRET).code, Some(1), "nobody vouches for a development certificate");
    let sent = send(&["--insecure"], SECRET);
    code(&sent, 0);
    assert!(!format!("{sent:?}").contains(SECRET), "{sent:?}");
    let delivery = crm.wait_for(1).remove(0);
    assert_eq!(delivery.body, listing_delivered("1"));
    code(&send(&["--insecure"], "another"), 1);
    let ca = certificate.display().to_string();
    code(&send(&["--ca", &ca], SECRET), 0);
}

#[test]
fn receive_is_a_target_that_verifies_and_can_fail() {
    let mut receive = command(BINARY);
    receive.args([
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--secret-env",
        "CRM",
        "--fail-first",
        "2",
    ]);
    let target = Background::start(receive.env("CRM", target_secret("crm")));
    let url = address_of(&target);
    let routes = Routes::new().target("crm", &url, &[SOON]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let id = Sender::new(&relay).post(&activity("ORDER_CREATED", "1", "ORDER")).accepted();
    let settled = [("target", "crm"), ("settlement", "delivered")];
    relay.wait_for_metric("relay_deliveries_settled_total", &settled, 1.0);
    let attempts = relay.metrics().value("relay_attempts_total", &[("target", "crm")]);
    assert_eq!(attempts, 3.0, "the first two were told to come again");
    let lines = eventually("three lines", || {
        let lines = target.lines();
        let ours = lines.iter().filter(|line| line.contains("ORDER_CREATED")).count();
        if ours == 3 { Ok(lines) } else { Err(lines.join("\n")) }
    });
    let text = lines.join("\n");
    assert!(text.contains(&id), "{text}");
    assert!(!text.contains(&target_secret("crm")) && !text.contains("NOT"), "{text}");

    // Somebody else's signature.
    let address = url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let mut connection = Connection::open(address, None).unwrap();
    let forged = Request::unsigned("/", b"x").header("Signature", &sign("another", b"x"));
    assert_eq!(connection.send(&forged).unwrap().status, 401);
}

/// `check` on this table, without its secrets unless they are in the environment.
fn check(yaml: &str, secrets: &[(String, String)], flags: &[&str]) -> Ended {
    let folder = folder();
    fs::write(folder.path().join("table.yaml"), yaml).unwrap();
    let mut check = command(BINARY);
    check.args(["check", "table.yaml"]).args(flags).current_dir(folder.path());
    run(check.envs(secrets.iter().map(|(name, value)| (name, value))))
}

#[test]
fn check_is_as_strict_as_it_is_told_to_be() {
    let routes = Routes::new().target("crm", "https://crm.example/hooks", &[]).all_to(&["crm"]);
    let (yaml, secrets) = (routes.yaml(), routes.secrets());
    // The secret in the file is worth a warning.
    let open = yaml.replace("{ env: CRM_SECRET }", "{ value: \"open\" }");
    code(&check(&open, secrets, &[]), 0);
    code(&check(&open, secrets, &["--strict"]), 1);
    code(&check(&yaml, secrets, &["--strict"]), 0);
    // In CI the secrets are somewhere else.
    code(&check(&yaml, &[], &[]), 1);
    let without = check(&yaml, &[], &["--no-secrets"]);
    code(&without, 0);
    assert!(without.stdout.contains(": warning: "), "{without:?}");
    assert!(without.stdout.contains("CRM_SECRET"), "{without:?}");
    code(&check(&yaml, &[], &["--no-secrets", "--strict"]), 1);
    code(&check(&yaml.replace("url:", "adress:"), &[], &["--no-secrets"]), 1);
}

#[test]
fn check_answers_on_stdout_as_text_or_as_json() {
    let routes = Routes::new().target("crm", "https://crm.example/hooks", &[]).all_to(&["crm"]);
    let bad = routes.yaml().replace("url:", "adress:").replace("[crm]", "[nobody]");
    let text = check(&bad, routes.secrets(), &[]);
    code(&text, 1);
    assert!(text.stderr.is_empty(), "problems are the result: {text:?}");
    let json = check(&bad, routes.secrets(), &["--format", "json"]);
    code(&json, 1);
    assert!(json.stderr.is_empty(), "{json:?}");
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let problems = report["problems"].as_array().unwrap();
    let of = |severity| problems.iter().filter(|one| one["severity"] == severity).count();
    assert_eq!(
        (&report["errors"], &report["warnings"]),
        (&of("error").into(), &of("warning").into())
    );
    assert!(of("error") > 0 && report["file"] == "table.yaml", "{report}");
    for problem in problems {
        assert_eq!(problem["file"], "table.yaml");
        let severity = problem["severity"].as_str().unwrap();
        let (line, column) = (&problem["line"], &problem["column"]);
        let message = problem["message"].as_str().unwrap();
        let same = format!("table.yaml:{line}:{column}: {severity}: {message}");
        assert!(text.stdout.lines().any(|other| other == same), "no {same:?} in {}", text.stdout);
    }
    let good = check(&routes.yaml(), routes.secrets(), &["--format", "json"]);
    code(&good, 0);
    let report: serde_json::Value = serde_json::from_str(&good.stdout).unwrap();
    let nothing = serde_json::json!({
        "file": "table.yaml", "errors": 0, "warnings": 0, "unlisted": 0, "problems": [],
    });
    assert_eq!(report, nothing);
}

#[test]
fn certificate_is_for_more_names_and_replaces_only_by_force() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let builder = TestRelay::with(&routes);
    let make = |flags: &[&str]| {
        let mut make = command(BINARY);
        run(make.arg("certificate").args(flags).current_dir(builder.path("")))
    };
    let key = || fs::read(builder.path("certs/tls.key")).unwrap();
    let before = key();
    let refused = make(&["--name", "relay.test"]);
    code(&refused, 1);
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(key(), before);
    code(&make(&["--force", "--name", "no name"]), 2);
    assert_eq!(key(), before);
    code(&make(&["--force", "--name", "relay.test", "--name", "192.0.2.7"]), 0);
    assert_ne!(key(), before);
    let relay = builder.start();
    let names = relay.metrics().labels("relay_certificate_expiry_timestamp_seconds", "certificate");
    assert_eq!(names, ["localhost, 127.0.0.1, ::1, relay.test, 192.0.2.7"]);
}

#[test]
fn send_sends_as_many_as_asked_and_unsigned_on_request() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).plain_http().start();
    let url = format!("http://{}/webhooks/aryeo", relay.listen());
    let send = |flags: &[&str]| {
        let mut send = command(BINARY);
        send.args(["send", "--url", &url]).args(flags);
        run(send.env("ARYEO_WEBHOOK_SECRET", SECRET))
    };
    let sent = send(&["ORDER_CREATED", "--repeat", "3"]);
    code(&sent, 0);
    assert!(sent.stdout.contains("3 of 3 taken"), "{sent:?}");
    let received = crm.wait_for(3);
    let mut ids: Vec<&str> = received.iter().map(|one| one.webhook_id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has an id of its own");
    assert!(received.iter().all(|one| one.header("relay-activity") == Some("ORDER_CREATED")));
    let unsigned = send(&["--unsigned"]);
    code(&unsigned, 1);
    assert!(unsigned.stdout.contains("401"), "{unsigned:?}");
    code(&send(&["--unsigned", "--secret-env", "X"]), 2);
    // What is taken at once is sent once, whatever the schedule.
    let retried = send(&["--retry"]);
    code(&retried, 0);
    assert_eq!(crm.wait_for(4).len(), 4);
}

/// Where a `receive` says that it listens.
pub(crate) fn address_of(target: &Background) -> String {
    eventually("it says where it listens", || {
        let lines = target.lines();
        let words = lines.iter().flat_map(|line| line.split([' ', ',']));
        words.map(str::to_owned).find(|word| word.starts_with("http://127.0.0.1:"))
    })
}

#[test]
fn receive_answers_with_the_status_and_after_the_delay_it_is_told() {
    let receive = |flags: &[&str]| {
        let mut receive = command(BINARY);
        receive.args(["receive", "--listen", "127.0.0.1:0"]).args(flags);
        Background::start(&mut receive)
    };
    let (teapot, sloth) = (receive(&["--status", "418"]), receive(&["--delay", "1h"]));
    let routes = Routes::new()
        .target("teapot", &address_of(&teapot), &[SOON])
        .target("sloth", &address_of(&sloth), &["timeout: 200ms", SOON])
        .all_to(&["teapot", "sloth"]);
    let relay = TestRelay::with(&routes).start();
    Sender::new(&relay).post(&listing_delivered("1")).accepted();
    for (target, outcome) in [("teapot", "status"), ("sloth", "timeout")] {
        let labels = [("target", target), ("outcome", outcome)];
        eventually(&format!("{target}: {outcome}"), || {
            relay.metrics().value("relay_attempts_total", &labels) >= 1.0
        });
    }
    eventually("it shows what it answered", || {
        let lines = teapot.lines();
        lines.iter().any(|line| line.ends_with("418")).then_some(()).ok_or(lines.join("\n"))
    });
}
