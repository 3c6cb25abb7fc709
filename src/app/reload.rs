//! Taking over what the routes file says now, or saying why not: all of it or nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::app::followed::{Held, Reading, Taken};
use crate::app::hex;
use crate::config::{self, Environment, Loaded, Problem, Problems, Secrets};
use crate::domain::route::RoutingTable;
use crate::domain::source::Source;
use crate::domain::target::Target;
use crate::domain::time::Clock;
use crate::telemetry::metrics::SharedMetrics;

/// A log is no place to read more of them: `check` shows each with its line.
const WARNINGS_LOGGED_MAX: usize = 10;

/// Loads the routes file, and says what was read for it. `asks_for_certificates`: the listener does,
/// without which no source can want one.
pub(super) fn reader(
    routes: PathBuf,
    environment: Arc<dyn Environment + Send + Sync>,
    asks_for_certificates: bool,
) -> impl FnMut() -> Reading<Tables> {
    move || {
        let config::Reading { outcome, files } =
            config::read(&routes, &*environment, Secrets::Resolve);
        let is_good = |loaded: &Loaded| {
            let mut sources = loaded.table.sources.iter();
            let wanting = sources.find(|source| source.client_certificate.is_some());
            match wanting.filter(|_| !asks_for_certificates) {
                None => Ok(()),
                Some(source) => Err(Problems::of(Problem::of_file(
                    &routes,
                    format!(
                        "source \"{}\" has a client_certificate, which no sender could show: it needs \
                         `serve --client-ca FILE`",
                        source.name
                    ),
                ))),
            }
        };
        (outcome.and_then(|loaded| is_good(&loaded).map(|()| loaded)), files)
    }
}

/// The table in force.
pub(super) struct Tables {
    pub(super) routes: PathBuf,
    pub(super) table: watch::Sender<Arc<RoutingTable>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: SharedMetrics,
    /// Lets those who follow the table by themselves only now and then do it at once.
    pub(super) follow: Box<dyn Fn() + Send>,
    pub(super) warnings: Problems,
    /// What was otherwise in the table in force than in the one before it.
    pub(super) changes: Changes,
}

impl Held for Tables {
    type Content = Loaded;
    type Error = Problems;

    fn put_in_force(&mut self, loaded: Loaded) -> Result<(), Problems> {
        let Loaded { table, warnings } = loaded;
        let table = Arc::new(table);
        let sha256 = hex(&table.sha256);
        let before = Arc::clone(&self.table.borrow());
        let changes = Changes::between(&before, &table);
        self.metrics.table(&sha256, self.clock.wall(), || {
            self.table.send_replace(Arc::clone(&table));
        });
        (self.follow)();
        tracing::info!(
            routes_sha256 = sha256,
            routes = table.routes().len(),
            targets_added = names(&changes.targets.added),
            targets_removed = names(&changes.targets.removed),
            targets_changed = names(&changes.targets.changed),
            sources_added = names(&changes.sources.added),
            sources_removed = names(&changes.sources.removed),
            sources_changed = names(&changes.sources.changed),
            "A new routing table is in force."
        );
        (self.warnings, self.changes) = (warnings, changes);
        self.warn();
        Ok(())
    }

    fn say_unchanged(&self) {
        let routes_sha256 = hex(&self.table.borrow().sha256);
        tracing::info!(routes_sha256, "The routes file is as it is in force.");
    }

    fn say_refused(&self, problems: &Problems) {
        tracing::warn!(
            routes = %self.routes.display(),
            %problems,
            "The routes file can't be used: the routing table from before stays in force."
        );
    }

    fn show_refused(&self, is_refused: bool) {
        self.metrics.reloaded(!is_refused);
    }
}

impl Tables {
    /// Logs what somebody should look at in the table in force.
    pub(super) fn warn(&self) {
        for warning in self.warnings.iter().take(WARNINGS_LOGGED_MAX) {
            tracing::warn!("{warning}");
        }
        let warnings = self.warnings.warnings();
        if warnings > WARNINGS_LOGGED_MAX {
            tracing::warn!(
                routes = %self.routes.display(),
                warnings,
                "The routes file has more warnings: `aryeo-relay check` shows them."
            );
        }
    }

    /// The same as the API says it.
    pub(super) fn warnings(&self) -> Vec<Value> {
        self.warnings.iter().map(Problem::json).collect()
    }

    /// The table in force, and what the last reload changed, as the API says it.
    pub(super) fn report(&self, last: Taken) -> Map<String, Value> {
        let table = self.table.borrow();
        let changes = match last {
            Taken::Changed => self.changes.clone(),
            Taken::Refused | Taken::Unchanged => Changes::default(),
        };
        let members = [
            ("sha256", json!(hex(&table.sha256))),
            ("routes", json!(table.routes().len())),
            ("targets", changes.targets.json()),
            ("sources", changes.sources.json()),
        ];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

fn names(names: &[Arc<str>]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(", "))
}

/// What is otherwise in a new table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    targets: Names,
    sources: Names,
}

/// Sorted names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    added: Vec<Arc<str>>,
    removed: Vec<Arc<str>>,
    changed: Vec<Arc<str>>,
}

impl Changes {
    fn between(before: &RoutingTable, now: &RoutingTable) -> Self {
        fn sources(table: &RoutingTable) -> BTreeMap<&Arc<str>, &Source> {
            table.sources.iter().map(|source| (&source.name, &**source)).collect()
        }
        fn targets(table: &RoutingTable) -> BTreeMap<&Arc<str>, &Target> {
            table.targets.iter().map(|(name, target)| (name, &**target)).collect()
        }
        Self {
            targets: Names::between(&targets(before), &targets(now)),
            sources: Names::between(&sources(before), &sources(now)),
        }
    }
}

impl Names {
    fn between<T: PartialEq>(
        before: &BTreeMap<&Arc<str>, &T>,
        now: &BTreeMap<&Arc<str>, &T>,
    ) -> Self {
        let mut names = Self::default();
        for (name, value) in now {
            match before.get(name) {
                None => names.added.push(Arc::clone(name)),
                Some(old) if old != value => names.changed.push(Arc::clone(name)),
                Some(_) => {}
            }
        }
        let gone = before.keys().filter(|name| !now.contains_key(*name));
        names.removed.extend(gone.map(|name| Arc::clone(name)));
        names
    }

    fn json(&self) -> Value {
        let [added, removed, changed] = [&self.added, &self.removed, &self.changed]
            .map(|names| names.iter().map(|name| &**name).collect::<Vec<&str>>());
        json!({ "added": added, "removed": removed, "changed": changed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::clock::SystemClock;
    use crate::app::followed::Followed;
    use crate::telemetry::logging::capture;
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn table(text: &str) -> RoutingTable {
        let environment = HashMap::from([("S".to_owned(), "s".to_owned())]);
        let path = std::path::Path::new("routes.yaml");
        config::load_bytes(text.as_bytes(), path, &environment, Secrets::Resolve).unwrap().table
    }

    #[test]
    fn what_changed_is_named() {
        let before = table(
            "sources: { a: { path: /a, verify: { scheme: aryeo, secrets: [{ env: S }] } } }\n\
             targets:\n\
             \x20 one: { url: http://one, sign: { scheme: none } }\n\
             \x20 two: { url: http://two, sign: { scheme: none } }\n\
             \x20 three: { url: http://three, sign: { scheme: none } }\n\
             routes: [{ name: r, to: [one, two, three] }]\n",
        );
        let now = table(
            "sources: { b: { path: /a, verify: { scheme: aryeo, secrets: [{ env: S }] } } }\n\
             targets:\n\
             \x20 three: { url: http://three, sign: { scheme: none }, timeout: 3s }\n\
             \x20 two: { url: http://two, sign: { scheme: none } }\n\
             \x20 zero: { url: http://zero, sign: { scheme: none } }\n\
             routes: [{ name: r, to: [two] }]\n",
        );
        let changes = Changes::between(&before, &now);
        let expected = json!({ "added": ["zero"], "removed": ["one"], "changed": ["three"] });
        assert_eq!(changes.targets.json(), expected);
        let expected = json!({ "added": ["b"], "removed": ["a"], "changed": [] });
        assert_eq!(changes.sources.json(), expected);
        assert_eq!(Changes::between(&now, &now), Changes::default());
    }

    /// What is logged, in a buffer.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        /// The levels of the events while `act` runs.
        fn of(act: impl FnOnce()) -> Vec<String> {
            let log = Self::default();
            let sink = log.clone();
            let subscriber =
                tracing_subscriber::fmt().json().with_writer(move || sink.clone()).finish();
            let guard = capture(subscriber);
            act();
            drop(guard);
            let bytes = log.0.lock().unwrap().clone();
            let events = String::from_utf8(bytes).unwrap();
            let level =
                |line: &str| serde_json::from_str::<Value>(line).unwrap()["level"].to_string();
            events.lines().map(level).map(|level| level.replace('"', "")).collect()
        }
    }

    const GOOD: &str = "sources: { a: { path: /a, verify: { scheme: aryeo, secrets: [{ env: S }] } } }\n\
         targets: { one: { url: http://one, sign: { scheme: none } } }\n\
         routes: [{ name: r, to: [one] }]\n";

    /// A table in force, its file, and how often those who follow it were woken.
    struct Relay {
        routes: tempfile::NamedTempFile,
        read: Box<dyn FnMut() -> Reading<Tables>>,
        tables: Followed<Tables>,
        followed: Arc<AtomicUsize>,
        first: [u8; 32],
    }

    impl Relay {
        fn start() -> Self {
            let routes = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&routes, GOOD).unwrap();
            let environment = HashMap::from([("S".to_owned(), "s".to_owned())]);
            let reads = || reader(routes.path().to_owned(), Arc::new(environment.clone()), false);
            let followed = Arc::new(AtomicUsize::new(0));
            let follows = Arc::clone(&followed);
            let metrics = SharedMetrics::default();
            metrics.reloaded(true);
            let tables = Followed::<Tables>::begin(reads(), |outcome| {
                outcome.map(|loaded| Tables {
                    routes: PathBuf::from("routes.yaml"),
                    table: watch::Sender::new(Arc::new(loaded.table)),
                    clock: Arc::new(SystemClock::start()),
                    metrics,
                    follow: Box::new(move || _ = follows.fetch_add(1, Ordering::Relaxed)),
                    warnings: Problems::default(),
                    changes: Changes::default(),
                })
            });
            let tables = tables.unwrap();
            let first = tables.held.table.borrow().sha256;
            let read = reads();
            Self { routes, read: Box::new(read), tables, followed, first }
        }

        /// The levels of what is logged when the file becomes this.
        fn told(&mut self, text: &str, asked: bool) -> String {
            std::fs::write(&self.routes, text).unwrap();
            let (outcome, files) = (self.read)();
            Log::of(|| self.tables.take(outcome, files, asked)).join(" ")
        }

        /// Whether the last reload was good, and the first table is in force.
        fn state(&self) -> (bool, bool) {
            let page = self.tables.held.metrics.render();
            let is_good = page.contains("relay_routes_last_reload_successful 1\n");
            (is_good, self.tables.held.table.borrow().sha256 == self.first)
        }
    }

    #[test]
    fn a_refusal_is_told_once_unless_somebody_asks_and_changes_nothing() {
        let mut relay = Relay::start();
        let mut told = |text: &str, asked| {
            let levels = relay.told(text, asked);
            let (is_good, is_first) = relay.state();
            (levels, is_good, is_first)
        };
        let is = |levels: &str, is_good, is_first| (levels.to_owned(), is_good, is_first);
        assert_eq!(told(GOOD, false), is("", true, true));
        assert_eq!(told(GOOD, true), is("INFO", true, true));
        assert_eq!(told("bad", false), is("WARN", false, true));
        assert_eq!(told("bad", false), is("", false, true));
        assert_eq!(told("bad", true), is("WARN", false, true));
        assert_eq!(told("worse", false), is("WARN", false, true));
        assert_eq!(told(GOOD, false), is("INFO", true, true));
        assert_eq!(relay.followed.load(Ordering::Relaxed), 0);
        let other = format!("{GOOD}unrouted: drop\n");
        assert_eq!(relay.told(&other, false), "INFO");
        assert_eq!((relay.state(), relay.followed.load(Ordering::Relaxed)), ((true, false), 1));
        assert_eq!(relay.told(&other, false), "");
    }

    #[test]
    fn of_a_table_with_many_warnings_a_few_are_logged_and_where_to_find_the_others() {
        let mut relay = Relay::start();
        let doubtful = |count| GOOD.replace("[one]", &format!("[{}one]", "one, ".repeat(count)));
        for (count, lines) in [(1, 1), (10, 10), (11, 11), (1000, 11)] {
            let told = relay.told(&doubtful(count), false);
            assert_eq!(told, format!("INFO{}", " WARN".repeat(lines)), "{count}");
        }
    }
}
