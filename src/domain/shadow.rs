//! Routes that can never match, because one above them that is `final` takes everything first.
//!
//! What is found is so; what is not found may be so nevertheless.

use std::collections::HashMap;

use crate::domain::pattern::{Anchor, Pattern, Patterns};
use crate::domain::route::Route;

/// A route that no webhook reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadowed {
    /// Its number in file order, from 0.
    pub route: usize,
    /// The number of the final route that takes everything it wants.
    pub by: usize,
}

/// Finds them among `routes`. `sources` are the names of all there are; `steps` bounds the work, by
/// comparisons of two patterns, and what is left of it remains there.
///
/// Without final routes it costs nothing; with them, each route is compared with those that may take
/// what it wants, by the fixed beginnings and ends of their activities.
pub fn shadowed(routes: &[&Route], sources: &[&str], steps: &mut usize) -> Vec<Shadowed> {
    let mut takers = Takers::default();
    let mut found = Vec::new();
    for (number, route) in routes.iter().enumerate() {
        if *steps == 0 {
            break;
        }
        let by = takers.candidates(route).find(|by| {
            let Some(taker) = routes.get(*by) else { return false };
            spend(steps, taker, route) && takes_all(taker, route, sources)
        });
        match by {
            // What it takes in turn is taken by that one already.
            Some(by) => found.push(Shadowed { route: number, by }),
            None if route.end && route.when.is_empty() => takers.add(number, route),
            None => {}
        }
    }
    found
}

/// Whether there are steps left for comparing two routes.
fn spend(steps: &mut usize, taker: &Route, route: &Route) -> bool {
    let length = |patterns: &Option<Patterns>| patterns.as_ref().map_or(1, Patterns::len);
    let cost = 1
        + length(&taker.activity) * length(&route.activity)
        + length(&taker.resource) * length(&route.resource)
        + length(&taker.source)
        + length(&route.source);
    *steps = steps.saturating_sub(cost);
    *steps > 0
}

fn takes_all(taker: &Route, route: &Route, sources: &[&str]) -> bool {
    let wants = |patterns: &Option<Patterns>, name: &str| {
        patterns.as_ref().is_none_or(|patterns| patterns.matches(name))
    };
    let covers = |wide: &Option<Patterns>, narrow: &Option<Patterns>| match (wide, narrow) {
        (None, _) => true,
        // A route without patterns also wants webhooks that have no such name.
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => wide.covers(narrow),
    };
    covers(&taker.activity, &route.activity)
        && covers(&taker.resource, &route.resource)
        // There are no other sources than these.
        && (taker.source.is_none()
            || sources.iter().all(|name| !wants(&route.source, name) || wants(&taker.source, name)))
}

/// Final routes without conditions, by what the activities have that they take.
#[derive(Debug, Default)]
struct Takers<'a> {
    exact: HashMap<&'a str, Vec<usize>>,
    heads: HashMap<&'a str, Vec<usize>>,
    tails: HashMap<&'a str, Vec<usize>>,
    any: Vec<usize>,
}

impl<'a> Takers<'a> {
    fn add(&mut self, number: usize, route: &'a Route) {
        let anchors = route.activity.as_ref().and_then(Patterns::anchors);
        for anchor in anchors.as_deref().unwrap_or(&[Anchor::None]) {
            let list = match anchor {
                Anchor::Exact(name) => self.exact.entry(name).or_default(),
                Anchor::Prefix(head) => self.heads.entry(head).or_default(),
                Anchor::Suffix(tail) => self.tails.entry(tail).or_default(),
                Anchor::None => &mut self.any,
            };
            if list.last() != Some(&number) {
                list.push(number);
            }
        }
    }

    /// The routes that may take all that `route` wants: they take what its first pattern does.
    fn candidates(&self, route: &Route) -> impl Iterator<Item = usize> {
        let first = route.activity.as_ref().and_then(|activity| activity.includes().first());
        let head = first.map(Pattern::head).unwrap_or_default();
        let tail = first.map(Pattern::tail).unwrap_or_default();
        let exact = first.and_then(Pattern::exact).and_then(|name| self.exact.get(name));
        let heads = (1..=head.len()).filter_map(|end| self.heads.get(head.get(..end)?));
        let tails = (0..tail.len()).filter_map(|begin| self.tails.get(tail.get(begin..)?));
        let lists = exact.into_iter().chain(heads).chain(tails).chain([&self.any]);
        lists.flatten().copied().collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::condition::{Condition, Test};
    use crate::domain::pointer::{Document, Pointer, Pointers};
    use crate::domain::route::Subject;
    use crate::domain::time::Timestamp;
    use crate::domain::webhook::{Resource, WebhookId};
    use proptest::prelude::*;

    fn patterns(list: &[&str]) -> Option<Patterns> {
        (!list.is_empty()).then(|| Patterns::new(list.iter().copied()))
    }

    fn route(activity: &[&str], end: bool) -> Route {
        Route {
            name: "r".into(),
            source: None,
            activity: patterns(activity),
            resource: None,
            when: Vec::new(),
            to: vec!["t".into()],
            headers: Vec::new(),
            end,
        }
    }

    #[track_caller]
    fn check(routes: &[Route], expected: &[(usize, usize)]) {
        let found = shadowed(&routes.iter().collect::<Vec<_>>(), &["a", "b"], &mut 1_000_000);
        let found: Vec<_> = found.iter().map(|found| (found.route, found.by)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_a_final_route_above_takes_is_found_whatever_it_is_found_by() {
        check(&[route(&["ORDER_*"], true), route(&["ORDER_PAID"], false)], &[(1, 0)]);
        check(&[route(&["*_PAID"], true), route(&["ORDER_PAID"], false)], &[(1, 0)]);
        check(&[route(&["*_PAID"], true), route(&["ORDER_*_PAID"], false)], &[(1, 0)]);
        check(&[route(&["ORDER_PAID"], true), route(&["ORDER_PAID"], false)], &[(1, 0)]);
        check(&[route(&["*"], true), route(&["!ORDER_PAID"], false)], &[(1, 0)]);
        check(&[route(&[], true), route(&[], true), route(&["A"], false)], &[(1, 0), (2, 0)]);
        check(
            &[route(&["ORDER_*", "LISTING_*"], true), route(&["LISTING_MERGED"], true)],
            &[(1, 0)],
        );
    }

    #[test]
    fn what_may_still_be_reached_is_left_alone() {
        check(&[route(&["ORDER_*"], false), route(&["ORDER_PAID"], false)], &[]);
        check(&[route(&["ORDER_PAID"], false), route(&["ORDER_*"], true)], &[]);
        check(&[route(&["*"], true), route(&[], false)], &[]);
        check(&[route(&["ORDER_*", "!ORDER_PAID"], true), route(&["ORDER_PAID"], false)], &[]);
        let mut conditional = route(&["ORDER_*"], true);
        let pointer = Pointer::parse("/a").unwrap();
        let id = Pointers::default().add(&pointer);
        conditional.when = vec![Condition { pointer, id, test: Test::Exists(true) }];
        check(&[conditional, route(&["ORDER_PAID"], false)], &[]);
        let mut of_listings = route(&[], true);
        of_listings.resource = patterns(&["LISTING"]);
        check(&[of_listings, route(&[], false)], &[]);
    }

    #[test]
    fn sources_are_known_by_name() {
        let from = |source: &[&str], end| Route { source: patterns(source), ..route(&[], end) };
        check(&[from(&["a", "b"], true), from(&[], false)], &[(1, 0)]);
        check(&[from(&["a"], true), from(&["!b"], false)], &[(1, 0)]);
        check(&[from(&["a"], true), from(&["b"], false), from(&["*"], false)], &[]);
    }

    #[test]
    fn the_work_is_bounded() {
        let mut routes: Vec<Route> = Vec::new();
        for n in 0..2000 {
            // Final, and alike to all others as far as they are found by something.
            routes.push(route(&[&format!("ORDER_*_{n}_*")], true));
        }
        let mut steps = 10_000;
        assert_eq!(shadowed(&routes.iter().collect::<Vec<_>>(), &["a"], &mut steps), []);
        assert_eq!(steps, 0);
    }

    fn some_patterns() -> impl Strategy<Value = Option<Patterns>> {
        prop::option::of(prop::collection::vec("!?[ab*?]{1,2}", 1..3).prop_map(Patterns::new))
    }

    fn any_route() -> impl Strategy<Value = Route> {
        (some_patterns(), some_patterns(), some_patterns(), any::<bool>()).prop_map(
            |(source, activity, resource, end)| Route {
                source,
                activity,
                resource,
                ..route(&[], end)
            },
        )
    }

    proptest! {
        #[test]
        fn no_webhook_reaches_what_is_called_unreachable(
            routes in prop::collection::vec(any_route(), 1..6),
        ) {
            let sources = ["a", "b"];
            let refs: Vec<_> = routes.iter().collect();
            let found = shadowed(&refs, &sources, &mut 1_000_000);
            let names = [None, Some(""), Some("a"), Some("b"), Some("z"), Some("ab"), Some("aab")];
            let pointers = Pointers::default();
            let document = Document::new(b"", &pointers);
            for source in sources {
                for activity in names {
                    for object in names {
                        let resource = Resource { object: object.map(Into::into), id: None };
                        let subject = Subject {
                            webhook_id: WebhookId::from_key(1),
                            received_at: Timestamp::from_millis(0),
                            source,
                            activity,
                            resource: &resource,
                            body: b"",
                        };
                        for (number, route) in routes.iter().enumerate() {
                            if route.mismatch(&subject, &document).is_some() {
                                continue;
                            }
                            prop_assert!(found.iter().all(|found| found.route != number));
                            if route.end {
                                break;
                            }
                        }
                    }
                }
            }
        }
    }
}
