//! One webhook that nobody sent: what an operator asks of a table, made into what the table is asked
//! about a real one.
//!
//! `route`, `test` and the admin address ask alike, so that their answers agree.

use std::borrow::Cow;
use std::sync::Arc;

use crate::domain::activity;
use crate::domain::route::{RoutingTable, Subject};
use crate::domain::source::{Source, SourcePath};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{Resource, WebhookId};

/// When a webhook that nobody sent was received: always the same, so that answers can be compared.
pub const SAMPLE_TIME: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// So many names in one message.
const NAMES_MAX: usize = 10;

/// What is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Question<'a> {
    /// The source's name; may be left out where there is only one.
    pub source: Option<&'a str>,
    /// Without a body: the activity of a body that says nothing else. With one: what stands in the
    /// path for `{activity}`.
    pub activity: Option<&'a str>,
    /// The exact bytes.
    pub body: Option<&'a [u8]>,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The body is larger than the source takes.
    #[error("the body is larger than the {max} bytes that source \"{source_name}\" takes")]
    BodyTooLarge {
        /// The source.
        source_name: Arc<str>,
        /// Its limit.
        max: usize,
    },
    /// No activity has such a name.
    #[error("{0:?} can't be the name of an activity")]
    NoActivity(String),
    /// Neither body nor activity.
    #[error("a body or an activity is needed")]
    Nothing,
    /// With a body, only a path can name an activity.
    #[error(
        "the path of source \"{source_name}\" has no {{activity}}: the activity is in the body, or \
         there is none"
    )]
    NotInPath {
        /// The source.
        source_name: Arc<str>,
    },
    /// Which one?
    #[error("there are several sources, say which: {known}")]
    SeveralSources {
        /// All of them.
        known: String,
    },
    /// There is none of this name.
    #[error("unknown source {name:?}: there is {known}")]
    UnknownSource {
        /// As asked.
        name: String,
        /// All of them.
        known: String,
    },
}

/// A webhook as a table would see it.
#[derive(Debug)]
pub struct Case<'a> {
    /// Who would have posted it.
    pub source: Arc<Source>,
    /// Its activity.
    pub activity: Option<Box<str>>,
    /// What it is about.
    pub resource: Resource,
    /// Its bytes.
    pub body: Cow<'a, [u8]>,
}

impl<'a> Question<'a> {
    /// The webhook that is meant.
    ///
    /// # Errors
    ///
    /// Where none can be meant.
    pub fn case(&self, table: &RoutingTable) -> Result<Case<'a>, QuestionError> {
        let source = self.source(&table.sources)?;
        if let Some(name) = self.activity
            && !activity::is_fit(name)
        {
            return Err(QuestionError::NoActivity(name.to_owned()));
        }
        let (body, in_path) = match (self.body, self.activity) {
            (Some(_), Some(_)) if !source.path.as_str().contains(SourcePath::ACTIVITY) => {
                return Err(QuestionError::NotInPath { source_name: Arc::clone(&source.name) });
            }
            (Some(body), in_path) => (Cow::Borrowed(body), in_path),
            (None, Some(name)) => (Cow::Owned(wrapper(name)), None),
            (None, None) => return Err(QuestionError::Nothing),
        };
        let max = source.body_bytes_max;
        if body.len() > max {
            let source_name = Arc::clone(&source.name);
            return Err(QuestionError::BodyTooLarge { source_name, max });
        }
        let facts = activity::read(&body);
        let activity = facts.activity.or(in_path.map(Box::from)).or(source.activity.clone());
        let resource = Resource { object: facts.resource_type, id: facts.resource_id };
        Ok(Case { source, activity, resource, body })
    }

    fn source(&self, sources: &[Arc<Source>]) -> Result<Arc<Source>, QuestionError> {
        match (self.source, sources) {
            (None, [only]) => Ok(Arc::clone(only)),
            (None, _) => Err(QuestionError::SeveralSources { known: names(sources) }),
            (Some(name), _) => {
                let found = sources.iter().find(|source| *source.name == *name);
                found.map(Arc::clone).ok_or_else(|| QuestionError::UnknownSource {
                    name: name.to_owned(),
                    known: names(sources),
                })
            }
        }
    }
}

impl Case<'_> {
    /// What a table is asked about it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            webhook_id: sample_id(),
            received_at: SAMPLE_TIME,
            source: &self.source.name,
            activity: self.activity.as_deref(),
            resource: &self.resource,
            body: &self.body,
        }
    }
}

/// The id of a webhook that nobody sent.
pub fn sample_id() -> WebhookId {
    WebhookId::from_key(SAMPLE_TIME.as_millis() << 12)
}

/// The smallest body of an activity.
fn wrapper(name: &str) -> Vec<u8> {
    serde_json::json!({ "object": "ACTIVITY", "name": name }).to_string().into_bytes()
}

fn names(sources: &[Arc<Source>]) -> String {
    let mut names: Vec<_> = sources.iter().map(|source| &*source.name).take(NAMES_MAX).collect();
    if sources.len() > NAMES_MAX {
        names.push("…");
    }
    names.join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::proof::{Proof, RequiredHeader};
    use crate::domain::route::Rules;
    use crate::domain::signature::Secret;
    use crate::domain::source::DuplicateWindows;
    use http::HeaderName;
    use std::time::Duration;

    pub(in crate::domain) fn source(name: &str, path: &str, activity: Option<&str>) -> Source {
        let secret = Secret::new("s", b"s").unwrap();
        let header = RequiredHeader { name: HeaderName::from_static("x-a"), secret };
        Source {
            name: name.into(),
            path: SourcePath::new(path),
            verify: Proof::new(None, vec![header]).unwrap(),
            activity: activity.map(Box::from),
            body_bytes_max: 100,
            allow_from: None,
            client_certificate: None,
            rate_limit: None,
            duplicates: DuplicateWindows::default(),
            silence_after: Duration::from_secs(1),
        }
    }

    fn table(sources: Vec<Source>) -> RoutingTable {
        RoutingTable::new(Rules { sources, ..Rules::default() })
    }

    #[track_caller]
    fn activity_of(question: &Question<'_>, table: &RoutingTable) -> Option<String> {
        question.case(table).unwrap().activity.map(String::from)
    }

    #[test]
    fn the_activity_is_the_body_s_then_the_path_s_then_the_source_s() {
        let plain = table(vec![source("a", "/a", None)]);
        let pathed = table(vec![source("a", "/a/{activity}", Some("FIXED"))]);
        let wrapped = br#"{"object":"ACTIVITY","name":"IN_BODY"}"#;
        let (body, bare) = (Some(&wrapped[..]), Some(&b"{}"[..]));
        let ask = |activity, body| Question { source: None, activity, body };
        assert_eq!(activity_of(&ask(None, body), &plain).as_deref(), Some("IN_BODY"));
        assert_eq!(activity_of(&ask(None, bare), &plain), None);
        assert_eq!(activity_of(&ask(Some("ALONE"), None), &plain).as_deref(), Some("ALONE"));
        assert_eq!(activity_of(&ask(Some("PATH"), body), &pathed).as_deref(), Some("IN_BODY"));
        assert_eq!(activity_of(&ask(Some("PATH"), bare), &pathed).as_deref(), Some("PATH"));
        assert_eq!(activity_of(&ask(None, bare), &pathed).as_deref(), Some("FIXED"));
        let odd = "A\"\\ é";
        assert_eq!(activity_of(&ask(Some(odd), None), &plain).as_deref(), Some(odd));
    }

    #[test]
    fn what_can_t_be_meant_is_told_with_what_can() {
        let one = table(vec![source("a", "/a", None)]);
        let two = table(vec![source("a", "/a", None), source("b", "/b", None)]);
        let said = |question: Question<'_>, table| question.case(table).unwrap_err().to_string();
        let ask = |source, activity, body| Question { source, activity, body };
        let large = [b' '; 101];
        for (question, table, expected) in [
            (ask(None, Some("A"), None), &two, "there are several sources, say which: a, b"),
            (ask(Some("c"), Some("A"), None), &two, "unknown source \"c\": there is a, b"),
            (ask(None, None, None), &one, "a body or an activity is needed"),
            (ask(None, Some("a\nb"), None), &one, "\"a\\nb\" can't be the name of an activity"),
            (
                ask(None, Some("A"), Some(b"{}")),
                &one,
                "the path of source \"a\" has no {activity}: the activity is in the body, or there \
                 is none",
            ),
            (
                ask(None, None, Some(&large)),
                &one,
                "the body is larger than the 100 bytes that source \"a\" takes",
            ),
        ] {
            assert_eq!(said(question, table), expected);
        }
        assert_eq!(&*ask(Some("b"), None, Some(b"")).case(&two).unwrap().source.name, "b");
    }
}
