//! `test`: runs tests of the rules, and tells which rules none of them covers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::Verdict;
use crate::cli::check::{self, Format, print_problem};
use crate::cli::output::{Output, Style};
use crate::cli::route::named;
use crate::config::{self, Body, Problems, ProcessEnvironment, RoutingTest, RoutingTests, Secrets};
use crate::domain::explain::{Explanation, headers};
use crate::domain::known;
use crate::domain::question::{Case, Question};
use crate::domain::route::RoutingTable;

/// What `--help` says before the flags.
pub const ABOUT: &str = "\
Run tests of the rules: files that name webhooks and the targets that each is to reach.

    routes: routes.yaml
    tests:
      - name: a cancelled appointment reaches scheduling only
        activity: APPOINTMENT_CANCELED     # or body: {…}, or body_file: a.json
        expect: [scheduling]               # or unrouted
        headers: { scheduling: { X-Tenant: realtour } }

No secret is looked up. A route is covered when a test's webhook matches it.";

/// More than any source takes.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The flags of `test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files of tests
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Fail where less of the routes is covered
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub fail_under: Option<u8>,
    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// What came of one test.
struct Outcome {
    /// The routes that its webhook matches, by number.
    matched: Vec<usize>,
    activity: Option<Box<str>>,
    failure: Option<Failure>,
}

/// Why a test failed, as lines for a person.
struct Failure {
    expected: String,
    found: String,
    details: Vec<String>,
}

/// A table, and which of it tests have reached.
struct Covered {
    table: Arc<RoutingTable>,
    routes: BTreeSet<usize>,
    activities: BTreeSet<Box<str>>,
}

/// All that is told at the end.
#[derive(Default)]
struct Sum {
    passed: usize,
    failures: Vec<Value>,
}

/// Runs the tests of all files.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let output = Output::new();
    let mut tables: BTreeMap<PathBuf, Covered> = BTreeMap::new();
    let mut sum = Sum::default();
    let mut broken = Vec::new();
    for file in &args.files {
        match load(file, &mut tables) {
            Ok(tests) => {
                let Some(covered) = tables.get_mut(&tests.routes) else { continue };
                let outcomes = run_all(&covered.table, &tests.tests);
                for (test, outcome) in tests.tests.iter().zip(outcomes) {
                    covered.routes.extend(&outcome.matched);
                    covered.activities.extend(outcome.activity);
                    sum.take(&output, args.format, file, test, outcome.failure);
                }
            }
            Err(problems) => {
                if args.format == Format::Text {
                    problems.iter().for_each(|problem| print_problem(&output, problem));
                }
                broken.push(check::json(file, &problems));
            }
        }
    }
    let coverage = Coverage::of(&tables);
    let enough = args.fail_under.is_none_or(|percent| coverage.percent() >= f64::from(percent));
    match args.format {
        Format::Json => output.line(json!({
            "passed": sum.passed,
            "failed": sum.failures.len(),
            "failures": sum.failures,
            "broken": broken,
            "routes": coverage.routes.json(),
            "activities": coverage.activities.json(),
        })),
        // Where no file could be used there is nothing to sum up.
        Format::Text if tables.is_empty() => {}
        Format::Text => coverage.print(&output, &sum, args.fail_under.filter(|_| !enough)),
    }
    let good = broken.is_empty() && enough && sum.failures.is_empty();
    Ok(if good { Verdict::Yes } else { Verdict::No })
}

/// The tests of a file, with their table loaded.
fn load(file: &Path, tables: &mut BTreeMap<PathBuf, Covered>) -> Result<RoutingTests, Problems> {
    let tests = config::load_tests(file)?;
    if !tables.contains_key(&tests.routes) {
        let loaded = config::load(&tests.routes, &ProcessEnvironment, Secrets::Ignore)?;
        let table = Arc::new(loaded.table);
        let covered = Covered { table, routes: BTreeSet::new(), activities: BTreeSet::new() };
        tables.insert(tests.routes.clone(), covered);
    }
    Ok(tests)
}

/// Runs tests on all cores; the outcomes in their order.
fn run_all(table: &RoutingTable, tests: &[RoutingTest]) -> Vec<Outcome> {
    let numbers: HashMap<&str, usize> =
        table.routes().iter().enumerate().map(|(number, route)| (&*route.name, number)).collect();
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let share = tests.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let numbers = &numbers;
        let begun: Vec<_> = tests
            .chunks(share)
            .map(|tests| {
                scope.spawn(move || {
                    tests.iter().map(|test| one(table, numbers, test)).collect::<Vec<_>>()
                })
            })
            .collect();
        let ended = begun.into_iter().map(|thread| thread.join());
        ended.flat_map(|outcomes| outcomes.expect("a test does not panic")).collect()
    })
}

fn one(table: &RoutingTable, numbers: &HashMap<&str, usize>, test: &RoutingTest) -> Outcome {
    let failed = |found: String| Outcome {
        matched: Vec::new(),
        activity: None,
        failure: Some(Failure { expected: expected(test), found, details: Vec::new() }),
    };
    let body = match test.body.as_ref().map(read).transpose() {
        Ok(body) => body,
        Err(message) => return failed(message),
    };
    let question = Question {
        source: test.source.as_deref(),
        activity: test.activity.as_deref(),
        body: body.as_deref(),
    };
    let case = match question.case(table) {
        Ok(case) => case,
        Err(error) => return failed(error.to_string()),
    };
    let subject = case.subject();
    let document = table.document(subject.body);
    let matched = table.matching(&subject, &document);
    let matched = matched.filter_map(|route| numbers.get(&*route.name).copied()).collect();
    let failure = compare(table, &case, test);
    Outcome { matched, activity: case.activity.clone(), failure }
}

fn read(body: &Body) -> Result<Vec<u8>, String> {
    match body {
        Body::Inline(bytes) => Ok(bytes.clone()),
        Body::File(path) => {
            let failed = |error| format!("{} can't be read: {error}", path.display());
            let size = std::fs::metadata(path).map_err(failed)?;
            if !size.is_file() || size.len() > BODY_BYTES_MAX {
                return Err(format!("{} is no body", path.display()));
            }
            std::fs::read(path).map_err(failed)
        }
    }
}

fn expected(test: &RoutingTest) -> String {
    named(&test.expect.iter().map(String::as_str).collect())
}

/// How what was found differs from what is expected; none if it does not.
fn compare(table: &RoutingTable, case: &Case<'_>, test: &RoutingTest) -> Option<Failure> {
    let subject = case.subject();
    let routed = table.route(&subject);
    let found: BTreeSet<&str> = routed.deliveries.iter().map(|one| &*one.target).collect();
    let wanted: BTreeSet<&str> = test.expect.iter().map(String::as_str).collect();
    let mut details = Vec::new();
    if found != wanted {
        details = reasons(table, case, &wanted);
    }
    for header in &test.headers {
        let delivery = routed.deliveries.iter().find(|one| *one.target == *header.target);
        let shown = delivery.and_then(|delivery| {
            let target = table.targets.get(&delivery.target)?;
            let mut all = headers(target, delivery, &subject).into_iter();
            all.find(|one| one.name == header.name.as_str())
        });
        let value = shown.as_ref().and_then(|one| one.value.as_deref());
        let secret = shown.as_ref().is_some_and(|one| one.value.is_none());
        if secret || value != header.value.as_deref() {
            let text =
                |value: Option<&str>| value.map_or("nothing".to_owned(), |v| format!("{v:?}"));
            let found = if secret { "a secret".to_owned() } else { text(value) };
            details.push(format!(
                "{} of {}: expected {}, found {found}",
                header.name,
                header.target,
                text(header.value.as_deref()),
            ));
        }
    }
    if found == wanted && details.is_empty() {
        return None;
    }
    Some(Failure { expected: expected(test), found: named(&found), details })
}

/// Why each target that is too many or missing is so.
fn reasons(table: &RoutingTable, case: &Case<'_>, wanted: &BTreeSet<&str>) -> Vec<String> {
    let explanation = Explanation::new(table, case);
    let mut details = Vec::new();
    for target in &explanation.targets {
        if !wanted.contains(&*target.target) {
            details.push(format!("{} by route {}", target.target, target.routes.join(", ")));
        }
    }
    for name in wanted {
        if !table.targets.contains_key(*name) {
            details.push(format!("{name} is no target of this table"));
        } else if explanation.targets.iter().all(|target| target.target != *name) {
            let leads = |to: &[String]| to.iter().any(|target| target == name);
            for route in explanation.routes.iter().filter(|route| leads(&route.to)) {
                let because = route.because.as_deref().unwrap_or_default();
                let detail = route.detail.as_deref().unwrap_or_default();
                details.push(format!("{name} not by route {}: {because}: {detail}", route.route));
            }
        }
    }
    details
}

impl Sum {
    fn take(
        &mut self,
        output: &Output,
        format: Format,
        file: &Path,
        test: &RoutingTest,
        failure: Option<Failure>,
    ) {
        let Some(failure) = failure else {
            self.passed += 1;
            return;
        };
        let name = test.name.as_deref().or(test.activity.as_deref()).unwrap_or("a webhook");
        if format == Format::Text {
            let place = format!("{}:{}: {name}", file.display(), test.line);
            output.line(output.paint(Style::Bad, place));
            output.line(format_args!("  expected  {}", failure.expected));
            output.line(format_args!("  found     {}", failure.found));
            for detail in &failure.details {
                output.line(output.paint(Style::Dim, format!("  {detail}")));
            }
        }
        self.failures.push(json!({
            "file": file.display().to_string(),
            "line": test.line,
            "name": test.name,
            "expected": failure.expected,
            "found": failure.found,
            "details": failure.details,
        }));
    }
}

/// So many of so many, and which ones are missing.
#[derive(Default)]
struct Share {
    covered: usize,
    total: usize,
    missing: Vec<String>,
}

struct Coverage {
    routes: Share,
    activities: Share,
}

impl Share {
    fn count(&mut self, name: &str, covered: bool) {
        self.total += 1;
        if covered {
            self.covered += 1;
        } else {
            self.missing.push(name.to_owned());
        }
    }

    fn json(&self) -> Value {
        json!({ "covered": self.covered, "total": self.total, "missing": self.missing })
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 routes")]
    fn percent(&self) -> f64 {
        if self.total == 0 { 100.0 } else { self.covered as f64 * 100.0 / self.total as f64 }
    }

    fn line(&self, what: &str) -> String {
        let percent = self.percent();
        let missing = match self.missing.as_slice() {
            [] => String::new(),
            missing => format!("; without a test: {}", missing.join(", ")),
        };
        format!("{what} {} of {} covered, {percent:.0} %{missing}", self.covered, self.total)
    }
}

impl Coverage {
    fn of(tables: &BTreeMap<PathBuf, Covered>) -> Self {
        let mut coverage = Self { routes: Share::default(), activities: Share::default() };
        for covered in tables.values() {
            for (number, route) in covered.table.routes().iter().enumerate() {
                coverage.routes.count(&route.name, covered.routes.contains(&number));
            }
            for name in asked_for(&covered.table) {
                coverage.activities.count(name, covered.activities.contains(name));
            }
        }
        coverage
    }

    fn percent(&self) -> f64 {
        self.routes.percent()
    }

    fn print(&self, output: &Output, sum: &Sum, too_little: Option<u8>) {
        let (passed, failed) = (sum.passed, sum.failures.len());
        let style = if failed == 0 { Style::Good } else { Style::Bad };
        output.line(output.paint(style, format!("{passed} passed, {failed} failed")));
        output.line(self.routes.line("routes:"));
        output.line(self.activities.line("activities:"));
        if let Some(percent) = too_little {
            let text = format!("less than --fail-under {percent} of the routes is covered");
            output.line(output.paint(Style::Bad, text));
        }
    }
}

/// The activities that a table asks for: those it names, and the known ones that its patterns mean.
fn asked_for(table: &RoutingTable) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for patterns in table.routes().iter().filter_map(|route| route.activity.as_ref()) {
        names.extend(patterns.literals());
        if patterns.is_selective() {
            for name in known::activities().filter(|name| patterns.matches(name)) {
                names.insert(name);
            }
        }
    }
    names
}
