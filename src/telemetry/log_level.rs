//! The least severe level that is logged, changed while the process runs.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::domain::time::Timestamp;

/// All levels, the most silent first.
pub const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Where events begin that are ours.
const OURS: &str = env!("CARGO_CRATE_NAME");

/// Lets events through that are severe enough.
///
/// Of the libraries below only what is worth a warning: an HTTP/2 stack that tells of each frame would
/// fill a disk, and it is not known what it tells.
#[derive(Debug, Clone)]
pub(super) struct Gate(Arc<AtomicUsize>);

impl Gate {
    pub(super) fn new(level: LevelFilter) -> Self {
        Self(Arc::new(AtomicUsize::new(position(level))))
    }

    fn level(&self) -> LevelFilter {
        LEVELS.get(self.0.load(Ordering::Relaxed)).copied().unwrap_or(LevelFilter::INFO)
    }

    fn set(&self, level: LevelFilter) {
        self.0.store(position(level), Ordering::Relaxed);
        // What each place in the code was told before is asked again.
        tracing::callsite::rebuild_interest_cache();
    }

    fn lets_through(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = metadata.target().split("::").next() == Some(OURS);
        let level = if is_ours { self.level() } else { self.level().min(LevelFilter::WARN) };
        *metadata.level() <= level
    }
}

fn position(level: LevelFilter) -> usize {
    LEVELS.iter().position(|known| *known == level).unwrap_or_default()
}

impl<S: Subscriber> Layer<S> for Gate {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.lets_through(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.lets_through(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }
}

/// The level of a process's log: the one it was started with, or another one for a while.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    gate: Gate,
    configured: LevelFilter,
    until: Mutex<Option<Timestamp>>,
    tell: Mutex<Box<Tell>>,
}

type Tell = dyn FnMut(LevelFilter, Option<Timestamp>) + Send;

/// How a level is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// In force.
    pub level: LevelFilter,
    /// What the process was started with.
    pub configured: LevelFilter,
    /// When that is in force again by itself.
    pub until: Option<Timestamp>,
}

impl LogLevel {
    /// The level of this gate; `tell` says that it has changed.
    pub(super) fn new(
        gate: Gate,
        tell: impl FnMut(LevelFilter, Option<Timestamp>) + Send + 'static,
    ) -> Self {
        let configured = gate.level();
        let (until, tell) = (Mutex::default(), Mutex::new(Box::new(tell) as Box<Tell>));
        Self(Arc::new(Inner { gate, configured, until, tell }))
    }

    /// How it is.
    pub fn known(&self) -> Known {
        let until = *self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        Known { level: self.0.gate.level(), configured: self.0.configured, until }
    }

    /// Logs at this level from now on: until then, until it is set again, or until the process ends.
    pub fn set(&self, level: LevelFilter, until: Option<Timestamp>) {
        let mut held = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nothing to come back from.
        *held = until.filter(|_| level != self.0.configured);
        self.put(level, *held);
    }

    /// Comes back to the level that the process was started with, if it is time.
    pub fn look(&self, now: Timestamp) {
        let mut held = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some_and(|until| until <= now) {
            *held = None;
            self.put(self.0.configured, None);
        }
    }

    fn put(&self, level: LevelFilter, until: Option<Timestamp>) {
        self.0.gate.set(level);
        (self.0.tell.lock().unwrap_or_else(PoisonError::into_inner))(level, until);
    }
}

impl Default for LogLevel {
    /// Of a log that nobody reads.
    fn default() -> Self {
        Self::new(Gate::new(LevelFilter::INFO), |_, _| ())
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.known()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// What is written of these events: one of ours and one of a library, at each level.
    fn written(gate: &Gate) -> String {
        #[derive(Clone, Default)]
        struct Page(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Page {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let page = Page::default();
        let writer = page.clone();
        let layer = tracing_subscriber::fmt::layer()
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_writer(move || writer.clone());
        let guard = crate::telemetry::logging::capture(
            tracing_subscriber::registry().with(gate.clone()).with(layer),
        );
        tracing::error!("e");
        tracing::warn!("w");
        tracing::info!("i");
        tracing::debug!("d");
        tracing::trace!("t");
        tracing::warn!(target: "h2::codec", "W");
        tracing::info!(target: "h2::codec", "I");
        tracing::trace!(target: "h2::codec", "T");
        tracing::trace!(target: "aryeo_relay_else", "T");
        drop(guard);
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        text.split_whitespace().collect()
    }

    #[test]
    fn each_level_lets_through_what_is_as_severe_and_of_libraries_warnings_only() {
        let gate = Gate::new(LevelFilter::INFO);
        let level = LogLevel::new(gate.clone(), |_, _| ());
        assert_eq!(written(&gate), "ewiW");
        for (filter, wanted) in LEVELS.into_iter().zip(["", "e", "ewW", "ewiW", "ewidW", "ewidtW"])
        {
            level.set(filter, None);
            assert_eq!(written(&gate), wanted, "{filter}");
        }
    }

    #[test]
    fn a_level_for_a_while_ends_by_itself_and_each_change_is_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let level = LogLevel::new(Gate::new(LevelFilter::WARN), move |level, until| {
            tell.lock().unwrap().push((level, until));
        });
        let at = Timestamp::from_millis;
        level.set(LevelFilter::DEBUG, Some(at(10)));
        level.look(at(9));
        let (configured, until) = (LevelFilter::WARN, Some(at(10)));
        assert_eq!(level.known(), Known { level: LevelFilter::DEBUG, configured, until });
        level.look(at(10));
        assert_eq!(level.known(), Known { level: configured, configured, until: None });
        level.look(at(11));
        level.set(LevelFilter::DEBUG, Some(at(20)));
        level.set(LevelFilter::WARN, Some(at(30)));
        assert_eq!(level.known().until, None, "it is what it was started with");
        let told = told.lock().unwrap();
        assert_eq!(
            *told,
            [
                (LevelFilter::DEBUG, Some(at(10))),
                (LevelFilter::WARN, None),
                (LevelFilter::DEBUG, Some(at(20))),
                (LevelFilter::WARN, None),
            ]
        );
    }
}
