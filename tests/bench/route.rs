//! What it costs to find the targets of a webhook, by the number and kind of the rules, and to load
//! the rules.
//!
//! The counter is one webhook: items per second are matches per second and core.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use aryeo_relay::config::{self, Secrets};
use aryeo_relay::domain::condition::{Condition, Scalar, Test};
use aryeo_relay::domain::pattern::Patterns;
use aryeo_relay::domain::pointer::{Pointer, Pointers};
use aryeo_relay::domain::retry::RetrySchedule;
use aryeo_relay::domain::route::{Route, RoutingTable, Rules, Subject};
use aryeo_relay::domain::signature::Signing;
use aryeo_relay::domain::target::{BacklogLimit, Target, TargetTls};
use aryeo_relay::domain::time::Timestamp;
use aryeo_relay::domain::webhook::{Resource, WebhookId};
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
        pointers: Pointers::default(),
        forward_headers: Vec::new(),
        timeout: Duration::from_secs(10),
        retry: RetrySchedule::default(),
        concurrency: 16,
        rate_limit: None,
        backlog_limit: BacklogLimit::default(),
        paused: false,
        tls: TargetTls::default(),
    }
}

/// Rule `number` of a table, which asks for `activity`.
fn rule(number: usize, activity: String) -> Route {
    Route {
        name: format!("rule-{number}").into(),
        source: None,
        activity: Some(Patterns::new([activity])),
        resource: None,
        when: Vec::new(),
        to: vec!["crm".into()],
        headers: Vec::new(),
        end: false,
    }
}

/// A table in which rule `n` asks for `activity(n)`.
fn table(rules: usize, activity: impl Fn(usize) -> String) -> RoutingTable {
    let routes = (0..rules).map(|number| rule(number, activity(number))).collect();
    RoutingTable::new(Rules { targets: vec![target()], routes, ..Rules::default() })
}

fn subject<'a>(activity: &'a str, resource: &'a Resource, body: &'a [u8]) -> Subject<'a> {
    Subject {
        webhook_id: WebhookId::from_key(1),
        received_at: Timestamp::from_millis(1_700_000_000_000),
        source: "aryeo",
        activity: Some(activity),
        resource,
        body,
    }
}

/// Asks for each of `names` in turn; the same number of rules has to want each.
fn matches(bencher: Bencher<'_, '_>, table: &RoutingTable, names: &[String], wanted: usize) {
    let resource = Resource { object: Some("ORDER".into()), id: None };
    for name in names {
        let routed = table.route(&subject(name, &resource, b"{}"));
        let rules: usize = routed.deliveries.iter().map(|d| d.routes.len()).sum();
        assert_eq!(rules, wanted, "rules that want {name}");
    }
    let mut names = names.iter().cycle();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let name = names.next().map_or("", |name| name);
        table.route(&subject(divan::black_box(name), &resource, b"{}"))
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

/// Every rule wants the same activity, and another value inside a body of 26 KB; one has it.
#[divan::bench(args = RULES)]
fn conditions(bencher: Bencher<'_, '_>, rules: usize) {
    let mut pointers = Pointers::default();
    let pointer = Pointer::parse("/resource/customer/id").expect("a pointer");
    let id = pointers.add(&pointer);
    let routes = (0..rules).map(|number| {
        let test = Test::Equals(Scalar::Text(format!("customer-{number}").into()));
        let when = vec![Condition { pointer: pointer.clone(), id, test }];
        Route { when, ..rule(number, "ORDER_CREATED".to_owned()) }
    });
    let routes = routes.collect();
    let table =
        RoutingTable::new(Rules { targets: vec![target()], routes, pointers, ..Rules::default() });
    let padding = "\"n\":[1,2,3],\"t\":\"".to_owned() + &"x".repeat(26_000) + "\"";
    let body = format!(
        "{{\"object\":\"ACTIVITY\",\"resource\":{{{padding},\"customer\":{{\"id\":\"customer-7\"}}}}}}"
    );
    let resource = Resource::default();
    let route =
        || table.route(&subject("ORDER_CREATED", &resource, divan::black_box(body.as_bytes())));
    assert_eq!(route().deliveries.len(), 1);
    bencher.counter(ItemsCount::new(1_usize)).bench_local(route);
}

/// Loads and checks a file in which every rule has an activity, a pattern, a condition and a header;
/// nothing is wrong with it.
#[divan::bench(args = [10_000], sample_count = 20)]
fn load(bencher: Bencher<'_, '_>, rules: usize) {
    let rules: String = (0..rules)
        .map(|n| {
            format!(
                "  - name: rule-{n}\n    activity: [ORDER_CREATED, \"LISTING_*\"]\n    \
                 when: {{ /resource/id: \"{n}\" }}\n    to: [crm]\n    \
                 headers: {{ X-Rule: \"{n} {{activity}}\" }}\n"
            )
        })
        .collect();
    let text = format!(
        "sources: {{ a: {{ path: /a, verify: {{ scheme: aryeo, secrets: [{{ env: A }}] }} }} }}\n\
         targets: {{ crm: {{ url: http://127.0.0.1/, sign: {{ scheme: none }} }} }}\nroutes:\n{rules}"
    );
    let secrets = HashMap::from([("A".to_owned(), "secret".to_owned())]);
    let load = || {
        let path = Path::new("routes.yaml");
        config::load_bytes(text.as_bytes(), path, &secrets, Secrets::Resolve).expect("a good file")
    };
    assert!(load().warnings.is_empty());
    bencher.bench_local(load);
}
