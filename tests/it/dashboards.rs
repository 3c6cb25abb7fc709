//! The dashboard, and a real Prometheus that scrapes a real relay: every query finds data.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aryeo_relay::telemetry::reference::{Kind, REFERENCE};
use serde_json::Value;

use crate::alerts::{folder_of_rules, mistakes, rules};
use crate::reload::replace;
use crate::shipped::root;
use crate::support::eventually::pause;
use crate::support::picture::{Panel, draw};
use crate::support::prometheus::{FOREIGN, Found, Prometheus};
use crate::support::promql::asked;
use crate::support::routes::SOON;
use crate::support::tools::has;
use crate::support::vectors::activity;
use crate::support::{Receiver, Reply, Routes, Sender, TestRelay, eventually};

const DASHBOARD: &str = "deploy/grafana/aryeo-relay.json";
const PICTURE: &str = "deploy/grafana/aryeo-relay.svg";

/// Set to a number of seconds, so much load is shown in the picture, and it is written.
const DRAW: &str = "RELAY_TEST_PICTURE";

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join(DASHBOARD)).unwrap()).unwrap()
}

/// The panels that show something.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

/// An expression as Grafana sends it.
fn filled(expression: &str) -> String {
    filled_for("aryeo-relay", expression)
}

/// The same with these jobs.
fn filled_for(jobs: &str, expression: &str) -> String {
    [
        ("$__rate_interval", "5s"),
        ("$__range", "1h"),
        ("$job", jobs),
        ("$source", "aryeo|brief|other"),
        ("$target", ".+"),
    ]
    .iter()
    .fold(expression.to_owned(), |text, (name, value)| text.replace(name, value))
}

fn queries(panel: &Value) -> Vec<String> {
    let targets = panel["targets"].as_array().unwrap().iter();
    targets.map(|target| filled(target["expr"].as_str().unwrap())).collect()
}

#[test]
fn the_dashboard_asks_for_nothing_that_is_not_in_the_reference_and_shows_all_of_it() {
    let dashboard = dashboard();
    let mut shown = BTreeSet::new();
    for panel in panels(&dashboard) {
        for query in queries(panel) {
            assert_eq!(mistakes(&query), Vec::<String>::new(), "{}: {query}", panel["title"]);
            assert!(!query.contains('$'), "a variable that nobody sets: {query}");
            shown.extend(asked(&query).selectors.into_iter().map(|selector| selector.metric));
        }
    }
    let records = rules().into_iter().filter(|rule| shown.contains(&rule.name));
    let under: Vec<String> = records
        .flat_map(|rule| asked(&rule.expression).selectors)
        .map(|selector| selector.metric)
        .collect();
    shown.extend(under);
    for metric in REFERENCE {
        let is_shown = match metric.kind {
            Kind::Counter | Kind::Gauge => shown.contains(metric.name),
            Kind::Histogram => shown.iter().any(|name| name.starts_with(metric.name)),
        };
        assert!(is_shown, "no panel shows {}", metric.name);
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let [x, y, w, h] = place(panel);
        assert!(x + w <= 24, "{title} is out of the page");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies over another");
        }
        if panel["type"] != "row" {
            assert!(panel["fieldConfig"]["defaults"].is_object(), "{title}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|known| known["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "source", "target"]);
    for variable in &variables[1..] {
        let query = variable["query"]["query"].as_str().unwrap();
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "));
        let (series, label) = inner.unwrap();
        assert_eq!(label.strip_suffix(')'), variable["name"].as_str());
        assert_eq!(mistakes(&filled(series)), Vec::<String>::new(), "{query}");
    }
    // Whoever imports it says where its data is.
    let text = dashboard.to_string();
    let sources = text.matches("\"uid\":\"${datasource}\"").count();
    assert_eq!(sources, text.matches("\"type\":\"prometheus\"").count());
}

/// Where a panel lies, and how large it is.
fn place(panel: &Value) -> [u64; 4] {
    ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap())
}

/// A relay to which things happen that are to be seen.
struct World {
    relay: TestRelay,
    routes: Routes,
    _targets: Vec<Receiver>,
}

impl World {
    fn start() -> Self {
        let crm = Receiver::start(|received| {
            Reply::Status(if received.number.is_multiple_of(20) { 503 } else { 200 })
        });
        let billing = Receiver::willing();
        let archive = Receiver::start(|received| {
            Reply::Status(if received.number.is_multiple_of(30) { 410 } else { 200 })
        });
        let search = Receiver::start(|_| Reply::Status(500));
        let routes = Routes::new()
            .source("other", "/other", &["s"], &["body_limit: 1KiB"])
            .source("brief", "/brief", &["s"], &["silence_after: 1m"])
            .target("crm", &crm.url(), &[SOON, "headers: { X-Order: \"{body:/order}\" }"])
            .target("billing", &billing.url(), &[SOON])
            .target("archive", &archive.url(), &[SOON])
            .target("search", &search.url(), &[SOON])
            .target("partner", &billing.url(), &["paused: true"])
            .route("orders", &["activity: \"ORDER_*\""], &["crm", "billing", "search"])
            .route("listings", &["activity: \"LISTING_*\""], &["crm", "archive", "partner"]);
        let relay = TestRelay::with(&routes).start();
        Self { relay, routes, _targets: vec![crm, billing, archive, search] }
    }

    /// One round of what senders do; the signatures of one source are all wrong.
    fn round(&self, sender: &mut Sender, id: &str, number: u32) {
        for name in ["ORDER_CREATED", "ORDER_PLACED", "LISTING_DELIVERED", "NOBODY_KNOWS"] {
            sender.post(&activity(name, &format!("{name}-{id}-{number}"), "ORDER")).accepted();
        }
        let again = activity("ORDER_PLACED", &format!("ORDER_PLACED-{id}-{number}"), "ORDER");
        sender.post(&again).duplicate();
        Sender::new(&self.relay).path("/other").secret("wrong").post(b"x").problem(401);
        if number.is_multiple_of(10) {
            Sender::new(&self.relay).path("/other").secret("s").post(&[b'x'; 2000]).problem(413);
        }
    }

    /// Does that until told to stop, more often and less in turns.
    fn load(&self, id: &str, stop: &AtomicBool) {
        let mut sender = Sender::new(&self.relay);
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            self.round(&mut sender, id, number);
            let wave = (f64::from(number) / 30.0).sin() + 1.2;
            pause(Duration::from_millis(80).mul_f64(wave));
        }
    }
}

/// Stops the load also where a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_query_of_dashboard_and_alerts_finds_data_in_a_real_prometheus() {
    if !has("prometheus", "--version") {
        return;
    }
    let world = World::start();
    let rules_file = folder_of_rules().join("alerts.yaml");
    let prometheus = Prometheus::of(world.relay.admin(), &rules_file);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for id in ["a", "b", "c"] {
            let (world, stop) = (&world, &stop);
            scope.spawn(move || world.load(id, stop));
        }
        check(&prometheus);
        other_programs_are_not_shown(&prometheus);
        let seconds = std::env::var(DRAW).ok().map(|text| text.parse::<u32>().unwrap());
        // The load is to be seen; nothing is waited for.
        pause(Duration::from_secs(seconds.unwrap_or_default().into()));
        let picture = picture(&prometheus, seconds.unwrap_or(5));
        if seconds.is_some() {
            fs::write(picture_file(), &picture).unwrap();
        }
        assert_shows_all(&picture);
        silence_is_a_share_of_what_each_source_may_be_silent(&world, &prometheus);
    });
    assert_shows_all(&fs::read_to_string(picture_file()).unwrap_or_default());
}

fn picture_file() -> PathBuf {
    root().join(PICTURE)
}

fn finds(prometheus: &Prometheus, expression: &str, whose: &str) {
    eventually(&format!("{whose}: {expression} finds data"), || {
        let found = prometheus.query(expression)?;
        let mut values = found.iter().flat_map(|series| &series.values);
        if values.any(|(_, value)| !value.is_nan()) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn check(prometheus: &Prometheus) {
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        for query in queries(panel) {
            finds(prometheus, &query, &panel["title"].to_string());
        }
    }
    for rule in rules() {
        // That an alert does not fire is good; that what it looks at is not there would not be.
        prometheus.query(&rule.expression).unwrap();
        for selector in asked(&rule.expression).selectors {
            finds(prometheus, &selector.text, &rule.name);
        }
    }
    // And the one that ought to, does.
    let firing =
        "ALERTS{alertstate=\"firing\",alertname=\"RelaySignaturesRejected\",source=\"other\"}";
    finds(prometheus, firing, "the sender has another secret");
}

/// What Grafana puts in the place of a variable of which all is chosen.
fn all_of(variable: &Value, prometheus: &Prometheus) -> String {
    if let Some(fixed) = variable["allValue"].as_str() {
        return fixed.to_owned();
    }
    let query = variable["query"]["query"].as_str().unwrap();
    let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let (series, label) = inner.and_then(|rest| rest.rsplit_once(", ")).unwrap();
    let found = prometheus.query(&filled(series)).unwrap();
    let values: BTreeSet<&str> = found.iter().map(|series| series.label(label)).collect();
    values.into_iter().collect::<Vec<_>>().join("|")
}

/// Whatever else Prometheus looks at.
fn other_programs_are_not_shown(prometheus: &Prometheus) {
    for known in ["up", "process_cpu_seconds_total"] {
        finds(prometheus, &format!("{known}{{job=\"{FOREIGN}\"}}"), "another program is there");
    }
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let jobs = variables.iter().find(|variable| variable["name"] == "job").unwrap();
    let jobs = all_of(jobs, prometheus);
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let query = filled_for(&jobs, target["expr"].as_str().unwrap());
            for selector in asked(&query).selectors {
                let found = prometheus.query(&selector.text).unwrap();
                let is_ours = found.iter().all(|series| series.label("job") != FOREIGN);
                assert!(is_ours, "{}: {query}: {found:?}", panel["title"]);
            }
        }
    }
}

/// The one that is late is to be seen beside one that is not, and no more when it is gone.
fn silence_is_a_share_of_what_each_source_may_be_silent(world: &World, prometheus: &Prometheus) {
    Sender::new(&world.relay).path("/brief").secret("s").post(&activity("A", "1", "B")).accepted();
    let dashboard = dashboard();
    let panel = panels(&dashboard).into_iter().find(|panel| panel["title"] == "Silence").unwrap();
    let query = &queries(panel)[0];
    // A second of its minute is more; of the day that others have, a quarter of an hour would be.
    finds(prometheus, &format!("{query} > 0.01"), "it is late");
    let without = world.routes.yaml().replace("/brief", "/gone").replace("  brief:", "  gone:");
    replace(&world.relay, "routes.yaml", &without);
    finds(prometheus, &format!("{query} < 0.01"), "it is gone");
}

/// The dashboard with what its queries find, of the last seconds.
fn picture(prometheus: &Prometheus, seconds: u32) -> String {
    let dashboard = dashboard();
    let now = prometheus.query("vector(time())").unwrap()[0].values[0].1;
    let from = now - f64::from(seconds);
    let all = dashboard["panels"].as_array().unwrap();
    let shown = all.iter().map(|panel| {
        let mut series = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = filled(target["expr"].as_str().unwrap());
            let found = if target["instant"] == true {
                prometheus.query(&query).unwrap()
            } else {
                prometheus.range(&query, from, now, 60)
            };
            let legend = target["legendFormat"].as_str().unwrap();
            series.extend(found.into_iter().map(|found| (called(legend, &found), found)));
        }
        Panel { panel, place: place(panel), series }
    });
    draw(&shown.collect::<Vec<_>>())
}

/// A legend with the labels that it names.
fn called(legend: &str, found: &Found) -> String {
    let mut parts = legend.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (label, rest) = part.split_once("}}").unwrap();
        text += &format!("{}{rest}", found.label(label));
    }
    text
}

fn assert_shows_all(picture: &str) {
    for panel in panels(&dashboard()) {
        let title = panel["title"].as_str().unwrap();
        let is_there = picture.contains(&format!(">{title}</text>"));
        assert!(is_there, "{PICTURE} does not show {title}: {DRAW}=120 draws it anew");
    }
}
