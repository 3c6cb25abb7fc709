//! The corpus in `tests/data/routes`, and the shipped file.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::domain::route::{Subject, Unrouted};
use crate::domain::signature::{Scheme, Signing, TIMESTAMP};
use crate::domain::source::DuplicateWindows;
use crate::domain::target::BacklogLimit;
use crate::domain::template::{HeaderRule, HeaderText};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Resource, WebhookId};

/// Every variable is set, unless its name says otherwise.
pub(super) struct TestEnvironment;

impl Environment for TestEnvironment {
    fn var(&self, name: &str) -> Option<String> {
        match name {
            _ if name.starts_with("UNSET_") => None,
            _ if name.starts_with("EMPTY_") => Some(String::new()),
            _ if name.starts_with("WHSEC_") => {
                let key = match name {
                    "WHSEC_SHORT" => "x".repeat(23),
                    "WHSEC_LONG" => "x".repeat(65),
                    _ => format!("{name:->32}"),
                };
                Some(format!("whsec_{}", BASE64_STANDARD.encode(key)))
            }
            _ => Some(format!("value of {name}")),
        }
    }
}

pub(super) fn corpus(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new("tests/data/routes").join(folder);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().unwrap() == "yaml").collect();
    files.sort();
    files
}

pub(super) fn load_file(path: &Path) -> Result<Loaded, Problems> {
    load(path, &TestEnvironment, Secrets::Resolve)
}

pub(super) fn load_text(text: &str) -> Result<Loaded, Problems> {
    load_bytes(text.as_bytes(), Path::new("routes.yaml"), &TestEnvironment, Secrets::Resolve)
}

#[track_caller]
pub(super) fn problems_of(text: &str) -> String {
    load_text(text).expect_err("it has errors").to_string()
}

/// Writes the expected texts anew instead of comparing them: look at the difference before
/// committing it.
fn is_blessed() -> bool {
    std::env::var_os("BLESS").is_some()
}

/// What is said of a file, as it is in the text beside it.
#[track_caller]
fn compare_texts(files: &[PathBuf], problems_of: impl Fn(&Path) -> Problems) {
    let mut differences = Vec::new();
    for path in files {
        let folder = format!("{}/", path.parent().unwrap().display());
        let problems = problems_of(path);
        let found = format!("{problems}\n").replace(&format!("{folder}../"), "../");
        let found = found.replace(&folder, "");
        let text = path.with_extension("txt");
        if is_blessed() {
            fs::write(&text, &found).unwrap();
        }
        let expected = fs::read_to_string(&text).unwrap_or_default();
        if found != expected {
            differences.push(format!("{}\nexpected:\n{expected}found:\n{found}", path.display()));
        }
        assert_is_laid_out(&problems.to_string(), &problems, path);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// That each problem has one line that scripts find and parse, and that no other line looks so.
#[track_caller]
fn assert_is_laid_out(text: &str, problems: &Problems, path: &Path) {
    let file = format!("{}:", path.display());
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&file)).collect();
    assert_eq!(lines.len(), problems.iter().count(), "{text}");
    for (line, problem) in lines.iter().zip(problems) {
        assert_eq!(*line, problem.to_string());
        let rest = line.strip_prefix(&file).unwrap();
        let place = problem.position.map(|at| format!("{}:{}: ", at.line, at.column));
        let rest = rest.strip_prefix(place.as_deref().unwrap_or(" ")).unwrap();
        assert!(rest.starts_with("error: ") || rest.starts_with("warning: "), "{line}");
    }
    let others = text.lines().filter(|line| !line.starts_with(&file));
    assert!(others.clone().all(|line| line.starts_with(' ') || line.starts_with("and ")), "{text}");
}

#[test]
fn every_bad_file_is_told_exactly_what_is_wrong_with_it() {
    let files = corpus("bad");
    assert!(files.len() >= 60, "{} files", files.len());
    compare_texts(&files, |path| load_file(path).expect_err(&path.display().to_string()));
}

#[test]
fn every_doubtful_file_loads_and_is_told_what_to_look_at() {
    let files = corpus("warn");
    assert!(files.len() >= 8, "{} files", files.len());
    compare_texts(&files, |path| {
        let loaded = load_file(path).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(!loaded.warnings.is_empty(), "{}", path.display());
        loaded.warnings
    });
}

#[test]
fn a_file_with_many_warnings_is_used_and_all_of_them_are_counted() {
    let text = fs::read_to_string("tests/data/routes/good/minimal.yaml").unwrap();
    let again = "crm, ".repeat(300);
    let loaded = load_text(&text.replace("[crm]", &format!("[{again}crm]"))).unwrap();
    let warnings = &loaded.warnings;
    assert_eq!((warnings.errors(), warnings.warnings()), (0, 300));
    assert_eq!(warnings.iter().count() + warnings.unlisted(), 300);
    assert!(warnings.unlisted() > 0);
}

#[test]
fn no_text_of_the_corpus_has_a_secret_in_it() {
    for path in [corpus("bad"), corpus("warn")].concat() {
        let text = fs::read_to_string(path.with_extension("txt")).unwrap();
        for secret in ["s3cr3t", "value of", "AKIA", "b1946ac9", "T3kAb9"] {
            assert!(!text.contains(secret), "{}", path.display());
        }
    }
}

#[test]
fn every_good_file_loads() {
    let files = corpus("good");
    assert!(!files.is_empty());
    for path in files {
        let loaded = load_file(&path).map_err(|problems| problems.to_string());
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.table.sha256, <[u8; 32]>::from(Sha256::digest(fs::read(&path).unwrap())));
        // The secret in the file itself, and a default of TLS that only one target could use.
        let allowed = if path.ends_with("every-key.yaml") { 2 } else { 0 };
        assert_eq!(
            loaded.warnings.warnings(),
            allowed,
            "{}: {:?}",
            path.display(),
            loaded.warnings
        );
    }
}

fn fixed(rule: &HeaderRule) -> Option<&http::HeaderValue> {
    match &rule.value {
        HeaderText::Fixed(value) | HeaderText::Secret { value, .. } => Some(value),
        HeaderText::Template(_) => None,
    }
}

#[test]
fn every_key_reaches_the_table() {
    let loaded = load_file(Path::new("tests/data/routes/good/every-key.yaml")).unwrap();
    let table = loaded.table;
    let (source, _) = table.source("/webhooks/aryeo").unwrap();
    assert!(source.verify.claims(&TIMESTAMP), "the scheme is aryeo-timestamped");
    let labels: Vec<_> = source.verify.secrets().iter().map(|secret| secret.label()).collect();
    assert_eq!(labels, ["env:NEW", "file:../files/secret.txt", "value"]);
    let proofs: Vec<_> = source.verify.header_names().collect();
    assert_eq!(proofs, ["x-aryeo-signature", "x-sender"]);
    assert_eq!(source.activity.as_deref(), Some("ORDER_CREATED"));
    let (source_of_path, activity) = table.source("/webhooks/in/LISTING_MERGED").unwrap();
    assert_eq!((&*source_of_path.name, activity.as_deref()), ("unsigned", Some("LISTING_MERGED")));
    assert_eq!(source.body_bytes_max, 64_000);
    let inside = ["192.0.2.9", "2001:db8::1", "198.51.100.7"].map(|text| text.parse().ok());
    let outside = ["192.0.3.1", "198.51.100.8"].map(|text| text.parse().ok());
    assert!(inside.into_iter().all(|address| source.is_open_to(address)));
    assert!(!outside.into_iter().any(|address| source.is_open_to(address)));
    assert!(!source.is_open_to(None) && source_of_path.is_open_to(None));
    assert_eq!(source.rate_limit, rate("100/s").ok());
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let windows = DuplicateWindows { activities: hours(48), bare: Duration::from_secs(300) };
    assert_eq!(source.duplicates, windows);
    assert_eq!(source.silence_after, Duration::from_secs(5400));

    let crm = &table.targets["crm"];
    assert_eq!(crm.url, "https://crm.internal:8443/hooks/aryeo?tenant=a");
    let Signing::With { scheme, secret, header, .. } = &crm.sign else { panic!("{:?}", crm.sign) };
    assert_eq!((*scheme, secret.label()), (Scheme::AryeoTimestamped, "env:CRM_NEW"));
    assert_eq!(header, "x-signature");
    let headers: HashMap<_, _> =
        crm.headers.iter().filter_map(|rule| Some((rule.name.as_str(), fixed(rule)?))).collect();
    assert_eq!(headers["x-braces"], "{a}");
    assert_eq!(headers["authorization"], "Bearer value of TOKEN");
    assert_eq!(headers["x-from-file"], "from a file");
    assert!(headers["authorization"].is_sensitive() && !headers["x-tenant"].is_sensitive());
    assert_eq!(crm.forward_headers, ["x-request-id", "x-aryeo-event"]);
    assert_eq!(crm.timeout, Duration::from_millis(2500));
    assert_eq!((crm.retry.first, crm.retry.max), (Duration::from_millis(100), hours(2)));
    assert_eq!((crm.retry.keep_for, &*crm.retry.give_up_on), (hours(14 * 24), &[404, 410][..]));
    assert_eq!((crm.concurrency, crm.rate_limit), (3, rate("600/m").ok()));
    assert_eq!(crm.backlog_limit, BacklogLimit::Bytes(2 << 30));
    assert_eq!(table.targets["lake"].backlog_limit, BacklogLimit::Percent(25));
    assert!(!crm.paused && table.targets["lake"].paused, "its own, and that of defaults");
    let identity = crm.tls.identity.as_ref().unwrap();
    assert!(identity.key.starts_with(b"-----BEGIN PRIVATE KEY"));
    assert_eq!(crm.tls.ca.as_ref(), Some(&identity.certificate));
    assert_eq!(crm.tls.server_name.as_deref(), Some("crm.example"));

    let route = &table.routes()[0];
    assert!(route.end && route.resource.is_some() && route.source.is_some());
    assert_eq!(fixed(&route.headers[0]).unwrap(), "orders");
    let when: Vec<_> = route.when.iter().map(ToString::to_string).collect();
    assert_eq!(
        when,
        [
            r#"/object: "ACTIVITY""#,
            "/resource/total: {gte: 100.50, lt: 1e6}",
            r#"/resource/tags/0: {not: {in: ["a", 1, null, true]}}"#,
            r#"/resource/city: {prefix: "R", suffix: "o", exists: true}"#,
            "/resource/number: 12345678901234567890",
        ]
    );
    assert_eq!(route.to, [Arc::from("crm"), Arc::from("lake")]);
    assert_eq!(table.unrouted, Unrouted::Drop);
}

#[test]
fn each_scheme_of_a_target_has_its_header_and_the_secrets_that_sign() {
    let table = load_file(Path::new("tests/data/routes/good/schemes.yaml")).unwrap().table;
    for (target, scheme, header_names, labels) in [
        ("plain", Some(Scheme::Aryeo), &["signature"][..], &["env:NEW"][..]),
        ("mirror", Some(Scheme::Github), &["x-hub-signature-256"], &["env:NEW"]),
        (
            "partner",
            Some(Scheme::StandardWebhooks),
            &["webhook-signature", "webhook-id", "webhook-timestamp"],
            &["env:WHSEC_NEW", "file:../files/whsec.txt"],
        ),
        (
            "renamed",
            Some(Scheme::StandardWebhooks),
            &["x-sig", "webhook-id", "webhook-timestamp"],
            &["env:WHSEC_NEW"],
        ),
        ("nobody", None, &[], &[]),
    ] {
        let sign = &table.targets[target].sign;
        assert_eq!(sign.scheme(), scheme, "{target}");
        assert_eq!(sign.header_names(), header_names, "{target}");
        assert!(sign.secrets().map(|secret| secret.label()).eq(labels.iter().copied()), "{target}");
    }
    // The file's is "whsec_" and base64 of these bytes.
    let key = crate::domain::signature::Secret::new("s", b"from a file, and as base64").unwrap();
    assert!(table.targets["partner"].sign.secrets().nth(1).unwrap().signs_as(&key));
}

#[test]
fn a_secret_that_is_not_there_has_no_form_that_could_be_wrong() {
    let path = Path::new("tests/data/routes/good/schemes.yaml");
    let problems = check(path, &HashMap::new(), Secrets::Warn);
    assert_eq!((problems.errors(), problems.warnings()), (0, 7), "{problems}");
}

#[test]
fn how_long_a_secret_is_that_is_not_there_is_not_known() {
    let path = Path::new("tests/data/routes/warn/key-lengths.yaml");
    let problems = check(path, &HashMap::new(), Secrets::Warn);
    assert!(problems.iter().all(|problem| problem.message.ends_with("is not set")), "{problems}");
    let ignored = check(path, &HashMap::new(), Secrets::Ignore);
    assert_eq!(ignored.iter().count(), 0, "{ignored}");
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let table = load_file(Path::new("tests/data/routes/good/minimal.yaml")).unwrap().table;
    let (source, _) = table.source("/").unwrap();
    assert_eq!(source.body_bytes_max, 2 * 1024 * 1024);
    assert_eq!(source.verify.signature_header().unwrap(), "signature");
    assert_eq!(source.verify.header_names().count(), 1);
    assert_eq!(source.silence_after, Duration::from_secs(86_400));
    assert_eq!(source.duplicates, DuplicateWindows::default());
    let target = &table.targets["crm"];
    assert_eq!((target.timeout, target.concurrency), (Duration::from_secs(10), 16));
    assert!(!target.paused);
    assert_eq!(target.retry, crate::domain::retry::RetrySchedule::default());
    assert_eq!((target.rate_limit, source.rate_limit), (None, None));
    assert_eq!(target.backlog_limit, BacklogLimit::Percent(50));
    assert_eq!(table.unrouted, Unrouted::Keep);
}

#[test]
fn the_shipped_file_is_clean_without_its_secrets_and_routes_as_it_says() {
    let path = Path::new("routes.yaml");
    let nothing = HashMap::new();
    let problems = check(path, &nothing, Secrets::Warn);
    assert_eq!((problems.errors(), problems.warnings()), (0, 8), "{problems}");
    assert_eq!(check(path, &nothing, Secrets::Resolve).errors(), 8);
    let loaded = load_file(path).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let reached = |activity| {
        let resource = Resource::default();
        let routed = loaded.table.route(&Subject {
            webhook_id: WebhookId::from_key(1),
            received_at: Timestamp::from_millis(0),
            source: "aryeo",
            activity,
            resource: &resource,
            body: b"",
        });
        routed
            .deliveries
            .iter()
            .map(|delivery| delivery.target.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(reached(None), "warehouse");
    assert_eq!(reached(Some("LISTING_DELIVERED")), "warehouse media-site crm");
    assert_eq!(reached(Some("ORDER_PLACED")), "warehouse crm billing chat-notifier");
    assert_eq!(reached(Some("ORDER_VIEWED")), "warehouse");
    assert_eq!(reached(Some("APPOINTMENT_CUSTOMER_REMINDER_SENT")), "warehouse");
}

#[test]
fn a_stand_in_for_a_missing_secret_proves_nothing_to_anybody() {
    let path = Path::new("routes.yaml");
    let secrets = || {
        let loaded = load(path, &HashMap::new(), Secrets::Warn).unwrap();
        loaded.table.sources[0].verify.secrets().to_vec()
    };
    assert_ne!(secrets(), secrets());
}

#[test]
fn no_problem_shows_a_secret() {
    let text = r#"
sources:
  a: { path: /, verify: { scheme: aryeo, secrets: [{ value: 12345678 }, { value: s3cr3t, env: B }] } }
targets:
  t:
    url: "https://u:s3cr3t@host/"
    sign: { scheme: aryeo, secrets: [{ value: s3cr3t }], secret: s3cr3t }
    headers: { X-A: { env: "A", prefix: "s3cr3t é" } }
routes: [{ name: r, to: [t] }]
"#;
    let problems = problems_of(text);
    assert!(!problems.contains("s3cr3t") && !problems.contains("value of"), "{problems}");
    assert!(!problems.contains("12345678"), "{problems}");
}

#[test]
fn a_file_that_is_missing_too_large_or_a_folder_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.yaml");
    let name = path.display();
    let said = || load_file(&path).unwrap_err().to_string();
    assert!(said().starts_with(&format!("{name}: error: the file can't be read: No such file")));
    fs::write(&path, vec![b'#'; ROUTES_FILE_BYTES_MAX + 1]).unwrap();
    assert_eq!(said(), format!("{name}: error: the file is larger than 16777216 bytes"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(said().starts_with(&format!("{name}: error: the file can't be read: ")), "{}", said());
}

#[test]
fn ten_thousand_routes_load() {
    let mut text = fs::read_to_string("tests/data/routes/good/minimal.yaml").unwrap();
    let (head, _) = text.split_once("routes:").unwrap();
    let routes: String = (0..10_000)
        .map(|n| format!("  - {{ name: r{n}, activity: [A{n}, \"B{n}_*\"], to: [crm] }}\n"))
        .collect();
    text = format!("{head}routes:\n{routes}");
    assert_eq!(load_text(&text).unwrap().table.routes().len(), 10_000);
}

#[test]
fn what_deserves_a_look_is_a_warning_and_no_error() {
    let text = fs::read_to_string("tests/data/routes/good/base.yaml").unwrap();
    let text = text
        .replace("    path: /webhooks/aryeo\n", "    path: /a\n    duplicates: { bare: 10s }\n")
        .replace("{ env: CRM_SECRET }", "{ value: x }")
        .replace("to: [crm, billing]", "to: [crm, crm]\n    source: \"z*\"");
    let warnings = load_text(&text).unwrap().warnings;
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "routes.yaml:4:25: warning: bare is shorter than 2m, so that the sender's own retries are \
             delivered again",
            "routes.yaml:10:47: warning: a secret in the file itself: {env: NAME} or {file: PATH} hide it",
            "routes.yaml:11:3: warning: no route sends anything to target \"billing\"",
            "routes.yaml:18:15: warning: target \"crm\" is in this list already",
            "routes.yaml:19:13: warning: no source matches \"z*\"",
        ]
    );
}
