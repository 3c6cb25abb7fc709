//! What it costs to find the targets of a webhook, by the number and kind of the rules.
//!
//! The counter is one webhook: items per second are matches per second and core.

use std::sync::Arc;
use std::time::Duration;

use aryeo_relay::domain::pattern::Patterns;
use aryeo_relay::domain::retry::RetrySchedule;
use aryeo_relay::domain::route::{Route, RoutingTable, Subject, Unrouted};
use aryeo_relay::domain::signature::Signing;
use aryeo_relay::domain::target::{Target, TargetTls};
use aryeo_relay::domain::webhook::Resource;
use divan::Bencher;
use divan::counter::ItemsCount;
use http::Uri;

const RULES: [usize; 3] = [10, 1_000, 10_000];

fn main() {
    divan::main();
}

fn target() -> Target {
    Target {
        name: "crm".into(),
        url: Uri::from_static("http://127.0.0.1/"),
        sign: Signing::None,
        headers: Vec::new(),
        forward_headers: Vec::new(),
        timeout: Duration::from_secs(10),
        retry: RetrySchedule::default(),
        concurrency: 16,
        rate_limit: None,
        tls: TargetTls::default(),
    }
}

/// A table in which rule `n` asks for `activity(n)`.
fn table(rules: usize, activity: impl Fn(usize) -> String) -> RoutingTable {
    let target = target();
    let route = |number: usize| Route {
        name: format!("rule-{number}").into(),
        source: None,
        activity: Some(Patterns::new([activity(number)])),
        resource: None,
        to: vec![Arc::clone(&target.name)],
        headers: Vec::new(),
        end: false,
    };
    let routes = (0..rules).map(route).collect();
    RoutingTable::new(Vec::new(), vec![target.clone()], routes, Unrouted::Keep, [0; 32])
}

/// Asks for each of `names` in turn; the same number of rules has to want each.
fn matches(bencher: Bencher<'_, '_>, table: &RoutingTable, names: &[String], wanted: usize) {
    let resource = Resource { object: Some("ORDER".into()), id: None };
    let subject = |name| Subject { source: "aryeo", activity: Some(name), resource: &resource };
    for name in names {
        let rules: usize = table.route(subject(name)).iter().map(|d| d.routes.len()).sum();
        assert_eq!(rules, wanted, "rules that want {name}");
    }
    let mut names = names.iter().cycle();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let name = names.next().map_or("", |name| name);
        table.route(subject(divan::black_box(name)))
    });
}

fn spread(rules: usize) -> Vec<String> {
    (0..rules).step_by(rules.div_ceil(64)).map(|n| format!("ACTIVITY_{n}_HAPPENED")).collect()
}

/// Every rule names its activity; one wants this webhook.
#[divan::bench(args = RULES)]
fn exact_names(bencher: Bencher<'_, '_>, rules: usize) {
    let table = table(rules, |n| format!("ACTIVITY_{n}_HAPPENED"));
    matches(bencher, &table, &spread(rules), 1);
}

/// Every rule names an activity; none wants this webhook.
#[divan::bench(args = RULES)]
fn exact_names_unrouted(bencher: Bencher<'_, '_>, rules: usize) {
    let table = table(rules, |n| format!("ACTIVITY_{n}_HAPPENED"));
    matches(bencher, &table, &["NEVER_HEARD_OF".to_owned()], 0);
}

/// Every rule has a wildcard at its end; one wants this webhook.
#[divan::bench(args = RULES)]
fn wildcards(bencher: Bencher<'_, '_>, rules: usize) {
    let table = table(rules, |n| format!("ACTIVITY_{n}_*"));
    matches(bencher, &table, &spread(rules), 1);
}

/// Every rule has a wildcard at its beginning: what a common prefix can't decide.
#[divan::bench(args = RULES)]
fn wildcards_in_front(bencher: Bencher<'_, '_>, rules: usize) {
    let table = table(rules, |n| format!("*_{n}_HAPPENED"));
    matches(bencher, &table, &spread(rules), 1);
}
