//! Two tables over the same webhooks: what would go elsewhere.

use std::collections::BTreeMap;

use crate::domain::route::{RoutingTable, Subject};
use crate::domain::webhook::WebhookId;

/// How two tables route the same webhooks. Bounded by the routes and targets of both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Webhooks looked at.
    pub examined: u64,
    /// Those that would reach other targets.
    pub changed: u64,
    /// Those that reach no target now, and then.
    pub unrouted: Counts,
    /// By name: the webhooks that a route wants now, and then.
    pub routes: BTreeMap<Box<str>, Counts>,
    /// By name: the webhooks that a target gets now, and then.
    pub targets: BTreeMap<Box<str>, Counts>,
    /// Some that would go elsewhere, the first ones.
    pub examples: Vec<Example>,
}

/// How many now and then, and how they differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the table in force.
    pub now: u64,
    /// By the candidate.
    pub then: u64,
    /// By the candidate and not by the table in force.
    pub gained: u64,
    /// By the table in force and not by the candidate.
    pub lost: u64,
}

/// A webhook that would go elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its identity.
    pub webhook_id: WebhookId,
    /// The activity, where it has one.
    pub activity: Option<Box<str>>,
    /// The targets that it reaches by the table in force.
    pub now: Vec<Box<str>>,
    /// The targets that it would reach.
    pub then: Vec<Box<str>>,
}

impl Comparison {
    /// Of nothing yet: everything that either table names is there, at zero.
    pub fn new(now: &RoutingTable, then: &RoutingTable) -> Self {
        let both = [now, then];
        let routes = both.iter().flat_map(|table| table.routes());
        let targets = both.iter().flat_map(|table| table.targets.keys());
        Self {
            routes: routes.map(|route| ((*route.name).into(), Counts::default())).collect(),
            targets: targets.map(|name| ((**name).into(), Counts::default())).collect(),
            ..Self::default()
        }
    }

    /// Adds one webhook. Its body matters only where one of the tables asks for it.
    pub fn take(
        &mut self,
        subject: &Subject<'_>,
        now: &RoutingTable,
        then: &RoutingTable,
        examples_max: usize,
    ) {
        let (now, then) = (Reached::of(now, subject), Reached::of(then, subject));
        self.examined += 1;
        count(&mut self.routes, &now.routes, &then.routes);
        count(&mut self.targets, &now.targets, &then.targets);
        self.unrouted.add(now.targets.is_empty(), then.targets.is_empty());
        if now.targets == then.targets {
            return;
        }
        self.changed += 1;
        if self.examples.len() < examples_max {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
            self.examples.push(Example {
                webhook_id: subject.webhook_id,
                activity: subject.activity.map(Into::into),
                now: owned(&now.targets),
                then: owned(&then.targets),
            });
        }
    }
}

impl Counts {
    fn add(&mut self, now: bool, then: bool) {
        self.now += u64::from(now);
        self.then += u64::from(then);
        self.gained += u64::from(then && !now);
        self.lost += u64::from(now && !then);
    }
}

/// What one table does with a webhook: names, sorted.
struct Reached<'a> {
    routes: Vec<&'a str>,
    targets: Vec<&'a str>,
}

impl<'a> Reached<'a> {
    fn of(table: &'a RoutingTable, subject: &Subject<'_>) -> Self {
        let document = table.document(subject.body);
        let mut reached = Self { routes: Vec::new(), targets: Vec::new() };
        for at in table.matching(subject, &document) {
            reached.routes.push(&at.name);
            reached.targets.extend(at.to.iter().map(|target| &**target));
        }
        reached.routes.sort_unstable();
        reached.targets.sort_unstable();
        reached.targets.dedup();
        reached
    }
}

fn count(counts: &mut BTreeMap<Box<str>, Counts>, now: &[&str], then: &[&str]) {
    for name in now {
        counts.entry((*name).into()).or_default().add(true, then.binary_search(name).is_ok());
    }
    for name in then.iter().filter(|name| now.binary_search(name).is_err()) {
        counts.entry((*name).into()).or_default().add(false, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pattern::Patterns;
    use crate::domain::route::{Route, Rules};
    use crate::domain::time::Timestamp;
    use crate::domain::webhook::Resource;

    fn table(routes: &[(&str, &str, &[&str])]) -> RoutingTable {
        let route = |(name, activity, to): &(&str, &str, &[&str])| Route {
            name: (*name).into(),
            source: None,
            activity: Some(Patterns::new([activity])),
            resource: None,
            when: Vec::new(),
            to: to.iter().map(|target| (*target).into()).collect(),
            headers: Vec::new(),
            end: false,
        };
        let routes = routes.iter().map(route).collect();
        RoutingTable::new(Rules { routes, ..Rules::default() })
    }

    #[test]
    fn what_would_go_elsewhere_is_counted_and_shown() {
        let now = table(&[("orders", "ORDER_*", &["crm", "lake"]), ("all", "*", &["lake"])]);
        let then =
            table(&[("orders", "ORDER_CREATED", &["desk", "lake"]), ("new", "X", &["lake"])]);
        let mut comparison = Comparison::new(&now, &then);
        let resource = Resource::default();
        for (key, activity) in [(1, "ORDER_CREATED"), (2, "ORDER_VIEWED"), (3, "X"), (4, "Y")] {
            let subject = Subject {
                webhook_id: WebhookId::from_key(key),
                received_at: Timestamp::from_millis(1),
                source: "s",
                activity: Some(activity),
                resource: &resource,
                body: b"",
            };
            comparison.take(&subject, &now, &then, 2);
        }
        assert_eq!((comparison.examined, comparison.changed), (4, 3));
        let counts = |now, then, gained, lost| Counts { now, then, gained, lost };
        assert_eq!(comparison.targets["crm"], counts(2, 0, 0, 2));
        assert_eq!(comparison.targets["desk"], counts(0, 1, 1, 0));
        assert_eq!(comparison.targets["lake"], counts(4, 2, 0, 2));
        assert_eq!(comparison.routes["orders"], counts(2, 1, 0, 1));
        assert_eq!(comparison.routes["new"], counts(0, 1, 1, 0));
        assert_eq!(comparison.unrouted, counts(0, 2, 2, 0));
        let [first, second] = comparison.examples.as_slice() else { panic!("{comparison:?}") };
        assert_eq!(
            (&*first.now, &*first.then),
            (&["crm".into(), "lake".into()][..], &["desk".into(), "lake".into()][..])
        );
        assert_eq!((second.webhook_id, second.then.len()), (WebhookId::from_key(2), 0));
    }
}
