//! `routes`: which webhooks, to which targets.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use http::HeaderName;

use crate::config::compile::{Context, HeadersOf};
use crate::config::forms::Text;
use crate::config::problem::Span;
use crate::config::schema;
use crate::config::spot::Spot;
use crate::config::{condition, value};
use crate::domain::pointer::Pointers;
use crate::domain::route::Route;
use crate::domain::target::Target;

/// What a route can name.
pub(super) struct Known<'a> {
    pub(super) sources: HashSet<&'a str>,
    /// Every target's, also of those that have problems of their own.
    pub(super) target_names: HashSet<&'a str>,
    pub(super) targets: HashMap<&'a str, &'a Target>,
}

/// Compiles all routes.
pub(super) fn compile(
    routes: &[schema::Route],
    spot: Spot<'_>,
    known: &Known<'_>,
    pointers: &mut Pointers,
    context: &mut Context<'_>,
) -> Vec<Route> {
    let mut names: HashMap<&str, Span> = HashMap::new();
    let mut compiled = Vec::with_capacity(routes.len());
    for (index, route) in routes.iter().enumerate() {
        let spot = spot.item(index);
        let at = spot.key("name").at;
        context.take(at, value::name(&route.name.0));
        match names.get(&*route.name.0) {
            Some(other) => {
                let message = format!(
                    "a route is named \"{}\" already, in line {}",
                    route.name.0,
                    other.line()
                );
                context.report.error(at, message);
            }
            None => _ = names.insert(&route.name.0, at),
        }
        compiled.push(one(route, spot, known, pointers, context));
    }
    compiled
}

fn one(
    route: &schema::Route,
    spot: Spot<'_>,
    known: &Known<'_>,
    pointers: &mut Pointers,
    context: &mut Context<'_>,
) -> Route {
    let source = context.patterns("source", route.source.as_ref(), spot.key("source"));
    context.known_sources(route.source.as_ref(), spot.key("source"), &known.sources);
    let activity = context.patterns("activity", route.activity.as_ref(), spot.key("activity"));
    let resource = context.patterns("resource", route.resource.as_ref(), spot.key("resource"));
    let when = condition::compile(&route.when, spot.key("when"), pointers, context);
    let to = targets(&route.to, spot.key("to"), known, context);
    let reached = to.iter().filter_map(|name| known.targets.get(&**name));
    let taken: Vec<HeaderName> = reached.flat_map(|target| target.sign.header_names()).collect();
    let owner = HeadersOf::Route(&taken);
    let headers = context.headers(&route.headers, spot.key("headers"), owner, pointers);
    let name = route.name.0.as_str().into();
    let end = route.end.unwrap_or_default();
    Route { name, source, activity, resource, when, to, headers, end }
}

fn targets(
    list: &[Text],
    spot: Spot<'_>,
    known: &Known<'_>,
    context: &mut Context<'_>,
) -> Vec<Arc<str>> {
    if list.is_empty() {
        context.report.error(spot.at, "\"to\" is empty: a route has at least one target");
    }
    let mut seen = HashSet::new();
    let mut targets = Vec::with_capacity(list.len());
    for (index, Text(name)) in list.iter().enumerate() {
        let at = spot.item(index).at;
        if !known.target_names.contains(&**name) {
            let reported = context.report.error(at, format!("unknown target \"{name}\""));
            reported.suggest_name(name, &known.target_names);
        } else if !seen.insert(name) {
            context.report.warning(at, format!("target \"{name}\" is in this list already"));
        } else {
            // One name for all that mention it, as far as it is at hand.
            let shared = known.targets.get(&**name).map(|target| Arc::clone(&target.name));
            targets.push(shared.unwrap_or_else(|| name.as_str().into()));
        }
    }
    targets
}
