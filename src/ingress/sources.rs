//! What is kept for each source of the table in force, from one table to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use http::HeaderMap;

use crate::domain::answer::Answer;
use crate::domain::limit::FAILURES_IN_A_ROW;
use crate::domain::proof::Proven;
use crate::domain::route::RoutingTable;
use crate::domain::signature::SIGNATURE;
use crate::domain::source::Source;
use crate::domain::time::Timestamp;
use crate::ingress::answer::Refusal;
use crate::ingress::turns::Turns;
use crate::store::Health;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::source::SourceMetrics;

/// One table and what goes with it: a request sees only one of them.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) table: Arc<RoutingTable>,
    sources: HashMap<Arc<str>, Arc<SourceState>>,
}

/// A source, its handles, and what is remembered of its requests.
#[derive(Debug)]
pub(super) struct SourceState {
    pub(super) source: Arc<Source>,
    pub(super) metrics: SourceMetrics,
    turns: Option<Arc<Turns>>,
    failures_in_a_row: Arc<AtomicU32>,
    // When the last webhook was accepted since the start, in unix milliseconds; 0 before that.
    pub(super) last_at: Arc<AtomicU64>,
}

impl Snapshot {
    /// Of this table; a source that was there before goes on where it was.
    pub(super) fn new(table: Arc<RoutingTable>, metrics: &Metrics, before: Option<&Self>) -> Self {
        let state = |source: &Arc<Source>| {
            let before = before.and_then(|before| before.sources.get(&source.name));
            let state = SourceState::new(source, &table, metrics, before.map(|state| &**state));
            (Arc::clone(&source.name), Arc::new(state))
        };
        let sources: HashMap<_, _> = table.sources.iter().map(state).collect();
        let all_before = before.iter().flat_map(|before| &before.sources);
        for (_, gone) in all_before.filter(|(name, _)| !sources.contains_key(*name)) {
            gone.metrics.removed();
        }
        Self { sources, table }
    }

    /// The source on this path, and the activity that the path names.
    pub(super) fn source(&self, path: &str) -> Option<(&Arc<SourceState>, Option<Box<str>>)> {
        let (source, activity) = self.table.source(path)?;
        Some((self.sources.get(&source.name)?, activity.map(Into::into)))
    }

    /// Whether a request carries what some source reads as a signature.
    pub(super) fn is_signed(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(SIGNATURE)
            || self.table.sources.iter().any(|source| source.is_signed(headers))
    }

    /// Shows what the store knows of each source. What it has from before `started` was received
    /// before that, whatever it says: a start with a wrong clock may have written it.
    pub(super) fn observe(&self, health: &Health, started: Timestamp) {
        for state in self.sources.values() {
            let window = state.source.duplicates.activities;
            let reach = health.duplicates_reach.map_or(window, |reach| reach.min(window));
            state.metrics.settings(state.source.silence_after, reach);
        }
        for (name, at) in &health.newest_by_source {
            if let Some(state) = self.sources.get(&**name) {
                state.restore_last((*at).min(started));
            }
        }
    }
}

/// Whether so many failures in a row are worth an ERROR: the third, and again each time that they
/// have doubled, so that a secret that stays wrong is not forgotten.
fn is_alarming(failures: u32) -> bool {
    failures.is_multiple_of(FAILURES_IN_A_ROW) && (failures / FAILURES_IN_A_ROW).is_power_of_two()
}

impl SourceState {
    fn new(
        source: &Arc<Source>,
        table: &RoutingTable,
        metrics: &Metrics,
        before: Option<&Self>,
    ) -> Self {
        let secrets = source.verify.secrets().iter().map(|secret| secret.label());
        let literals = table.routes().iter().filter_map(|route| route.activity.as_ref());
        let literals = literals.flat_map(|patterns| patterns.literals());
        let literals = literals.chain(source.activity.as_deref());
        let metrics = metrics.source(&source.name, secrets, literals);
        metrics.settings(source.silence_after, source.duplicates.activities);
        let turns = source.rate_limit.map(|rate| {
            let before = before.and_then(|state| state.turns.as_ref());
            let same = before.filter(|turns| turns.rate == rate).map(Arc::clone);
            same.unwrap_or_else(|| Arc::new(Turns::new(rate)))
        });
        let failures_in_a_row =
            before.map(|state| Arc::clone(&state.failures_in_a_row)).unwrap_or_default();
        let last_at = before.map(|state| Arc::clone(&state.last_at)).unwrap_or_default();
        Self { source: Arc::clone(source), metrics, turns, failures_in_a_row, last_at }
    }

    fn restore_last(&self, stored: Timestamp) {
        let last = match self.last_at.load(Ordering::Relaxed) {
            0 => stored,
            live => Timestamp::from_millis(live),
        };
        self.metrics.restore_last(last);
    }

    /// Verifies the exact bytes, and counts how that went.
    pub(super) fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Proven, Refusal> {
        match self.source.verify.verify(headers, body, now) {
            Ok(proven) => {
                self.metrics.verified(proven.secret);
                // The line in the cache stays shared while all goes well.
                if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
                    self.failures_in_a_row.store(0, Ordering::Relaxed);
                }
                Ok(proven)
            }
            Err(error) => {
                self.metrics.refused(error);
                let before = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
                let alarm = is_alarming(before.saturating_add(1)).then_some(
                    "verification failed several times in a row: if this is the sender, the \
                     secret here is not its secret, and its webhooks are being lost",
                );
                Err(Refusal { alarm, ..error.into() })
            }
        }
    }

    /// Waits for the source's turn under its rate limit.
    pub(super) async fn turn(&self) -> Result<(), Refusal> {
        let Some(turns) = &self.turns else { return Ok(()) };
        turns.wait().await.map_err(|wait| Refusal::from(Answer::RateLimited).after(wait))
    }
}
