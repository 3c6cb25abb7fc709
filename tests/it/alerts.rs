//! The alerts: they are good, each fires and keeps still, and each leads to what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use aryeo_relay::telemetry::reference::{Kind, Metric, REFERENCE, Values};
use serde_yaml::Value;

use crate::shipped::root;
use crate::support::promql::{Asked, Matcher, asked};
use crate::support::relay::{command, run};
use crate::support::tools::has;

/// The unit tests of the rules.
const TESTS: &[&str] = &["alerts.test.yaml", "alerts.long.test.yaml"];

/// What Prometheus or whoever runs it adds to every series.
const ADDED_LABELS: &[&str] = &["instance", "job", "namespace"];

pub(crate) fn folder_of_rules() -> PathBuf {
    root().join("deploy/prometheus")
}

fn read(name: &str) -> Value {
    serde_yaml::from_str(&fs::read_to_string(folder_of_rules().join(name)).unwrap()).unwrap()
}

/// A rule of the file: an alert or a record.
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) expression: String,
    /// None for a record.
    severity: Option<String>,
    annotations: BTreeMap<String, String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value:?}")).to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().unwrap_or_else(|| panic!("no list: {value:?}"))
}

/// All rules, records first.
pub(crate) fn rules() -> Vec<Rule> {
    let file = read("alerts.yaml");
    let rules = list(&file["groups"]).iter().flat_map(|group| list(&group["rules"]));
    let rule = |rule: &Value| Rule {
        name: text(if rule["alert"].is_null() { &rule["record"] } else { &rule["alert"] }),
        expression: text(&rule["expr"]),
        severity: rule["labels"]["severity"].as_str().map(str::to_owned),
        annotations: serde_yaml::from_value(rule["annotations"].clone()).unwrap_or_default(),
    };
    rules.map(rule).collect()
}

/// The metric of the reference that a series belongs to.
fn metric(series: &str) -> Option<&'static Metric> {
    let exact = REFERENCE.iter().find(|metric| metric.name == series);
    exact.filter(|metric| metric.kind != Kind::Histogram).or_else(|| {
        let mut base =
            ["_bucket", "_count", "_sum"].iter().filter_map(|end| series.strip_suffix(end));
        let base = base.next()?;
        REFERENCE.iter().find(|metric| metric.name == base && metric.kind == Kind::Histogram)
    })
}

/// Which labels the series of one name have, and which values each can have.
fn labels(series: &str) -> Option<BTreeMap<&'static str, Option<Vec<&'static str>>>> {
    let mut labels: BTreeMap<_, _> = ADDED_LABELS.iter().map(|label| (*label, None)).collect();
    if series == "up" {
        return Some(labels);
    }
    if series == "ALERTS" {
        // And those of what it is about.
        labels.extend(["alertname", "alertstate", "severity", "source"].map(|label| (label, None)));
        return Some(labels);
    }
    if let Some(rule) = rules().into_iter().find(|rule| rule.name == series) {
        let names = asked(&rule.expression).selectors;
        names.iter().for_each(|selector| labels.extend(self::labels(&selector.metric).unwrap()));
        return Some(labels);
    }
    for label in metric(series)?.labels {
        let closed = match label.values {
            Values::Closed(values) => Some(values()),
            Values::Configured(_) => None,
        };
        labels.insert(label.name, closed);
    }
    if series.ends_with("_bucket") {
        labels.insert("le", None);
    }
    Some(labels)
}

/// What an expression asks for and never gets.
pub(crate) fn mistakes(expression: &str) -> Vec<String> {
    let Asked { selectors, labels: grouped } = asked(expression);
    let mut mistakes = Vec::new();
    let mut all = BTreeMap::new();
    for selector in &selectors {
        let Some(labels) = labels(&selector.metric) else {
            mistakes.push(format!("there is no metric {}", selector.metric));
            continue;
        };
        for Matcher { label, value, .. } in &selector.matchers {
            match labels.get(&**label) {
                None => mistakes.push(format!("{} has no label {label}", selector.metric)),
                Some(None) => {}
                Some(Some(closed)) => mistakes.extend(
                    value
                        .split('|')
                        .filter(|value| !closed.contains(value))
                        .map(|value| format!("{} never has {label}={value}", selector.metric)),
                ),
            }
        }
        all.extend(labels);
    }
    let unknown = grouped.iter().filter(|label| !all.contains_key(&***label));
    mistakes.extend(unknown.map(|label| format!("nothing there has a label {label}")));
    mistakes
}

#[test]
fn promtool_calls_the_rules_good_and_their_tests_pass() {
    if !has("promtool", "--version") {
        return;
    }
    for (what, files) in [("check", &["alerts.yaml"][..]), ("test", TESTS)] {
        let words = [&[what, "rules"], files].concat();
        let ended = run(command("promtool").args(&words).current_dir(folder_of_rules()));
        assert_eq!(ended.code, Some(0), "{words:?}: {}{}", ended.stdout, ended.stderr);
    }
}

#[test]
fn each_alert_fires_in_one_test_and_is_silent_in_another() {
    let files = TESTS.iter().map(|name| read(name));
    let tests: Vec<Value> = files.flat_map(|file| list(&file["tests"]).to_vec()).collect();
    let mut firing = BTreeSet::new();
    let mut silent = BTreeSet::new();
    for test in &tests {
        let checks = list(&test["alert_rule_test"]).iter();
        let mut fired = BTreeSet::new();
        let mut looked = BTreeSet::new();
        for check in checks {
            let name = text(&check["alertname"]);
            let alerts = list(&check["exp_alerts"]);
            let severities = alerts.iter().map(|alert| text(&alert["exp_labels"]["severity"]));
            fired.extend(severities.map(|severity| (name.clone(), severity)));
            looked.insert(name);
        }
        // Not where it fires later: being silent before is another promise.
        let never = looked.into_iter().filter(|name| fired.iter().all(|(other, _)| other != name));
        silent.extend(never);
        firing.extend(fired);
    }
    let mut known = BTreeSet::new();
    for Rule { name, severity, .. } in rules() {
        let Some(severity) = severity else { continue };
        assert!(["critical", "warning"].contains(&&*severity), "{name}: {severity}");
        assert!(silent.contains(&name), "{name} has no test in which it is silent");
        known.insert((name, severity));
    }
    assert!(known.len() > 30, "{known:?}");
    assert_eq!(firing, known, "what fires in the tests, and what there is");
}

/// The paragraphs of a document by the anchors of their headings.
fn paragraphs(document: &str) -> BTreeMap<String, String> {
    let mut paragraphs = BTreeMap::new();
    let mut anchor = String::new();
    for line in document.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let letters = heading.to_lowercase().replace(' ', "-");
            anchor = letters.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect();
        }
        let paragraph: &mut String = paragraphs.entry(anchor.clone()).or_default();
        paragraph.push_str(line);
        paragraph.push('\n');
    }
    paragraphs
}

#[test]
fn each_alert_says_what_is_wrong_and_leads_to_a_paragraph_that_names_it() {
    let runbook = fs::read_to_string(root().join("deploy/README.md")).unwrap();
    let paragraphs = paragraphs(&runbook);
    for Rule { name, severity, annotations, .. } in rules() {
        let keys: Vec<&str> = annotations.keys().map(String::as_str).collect();
        if severity.is_none() {
            assert!(keys.is_empty(), "{name}: a record says nothing");
            continue;
        }
        assert_eq!(keys, ["description", "runbook_url", "summary"], "{name}");
        let anchor = annotations["runbook_url"].strip_prefix("deploy/README.md#");
        let anchor = anchor.unwrap_or_else(|| panic!("{name}: {annotations:?}"));
        let paragraph = paragraphs.get(anchor).unwrap_or_else(|| panic!("{name}: no #{anchor}"));
        assert!(paragraph.contains(&format!("`{name}`")), "#{anchor} does not name {name}");
    }
    let words = runbook.split(|c: char| !c.is_alphanumeric());
    let named: BTreeSet<&str> = words.filter(|word| is_like_an_alert(word)).collect();
    let known: Vec<String> = rules().into_iter().map(|rule| rule.name).collect();
    for name in named {
        assert!(known.iter().any(|other| other == name), "the runbook tells of {name}");
    }
}

fn is_like_an_alert(word: &str) -> bool {
    word.strip_prefix("Relay").is_some_and(|rest| rest.starts_with(char::is_uppercase))
}

#[test]
fn rules_ask_for_nothing_that_is_not_in_the_reference() {
    for Rule { name, expression, annotations, .. } in rules() {
        assert_eq!(mistakes(&expression), Vec::<String>::new(), "{name}");
        let known: BTreeSet<&str> = asked(&expression)
            .selectors
            .iter()
            .flat_map(|selector| labels(&selector.metric).unwrap().into_keys())
            .collect();
        for annotation in annotations.values() {
            for after in annotation.split("$labels.").skip(1) {
                let label = after.split(|c: char| !c.is_alphanumeric()).next().unwrap();
                assert!(known.contains(label), "{name} tells of a label {label}");
            }
        }
    }
}

#[test]
fn what_is_not_in_the_reference_is_a_mistake() {
    let expected: &[(&str, &[&str])] = &[
        ("rate(relay_attempts_total{outcome=\"delivered\"}[5m])", &[]),
        ("relay_gone_total", &["there is no metric relay_gone_total"]),
        ("relay_commit_duration_seconds", &["there is no metric relay_commit_duration_seconds"]),
        ("relay_commit_duration_seconds_bucket{le=\"1\"}", &[]),
        ("sum by (source) (up)", &["nothing there has a label source"]),
        ("relay_connections{target=\"crm\"}", &["relay_connections has no label target"]),
        (
            "relay_attempts_total{outcome=~\"timeout|lost\"}",
            &["relay_attempts_total never has outcome=lost"],
        ),
    ];
    for (expression, wanted) in expected {
        assert_eq!(&mistakes(expression), wanted, "{expression}");
    }
}
