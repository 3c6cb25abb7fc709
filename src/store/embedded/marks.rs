//! The marks of lanes in a file of their own: small, rarely changed, and written whole.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::domain::lane::{Failure, Suspension};
use crate::domain::outcome::Outcome;
use crate::domain::time::Timestamp;
use crate::store::marks::{Mark, MarkError, Marks, Word};

/// Its name in the data directory.
pub(super) const FILE: &str = "lanes.json";

const VERSION: u32 = 1;

/// The file and what is in it.
#[derive(Debug)]
pub(super) struct MarkFile {
    path: PathBuf,
    // Held while the file is written: one after the other.
    writing: Mutex<()>,
    marks: watch::Sender<Arc<Marks>>,
}

impl MarkFile {
    /// Reads it. One that can't be read is set aside, for a relay that does not start loses more
    /// than one that sends to a paused target.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let marks = read(&path).unwrap_or_else(|error| {
            let aside = path.with_extension("json.unreadable");
            let kept = std::fs::rename(&path, &aside);
            tracing::error!(
                %error,
                file = %path.display(),
                set_aside = kept.is_ok().then(|| aside.display().to_string()),
                "which targets an operator paused can't be read: pause them again"
            );
            Marks::new()
        });
        Self { path, writing: Mutex::default(), marks: watch::Sender::new(Arc::new(marks)) }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Marks>> {
        self.marks.subscribe()
    }

    /// Changes the marks, here and on the disk; waits for the disk.
    pub(super) fn change(&self, change: impl FnOnce(&mut Marks)) -> Result<(), MarkError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marks = Marks::clone(&self.marks.borrow());
        change(&mut marks);
        marks.retain(|_, mark| *mark != Mark::default());
        if marks == **self.marks.borrow() {
            return Ok(());
        }
        write(&self.path, &marks).map_err(|error| MarkError::Unavailable(error.to_string()))?;
        self.marks.send_replace(Arc::new(marks));
        Ok(())
    }
}

/// Whether it can be read, or is not there.
pub(super) fn is_sound(dir: &Path) -> bool {
    read(&dir.join(FILE)).is_ok()
}

fn read(path: &Path) -> io::Result<Marks> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Marks::new()),
        Err(error) => return Err(error),
    };
    let written: Written = serde_json::from_slice(&text)?;
    if written.version != VERSION {
        return Err(io::Error::other(format!("it has format {}", written.version)));
    }
    let targets = written.targets.into_iter();
    Ok(targets.map(|(name, lane)| (name, Mark::from(lane))).collect())
}

/// Writes it beside the old one, which stays until the new one is whole and safe.
fn write(path: &Path, marks: &Marks) -> io::Result<()> {
    let targets = marks.iter().map(|(name, mark)| (name.clone(), Lane::from(*mark))).collect();
    let text = serde_json::to_vec_pretty(&Written { version: VERSION, targets })?;
    let new = path.with_extension("json.new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(super::directory::parent(path))?.sync_all()
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    targets: std::collections::BTreeMap<Box<str>, Lane>,
}

/// Times are milliseconds since 1970.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Lane {
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended: Option<Suspended>,
}

#[derive(Serialize, Deserialize)]
struct Suspended {
    since_ms: u64,
    outcome: String,
    status: Option<u16>,
    probes: u32,
    next_probe_at_ms: u64,
}

impl From<Lane> for Mark {
    fn from(lane: Lane) -> Self {
        let paused = lane.paused_at_ms.map(Timestamp::from_millis).map(Word::Pause);
        let resumed = lane.resumed_at_ms.map(Timestamp::from_millis).map(Word::Resume);
        let suspension = lane.suspended.map(|written| {
            let known = Outcome::ALL.into_iter().find(|known| known.name() == written.outcome);
            let outcome = known.unwrap_or(Outcome::Status);
            Suspension {
                since: Timestamp::from_millis(written.since_ms),
                reason: Failure { outcome, status: written.status },
                probes: written.probes,
                next_probe_at: Timestamp::from_millis(written.next_probe_at_ms),
            }
        });
        Self { word: paused.or(resumed), suspension }
    }
}

impl From<Mark> for Lane {
    fn from(mark: Mark) -> Self {
        let resumed_at_ms = match mark.word {
            Some(Word::Resume(at)) => Some(at.as_millis()),
            Some(Word::Pause(_)) | None => None,
        };
        let suspended = mark.suspension.map(|suspension| Suspended {
            since_ms: suspension.since.as_millis(),
            outcome: suspension.reason.outcome.name().to_owned(),
            status: suspension.reason.status,
            probes: suspension.probes,
            next_probe_at_ms: suspension.next_probe_at.as_millis(),
        });
        Self { paused_at_ms: mark.paused_at().map(Timestamp::as_millis), resumed_at_ms, suspended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

    fn marks() -> Marks {
        let reason = Failure { outcome: Outcome::Status, status: Some(503) };
        let suspension = Suspension { since: NOW, reason, probes: 7, next_probe_at: NOW };
        Marks::from([
            ("a".into(), Mark { word: Some(Word::Pause(NOW)), suspension: None }),
            ("b".into(), Mark { word: None, suspension: Some(suspension) }),
            ("c".into(), Mark { word: Some(Word::Resume(NOW)), suspension: Some(suspension) }),
        ])
    }

    #[test]
    fn what_is_marked_is_there_after_a_restart_and_what_is_unmarked_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::open(dir.path());
        assert_eq!(**file.subscribe().borrow(), Marks::new());
        file.change(|all| *all = marks()).unwrap();
        let again = MarkFile::open(dir.path());
        assert_eq!(**again.subscribe().borrow(), marks());
        again.change(|all| *all.get_mut("b").unwrap() = Mark::default()).unwrap();
        let last = MarkFile::open(dir.path());
        assert_eq!(last.subscribe().borrow().keys().map(|name| &**name).collect::<String>(), "ac");
    }

    #[test]
    fn a_mark_that_the_disk_does_not_take_is_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = MarkFile::open(dir.path());
        std::fs::create_dir(dir.path().join("lanes.json.new")).unwrap();
        let refused = file.change(|all| *all = marks());
        assert!(matches!(refused, Err(MarkError::Unavailable(_))), "{refused:?}");
        assert_eq!(**file.subscribe().borrow(), Marks::new());
        std::fs::remove_dir(dir.path().join("lanes.json.new")).unwrap();
        file.change(|all| *all = marks()).unwrap();
        assert_eq!(**file.subscribe().borrow(), marks());
    }

    #[test]
    fn a_file_that_can_not_be_read_is_set_aside_and_stops_no_start() {
        for text in [&b"{"[..], b"", b"\xff", br#"{"version":2,"targets":{}}"#] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let file = MarkFile::open(dir.path());
            assert_eq!(**file.subscribe().borrow(), Marks::new());
            file.change(|all| *all = marks()).unwrap();
            assert_eq!(std::fs::read(dir.path().join("lanes.json.unreadable")).unwrap(), text);
        }
    }
}
