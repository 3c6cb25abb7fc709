//! Tests of the rules: a file of webhooks and of the targets that each is to reach.
//!
//! Read by the same two passes as a routes file, places and shapes, and refused with the same words.

use std::path::{Path, PathBuf};

use http::HeaderName;
use serde_json::Value;

use crate::config::node::{Entry, Kind, Meaning, Node, meaning};
use crate::config::position;
use crate::config::problem::{Problems, Report, Span};
use crate::config::spot::listed_node;
use crate::config::{decode, read_bytes, shape, value};
use crate::domain::number::Decimal;

/// What is expected of a webhook that no route wants.
pub const UNROUTED: &str = "unrouted";

/// A file of tests.
#[derive(Debug)]
pub struct RoutingTests {
    /// The routes file that is tested.
    pub routes: PathBuf,
    /// In file order.
    pub tests: Vec<RoutingTest>,
}

/// One webhook and where it is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingTest {
    /// What it shows.
    pub name: Option<String>,
    /// Where it is written.
    pub line: usize,
    /// Who posts it.
    pub source: Option<String>,
    /// Its activity, without a body or in the path.
    pub activity: Option<String>,
    /// Its bytes.
    pub body: Option<Body>,
    /// The targets that it is to reach; none where it is to be unrouted.
    pub expect: Vec<String>,
    /// Headers that targets are to get, or not to get.
    pub headers: Vec<ExpectedHeader>,
}

/// Where the bytes of a test are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// In a file.
    File(PathBuf),
    /// Written out; as JSON.
    Inline(Vec<u8>),
}

/// A header that a target is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedHeader {
    /// The target.
    pub target: String,
    /// The header's name.
    pub name: HeaderName,
    /// Its value; none where the header is not to be there.
    pub value: Option<String>,
}

/// Reads a file of tests.
///
/// # Errors
///
/// Everything that is wrong with it, in file order.
pub fn load_tests(path: &Path) -> Result<RoutingTests, Problems> {
    let mut report = Report::new(path);
    let tests = read(path, &mut report);
    let failed = report.has_failed();
    match tests {
        Some(tests) if !failed => Ok(tests),
        _ => Err(report.finish()),
    }
}

fn read(path: &Path, report: &mut Report) -> Option<RoutingTests> {
    let bytes = read_bytes(path, report)?;
    let text = decode(&bytes, report)?;
    if text.trim().is_empty() {
        report.file_error("the file is empty: it needs routes and tests");
        return None;
    }
    let tree = position::parse(text, report).ok()?;
    let root = shape::check_tests(&tree, report)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let routes = folder.join(text_of(&root, "routes")?);
    let items = root.get("tests").map(|entry| entry.value.items()).unwrap_or_default();
    let tests = items.iter().filter_map(|item| one(item, folder, report)).collect::<Vec<_>>();
    if items.is_empty() {
        report.error(root.at, "\"tests\" is empty: there must be at least one");
    }
    Some(RoutingTests { routes, tests })
}

fn one(node: &Node, folder: &Path, report: &mut Report) -> Option<RoutingTest> {
    let owned = |key: &str| text_of(node, key).map(str::to_owned);
    let inline = node.get("body");
    let file = node.get("body_file");
    let body = match (inline, file) {
        (Some(body), Some(_)) => {
            report.error(body.key_at, "\"body\" and \"body_file\" are two bodies: write one");
            return None;
        }
        (Some(body), None) => {
            let value = json(&body.value, report)?;
            Some(Body::Inline(value.to_string().into_bytes()))
        }
        (None, Some(_)) => owned("body_file").map(|path| Body::File(folder.join(path))),
        (None, None) => None,
    };
    let activity = owned("activity");
    if body.is_none() && activity.is_none() {
        report.error(node.at, "a test needs \"activity\", \"body\" or \"body_file\"");
    }
    let expect = node.get("expect")?;
    Some(RoutingTest {
        name: owned("name"),
        line: node.at.line(),
        source: owned("source"),
        activity,
        body,
        expect: expected(&expect.value, report),
        headers: headers(node, report),
    })
}

fn expected(node: &Node, report: &mut Report) -> Vec<String> {
    let names: Vec<(&str, Span)> = listed_node(node);
    let is_unrouted = |(name, _): &&(&str, Span)| *name == UNROUTED;
    if let Some((_, at)) = names.iter().find(is_unrouted)
        && names.len() > 1
    {
        report.error(*at, format!("\"{UNROUTED}\" means no target: it stands alone"));
    }
    let names = names.iter().filter(|(name, _)| *name != UNROUTED);
    names.map(|(name, _)| (*name).to_owned()).collect()
}

fn headers(node: &Node, report: &mut Report) -> Vec<ExpectedHeader> {
    let mut headers = Vec::new();
    let targets = node.get("headers").map(|entry| entry.value.entries()).unwrap_or_default();
    for Entry { key: target, value: wanted, .. } in targets {
        for Entry { key, key_at, value: text } in wanted.entries() {
            let name = match value::header_name(key) {
                Ok(name) => name,
                Err(message) => {
                    report.error(*key_at, message);
                    continue;
                }
            };
            let value = match &text.kind {
                Kind::Scalar { text, plain: true } if meaning(text) == Meaning::Null => None,
                Kind::Scalar { text, .. } => Some(text.to_string()),
                Kind::Broken | Kind::List(_) | Kind::Map(_) => continue,
            };
            headers.push(ExpectedHeader { target: target.to_string(), name, value });
        }
    }
    headers
}

fn text_of<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match &node.get(key)?.value.kind {
        Kind::Scalar { text, .. } => Some(text),
        Kind::Broken | Kind::List(_) | Kind::Map(_) => None,
    }
}

/// A body as it is written in YAML, as JSON.
fn json(node: &Node, report: &mut Report) -> Option<Value> {
    Some(match &node.kind {
        Kind::Broken => return None,
        Kind::List(items) => {
            Value::Array(items.iter().map(|item| json(item, report)).collect::<Option<_>>()?)
        }
        Kind::Map(entries) => {
            let member = |entry: &Entry| Some((entry.key.to_string(), json(&entry.value, report)?));
            Value::Object(entries.iter().map(member).collect::<Option<_>>()?)
        }
        Kind::Scalar { text, plain: false } => Value::from(&**text),
        Kind::Scalar { text, plain: true } => match meaning(text) {
            Meaning::Boolean(value) => value.into(),
            Meaning::Integer(value) => value.into(),
            Meaning::Null => Value::Null,
            Meaning::Text => Value::from(&**text),
            Meaning::Number => match number(text) {
                Some(number) => number,
                None => {
                    let message =
                        "JSON has no such number, or not with so many digits: use body_file";
                    report.error(node.at, message);
                    return None;
                }
            },
        },
    })
}

/// A number that JSON writes without losing a digit.
fn number(text: &str) -> Option<Value> {
    let value = serde_json::Number::from_f64(text.parse().ok()?)?;
    let same = Decimal::parse(text.as_bytes())? == Decimal::parse(value.to_string().as_bytes())?;
    same.then_some(Value::Number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<RoutingTests, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.yaml");
        std::fs::write(&path, text).unwrap();
        load_tests(&path).map_err(|problems| {
            problems.to_string().replace(&format!("{}/", folder.path().display()), "")
        })
    }

    #[test]
    fn a_file_says_which_webhooks_go_where() {
        let tests = read_text(
            "routes: sub/routes.yaml\ntests:\n  - activity: A\n    expect: crm\n  - name: n\n    source: s\n    \
             body: { object: GROUP, n: 1.50, t: [true, null, \"7\"] }\n    expect: [crm, desk]\n    \
             headers: { crm: { X-A: b, X-B: ~ } }\n  - { body_file: b.json, expect: unrouted }\n",
        )
        .unwrap();
        assert!(tests.routes.ends_with("sub/routes.yaml"));
        let [a, b, c] = tests.tests.as_slice() else { panic!("{tests:?}") };
        assert_eq!(
            (a.line, a.activity.as_deref(), a.expect.as_slice()),
            (3, Some("A"), &["crm".to_owned()][..])
        );
        let body = br#"{"object":"GROUP","n":1.5,"t":[true,null,"7"]}"#.to_vec();
        let keys = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap();
        let Some(Body::Inline(bytes)) = &b.body else { panic!("{b:?}") };
        assert_eq!(keys(bytes), keys(&body));
        let values: Vec<_> =
            b.headers.iter().map(|h| (h.name.as_str(), h.value.as_deref())).collect();
        assert_eq!(values, [("x-a", Some("b")), ("x-b", None)]);
        assert!(
            c.expect.is_empty()
                && matches!(&c.body, Some(Body::File(path)) if path.ends_with("b.json"))
        );
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let problems = read_text(
            "routes: r\ntests:\n  - expekt: a\n    activity: A\n  - { expect: [unrouted, crm], activity: A }\n  \
             - { expect: crm }\n  - { expect: crm, body: {}, body_file: x }\n  - { expect: crm, activity: 5 }\n  \
             - { expect: crm, body: { n: 1.00000000000000000001 } }\n  - { expect: crm, activity: A, headers: { crm: { \"x y\": a } } }\n",
        )
        .unwrap_err();
        for part in [
            "t.yaml:3:5: error: unknown key \"expekt\"",
            "t.yaml:3:5: error: a test needs \"expect\"",
            "t.yaml:5:16: error: \"unrouted\" means no target: it stands alone",
            "t.yaml:6:5: error: a test needs \"activity\", \"body\" or \"body_file\"",
            "t.yaml:7:20: error: \"body\" and \"body_file\" are two bodies: write one",
            "t.yaml:8:30: error: activity: expected",
            "t.yaml:9:31: error: JSON has no such number",
            "t.yaml:10:51: error: \"x y\" is not a header name",
        ] {
            assert!(problems.contains(part), "{part} is not in\n{problems}");
        }
        assert!(read_text("").unwrap_err().contains("it needs routes and tests"));
        assert!(read_text("routes: r\ntests: []\n").unwrap_err().contains("\"tests\" is empty"));
    }
}
