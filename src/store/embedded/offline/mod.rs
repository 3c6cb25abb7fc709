//! A data directory while no relay runs: checked, told about, copied. Nothing in it is changed.
//!
//! The index is never opened where it lies: SQLite would write beside it. A copy of it, with the
//! write-ahead log that a killed process left, is brought up to date as a start does it; and what it
//! should be is made from the log. Both are files in the machine's folder for temporary files, about a
//! twentieth of the log each, so that memory does not grow with what is stored.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::store::embedded::change::Entry;
use crate::store::embedded::damage::Flaw;
use crate::store::embedded::disk::{Disk, RealDisk};
use crate::store::embedded::index::Index;
use crate::store::embedded::lock::{DirectoryLock, LockError, share};
use crate::store::embedded::log::{Log, LogError};
use crate::store::embedded::record::Kind;
use crate::store::embedded::scanner::{Scanner, Unread};
use crate::store::embedded::segment::{LogPoint, Segment};

pub mod backup;
pub mod check;
pub mod stats;
mod unchanged;

use unchanged::Unchanged;

/// Of damaged places, torn ends and the like so many are named; the others are counted.
pub const NAMED_MAX: usize = 1000;
const PIECE: usize = 1024;

/// Why a directory can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A relay has it.
    #[error(
        "data directory {} is in use by {}: stop that relay first",
        dir.display(), super::owner(*process)
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The relay.
        process: Option<u32>,
    },
    /// It is no data directory.
    #[error("{} is not a relay's data directory: {missing}", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
        /// What is not there.
        missing: &'static str,
    },
    /// Written by a newer version.
    #[error(
        "{} has format {format}, written by a newer version of aryeo-relay: use that version",
        file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The disk refused.
    #[error("{} can't be used", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index can't be made in the folder for temporary files.
    #[error("an index can't be made in {}: it takes about a twentieth of the log", dir.display())]
    Scratch {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A copy can't be made there.
    #[error("{} can't take a backup: {why}", to.display())]
    Target {
        /// Where it was to be.
        to: PathBuf,
        /// Why not.
        why: String,
    },
}

/// A data directory that nobody else uses meanwhile.
#[derive(Debug)]
pub struct Offline {
    dir: PathBuf,
    log: Log,
    disk: Arc<Unchanged>,
    _lock: Option<DirectoryLock>,
}

/// How many records of a kind, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the segments hold.
#[derive(Debug, Default)]
struct Found {
    kinds: BTreeMap<&'static str, Tally>,
    flaws: Vec<Flaw>,
    flaws_count: u64,
    torn: Vec<Flaw>,
    torn_count: u64,
    unread: Vec<Unread>,
    unread_bytes: u64,
    // Whole, but of an unknown kind or version.
    unknown: Vec<Flaw>,
    unknown_count: u64,
    // Behind the last record of segments that are sound.
    spare_bytes: u64,
}

/// How the index is that lies in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IndexState {
    Absent,
    Unsound,
    KnowsGoneSegment,
    // In itself it is sound, and the log says otherwise.
    Wrong,
    Behind,
    Current,
}

impl IndexState {
    /// It says otherwise than the log, if it was taken for good.
    fn wrong(self) -> Self {
        match self {
            Self::Behind | Self::Current => Self::Wrong,
            Self::Absent | Self::Unsound | Self::KnowsGoneSegment | Self::Wrong => self,
        }
    }
}

/// The indices, as files in a folder of their own.
#[derive(Debug)]
struct Scratch {
    folder: TempDir,
    // The one that lies there, as a start finds it and brings it up to date.
    lying: Option<Index>,
    // What it should be.
    made: Option<Index>,
    state: IndexState,
}

impl Offline {
    /// Takes a directory, on the machine's disk.
    pub fn open(dir: &Path) -> Result<Self, Refused> {
        Self::open_on(dir, Arc::new(RealDisk))
    }

    /// The same on another disk; the lock and the index are in the directory itself.
    pub fn open_on(dir: &Path, disk: Arc<dyn Disk>) -> Result<Self, Refused> {
        let io = |source| Refused::Io { path: dir.to_owned(), source };
        let no_store = |missing| Refused::NoStore { dir: dir.to_owned(), missing };
        if !dir.try_exists().map_err(io)? {
            return Err(no_store("it does not exist"));
        }
        if !dir.is_dir() {
            return Err(no_store("it is no directory"));
        }
        let lock = share(dir).map_err(|error| match error {
            LockError::InUse(process) => Refused::InUse { dir: dir.to_owned(), process },
            LockError::Io(source) => Refused::Io { path: dir.join("lock"), source },
        })?;
        let segments = dir.join("segments");
        let is_empty = !segments.is_dir() && disk.list(&segments).map_or(true, |l| l.is_empty());
        if is_empty {
            return Err(no_store("it has no folder `segments`"));
        }
        let disk = Arc::new(Unchanged::new(disk));
        let log = Log::open(segments.clone(), Arc::clone(&disk) as Arc<dyn Disk>);
        let log = log.map_err(|error| match error {
            LogError::Io(source) => Refused::Io { path: segments, source },
            LogError::Newer(file, format) => Refused::Newer { file, format },
        })?;
        Ok(Self { dir: dir.to_owned(), log, disk, _lock: lock })
    }

    fn index_file(&self) -> PathBuf {
        self.dir.join("index.sqlite")
    }

    /// A copy of the index, and an empty one where that is none or `makes_another` is wanted.
    fn scratch(&self, makes_another: bool) -> Result<Scratch, Refused> {
        let temporary = std::env::temp_dir();
        let io = |source| Refused::Io { path: temporary.clone(), source };
        let folder = tempfile::tempdir().map_err(io)?;
        let copy = folder.path().join("lying.sqlite");
        let (lying, state) = match self.copy_index(&copy) {
            Ok(false) => (None, IndexState::Absent),
            Err(_) => (None, IndexState::Unsound),
            Ok(true) => match Index::open_whole(&copy) {
                // It is held against the log nevertheless: it may be the only one to know what is gone.
                Ok(Some(index)) if !self.log.can_follow(index.applied()) => {
                    (Some(index), IndexState::KnowsGoneSegment)
                }
                Ok(Some(index)) => {
                    let is_current = index.applied() >= self.last_point();
                    let state = if is_current { IndexState::Current } else { IndexState::Behind };
                    (Some(index), state)
                }
                Ok(None) | Err(_) => (None, IndexState::Unsound),
            },
        };
        let is_used = lying.is_some() && state != IndexState::KnowsGoneSegment;
        let made = (makes_another || !is_used)
            .then(|| Index::open_file(&folder.path().join("made.sqlite")))
            .transpose()
            .map_err(|source| Refused::Scratch { dir: temporary, source })?;
        Ok(Scratch { folder, lying, made, state })
    }

    /// Where the newest segment begins: what is behind it is little.
    fn last_point(&self) -> LogPoint {
        let last = self.log.all().last().map_or(0, |segment| segment.header.number);
        LogPoint { segment: last, offset: 0 }
    }

    /// Answers whether there is one.
    fn copy_index(&self, to: &Path) -> io::Result<bool> {
        for suffix in ["", "-wal"] {
            let beside = |path: &Path| {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            };
            match std::fs::copy(beside(&self.index_file()), beside(to)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if suffix.is_empty() {
                        return Ok(false);
                    }
                }
                copied => {
                    copied?;
                }
            }
        }
        Ok(true)
    }

    /// Goes through all records, and takes them into the indices.
    fn scan(&self, scratch: &mut Scratch) -> Result<Found, Refused> {
        let mut found = Found::default();
        for segment in self.log.all() {
            self.scan_segment(&segment, scratch, &mut found)?;
        }
        Ok(found)
    }

    fn scan_segment(
        &self,
        segment: &Arc<Segment>,
        scratch: &mut Scratch,
        found: &mut Found,
    ) -> Result<(), Refused> {
        let number = segment.header.number;
        let io = |source| Refused::Io { path: self.segment_file(number), source };
        let mut scanner =
            Scanner::new(Arc::clone(segment), 0, u64::MAX).map_err(io)?.around_errors();
        let before = (found.flaws_count, found.unread_bytes, found.unknown_count);
        let durable = self.log.is_durable(number);
        loop {
            let mut frames = Vec::with_capacity(PIECE);
            while frames.len() < PIECE
                && let Some(frame) = scanner.next_frame().map_err(io)?
            {
                // Bodies are not held: of a piece only what the index takes.
                let kind = Kind::from_code(frame.kind).map_or("unknown", Kind::name);
                let tally = found.kinds.entry(kind).or_default();
                tally.records += 1;
                tally.bytes += frame.position.length;
                let entries = (Entry::of_frame(&frame, durable), Entry::of_frame(&frame, durable));
                if let (Ok(one), Ok(other)) = entries {
                    frames.push((one, other));
                } else {
                    let (offset, bytes) = (frame.position.offset, frame.position.length);
                    let flaw = Flaw { segment: number, offset, bytes, trace: None };
                    name_some(&mut found.unknown, &mut found.unknown_count, [flaw]);
                }
            }
            let more = frames.len() == PIECE;
            name_some(&mut found.flaws, &mut found.flaws_count, scanner.take_flaws());
            let unread = scanner.take_unread();
            found.unread_bytes += unread.iter().map(|part| part.bytes).sum::<u64>();
            name_some(&mut found.unread, &mut 0, unread);
            let upto = LogPoint { segment: number, offset: scanner.offset() };
            scratch.take(frames, upto)?;
            if !more {
                break;
            }
        }
        name_some(&mut found.torn, &mut found.torn_count, scanner.take_torn());
        if before == (found.flaws_count, found.unread_bytes, found.unknown_count) {
            let bytes = segment.file.bytes().map_err(io)?;
            found.spare_bytes += bytes.saturating_sub(scanner.offset());
        }
        Ok(())
    }

    fn segment_file(&self, number: u64) -> PathBuf {
        self.dir.join("segments").join(format!("{number:08}.log"))
    }
}

fn name_some<T>(named: &mut Vec<T>, count: &mut u64, new: impl IntoIterator<Item = T>) {
    for one in new {
        *count += 1;
        if named.len() < NAMED_MAX {
            named.push(one);
        }
    }
}

impl Scratch {
    fn take(&mut self, entries: Vec<(Entry, Entry)>, upto: LogPoint) -> Result<(), Refused> {
        let dir = self.folder.path().to_owned();
        let (for_one, for_other) = entries.into_iter().unzip();
        if let Some(made) = &mut self.made {
            let scratch = |source| Refused::Scratch { dir, source };
            made.apply(for_one, Some(upto)).map_err(scratch)?;
        }
        // One that fails now would be made again by a start too.
        if self.state != IndexState::KnowsGoneSegment
            && let Some(lying) = &mut self.lying
            && lying.apply(for_other, Some(upto)).is_err()
        {
            self.lying = None;
            self.state = IndexState::Unsound;
        }
        Ok(())
    }

    /// What a start would work with.
    fn of_a_start(&self) -> Option<&Index> {
        let is_used = self.state != IndexState::KnowsGoneSegment;
        self.lying.as_ref().filter(|_| is_used).or(self.made.as_ref())
    }
}

/// All files below a directory: how many, and their bytes.
fn weigh(dir: &Path) -> Tally {
    let mut tally = Tally::default();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(meta) = entry.metadata() {
            tally.records += 1;
            tally.bytes += meta.len();
        }
    }
    tally
}
