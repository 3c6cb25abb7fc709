//! The table in force, as far as it may be shown: no secret, and nothing that could hold one, such as
//! the path of a target's URL or the values of a condition.

use http::Uri;
use serde_json::{Value, json};

use crate::app::hex;
use crate::domain::pattern::Patterns;
use crate::domain::route::{Route, RoutingTable, Unrouted};
use crate::domain::signature::Scheme;
use crate::domain::source::Source;
use crate::domain::target::Target;

/// All of it: sources and routes in file order, targets by name.
pub(super) fn shown(table: &RoutingTable) -> Value {
    let mut targets: Vec<_> = table.targets.values().collect();
    targets.sort_by(|one, other| one.name.cmp(&other.name));
    json!({
        "sha256": hex(&table.sha256),
        "unrouted": match table.unrouted {
            Unrouted::Keep => "keep",
            Unrouted::Drop => "drop",
        },
        "sources": table.sources.iter().map(|source| of_source(source)).collect::<Vec<_>>(),
        "targets": targets.into_iter().map(|target| of_target(target)).collect::<Vec<_>>(),
        "routes": table.routes().iter().map(of_route).collect::<Vec<_>>(),
    })
}

fn of_source(source: &Source) -> Value {
    json!({
        "name": &*source.name,
        "path": source.path.as_str(),
        "scheme": named(source.verify.scheme()),
        "activity": source.activity,
        "body_bytes_max": source.body_bytes_max,
    })
}

fn of_target(target: &Target) -> Value {
    json!({
        "name": &*target.name,
        "origin": origin(&target.url),
        "scheme": named(target.sign.scheme()),
        "paused": target.paused,
        "concurrency": target.concurrency,
        "timeout_ms": u64::try_from(target.timeout.as_millis()).unwrap_or(u64::MAX),
    })
}

fn of_route(route: &Route) -> Value {
    let list = |patterns: &Option<Patterns>| {
        patterns.as_ref().map(|patterns| patterns.written().collect::<Vec<_>>())
    };
    json!({
        "name": &*route.name,
        "source": list(&route.source),
        "activity": list(&route.activity),
        "resource": list(&route.resource),
        "conditions": route.when.len(),
        "to": route.to.iter().map(|target| &**target).collect::<Vec<_>>(),
        "final": route.end,
    })
}

fn named(scheme: Option<Scheme>) -> &'static str {
    scheme.map_or("none", Scheme::name)
}

/// Where a URL leads, without its path: that is a secret with some services.
fn origin(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", url.scheme_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Secrets};
    use std::collections::HashMap;
    use std::path::Path;

    const TABLE: &str = "
sources:
  aryeo:
    path: /hooks/{activity}
    verify: { scheme: aryeo-timestamped, secrets: [{ value: s3cr3t-in }] }
    require_headers: { X-Key: { value: s3cr3t-key } }
  plain:
    path: /plain
    activity: PLAIN
    verify: { scheme: none }
    require_headers: { X-Key: { value: s3cr3t-key } }
targets:
  crm:
    url: https://crm.test:8443/s3cr3t-path?key=s3cr3t-query
    sign: { scheme: aryeo, secrets: [{ value: s3cr3t-out }] }
    headers: { X-Token: s3cr3t-header }
    paused: true
  b: { url: http://b.test/, sign: { scheme: none } }
routes:
  - name: orders
    activity: ['ORDER_*', '!ORDER_VIEWED']
    when: { /token: s3cr3t-condition }
    headers: { X-A: s3cr3t-text }
    to: [crm, b]
    final: true
  - { name: all, to: [b] }
unrouted: drop
";

    #[test]
    fn a_table_is_shown_without_what_could_be_a_secret() {
        let nothing = HashMap::new();
        let path = Path::new("routes.yaml");
        let loaded = config::load_bytes(TABLE.as_bytes(), path, &nothing, Secrets::Resolve);
        let table = loaded.unwrap_or_else(|problems| panic!("{problems}")).table;
        let shown = shown(&table);
        assert!(!shown.to_string().contains("s3cr3t"), "{shown}");
        assert_eq!(shown["sha256"].as_str().map(str::len), Some(64));
        assert_eq!(shown["unrouted"], "drop");
        assert_eq!(
            shown["sources"],
            json!([
                { "name": "aryeo", "path": "/hooks/{activity}", "scheme": "aryeo-timestamped",
                  "activity": null, "body_bytes_max": 2 << 20 },
                { "name": "plain", "path": "/plain", "scheme": "none", "activity": "PLAIN",
                  "body_bytes_max": 2 << 20 },
            ])
        );
        assert_eq!(
            shown["targets"],
            json!([
                { "name": "b", "origin": "http://b.test", "scheme": "none", "paused": false,
                  "concurrency": 16, "timeout_ms": 10_000 },
                { "name": "crm", "origin": "https://crm.test:8443", "scheme": "aryeo",
                  "paused": true, "concurrency": 16, "timeout_ms": 10_000 },
            ])
        );
        assert_eq!(
            shown["routes"],
            json!([
                { "name": "orders", "source": null, "activity": ["ORDER_*", "!ORDER_VIEWED"],
                  "resource": null, "conditions": 1, "to": ["crm", "b"], "final": true },
                { "name": "all", "source": null, "activity": null, "resource": null,
                  "conditions": 0, "to": ["b"], "final": false },
            ])
        );
    }
}
