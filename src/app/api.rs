//! What the admin address can be asked, and by whom it is answered.

use std::fmt::Display;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::admin::api::{Call, Endpoint, Problem};
use crate::app::diff::{self, Refused};
use crate::app::watcher::Reloads;
use crate::config::Problems;
use crate::domain::explain::Explanation;
use crate::domain::limit::ROUTES_FILE_BYTES_MAX;
use crate::domain::question::Question;
use crate::domain::route::RoutingTable;
use crate::domain::time::Clock;
use crate::store::embedded::EmbeddedStore;

/// A routes file as JSON text: at worst every byte of it is escaped.
const ROUTES_REQUEST_BYTES_MAX: usize = 6 * ROUTES_FILE_BYTES_MAX + 4096;

/// The largest body that a source takes, in base64, and what stands beside it.
const BODY_REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What `routes/explain` is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Explain {
    source: Option<String>,
    activity: Option<String>,
    body_base64: Option<String>,
}

/// Who answers.
#[derive(Clone)]
pub(super) struct Answers {
    /// The store, once it is open.
    pub(super) store: watch::Receiver<Option<Arc<EmbeddedStore>>>,
    /// The table in force.
    pub(super) table: watch::Receiver<Arc<RoutingTable>>,
    /// The time.
    pub(super) clock: Arc<dyn Clock>,
    /// Has the files read again.
    pub(super) reloads: Reloads,
}

/// All that can be asked.
pub(super) fn endpoints(answers: &Answers) -> Vec<Endpoint> {
    vec![
        Endpoint {
            method: Method::POST,
            path: "reload",
            body_bytes_max: 1024,
            call: call(answers, Answers::reload),
        },
        Endpoint {
            method: Method::POST,
            path: "routes/diff",
            body_bytes_max: ROUTES_REQUEST_BYTES_MAX,
            call: call(answers, Answers::diff),
        },
        Endpoint {
            method: Method::POST,
            path: "routes/explain",
            body_bytes_max: BODY_REQUEST_BYTES_MAX,
            call: call(answers, Answers::explain),
        },
    ]
}

/// An endpoint's answer by a method of [`Answers`].
fn call<F, A>(answers: &Answers, ask: F) -> Call
where
    F: Fn(Answers, Bytes) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Result<Value, Problem>> + Send + 'static,
{
    let answers = answers.clone();
    Arc::new(move |body| Box::pin(ask(answers.clone(), body)))
}

impl Answers {
    async fn reload(self, body: Bytes) -> Result<Value, Problem> {
        let members = match body.trim_ascii() {
            b"" => Map::new(),
            body => parse(body)?,
        };
        if !members.is_empty() {
            let detail = "the body must be empty or {}";
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
        self.reloads.report().await
    }

    #[expect(clippy::unused_async, reason = "an answer may have to wait; this one has not")]
    async fn explain(self, body: Bytes) -> Result<Value, Problem> {
        let asked: Explain = parse(&body)?;
        let wrong = |error: &dyn Display| Problem::new(StatusCode::BAD_REQUEST, error.to_string());
        let body = asked.body_base64.map(|text| BASE64_STANDARD.decode(text)).transpose();
        let body = body.map_err(|error| wrong(&format_args!("body_base64: {error}")))?;
        let table = Arc::clone(&self.table.borrow());
        let question = Question {
            source: asked.source.as_deref(),
            activity: asked.activity.as_deref(),
            body: body.as_deref(),
        };
        let case = question.case(&table).map_err(|error| wrong(&error))?;
        serde_json::to_value(Explanation::new(&table, &case)).map_err(|error| wrong(&error))
    }

    async fn diff(self, body: Bytes) -> Result<Value, Problem> {
        let asked = parse(&body)?;
        let store = self.store.borrow().clone();
        let store = store.ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store is not open yet; try again")
        })?;
        let table = Arc::clone(&self.table.borrow());
        let compared = diff::diff(&*store, &table, &asked, self.clock.now()).await;
        compared.map_err(|refused| match refused {
            Refused::Candidate(problems) => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the candidate can't be used")
                    .with("problems", list(&problems))
            }
            Refused::Cursor | Refused::Since(_) => {
                Problem::new(StatusCode::BAD_REQUEST, refused.to_string())
            }
            Refused::Store(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string()),
        })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

/// What is wrong with a routes file, for a program.
fn list(problems: &Problems) -> Value {
    let one = |problem: &crate::config::Problem| {
        json!({
            "severity": problem.severity.name(),
            "line": problem.position.map(|place| place.line),
            "column": problem.position.map(|place| place.column),
            "message": problem.message,
        })
    };
    problems.iter().map(one).collect()
}
