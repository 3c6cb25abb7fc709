//! What a body says happened, and to what: read leniently, in one pass, from the signed bytes.
//!
//! The sender has two shapes in use and one in the making: a wrapper whose `object` is `ACTIVITY`,
//! the bare resource (whose `name` may be a person's), and CloudEvents. A body may also be anything
//! else, up to 2 MiB of brackets; that is never an error, it only has no facts.
//!
//! The reader skims rather than parses: it holds on to a few values of the top level and of
//! `resource`, jumps over all others, and stops as soon as nothing later could change its answer.
//! It checks the grammar of what it passes, and a body that breaks it has no facts at all: half of
//! a document is no ground to route on. What lies behind the stopping point is not looked at.

use std::borrow::Cow;

use crate::domain::json::{Json, Malformed, Value};

/// Longer names, types and ids, in bytes, are as good as absent: no real one comes near it, and
/// they travel in headers.
pub const LONGEST_VALUE: usize = 256;

/// The `object` of the wrapper, the only body whose `name` is an activity's.
const WRAPPER: &str = "ACTIVITY";

/// What a body says of itself, read from the signed bytes.
///
/// Every value is fit for a header: not empty, free of control characters, at most
/// [`LONGEST_VALUE`] bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The activity's name: `name` where the top-level `object` is `"ACTIVITY"`, else the `type`
    /// of a CloudEvent. None for a bare resource or a strange body.
    pub activity: Option<Box<str>>,
    /// The body names an activity and carries an id of it, so that the same bytes can only be a
    /// repeat: decides the window for duplicates.
    pub activity_id: bool,
    /// `resource.object` of an activity, `object` of a bare resource.
    pub resource_type: Option<Box<str>>,
    /// `resource.id` of an activity, `id` of a bare resource; a number as it is written.
    pub resource_id: Option<Box<str>>,
}

/// Reads what `body` says of itself. Never fails: a strange body has no facts.
pub fn read(body: &[u8]) -> Facts {
    let mut seen = Seen::default();
    match seen.take_in(&mut Json::new(body)) {
        Ok(()) => seen.facts(),
        Err(Malformed) => Facts::default(),
    }
}

// === what is held on to ===

/// The first value of each key that matters, as far as the body has been read.
#[derive(Default)]
struct Seen<'a> {
    object: Option<Value<'a>>,
    is_wrapper: bool,
    name: Option<Value<'a>>,
    kind: Option<Value<'a>>,
    specversion: Option<Value<'a>>,
    id: Option<Value<'a>>,
    has_resource: bool,
    resource_object: Option<Value<'a>>,
    resource_id: Option<Value<'a>>,
}

impl<'a> Seen<'a> {
    /// Reads the top level, up to where nothing later can matter.
    fn take_in(&mut self, json: &mut Json<'a>) -> Result<(), Malformed> {
        let mut key = json.first_key()?;
        while let Some(name) = key {
            match &*name.as_key() {
                b"resource" if !self.has_resource => self.take_in_resource(json)?,
                name => self.hold(name, json.value()?),
            }
            if self.is_enough() {
                return Ok(());
            }
            key = json.next_key()?;
        }
        Ok(())
    }

    fn take_in_resource(&mut self, json: &mut Json<'a>) -> Result<(), Malformed> {
        self.has_resource = true;
        if json.peek()? != b'{' {
            return json.value().map(drop);
        }
        let mut key = json.first_key()?;
        while let Some(name) = key {
            let value = json.value()?;
            match &*name.as_key() {
                b"object" => first(&mut self.resource_object, value),
                b"id" => first(&mut self.resource_id, value),
                _ => {}
            }
            let complete = self.resource_object.is_some() && self.resource_id.is_some();
            if complete && self.is_enough() {
                return Ok(());
            }
            key = json.next_key()?;
        }
        Ok(())
    }

    fn hold(&mut self, key: &[u8], value: Value<'a>) {
        match key {
            b"object" if self.object.is_none() => {
                self.object = Some(value);
                self.is_wrapper = text(&self.object).as_deref() == Some(WRAPPER);
            }
            b"name" => first(&mut self.name, value),
            b"type" => first(&mut self.kind, value),
            b"specversion" => first(&mut self.specversion, value),
            b"id" => first(&mut self.id, value),
            _ => {}
        }
    }

    /// Nothing later at the top level could change the facts.
    fn is_enough(&self) -> bool {
        match &self.specversion {
            _ if self.is_wrapper => self.name.is_some() && self.id.is_some() && self.has_resource,
            // An `object` still to come could make a wrapper of it.
            _ if self.object.is_none() => false,
            Some(Value::Text(_)) => self.kind.is_some() && self.id.is_some(),
            Some(_) => self.id.is_some(),
            None => false,
        }
    }

    fn facts(&self) -> Facts {
        let (activity, kind, id) = match &self.specversion {
            _ if self.is_wrapper => (&self.name, &self.resource_object, &self.resource_id),
            Some(Value::Text(_)) => (&self.kind, &None, &None),
            _ => (&None, &self.object, &self.id),
        };
        let activity = text(activity);
        Facts {
            activity_id: activity.is_some() && text(&self.id).is_some(),
            activity,
            resource_type: text(kind),
            resource_id: text_or_number(id),
        }
    }
}

/// Of a repeated key the first value counts.
fn first<'a>(slot: &mut Option<Value<'a>>, value: Value<'a>) {
    slot.get_or_insert(value);
}

fn text(value: &Option<Value<'_>>) -> Option<Box<str>> {
    match value {
        Some(Value::Text(text)) => fit(text.decoded(LONGEST_VALUE)?),
        _ => None,
    }
}

fn text_or_number(value: &Option<Value<'_>>) -> Option<Box<str>> {
    match value {
        Some(Value::Number(digits)) => fit(str::from_utf8(digits).ok()?.into()),
        _ => text(value),
    }
}

/// The text, if it says something and a header can carry it.
fn fit(text: Cow<'_, str>) -> Option<Box<str>> {
    is_fit(&text).then(|| text.into())
}

/// Whether it says something and a header can carry it.
pub fn is_fit(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= LONGEST_VALUE
        && !text.bytes().any(|byte| byte.is_ascii_control())
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use proptest::prelude::*;
    use serde_json::Value as Serde;

    use super::{Facts, LONGEST_VALUE, read};

    const WRAPPED: &str = r#"{"object":"ACTIVITY","id":"a-1","name":"LISTING_DELIVERED","resource":{"object":"LISTING","id":"l-1"}}"#;

    fn facts(
        activity: Option<&str>,
        activity_id: bool,
        resource_type: Option<&str>,
        resource_id: Option<&str>,
    ) -> Facts {
        Facts {
            activity: activity.map(Into::into),
            activity_id,
            resource_type: resource_type.map(Into::into),
            resource_id: resource_id.map(Into::into),
        }
    }

    fn activity(name: &str) -> Facts {
        facts(Some(name), false, None, None)
    }

    fn resource(kind: &str, id: &str) -> Facts {
        facts(None, false, Some(kind), Some(id))
    }

    #[track_caller]
    fn holds(cases: &[(&str, Facts)]) {
        for (body, expected) in cases {
            assert_eq!(read(body.as_bytes()), *expected, "{body}");
        }
    }

    #[test]
    fn every_vector_reads_as_its_makers_expect() {
        let vectors: Vec<Serde> =
            serde_json::from_str(include_str!("../../tests/data/aryeo/vectors.json")).unwrap();
        assert_eq!(vectors.len(), 11);
        for vector in &vectors {
            let body = BASE64_STANDARD.decode(vector["body_base64"].as_str().unwrap()).unwrap();
            let expect = &vector["expect"];
            let expected = facts(
                expect["activity"].as_str(),
                expect["event_id"].is_string(),
                expect["resource_object"].as_str(),
                expect["resource_id"].as_str(),
            );
            assert_eq!(read(&body), expected, "{}", vector["name"]);
        }
    }

    #[test]
    fn every_known_activity_is_read_from_a_wrapper() {
        let names = include_str!("../../tests/data/aryeo/activities.tsv")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split('\t').next());
        let mut count = 0;
        for name in names {
            let body = WRAPPED.replace("LISTING_DELIVERED", name);
            assert_eq!(read(body.as_bytes()).activity.as_deref(), Some(name));
            count += 1;
        }
        assert_eq!(count, 68);
    }

    #[test]
    fn what_is_not_an_object_has_no_facts() {
        for body in [
            "",
            " ",
            "null",
            "[]",
            "1",
            "\"ACTIVITY\"",
            "true",
            "{}",
            "{",
            "}",
            "{]",
            "{\"",
            "a=b",
            "[{\"object\":\"LISTING\"}]",
            "\u{feff}{\"object\":\"LISTING\"}",
            "\0",
            "\u{b}{}",
        ] {
            assert_eq!(read(body.as_bytes()), Facts::default(), "{body:?}");
        }
        assert_eq!(read(b"\xff\xfe{\0}\0"), Facts::default());
    }

    #[test]
    fn only_a_wrapper_s_name_is_an_activity() {
        holds(&[
            (
                r#"{"object":"GROUP","id":"g","type":"AGENT","name":"ORDER_CREATED"}"#,
                resource("GROUP", "g"),
            ),
            (r#"{"name":"Jane Smith","object":"GROUP","id":"g"}"#, resource("GROUP", "g")),
            (r#"{"name":"ORDER_CREATED"}"#, Facts::default()),
            (r#"{"object":"activity","name":"A"}"#, facts(None, false, Some("activity"), None)),
            (r#"{"object":["ACTIVITY"],"name":"A"}"#, Facts::default()),
            (r#"{"data":{"object":"ACTIVITY","name":"A"}}"#, Facts::default()),
            (r#"{"object":"ACTIVITY","name":"A"}"#, activity("A")),
            (r#"{"object":"ACTIVITY","name":1,"id":"x"}"#, Facts::default()),
            (r#"{"object":"ACTIVITY","name":null,"title":"A"}"#, Facts::default()),
            (r#"{"object":"ACTIVITY","name":"","id":"x"}"#, Facts::default()),
            // A wrapper without a usable name is still no CloudEvent, and no bare resource.
            (
                r#"{"object":"ACTIVITY","id":"x","specversion":"1.0","type":"a.b"}"#,
                Facts::default(),
            ),
        ]);
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let members =
            [r#""object":"ACTIVITY""#, r#""id":"a""#, r#""name":"N""#, r#""x":{"y":[1,{}]}"#];
        for resource in
            [r#""resource":{"object":"R","id":7}"#, r#""resource":{"id":7,"object":"R","z":[]}"#]
        {
            for turn in 0..5 {
                let mut all = members.to_vec();
                all.push(resource);
                all.rotate_left(turn);
                for _ in 0..2 {
                    let body = format!("{{{}}}", all.join(","));
                    let expected = facts(Some("N"), true, Some("R"), Some("7"));
                    assert_eq!(read(body.as_bytes()), expected, "{body}");
                    all.reverse();
                }
            }
        }
    }

    #[test]
    fn of_repeated_keys_the_first_counts() {
        holds(&[
            (r#"{"object":"ACTIVITY","object":"ORDER","name":"A","name":"B"}"#, activity("A")),
            (
                r#"{"object":"ORDER","object":"ACTIVITY","name":"A","id":"o"}"#,
                resource("ORDER", "o"),
            ),
            (r#"{"object":1,"object":"ACTIVITY","name":"A"}"#, Facts::default()),
            (r#"{"name":1,"name":"A","object":"ACTIVITY"}"#, Facts::default()),
            (r#"{"\u006fbject":"ACTIVITY","object":"ORDER","name":"A"}"#, activity("A")),
            (
                r#"{"name":"A","resource":{"id":"1","id":"2"},"resource":{"object":"R","id":"3"},"object":"ACTIVITY"}"#,
                facts(Some("A"), false, None, Some("1")),
            ),
            (
                r#"{"name":"A","resource":[],"resource":{"id":"3"},"object":"ACTIVITY"}"#,
                activity("A"),
            ),
            (
                r#"{"specversion":1,"specversion":"1.0","type":"a.b","object":"O","id":"i"}"#,
                resource("O", "i"),
            ),
        ]);
    }

    #[test]
    fn a_cloud_event_s_type_is_its_activity_and_it_names_no_resource() {
        let event = |id| facts(Some("article.updated"), id, None, None);
        holds(&[
            (
                r#"{"specversion":"1.0","id":"i","source":"s","type":"article.updated","data":{"object":"A","id":"1"}}"#,
                event(true),
            ),
            (r#"{"data":{},"type":"article.updated","specversion":"1.0"}"#, event(false)),
            (r#"{"id":5,"type":"article.updated","specversion":"1.0"}"#, event(false)),
            (
                r#"{"object":"ORDER","specversion":"1.0","type":"article.updated","x":0,"id":"i"}"#,
                event(true),
            ),
            (
                r#"{"object":"ORDER","id":"i","type":"article.updated","specversion":"1.0"}"#,
                event(true),
            ),
            (r#"{"specversion":"1.0","id":"i","type":null}"#, Facts::default()),
            (
                r#"{"specversion":1.0,"object":"O","id":"i","type":"article.updated"}"#,
                resource("O", "i"),
            ),
            (
                r#"{"specversion":"1.0","type":"a.b","id":"i","name":"A","object":"ACTIVITY"}"#,
                facts(Some("A"), true, None, None),
            ),
        ]);
    }

    #[test]
    fn an_id_is_a_string_or_a_number_as_written() {
        holds(&[
            (r#"{"object":"O","id":1623}"#, resource("O", "1623")),
            (r#"{"object":"O","id":-0.0}"#, resource("O", "-0.0")),
            (r#"{"object":"O","id":1.0e+25 }"#, resource("O", "1.0e+25")),
            (r#"{"object":"O","id":true}"#, facts(None, false, Some("O"), None)),
            (r#"{"object":"O","id":{"id":"x"}}"#, facts(None, false, Some("O"), None)),
            (r#"{"start_at":"2026","id":"a"}"#, facts(None, false, None, Some("a"))),
            (
                r#"{"object":"ACTIVITY","name":"A","id":7,"resource":{"id":8}}"#,
                facts(Some("A"), false, None, Some("8")),
            ),
            (r#"{"object":"ACTIVITY","name":"A","id":"","resource":{"id":""}}"#, activity("A")),
            (
                r#"{"object":"ACTIVITY","name":"A","id":"x","resource":"R"}"#,
                facts(Some("A"), true, None, None),
            ),
        ]);
    }

    #[test]
    fn escapes_are_decoded_in_keys_and_values() {
        holds(&[
            (
                r#"{"\u006f\u0062ject":"\u0041CTIVIT\u0059","n\u0061me":"A\/\"\\B","\u0072esource":{"\u0069d":"\ud83c\udfe1"}}"#,
                facts(Some("A/\"\\B"), false, None, Some("🏡")),
            ),
            ("{\"object\":\"ACTIVITY\",\"name\":\"Zoë\u{7f}\"}", Facts::default()),
            ("{\"object\":\"ACTIVITY\",\"name\":\"Zoë 🏡\"}", activity("Zoë 🏡")),
            (
                r#"{"id":"\uD800\uDC00\uDBFF\uDFFF\uE000"}"#,
                facts(None, false, None, Some("\u{10000}\u{10ffff}\u{e000}")),
            ),
            // A key that is no text is merely another key.
            (r#"{"\ud800":1,"object\ud800":2,"object":"O"}"#, facts(None, false, Some("O"), None)),
        ]);
    }

    #[test]
    fn what_a_header_cannot_carry_is_absent() {
        for name in [
            r"\ud800",
            r"\udc00",
            r"\ud800\ud800",
            r"\ud800\ue000",
            r"\ud800\udbff",
            r"\ud800x",
            r"\ud800\n",
            r"\udc00\ud800",
            r"A\u0000",
            r"\n",
            r"A\tB",
            r"\u001f",
            r"\u007f",
            r"\b",
            r"\f",
            r"\r",
            "",
        ] {
            let body = WRAPPED.replace("LISTING_DELIVERED", name);
            assert_eq!(read(body.as_bytes()), resource("LISTING", "l-1"), "{body}");
            let body = WRAPPED.replace("l-1", name);
            let expected = facts(Some("LISTING_DELIVERED"), true, Some("LISTING"), None);
            assert_eq!(read(body.as_bytes()), expected, "{body}");
        }
        let body = WRAPPED.replace("a-1", r"\n");
        assert!(!read(body.as_bytes()).activity_id);
        assert_eq!(
            read(b"{\"object\":\"O\xff\",\"id\":\"i\",\"x\":\"\xc3\"}"),
            facts(None, false, None, Some("i"))
        );
    }

    #[test]
    fn values_are_kept_up_to_the_limit_and_no_further() {
        for unit in ["a", r"\u0061", "\u{e9}", r"\u00e9"] {
            let width = if unit.ends_with(['a', '1']) { 1 } else { 2 };
            let fits = WRAPPED.replace("l-1", &unit.repeat(LONGEST_VALUE / width));
            let id = read(fits.as_bytes()).resource_id.unwrap();
            assert_eq!(id.len(), LONGEST_VALUE);
            let longer = WRAPPED.replace("l-1", &unit.repeat(LONGEST_VALUE / width + 1));
            let expected = facts(Some("LISTING_DELIVERED"), true, Some("LISTING"), None);
            assert_eq!(read(longer.as_bytes()), expected);
        }
        let digits = |n| format!(r#"{{"object":"O","id":{}}}"#, "9".repeat(n));
        assert_eq!(
            read(digits(LONGEST_VALUE).as_bytes()).resource_id.unwrap().len(),
            LONGEST_VALUE
        );
        assert_eq!(read(digits(LONGEST_VALUE + 1).as_bytes()), facts(None, false, Some("O"), None));
        let huge = format!(
            r#"{{"object":"O","{0}":"{0}","name":"{0}","id":"i"}}"#,
            r"\u0061".repeat(300_000)
        );
        assert_eq!(read(huge.as_bytes()), resource("O", "i"));
    }

    #[test]
    fn depth_is_no_obstacle() {
        for depth in [1, 62, 63, 64, 65, 126, 127, 511, 512, 100_000] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":[", "]}]")] {
                let inner = format!("{}{}", open.repeat(depth), "0");
                let outer = close.repeat(depth);
                let body = format!(r#"{{"payload":{inner}{outer},"object":"O","id":"i"}}"#);
                assert_eq!(read(body.as_bytes()), resource("O", "i"), "{depth} {open}");
                let body = format!(r#"{{"payload":{inner}{outer}{close},"object":"O","id":"i"}}"#);
                assert_eq!(read(body.as_bytes()), Facts::default(), "{depth} {open}");
            }
        }
        for hostile in ["[", "{\"\":", "[[],", "\\", "\"", "{", "[0,", "\"\\u0061\","] {
            let body = format!(
                r#"{{"object":"O","id":"i","x":{}"#,
                hostile.repeat((2 << 20) / hostile.len())
            );
            assert_eq!(read(body.as_bytes()), Facts::default(), "{hostile}");
        }
    }

    #[test]
    fn a_body_that_breaks_the_grammar_has_no_facts() {
        for broken in [
            "[}",
            "[1}",
            "{\"a\":1]",
            "[{\"a\":1]}",
            "{]",
            "[1 2]",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{1:2}",
            "{\"a\" 1}",
            "01",
            "1.",
            "-",
            "+1",
            ".5",
            "1e",
            "1e+",
            "0x1",
            "tru",
            "truex",
            "nul",
            "NaN",
            "'a'",
            "\"\t\"",
            "\"\n\"",
            "\"\\x\"",
            "\"\\v\"",
            "\"\\0\"",
            "\"\\U0041\"",
            "\"\\u12g4\"",
            "\"\\u12\"",
            "1 2",
            "//",
            "",
            ",",
            "[[]",
            "[]]",
            "{\"a\":[}]",
            "\u{a0}1",
            "\u{c}1",
        ] {
            for body in [
                format!(r#"{{"object":"O","id":"i","x":{broken}}}"#),
                format!(r#"{{"x":{broken},"object":"ACTIVITY","name":"A"}}"#),
                format!(r#"{{"name":"A","resource":{{"x":{broken}}},"object":"ACTIVITY"}}"#),
                format!(r#"{{"x":[0,{{"y":{broken}}}],"object":"O"}}"#),
            ] {
                assert_eq!(read(body.as_bytes()), Facts::default(), "{body}");
            }
        }
    }

    #[test]
    fn a_body_cut_short_never_says_anything_else() {
        let full = read(WRAPPED.as_bytes());
        let bare = r#"{"object":"ORDER","number":[1.5e3,null],"id":1234}"#;
        let numbered = WRAPPED.replace(r#""l-1""#, "1234");
        for cut in 0..WRAPPED.len() {
            let read = read(&WRAPPED.as_bytes()[..cut]);
            assert!(read == Facts::default() || read == full, "{cut}: {read:?}");
        }
        for cut in 0..numbered.len() {
            let cut = read(&numbered.as_bytes()[..cut]);
            assert!(cut == Facts::default() || cut.resource_id.as_deref() == Some("1234"));
        }
        for cut in 0..bare.len() {
            assert_eq!(read(&bare.as_bytes()[..cut]), Facts::default(), "{cut}");
        }
    }

    #[test]
    fn reading_stops_where_nothing_later_matters() {
        let wrapped =
            r#"{"object":"ACTIVITY","id":"a","name":"A","resource":{"id":"r","object":"R","#;
        let expected = facts(Some("A"), true, Some("R"), Some("r"));
        assert_eq!(read(format!("{wrapped} ]]]").as_bytes()), expected);
        let event = r#"{"object":"O","specversion":"1.0","id":"a","type":"T" garbage"#;
        assert_eq!(read(event.as_bytes()), facts(Some("T"), true, None, None));
        // A bare resource may turn out a CloudEvent, so it is read to its end, and no further.
        assert_eq!(read(br#"{"object":"O","id":"i"} trailing"#), resource("O", "i"));
        assert_eq!(read(br#"{"object":"O","id":"i" garbage"#), Facts::default());
    }

    /// A document that, unlike serde_json's, can repeat keys.
    #[derive(Debug, Clone)]
    enum Tree {
        Leaf(Serde),
        Array(Vec<Self>),
        Object(Vec<(String, Self)>),
    }

    impl Tree {
        /// As JSON text; `style` decides upon blanks and escapes.
        fn write(&self, style: u8, into: &mut String) {
            let blank = if style & 1 == 1 { " \r\n\t" } else { "" };
            let list =
                |into: &mut String, index| into.push_str(if index == 0 { blank } else { "," });
            match self {
                Self::Leaf(Serde::String(text)) => write_text(text, style, into),
                Self::Leaf(value) => into.push_str(&value.to_string()),
                Self::Array(items) => {
                    into.push('[');
                    for (index, item) in items.iter().enumerate() {
                        list(into, index);
                        item.write(style, into);
                        into.push_str(blank);
                    }
                    into.push(']');
                }
                Self::Object(members) => {
                    into.push('{');
                    for (index, (key, value)) in members.iter().enumerate() {
                        list(into, index);
                        into.push_str(blank);
                        write_text(key, style, into);
                        into.push_str(blank);
                        into.push(':');
                        into.push_str(blank);
                        value.write(style, into);
                        into.push_str(blank);
                    }
                    into.push('}');
                }
            }
        }

        /// The first value of a key; None too if this is not an object.
        fn get(&self, key: &str) -> Option<&Self> {
            let Self::Object(members) = self else { return None };
            members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
        }

        fn string(&self) -> Option<&str> {
            if let Self::Leaf(Serde::String(text)) = self { Some(text) } else { None }
        }

        fn usable(&self, numbers: bool) -> Option<Box<str>> {
            let text = match self {
                Self::Leaf(Serde::String(text)) => text.clone(),
                Self::Leaf(Serde::Number(number)) if numbers => number.to_string(),
                _ => return None,
            };
            let plain = !text.is_empty() && !text.chars().any(|char| char.is_ascii_control());
            (plain && text.len() <= LONGEST_VALUE).then(|| text.into())
        }

        /// The design's words, one by one.
        fn facts(&self) -> Facts {
            let of = |tree: Option<&Self>, key: &str, numbers| {
                tree.and_then(|tree| tree.get(key)).and_then(|value| value.usable(numbers))
            };
            let top = Some(self);
            let wrapper = self.get("object").and_then(Self::string) == Some("ACTIVITY");
            let event = !wrapper && self.get("specversion").and_then(Self::string).is_some();
            let activity = match (wrapper, event) {
                (true, _) => of(top, "name", false),
                (_, true) => of(top, "type", false),
                _ => None,
            };
            let holder = match (wrapper, event) {
                (true, _) => self.get("resource"),
                (_, true) => None,
                _ => top,
            };
            Facts {
                activity_id: activity.is_some() && of(top, "id", false).is_some(),
                activity,
                resource_type: of(holder, "object", false),
                resource_id: of(holder, "id", true),
            }
        }
    }

    fn write_text(text: &str, style: u8, into: &mut String) {
        if style & 2 == 0 {
            return into.push_str(&Serde::from(text).to_string());
        }
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        into.push_str(&format!("\"{units}\""));
    }

    const KEYS: &[&str] = &["object", "name", "type", "specversion", "id", "resource"];

    fn tree(keys: &'static [&'static str]) -> impl Strategy<Value = Tree> {
        let key = prop_oneof![
            9 => proptest::sample::select(keys).prop_map(str::to_owned),
            1 => any::<String>(),
        ];
        let leaf = prop_oneof![
            3 => Just(Serde::from("ACTIVITY")),
            1 => Just(Serde::Null),
            1 => any::<bool>().prop_map(Serde::from),
            1 => any::<i64>().prop_map(Serde::from),
            1 => any::<f64>().prop_map(Serde::from),
            2 => any::<String>().prop_map(Serde::from),
            3 => "[A-Z]{1,30}".prop_map(Serde::from),
            1 => "[a-zé]{250,260}".prop_map(Serde::from),
        ]
        .prop_map(Tree::Leaf);
        let any_tree = leaf.prop_recursive(5, 64, 8, {
            let key = key.clone();
            move |inner| {
                prop_oneof![
                    1 => proptest::collection::vec(inner.clone(), 0..6).prop_map(Tree::Array),
                    2 => proptest::collection::vec((key.clone(), inner), 0..6).prop_map(Tree::Object),
                ]
            }
        });
        proptest::collection::vec((key, any_tree), 0..10).prop_map(Tree::Object)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        #[test]
        fn reads_what_a_naive_reader_of_the_whole_tree_reads(tree in tree(KEYS), style in 0_u8..4) {
            let mut body = String::new();
            tree.write(style, &mut body);
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok());
            prop_assert_eq!(read(body.as_bytes()), tree.facts(), "{}", body);
        }

        /// Facts of a bare resource mean that its whole text has been found well formed.
        #[test]
        fn finds_well_formed_exactly_what_serde_json_does(
            // Without the keys that could let an edit end the reading early.
            tree in tree(&["object", "name", "resource"]),
            style in 0_u8..4,
            edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0..3, any::<u8>()), 0..4),
        ) {
            let mut body = String::from(r#"{"object":"O","x":"#);
            tree.write(style, &mut body);
            body.push_str(r#","id":"i"}"#);
            let mut body = body.into_bytes();
            let from = r#"{"object":"O","x":"#.len();
            for (place, what, byte) in edits {
                let place = from + place.index(body.len() - from);
                let odd = b"{}[]\",:\\u0e.-+ tn\x1f\t"[usize::from(byte) % 19];
                match what {
                    0 => body[place] = odd,
                    1 => body.insert(place, odd),
                    _ => drop(body.remove(place)),
                }
            }
            let mut documents = serde_json::Deserializer::from_slice(&body).into_iter::<serde::de::IgnoredAny>();
            let well_formed = matches!(documents.next(), Some(Ok(_)));
            let read = read(&body);
            prop_assert_eq!(
                read.resource_type.is_some(), well_formed,
                "{} {:?}", String::from_utf8_lossy(&body), read
            );
        }

        #[test]
        fn no_bytes_make_it_fail(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _: Facts = read(&body);
            let _: Facts = read(&[b"{\"object\":\"ACTIVITY\",\"x\":", &*body].concat());
        }
    }
}
