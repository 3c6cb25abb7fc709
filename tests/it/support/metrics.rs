//! The page that Prometheus reads.

use std::collections::{BTreeMap, BTreeSet};

/// A scraped page.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) text: String,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    #[track_caller]
    pub(crate) fn parse(text: String) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line}")))
            .collect();
        Self { text, samples }
    }

    /// The sum of the samples with this name and at least these labels; none if there are none.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self
            .samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| {
                labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
            })
            .map(|sample| sample.value)
            .peekable();
        found.peek().is_some().then(|| found.sum())
    }

    /// The same, which must be there.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels)
            .unwrap_or_else(|| panic!("no sample {name}{labels:?} in:\n{}", self.text))
    }

    /// The values of one label of a metric, sorted.
    pub(crate) fn labels(&self, name: &str, label: &str) -> Vec<String> {
        let mut values: Vec<String> = self
            .samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter_map(|sample| sample.labels.get(label).cloned())
            .collect();
        values.sort();
        values.dedup();
        values
    }

    /// The names of all samples.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.samples.iter().map(|sample| sample.name.clone()).collect()
    }

    /// Each set of labels, by their names, that samples with this name have.
    pub(crate) fn label_names(&self, name: &str) -> Vec<Vec<&str>> {
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        let names = samples.map(|sample| sample.labels.keys().map(String::as_str).collect());
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether `# TYPE` and `# HELP` are there for it.
    pub(crate) fn is_described(&self, name: &str) -> bool {
        ["# TYPE ", "# HELP "].iter().all(|mark| {
            self.text
                .lines()
                .filter_map(|line| line.strip_prefix(mark))
                .any(|rest| rest.split(' ').next() == Some(name))
        })
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (head, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let Some((name, rest)) = head.split_once('{') else {
            return Some(Self { name: head.to_owned(), labels: BTreeMap::new(), value });
        };
        let mut labels = BTreeMap::new();
        let mut rest = rest.strip_suffix('}')?;
        while !rest.is_empty() {
            let (key, after) = rest.split_once("=\"")?;
            let mut text = String::new();
            let mut characters = after.char_indices();
            let end = loop {
                match characters.next()? {
                    (_, '\\') => match characters.next()? {
                        (_, 'n') => text.push('\n'),
                        (_, other) => text.push(other),
                    },
                    (at, '"') => break at,
                    (_, other) => text.push(other),
                }
            };
            labels.insert(key.to_owned(), text);
            rest = after[end + 1..].trim_start_matches(',');
        }
        Some(Self { name: name.to_owned(), labels, value })
    }
}

#[test]
fn a_page_is_read() {
    let page = "# HELP a_total text\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\"} 2\n\
                a_total{x=\"2\",y=\"\"} 3\nb 0.5\n";
    let metrics = Metrics::parse(page.to_owned());
    assert_eq!(metrics.get("a_total", &[]), Some(5.0));
    assert_eq!(metrics.get("a_total", &[("y", "q\"")]), Some(2.0));
    assert_eq!(metrics.get("a_total", &[("y", "z")]), None);
    assert_eq!(metrics.get("b", &[]), Some(0.5));
    assert_eq!(metrics.labels("a_total", "x"), ["1", "2"]);
    assert!(metrics.is_described("a_total"));
    assert!(!metrics.is_described("b"));
}
