//! `/api/v1`: what an operator, or the command line for him, asks a running relay.
//!
//! What there is to ask is given by `app` as a table of [`Endpoint`]s. Here is how they are asked:
//! whoever may ([`guard`](crate::admin::guard)) is answered in his turn, by what has the path and the
//! method, and reads no more of a body than that takes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::admin::guard::{Guard, must_be_json};

/// What every path of the API begins with.
pub const PREFIX: &str = "/api/v1/";

/// Who has not had his turn by then is told so: half of what a connection has.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);

/// One thing that can be asked.
pub struct Endpoint {
    /// How.
    pub method: Method,
    /// Behind [`PREFIX`]. One segment may be [`ANY`], and is what is asked about.
    pub path: &'static str,
    /// The largest body of a request, in bytes.
    pub body_bytes_max: usize,
    /// It reads what stands behind a `?`; where it does not, nothing may stand there.
    pub takes_query: bool,
    /// Answers it.
    pub call: Call,
}

/// In a path: any one segment.
pub const ANY: &str = "{id}";

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The segment that stands for [`ANY`].
    pub about: String,
    /// What stands behind the `?`.
    pub query: String,
    /// The body.
    pub body: Bytes,
}

/// Answers a question.
pub type Call = Arc<dyn Fn(Asked) -> Answering + Send + Sync>;

/// The answer that is being made.
pub type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// JSON.
    Json(Value),
    /// Exact bytes of somebody else.
    Bytes(Bytes),
}

/// Why the answer is no, as RFC 9457 has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// What is wrong and what to do, for a person.
    pub detail: String,
    /// More members, for a program.
    pub more: Map<String, Value>,
    /// A header that belongs to the status.
    pub header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({} {})", self.method, self.path)
    }
}

impl Problem {
    /// Without more members.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), more: Map::new(), header: None }
    }

    /// With one more member.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// With the header that belongs to the status.
    #[must_use]
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }
}

/// Answers a request to a path below [`PREFIX`], when it is its turn.
pub(super) async fn serve<B>(
    endpoints: &[Endpoint],
    turns: &Turns,
    guard: &Guard,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    match answer(endpoints, turns, guard, request).await {
        Ok(Written::Json(text)) => json(StatusCode::OK, "application/json", text),
        Ok(Written::Bytes(bytes)) => {
            let mut response = response(StatusCode::OK, "application/octet-stream", bytes);
            let no_sniff = HeaderValue::from_static("nosniff");
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, no_sniff);
            response
        }
        Err(problem) => {
            let title = problem.status.canonical_reason().unwrap_or("Refused");
            let mut members = problem.more;
            members.insert("title".to_owned(), title.into());
            members.insert("status".to_owned(), problem.status.as_u16().into());
            members.insert("detail".to_owned(), problem.detail.into());
            let text = written(&Value::Object(members));
            let mut response = json(problem.status, "application/problem+json", text);
            response.headers_mut().extend(problem.header.map(|header| *header));
            response
        }
    }
}

/// An answer as it is sent.
enum Written {
    Json(String),
    Bytes(Bytes),
}

/// What is sent.
async fn answer<B>(
    endpoints: &[Endpoint],
    turns: &Turns,
    guard: &Guard,
    request: Request<B>,
) -> Result<Written, Problem>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let (head, body) = request.into_parts();
    guard.may_ask(&head.headers)?;
    let path = head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let (endpoint, about) = find(endpoints, &head.method, path)?;
    if head.method == Method::POST {
        must_be_json(&head.headers)?;
    }
    let query = head.uri.query().unwrap_or_default().to_owned();
    if !endpoint.takes_query && !query.is_empty() {
        let detail = "the query: nothing may stand behind a ? here";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let max = endpoint.body_bytes_max;
    let too_large = || {
        let detail = format!("the body broke off, or is larger than {max} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let turn = turns.next().await?;
    let body = Limited::new(body, max).collect().await.map_err(|_| too_large())?;
    let asked = Asked { about: about.to_owned(), query, body: body.to_bytes() };
    aside((endpoint.call)(asked), turn).await
}

/// Makes an answer on a thread of its own: the probes share this one, and a large routes file takes
/// its time. The turn ends with the work, whether anybody still waits for it or not.
async fn aside(answering: Answering, turn: OwnedSemaphorePermit) -> Result<Written, Problem> {
    let runtime = Handle::current();
    let work = move || {
        let _turn = turn;
        runtime.block_on(answering).map(|answer| match answer {
            Answer::Json(value) => Written::Json(written(&value)),
            Answer::Bytes(bytes) => Written::Bytes(bytes),
        })
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "An answer to the operator broke off.");
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer broke off"))
    })
}

/// One question at a time, so that what they take does not grow with their number: a routes file and
/// what is made of it are hundreds of megabytes at worst.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Turns {
    async fn next(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let turn = timeout(TURN_WAIT_MAX, Arc::clone(&self.0).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = "others ask too, and are answered one after the other: try again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })
    }
}

/// Who answers, and what it is asked about.
fn find<'a>(
    endpoints: &'a [Endpoint],
    method: &Method,
    path: &'a str,
) -> Result<(&'a Endpoint, &'a str), Problem> {
    let here =
        endpoints.iter().filter_map(|endpoint| Some((endpoint, about(endpoint.path, path)?)));
    let here: Vec<_> = here.collect();
    if let Some(found) = here.iter().find(|(endpoint, _)| endpoint.method == *method) {
        return Ok(*found);
    }
    if here.is_empty() {
        let all = endpoints.iter().map(|known| format!("{} {PREFIX}{}", known.method, known.path));
        let all = all.collect::<Vec<_>>().join(", ");
        let detail = format!("there is no such path; there are {all}");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    let allow: Vec<_> = here.iter().map(|(endpoint, _)| endpoint.method.as_str()).collect();
    let allow = allow.join(", ");
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("only {allow} here"));
    Err(match HeaderValue::try_from(allow) {
        Ok(allow) => problem.header(ALLOW, allow),
        // No name of a method is such a text.
        Err(_) => problem,
    })
}

/// What a path is about by a pattern, if that is its pattern: empty where it is about nothing.
fn about<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let mut about = "";
    let (mut wanted, mut found) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), found.next()) {
            (None, None) => return Some(about),
            (Some(ANY), Some(segment)) if !segment.is_empty() => about = segment,
            (Some(wanted), Some(segment)) if wanted == segment => {}
            _ => return None,
        }
    }
}

fn written(value: &Value) -> String {
    format!("{value}\n")
}

fn json(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    response(status, kind, Bytes::from(text))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HOST;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll};

    const LOCAL: Guard = Guard { is_local: true, token: None };

    fn endpoint(method: Method, path: &'static str, call: Call) -> Endpoint {
        Endpoint { method, path, body_bytes_max: 8, takes_query: false, call }
    }

    fn endpoints() -> Vec<Endpoint> {
        let call: Call = Arc::new(|asked: Asked| {
            Box::pin(async move {
                match &*asked.body {
                    b"no" => Err(Problem::new(StatusCode::CONFLICT, "no").with("why", 7.into())),
                    body => Ok(Answer::Json(Value::from(body.len()))),
                }
            })
        });
        let tell: Call = Arc::new(|asked: Asked| {
            let told = format!("{} {}", asked.about, asked.query);
            Box::pin(async move { Ok(Answer::Bytes(Bytes::from(told))) })
        });
        vec![
            endpoint(Method::POST, "do/it", call),
            Endpoint { takes_query: true, ..endpoint(Method::GET, "of/{id}/it", tell) },
        ]
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    fn ask(
        lines: &[(&'static str, &str)],
        method: Method,
        path: &str,
        body: &str,
    ) -> (u16, String) {
        let mut request = Request::new(Full::new(Bytes::from(body.to_owned())));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in lines {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let runtime = runtime();
        let response = runtime.block_on(serve(&endpoints(), &Turns::default(), &LOCAL, request));
        let status = response.status().as_u16();
        let body = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn a_post_is_json_from_whoever_may_ask() {
        let post = |lines: &[(&'static str, &str)]| {
            let mut all = vec![("host", "localhost:9464"), ("content-type", "application/json")];
            all.extend(lines);
            ask(&all, Method::POST, "/api/v1/do/it", "{}").0
        };
        assert_eq!(post(&[]), 200);
        assert_eq!(post(&[("content-type", "text/plain")]), 415);
        assert_eq!(post(&[("host", "evil.test")]), 403);
    }

    #[test]
    fn what_can_not_be_answered_is_a_problem_that_says_what_to_do() {
        let lines = [("host", "localhost"), ("content-type", "application/json")];
        let (status, text) = ask(&lines, Method::POST, "/api/v1/other", "{}");
        assert!(status == 404 && text.contains("POST /api/v1/do/it"), "{text}");
        let (status, text) = ask(&lines, Method::GET, "/api/v1/do/it", "");
        assert!(status == 405 && text.contains("only POST here"), "{text}");
        assert_eq!(ask(&lines, Method::POST, "/api/v1/do/it", "123456789").0, 413);
        let (status, text) = ask(&lines, Method::POST, "/api/v1/do/it?dry_run=true", "{}");
        assert!(status == 400 && text.contains("the query:"), "{text}");
        let (status, text) = ask(&lines, Method::POST, "/api/v1/do/it", "no");
        assert_eq!(
            (status, text.as_str()),
            (409, "{\"detail\":\"no\",\"status\":409,\"title\":\"Conflict\",\"why\":7}\n")
        );
    }

    #[test]
    fn a_path_says_what_is_asked_about_in_one_segment() {
        let get = |path: &str| ask(&[("host", "localhost")], Method::GET, path, "");
        assert_eq!(get("/api/v1/of/this/it?a=1"), (200, "this a=1".to_owned()));
        for path in ["of//it", "of/this", "of/this/it/", "of/this/that/it"] {
            assert_eq!(get(&format!("/api/v1/{path}")).0, 404, "{path}");
        }
    }

    /// A body that says when it is asked for.
    struct Watched(Arc<AtomicBool>);

    impl Body for Watched {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            self.0.store(true, Ordering::Relaxed);
            Poll::Ready(None)
        }
    }

    fn watched() -> (Request<Watched>, Arc<AtomicBool>) {
        let read = Arc::new(AtomicBool::new(false));
        let mut request = Request::new(Watched(Arc::clone(&read)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = "/api/v1/do/it".parse().unwrap();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        request.headers_mut().insert(CONTENT_TYPE, json);
        (request, read)
    }

    #[test]
    fn an_answer_that_takes_its_time_holds_up_the_next_question_and_nobody_else() {
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let call: Call = Arc::new(move |_| {
            let held = Arc::clone(&held);
            Box::pin(async move {
                // It computes. That it ends even if nobody else gets on makes this test fail, not hang.
                match held.lock().unwrap().recv_timeout(Duration::from_secs(10)) {
                    Ok(()) => Ok(Answer::Json(Value::Null)),
                    Err(_) => Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "nobody got on")),
                }
            })
        });
        let endpoints = [endpoint(Method::POST, "do/it", call)];
        let turns = Turns::default();
        let ((first, first_read), (second, second_read)) = (watched(), watched());
        let answers = runtime().block_on(async {
            let first = serve(&endpoints, &turns, &LOCAL, first);
            let second = serve(&endpoints, &turns, &LOCAL, second);
            let others = async {
                assert!(first_read.load(Ordering::Relaxed));
                assert!(!second_read.load(Ordering::Relaxed), "nothing is read before its turn");
                let_go.send(()).unwrap();
                let_go.send(()).unwrap();
            };
            let (first, second, ()) = tokio::join!(biased; first, second, others);
            [first, second].map(|answer| answer.status().as_u16())
        });
        assert_eq!(answers, [200, 200]);
        assert!(second_read.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_not_had_his_turn_in_time_is_told_so() {
        let turns = Turns::default();
        let _other = turns.next().await.unwrap();
        let answer = serve(&endpoints(), &turns, &LOCAL, watched().0).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
