//! Who may post, as compiled from `routes.yaml`.

// Addresses are plain data; `std::net` would bring sockets with it.
use core::net::IpAddr;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::domain::activity;
use crate::domain::client::{ClientCertificate, Networks};
use crate::domain::limit::SENDER_RETRIES_SPAN;
use crate::domain::proof::Proof;
use crate::domain::target::Rate;
use crate::domain::time::Timestamp;

/// Who may post, on which path, verified how.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its name.
    pub name: Arc<str>,
    /// Where it posts.
    pub path: SourcePath,
    /// How its requests are verified.
    pub verify: Proof,
    /// The activity of webhooks that name none, neither in the body nor in the path.
    pub activity: Option<Box<str>>,
    /// The largest body.
    pub body_bytes_max: usize,
    /// Where its requests may come from; anywhere without.
    pub allow_from: Option<Networks>,
    /// Whose certificates are taken: one of these subjects has to be in it; nobody has to show one
    /// without.
    pub client_certificate: Option<Box<[Box<str>]>>,
    /// Verified requests per time.
    pub rate_limit: Option<Rate>,
    /// How long the same bytes are a duplicate.
    pub duplicates: DuplicateWindows,
    /// Exported for the alert on silence.
    pub silence_after: Duration,
}

impl Source {
    /// Whether a request carries what this source takes for a proof.
    pub fn is_signed(&self, headers: &HeaderMap) -> bool {
        self.verify.header_names().any(|name| headers.contains_key(name))
    }

    /// Whether a request may come from there; who is not known may be anybody.
    pub fn is_open_to(&self, client: Option<IpAddr>) -> bool {
        let allowed = self.allow_from.as_ref();
        allowed.is_none_or(|allowed| client.is_some_and(|client| allowed.contains(client)))
    }

    /// Whether a request may come now over a connection on which this certificate was shown, or none.
    pub fn takes(
        &self,
        shown: Option<&ClientCertificate>,
        now: Timestamp,
    ) -> Result<(), CertificateError> {
        let Some(wanted) = self.client_certificate.as_deref() else { return Ok(()) };
        let shown = shown.ok_or(CertificateError::Missing)?;
        if !wanted.iter().any(|subject| shown.subjects.contains(subject)) {
            return Err(CertificateError::Unwanted);
        }
        if shown.is_over(now) { Err(CertificateError::Expired) } else { Ok(()) }
    }
}

/// Why a source does not take a request for its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateError {
    /// None was shown.
    Missing,
    /// It is somebody else's.
    Unwanted,
    /// It was good when its connection began, and is no longer.
    Expired,
}

/// How long the same bytes are a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateWindows {
    /// For bodies that carry an activity's id.
    pub activities: Duration,
    /// For all others, which may honestly come again: only the sender's own retries.
    pub bare: Duration,
}

impl Default for DuplicateWindows {
    fn default() -> Self {
        Self { activities: Duration::from_secs(24 * 3600), bare: SENDER_RETRIES_SPAN }
    }
}

/// The path of a source: exact, or with one segment that names the activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePath {
    /// As written.
    text: Box<str>,
    /// What comes before and after `{activity}`, where it is in it.
    around: Option<(Box<str>, Box<str>)>,
}

/// What a path has in the place of `{activity}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a>(&'a str);

impl SourcePath {
    /// The placeholder.
    pub const ACTIVITY: &'static str = "{activity}";

    /// From the text as written; `{activity}` in it is a whole segment, once.
    pub fn new(text: &str) -> Self {
        let around = text.split_once(Self::ACTIVITY);
        let around = around.map(|(before, after)| (before.into(), after.into()));
        Self { text: text.into(), around }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path, where it names no activity.
    pub fn exact(&self) -> Option<&str> {
        self.around.is_none().then_some(&*self.text)
    }

    /// What `path` has in the place of `{activity}`; none if it is another path. An empty segment is
    /// none: a slash too many is another path.
    pub fn activity<'a>(&self, path: &'a str) -> Option<Segment<'a>> {
        let (before, after) = self.around.as_ref()?;
        let segment = path.strip_prefix(&**before)?.strip_suffix(&**after)?;
        (!segment.is_empty() && !segment.contains('/')).then_some(Segment(segment))
    }
}

impl<'a> Segment<'a> {
    /// The activity that it names; none if nothing that names one could be meant.
    pub fn named(self) -> Option<Cow<'a, str>> {
        let name = if self.0.contains('%') {
            Cow::Owned(percent_decoded(self.0)?)
        } else {
            Cow::Borrowed(self.0)
        };
        activity::is_fit(&name).then_some(name)
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                let value = digit(high)? * 16 + digit(low)?;
                bytes.push(u8::try_from(value).ok()?);
                after
            }
            (b'%', _) => return None,
            (byte, after) => {
                bytes.push(*byte);
                after
            }
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::client::Subjects;
    use crate::domain::proof::Proof;

    #[test]
    fn a_certificate_is_taken_by_one_of_its_subjects_in_its_time_and_only_where_one_is_wanted() {
        let mut source = Source {
            name: "aryeo".into(),
            path: SourcePath::new("/hooks"),
            verify: Proof::beside_certificate(None, Vec::new()),
            activity: None,
            body_bytes_max: 1,
            allow_from: None,
            client_certificate: None,
            rate_limit: None,
            duplicates: DuplicateWindows::default(),
            silence_after: Duration::ZERO,
        };
        let subjects = ["a.test", "b.test"].map(str::to_owned).into_iter().collect();
        let at = |secs: u64| Timestamp::from_millis(secs * 1000);
        let shown = ClientCertificate { subjects, not_after: at(100) };
        let nobodys = ClientCertificate { subjects: Subjects::default(), not_after: at(100) };
        // Where none is wanted it does not matter whose it is, nor until when.
        assert_eq!(
            (source.takes(None, at(101)), source.takes(Some(&shown), at(101))),
            (Ok(()), Ok(()))
        );
        source.client_certificate = Some(["b.test".into(), "c.test".into()].into());
        // To the end of its last second.
        for (now, expected) in [
            (at(99), Ok(())),
            (at(100).plus(Duration::from_millis(999)), Ok(())),
            (at(101), Err(CertificateError::Expired)),
        ] {
            assert_eq!(source.takes(Some(&shown), now), expected, "{now}");
        }
        assert_eq!(source.takes(None, at(99)), Err(CertificateError::Missing));
        let unwanted = Err(CertificateError::Unwanted);
        assert_eq!(source.takes(Some(&nobodys), at(99)), unwanted);
        source.client_certificate = Some(["B.test".into(), "test".into()].into());
        assert_eq!(source.takes(Some(&shown), at(99)), unwanted);
    }

    #[test]
    fn a_segment_of_the_path_names_the_activity() {
        let path = SourcePath::new("/hooks/{activity}/in");
        let named = |text: &str| path.activity(text).map(|s| s.named().map(Cow::into_owned));
        assert_eq!(named("/hooks/ORDER_CREATED/in"), Some(Some("ORDER_CREATED".to_owned())));
        assert_eq!(named("/hooks/a%2Fb%C3%A9/in"), Some(Some("a/bé".to_owned())));
        for unnamed in ["/hooks/%/in", "/hooks/%zz/in", "/hooks/%ff/in", "/hooks/%00/in"] {
            assert_eq!(named(unnamed), Some(None), "{unnamed}");
        }
        for other in ["/hooks//in", "/hooks/a/b/in", "/hooks/a/in/", "/hooks/in", "/hooks/a"] {
            assert_eq!(named(other), None, "{other}");
        }
        assert_eq!(path.exact(), None);
        assert_eq!(SourcePath::new("/hooks").exact(), Some("/hooks"));
        assert_eq!(SourcePath::new("/hooks").activity("/hooks"), None);
    }
}
