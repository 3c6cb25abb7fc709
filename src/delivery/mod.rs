//! Delivering: one lane per target, apart from each other.
//!
//! A lane waits until its target may be tried, leases what is due, makes the attempts and settles
//! them with the store. Nothing here is durable: whatever is cut off lapses and is due again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::domain::route::RoutingTable;
use crate::domain::time::Clock;
use crate::store::Store;
use crate::store::marks::MarkKeeper;
use crate::telemetry::metrics::SharedMetrics;
use crate::telemetry::traces::Traces;

use self::attempt::Tools;
use self::backlog::Backlogs;
use self::board::Board;
use self::client::{Clients, Network};
use self::journal::Journal;
use self::lane::Lane;
use self::memory::{Memory, Window};
use self::standing::{Keeper, Standing};
use self::sweep::Sweep;

mod attempt;
mod backlog;
#[cfg(test)]
mod backlog_tests;
pub mod board;
pub mod client;
#[cfg(test)]
mod fake_store;
#[cfg(test)]
mod holding_tests;
mod journal;
mod lane;
mod memory;
mod pace;
#[cfg(test)]
mod sockets;
mod spans;
mod standing;
mod sweep;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

/// Where chance comes from.
pub type Random = fn() -> u64;

/// What delivering needs.
pub struct Parts<S> {
    /// Where deliveries are leased and settled.
    pub store: Arc<S>,
    /// The routing table in force.
    pub table: watch::Receiver<Arc<RoutingTable>>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where attempts are counted.
    pub metrics: SharedMetrics,
    /// For the jitter of retries.
    pub random: Random,
    /// Bytes of bodies that lanes may hold: `--delivery-memory`.
    pub memory_bytes_max: usize,
    /// Where lanes say how they are.
    pub board: Arc<Board>,
    /// Where attempts are traced.
    pub traces: Traces,
}

impl<S> fmt::Debug for Parts<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("memory_bytes_max", &self.memory_bytes_max)
            .finish_non_exhaustive()
    }
}

/// Delivers what the store holds to the targets of the table.
pub struct Dispatcher<S, N = Clients> {
    parts: Parts<S>,
    network: Arc<N>,
}

impl<S, N> fmt::Debug for Dispatcher<S, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl<S: Store + MarkKeeper, N: Network> Dispatcher<S, N> {
    /// Does nothing before it is run.
    pub fn new(parts: Parts<S>, network: N) -> Self {
        Self { parts, network: Arc::new(network) }
    }

    /// Delivers, and follows changes of the table, until `stop`: then no more is leased, and this
    /// ends with the attempts in flight. Dropped, it cuts them off: their leases lapse.
    pub async fn run(self, stop: CancellationToken) {
        let memory = Memory::new(self.parts.memory_bytes_max);
        let mut table = self.parts.table.clone();
        let mut sweep = JoinSet::new();
        sweep.spawn(self.sweep(&stop).run(Instant::now()));
        let mut backlogs = JoinSet::new();
        backlogs.spawn(self.backlogs(&stop).run(Instant::now()));
        let mut keeper = JoinSet::new();
        keeper.spawn(self.keeper(&stop).run());
        let mut running = Running {
            dispatcher: self,
            memory,
            stop,
            lanes: HashMap::new(),
            tasks: JoinSet::new(),
        };
        loop {
            let now = Arc::clone(&table.borrow_and_update());
            running.follow(&now);
            tokio::select! {
                // In one order always: what happened is then all that decides what happens next.
                biased;
                () = running.stop.cancelled() => break,
                () = changed(&mut table) => {}
                Some(ended) = running.tasks.join_next_with_id(), if !running.tasks.is_empty() => {
                    running.ended(ended, &now);
                }
                Some(ended) = sweep.join_next(), if !sweep.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "looking for removed targets broke off");
                    }
                    let again = Instant::now() + Duration::from_secs(60);
                    sweep.spawn(running.dispatcher.sweep(&running.stop).run(again));
                }
                Some(ended) = backlogs.join_next(), if !backlogs.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "holding targets to their limits broke off");
                    }
                    let again = Instant::now() + Duration::from_secs(60);
                    backlogs.spawn(running.dispatcher.backlogs(&running.stop).run(again));
                }
                Some(ended) = keeper.join_next(), if !keeper.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "remembering suspended targets broke off");
                    }
                    keeper.spawn(running.dispatcher.keeper(&running.stop).run());
                }
            }
        }
        while running.tasks.join_next().await.is_some() {}
        while sweep.join_next().await.is_some() {}
        while backlogs.join_next().await.is_some() {}
        while keeper.join_next().await.is_some() {}
    }

    fn keeper(&self, stop: &CancellationToken) -> Keeper<S> {
        Keeper {
            store: Arc::clone(&self.parts.store),
            board: Arc::clone(&self.parts.board),
            stop: stop.clone(),
        }
    }

    fn backlogs(&self, stop: &CancellationToken) -> Backlogs<S> {
        Backlogs {
            store: Arc::clone(&self.parts.store),
            table: self.parts.table.clone(),
            metrics: Arc::clone(&self.parts.metrics),
            stop: stop.clone(),
        }
    }

    fn sweep(&self, stop: &CancellationToken) -> Sweep<S> {
        Sweep {
            store: Arc::clone(&self.parts.store),
            table: self.parts.table.clone(),
            clock: Arc::clone(&self.parts.clock),
            metrics: Arc::clone(&self.parts.metrics),
            stop: stop.clone(),
        }
    }
}

/// The lanes that run.
struct Running<S, N> {
    dispatcher: Dispatcher<S, N>,
    memory: Arc<Memory>,
    stop: CancellationToken,
    lanes: HashMap<Arc<str>, Id>,
    tasks: JoinSet<()>,
}

impl<S: Store + MarkKeeper, N: Network> Running<S, N> {
    /// Starts the lanes that the table asks for. Those it asks for no more end by themselves.
    fn follow(&mut self, table: &RoutingTable) {
        for name in table.targets.keys() {
            if !self.lanes.contains_key(name) {
                self.start(name, |lane| lane);
            }
        }
        self.memory.set_lanes(self.lanes.len());
    }

    fn start(&mut self, name: &Arc<str>, how: impl FnOnce(Lane<S, N>) -> Lane<S, N>) {
        let parts = &self.dispatcher.parts;
        let tools = Tools {
            store: Arc::clone(&parts.store),
            clock: Arc::clone(&parts.clock),
            random: parts.random,
            metrics: parts.metrics.target(name),
            journal: Journal::new(Arc::clone(name)),
            traces: parts.traces.clone(),
        };
        let standing = Standing::new(
            name,
            parts.store.marks(),
            &parts.board,
            parts.metrics.lane_state(name),
            Arc::clone(&parts.clock),
        );
        let network = Arc::clone(&self.dispatcher.network);
        let table = parts.table.clone();
        let window = Window::new(Arc::clone(&self.memory));
        let stop = self.stop.clone();
        let lane = how(Lane::new(standing, tools, network, table, stop, window));
        let id = self.tasks.spawn(lane.run()).id();
        self.lanes.insert(Arc::clone(name), id);
    }

    /// A lane has ended: its target is gone, and if it is back by now, `follow` starts it anew. Or
    /// it broke, and starts after a pause.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>, table: &RoutingTable) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(name) = self.lanes.iter().find(|(_, known)| **known == id).map(|(name, _)| name)
        else {
            return;
        };
        let name = Arc::clone(name);
        self.lanes.remove(&name);
        if let Err(error) = ended {
            tracing::error!(target_name = &*name, %error, "a lane broke; it starts again");
            if table.targets.contains_key(&name) {
                self.start(&name, Lane::paused);
            }
        }
    }
}

/// Waits until it is time, or another table is in force; answers whether to go on.
async fn next_look<T>(
    stop: &CancellationToken,
    table: &mut watch::Receiver<T>,
    at: Instant,
) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = changed(table) => true,
        () = sleep_until(at) => true,
    }
}

/// Waits for another value; for ever when there will be none.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
