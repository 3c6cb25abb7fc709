//! The document that describes the API. It is data, in `openapi.json` beside this file; the tests here
//! and those of a running relay hold it and the API together.

use http::StatusCode;
use serde_json::Value;

use crate::admin::api::Problem;

const TEXT: &str = include_str!("openapi.json");

/// The document.
pub(super) fn document() -> Result<Value, Problem> {
    serde_json::from_str(TEXT)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use boon::{Compiler, Schemas};
    use serde_json::Map;
    use tokio::sync::watch;

    use super::*;
    use crate::admin::sizes::Measuring;
    use crate::app::api::wanted::Wanted;
    use crate::app::api::{Answers, endpoints};
    use crate::app::clock::SystemClock;
    use crate::app::watcher::Reloads;
    use crate::domain::route::{RoutingTable, Rules};
    use crate::telemetry::log_level::LogLevel;

    fn answers() -> Answers {
        Answers {
            store: watch::channel(None).1,
            table: watch::channel(Arc::new(RoutingTable::new(Rules::default()))).1,
            clock: Arc::new(SystemClock::start()),
            reloads: Reloads::channel().0,
            board: Arc::default(),
            measuring: Measuring::default(),
            log_level: LogLevel::default(),
        }
    }

    fn object(value: &Value) -> &Map<String, Value> {
        value.as_object().unwrap_or_else(|| panic!("no object: {value}"))
    }

    /// Method, path and what they are described by.
    fn operations(document: &Value) -> Vec<(String, String, &Value)> {
        object(&document["paths"])
            .iter()
            .flat_map(|(path, item)| {
                object(item).iter().map(|(method, op)| (method.to_uppercase(), path.clone(), op))
            })
            .collect()
    }

    /// A path whose parameters have no names.
    fn nameless(path: &str) -> String {
        let segment =
            |part: &str| if part.starts_with('{') { "{id}".into() } else { part.to_owned() };
        path.split('/').map(segment).collect::<Vec<_>>().join("/")
    }

    #[test]
    fn every_operation_is_described_and_nothing_else_is() {
        let document = document().unwrap();
        let described: BTreeSet<String> = operations(&document)
            .iter()
            .map(|(method, path, _)| format!("{method} {}", nameless(path)))
            .collect();
        let there_is: BTreeSet<String> = endpoints(&answers())
            .iter()
            .map(|endpoint| format!("{} /{}", endpoint.method, endpoint.path))
            .collect();
        assert_eq!(described, there_is);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn what_is_asked_for_is_described_where_it_is_read() {
        let document = document().unwrap();
        let mut ids = BTreeSet::new();
        for (method, path, operation) in operations(&document) {
            let what = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{what}");
            let endpoints = endpoints(&answers());
            let endpoint = endpoints
                .iter()
                .find(|one| {
                    *one.method.as_str() == *method && format!("/{}", one.path) == nameless(&path)
                })
                .unwrap();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let names = |place: &str| -> Vec<String> {
                let there = parameters.iter().filter(|one| one["in"] == place);
                there.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
            };
            let in_path: Vec<_> = path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            assert_eq!(names("path"), in_path, "{what}");
            assert_eq!(!names("query").is_empty(), endpoint.takes_query, "{what}");
            assert_eq!(operation.get("requestBody").is_some(), method == "POST", "{what}");
            assert!(operation["responses"]["default"].is_object(), "{what}");
        }
    }

    #[test]
    fn a_list_of_webhooks_takes_all_the_words_that_are_read() {
        let unknown = Wanted::of_query("nobody=1").unwrap_err().detail;
        let (_, known) = unknown.split_once("expected one of ").unwrap();
        let known: BTreeSet<&str> = known.split(", ").map(|name| name.trim_matches('`')).collect();
        let document = document().unwrap();
        let parameters = document["paths"]["/webhooks"]["get"]["parameters"].as_array().unwrap();
        let described: BTreeSet<&str> =
            parameters.iter().filter_map(|one| one["name"].as_str()).collect();
        assert_eq!(described, known);
    }

    #[test]
    fn every_schema_is_one_and_is_used() {
        let document = document().unwrap();
        let schemas = object(&document["components"]["schemas"]);
        for name in schemas.keys() {
            let mut compiler = Compiler::new();
            compiler.add_resource("http://relay.test/api", document.clone()).unwrap();
            let place = format!("http://relay.test/api#/components/schemas/{name}");
            let compiled = compiler.compile(&place, &mut Schemas::new());
            assert!(compiled.is_ok(), "{name}: {:?}", compiled.err());
            let reference = format!("\"#/components/schemas/{name}\"");
            assert!(TEXT.contains(&reference), "nothing refers to {name}");
        }
    }
}
