//! Whatever is in a body, the compiled table routes it as asking every rule would.
//!
//! The input: a line of patterns, a line with the webhook's activity, then the body.
#![no_main]

use std::path::Path;

use aryeo_relay::config::{self, Environment, Secrets};
use aryeo_relay::domain::activity;
use aryeo_relay::domain::route::{Subject, Verdict};
use aryeo_relay::domain::time::Timestamp;
use aryeo_relay::domain::webhook::{Resource, WebhookId};
use libfuzzer_sys::fuzz_target;

struct AllSet;

impl Environment for AllSet {
    fn var(&self, _: &str) -> Option<String> {
        Some("secret".to_owned())
    }
}

/// Conditions that look into the body in every way.
const CONDITIONS: [&str; 8] = [
    "/a: x",
    "/a: { gte: 1.5 }",
    "/a/0: { exists: true }",
    "/resource/id: { not: 7 }",
    "/resource/a~1b: { in: [null, true, 1e3, é] }",
    "/b: { prefix: x, suffix: y }",
    "/b: { not: { lt: 0 } }",
    "/c/d/e/f: null",
];

/// A table whose routes have these patterns; JSON strings are YAML.
fn table(patterns: &str) -> String {
    let mut yaml =
        "sources:\n  s:\n    path: /\n    verify: { scheme: aryeo, secrets: [{ env: A }] }\n\
                    targets:\n  t: { url: \"http://t/\", sign: { scheme: none } }\n\
                    \x20 u: { url: \"http://u/\", sign: { scheme: none } }\nroutes:\n"
            .to_owned();
    for (number, pattern) in patterns.split(' ').take(12).enumerate() {
        let to = if number % 2 == 0 { "t" } else { "u" };
        yaml.push_str(&format!("  - name: r{number}\n    to: [{to}]\n"));
        if !pattern.is_empty() {
            let quoted: String = pattern.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
            yaml.push_str(&format!("    activity: \"{quoted}\"\n"));
        }
        if number % 3 == 1 {
            yaml.push_str(&format!("    when: {{ {} }}\n", CONDITIONS[number % CONDITIONS.len()]));
        }
        if number % 5 == 4 {
            yaml.push_str("    final: true\n    headers: { X-A: \"{body:/a} {activity}\" }\n");
        }
    }
    yaml
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut line = || parts.next().and_then(|line| std::str::from_utf8(line).ok());
    let (Some(patterns), Some(name)) = (line(), line()) else { return };
    let body = parts.next().unwrap_or_default();
    let yaml = table(patterns);
    let path = Path::new("routes.yaml");
    let Ok(loaded) = config::load_bytes(yaml.as_bytes(), path, &AllSet, Secrets::Warn) else {
        return;
    };

    let facts = activity::read(body);
    let resource = Resource { object: facts.resource_type, id: facts.resource_id };
    let subject = Subject {
        webhook_id: WebhookId::from_key(1),
        received_at: Timestamp::from_millis(1),
        source: "s",
        activity: facts.activity.as_deref().or((!name.is_empty()).then_some(name)),
        resource: &resource,
        body,
    };
    let routed = loaded.table.route(&subject);
    let mut asked: Vec<&str> = Vec::new();
    for (route, verdict) in loaded.table.explain(&subject) {
        if verdict == Verdict::Matched {
            let to = route.to.iter().map(|target| &**target);
            asked.extend(to.filter(|target| !asked.contains(target)).collect::<Vec<_>>());
        }
    }
    let compiled: Vec<&str> = routed.deliveries.iter().map(|delivery| &*delivery.target).collect();
    assert_eq!(compiled, asked);
});
