//! The task that follows files and does reloads: by itself when they change, and when it is asked.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::api::Problem;
use crate::app::certificate::Pair;
use crate::app::client_ca::Listening;
use crate::app::followed::{Followed, Taken};
use crate::app::follower::LOOK_EVERY;
use crate::app::reload::Tables;
use crate::app::token::Tokens;

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
    pub(super) routes: Followed<Tables>,
    pub(super) certificates: Vec<Followed<Pair>>,
    pub(super) client_ca: Option<Followed<Listening>>,
    pub(super) tokens: Option<Followed<Tokens>>,
    /// Told of each request: who waits to order a certificate again does it now.
    pub(super) asked: Option<Arc<Notify>>,
}

impl Watcher {
    /// Follows until `stop`. Nothing that it does at that moment has to be finished.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let _stopped = stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut waiting: Vec<oneshot::Sender<Report>> = Vec::new();
        let mut is_asked = false;
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
            is_asked |= asked;
            let moving = self.look(asked, is_asked).await;
            if moving.is_none() {
                for request in waiting.drain(..) {
                    // Who asked may have left.
                    let _left = request.send(self.report());
                }
                is_asked = false;
            }
            // A file may never rest: who has left makes room for others.
            waiting.retain(|request| !request.is_closed());
            next = moving.unwrap_or_else(|| Instant::now() + LOOK_EVERY);
        }
    }

    /// Looks at everything, and takes over what has settled. Answers when to look again, where
    /// something is about to settle.
    async fn look(&mut self, closely: bool, asked: bool) -> Option<Instant> {
        let mut moving = vec![self.routes.look(closely, asked).await];
        for pair in &mut self.certificates {
            moving.push(pair.look(closely, asked).await);
        }
        if let Some(listening) = &mut self.client_ca {
            moving.push(listening.look(closely, asked).await);
        }
        if let Some(tokens) = &mut self.tokens {
            moving.push(tokens.look(closely, asked).await);
        }
        moving.into_iter().flatten().min()
    }

    fn report(&self) -> Report {
        let last = self.routes.last;
        let mut problems = match last {
            Taken::Refused => self.routes.problems(),
            Taken::Changed | Taken::Unchanged => self.routes.held.warnings(),
        };
        let mut of_certificates: Vec<Value> =
            self.certificates.iter().flat_map(Followed::problems).collect();
        of_certificates.extend(self.client_ca.iter().flat_map(Followed::problems));
        let of_token = self.tokens.as_ref().map(Followed::problems).unwrap_or_default();
        let mut members = self.routes.held.report(last);
        let (detail, is_good) = match (last, of_certificates.is_empty(), of_token.is_empty()) {
            (Taken::Refused, _, _) => {
                ("the routes file can't be used: the table from before stays in force", false)
            }
            (_, false, _) => {
                ("the listener's certificates can't be renewed: those before stay in force", false)
            }
            (_, _, false) => ("the admin token can't be renewed: the one before is wanted", false),
            (Taken::Changed, true, true) => ("changed", true),
            (Taken::Unchanged, true, true) => ("unchanged", true),
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
