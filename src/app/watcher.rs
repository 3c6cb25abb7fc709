//! The task that follows files and does reloads: by itself when they change, and when it is asked.
//!
//! Files are read on threads for blocking work, one reading of each kind at a time: a file system
//! that hangs holds up reloads and nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::api::Problem;
use crate::app::certificate::{self, Certificates};
use crate::app::client_ca::{self, ClientCa};
use crate::app::follower::{Follower, LOOK_EVERY, Look};
use crate::app::reload::{self, Tables, Taken};
use crate::app::token::{self, Tokens};

/// Who wait for a reload at the same time; one more is told to come again.
const REQUESTS_MAX: usize = 16;

/// For a reload that was asked for. Less than the admin address gives an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// What a reload that was asked for came to, as the API says it.
pub type Report = Result<Value, Problem>;

/// Asks a relay to reload.
#[derive(Debug, Clone)]
pub struct Reloads {
    requests: mpsc::Sender<oneshot::Sender<Report>>,
}

/// The other end of [`Reloads`].
pub(super) type Requests = mpsc::Receiver<oneshot::Sender<Report>>;

impl Reloads {
    pub(super) fn channel() -> (Self, Requests) {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        (Self { requests }, asked)
    }

    /// Has everything read again; what comes of it is logged.
    pub fn ask(&self) {
        // Full: others have asked already, and what they get is not older.
        let _full = self.requests.try_send(oneshot::channel().0);
    }

    /// Has everything read again, and waits for what comes of it.
    pub async fn report(&self) -> Report {
        let refused = |detail: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(answer).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => refused("too many reloads are being waited for"),
            mpsc::error::TrySendError::Closed(_) => refused("the relay is stopping"),
        })?;
        match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(report)) => report,
            Ok(Err(_)) => Err(refused("the relay is stopping")),
            Err(_) => Err(refused(
                "the files can't be read, or keep changing: what was in force stays until they rest",
            )),
        }
    }
}

/// Everything that is followed.
pub(super) struct Watcher {
    pub(super) requests: Requests,
    pub(super) tables: Tables,
    pub(super) routes: Followed<reload::Outcome>,
    pub(super) certificates: Option<(Certificates, Followed<certificate::Outcomes>)>,
    pub(super) client_ca: Option<(ClientCa, Followed<client_ca::Outcome>)>,
    pub(super) tokens: Option<(Tokens, Followed<token::Outcome>)>,
    /// Told of each request: who waits to order a certificate again does it now.
    pub(super) asked: Option<Arc<Notify>>,
}

impl Watcher {
    /// Follows until `stop`. Nothing that it does at that moment has to be finished.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let _stopped = stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut waiting = Vec::new();
        let mut next = Instant::now();
        loop {
            let asked = tokio::select! {
                () = sleep_until(next) => false,
                Some(request) = self.requests.recv(), if waiting.len() < REQUESTS_MAX => {
                    waiting.push(request);
                    if let Some(asked) = &self.asked {
                        asked.notify_one();
                    }
                    true
                }
            };
            let moving = self.look(asked, !waiting.is_empty()).await;
            if moving.is_none() {
                for request in waiting.drain(..) {
                    // Who asked may have left.
                    let _left = request.send(self.report());
                }
            }
            next = moving.unwrap_or_else(|| Instant::now() + LOOK_EVERY);
        }
    }

    /// Looks at everything, and takes over what has settled. Answers when to look again, where
    /// something is about to settle.
    async fn look(&mut self, closely: bool, asked: bool) -> Option<Instant> {
        let mut moving = None;
        let mut moves = |at: Instant| moving = Some(moving.map_or(at, |other| at.min(other)));
        match self.routes.look(closely).await {
            Look::AtRest => {}
            Look::Moving(at) => moves(at),
            Look::Settled(outcome, files) => self.tables.take(outcome, files, asked),
        }
        if let Some((certificates, followed)) = &mut self.certificates {
            match followed.look(closely).await {
                Look::AtRest => {}
                Look::Moving(at) => moves(at),
                Look::Settled(outcomes, files) => certificates.take(outcomes, &files, asked),
            }
        }
        if let Some((roots, followed)) = &mut self.client_ca {
            match followed.look(closely).await {
                Look::AtRest => {}
                Look::Moving(at) => moves(at),
                Look::Settled(outcome, files) => roots.take(outcome, files, asked),
            }
        }
        if let Some((tokens, followed)) = &mut self.tokens {
            match followed.look(closely).await {
                Look::AtRest => {}
                Look::Moving(at) => moves(at),
                Look::Settled(outcome, files) => tokens.take(outcome, files, asked),
            }
        }
        moving
    }

    fn report(&self) -> Report {
        let mut problems = self.tables.problems();
        let of_certificates = self.certificates.as_ref().map(|(held, _)| held.problems());
        let mut of_certificates = of_certificates.unwrap_or_default();
        of_certificates.extend(self.client_ca.as_ref().and_then(|(held, _)| held.problem()));
        let of_token = self.tokens.as_ref().and_then(|(held, _)| held.problem());
        let mut members = self.tables.report();
        let (detail, is_good) = match (&self.tables.last, of_certificates.is_empty(), &of_token) {
            (Taken::Refused, _, _) => {
                ("the routes file can't be used: the table from before stays in force", false)
            }
            (_, false, _) => {
                ("the listener's certificates can't be renewed: those before stay in force", false)
            }
            (_, _, Some(_)) => {
                ("the admin token can't be renewed: the one before is wanted", false)
            }
            (Taken::Changed(_), true, None) => ("changed", true),
            (Taken::Unchanged, true, None) => ("unchanged", true),
        };
        problems.extend(of_certificates.into_iter().chain(of_token));
        members.insert("problems".to_owned(), problems.into());
        if is_good {
            members.insert("status".to_owned(), json!(detail));
            return Ok(Value::Object(members));
        }
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Err(Problem { more: members, ..Problem::new(status, detail) })
    }
}

/// A follower that works on threads for blocking work.
pub(super) struct Followed<T>(Arc<Mutex<Follower<T>>>);

impl<T: Send + 'static> Followed<T> {
    pub(super) fn new(follower: Follower<T>) -> Self {
        Self(Arc::new(Mutex::new(follower)))
    }

    async fn look(&self, closely: bool) -> Look<T> {
        let follower = Arc::clone(&self.0);
        let looked = tokio::task::spawn_blocking(move || {
            let mut follower = follower.lock().unwrap_or_else(PoisonError::into_inner);
            if closely { follower.look_closely() } else { follower.look() }
        });
        looked.await.unwrap_or_else(|error| {
            // It has forgotten what it was about, and looks again when the files change.
            tracing::error!(%error, "Reading a file broke off: what was in force stays.");
            Look::AtRest
        })
    }
}
