//! What an expression of Prometheus' language asks for: enough of its grammar to find that, no more.

/// A series that an expression asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    pub(crate) matchers: Vec<Matcher>,
    /// The same without its range and offset.
    pub(crate) text: String,
}

/// What it wants of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matcher {
    pub(crate) label: String,
    pub(crate) operator: String,
    pub(crate) value: String,
}

/// The series that an expression asks for, and the labels by which it puts them together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) selectors: Vec<Selector>,
    pub(crate) labels: Vec<String>,
}

/// Words before a list of labels.
const BEFORE_LABELS: &[&str] = &["by", "group_left", "group_right", "ignoring", "on", "without"];
const WORDS: &[&str] = &["and", "bool", "inf", "nan", "offset", "or", "unless"];
const AGGREGATIONS: &[&str] = &["avg", "bottomk", "count", "group", "max", "min", "sum", "topk"];

/// Reads an expression, which Prometheus must have taken: mistakes are not looked for.
pub(crate) fn asked(expression: &str) -> Asked {
    let mut asked = Asked::default();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            rest = after_text(rest).1;
        } else if first == '[' || first.is_ascii_digit() {
            // A range, a number, a duration.
            let stop = |c: char| if first == '[' { c == ']' } else { !c.is_alphanumeric() };
            rest = &rest[rest.find(stop).unwrap_or(rest.len())..];
        } else if is_of_name(first) {
            let (name, after) = rest.split_at(rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()));
            let opens = after.trim_start().strip_prefix('(');
            if BEFORE_LABELS.contains(&name) {
                let (labels, after) =
                    opens.and_then(|list| list.split_once(')')).unwrap_or(("", after));
                let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty());
                asked.labels.extend(labels.map(str::to_owned));
                rest = after;
            } else if opens.is_none()
                && !WORDS.contains(&&*name.to_lowercase())
                && !AGGREGATIONS.contains(&name)
            {
                let (matchers, after) = matchers(after);
                let text = rest[..rest.len() - after.len()].to_owned();
                asked.selectors.push(Selector { metric: name.to_owned(), matchers, text });
                rest = after;
            } else {
                rest = after;
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
        rest = rest.trim_start();
    }
    asked
}

fn matchers(text: &str) -> (Vec<Matcher>, &str) {
    let mut matchers = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else { return (matchers, text) };
    loop {
        rest = rest.trim_start_matches([' ', '\n', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return (matchers, after);
        }
        let (label, after) = rest.split_at(rest.find(|c| !is_of_name(c)).unwrap());
        let quote = after.find('"').unwrap();
        let (value, after_value) = after_text(&after[quote..]);
        let operator = after[..quote].trim().to_owned();
        matchers.push(Matcher { label: label.to_owned(), operator, value: value.to_owned() });
        rest = after_value;
    }
}

/// What is between quotes at the beginning, without an escape in it, and what follows.
fn after_text(text: &str) -> (&str, &str) {
    text[1..].split_once('"').unwrap()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

#[test]
fn series_and_labels_are_found_in_an_expression() {
    let expression = "sum without (answer, a) (rate(x_total{b!=\"c d\", e=~\"f|g\"}[5m])) > 0.1 * y:z \
                      unless on (job) last_over_time(up[1d]) offset 1h and time() - 3e2 > x_total";
    let asked = asked(expression);
    assert_eq!(asked.labels, ["answer", "a", "job"]);
    let texts: Vec<&str> = asked.selectors.iter().map(|selector| &*selector.text).collect();
    assert_eq!(texts, ["x_total{b!=\"c d\", e=~\"f|g\"}", "y:z", "up", "x_total"]);
    let [b, e] = &asked.selectors[0].matchers[..] else { panic!("{asked:?}") };
    assert_eq!((&*b.label, &*b.operator, &*b.value), ("b", "!=", "c d"));
    assert_eq!((&*e.label, &*e.operator, &*e.value), ("e", "=~", "f|g"));
}
