//! Logs: one line per event, text for people or JSON for machines, always to stderr.
//!
//! Lines are written by a thread of their own behind a bounded queue: whoever reads stderr may be
//! slow, stop or leave, and no webhook waits or fails because of it. What finds no room is counted,
//! and the count is logged as soon as there is room again.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde_json::Value;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::domain::time::Timestamp;
use crate::telemetry::log_level::{Gate, LogLevel};

/// Lines that wait for stderr.
const LINES_MAX: usize = 8192;

/// How long an end waits for the last lines to be written.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// For people.
    #[default]
    Text,
}

/// Sends the process's events to stderr, until what this returns is dropped. The first call wins.
#[must_use = "dropped, it waits for the last lines"]
pub fn install(format: Format, level: LevelFilter) -> Logging {
    let lines = start(io::stderr(), format);
    let gate = Gate::new(level);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(lines.clone())
        .with_target(false)
        // It would write to the very place that can't be written to.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(gate.clone());
    // A second subscriber in one process can only come from a test: it may keep the first.
    let _already = match format {
        Format::Text => registry.with(layer).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    let mut told = lines.clone();
    let level =
        LogLevel::new(gate, move |level, until| told_level(&mut told, format, level, until));
    Logging { lines, level }
}

/// The logging of the process. Dropped, it waits a moment for the last lines.
#[derive(Debug)]
pub struct Logging {
    lines: Lines,
    level: LogLevel,
}

impl Logging {
    /// Its level, to be changed while it runs.
    pub fn level(&self) -> LogLevel {
        self.level.clone()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let (written, done) = sync_channel(1);
        // A queue that is full, or nobody behind it: there is nothing to wait for.
        if self.lines.queue.try_send(Entry::Flush(written)).is_ok() {
            let _in_time = done.recv_timeout(FLUSH_WAIT);
        }
    }
}

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

#[derive(Clone)]
struct Lines {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

impl Write for Lines {
    /// Each call is a whole line: that is how the subscriber writes.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn start(out: impl Write + Send + 'static, format: Format) -> Lines {
    let (queue, entries) = sync_channel(LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&dropped);
    let thread = std::thread::Builder::new().name("log".to_owned());
    // Without it there is no log, but there is a relay: the queue answers that nobody is there.
    let _thread = thread.spawn(move || write_lines(&entries, &counted, format, out));
    Lines { queue, dropped }
}

/// Writes what comes. Errors are passed over: there is nowhere to report them, and the next line
/// may find a reader again.
fn write_lines(entries: &Receiver<Entry>, dropped: &AtomicU64, format: Format, out: impl Write) {
    let mut out = io::BufWriter::new(out);
    while let Ok(first) = entries.recv() {
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            match entry {
                Entry::Line(line) => drop(out.write_all(&line)),
                Entry::Flush(written) => {
                    write_lost(dropped, format, &mut out);
                    drop(out.flush());
                    // Whoever waited may have given up.
                    written.send(()).unwrap_or_default();
                }
            }
        }
        write_lost(dropped, format, &mut out);
        drop(out.flush());
    }
}

fn write_lost(dropped: &AtomicU64, format: Format, out: &mut impl Write) {
    const MESSAGE: &str = "Log lines were dropped: whoever reads them was too slow.";
    match dropped.swap(0, Ordering::Relaxed) {
        0 => {}
        lost => {
            let line = notice(format, "WARN", MESSAGE, &[("log_lines_dropped", lost.to_string())]);
            drop(out.write_all(line.as_bytes()));
        }
    }
}

/// Says at which level is logged from here on. It is a line at every level: without it nobody who reads
/// the log could tell quiet from silence.
fn told_level(lines: &mut Lines, format: Format, level: LevelFilter, until: Option<Timestamp>) {
    const MESSAGE: &str = "The log has another level from here on.";
    let mut fields = vec![("log_level", level.to_string())];
    fields.extend(until.map(|until| ("until", until.to_string())));
    let line = notice(format, "INFO", MESSAGE, &fields);
    // It is counted where there is no room.
    drop(lines.write_all(line.as_bytes()));
}

/// A line of our own, as the lines around it look.
fn notice(format: Format, level: &str, message: &str, fields: &[(&str, String)]) -> String {
    let mut time = String::new();
    // Without the time it is still a notice.
    SystemTime.format_time(&mut Writer::new(&mut time)).unwrap_or_default();
    match format {
        Format::Text => {
            let fields: String =
                fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
            format!("{time} {level:>5} {message}{fields}\n")
        }
        Format::Json => {
            let head =
                [("timestamp", time.into()), ("level", level.into()), ("message", message.into())];
            let value = |text: &String| {
                text.parse::<u64>().map_or_else(|_| text.as_str().into(), Value::from)
            };
            let fields = fields.iter().map(|(name, text)| (*name, value(text)));
            let all = head.into_iter().chain(fields).map(|(name, value)| (name.to_owned(), value));
            format!("{}\n", Value::Object(all.collect()))
        }
    }
}

/// Sends this thread's events to a test's own subscriber until the guard is dropped.
///
/// Whether an event's place is of interest to anybody is remembered for the whole process. Without
/// somebody who wants everything, a test on another thread can make it "to nobody" in between.
#[cfg(test)]
pub(crate) fn capture(
    subscriber: impl tracing::Subscriber + Send + Sync,
) -> tracing::subscriber::DefaultGuard {
    static EVERYTHING: std::sync::Once = std::sync::Once::new();
    EVERYTHING.call_once(|| {
        let all =
            tracing_subscriber::fmt().with_writer(io::sink).with_max_level(LevelFilter::TRACE);
        let _already = all.try_init();
    });
    tracing::subscriber::set_default(subscriber)
}

/// The levels of the events of this thread while a test acts.
#[cfg(test)]
pub(crate) fn levels(act: impl FnOnce()) -> Vec<tracing::Level> {
    use std::sync::Mutex;
    use tracing::span;

    #[derive(Clone, Default)]
    struct Levels(Arc<Mutex<Vec<tracing::Level>>>);

    impl tracing::Subscriber for Levels {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    let levels = Levels::default();
    let guard = capture(levels.clone());
    act();
    drop(guard);
    let seen = levels.0.lock().unwrap();
    seen.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use std::sync::{Condvar, Mutex};

    /// A stderr that nobody reads until it is opened.
    #[derive(Clone, Default)]
    struct Sluice(Arc<(Mutex<Opened>, Condvar)>);

    /// Whether it is open, and what was written.
    type Opened = (bool, Vec<u8>);

    impl Write for Sluice {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let state = self.0.0.lock().unwrap();
            let mut state = self.0.1.wait_while(state, |state| !state.0).unwrap();
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_reader_that_stalls_stops_nobody_and_what_is_lost_is_counted() {
        let text = stalled(Format::Text);
        let notice = text.lines().find(|line| line.contains("log_lines_dropped=")).unwrap();
        let (time, rest) = notice.split_once("  WARN ").unwrap();
        assert!(Timestamp::parse(time).is_some(), "{notice}");
        assert!(rest.starts_with("Log lines were dropped"), "{notice}");
        let json = stalled(Format::Json);
        let notice = json.lines().find(|line| line.contains("log_lines_dropped")).unwrap();
        let notice: Value = serde_json::from_str(notice).unwrap();
        assert_eq!(notice["level"], "WARN");
        assert!(notice["log_lines_dropped"].as_u64() > Some(0), "{notice}");
        assert!(notice["message"].is_string(), "{notice}");
        assert!(Timestamp::parse(notice["timestamp"].as_str().unwrap()).is_some(), "{notice}");
    }

    /// All that a reader finds who was away for long.
    fn stalled(format: Format) -> String {
        let sluice = Sluice::default();
        let mut lines = start(sluice.clone(), format);
        for _ in 0..3 * LINES_MAX {
            lines.write_all(b"line\n").unwrap();
        }
        let lost = lines.dropped.load(Ordering::Relaxed);
        assert!(lost > 0);
        sluice.0.0.lock().unwrap().0 = true;
        sluice.0.1.notify_all();
        // Room appears as the lines are written.
        while lines.queue.try_send(Entry::Line(b"last\n".to_vec())).is_err() {
            std::thread::yield_now();
        }
        let (written, done) = sync_channel(1);
        lines.queue.send(Entry::Flush(written)).unwrap();
        done.recv().unwrap();
        let text = String::from_utf8(sluice.0.0.lock().unwrap().1.clone()).unwrap();
        assert!(text.contains("last\n"));
        text
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let mut lines = start(Broken, Format::Text);
        for _ in 0..100 {
            lines.write_all(b"line\n").unwrap();
        }
        drop(Logging { lines, level: LogLevel::default() });
    }

    #[test]
    fn a_change_of_level_is_told_as_the_lines_around_it_look() {
        let until = Some(Timestamp::from_millis(1_700_000_000_000));
        for (format, wanted) in [
            (
                Format::Text,
                "INFO The log has another level from here on. log_level=debug until=2023",
            ),
            (Format::Json, "\"log_level\":\"debug\""),
        ] {
            let sluice = Sluice::default();
            let mut lines = start(sluice.clone(), format);
            sluice.0.0.lock().unwrap().0 = true;
            told_level(&mut lines, format, LevelFilter::DEBUG, until);
            drop(Logging { lines, level: LogLevel::default() });
            let text = String::from_utf8(sluice.0.0.lock().unwrap().1.clone()).unwrap();
            assert!(text.contains(wanted) && text.ends_with('\n'), "{text}");
        }
    }
}
