//! The page that Prometheus reads is what is written of it, in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use aryeo_relay::telemetry::reference::{Kind, Label, Metric, REFERENCE, Values};

use crate::shipped::root;
use crate::support::metrics::Metrics;
use crate::support::relay::command;
use crate::support::routes::SOON;
use crate::support::tools::can_go_on;
use crate::support::vectors::{activity, listing_delivered};
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay, eventually};

/// The reference for people.
const DOCUMENT: &str = "deploy/metrics.md";

/// A relay to which most has happened that can: deliveries that are made, fail, end and wait, requests that are
/// refused, reloads that succeed and fail.
fn busy() -> TestRelay {
    let crm =
        Receiver::start(|received| Reply::Status(if received.number == 1 { 500 } else { 200 }));
    let gone = Receiver::start(|_| Reply::Status(410));
    let routes = Routes::new()
        .source("other", "/other", &["s", "t"], &["body_limit: 1KiB"])
        .target("crm", &crm.url(), &[SOON])
        .target("gone", &gone.url(), &[SOON])
        .target("held", &crm.url(), &["paused: true"])
        .route("all", &["activity: [\"LISTING_*\", SPELLED_OUT]"], &["crm", "gone", "held"]);
    let relay = TestRelay::with(&routes).start();
    let mut sender = Sender::new(&relay);
    sender.post(&listing_delivered("1")).accepted();
    sender.post(&listing_delivered("1")).duplicate();
    for name in ["SPELLED_OUT", "MADE_UP"] {
        sender.post(&activity(name, name, "LISTING")).accepted();
    }
    sender.post(b"bare").accepted();
    Sender::new(&relay).secret("another").post(b"x").problem(401);
    Sender::new(&relay).path("/other").secret("t").post(&[b'x'; 2000]).problem(413);
    Sender::new(&relay).path("/elsewhere").post(b"x").problem(404);
    for (target, settlement) in [("crm", "delivered"), ("gone", "dead_letter")] {
        let labels = [("target", target), ("settlement", settlement)];
        relay.wait_for_metric("relay_deliveries_settled_total", &labels, 2.0);
    }
    let file = relay.path("routes.yaml");
    let table = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{table}\n# The same, otherwise written.\n")).unwrap();
    let tables = || relay.metrics().labels("relay_routes_info", "sha256").len();
    eventually("the new table is in force", || tables() == 2);
    std::fs::write(&file, "routes: [").unwrap();
    relay.wait_for_metric("relay_routes_last_reload_successful", &[], 0.0);
    relay
}

/// The words behind a mark, by the name that follows it.
fn described<'a>(page: &'a str, mark: &str) -> BTreeMap<&'a str, &'a str> {
    let lines = page.lines().filter_map(|line| line.strip_prefix(mark));
    let all: Vec<(&str, &str)> = lines.map(|line| line.split_once(' ').unwrap()).collect();
    let by_name: BTreeMap<_, _> = all.iter().copied().collect();
    assert_eq!(by_name.len(), all.len(), "a metric is described twice");
    by_name
}

#[test]
fn the_page_of_a_busy_relay_is_what_the_reference_says() {
    let page = busy().metrics();
    let (helps, types) = (described(&page.text, "# HELP "), described(&page.text, "# TYPE "));
    let mut expected = BTreeMap::new();
    let mut series = BTreeSet::new();
    for metric in REFERENCE {
        assert_eq!(helps.get(metric.name), Some(&metric.help), "{}", metric.name);
        expected.insert(metric.name, metric.kind.name());
        series.extend(check(metric, &page));
    }
    assert_eq!(types, expected, "what the page says there is, and what the reference does");
    assert_eq!(page.names(), series, "no sample is of anything else");
    assert_eq!(expected.len(), REFERENCE.len(), "a metric is twice in the reference");
}

/// Holds the samples of a metric against what is said of it; tells the names that they have.
fn check(metric: &Metric, page: &Metrics) -> Vec<String> {
    let Metric { name, kind, unit, labels, .. } = metric;
    let is_total = name.ends_with("_total");
    assert_eq!(is_total, *kind == Kind::Counter, "{name}: a counter says so in its name");
    if let Some(unit) = unit.filter(|unit| *unit != metrics::Unit::Count) {
        let base = name.trim_end_matches("_total");
        assert!(base.ends_with(&format!("_{}", unit.as_str())), "{name} does not say its unit");
    }
    let names = match kind {
        Kind::Counter | Kind::Gauge => vec![(*name).to_owned()],
        Kind::Histogram => ["bucket", "sum", "count"].map(|end| format!("{name}_{end}")).to_vec(),
    };
    for series in &names {
        let mut wanted: Vec<&str> = labels.iter().map(|label| label.name).collect();
        if series.ends_with("_bucket") && *kind == Kind::Histogram {
            wanted.push("le");
            let bounds = metric.buckets().unwrap().iter().map(f64::to_string);
            let mut bounds: Vec<String> = bounds.chain(["+Inf".to_owned()]).collect();
            bounds.sort();
            assert_eq!(page.labels(series, "le"), bounds, "{series}");
        }
        wanted.sort_unstable();
        assert_eq!(page.label_names(series), [wanted], "{series}");
        for Label { name, values } in *labels {
            if let Values::Closed(values) = values {
                let mut values = values();
                values.sort_unstable();
                assert_eq!(page.labels(series, name), values, "{series} {name}");
            }
        }
    }
    names
}

#[test]
fn promtool_calls_the_page_of_a_busy_relay_clean() {
    let page = busy().get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let spawned = command("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let what = "promtool is missing: `tests/all --prepare` installs it";
    if !can_go_on(spawned.is_ok(), what) {
        return;
    }
    let mut child = spawned.unwrap();
    child.stdin.take().unwrap().write_all(&page.body).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.trim().is_empty(), "{text}");
}

/// What people read of a label.
fn told(label: &Label) -> String {
    let values = match label.values {
        Values::Configured(words) => words.to_owned(),
        Values::Closed(values) => {
            let values: Vec<String> = values().iter().map(|value| format!("`{value}`")).collect();
            values.join(", ")
        }
    };
    format!("`{}`: {values}", label.name)
}

/// A bound as it is on the page.
fn bounds(metric: &Metric) -> String {
    let bounds: Vec<String> = metric.buckets().unwrap().iter().map(f64::to_string).collect();
    format!("up to {}", bounds.join(", "))
}

fn document() -> String {
    let mut text = "# Metrics\n\n\
        All that `/metrics` of the admin address shows, made from `src/telemetry/reference.rs` and held against a busy\n\
        relay by `tests/it/reference.rs`. Names, types and labels are an API. Series of a closed set of values are there\n\
        from the start, at 0; no value is made by a sender. What to do when one looks bad: [the runbook](README.md).\n\n\
        | metric | type | unit | what it says | labels, buckets |\n| --- | --- | --- | --- | --- |\n"
        .to_owned();
    for metric in REFERENCE {
        let Metric { name, kind, unit, help, labels } = metric;
        let unit = unit.map_or("", |unit| unit.as_str());
        let mut more: Vec<String> = labels.iter().map(told).collect();
        if *kind == Kind::Histogram {
            more.push(bounds(metric));
        }
        let (kind, more) = (kind.name(), more.join("; "));
        writeln!(text, "| `{name}` | {kind} | {unit} | {help} | {more} |").unwrap();
    }
    text
}

#[test]
fn the_reference_for_people_is_up_to_date() {
    let file = root().join(DOCUMENT);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, document()).unwrap();
    }
    let shipped = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(shipped == document(), "{DOCUMENT} is old: BLESS=1 writes it anew");
}
