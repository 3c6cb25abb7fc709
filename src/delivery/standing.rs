//! Where a lane stands, and everybody who is to know of it: log, metrics, board, store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::board::{Board, Post};
use crate::domain::lane::{Event, Failure, LaneState, May, Phase, Suspension};
use crate::domain::outcome::{Attempt, Outcome};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::WebhookId;
use crate::store::marks::{Mark, MarkKeeper, Marks, Word};
use crate::telemetry::target::LaneMetrics;

/// After the store did not take what is to be remembered.
const AGAIN: Duration = Duration::from_secs(10);

/// A lane's state.
pub(super) struct Standing {
    name: Arc<str>,
    state: LaneState,
    /// What operators say.
    pub(super) marks: watch::Receiver<Arc<Marks>>,
    // What they said last, as far as it is done.
    word: Option<Word>,
    board: Arc<Board>,
    post: Arc<Post>,
    metrics: LaneMetrics,
    clock: Arc<dyn Clock>,
}

impl Standing {
    /// As it was left before a restart.
    pub(super) fn new(
        name: &Arc<str>,
        mut marks: watch::Receiver<Arc<Marks>>,
        board: &Arc<Board>,
        metrics: LaneMetrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mark = marks.borrow_and_update().get(&**name).copied().unwrap_or_default();
        let running = LaneState::default();
        // What an operator said after it may be written down already, and what followed from it not yet.
        let is_over = |suspension: &Suspension| matches!(mark.word, Some(Word::Resume(at)) if at >= suspension.since);
        let suspension = mark.suspension.filter(|suspension| !is_over(suspension));
        let suspension = suspension.map(|suspension| suspension.remembered(clock.now()));
        let state = LaneState {
            phase: suspension.map_or(running.phase, Phase::Suspended),
            paused_by_operator: mark.paused_at(),
            ..running
        };
        let (name, board, post) = (Arc::clone(name), Arc::clone(board), board.post(name));
        let standing = Self { name, state, marks, word: mark.word, board, post, metrics, clock };
        standing.show();
        standing
    }

    /// The target's name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What the lane may begin.
    pub(super) fn may(&self) -> May {
        self.state.may()
    }

    /// Takes over what operators said meanwhile; whether that was to resume.
    pub(super) fn follow_marks(&mut self) -> bool {
        let mark = self.marks.borrow_and_update().get(&*self.name).copied();
        let said = mark.and_then(|mark| mark.word).filter(|said| self.word != Some(*said));
        self.word = said.or(self.word);
        match said {
            Some(Word::Pause(at)) => self.on(Event::Paused { at }),
            Some(Word::Resume(_)) => self.on(Event::Resumed),
            None => {}
        }
        matches!(said, Some(Word::Resume(_)))
    }

    /// An attempt ended.
    pub(super) fn attempted(&mut self, webhook: WebhookId, attempt: Attempt, probe: bool) {
        let failure = Failure { outcome: attempt.outcome, status: attempt.status };
        self.post.update(|status| status.last = Some((webhook, attempt)));
        self.on(match failure.outcome {
            Outcome::Delivered => Event::Delivered,
            _ => Event::Failed { webhook, failure, probe, at: self.clock.now() },
        });
    }

    /// The target asked to be left alone until then; or nobody does.
    pub(super) fn held(&self, until: Option<Timestamp>) {
        self.post.update(|status| status.held_until = until);
    }

    /// Something happened.
    pub(super) fn on(&mut self, event: Event) {
        let before = self.state;
        self.state = before.after(event);
        if before == self.state {
            return;
        }
        self.tell(&before, event);
        let is_streak = before.suspension() == self.state.suspension()
            && before.paused_by_operator == self.state.paused_by_operator
            && before.paused_by_table == self.state.paused_by_table;
        if !is_streak {
            self.show();
        }
    }

    /// It ends: its target is gone.
    pub(super) fn retire(self) {
        self.metrics.lane_is(false, false);
        self.board.remove(&self.name);
        self.board.state_changed();
    }

    fn show(&self) {
        self.metrics.lane_is(self.state.suspension().is_some(), self.state.is_paused());
        self.post.update(|status| status.state = self.state);
        self.board.state_changed();
    }

    fn tell(&self, before: &LaneState, event: Event) {
        let target_name = &*self.name;
        match (before.suspension(), self.state.suspension()) {
            (None, Some(Suspension { reason, next_probe_at, .. })) => tracing::warn!(
                target_name,
                outcome = reason.outcome.name(),
                status = reason.status,
                next_probe_at = %next_probe_at,
                "the target keeps failing and is suspended: one delivery at a time probes it, the \
                 others wait"
            ),
            (Some(suspension), None) => tracing::info!(
                target_name,
                suspended_secs = self.clock.now().since(suspension.since).as_secs(),
                because = because(event),
                "the target is no longer suspended"
            ),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if before.is_paused() != self.state.is_paused() {
            let because = because(event);
            if self.state.is_paused() {
                tracing::info!(target_name, because, "the target is paused: nothing is sent to it");
            } else {
                tracing::info!(target_name, because, "the target is no longer paused");
            }
        }
    }
}

fn because(event: Event) -> &'static str {
    match event {
        Event::Delivered => "delivered",
        Event::Failed { .. } => "failed",
        Event::Moved => "another server",
        Event::Paused { .. } | Event::Resumed => "operator",
        Event::Table { .. } => "routing table",
    }
}

/// Has the store remember which lanes are suspended, so that a restart does not begin by asking a
/// target that is down for everything at once.
pub(super) struct Keeper<S> {
    pub(super) store: Arc<S>,
    pub(super) board: Arc<Board>,
    pub(super) stop: CancellationToken,
}

impl<S: MarkKeeper> Keeper<S> {
    /// Until `stop`, and then once more.
    pub(super) async fn run(self) {
        let mut changes = self.board.changes();
        let mut failed = false;
        loop {
            changes.borrow_and_update();
            if let Err(error) = self.write().await {
                if !failed {
                    tracing::warn!(%error, "which targets are suspended can't be written down");
                }
                failed = true;
                changes.mark_changed();
            } else {
                failed = false;
            }
            if self.stop.is_cancelled() {
                return;
            }
            let pause = if failed { AGAIN } else { Duration::ZERO };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                changed = async {
                    tokio::time::sleep(pause).await;
                    changes.changed().await
                } => if changed.is_err() { return },
            }
        }
    }

    async fn write(&self) -> Result<(), crate::store::marks::MarkError> {
        let all = self.board.all();
        let marks = self.store.marks();
        let said = |marks: &Marks, name: &str| marks.get(name).and_then(|mark| mark.suspension);
        let is_written = {
            let marks = marks.borrow();
            all.iter()
                .all(|(name, status)| said(&marks, name) == status.state.suspension().copied())
        };
        if is_written {
            return Ok(());
        }
        let change = move |marks: &mut Marks| {
            for (name, status) in all {
                let mark: &mut Mark = marks.entry((*name).into()).or_default();
                mark.suspension = status.state.suspension().copied();
            }
        };
        self.store.mark(change).await
    }
}
