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
        let entry = REFERENCE.iter().find(|(known, ..)| known == name);
        let help = entry.map_or("", |(.., help)| *help);
        let mut write = || {
            writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge")?;
            for (text, value) in &*values {
                writeln!(page, "{name}{{{label}=\"{}\"}} {value}", escaped(text))?;
            }
            writeln!(page)
        };
        write().expect("a String takes everything");
    }
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
}
