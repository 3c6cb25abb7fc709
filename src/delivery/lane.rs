//! One target's lane: a state machine that begins attempts when everything allows it.
//!
//! No polling: it waits for its target's settings, the end of an attempt, an exact time, or a
//! delivery that is due, and for nothing else.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::attempt::{self, Ended, Tools};
use super::client::{Connecting, Made, Network};
use super::memory::Window;
use super::pace::Pace;
use super::standing::Standing;
use crate::domain::lane::{Event, May};
use crate::domain::route::RoutingTable;
use crate::domain::target::Target;
use crate::store::{Lease, Pick, Store};

/// How long a lane holds still after something that must not happen, so that it can't spin.
const PAUSE: Duration = Duration::from_secs(1);

/// The routing table in force.
pub(super) type Table = watch::Receiver<Arc<RoutingTable>>;

/// One target's lane.
pub(super) struct Lane<S, N: Network> {
    name: Arc<str>,
    tools: Arc<Tools<S>>,
    network: Arc<N>,
    table: Table,
    stop: CancellationToken,
    target: Option<Arc<Target>>,
    made: Option<Made<N::Client>>,
    pace: Pace,
    window: Window,
    standing: Standing,
    attempts: JoinSet<Ended>,
    // The target asked for it, or a pause.
    held_until: Option<Instant>,
}

impl<S: Store, N: Network> Lane<S, N> {
    /// A lane that has done nothing yet.
    pub(super) fn new(
        standing: Standing,
        tools: Tools<S>,
        network: Arc<N>,
        table: Table,
        stop: CancellationToken,
        window: Window,
    ) -> Self {
        Self {
            name: Arc::clone(standing.name()),
            tools: Arc::new(tools),
            network,
            table,
            stop,
            target: None,
            made: None,
            pace: Pace::new(None),
            window,
            standing,
            attempts: JoinSet::new(),
            held_until: None,
        }
    }

    /// Begins nothing before the usual pause is over.
    pub(super) fn paused(mut self) -> Self {
        self.pause();
        self
    }

    /// Serves the target until it is gone or all stops; attempts in flight are finished.
    pub(super) async fn run(mut self) {
        self.refresh();
        while self.step().await.is_continue() {}
        while let Some(ended) = self.attempts.join_next().await {
            self.ended(ended);
        }
        if self.target.is_none() {
            self.standing.retire();
        }
    }

    /// Waits for the next thing that happens and does what follows from it.
    async fn step(&mut self) -> ControlFlow<()> {
        if self.target.is_none() && self.attempts.is_empty() {
            return ControlFlow::Break(());
        }
        let (room, probe_at) = match self.standing.may() {
            May::Attempts => (self.room(), None),
            // One at a time, when none of those from before is in flight.
            May::Probe(at) if self.attempts.is_empty() => (self.room().min(1), Some(at)),
            May::Probe(_) | May::Nothing => (0, None),
        };
        let probe_after = probe_at.map(|at| Instant::now() + at.since(self.tools.clock.now()));
        let until = self.held_until.max(self.pace.ready_at()).max(probe_after);
        let until = until.filter(|at| *at > Instant::now());
        let pick = if probe_at.is_some() { Pick::UntriedFirst } else { Pick::LongestDue };
        tokio::select! {
            // Leases come last: nothing that forbids one is overlooked, and none that was got is
            // dropped, for only the branch that is taken is ready.
            biased;
            () = self.stop.cancelled() => return ControlFlow::Break(()),
            () = super::changed(&mut self.table) => self.refresh(),
            () = super::changed(&mut self.standing.marks) => {
                if self.standing.follow_marks() {
                    // Whoever says so knows better than the target did.
                    self.release();
                }
            }
            Some(ended) = self.attempts.join_next(), if !self.attempts.is_empty() => {
                self.ended(ended);
                // Those that ended meanwhile make room for one larger lease.
                while let Some(ended) = self.attempts.try_join_next() {
                    self.ended(ended);
                }
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() && room > 0 => {}
            leases = async { self.tools.store.lease(&self.name, room, pick).await },
                if until.is_none() && room > 0 => self.begin(leases, probe_at.is_some()),
        }
        ControlFlow::Continue(())
    }

    /// How many attempts may begin, time aside.
    fn room(&self) -> usize {
        let slots = match &self.target {
            Some(target) => target.concurrency.saturating_sub(self.attempts.len()),
            None => 0,
        };
        slots.min(self.pace.ready()).min(self.window.room())
    }

    /// Takes over what the table says now; attempts in flight keep what they began with.
    fn refresh(&mut self) {
        self.target = self.table.borrow_and_update().targets.get(&self.name).cloned();
        let Some(target) = self.target.clone() else { return };
        self.pace.set(target.rate_limit);
        self.standing.on(Event::Table { paused: target.paused });
        let from = Connecting::of(&target);
        if self.made.as_ref().is_some_and(|made| made.from == from) {
            return;
        }
        // What another server asked for does not bind this one.
        if self.made.as_ref().is_some_and(|made| !made.from.same_server(&from)) {
            self.release();
            self.standing.on(Event::Moved);
        }
        self.made = Some(Made { client: Arc::new(self.network.client(&target)), from });
    }

    /// Nobody asks it to hold still any more.
    fn release(&mut self) {
        self.held_until = None;
        self.standing.held(None);
    }

    fn begin(&mut self, leases: Vec<Lease>, probe: bool) {
        // The settings are those in force now, not those when the wait began.
        if self.table.has_changed().unwrap_or(true) {
            self.refresh();
        }
        if leases.is_empty() {
            // Not before a store closes; it must not make us spin.
            self.pause();
        }
        let (Some(target), Some(made)) = (&self.target, &self.made) else {
            // Gone this moment: the leases lapse, the deliveries wait in the store.
            return;
        };
        if self.standing.may() == May::Nothing {
            // Paused this moment: likewise.
            return;
        }
        self.pace.took(leases.len(), Instant::now());
        for lease in leases {
            let held = self.window.hold(lease.delivery.webhook.body.len());
            let (tools, client) = (Arc::clone(&self.tools), Arc::clone(&made.client));
            let target = Arc::clone(target);
            self.attempts.spawn(async move {
                let _held = held;
                attempt::run(&tools, &*client, &target, lease, probe).await
            });
        }
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) {
        match ended {
            Ok(Ended { webhook, attempt, hold, probe }) => {
                if let Some(until) = hold {
                    let wait = until.since(self.tools.clock.now());
                    self.held_until = self.held_until.max(Instant::now().checked_add(wait));
                    self.standing.held(Some(until));
                }
                if let Some(attempt) = attempt {
                    self.standing.attempted(webhook, attempt, probe);
                }
            }
            Err(error) => {
                tracing::error!(target_name = &*self.name, %error, "an attempt broke; its delivery is due again");
                self.pause();
            }
        }
    }

    fn pause(&mut self) {
        self.held_until = self.held_until.max(Some(Instant::now() + PAUSE));
    }
}
