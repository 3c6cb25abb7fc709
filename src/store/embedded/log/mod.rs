//! The segments of a directory, and how they are read in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use crate::domain::time::Timestamp;
use crate::store::embedded::damage::Damage;
use crate::store::embedded::directory;
use crate::store::embedded::disk::{Disk, FileId, read_fully, write_fully};
use crate::store::embedded::quarantine::{self, Quarantine};
use crate::store::embedded::scanner::Unread;
use crate::store::embedded::segment::{HEADER_BYTES, Header, Heading, LogPoint, Segment};

pub mod following;

// How the file beside a segment ends that says that the segment is not durable.
const DOUBTFUL: &str = ".doubtful";

/// All segments.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    // Segments that could not be opened at this start: they stay where they are.
    unread: BTreeSet<u64>,
    // Segments whose last bytes could not be made durable at this start or an earlier one.
    doubtful: BTreeSet<u64>,
    // Behind the last record that may be read.
    end: Mutex<LogPoint>,
    next_number: AtomicU64,
    // What all segments together may take.
    limit: OnceLock<Limit>,
    quarantine: Quarantine,
    /// What was found damaged since the start.
    pub damage: Damage,
}

/// How much all segments together may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// All that the disk has.
    None,
    /// So many bytes.
    Bytes(u64),
    /// Four fifths of what the disk has free, what is taken already counted in.
    OfFree,
}

/// Why the segments can't be used.
#[derive(Debug)]
pub enum LogError {
    /// The disk refused.
    Io(io::Error),
    /// Written by a newer version.
    Newer(PathBuf, u32),
}

impl From<io::Error> for LogError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Log {
    /// Finds the segments of a directory; what was only half made is put aside. One that can't be
    /// read stays, and the others are used.
    pub fn open(dir: PathBuf, disk: Arc<dyn Disk>) -> Result<Self, LogError> {
        disk.create_dir(&dir)?;
        let quarantine = Quarantine::new(directory::parent(&dir), quarantine::BYTES_MAX);
        let mut log = Self {
            dir,
            disk,
            segments: RwLock::default(),
            unread: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            end: Mutex::default(),
            next_number: AtomicU64::new(1),
            limit: OnceLock::new(),
            quarantine,
            damage: Damage::default(),
        };
        let mut segments = BTreeMap::new();
        for name in log.disk.list(&log.dir)? {
            let Some(number) = number_of(&name) else { continue };
            log.next_number.fetch_max(number.saturating_add(1), Ordering::Relaxed);
            if name.ends_with(DOUBTFUL) {
                log.doubtful.insert(number);
            }
            if !name.ends_with(".log") {
                continue;
            }
            match log.open_segment(&name, number) {
                Ok(Some(segment)) => {
                    segments.insert(number, Arc::new(segment));
                }
                Ok(None) => {}
                Err(LogError::Io(error)) => log.leave_unread(&name, number, &error),
                Err(error @ LogError::Newer(..)) => return Err(error),
            }
        }
        let voided: Vec<LogPoint> =
            segments.values().filter_map(|segment| segment.header.previous_end).collect();
        for point in voided {
            if let Some(segment) = segments.get(&point.segment) {
                segment.set_limit(segment.limit().min(point.offset));
            }
        }
        // Bytes that a killed process wrote are in the machine's memory only, perhaps. What is
        // read from here on counts as durable.
        for segment in segments.values().rev().take(4) {
            if let Err(error) = segment.file.sync_all() {
                let number = segment.header.number;
                tracing::error!(%error, segment = number, "an old segment can't be made durable");
                log.doubt(number);
            }
        }
        *log.segments.write().unwrap_or_else(PoisonError::into_inner) = segments;
        log.publish(log.end_of_old());
        Ok(log)
    }

    /// Marks a segment whose sync failed. The next start's sync may well succeed, as the disk dropped
    /// what it was for: without a mark that start would take the records for durable.
    fn doubt(&mut self, number: u64) {
        if self.doubtful.insert(number)
            && let Err(error) = self.disk.create(&self.mark(number), 1)
        {
            tracing::warn!(%error, segment = number, "it can't be marked as not durable");
        }
    }

    fn leave_unread(&mut self, name: &str, number: u64, error: &io::Error) {
        let file = self.dir.join(name);
        if error.kind() == io::ErrorKind::IsADirectory {
            tracing::warn!(file = %file.display(), "a directory is no segment");
            return;
        }
        self.damage.add(number, 0);
        tracing::error!(
            %error,
            file = %file.display(),
            "a segment can't be read: it is left as it is, and the next start tries again"
        );
        self.unread.insert(number);
    }

    fn open_segment(&self, name: &str, number: u64) -> Result<Option<Segment>, LogError> {
        let path = self.dir.join(name);
        let file = self.disk.open(&path)?;
        let mut block = vec![0; usize::try_from(HEADER_BYTES).unwrap_or(4096)];
        let read = read_fully(&*file, &mut block, 0);
        block.truncate(*read.as_ref().unwrap_or(&0));
        match Header::decode(&block) {
            Heading::Valid(header) if header.number == number => {
                return Ok(Some(Segment::new(header, file, u64::MAX)));
            }
            Heading::Newer(format) => return Err(LogError::Newer(path, format)),
            Heading::Absent if read.is_ok() && is_zero(&*file)? => {
                if let Err(error) = self.disk.remove(&path) {
                    tracing::warn!(%error, "a half-made segment could not be removed");
                }
                return Ok(None);
            }
            // A copy of another one under a name that is not its own.
            Heading::Valid(_) => {}
            Heading::Absent | Heading::Damaged => {
                if let Some(header) = Header::recover(&*file, number)? {
                    tracing::warn!(
                        file = %path.display(),
                        "a segment's header is damaged and is made again from its first record"
                    );
                    return Ok(Some(Segment::new(header, file, u64::MAX)));
                }
            }
        }
        read?;
        self.damage.add(number, 0);
        tracing::error!(
            file = %path.display(),
            "a segment without a sound header is put aside: its webhooks are lost"
        );
        if let Err(error) = self.disk.rename(&path, &self.dir.join(format!("{name}.unreadable"))) {
            tracing::warn!(%error, "it could not be put aside and stays where it is");
        }
        Ok(None)
    }

    /// Makes a new segment, durable and empty.
    pub fn create(
        &self,
        salt: u64,
        created_at: Timestamp,
        previous_end: Option<LogPoint>,
        bytes: u64,
    ) -> io::Result<Arc<Segment>> {
        // A number is never used twice: a half-made file may be left under it.
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let path = self.path(number);
        let made = self.create_file(&path, number, salt, created_at, previous_end, bytes);
        match made {
            Ok(segment) => {
                let segment = Arc::new(segment);
                self.write().insert(number, Arc::clone(&segment));
                self.publish(LogPoint { segment: number, offset: HEADER_BYTES });
                Ok(segment)
            }
            Err(error) => {
                // If this fails too, it is found half made at the next start.
                if let Err(error) = self.disk.remove(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, "a half-made segment could not be removed");
                }
                Err(error)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "only called by `create`, with its arguments")]
    fn create_file(
        &self,
        path: &Path,
        number: u64,
        salt: u64,
        created_at: Timestamp,
        previous_end: Option<LogPoint>,
        bytes: u64,
    ) -> io::Result<Segment> {
        let header = Header { number, salt, created_at, previous_end };
        let file = self.disk.create(path, bytes)?;
        let block = header.encode();
        write_fully(&*file, &mut [io::IoSlice::new(&block)], 0)?;
        file.sync_all()?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Segment::new(header, file, u64::MAX))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08}.log"))
    }

    /// The file that says that a segment is not durable.
    fn mark(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08}{DOUBTFUL}"))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment, if it still exists.
    pub fn get(&self, number: u64) -> Option<Arc<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Whether a segment exists, whether it can be read or not.
    pub fn exists(&self, number: u64) -> bool {
        self.is_unread(number) || self.get(number).is_some()
    }

    /// Whether a segment exists that could not be opened at this start.
    pub fn is_unread(&self, number: u64) -> bool {
        self.unread.contains(&number)
    }

    /// The segments that could not be opened at this start.
    pub fn unread_segments(&self) -> impl Iterator<Item = u64> {
        self.unread.iter().copied()
    }

    /// Whether a part that could not be read can be read now.
    pub fn can_read(&self, part: Unread) -> bool {
        let Some(segment) = self.get(part.segment) else { return false };
        let upto = part.offset.saturating_add(part.bytes);
        let Ok(length) = segment.file.bytes() else { return false };
        let mut block = vec![0; 1 << 16];
        let mut offset = part.offset;
        while offset < upto.min(length) {
            match read_fully(&*segment.file, &mut block, offset) {
                Ok(0) => break,
                Ok(read) => offset += read as u64,
                Err(_) => return false,
            }
        }
        true
    }

    /// All segments, the oldest first.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.values().cloned().collect()
    }

    /// An error unless a segment's file is where the next start looks for it.
    pub fn is_in_place(&self, number: u64, file: FileId) -> io::Result<()> {
        let path = self.path(number);
        if self.disk.id_at(&path).is_ok_and(|there| there == file) {
            return Ok(());
        }
        let text = "was removed, moved or replaced: do not stop the relay before all is delivered";
        Err(io::Error::other(format!("{} {text}", path.display())))
    }

    /// Unlinks a segment.
    pub fn remove(&self, number: u64) -> io::Result<()> {
        self.disk.remove(&self.path(number))?;
        self.write().remove(&number);
        if !self.is_durable(number)
            && let Err(error) = self.disk.remove(&self.mark(number))
        {
            tracing::warn!(%error, segment = number, "its mark could not be removed");
        }
        self.disk.sync_dir(&self.dir)
    }

    /// Says up to where records may be read.
    pub fn publish(&self, end: LogPoint) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    /// Up to where records may be read.
    pub fn end(&self) -> LogPoint {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The point behind everything that is there before this start writes.
    pub fn end_of_old(&self) -> LogPoint {
        LogPoint { segment: self.next_number.load(Ordering::Relaxed), offset: 0 }
    }

    /// What the segments take.
    pub fn bytes(&self) -> u64 {
        self.all().iter().map(|segment| segment.file.bytes().unwrap_or(0)).sum()
    }

    /// What the disk has left.
    pub fn available_bytes(&self) -> u64 {
        self.disk.available_bytes(&self.dir).unwrap_or(0)
    }

    /// All segments together are to take no more. It is said once.
    pub fn set_limit(&self, limit: Limit) {
        self.limit.get_or_init(|| limit);
    }

    /// What is left of the limit, and the limit.
    fn limit(&self) -> (u64, u64) {
        let bytes_max = match self.limit.get() {
            None | Some(Limit::None) => return (u64::MAX, u64::MAX),
            Some(Limit::Bytes(bytes)) => *bytes,
            // Asked anew each time: others take and free room on the disk too.
            Some(Limit::OfFree) => self.bytes().saturating_add(self.available_bytes()) / 5 * 4,
        };
        (bytes_max.saturating_sub(self.bytes()), bytes_max)
    }

    /// What all segments together may take; without a limit what would be the default, which is what
    /// shares of the store are shares of. None if the disk does not say.
    pub fn bytes_max(&self) -> Option<u64> {
        if let Some(Limit::Bytes(bytes)) = self.limit.get() {
            return Some(*bytes);
        }
        let free = self.disk.available_bytes(&self.dir).ok()?;
        Some(self.bytes().saturating_add(free) / 5 * 4)
    }

    /// Whether somebody has set a limit.
    pub fn has_own_limit(&self) -> bool {
        matches!(self.limit.get(), Some(Limit::Bytes(_)))
    }

    /// What is left of the limit.
    pub fn left_of_limit(&self) -> u64 {
        self.limit().0
    }

    /// Whether new webhooks will soon have no room, of the disk or of the limit.
    pub fn is_short(&self, segment_bytes: u64) -> bool {
        let (left, bytes_max) = self.limit();
        let is_limited = bytes_max < u64::MAX;
        (is_limited && left < segment_bytes.max(bytes_max / 16))
            || self.available_bytes() < segment_bytes
    }

    /// Keeps the bytes of a damaged record; answers the file that has them.
    pub fn set_aside(&self, segment: u64, offset: u64, bytes: u64) -> Option<PathBuf> {
        let file = Arc::clone(&self.get(segment)?.file);
        self.quarantine.keep(&*file, segment, offset, bytes)
    }

    /// Whether what a segment says was made durable.
    pub fn is_durable(&self, number: u64) -> bool {
        !self.doubtful.contains(&number)
    }

    /// Gives back the room behind the last record of segments that nobody writes to any more.
    pub fn truncate_tails(&self, ends: &BTreeSet<LogPoint>) {
        for end in ends {
            let Some(segment) = self.get(end.segment) else { continue };
            if segment.file.bytes().is_ok_and(|bytes| bytes > end.offset)
                && let Err(error) = segment.file.truncate(end.offset)
            {
                tracing::warn!(%error, "an old segment could not be cut to its size");
            }
        }
    }
}

fn number_of(name: &str) -> Option<u64> {
    name.split('.').next()?.parse().ok()
}

fn is_zero(file: &dyn crate::store::embedded::disk::DiskFile) -> io::Result<bool> {
    let mut offset = 0;
    let mut block = vec![0; 1 << 20];
    loop {
        let read = read_fully(file, &mut block, offset)?;
        if block.iter().take(read).any(|byte| *byte != 0) {
            // Less than a block was never a header that anything was written behind.
            return Ok(offset == 0 && read < 4096);
        }
        if read < block.len() {
            return Ok(true);
        }
        offset += read as u64;
    }
}
