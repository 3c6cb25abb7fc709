//! The [`keys`](crate::config::keys) of the language as JSON Schema, so that editors complete and explain.
//!
//! It may take what the loader refuses, but never refuses what the loader takes: JSON can't tell a
//! heading with nothing below it from `null`, and a schema knows nothing of secrets and references.

use serde_json::{Map, Value, json};

use crate::config::keys::{CONDITION, FILE, HEADER};
use crate::config::shape::{Key, Presence, Record, Shape};
use crate::domain::template::placeholder_names;

/// Where the dialect is defined.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

const A_NAME: &str = "^[A-Za-z0-9._-]{1,100}$";
const HEADER_NAME: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";

/// The schema of `routes.yaml`, in the dialect of 2020-12.
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let mut root = of_record(&FILE, &mut definitions);
    root.insert("$schema".into(), json!(DIALECT));
    root.insert("title".into(), json!("routes.yaml of aryeo-relay"));
    root.insert("$defs".into(), Value::Object(definitions));
    Value::Object(root)
}

fn of_record(record: &Record, definitions: &mut Map<String, Value>) -> Map<String, Value> {
    let known = || record.keys.iter();
    let properties: Map<_, _> =
        known().map(|key| (key.name.to_owned(), of_key(key, definitions))).collect();
    let required: Vec<_> =
        known().filter(|key| key.presence == Presence::Mandatory).map(|key| key.name).collect();
    let mut schema = Map::new();
    // A heading whose entries are all commented out reads as null.
    let may_be_blank = required.is_empty() && !record.whole;
    schema.insert(
        "type".into(),
        if may_be_blank { json!(["object", "null"]) } else { json!("object") },
    );
    schema.insert("properties".into(), Value::Object(properties));
    schema.insert("additionalProperties".into(), json!(false));
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    if record.whole {
        schema.insert("minProperties".into(), json!(1));
    }
    schema
}

fn of_key(key: &Key, definitions: &mut Map<String, Value>) -> Value {
    let mut value = of_shape(&key.shape, definitions);
    let schema = value.as_object_mut().expect("the schema of every shape is an object");
    schema.insert("description".into(), json!(key.about));
    if !key.example.is_empty() {
        let example: Value =
            serde_json::from_str(key.example).expect("the tables' examples are JSON");
        schema.insert("examples".into(), json!([example]));
    }
    // What must be there must also say something.
    let least = match key.shape {
        Shape::List(_) => Some(("array", "minItems")),
        Shape::Map(..) => Some(("object", "minProperties")),
        _ => None,
    };
    if let Some((kind, least)) = least.filter(|_| key.presence == Presence::Mandatory) {
        schema.insert("type".into(), json!(kind));
        schema.insert(least.into(), json!(1));
    }
    value
}

fn of_shape(shape: &Shape, definitions: &mut Map<String, Value>) -> Value {
    let scalar = || json!({ "type": ["boolean", "null", "number", "string"] });
    match shape {
        Shape::Anything => json!({}),
        Shape::Boolean => json!({ "type": "boolean" }),
        Shape::Condition => json!({ "anyOf": [scalar(), reference(&CONDITION, definitions)] }),
        Shape::Header => {
            let text = json!({ "type": "string", "pattern": header_text() });
            json!({ "anyOf": [text, reference(&HEADER, definitions)] })
        }
        Shape::Integer => json!({ "type": "integer" }),
        Shape::List(item) => {
            json!({ "type": ["array", "null"], "items": of_shape(item, definitions) })
        }
        Shape::Map(names, value) => json!({
            "type": ["object", "null"],
            "propertyNames": of_text(names),
            "additionalProperties": of_shape(value, definitions),
        }),
        Shape::OneOrMany => {
            let one = of_text("a name or pattern");
            json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
        }
        Shape::Record(record) => reference(record, definitions),
        Shape::Scalar => scalar(),
        Shape::Text(what) => of_text(what),
    }
}

fn reference(record: &Record, definitions: &mut Map<String, Value>) -> Value {
    let noun = record.noun.trim_start_matches("a ").replace("'s", "").replace(' ', "-");
    if !definitions.contains_key(&noun) {
        // It is there before its keys are looked at, which may lead back to it.
        definitions.insert(noun.clone(), Value::Null);
        let schema = of_record(record, definitions);
        definitions.insert(noun.clone(), Value::Object(schema));
    }
    json!({ "$ref": format!("#/$defs/{noun}") })
}

/// Text, by what the tables say that it is. Only what is simple and true of all that is taken.
fn of_text(what: &str) -> Value {
    let pattern = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    match what {
        "a duration such as 10s" => pattern("^([0-9]+(d|h|m|s|ms))+$"),
        "a size such as 2MiB" => pattern("^[0-9]+(B|kB|KiB|MB|MiB|GB|GiB)$"),
        "a share or a size such as 50% or 2GiB" => pattern("^[0-9]+(%|B|kB|KiB|MB|MiB|GB|GiB)$"),
        "a rate such as 100/s" => pattern("^[0-9]+/[smh]$"),
        "a network such as 192.0.2.0/24" => pattern("^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"),
        "a name" | "the name of a target" => pattern(A_NAME),
        "names of sources" => json!({ "pattern": A_NAME, "not": { "const": "none" } }),
        "names of targets" => json!({ "pattern": A_NAME, "not": { "const": "unrouted" } }),
        "a name or pattern" => pattern("^!?[^! ][^ ]*$"),
        "the name of a header" | "names of headers" => pattern(HEADER_NAME),
        "a path such as /webhooks/aryeo" => {
            let pattern = "^(/[^/{}?#]*)*(/[{]activity[}])?(/[^/{}?#]*)*$";
            json!({ "type": "string", "minLength": 1, "pattern": pattern })
        }
        "JSON pointers" => pattern("^/"),
        "a url" => pattern("^[Hh][Tt][Tt][Pp][Ss]?://"),
        "the name of an activity" => pattern("^[^*?! ]+$"),
        "the name of a scheme" => json!({ "enum": ["aryeo", "aryeo-timestamped", "none"] }),
        "the name of a scheme that signs" => json!({
            "enum": ["aryeo", "aryeo-timestamped", "standard-webhooks", "github", "none"],
        }),
        "keep or drop" => json!({ "enum": ["keep", "drop"] }),
        "the name of an environment variable"
        | "the path of a file"
        | "the secret"
        | "a host name" => {
            json!({ "type": "string", "minLength": 1 })
        }
        _ => json!({ "type": "string" }),
    }
}

/// The text of a header: printable ASCII, with braces only in pairs and around known placeholders.
fn header_text() -> String {
    let names: Vec<_> = placeholder_names().filter(|name| !name.contains(':')).collect();
    format!("^([ -z|~]|[{{]{{2}}|[}}]{{2}}|[{{]({}|body:/[^}}]*)[}}])*$", names.join("|"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use boon::{Compiler, SchemaIndex, Schemas};
    use proptest::prelude::*;

    use super::*;
    use crate::config::random_tests::mutated;
    use crate::config::tests::{corpus, load_file, load_text};
    use crate::config::{schema, value};
    use crate::domain::pointer::Pointers;

    /// Bad files whose form is right: what is wrong is a reference, a rule between keys, a range, or
    /// YAML that only the loader refuses.
    const WRONG_IN_MEANING: &[&str] = &[
        "alias",
        "bad-tls",
        "duplicate-key",
        "duplicate-path",
        "duplicate-route",
        "duplicate-target",
        "long-line",
        "no-secrets",
        "none-with-secrets",
        "route-header-secret",
        "standard-webhooks",
        "unknown-source",
        "unknown-target",
    ];

    /// Not YAML, or nothing that JSON could say: no schema gets to see them.
    const NOT_YAML: &[&str] = &[
        "braces-unquoted",
        "colon-in-text",
        "not-utf8",
        "second-document",
        "secret-alias",
        "secret-colon",
        "secret-tab",
        "secret-unclosed",
        "secrets-in-wrong-places",
        "tab",
        "unclosed-above",
        "unclosed",
        "unprintable",
        "unquoted-exclusion",
        "unquoted-star-in-list",
        "unquoted-star",
        "unquoted-stars-and-more",
        "utf-16",
        "wrong-indentation",
    ];

    const NAME: &str = "routes.schema.json";

    struct Validator(Schemas, SchemaIndex);

    impl Validator {
        /// Of a schema, or of what is at a place in it.
        fn new(schema: Value, place: &str) -> Self {
            let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
            compiler.add_resource(NAME, schema).unwrap();
            let index = compiler.compile(&format!("{NAME}#{place}"), &mut schemas).unwrap();
            Self(schemas, index)
        }

        fn of_file() -> Self {
            Self::new(json_schema(), "")
        }

        /// What is wrong with a value; nothing where it is taken.
        fn complaint(&self, value: &Value) -> Option<String> {
            self.0.validate(value, self.1).err().map(|error| format!("{error:#}"))
        }

        fn takes(&self, value: &Value) -> bool {
            self.complaint(value).is_none()
        }
    }

    /// The file as an editor sees it, if it is YAML.
    fn read(text: &str) -> Option<Value> {
        schema::json_for_test(text.strip_prefix('\u{feff}').unwrap_or(text))
    }

    #[test]
    fn the_schema_is_one_by_its_own_dialect() {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let dialect = compiler.compile(DIALECT, &mut schemas).unwrap();
        schemas.validate(&json_schema(), dialect).map_err(|error| error.to_string()).unwrap();
    }

    #[test]
    fn the_schema_takes_what_the_loader_takes() {
        let validator = Validator::of_file();
        for path in [corpus("good"), corpus("warn"), vec![PathBuf::from("routes.yaml")]].concat() {
            let value = read(&fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(validator.complaint(&value), None, "{}", path.display());
        }
    }

    #[test]
    fn the_schema_refuses_every_bad_file_whose_form_is_wrong() {
        let validator = Validator::of_file();
        let (mut taken, mut unread) = (Vec::new(), Vec::new());
        for path in corpus("bad") {
            assert!(load_file(&path).is_err(), "{}", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            match fs::read_to_string(&path).ok().and_then(|text| read(&text)) {
                None => unread.push(name),
                Some(value) if validator.takes(&value) => taken.push(name),
                Some(_) => {}
            }
        }
        assert_eq!(taken, WRONG_IN_MEANING, "not YAML: {unread:?}");
        assert_eq!(unread, NOT_YAML);
    }

    #[test]
    fn every_key_is_described_and_every_example_is_good() {
        let whole = json_schema();
        let definitions = whole["$defs"].as_object().unwrap();
        let named = definitions.iter().map(|(name, record)| (format!("/$defs/{name}"), record));
        let mut examples = 0;
        for (place, record) in named.chain([(String::new(), &whole)]) {
            for (name, key) in record["properties"].as_object().unwrap() {
                let about = key["description"].as_str().unwrap();
                assert!(about.ends_with('.') && !about.contains("  "), "{name}: {about:?}");
                let validator =
                    Validator::new(whole.clone(), &format!("{place}/properties/{name}"));
                for example in key.get("examples").and_then(Value::as_array).into_iter().flatten() {
                    assert_eq!(validator.complaint(example), None, "{place} {name}");
                    examples += 1;
                }
            }
        }
        assert!(examples > 50, "{examples}");
    }

    #[test]
    fn no_name_of_a_header_is_refused() {
        let names = Validator::new(of_text("names of headers"), "");
        for character in '\0'..='\u{ff}' {
            let name = format!("x{character}");
            let is_taken = value::header_name(&name).is_ok();
            assert_eq!(names.takes(&json!(name)), is_taken, "{name:?}");
        }
    }

    /// Whether the pattern takes it, or the loader does not either.
    fn is_superset(what: &str, text: &str, is_taken: bool) -> bool {
        !is_taken || Validator::new(of_text(what), "").takes(&json!(text))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_schema_never_refuses_what_the_loader_takes(text in mutated()) {
            if load_text(&text).is_ok() && let Some(value) = read(&text) {
                prop_assert_eq!(Validator::of_file().complaint(&value), None, "{}", text);
            }
        }

        #[test]
        fn of_the_text_of_headers_it_takes_what_the_loader_takes(
            text in "([a-z ~|\\\\é]|[{]{1,2}|[}]{1,2}|[{](activity|target|actvity|body:/a{0,1})[}]){0,6}",
        ) {
            let of_header = json!({ "type": "string", "pattern": header_text() });
            let is_taken = value::header_text(&text, &mut Pointers::default()).is_ok();
            prop_assert_eq!(Validator::new(of_header, "").takes(&json!(text)), is_taken, "{}", text);
        }

        #[test]
        fn no_pattern_refuses_a_value_that_is_taken(
            text in "([0-9]{1,3}(%|d|h|m|s|ms|[kMG]?B|[KMG]iB|/[smh])){1,5}|/?[!-~ é\t]{1,6}|(/|/[a-]{1,2}|/[{]activity[}]){1,4}",
        ) {
            let text = &*text;
            prop_assert!(is_superset("a duration such as 10s", text, value::duration(text).is_ok()));
            prop_assert!(is_superset("a size such as 2MiB", text, value::size(text).is_ok()));
            let share = "a share or a size such as 50% or 2GiB";
            prop_assert!(is_superset(share, text, value::backlog_limit(text).is_ok()));
            prop_assert!(is_superset("a rate such as 100/s", text, value::rate(text).is_ok()));
            prop_assert!(is_superset("a name", text, value::name(text).is_ok()));
            prop_assert!(is_superset("a name or pattern", text, value::pattern(text).is_ok()));
            let path = value::path(text).is_ok();
            prop_assert!(is_superset("a path such as /webhooks/aryeo", text, path));
            prop_assert!(is_superset("the name of an activity", text, value::activity(text).is_ok()));
            let url = format!("hTTps://{text}");
            prop_assert!(is_superset("a url", &url, value::url(&url).is_ok()));
        }
    }
}
