//! The routing table: which targets want a webhook, decided in one pass.

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::pattern::Patterns;
use crate::domain::source::Source;
use crate::domain::target::Target;
use crate::domain::webhook::{Header, NewDelivery, Resource};

/// A rule: which webhooks, to which targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// Only from these sources.
    pub source: Option<Patterns>,
    /// Only these activities; a webhook without one never matches then.
    pub activity: Option<Patterns>,
    /// Only these resource types; a webhook without one never matches then.
    pub resource: Option<Patterns>,
    /// To these targets, in order.
    pub to: Vec<Arc<str>>,
    /// On top of the target's own headers.
    pub headers: Vec<Header>,
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
    /// The source's name.
    pub source: &'a str,
    /// The activity, where there is one.
    pub activity: Option<&'a str>,
    /// What it is about.
    pub resource: &'a Resource,
}

/// All compiled rules, sources and targets; immutable.
#[derive(Debug)]
pub struct RoutingTable {
    /// Who may post.
    pub sources: Vec<Arc<Source>>,
    /// Where deliveries go, by name.
    pub targets: HashMap<Arc<str>, Arc<Target>>,
    /// What happens to the rest.
    pub unrouted: Unrouted,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    by_path: HashMap<Box<str>, Arc<Source>>,
    routes: Vec<Route>,
    // Rules that name exact activities are found by the name; the others are asked each time.
    by_activity: HashMap<Box<str>, Vec<usize>>,
    asked_always: Vec<usize>,
}

impl RoutingTable {
    /// Compiles a table. The caller has checked names and references.
    pub fn new(
        sources: Vec<Source>,
        targets: Vec<Target>,
        routes: Vec<Route>,
        unrouted: Unrouted,
        sha256: [u8; 32],
    ) -> Self {
        let sources: Vec<_> = sources.into_iter().map(Arc::new).collect();
        let by_path =
            sources.iter().map(|source| (source.path.clone(), Arc::clone(source))).collect();
        let mut by_activity: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        let mut asked_always = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            match route.activity.as_ref().and_then(Patterns::exact) {
                Some(mut names) => {
                    names.sort_unstable();
                    names.dedup();
                    for name in names {
                        by_activity.entry(name.into()).or_default().push(index);
                    }
                }
                None => asked_always.push(index),
            }
        }
        Self {
            by_path,
            targets: targets.into_iter().map(|t| (Arc::clone(&t.name), Arc::new(t))).collect(),
            sources,
            unrouted,
            sha256,
            routes,
            by_activity,
            asked_always,
        }
    }

    /// The source on exactly this path.
    pub fn source(&self, path: &str) -> Option<&Arc<Source>> {
        self.by_path.get(path)
    }

    /// The rules, in file order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The deliveries that a webhook gets: every matching route adds its targets, in file order,
    /// until one that is `final`. A target named twice gets one, with the headers of all its routes.
    pub fn route(&self, subject: Subject<'_>) -> Vec<NewDelivery> {
        let mut deliveries: Vec<NewDelivery> = Vec::new();
        for route in self.candidates(subject.activity) {
            if !route.matches(subject) {
                continue;
            }
            for target in &route.to {
                let known = deliveries.iter_mut().find(|known| known.target == *target);
                let delivery = match known {
                    Some(delivery) => delivery,
                    None => deliveries.push_mut(NewDelivery {
                        target: Arc::clone(target),
                        headers: Vec::new(),
                        routes: Vec::new(),
                    }),
                };
                merge_headers(&mut delivery.headers, &route.headers);
                delivery.routes.push(Arc::clone(&route.name));
            }
            if route.end {
                break;
            }
        }
        deliveries
    }

    fn candidates(&self, activity: Option<&str>) -> impl Iterator<Item = &Route> {
        let named = activity.and_then(|name| self.by_activity.get(name)).map_or(&[][..], |v| v);
        let mut named = named.iter().copied().peekable();
        let mut always = self.asked_always.iter().copied().peekable();
        // Both lists are in file order: merged, they are too.
        std::iter::from_fn(move || match (named.peek(), always.peek()) {
            (Some(a), Some(b)) if a < b => named.next(),
            (_, Some(_)) => always.next(),
            (_, None) => named.next(),
        })
        .filter_map(|index| self.routes.get(index))
    }
}

impl Route {
    /// Whether it wants this webhook.
    pub fn matches(&self, subject: Subject<'_>) -> bool {
        fn wants(patterns: Option<&Patterns>, name: Option<&str>) -> bool {
            patterns.is_none_or(|patterns| name.is_some_and(|name| patterns.matches(name)))
        }
        wants(self.source.as_ref(), Some(subject.source))
            && wants(self.activity.as_ref(), subject.activity)
            && wants(self.resource.as_ref(), subject.resource.object.as_deref())
    }
}

/// Puts `more` on top of `headers`: a name that is there is replaced, in its place.
pub fn merge_headers(headers: &mut Vec<Header>, more: &[Header]) {
    for (name, value) in more {
        match headers.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.clone_from(value),
            None => headers.push((name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn route(name: &str, activity: &[&str], to: &[&str]) -> Route {
        Route {
            name: name.into(),
            source: None,
            activity: (!activity.is_empty()).then(|| Patterns::new(activity.iter().copied())),
            resource: None,
            to: to.iter().map(|target| Arc::from(*target)).collect(),
            headers: Vec::new(),
            end: false,
        }
    }

    fn table(routes: Vec<Route>) -> RoutingTable {
        RoutingTable::new(Vec::new(), Vec::new(), routes, Unrouted::Keep, [0; 32])
    }

    #[track_caller]
    fn check(
        table: &RoutingTable,
        activity: Option<&str>,
        object: Option<&str>,
        expected: &[&str],
    ) {
        let resource = Resource { object: object.map(Into::into), id: None };
        let subject = Subject { source: "aryeo", activity, resource: &resource };
        let targets: Vec<_> = table.route(subject).into_iter().map(|d| d.target).collect();
        assert_eq!(targets.iter().map(|t| &**t).collect::<Vec<_>>(), expected);
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
        let header = |name: &str, value: &str| {
            (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
        };
        let mut first = route("first", &[], &["crm"]);
        first.headers = vec![header("X-Tenant", "a"), header("X-One", "1")];
        let mut second = route("second", &[], &["crm"]);
        second.headers = vec![header("x-tenant", "b")];
        let resource = Resource::default();
        let subject = Subject { source: "aryeo", activity: None, resource: &resource };
        let deliveries = table(vec![first, second]).route(subject);
        assert_eq!(deliveries.len(), 1);
        assert_eq!(deliveries[0].headers, vec![header("x-tenant", "b"), header("x-one", "1")]);
        assert_eq!(deliveries[0].routes, vec![Arc::from("first"), Arc::from("second")]);
    }

    proptest! {
        #[test]
        fn the_compiled_table_agrees_with_asking_every_route(
            rules in prop::collection::vec(
                (prop::collection::vec("!?[AB*]{1,2}", 0..3), 0..4_usize, any::<bool>()), 0..12),
            activity in prop::option::of("[AB]{1,2}"),
        ) {
            let routes: Vec<_> = rules.iter().enumerate().map(|(n, (patterns, to, end))| Route {
                end: *end,
                ..route(&n.to_string(), &patterns.iter().map(|p| &**p).collect::<Vec<_>>(),
                    &[&format!("t{to}")])
            }).collect();
            let resource = Resource::default();
            let subject = Subject { source: "s", activity: activity.as_deref(), resource: &resource };
            let mut naive: Vec<Arc<str>> = Vec::new();
            for route in &routes {
                if route.matches(subject) {
                    if !naive.contains(&route.to[0]) { naive.push(Arc::clone(&route.to[0])); }
                    if route.end { break; }
                }
            }
            let compiled: Vec<_> = table(routes).route(subject).into_iter().map(|d| d.target).collect();
            prop_assert_eq!(compiled, naive);
        }
    }
}
