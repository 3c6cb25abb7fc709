//! The operator's headers: text with placeholders for what a webhook says.

use std::borrow::Cow;
use std::ops::Range;

use http::{HeaderName, HeaderValue};

use crate::domain::pointer::{Document, Field, Pointer, PointerId, Pointers};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Resource, WebhookId};

/// A longer value of a placeholder, in bytes, leaves its header out.
pub const PLACEHOLDER_BYTES_MAX: usize = 1024;

/// A longer value, in bytes, leaves its header out: few servers take a longer line, and a webhook
/// carries the headers of its routes once for each target.
pub const HEADER_BYTES_MAX: usize = 8 * 1024;

/// The placeholders by name; `{body:/json/pointer}` is one more.
const NAMES: [(&str, Placeholder); 7] = [
    ("activity", Placeholder::Activity),
    ("source", Placeholder::Source),
    ("target", Placeholder::Target),
    ("webhook_id", Placeholder::WebhookId),
    ("resource_type", Placeholder::ResourceType),
    ("resource_id", Placeholder::ResourceId),
    ("received_at", Placeholder::ReceivedAt),
];

/// A header that an operator wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderRule {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderText,
}

/// The value of an operator's header.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderText {
    /// Always the same.
    Fixed(HeaderValue),
    /// Always the same and secret: marked sensitive, shown as its label.
    Secret {
        /// Where it came from, such as `env:NAME`.
        label: Box<str>,
        /// The whole value, prefix included.
        value: HeaderValue,
        /// Where in it the secret begins.
        begins: usize,
    },
    /// Another for each webhook.
    Template(Template),
}

/// Text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Value(Placeholder),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Activity,
    Body(PointerId),
    ReceivedAt,
    ResourceId,
    ResourceType,
    Source,
    Target,
    WebhookId,
}

/// Why a text is no template, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// The bytes that are wrong.
    pub at: Range<usize>,
    /// What is wrong, for a person.
    pub message: String,
}

/// What placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// `{activity}`
    pub activity: Option<&'a str>,
    /// `{source}`
    pub source: &'a str,
    /// `{webhook_id}`
    pub webhook_id: WebhookId,
    /// Which repeat on purpose it is; part of the id then.
    pub again: u32,
    /// `{resource_type}`, `{resource_id}`
    pub resource: &'a Resource,
    /// `{received_at}`
    pub received_at: Timestamp,
    /// `{body:…}`
    pub document: &'a Document<'a>,
}

impl Template {
    /// Reads `text`. `add` gives each pointer into the body its number.
    pub fn parse(
        text: &str,
        mut add: impl FnMut(&Pointer) -> PointerId,
    ) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at_checked(at).unwrap_or((rest, ""));
            literal.push_str(before);
            let begin = text.len() - brace.len();
            if let Some(after) = brace.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = brace.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if brace.starts_with('}') {
                return Err(wrong(begin..begin + 1, "a } alone: write }} for a brace"));
            } else {
                let Some(end) = brace.find('}') else {
                    return Err(wrong(
                        begin..text.len(),
                        "a { without its }: write {{ for a brace",
                    ));
                };
                let name = brace.get(1..end).unwrap_or_default();
                let value = placeholder(name, &mut add)
                    .map_err(|message| TemplateError { at: begin..begin + end + 1, message })?;
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Value(value));
                rest = brace.get(end + 1..).unwrap_or_default();
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Ok(Self { parts })
    }

    /// The same with the numbers that its pointers have `into` another set.
    pub fn moved(&self, from: &Pointers, into: &mut Pointers) -> Self {
        let mut moved = self.clone();
        for part in &mut moved.parts {
            if let Part::Value(Placeholder::Body(id)) = part
                && let Some(pointer) = from.pointer(*id)
            {
                *id = into.add(pointer);
            }
        }
        moved
    }

    /// The text, where no placeholder is in it.
    pub fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The value for one webhook and target; none if a placeholder has nothing to stand for, or too
    /// much. Bytes that a header can't carry are percent-encoded.
    pub fn render(&self, values: &Values<'_>, target: &str) -> Option<HeaderValue> {
        let mut text = String::with_capacity(64);
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Value(placeholder) => {
                    let value = placeholder.value(values, target)?;
                    if value.len() > PLACEHOLDER_BYTES_MAX {
                        return None;
                    }
                    text.push_str(&carried(&value));
                }
            }
            if text.len() > HEADER_BYTES_MAX {
                return None;
            }
        }
        // Blanks at the ends belong to no value: the receiver would not see them.
        HeaderValue::try_from(text.trim_matches([' ', '\t'])).ok()
    }
}

impl HeaderText {
    /// The value for one webhook and target; none as [`Template::render`].
    pub fn render(&self, values: &Values<'_>, target: &str) -> Option<HeaderValue> {
        match self {
            Self::Fixed(value) | Self::Secret { value, .. } => Some(value.clone()),
            Self::Template(template) => template.render(values, target),
        }
    }
}

impl Placeholder {
    fn value<'a>(self, values: &'a Values<'_>, target: &'a str) -> Option<Cow<'a, str>> {
        Some(match self {
            Self::Activity => values.activity?.into(),
            Self::Body(id) => match values.document.get(id)? {
                Field::Text(text) => text.get()?.into(),
                Field::Number(_, digits) => (*digits).into(),
                Field::Boolean(true) => "true".into(),
                Field::Boolean(false) => "false".into(),
                Field::Null | Field::Nested => return None,
            },
            Self::ReceivedAt => values.received_at.to_string().into(),
            Self::ResourceId => values.resource.id.as_deref()?.into(),
            Self::ResourceType => values.resource.object.as_deref()?.into(),
            Self::Source => values.source.into(),
            Self::Target => target.into(),
            Self::WebhookId => values.webhook_id.known_as(values.again).into(),
        })
    }
}

/// The text, with the bytes that a header can't carry percent-encoded, and then the percent signs
/// too, so that it can be read back.
pub fn carried(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Cow::Owned(encoded)
}

fn wrong(at: Range<usize>, message: &str) -> TemplateError {
    TemplateError { at, message: message.to_owned() }
}

fn placeholder(
    name: &str,
    add: &mut impl FnMut(&Pointer) -> PointerId,
) -> Result<Placeholder, String> {
    if let Some(pointer) = name.strip_prefix("body:") {
        let pointer = Pointer::parse(pointer)
            .map_err(|error| format!("the placeholder {{{name}}}: {error}"))?;
        return Ok(Placeholder::Body(add(&pointer)));
    }
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, placeholder)| *placeholder).ok_or_else(|| {
        let names: Vec<_> = placeholder_names().map(|name| format!("{{{name}}}")).collect();
        format!(
            "unknown placeholder {{{name}}}: there are {}; write {{{{ for a brace",
            names.join(", ")
        )
    })
}

/// The names of all placeholders, the last one with a pointer for an example.
pub fn placeholder_names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, _)| *name).chain(["body:/json/pointer"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(text: &str, body: &str) -> Option<String> {
        let mut pointers = Pointers::default();
        let template = Template::parse(text, |pointer| pointers.add(pointer)).unwrap();
        let document = Document::new(body.as_bytes(), &pointers);
        let values = Values {
            activity: Some("ORDER_CREATED"),
            source: "aryeo",
            webhook_id: WebhookId::parse("018f0000-0000-7000-8000-000000000001").unwrap(),
            again: 2,
            resource: &Resource { object: Some("ORDER".into()), id: None },
            received_at: Timestamp::from_millis(1_678_755_880_007),
            document: &document,
        };
        template.render(&values, "crm").map(|value| value.to_str().unwrap().to_owned())
    }

    #[track_caller]
    fn check(text: &str, body: &str, expected: Option<&str>) {
        assert_eq!(render(text, body).as_deref(), expected, "{text} of {body}");
    }

    #[test]
    fn every_placeholder_stands_for_what_its_name_says() {
        check("{source}>{target}: {activity}", "", Some("aryeo>crm: ORDER_CREATED"));
        check("{webhook_id}", "", Some("018f0000-0000-7000-8000-000000000001.2"));
        check("at {received_at}", "", Some("at 2023-03-14T01:04:40.007Z"));
        check("{resource_type}", "", Some("ORDER"));
        check("{{{resource_type}}} 100%", "", Some("{ORDER} 100%"));
        check("{body:/a~1b/0}", r#"{"a/b":[7.50]}"#, Some("7.50"));
        check("{body:/t}{body:/f}", r#"{"t":true,"f":false}"#, Some("truefalse"));
        check("{body:/s}", r#"{"s":""}"#, Some(""));
    }

    #[test]
    fn a_missing_value_or_a_long_one_leaves_the_header_out() {
        check("{resource_id}", "", None);
        check("x{body:/a}", "{}", None);
        for value in ["null", "[]", "{}", r#""\ud800""#] {
            check("{body:/a}", &format!(r#"{{"a":{value}}}"#), None);
        }
        let text = |length: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(length));
        check("{body:/a}", &text(PLACEHOLDER_BYTES_MAX), Some(&"x".repeat(PLACEHOLDER_BYTES_MAX)));
        check("{body:/a}", &text(PLACEHOLDER_BYTES_MAX + 1), None);
        let eight = "{body:/a}".repeat(HEADER_BYTES_MAX / PLACEHOLDER_BYTES_MAX);
        let whole = "x".repeat(HEADER_BYTES_MAX);
        check(&eight, &text(PLACEHOLDER_BYTES_MAX), Some(&whole));
        check(&format!("{eight}."), &text(PLACEHOLDER_BYTES_MAX), None);
    }

    #[test]
    fn what_a_header_cannot_carry_is_percent_encoded() {
        check("{body:/a}", r#"{"a":"é 5%\r\nX: y"}"#, Some("%C3%A9 5%25%0D%0AX: y"));
        check("{body:/a}", r#"{"a":"5%"}"#, Some("5%"));
    }

    #[test]
    fn mistakes_say_where_they_are_and_what_to_write() {
        let parse = |text: &str| {
            let mut pointers = Pointers::default();
            let error = Template::parse(text, |pointer| pointers.add(pointer)).unwrap_err();
            format!("{} {}", text.get(error.at.clone()).unwrap(), error.message)
        };
        assert_eq!(parse("a } b"), "} a } alone: write }} for a brace");
        assert_eq!(parse("a {b"), "{b a { without its }: write {{ for a brace");
        assert!(parse("{ressource_id}").starts_with("{ressource_id} unknown placeholder"));
        assert!(parse("{}").contains("{activity}, {source}"));
        assert!(parse("{body:a}").contains("begins with /"));
    }

    #[test]
    fn text_without_placeholders_is_known_as_such() {
        let plain = |text: &str| {
            let mut pointers = Pointers::default();
            let template = Template::parse(text, |pointer| pointers.add(pointer)).unwrap();
            template.plain().map(str::to_owned)
        };
        assert_eq!(plain("a{{b}}").as_deref(), Some("a{b}"));
        assert_eq!(plain("").as_deref(), Some(""));
        assert_eq!(plain("{source}"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_template_or_says_why_not(text in "[a{}:/é~ ]{0,20}") {
            let mut pointers = Pointers::default();
            if let Err(error) = Template::parse(&text, |pointer| pointers.add(pointer)) {
                prop_assert!(text.get(error.at).is_some());
            }
        }

        #[test]
        fn every_value_is_fit_for_a_header(value in "\\PC{0,40}|[\\x00-\\x7f]{0,10}") {
            let body = serde_json::json!({"a": value}).to_string();
            let rendered = render("{body:/a}", &body);
            prop_assert!(rendered.is_some());
        }
    }
}
