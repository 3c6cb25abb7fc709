//! What the admin address can be asked, and by whom it is answered.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::admin::api::{Call, Endpoint, Problem};
use crate::app::diff::{self, Refused};
use crate::config::Problems;
use crate::domain::limit::ROUTES_FILE_BYTES_MAX;
use crate::domain::route::RoutingTable;
use crate::domain::time::Clock;
use crate::store::embedded::EmbeddedStore;

/// A routes file as JSON text: at worst every byte of it is escaped.
const ROUTES_REQUEST_BYTES_MAX: usize = 6 * ROUTES_FILE_BYTES_MAX + 4096;

/// Who answers.
#[derive(Clone)]
pub(super) struct Answers {
    /// The store, once it is open.
    pub(super) store: watch::Receiver<Option<Arc<EmbeddedStore>>>,
    /// The table in force.
    pub(super) table: watch::Receiver<Arc<RoutingTable>>,
    /// The time.
    pub(super) clock: Arc<dyn Clock>,
}

/// All that can be asked.
pub(super) fn endpoints(answers: &Answers) -> Vec<Endpoint> {
    vec![Endpoint {
        method: Method::POST,
        path: "routes/diff",
        body_bytes_max: ROUTES_REQUEST_BYTES_MAX,
        call: call(answers, Answers::diff),
    }]
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
