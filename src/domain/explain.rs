//! Why a webhook goes where it goes: each route's verdict and what each target would get, as words.
//!
//! The one place that explains, for the command line and the admin address. It has the words of the
//! API, holds no secret, and nothing in it is longer than it is useful.

use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::domain::condition::Condition;
use crate::domain::pattern::Patterns;
use crate::domain::pointer::{Document, Field};
use crate::domain::question::{Case, SAMPLE_TIME, sample_id};
use crate::domain::request::{self, Content};
use crate::domain::route::{Mismatch, Route, RoutingTable, Subject, Unrouted, Verdict};
use crate::domain::signature::{Secret, Signing};
use crate::domain::target::Target;
use crate::domain::template::{HeaderRule, HeaderText, Values};
use crate::domain::webhook::{Header, NewDelivery};

/// What is shown of one value or list, in characters.
const SHOWN_MAX: usize = 120;

/// What would become of one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The source.
    pub source: String,
    /// The activity; none of a bare resource.
    pub activity: Option<String>,
    /// The resource's type.
    pub resource_type: Option<String>,
    /// The resource's id.
    pub resource_id: Option<String>,
    /// Every route, in file order.
    pub routes: Vec<RouteVerdict>,
    /// Where it goes.
    pub targets: Vec<TargetReached>,
    /// What becomes of it where it goes nowhere: `keep` or `drop`.
    pub unrouted: Option<String>,
    /// The headers that each target gets besides, by name.
    pub relay_headers: Vec<String>,
}

/// What a route says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteVerdict {
    /// Its name.
    pub route: String,
    /// It wants the webhook.
    pub matched: bool,
    /// Its targets.
    pub to: Vec<String>,
    /// The key of it that says no: `source`, `activity`, `resource` or `when`; `final` where one
    /// above is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// The same for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a target would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReached {
    /// Its name.
    pub target: String,
    /// The routes that lead there.
    pub routes: Vec<String>,
    /// The operator's headers: the target's own, with the routes' on top.
    pub headers: Vec<ShownHeader>,
    /// Headers without a value, because a placeholder has nothing to stand for.
    pub left_out: Vec<String>,
    /// Inbound headers that would be passed on.
    pub forwarded: Vec<String>,
    /// The headers that carry the signature.
    pub signature: Vec<String>,
    /// What it is signed with, such as `env:NAME`; none where it is not signed.
    pub signed_with: Option<String>,
}

/// One header; a secret as where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownHeader {
    /// Its name.
    pub name: String,
    /// Its value; none of a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where its secret value comes from, such as `env:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl Explanation {
    /// Explains what `table` does with a webhook.
    pub fn new(table: &RoutingTable, case: &Case<'_>) -> Self {
        let subject = case.subject();
        let document = table.document(subject.body);
        let verdicts = table.explain(&subject);
        let routed = table.route(&subject);
        let reached = |delivery: &NewDelivery| {
            let target = table.targets.get(&delivery.target)?;
            let matched = verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Matched);
            let routes = matched.map(|(route, _)| *route);
            Some(TargetReached::new(target, delivery, &subject, routes, &document))
        };
        let first = routed.deliveries.first().and_then(|one| table.targets.get(&one.target));
        let nothing = routed.deliveries.is_empty().then_some(match table.unrouted {
            Unrouted::Keep => "keep",
            Unrouted::Drop => "drop",
        });
        Self {
            source: subject.source.to_owned(),
            activity: subject.activity.map(str::to_owned),
            resource_type: subject.resource.object.as_deref().map(str::to_owned),
            resource_id: subject.resource.id.as_deref().map(str::to_owned),
            routes: verdicts
                .iter()
                .map(|(route, verdict)| RouteVerdict::new(route, verdict, &subject, &document))
                .collect(),
            targets: routed.deliveries.iter().filter_map(reached).collect(),
            unrouted: nothing.map(str::to_owned),
            relay_headers: first.map(|one| relay_headers(one, &subject)).unwrap_or_default(),
        }
    }
}

impl RouteVerdict {
    fn new(
        route: &Route,
        verdict: &Verdict<'_>,
        subject: &Subject<'_>,
        document: &Document<'_>,
    ) -> Self {
        let reason = match verdict {
            Verdict::Matched => None,
            Verdict::Unasked(end) => {
                Some(("final", format!("route \"{}\" above is final", end.name)))
            }
            Verdict::Mismatched(mismatch) => Some(reason(route, *mismatch, subject, document)),
        };
        let (because, detail) = reason.unzip();
        Self {
            route: route.name.to_string(),
            matched: because.is_none(),
            to: route.to.iter().map(ToString::to_string).collect(),
            because: because.map(str::to_owned),
            detail,
        }
    }
}

/// The key of a route that says no, and why.
fn reason(
    route: &Route,
    mismatch: Mismatch<'_>,
    subject: &Subject<'_>,
    document: &Document<'_>,
) -> (&'static str, String) {
    match mismatch {
        Mismatch::Source => ("source", outside(subject.source, route.source.as_ref())),
        Mismatch::Activity => {
            ("activity", outside(subject.activity.unwrap_or_default(), route.activity.as_ref()))
        }
        Mismatch::Resource => {
            let object = subject.resource.object.as_deref().unwrap_or_default();
            ("resource", outside(object, route.resource.as_ref()))
        }
        Mismatch::NoActivity => ("activity", "the webhook has no activity".to_owned()),
        Mismatch::NoResource => ("resource", "the webhook has no resource type".to_owned()),
        Mismatch::When(condition) => ("when", unmet(condition, document)),
    }
}

/// Why a name is not among the patterns.
fn outside(name: &str, patterns: Option<&Patterns>) -> String {
    let Some(patterns) = patterns else { return String::new() };
    match patterns.exclusion(name) {
        Some(pattern) => format!("{name} is excluded by \"!{pattern}\""),
        None => format!("{name} is not among {}", bounded(&patterns.to_string())),
    }
}

/// A condition that does not hold, and what the body has there.
fn unmet(condition: &Condition, document: &Document<'_>) -> String {
    let found = match document.get(condition.id) {
        _ if !document.is_json() => "the body is not JSON".to_owned(),
        None => "the body has nothing there".to_owned(),
        Some(Field::Text(text)) => match text.get() {
            Some(text) => format!("the body has {:?}", bounded(text)),
            None => "the body has broken text".to_owned(),
        },
        Some(Field::Number(_, digits)) => format!("the body has {}", bounded(digits)),
        Some(Field::Boolean(value)) => format!("the body has {value}"),
        Some(Field::Null) => "the body has null".to_owned(),
        Some(Field::Nested) => "the body has an object or array".to_owned(),
    };
    format!("{}; {found}", bounded(&condition.to_string()))
}

impl TargetReached {
    fn new<'a>(
        target: &Target,
        delivery: &NewDelivery,
        subject: &Subject<'a>,
        matched: impl Iterator<Item = &'a Route>,
        document: &'a Document<'a>,
    ) -> Self {
        let headers = headers(target, delivery, subject);
        let own = Document::new(subject.body, &target.pointers);
        let mut left_out = valueless(&target.headers, target, &subject.values(&own));
        for route in matched.filter(|route| route.to.contains(&target.name)) {
            left_out.extend(valueless(&route.headers, target, &subject.values(document)));
        }
        left_out.retain(|name| !headers.iter().any(|header| header.name == *name));
        left_out.sort();
        left_out.dedup();
        let names = |names: &[HeaderName]| names.iter().map(ToString::to_string).collect();
        Self {
            target: target.name.to_string(),
            routes: delivery.routes.iter().map(ToString::to_string).collect(),
            headers,
            left_out,
            forwarded: names(&target.forward_headers),
            signature: names(&target.sign.header_names()),
            signed_with: {
                let labels: Vec<_> = target.sign.secrets().map(Secret::label).collect();
                (!labels.is_empty()).then(|| labels.join(", "))
            },
        }
    }
}

/// The names of those rules that a placeholder leaves without a value.
fn valueless(rules: &[HeaderRule], target: &Target, values: &Values<'_>) -> Vec<String> {
    let missing = rules.iter().filter(|rule| rule.value.render(values, &target.name).is_none());
    missing.map(|rule| rule.name.to_string()).collect()
}

/// The operator's headers that a target would get with this delivery.
pub fn headers(target: &Target, delivery: &NewDelivery, subject: &Subject<'_>) -> Vec<ShownHeader> {
    let (headers, _) = request::operators(target, &content(subject, &delivery.headers));
    let shown = |(name, value): Header| {
        let secret = if value.is_sensitive() { label(target, &name) } else { None };
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        ShownHeader {
            name: name.to_string(),
            value: (!value.is_sensitive()).then_some(text),
            secret,
        }
    };
    headers.into_iter().map(shown).collect()
}

fn label(target: &Target, name: &HeaderName) -> Option<String> {
    target.headers.iter().find(|rule| rule.name == *name).and_then(|rule| match &rule.value {
        HeaderText::Secret { label, .. } => Some(label.to_string()),
        HeaderText::Fixed(_) | HeaderText::Template(_) => None,
    })
}

/// The names of what every request carries, whatever the operator wrote.
fn relay_headers(target: &Target, subject: &Subject<'_>) -> Vec<String> {
    let bare = Target { headers: Vec::new(), sign: Signing::None, ..target.clone() };
    let built = request::headers(&bare, &content(subject, &[]), SAMPLE_TIME);
    built.headers.keys().map(ToString::to_string).collect()
}

fn content<'a>(subject: &Subject<'a>, route_headers: &'a [Header]) -> Content<'a> {
    Content {
        webhook_id: sample_id(),
        again: 0,
        source: subject.source,
        activity: subject.activity,
        resource: subject.resource,
        received_at: subject.received_at,
        inbound: &[],
        route_headers,
        body: subject.body,
        attempt: 1,
        trace: None,
    }
}

/// The text, or its beginning.
fn bounded(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::condition::{Scalar, Test};
    use crate::domain::pointer::{Pointer, Pointers};
    use crate::domain::question::{Question, tests::source};
    use crate::domain::retry::RetrySchedule;
    use crate::domain::route::Rules;
    use crate::domain::signature::{SIGNATURE, Scheme};
    use crate::domain::target::{BacklogLimit, TargetTls};
    use crate::domain::template::Template;
    use http::HeaderValue;
    use std::time::Duration;

    fn rule(name: &'static str, text: &str, pointers: &mut Pointers) -> HeaderRule {
        let template = Template::parse(text, |pointer| pointers.add(pointer)).unwrap();
        HeaderRule { name: HeaderName::from_static(name), value: HeaderText::Template(template) }
    }

    fn target() -> Target {
        let mut pointers = Pointers::default();
        let mut value = HeaderValue::from_static("Bearer s3cr3t");
        value.set_sensitive(true);
        let token = HeaderText::Secret { label: "env:TOKEN".into(), value, begins: 7 };
        let headers = vec![
            HeaderRule { name: HeaderName::from_static("authorization"), value: token },
            rule("x-own", "{activity} {body:/n}", &mut pointers),
            rule("x-none", "{body:/missing}", &mut pointers),
        ];
        Target {
            name: "crm".into(),
            url: "https://crm.internal/".parse().unwrap(),
            sign: Signing::With {
                scheme: Scheme::Aryeo,
                secret: Secret::new("env:CRM", b"abc").unwrap(),
                also: vec![Secret::new("env:CRM_OLD", b"abd").unwrap()],
                header: SIGNATURE,
            },
            headers,
            pointers,
            forward_headers: vec![HeaderName::from_static("x-trace")],
            timeout: Duration::from_secs(10),
            retry: RetrySchedule::default(),
            concurrency: 16,
            rate_limit: None,
            backlog_limit: BacklogLimit::default(),
            paused: false,
            tls: TargetTls::default(),
        }
    }

    fn route(name: &str) -> Route {
        Route {
            name: name.into(),
            source: None,
            activity: None,
            resource: None,
            when: Vec::new(),
            to: vec!["crm".into()],
            headers: Vec::new(),
            end: false,
        }
    }

    fn table() -> RoutingTable {
        let mut pointers = Pointers::default();
        let mut condition = |text: &str, test| {
            let pointer = Pointer::parse(text).unwrap();
            let id = pointers.add(&pointer);
            vec![Condition { pointer, id, test }]
        };
        let is = |text: &str| Test::Equals(Scalar::Text(text.into()));
        let patterns = |list: &[&str]| Some(Patterns::new(list));
        let long = "ä".repeat(500);
        let mut routes = vec![
            Route { source: patterns(&["b"]), ..route("source") },
            Route { activity: patterns(&["B_*", "C"]), ..route("activity") },
            Route { activity: patterns(&["!A"]), ..route("excluded") },
            Route { resource: patterns(&["ORDER"]), ..route("resource") },
            Route { when: condition("/n", is("x")), ..route("when") },
            Route { when: condition("/long", is(&long)), ..route("long") },
            Route { when: condition("/missing", is("x")), ..route("missing") },
            Route { end: true, ..route("matched") },
            route("after"),
        ];
        routes[7].headers = vec![rule("x-rule", "{body:/long}", &mut pointers)];
        let sources = vec![source("a", "/a", None)];
        let targets = vec![target()];
        RoutingTable::new(Rules { sources, targets, routes, pointers, ..Rules::default() })
    }

    fn explained(body: &str) -> Explanation {
        let question = Question { body: Some(body.as_bytes()), ..Question::default() };
        let table = table();
        let mut case = question.case(&table).unwrap();
        case.activity = Some("A".into());
        Explanation::new(&table, &case)
    }

    #[test]
    fn each_route_says_its_first_reason_and_what_the_body_has() {
        let explained = explained(r#"{"object":"LISTING","n":5,"long":"y\u001b[2J"}"#);
        let said: Vec<_> = explained
            .routes
            .iter()
            .map(|route| (route.because.as_deref(), route.detail.as_deref().unwrap_or_default()))
            .collect();
        let long = format!("/long: \"{}…; the body has \"y\\u{{1b}}[2J\"", "ä".repeat(112));
        assert_eq!(
            said,
            [
                (Some("source"), "a is not among b"),
                (Some("activity"), "A is not among B_*, C"),
                (Some("activity"), "A is excluded by \"!A\""),
                (Some("resource"), "LISTING is not among ORDER"),
                (Some("when"), "/n: \"x\"; the body has 5"),
                (Some("when"), &*long),
                (Some("when"), "/missing: \"x\"; the body has nothing there"),
                (None, ""),
                (Some("final"), "route \"matched\" above is final"),
            ]
        );
    }

    #[test]
    fn each_target_gets_the_headers_of_an_attempt_and_no_secret_is_shown() {
        let explained = explained(r#"{"n":5,"long":"1"}"#);
        let text = serde_json::to_string(&explained).unwrap();
        assert!(!text.contains("s3cr3t"), "{text}");
        let crm = &explained.targets[0];
        let shown = |header: &ShownHeader| {
            (header.name.clone(), header.value.clone().or(header.secret.clone()).unwrap())
        };
        let headers: Vec<_> = crm.headers.iter().map(shown).collect();
        let expected = [("authorization", "env:TOKEN"), ("x-own", "A 5"), ("x-rule", "1")];
        assert_eq!(headers, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(
            (crm.routes.as_slice(), &*crm.left_out),
            (&["matched".to_owned()][..], &["x-none".to_owned()][..])
        );
        assert_eq!(
            (crm.signature.as_slice(), &*crm.forwarded),
            (&["signature".to_owned()][..], &["x-trace".to_owned()][..])
        );
        assert_eq!(crm.signed_with.as_deref(), Some("env:CRM, env:CRM_OLD"));
        assert!(explained.relay_headers.iter().any(|name| name == "relay-activity"));
        assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), explained);
    }

    #[test]
    fn a_body_that_is_no_json_is_said_to_be_none() {
        let explained = explained("{");
        assert_eq!(explained.routes[4].detail.as_deref(), Some("/n: \"x\"; the body is not JSON"));
        assert_eq!(explained.targets[0].left_out, ["x-none", "x-own", "x-rule"]);
        assert_eq!(explained.unrouted, None);
    }
}
