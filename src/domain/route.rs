//! The routing table: which targets want a webhook, decided in one pass.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::domain::condition::Condition;
use crate::domain::pattern::{Anchor, Patterns};
use crate::domain::pointer::{Document, Pointers};
use crate::domain::source::Source;
use crate::domain::target::Target;
use crate::domain::template::{HeaderRule, Values};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Header, NewDelivery, Resource, WebhookId};

/// A rule: which webhooks, to which targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// Only from these sources.
    pub source: Option<Patterns>,
    /// Only these activities; a webhook without one never matches then.
    pub activity: Option<Patterns>,
    /// Only these resource types; a webhook without one never matches then.
    pub resource: Option<Patterns>,
    /// Only where all of these hold.
    pub when: Vec<Condition>,
    /// To these targets, in order.
    pub to: Vec<Arc<str>>,
    /// On top of the target's own headers.
    pub headers: Vec<HeaderRule>,
    /// Look no further when it matches.
    pub end: bool,
}

/// What happens to a webhook that no route wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unrouted {
    /// Acknowledged, counted, not stored.
    Drop,
    /// Stored, visible, replayable.
    #[default]
    Keep,
}

/// What a route asks about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The webhook's id.
    pub webhook_id: WebhookId,
    /// When it was received.
    pub received_at: Timestamp,
    /// The source's name.
    pub source: &'a str,
    /// The activity, where there is one.
    pub activity: Option<&'a str>,
    /// What it is about.
    pub resource: &'a Resource,
    /// The exact bytes; read only if a rule asks.
    pub body: &'a [u8],
}

/// Where a webhook goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routed {
    /// One for each target.
    pub deliveries: Vec<NewDelivery>,
    /// The targets for which a route's header was left out, once for each header.
    pub left_out: Vec<Arc<str>>,
}

/// The first reason why a route does not want a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch<'a> {
    /// Another activity.
    Activity,
    /// It names an activity, and the webhook has none.
    NoActivity,
    /// It names a type of resource, and the webhook has none.
    NoResource,
    /// Another type of resource.
    Resource,
    /// Another source.
    Source,
    /// This condition does not hold.
    When(&'a Condition),
}

/// What became of one route.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict<'a> {
    /// It wants the webhook.
    Matched,
    /// It does not, for this reason.
    Mismatched(Mismatch<'a>),
    /// It was not asked: this route matched before it and is `final`.
    Unasked(&'a Route),
}

/// All compiled rules, sources and targets; immutable.
#[derive(Debug)]
pub struct RoutingTable {
    /// Who may post.
    pub sources: Vec<Arc<Source>>,
    /// Where deliveries go, by name.
    pub targets: BTreeMap<Arc<str>, Arc<Target>>,
    /// What happens to the rest.
    pub unrouted: Unrouted,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    by_path: HashMap<Box<str>, Arc<Source>>,
    by_pattern: Vec<Arc<Source>>,
    routes: Vec<Route>,
    pointers: Pointers,
    index: Index,
}

/// What a table is compiled from. The caller has checked names and references.
#[derive(Debug, Default)]
pub struct Rules {
    /// Who may post.
    pub sources: Vec<Source>,
    /// Where deliveries go.
    pub targets: Vec<Target>,
    /// In file order.
    pub routes: Vec<Route>,
    /// What the conditions and headers of the routes point at.
    pub pointers: Pointers,
    /// What happens to the rest.
    pub unrouted: Unrouted,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
}

impl RoutingTable {
    /// Compiles a table.
    pub fn new(rules: Rules) -> Self {
        let Rules { sources, targets, routes, pointers, unrouted, sha256 } = rules;
        let sources: Vec<_> = sources.into_iter().map(Arc::new).collect();
        let mut by_path = HashMap::new();
        let mut by_pattern = Vec::new();
        for source in &sources {
            match source.path.exact() {
                Some(path) => _ = by_path.insert(path.into(), Arc::clone(source)),
                None => by_pattern.push(Arc::clone(source)),
            }
        }
        Self {
            by_path,
            by_pattern,
            targets: targets.into_iter().map(|t| (Arc::clone(&t.name), Arc::new(t))).collect(),
            sources,
            unrouted,
            sha256,
            index: Index::new(&routes),
            routes,
            pointers,
        }
    }

    /// The source on this path, and the activity that the path names. A source on exactly this path
    /// goes before one with `{activity}` in its own.
    pub fn source<'a>(&self, path: &'a str) -> Option<(&Arc<Source>, Option<Cow<'a, str>>)> {
        if let Some(source) = self.by_path.get(path) {
            return Some((source, None));
        }
        self.by_pattern.iter().find_map(|source| {
            let activity = source.path.activity(path)?;
            Some((source, activity.named()))
        })
    }

    /// The rules, in file order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The deliveries that a webhook gets: every matching route adds its targets, in file order,
    /// until one that is `final`. A target named twice gets one, with the headers of all its routes.
    pub fn route(&self, subject: &Subject<'_>) -> Routed {
        let document = self.document(subject.body);
        let values = subject.values(&document);
        let mut routed = Routed::default();
        for route in self.matching(subject, &document) {
            for target in &route.to {
                routed.add(target, route, &values);
            }
        }
        routed
    }

    /// What its conditions and its routes' headers ask of a body.
    pub const fn document<'a>(&'a self, body: &'a [u8]) -> Document<'a> {
        Document::new(body, &self.pointers)
    }

    /// The routes that want a webhook, in file order, until one that is `final`. `document` is this
    /// table's own of the webhook's body.
    pub fn matching<'table>(
        &'table self,
        subject: &Subject<'_>,
        document: &Document<'_>,
    ) -> impl Iterator<Item = &'table Route> {
        let mut routes =
            self.index.candidates(subject.activity).filter_map(|at| self.routes.get(at));
        let mut ended = false;
        std::iter::from_fn(move || {
            // After a `final` route none is asked, so that none reads the body for nothing.
            let next =
                (!ended).then(|| routes.find(|route| route.mismatch(subject, document).is_none()));
            let route = next.flatten()?;
            ended = route.end;
            Some(route)
        })
    }

    /// Whether a route that can still match asks what is in the body.
    pub fn asks_for_body(&self, subject: &Subject<'_>) -> bool {
        let document = self.document(b"");
        // With no body every condition is asked of nothing, which reads the document at once.
        self.matching(subject, &document).for_each(drop);
        document.was_read()
    }

    /// What becomes of each route, in file order. Slower than [`route`](Self::route), and the same.
    pub fn explain(&self, subject: &Subject<'_>) -> Vec<(&Route, Verdict<'_>)> {
        let document = self.document(subject.body);
        let mut last = None;
        let verdict = |route| {
            let verdict = match (last, Route::mismatch(route, subject, &document)) {
                (Some(end), _) => Verdict::Unasked(end),
                (None, Some(mismatch)) => Verdict::Mismatched(mismatch),
                (None, None) => Verdict::Matched,
            };
            if verdict == Verdict::Matched && route.end {
                last = Some(route);
            }
            (route, verdict)
        };
        self.routes.iter().map(verdict).collect()
    }
}

impl<'a> Subject<'a> {
    /// What placeholders stand for.
    pub fn values(&self, document: &'a Document<'a>) -> Values<'a> {
        Values {
            activity: self.activity,
            source: self.source,
            webhook_id: self.webhook_id,
            again: 0,
            resource: self.resource,
            received_at: self.received_at,
            document,
        }
    }
}

impl Route {
    /// The first reason why it does not want this webhook; none if it does. The body comes last, so
    /// that it is read only for a rule that can still match.
    pub fn mismatch(&self, subject: &Subject<'_>, document: &Document<'_>) -> Option<Mismatch<'_>> {
        let wants = |patterns: &Option<Patterns>, name: Option<&str>| match (patterns, name) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(true),
            (Some(patterns), Some(name)) if patterns.matches(name) => Ok(()),
            (Some(_), Some(_)) => Err(false),
        };
        if wants(&self.source, Some(subject.source)).is_err() {
            return Some(Mismatch::Source);
        }
        if let Err(has_none) = wants(&self.activity, subject.activity) {
            return Some(if has_none { Mismatch::NoActivity } else { Mismatch::Activity });
        }
        if let Err(has_none) = wants(&self.resource, subject.resource.object.as_deref()) {
            return Some(if has_none { Mismatch::NoResource } else { Mismatch::Resource });
        }
        self.when.iter().find(|condition| !condition.holds(document)).map(Mismatch::When)
    }
}

impl Routed {
    fn add(&mut self, target: &Arc<str>, route: &Route, values: &Values<'_>) {
        let known = self.deliveries.iter_mut().find(|known| known.target == *target);
        let delivery = match known {
            Some(delivery) => delivery,
            None => self.deliveries.push_mut(NewDelivery {
                target: Arc::clone(target),
                headers: Vec::new(),
                routes: Vec::new(),
            }),
        };
        for HeaderRule { name, value } in &route.headers {
            match value.render(values, target) {
                Some(value) => set_header(&mut delivery.headers, name.clone(), value),
                None => self.left_out.push(Arc::clone(target)),
            }
        }
        delivery.routes.push(Arc::clone(&route.name));
    }
}

/// Puts one header among others: a name that is there gets the new value, in its place.
pub fn set_header(headers: &mut Vec<Header>, name: http::HeaderName, value: http::HeaderValue) {
    match headers.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = value,
        None => headers.push((name, value)),
    }
}

/// Finds the rules that an activity may match, so that ten thousand cost no more than ten.
///
/// A rule whose patterns all begin or end with something fixed is found by that; the others are
/// asked each time. All lists are in file order.
#[derive(Debug, Default)]
struct Index {
    exact: HashMap<Box<str>, Vec<usize>>,
    prefixes: Affixes,
    suffixes: Affixes,
    asked_always: Vec<usize>,
}

/// Rules by the fixed beginning, or end, of their patterns.
#[derive(Debug, Default)]
struct Affixes {
    rules: HashMap<Box<str>, Vec<usize>>,
    /// The lengths that occur, in bytes.
    lengths: Vec<usize>,
}

impl Index {
    fn new(routes: &[Route]) -> Self {
        let mut index = Self::default();
        for (number, route) in routes.iter().enumerate() {
            let anchors = route.activity.as_ref().and_then(Patterns::anchors);
            for anchor in anchors.as_deref().unwrap_or(&[Anchor::None]) {
                let list = match anchor {
                    Anchor::Exact(name) => index.exact.entry((*name).into()).or_default(),
                    Anchor::Prefix(prefix) => index.prefixes.list(prefix),
                    Anchor::Suffix(suffix) => index.suffixes.list(suffix),
                    Anchor::None => &mut index.asked_always,
                };
                if list.last() != Some(&number) {
                    list.push(number);
                }
            }
        }
        index
    }

    /// The numbers of the rules that are to be asked, in file order.
    fn candidates(&self, activity: Option<&str>) -> impl Iterator<Item = usize> {
        let named = activity.map_or(Cow::Borrowed(&[][..]), |activity| self.named(activity));
        let mut always = self.asked_always.iter().copied().peekable();
        let mut next = 0;
        // Both lists are in file order: merged, they are too.
        std::iter::from_fn(move || match (named.get(next).copied(), always.peek().copied()) {
            (Some(a), Some(b)) if b < a => always.next(),
            (Some(a), b) => {
                next += 1;
                if b == Some(a) {
                    always.next();
                }
                Some(a)
            }
            (None, _) => always.next(),
        })
    }

    fn named(&self, activity: &str) -> Cow<'_, [usize]> {
        let exact = self.exact.get(activity).map_or(&[][..], Vec::as_slice);
        let prefixes = self.prefixes.lengths.iter().filter_map(|length| activity.get(..*length));
        let suffixes = self
            .suffixes
            .lengths
            .iter()
            .filter_map(|length| activity.get(activity.len().checked_sub(*length)?..));
        let mut more = prefixes
            .filter_map(|prefix| self.prefixes.rules.get(prefix))
            .chain(suffixes.filter_map(|suffix| self.suffixes.rules.get(suffix)))
            .peekable();
        if more.peek().is_none() {
            return Cow::Borrowed(exact);
        }
        let mut all = exact.to_vec();
        more.for_each(|list| all.extend_from_slice(list));
        all.sort_unstable();
        all.dedup();
        Cow::Owned(all)
    }
}

impl Affixes {
    fn list(&mut self, affix: &str) -> &mut Vec<usize> {
        if let Err(at) = self.lengths.binary_search(&affix.len()) {
            self.lengths.insert(at, affix.len());
        }
        self.rules.entry(affix.into()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::condition::{Scalar, Test};
    use crate::domain::pointer::Pointer;
    use crate::domain::template::{HeaderText, Template};
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn route(name: &str, activity: &[&str], to: &[&str]) -> Route {
        Route {
            name: name.into(),
            source: None,
            activity: (!activity.is_empty()).then(|| Patterns::new(activity.iter().copied())),
            resource: None,
            when: Vec::new(),
            to: to.iter().map(|target| Arc::from(*target)).collect(),
            headers: Vec::new(),
            end: false,
        }
    }

    fn table(routes: Vec<Route>) -> RoutingTable {
        RoutingTable::new(Rules { routes, ..Rules::default() })
    }

    /// A table with conditions and headers, which share their pointers.
    fn table_with(change: impl FnOnce(&mut Pointers) -> Vec<Route>) -> RoutingTable {
        let mut pointers = Pointers::default();
        let routes = change(&mut pointers);
        RoutingTable::new(Rules { routes, pointers, ..Rules::default() })
    }

    fn subject<'a>(
        activity: Option<&'a str>,
        resource: &'a Resource,
        body: &'a str,
    ) -> Subject<'a> {
        Subject {
            webhook_id: WebhookId::from_key(1),
            received_at: Timestamp::from_millis(1_700_000_000_000),
            source: "aryeo",
            activity,
            resource,
            body: body.as_bytes(),
        }
    }

    fn targets(routed: &Routed) -> Vec<&str> {
        routed.deliveries.iter().map(|delivery| &*delivery.target).collect()
    }

    #[track_caller]
    fn check(
        table: &RoutingTable,
        activity: Option<&str>,
        object: Option<&str>,
        expected: &[&str],
    ) {
        let resource = Resource { object: object.map(Into::into), id: None };
        let routed = table.route(&subject(activity, &resource, "{}"));
        assert_eq!(targets(&routed), expected);
    }

    #[test]
    fn every_matching_route_adds_its_targets_in_file_order_until_a_final_one() {
        let mut last = route("last", &["ORDER_*"], &["audit"]);
        last.end = true;
        let table = table(vec![
            route("exact", &["ORDER_CREATED"], &["crm", "billing"]),
            route("wild", &["ORDER_*", "!ORDER_VIEWED"], &["mail", "crm"]),
            last,
            route("rest", &[], &["lake"]),
        ]);
        check(&table, Some("ORDER_CREATED"), None, &["crm", "billing", "mail", "audit"]);
        check(&table, Some("ORDER_VIEWED"), None, &["audit"]);
        check(&table, Some("LISTING_DELIVERED"), None, &["lake"]);
        check(&table, None, Some("ORDER"), &["lake"]);
    }

    #[test]
    fn a_route_that_names_an_activity_never_matches_a_webhook_without_one() {
        let table = table(vec![route("any", &["*"], &["crm"]), route("not", &["!X"], &["mail"])]);
        check(&table, None, Some("GROUP"), &[]);
        check(&table, Some("Y"), None, &["crm", "mail"]);
    }

    #[test]
    fn resource_and_source_narrow_a_route() {
        let mut listings = route("listings", &[], &["site"]);
        listings.resource = Some(Patterns::new(["LISTING"]));
        let mut other = route("other", &[], &["crm"]);
        other.source = Some(Patterns::new(["zillow"]));
        let table = table(vec![listings, other]);
        check(&table, None, Some("LISTING"), &["site"]);
        check(&table, None, Some("ORDER"), &[]);
        check(&table, None, None, &[]);
    }

    #[test]
    fn later_routes_replace_headers_of_earlier_ones_without_regard_to_case() {
        let mut first = route("first", &[], &["crm"]);
        first.headers = vec![fixed("X-Tenant", "a"), fixed("X-One", "1")];
        let mut second = route("second", &[], &["crm"]);
        second.headers = vec![fixed("x-tenant", "b")];
        let resource = Resource::default();
        let routed = table(vec![first, second]).route(&subject(None, &resource, ""));
        let [delivery] = routed.deliveries.as_slice() else { panic!("{routed:?}") };
        assert_eq!(shown(&delivery.headers), ["x-tenant: b", "x-one: 1"]);
        assert_eq!(delivery.routes, vec![Arc::from("first"), Arc::from("second")]);
    }

    fn fixed(name: &str, value: &str) -> HeaderRule {
        let value = HeaderText::Fixed(HeaderValue::try_from(value).unwrap());
        HeaderRule { name: HeaderName::try_from(name).unwrap(), value }
    }

    fn templated(name: &str, value: &str, pointers: &mut Pointers) -> HeaderRule {
        let template = Template::parse(value, |pointer| pointers.add(pointer)).unwrap();
        let value = HeaderText::Template(template);
        HeaderRule { name: HeaderName::try_from(name).unwrap(), value }
    }

    fn shown(headers: &[Header]) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    fn equals(pointer: &str, text: &str, pointers: &mut Pointers) -> Condition {
        let pointer = Pointer::parse(pointer).unwrap();
        let id = pointers.add(&pointer);
        Condition { pointer, id, test: Test::Equals(Scalar::Text(text.into())) }
    }

    #[test]
    fn conditions_narrow_a_route_and_headers_are_rendered_for_each_target() {
        let table = table_with(|pointers| {
            let mut vip = route("vip", &["ORDER_*"], &["crm", "desk"]);
            vip.when = vec![equals("/resource/tier", "gold", pointers)];
            vip.headers = vec![
                templated("x-to", "{target}", pointers),
                templated("x-city", "{body:/resource/city}", pointers),
            ];
            vec![vip]
        });
        let resource = Resource::default();
        let route = |body| table.route(&subject(Some("ORDER_CREATED"), &resource, body));
        let routed = route(r#"{"resource":{"tier":"gold","city":"Reno"}}"#);
        assert_eq!(shown(&routed.deliveries[0].headers), ["x-to: crm", "x-city: Reno"]);
        assert_eq!(shown(&routed.deliveries[1].headers), ["x-to: desk", "x-city: Reno"]);
        assert_eq!(routed.left_out, []);
        let routed = route(r#"{"resource":{"tier":"gold"}}"#);
        assert_eq!(shown(&routed.deliveries[1].headers), ["x-to: desk"]);
        assert_eq!(routed.left_out, [Arc::from("crm"), Arc::from("desk")]);
        for body in [r#"{"resource":{"tier":"tin"}}"#, "{}", "not json", ""] {
            assert_eq!(route(body).deliveries, [], "{body}");
        }
    }

    #[test]
    fn the_body_is_read_only_when_a_rule_that_can_still_match_asks() {
        let mut pointers = Pointers::default();
        let mut asks = route("asks", &["ORDER_*"], &["crm"]);
        asks.when = vec![equals("/a", "x", &mut pointers)];
        let resource = Resource::default();
        for (activity, is_read) in [("ORDER_CREATED", true), ("LISTING_DELIVERED", false)] {
            let document = Document::new(b"{}", &pointers);
            assert!(asks.mismatch(&subject(Some(activity), &resource, "{}"), &document).is_some());
            assert_eq!(document.was_read(), is_read, "{activity}");
        }
    }

    #[test]
    fn whether_a_body_is_asked_for_is_known_without_it() {
        let table = table_with(|pointers| {
            let mut last = route("last", &["B"], &["t"]);
            last.end = true;
            let mut asks = route("asks", &["!C"], &["t"]);
            asks.when = vec![equals("/a", "x", pointers)];
            vec![last, asks]
        });
        let resource = Resource::default();
        for (activity, asked) in [("A", true), ("B", false), ("C", false)] {
            let subject = subject(Some(activity), &resource, "");
            assert_eq!(table.asks_for_body(&subject), asked, "{activity}");
        }
    }

    #[test]
    fn an_explanation_names_the_first_reason_and_the_final_route() {
        let table = table_with(|pointers| {
            let mut other_source = route("source", &["A"], &["t"]);
            other_source.source = Some(Patterns::new(["zillow"]));
            let mut listing = route("resource", &[], &["t"]);
            listing.resource = Some(Patterns::new(["LISTING"]));
            let mut asks = route("asks", &["A"], &["t"]);
            asks.when = vec![equals("/a", "x", pointers)];
            let mut last = route("last", &["*"], &["t"]);
            last.end = true;
            vec![
                other_source,
                route("activity", &["B"], &["t"]),
                listing,
                asks,
                last,
                route("after", &[], &["t"]),
            ]
        });
        let explained = |activity: Option<&str>, object: Option<&str>| {
            let resource = Resource { object: object.map(Into::into), id: None };
            let subject = subject(activity, &resource, "{}");
            let verdicts = table.explain(&subject).into_iter();
            verdicts
                .map(|(_, verdict)| match verdict {
                    Verdict::Matched => "matched".to_owned(),
                    Verdict::Mismatched(Mismatch::When(condition)) => condition.to_string(),
                    Verdict::Mismatched(mismatch) => format!("{mismatch:?}"),
                    Verdict::Unasked(end) => format!("after {}", end.name),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(
            explained(Some("A"), Some("ORDER")),
            ["Source", "Activity", "Resource", r#"/a: "x""#, "matched", "after last"]
        );
        assert_eq!(
            explained(None, None),
            ["Source", "NoActivity", "NoResource", "NoActivity", "NoActivity", "matched"]
        );
    }

    proptest! {
        #[test]
        fn the_compiled_table_agrees_with_asking_every_route(
            rules in prop::collection::vec(
                (prop::collection::vec("!?[ABé*?]{1,3}", 0..4), 0..4_usize, any::<bool>()), 0..12),
            activity in prop::option::of("[ABé]{1,4}"),
        ) {
            let routes: Vec<_> = rules.iter().enumerate().map(|(n, (patterns, to, end))| Route {
                end: *end,
                ..route(&n.to_string(), &patterns.iter().map(|p| &**p).collect::<Vec<_>>(),
                    &[&format!("t{to}")])
            }).collect();
            let resource = Resource::default();
            let subject = subject(activity.as_deref(), &resource, "");
            let pointers = Pointers::default();
            let document = Document::new(b"", &pointers);
            let mut naive: Vec<Arc<str>> = Vec::new();
            for route in &routes {
                if route.mismatch(&subject, &document).is_none() {
                    if !naive.contains(&route.to[0]) { naive.push(Arc::clone(&route.to[0])); }
                    if route.end { break; }
                }
            }
            let compiled: Vec<_> = table(routes).route(&subject).deliveries.into_iter().map(|d| d.target).collect();
            prop_assert_eq!(compiled, naive);
        }
    }
}
