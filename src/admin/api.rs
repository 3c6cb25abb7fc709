//! `/api/v1`: what operators ask and order, in JSON.
//!
//! To add an endpoint: a line in [`ENDPOINTS`], a function below it, and what it needs of the relay
//! as a method of [`Relay`], which `app` provides.
//!
//! Nobody has to prove who he is, so only the machine itself is answered: the API is off unless the
//! admin address is a loopback address. A browser on this machine runs other people's pages, so the
//! host must be an address or `localhost` (a name could be made to lead here), requests of other
//! sites are refused, and what changes something is a POST with a content type that no form has.

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Map, Value};

/// All paths begin with it.
pub(super) const PREFIX: &str = "/api/v1/";

/// For a request's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What is answered with: whole, or piece by piece.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What takes a while.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the relay does for the API.
pub trait Relay: Send + Sync + 'static {
    /// Reads all files again, and answers when what they say is in force, or why it is not.
    fn reload(&self) -> Later<'_, Result<Value, Problem>>;
}

/// Why something could not be done, as RFC 9457 has it.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The answer's status.
    pub status: StatusCode,
    /// A sentence for people.
    pub detail: String,
    /// More members, for programs.
    pub more: Map<String, Value>,
}

impl Problem {
    /// Without more members.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), more: Map::new() }
    }

    fn response(self) -> Response<Body> {
        let mut members = self.more;
        let title = self.status.canonical_reason().unwrap_or("Error");
        members.insert("title".to_owned(), title.into());
        members.insert("status".to_owned(), self.status.as_u16().into());
        members.insert("detail".to_owned(), self.detail.into());
        let mut response = json_response(&Value::Object(members));
        *response.status_mut() = self.status;
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

/// What does it.
type Run = for<'a> fn(&'a dyn Relay, Call) -> Later<'a, Result<Response<Body>, Problem>>;

/// What is done for one path and method.
struct Endpoint {
    path: &'static str,
    method: Method,
    body_bytes_max: usize,
    run: Run,
}

/// Every endpoint.
const ENDPOINTS: &[Endpoint] =
    &[Endpoint { path: "reload", method: Method::POST, body_bytes_max: 1024, run: reload }];

/// A request that was let in.
struct Call {
    body: Bytes,
}

impl Endpoint {
    fn is_at(&self, path: &str) -> bool {
        path.strip_prefix(PREFIX) == Some(self.path)
    }
}

fn reload(relay: &dyn Relay, call: Call) -> Later<'_, Result<Response<Body>, Problem>> {
    Box::pin(async move {
        call.has_no_members()?;
        Ok(json_response(&relay.reload().await?))
    })
}

impl Call {
    /// That its body is empty or `{}`.
    fn has_no_members(&self) -> Result<(), Problem> {
        let members = match self.body.trim_ascii() {
            b"" => Ok(Map::new()),
            body => serde_json::from_slice::<Map<String, Value>>(body),
        };
        match members {
            Ok(members) if members.is_empty() => Ok(()),
            Ok(_) | Err(_) => {
                let detail = "the body must be empty or {}";
                Err(Problem::new(StatusCode::BAD_REQUEST, detail))
            }
        }
    }
}

/// Answers one request for a path below [`PREFIX`]; without a relay the API is off.
pub(super) async fn answer<B>(relay: Option<&dyn Relay>, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let answer = async {
        let relay = relay.ok_or_else(off)?;
        is_for_this_machine(&head)?;
        let endpoint = find(&head)?;
        if endpoint.method == Method::POST {
            is_json(&head)?;
        }
        let body = read(body, endpoint.body_bytes_max).await?;
        (endpoint.run)(relay, Call { body }).await
    };
    let mut response = answer.await.unwrap_or_else(Problem::response);
    if response.status() == StatusCode::METHOD_NOT_ALLOWED
        && let Ok(methods) = HeaderValue::from_str(&methods(head.uri.path()))
    {
        response.headers_mut().insert(ALLOW, methods);
    }
    response
}

fn off() -> Problem {
    let detail = "the API is off, for --admin is not a loopback address; only /livez, /readyz and \
                  /metrics answer here";
    Problem::new(StatusCode::FORBIDDEN, detail)
}

fn find(head: &Parts) -> Result<&'static Endpoint, Problem> {
    let path = head.uri.path();
    let is_here = |endpoint: &&Endpoint| endpoint.is_at(path) && endpoint.method == head.method;
    if let Some(endpoint) = ENDPOINTS.iter().find(is_here) {
        return Ok(endpoint);
    }
    let methods = methods(path);
    if methods.is_empty() {
        let all = ENDPOINTS.iter().map(|known| format!("{} {PREFIX}{}", known.method, known.path));
        let detail = format!("there is only {}", all.collect::<Vec<_>>().join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let detail = format!("only {methods} is taken here");
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail))
}

/// What is taken at a path.
fn methods(path: &str) -> String {
    let of_path = ENDPOINTS.iter().filter(|endpoint| endpoint.is_at(path));
    of_path.map(|endpoint| endpoint.method.as_str()).collect::<Vec<_>>().join(", ")
}

/// That no name leads here that could be anybody's, and that no other site's page asks.
fn is_for_this_machine(head: &Parts) -> Result<(), Problem> {
    let refused = |detail: &str| Problem::new(StatusCode::FORBIDDEN, detail);
    let mut hosts = head.headers.get_all(HOST).iter().map(HeaderValue::to_str).peekable();
    let has_host = hosts.peek().is_some();
    let all_ours = hosts.all(|host| host.is_ok_and(is_address_or_localhost));
    let in_target = head.uri.authority().map(Authority::as_str);
    if !has_host || !all_ours || !in_target.is_none_or(is_address_or_localhost) {
        return Err(refused("the host must be an address or localhost"));
    }
    let site = head.headers.get(SEC_FETCH_SITE);
    let same_site = site.is_none_or(|site| site == "same-origin" || site == "none");
    // There is nothing to be had here that a page could come from.
    if !same_site || head.headers.contains_key(ORIGIN) {
        return Err(refused("requests of other sites are refused"));
    }
    Ok(())
}

fn is_address_or_localhost(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// That it says it is JSON, which no form of a page can say.
fn is_json(head: &Parts) -> Result<(), Problem> {
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if kind.trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "the content type must be application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

async fn read<B>(body: B, bytes_max: usize) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await;
    match whole {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let detail = format!("the body is larger than {bytes_max} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Ok(Err(_)) => {
            let detail = "the body can't be read";
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
        Err(_) => {
            let detail = "the body was not complete in time";
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
        }
    }
}

/// An answer of JSON, 200.
fn json_response(value: &Value) -> Response<Body> {
    let mut response = whole(format!("{value}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer in one piece, 200.
pub(super) fn whole(text: String) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text)).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Reloads;

    impl Relay for Reloads {
        fn reload(&self) -> Later<'_, Result<Value, Problem>> {
            Box::pin(async { Ok(json!({ "status": "unchanged" })) })
        }
    }

    fn post() -> http::request::Builder {
        Request::post("/api/v1/reload")
            .header(HOST, "127.0.0.1:9464")
            .header(CONTENT_TYPE, "application/json")
    }

    async fn answer_of(
        relay: Option<&dyn Relay>,
        request: http::request::Builder,
        body: &'static str,
    ) -> (StatusCode, Value) {
        let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
        let (head, body) = answer(relay, request).await.into_parts();
        let kind = head.headers[CONTENT_TYPE].to_str().unwrap().to_owned();
        let is_problem = kind == "application/problem+json";
        assert!(is_problem != head.status.is_success(), "{kind}");
        assert_eq!(head.headers.contains_key(ALLOW), head.status.as_u16() == 405);
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, serde_json::from_slice(&body).unwrap())
    }

    async fn status(request: http::request::Builder, body: &'static str) -> u16 {
        let (status, answer) = answer_of(Some(&Reloads), request, body).await;
        assert!(status.is_success() || answer["status"] == status.as_u16(), "{answer}");
        status.as_u16()
    }

    #[tokio::test]
    async fn a_request_as_it_should_be_is_answered() {
        for body in ["", "{}", " {\n} "] {
            assert_eq!(status(post(), body).await, 200, "{body:?}");
        }
        for host in ["localhost", "LOCALHOST:80", "[::1]:9464", "192.0.2.7"] {
            let request = Request::post("/api/v1/reload").header(HOST, host);
            let request = request.header(CONTENT_TYPE, "application/json; charset=utf-8");
            assert_eq!(status(request.header("sec-fetch-site", "none"), "").await, 200, "{host}");
        }
    }

    #[tokio::test]
    async fn names_and_other_sites_are_refused() {
        for host in ["relay.example.com", "localhost.example.com", "", "127.0.0.1.example.com", "é"]
        {
            let value = HeaderValue::from_bytes(host.as_bytes()).unwrap();
            let request = Request::post("/api/v1/reload").header(HOST, value);
            let request = request.header(CONTENT_TYPE, "application/json");
            assert_eq!(status(request, "").await, 403, "{host}");
        }
        assert_eq!(status(Request::post("/api/v1/reload"), "").await, 403, "no host at all");
        assert_eq!(status(post().header(HOST, "example.com"), "").await, 403, "two hosts");
        let absolute = post().uri("http://example.com/api/v1/reload");
        assert_eq!(status(absolute, "").await, 403);
        for (name, value) in [
            ("origin", "http://127.0.0.1:9464"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(status(post().header(name, value), "").await, 403, "{name}: {value}");
        }
    }

    #[tokio::test]
    async fn what_is_no_call_of_this_api_is_refused() {
        assert_eq!(status(post().method("GET"), "").await, 405);
        assert_eq!(status(post().uri("/api/v1/nothing"), "").await, 404);
        let form = Request::post("/api/v1/reload").header(HOST, "localhost");
        assert_eq!(status(form.header(CONTENT_TYPE, "text/plain"), "{}").await, 415);
        for body in ["[]", "{", "{\"a\":1}", "null"] {
            assert_eq!(status(post(), body).await, 400, "{body}");
        }
        let long: &'static str = " ".repeat(1025).leak();
        assert_eq!(status(post(), long).await, 413);
    }

    #[tokio::test]
    async fn where_it_is_off_it_says_why() {
        let (status, answer) = answer_of(None, post(), "").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(answer["detail"].as_str().unwrap().contains("loopback"), "{answer}");
    }
}
