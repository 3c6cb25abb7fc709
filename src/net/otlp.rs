//! Sends spans to a receiver of OpenTelemetry's: OTLP over HTTP, as protobuf.
//!
//! Every receiver takes that; few take nothing else. The handful of messages is written here, so that
//! no code generator and no runtime for it comes with them.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::time::Instant;

use super::client::{Answer, Client, ClientSettings, SendFailure};
use super::resolve::Resolver;
use super::tls::{self, TargetTls, TlsError};
use crate::telemetry::traces::{Kind, Span, Value};

/// For one request, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go below an endpoint.
const PATH: &str = "/v1/traces";

const AGENT: &str = concat!("aryeo-relay/", env!("CARGO_PKG_VERSION"));

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Uri);

/// Why spans can't be sent there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is no URL.
    #[error("it must be a URL, such as http://127.0.0.1:4318")]
    Url,
    /// A password would be seen by who lists processes.
    #[error("it must have no user, no password and no query")]
    Secret,
}

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    /// As other exporters take it: without `/v1/traces`, which is added where it is not there.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let url: Uri = text.parse().map_err(|_| EndpointError::Url)?;
        let known = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&url.scheme());
        let authority = url.authority().filter(|authority| !authority.host().is_empty() && known);
        if authority.ok_or(EndpointError::Url)?.as_str().contains('@') || url.query().is_some() {
            return Err(EndpointError::Secret);
        }
        let path = url.path().trim_end_matches('/');
        let path = format!("{}{PATH}", path.strip_suffix(PATH).unwrap_or(path));
        let mut parts = url.into_parts();
        parts.path_and_query = PathAndQuery::try_from(path).ok();
        Uri::from_parts(parts).map(Self).map_err(|_| EndpointError::Url)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who tells of something: name and value of what is known of it.
pub type Resource = Vec<(&'static str, Value)>;

/// Sends spans to one receiver.
#[derive(Debug)]
pub struct Exporter {
    endpoint: Endpoint,
    resource: Resource,
    client: Client,
}

/// Why spans were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// They may be taken later, and not before so much has passed, if it said so.
    #[error("{reason}")]
    Later {
        /// In words.
        reason: String,
        /// What the receiver asked for.
        after: Option<Duration>,
    },
    /// They are not taken, however often they are sent.
    #[error("{0}")]
    Never(String),
}

impl Exporter {
    /// Connects to nothing yet. The receiver's certificate must be of the system's roots.
    pub fn new(endpoint: Endpoint, resource: Resource) -> Result<Self, TlsError> {
        let is_secure = endpoint.0.scheme() == Some(&Scheme::HTTPS);
        let tls = is_secure.then(|| tls::client_config(TargetTls { ca: None, identity: None }));
        let client = Client::new(ClientSettings {
            tls: tls.transpose()?,
            server_name: None,
            idle_max: 1,
            connect_timeout: REQUEST_TIMEOUT,
            resolver: Resolver::default(),
        });
        Ok(Self { endpoint, resource, client })
    }

    /// The request that carries these spans.
    pub fn encode(&self, spans: &[Span]) -> Bytes {
        let mut resource = Message::default();
        self.resource.iter().for_each(|(name, value)| resource.attribute(1, name, value));
        let mut scope = Message::default();
        scope.text(1, env!("CARGO_PKG_NAME"));
        scope.text(2, env!("CARGO_PKG_VERSION"));
        let mut of_scope = Message::default();
        of_scope.message(1, &scope);
        spans.iter().for_each(|span| of_scope.message(2, &encoded(span)));
        let mut of_resource = Message::default();
        of_resource.message(1, &resource);
        of_resource.message(2, &of_scope);
        let mut request = Message::default();
        request.message(1, &of_resource);
        request.0.into()
    }

    /// Sends them once; answers how many the receiver did not want, and why.
    pub async fn send(&self, body: Bytes) -> Result<Option<(u64, String)>, ExportError> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.0.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        // All of it: a cut message of the receiver's says nothing.
        match self.client.fetch(request, Instant::now() + REQUEST_TIMEOUT).await {
            Ok(answer) => came_to(&answer),
            Err(failure) => Err(failed(&failure)),
        }
    }
}

fn came_to(answer: &Answer) -> Result<Option<(u64, String)>, ExportError> {
    let status = answer.status;
    let reason = format!("the receiver answers {status}");
    match status {
        _ if status.is_success() => Ok(rejected(&answer.excerpt)),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            Err(ExportError::Later { reason, after })
        }
        _ => Err(ExportError::Never(reason)),
    }
}

fn failed(failure: &SendFailure) -> ExportError {
    let reason = failure.to_string();
    match failure {
        SendFailure::AnswerTooLarge => ExportError::Never(reason),
        SendFailure::Refused(_)
        | SendFailure::Timeout
        | SendFailure::Tls(_)
        | SendFailure::Reset(_) => ExportError::Later { reason, after: None },
    }
}

// === the messages; numbers of fields are those of opentelemetry-proto ===

fn encoded(span: &Span) -> Message {
    let mut message = Message::default();
    message.bytes(1, &span.context.trace_id);
    message.bytes(2, &span.context.span_id);
    if let Some(parent) = &span.parent {
        message.bytes(4, parent);
    }
    message.text(5, &span.name);
    message.number(
        6,
        match span.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
    );
    message.fixed64(7, span.started_at);
    message.fixed64(8, span.ended_at);
    span.attributes.iter().for_each(|(name, value)| message.attribute(9, name, value));
    if let Some(link) = &span.link {
        let mut linked = Message::default();
        linked.bytes(1, &link.trace_id);
        linked.bytes(2, &link.span_id);
        linked.fixed32(6, IS_REMOTE | u32::from(link.sampled));
        message.message(13, &linked);
    }
    if let Some(error) = &span.error {
        let mut status = Message::default();
        status.text(2, error);
        status.number(3, ERROR);
        message.message(15, &status);
    }
    message.fixed32(16, IS_LOCAL | u32::from(span.context.sampled));
    message
}

const ERROR: u64 = 2;

/// Above the flags of W3C: whether the parent, or what is linked, is of another process.
const IS_LOCAL: u32 = 0x100;
const IS_REMOTE: u32 = 0x300;

/// Protobuf, being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while let Some(more @ 1..) = number.checked_shr(7) {
            self.0.push(low_seven(number) | 0x80);
            number = more;
        }
        self.0.push(low_seven(number));
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn number(&mut self, field: u32, number: u64) {
        self.key(field, 0);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u32, number: u64) {
        self.key(field, 1);
        self.0.extend(number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, number: u32) {
        self.key(field, 5);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }

    fn attribute(&mut self, field: u32, name: &str, value: &Value) {
        let mut wrapped = Self::default();
        match value {
            Value::Text(text) => wrapped.text(1, text),
            Value::Number(number) => wrapped.number(3, number.cast_unsigned()),
        }
        let mut attribute = Self::default();
        attribute.text(1, name);
        attribute.message(2, &wrapped);
        self.message(field, &attribute);
    }
}

const fn low_seven(number: u64) -> u8 {
    (number & 0x7f) as u8
}

/// How many spans an answer says that it rejects, and why; none where it says nothing of it.
fn rejected(answer: &[u8]) -> Option<(u64, String)> {
    let partial = fields(answer).find_map(|(number, field)| match field {
        Field::Bytes(bytes) if number == 1 => Some(bytes),
        _ => None,
    })?;
    let mut count = 0;
    let mut reason = String::new();
    for (number, field) in fields(partial) {
        match (number, field) {
            (1, Field::Number(rejected)) => count = rejected,
            (2, Field::Bytes(text)) => reason = beginning(text),
            _ => {}
        }
    }
    (count > 0).then_some((count, reason))
}

/// What the log has of a receiver's words.
fn beginning(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(200).collect()
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, as far as it is one.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let key = take_varint(&mut rest)?;
        let field = match key & 7 {
            0 => Field::Number(take_varint(&mut rest)?),
            1 => Field::Bytes(take(&mut rest, 8)?),
            2 => {
                let len = usize::try_from(take_varint(&mut rest)?).ok()?;
                Field::Bytes(take(&mut rest, len)?)
            }
            5 => Field::Bytes(take(&mut rest, 4)?),
            _ => return None,
        };
        Some((key >> 3, field))
    })
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = take(rest, 1)? else { return None };
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::trace::{Sampling, TraceContext};
    use crate::domain::webhook::WebhookId;

    fn exporter(endpoint: &str) -> Exporter {
        let resource = vec![("service.name", "aryeo-relay".into())];
        Exporter::new(endpoint.parse().unwrap(), resource).unwrap()
    }

    fn span() -> Span {
        let id = WebhookId::parse("018f0000-0000-7000-8000-00000000000a").unwrap();
        let context = TraceContext::of_webhook(id, Sampling::ALL);
        Span {
            context,
            parent: Some([7; 8]),
            link: Some(context),
            name: "a name".to_owned(),
            kind: Kind::Client,
            started_at: 1,
            ended_at: 300,
            attributes: vec![("text", "ö".into()), ("number", Value::Number(-1))],
            error: Some("why".to_owned()),
        }
    }

    /// The first field of this number.
    fn inside(message: &[u8], wanted: u64) -> Vec<u8> {
        let found = fields(message).find_map(|(number, field)| match field {
            Field::Bytes(bytes) if number == wanted => Some(bytes.to_vec()),
            Field::Number(n) if number == wanted => Some(n.to_be_bytes().to_vec()),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no field {wanted} in {message:?}"))
    }

    // That others read it as it is meant is shown with the code that OpenTelemetry publishes, in
    // `tests/it/traces.rs`.
    #[test]
    fn what_is_written_is_read_back() {
        let request = exporter("http://127.0.0.1:4318").encode(&[span(), span()]);
        let of_resource = inside(&request, 1);
        let of_scope = inside(&of_resource, 2);
        let spans: Vec<_> = fields(&of_scope).filter(|(number, _)| *number == 2).collect();
        assert_eq!(spans.len(), 2);
        let span = inside(&of_scope, 2);
        assert_eq!(inside(&span, 1), self::span().context.trace_id);
        assert_eq!(inside(&span, 2), [0x80, 0, 0, 0, 0, 0, 0, 0x0a]);
        assert_eq!(inside(&span, 4), [7; 8]);
        assert_eq!(inside(&span, 5), b"a name");
        assert_eq!(inside(&span, 6), 3_u64.to_be_bytes());
        assert_eq!(inside(&span, 8), 300_u64.to_le_bytes());
        assert_eq!(inside(&inside(&span, 15), 2), b"why");
        assert_eq!(inside(&inside(&span, 13), 6), (IS_REMOTE | 1).to_le_bytes());
        let last = fields(&span).filter_map(|(number, field)| match field {
            Field::Bytes(bytes) if number == 9 => Some(bytes),
            _ => None,
        });
        let last = last.last().unwrap();
        assert_eq!(inside(last, 1), b"number");
        assert_eq!(inside(&inside(last, 2), 3), (-1_i64).to_be_bytes());
    }

    #[test]
    fn an_answer_says_how_many_are_rejected_and_nonsense_says_nothing() {
        assert_eq!(rejected(b""), None);
        assert_eq!(rejected(b"\x0a\x00"), None, "a partial success of everything");
        let some = b"\x0a\x08\x08\x96\x01\x12\x03bad";
        assert_eq!(rejected(some), Some((150, "bad".to_owned())));
        for nonsense in [&b"<html>"[..], b"done", b"\x0a\xff", &[0xff; 20], b"\x0a\x02\x08\xff"] {
            assert_eq!(rejected(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn what_may_be_sent_again_is_told_from_what_may_not() {
        let answer = |status: u16, after: &'static str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
            let status = StatusCode::from_u16(status).unwrap();
            came_to(&Answer { status, headers, excerpt: Bytes::new() })
        };
        for status in [429, 502, 503, 504] {
            let wait = Some(Duration::from_secs(7));
            let later = answer(status, "7");
            assert!(matches!(&later, Err(ExportError::Later { after, .. }) if *after == wait));
        }
        let dated = answer(503, "Fri, 27 Nov 2026 03:00:00 GMT");
        assert!(matches!(dated, Err(ExportError::Later { after: None, .. })));
        for status in [301, 400, 401, 404, 500] {
            assert!(matches!(answer(status, "7"), Err(ExportError::Never(_))), "{status}");
        }
        assert_eq!(answer(200, "7"), Ok(None));
    }
}
