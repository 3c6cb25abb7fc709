//! What the admin address can be asked, and by whom it is answered.

use std::fmt::Display;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::admin::api::{Answer, Asked, Call, Endpoint, Problem};
use crate::admin::sizes::Measuring;
use crate::app::diff::{self, Refused};
use crate::app::watcher::Reloads;
use crate::config::Problems;
use crate::delivery::board::Board;
use crate::domain::delivery::Settlement;
use crate::domain::explain::Explanation;
use crate::domain::limit::ROUTES_FILE_BYTES_MAX;
use crate::domain::question::Question;
use crate::domain::route::RoutingTable;
use crate::domain::time::Clock;
use crate::store::Store as _;
use crate::store::embedded::EmbeddedStore;
use crate::store::marks::Word;
use crate::telemetry::log_level::LogLevel;

mod choice;
mod erase;
mod log_level;
mod openapi;
mod replay;
mod store;
mod table;
mod targets;
mod wanted;
mod webhooks;

/// A routes file as JSON text: at worst every byte of it is escaped.
const ROUTES_REQUEST_BYTES_MAX: usize = 6 * ROUTES_FILE_BYTES_MAX + 4096;

/// The largest body that a source takes, in base64, and what stands beside it.
const BODY_REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What is to be done with webhooks or dead letters: at most a thousand ids.
const DECISION_BYTES_MAX: usize = 64 * 1024;

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
    /// How the lanes are.
    pub(super) board: Arc<Board>,
    /// Asks how large the store is.
    pub(super) measuring: Measuring,
    /// The least severe level that is logged.
    pub(super) log_level: LogLevel,
}

/// All that can be asked.
pub(super) fn endpoints(answers: &Answers) -> Vec<Endpoint> {
    let get = |path, call| {
        let method = Method::GET;
        Endpoint { method, path, body_bytes_max: 0, takes_query: false, call }
    };
    let list = |path, call| Endpoint { takes_query: true, ..get(path, call) };
    let post = |path, body_bytes_max, call| {
        let method = Method::POST;
        Endpoint { method, path, body_bytes_max, takes_query: false, call }
    };
    vec![
        list("webhooks", bytes_or_json(answers, Answers::webhooks)),
        get("webhooks/{id}", bytes_or_json(answers, Answers::webhook)),
        get("webhooks/{id}/body", bytes_or_json(answers, Answers::webhook_body)),
        list("dead-letters", bytes_or_json(answers, Answers::dead_letters)),
        get("targets", bytes_or_json(answers, Answers::targets)),
        get("routes", bytes_or_json(answers, Answers::routes)),
        get("store", bytes_or_json(answers, Answers::store_known)),
        post("targets/{id}/pause", 1024, bytes_or_json(answers, Answers::pause)),
        post("targets/{id}/resume", 1024, bytes_or_json(answers, Answers::resume)),
        post("webhooks/{id}/erase", 1024, bytes_or_json(answers, Answers::erase)),
        post("webhooks/replay", DECISION_BYTES_MAX, call(answers, Answers::replay)),
        post("dead-letters/redrive", DECISION_BYTES_MAX, call(answers, Answers::redrive)),
        post("dead-letters/discard", DECISION_BYTES_MAX, call(answers, Answers::discard)),
        get("openapi.json", bytes_or_json(answers, Answers::openapi)),
        get("log-level", bytes_or_json(answers, Answers::log_level)),
        post("log-level", 1024, call(answers, Answers::set_log_level)),
        post("reload", 1024, call(answers, Answers::reload)),
        post("routes/diff", ROUTES_REQUEST_BYTES_MAX, call(answers, Answers::diff)),
        post("routes/explain", BODY_REQUEST_BYTES_MAX, call(answers, Answers::explain)),
    ]
}

/// An endpoint's answer by a method of [`Answers`] that takes the body.
fn call<F, A>(answers: &Answers, ask: F) -> Call
where
    F: Fn(Answers, Bytes) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Result<Value, Problem>> + Send + 'static,
{
    let answers = answers.clone();
    Arc::new(move |asked| {
        let answer = ask(answers.clone(), asked.body);
        Box::pin(async move { answer.await.map(Answer::Json) })
    })
}

/// An endpoint's answer by a method of [`Answers`] that takes all that is asked.
fn bytes_or_json<F, A>(answers: &Answers, ask: F) -> Call
where
    F: Fn(Answers, Asked) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Result<Answer, Problem>> + Send + 'static,
{
    let answers = answers.clone();
    Arc::new(move |asked| Box::pin(ask(answers.clone(), asked)))
}

impl Answers {
    async fn reload(self, body: Bytes) -> Result<Value, Problem> {
        no_members(&body)?;
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

    /// The store, if it is open.
    fn store(&self) -> Result<Arc<EmbeddedStore>, Problem> {
        let store = self.store.borrow().clone();
        store.ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store is not open yet; try again")
        })
    }

    async fn webhooks(self, asked: Asked) -> Result<Answer, Problem> {
        let store = self.store()?;
        webhooks::list(&*store, &asked.query, self.clock.now()).await.map(Answer::Json)
    }

    async fn webhook(self, asked: Asked) -> Result<Answer, Problem> {
        webhooks::show(&*self.store()?, &asked.about).await.map(Answer::Json)
    }

    async fn webhook_body(self, asked: Asked) -> Result<Answer, Problem> {
        webhooks::body(&*self.store()?, &asked.about).await.map(Answer::Bytes)
    }

    async fn dead_letters(self, asked: Asked) -> Result<Answer, Problem> {
        let store = self.store()?;
        webhooks::list_dead(&*store, &asked.query, self.clock.now()).await.map(Answer::Json)
    }

    async fn redrive(self, body: Bytes) -> Result<Value, Problem> {
        let now = self.clock.now();
        let settlement = Settlement::Redriven { at: now };
        let table = Arc::clone(&self.table.borrow());
        webhooks::decide(&*self.store()?, &table, &body, settlement, now).await
    }

    async fn discard(self, body: Bytes) -> Result<Value, Problem> {
        let (store, now) = (self.store()?, self.clock.now());
        let table = Arc::clone(&self.table.borrow());
        webhooks::decide(&*store, &table, &body, Settlement::Discarded, now).await
    }

    async fn replay(self, body: Bytes) -> Result<Value, Problem> {
        let (store, table) = (self.store()?, Arc::clone(&self.table.borrow()));
        replay::replay(&*store, &table, &body, self.clock.now()).await
    }

    async fn erase(self, asked: Asked) -> Result<Answer, Problem> {
        let store = self.store()?;
        erase::erase(&*store, &asked.about, &asked.body).await.map(Answer::Json)
    }

    #[expect(clippy::unused_async, reason = "an answer may have to wait; this one has not")]
    async fn targets(self, _: Asked) -> Result<Answer, Problem> {
        let store = self.store()?;
        let (lanes, bytes_max) = (store.lanes(), store.health().bytes_max);
        let table = Arc::clone(&self.table.borrow());
        let listed = targets::list(&table, &lanes, bytes_max, &self.board.all(), self.clock.now());
        Ok(Answer::Json(listed))
    }

    #[expect(clippy::unused_async, reason = "an answer may have to wait; this one has not")]
    async fn routes(self, _: Asked) -> Result<Answer, Problem> {
        Ok(Answer::Json(table::shown(&self.table.borrow())))
    }

    #[expect(clippy::unused_async, reason = "an answer may have to wait; this one has not")]
    async fn openapi(self, _: Asked) -> Result<Answer, Problem> {
        openapi::document().map(Answer::Json)
    }

    async fn store_known(self, _: Asked) -> Result<Answer, Problem> {
        let store = self.store()?;
        let (pulse, health, lanes) = (store.pulse(), store.health(), store.lanes());
        let sizes = self.measuring.sizes(store).await;
        Ok(Answer::Json(store::shown(&store::Known { pulse, health, lanes, sizes })))
    }

    #[expect(clippy::unused_async, reason = "an answer may have to wait; this one has not")]
    async fn log_level(self, _: Asked) -> Result<Answer, Problem> {
        Ok(Answer::Json(log_level::shown(self.log_level.known())))
    }

    #[expect(clippy::unused_async, reason = "an answer may have to wait; this one has not")]
    async fn set_log_level(self, body: Bytes) -> Result<Value, Problem> {
        log_level::set(&self.log_level, &body, self.clock.now())
    }

    async fn pause(self, asked: Asked) -> Result<Answer, Problem> {
        let word = Word::Pause(self.clock.now());
        self.say(asked, word).await
    }

    async fn resume(self, asked: Asked) -> Result<Answer, Problem> {
        let word = Word::Resume(self.clock.now());
        self.say(asked, word).await
    }

    async fn say(self, asked: Asked, word: Word) -> Result<Answer, Problem> {
        no_members(&asked.body)?;
        let (store, table) = (self.store()?, Arc::clone(&self.table.borrow()));
        targets::say(&*store, &table, &self.board, &asked.about, word).await.map(Answer::Json)
    }

    async fn diff(self, body: Bytes) -> Result<Value, Problem> {
        let asked = parse(&body)?;
        let store = self.store()?;
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

/// There is nothing more to say.
fn no_members(body: &[u8]) -> Result<(), Problem> {
    let members: Map<String, Value> = match body.trim_ascii() {
        b"" => Map::new(),
        body => parse(body)?,
    };
    if members.is_empty() {
        return Ok(());
    }
    Err(Problem::new(StatusCode::BAD_REQUEST, "the body must be empty or {}"))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

/// What is wrong with a routes file, for a program.
fn list(problems: &Problems) -> Value {
    problems.iter().map(crate::config::Problem::json).collect()
}
