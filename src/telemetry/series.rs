//! Gauges whose labels come and go. The exporter forgets no label set that it has ever seen; a relay
//! that reloads for months would fill its page with tables and certificates of the past.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use crate::telemetry::reference::REFERENCE;

/// One gauge with one label, and the values that are shown now.
#[derive(Debug)]
pub(super) struct Series {
    name: &'static str,
    label: &'static str,
    values: Mutex<Vec<(String, f64)>>,
}

impl Series {
    /// With no values yet.
    pub(super) const fn new(name: &'static str, label: &'static str) -> Self {
        Self { name, label, values: Mutex::new(Vec::new()) }
    }

    /// Changes what is shown. No page is written meanwhile.
    pub(super) fn change(&self, act: impl FnOnce(&mut Vec<(String, f64)>)) {
        act(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds its lines to a page.
    pub(super) fn render(&self, page: &mut String) {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.is_empty() {
            return;
        }
        let Self { name, label, .. } = self;
        describe(page, name);
        for (text, value) in &*values {
            writeln!(page, "{name}{{{label}=\"{}\"}} {value}", escaped(text)).expect(INFALLIBLE);
        }
        page.push('\n');
    }
}

/// Adds a metric without labels to a page.
pub(super) fn plain(page: &mut String, name: &'static str, value: f64) {
    describe(page, name);
    writeln!(page, "{name} {value}\n").expect(INFALLIBLE);
}

const INFALLIBLE: &str = "a String takes everything";

fn describe(page: &mut String, name: &str) {
    let metric = REFERENCE.iter().find(|metric| metric.name == name);
    let metric = metric.expect("every metric is in the reference");
    let (help, kind) = (metric.help, metric.kind.name());
    writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}").expect(INFALLIBLE);
}

fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_out_is_shown_no_more_and_text_is_escaped() {
        let series = Series::new("relay_routes_info", "sha256");
        let mut page = String::new();
        series.render(&mut page);
        assert_eq!(page, "");
        series.change(|values| values.push(("one".to_owned(), 1.0)));
        series.change(|values| *values = vec![("a\\b\"c\nd".to_owned(), 0.5)]);
        series.render(&mut page);
        let (described, sample) = page.split_once("gauge\n").unwrap();
        assert!(described.starts_with("# HELP relay_routes_info 1 for the SHA-256"), "{page}");
        assert_eq!(sample, "relay_routes_info{sha256=\"a\\\\b\\\"c\\nd\"} 0.5\n\n");
    }

    #[test]
    fn a_counter_may_have_a_fraction() {
        let mut page = String::new();
        plain(&mut page, "process_cpu_seconds_total", 0.25);
        let samples =
            "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 0.25\n\n";
        assert!(page.starts_with("# HELP ") && page.ends_with(samples), "{page}");
    }
}
