//! A disk in memory whose power can be cut, and that fails as told.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::store::embedded::disk::{Disk, DiskFile, FileId};

mod faults;

pub use self::faults::Faults;

const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    // What a failed sync was to write: some sectors of it are on the disk, the others never will be,
    // whatever a later sync says.
    poisoned: Option<Vec<u8>>,
    // What can't be read, and whether it can't even be opened.
    unreadable: Vec<Range<u64>>,
    closed: bool,
}

type Entries = BTreeMap<PathBuf, Arc<Mutex<Content>>>;

/// What was done to the entries of a directory.
#[derive(Debug, Clone)]
enum EntryChange {
    Made(PathBuf, Arc<Mutex<Content>>),
    Removed(PathBuf),
    Renamed(PathBuf, PathBuf),
}

impl EntryChange {
    fn apply(self, entries: &mut Entries) {
        match self {
            Self::Made(path, content) => {
                entries.insert(path, content);
            }
            Self::Removed(path) => {
                entries.remove(&path);
            }
            Self::Renamed(from, to) => {
                if let Some(content) = entries.remove(&from) {
                    entries.insert(to, content);
                }
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Made(path, _) | Self::Removed(path) | Self::Renamed(path, _)) = self;
        path.parent() == Some(dir)
    }
}

#[derive(Debug, Default)]
struct State {
    files: Entries,
    // What a power cut leaves for certain, and what was done since to the entries.
    durable_files: Entries,
    unsynced: Vec<EntryChange>,
    faults: Faults,
    met: bool,
    writes: u64,
    syncs: u64,
    dir_syncs: u64,
    reads: u64,
    changes: u64,
    generation: u64,
}

impl State {
    fn change_entry(&mut self, change: EntryChange) {
        change.clone().apply(&mut self.files);
        self.unsynced.push(change);
    }

    fn available(&self) -> u64 {
        let taken: u64 = self.files.values().map(|content| lock(content).now.len() as u64).sum();
        self.faults.room.unwrap_or(1 << 40).saturating_sub(taken)
    }
}

/// The disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    // A sync that hung may go on.
    healed: Arc<Condvar>,
    generation: u64,
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    content: Arc<Mutex<Content>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// Says what is to fail from here on; counting begins anew.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = lock(&self.state);
        state.faults = faults;
        state.met = false;
        state.writes = 0;
        state.syncs = 0;
        state.dir_syncs = 0;
        state.reads = 0;
        state.changes = 0;
        self.healed.notify_all();
    }

    /// Nothing fails any more, and what hung goes on.
    pub fn heal(&self) {
        self.set_faults(Faults::default());
    }

    /// Whether a write or a sync failed, or was short, since the faults were set.
    pub fn has_met_fault(&self) -> bool {
        lock(&self.state).met
    }

    /// Writes and syncs since the faults were set.
    pub fn operations(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.writes, state.syncs)
    }

    /// Cuts the power: whoever has this disk can do nothing with it any more. Of what was not
    /// durable some sectors survive, and some of the files made, renamed and removed, by chance.
    /// Answers the disk after the restart.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut state = lock(&self.state);
        for change in std::mem::take(&mut state.unsynced) {
            if random.bool() {
                change.apply(&mut state.durable_files);
            }
        }
        state.files = state.durable_files.clone();
        for content in state.files.values() {
            let mut content = lock(content);
            let Content { now, durable, poisoned, .. } = &mut *content;
            let length = now.len().max(durable.len());
            let mut after = durable.clone();
            if now.len() >= durable.len() || random.bool() {
                after.resize(now.len(), 0);
            }
            for at in (0..length).step_by(SECTOR) {
                let written = poisoned.as_ref().unwrap_or(now);
                let written = written.get(at..written.len().min(at + SECTOR)).unwrap_or_default();
                let keeps = after.get_mut(at..).unwrap_or_default();
                if random.u8(..) < 128 {
                    for (to, from) in keeps.iter_mut().zip(written) {
                        *to = *from;
                    }
                }
            }
            *poisoned = None;
            *durable = after.clone();
            *now = after;
        }
        // Other handles see a disk that is gone.
        state.generation += 1;
        state.faults = Faults::default();
        self.healed.notify_all();
        let healed = Arc::clone(&self.healed);
        Self { state: Arc::clone(&self.state), healed, generation: state.generation }
    }

    /// Kills the process: all that was written stays. Answers the disk after the restart.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.faults = Faults::default();
        self.healed.notify_all();
        let healed = Arc::clone(&self.healed);
        Self { state: Arc::clone(&self.state), healed, generation: state.generation }
    }

    /// Changes the bytes of a file, as decay does.
    pub fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let state = lock(&self.state);
        if let Some(content) = state.files.get(path) {
            let mut content = lock(content);
            change(&mut content.now);
            content.durable = content.now.clone();
        }
    }

    /// From here on these bytes of a file can't be read.
    pub fn break_reads(&self, path: &Path, bytes: Range<u64>) {
        let state = lock(&self.state);
        if let Some(content) = state.files.get(path) {
            lock(content).unreadable.push(bytes);
        }
    }

    /// From here on a file can't be opened.
    pub fn break_open(&self, path: &Path) {
        let state = lock(&self.state);
        if let Some(content) = state.files.get(path) {
            lock(content).closed = true;
        }
    }

    /// A file can be opened and read again.
    pub fn mend(&self, path: &Path) {
        let state = lock(&self.state);
        if let Some(content) = state.files.get(path) {
            let mut content = lock(content);
            content.unreadable.clear();
            content.closed = false;
        }
    }

    /// The length of a file.
    pub fn bytes(&self, path: &Path) -> u64 {
        let state = lock(&self.state);
        state.files.get(path).map_or(0, |content| lock(content).now.len() as u64)
    }

    /// The names of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        lock(&self.state).files.keys().cloned().collect()
    }

    /// Whether everything fails since [`Faults::dead_from_change`].
    pub fn is_dead(&self) -> bool {
        let state = lock(&self.state);
        state.faults.dead_from_change.is_some_and(|n| state.changes >= n)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        let dead = state.faults.dead_from_change.is_some_and(|n| state.changes >= n);
        if state.generation == self.generation && !dead { Ok(state) } else { Err(Errno::IO.into()) }
    }

    /// Counts a change; the one that is to stop everything does not happen any more.
    fn changing(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.alive()?;
        state.changes += 1;
        if state.faults.dead_from_change.is_some_and(|n| state.changes >= n) {
            return Err(Errno::IO.into());
        }
        Ok(state)
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.alive().map(drop)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.changing()?;
        let full = state.faults.full_at_write.is_some_and(|n| state.writes + 1 >= n);
        if state.faults.no_create || full {
            state.met |= full;
            return Err(Errno::NOSPC.into());
        }
        if state.files.contains_key(path) {
            return Err(Errno::EXIST.into());
        }
        if bytes > state.available() {
            return Err(Errno::NOSPC.into());
        }
        let now = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        let content = Arc::new(Mutex::new(Content { now, ..Content::default() }));
        state.change_entry(EntryChange::Made(path.into(), Arc::clone(&content)));
        Ok(Arc::new(SimFile { disk: self.clone(), content }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.alive()?;
        let content = state.files.get(path).ok_or(Errno::NOENT)?;
        if lock(content).closed {
            return Err(Errno::ACCESS.into());
        }
        Ok(Arc::new(SimFile { disk: self.clone(), content: Arc::clone(content) }))
    }

    fn id_at(&self, path: &Path) -> io::Result<FileId> {
        let state = self.alive()?;
        Ok(id_of(state.files.get(path).ok_or(Errno::NOENT)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.alive()?;
        let inside = state.files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        if !state.files.contains_key(path) {
            return Err(Errno::NOENT.into());
        }
        state.change_entry(EntryChange::Removed(path.into()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        if !state.files.contains_key(from) {
            return Err(Errno::NOENT.into());
        }
        state.change_entry(EntryChange::Renamed(from.into(), to.into()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.changing()?;
        state.dir_syncs += 1;
        if state.faults.broken_at_dir_sync == Some(state.dir_syncs) {
            state.met = true;
            return Err(Errno::IO.into());
        }
        let unsynced = std::mem::take(&mut state.unsynced).into_iter();
        let (synced, rest): (Vec<_>, Vec<_>) = unsynced.partition(|change| change.is_in(dir));
        state.unsynced = rest;
        for change in synced {
            change.apply(&mut state.durable_files);
        }
        Ok(())
    }

    fn available_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.healed.wait_while(lock(&self.state), |state| state.faults.hung_sizes);
        Ok(state.unwrap_or_else(PoisonError::into_inner).available())
    }

    fn is_volatile(&self, _dir: &Path) -> io::Result<bool> {
        Ok(false)
    }
}

fn id_of(content: &Arc<Mutex<Content>>) -> FileId {
    FileId(0, Arc::as_ptr(content).addr() as u64)
}

impl DiskFile for SimFile {
    fn id(&self) -> io::Result<FileId> {
        Ok(id_of(&self.content))
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let short = {
            let mut state = self.disk.changing()?;
            state.writes += 1;
            let (faults, nth) = (state.faults, state.writes);
            if faults.full_at_write.is_some_and(|n| nth >= n) {
                state.met = true;
                return Err(Errno::NOSPC.into());
            }
            if faults.broken_at_write == Some(nth) {
                state.met = true;
                return Err(Errno::IO.into());
            }
            let short = faults.short_at_write == Some(nth);
            state.met |= short;
            short
        };
        let mut bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        if short {
            bytes.truncate((bytes.len() / 2).max(1));
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut content = lock(&self.content);
        let end = from + bytes.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        if let Some(place) = content.now.get_mut(from..end) {
            place.copy_from_slice(&bytes);
        }
        Ok(bytes.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let slow = {
            let mut state = self.disk.alive()?;
            state.reads += 1;
            if state.faults.broken_from_read.is_some_and(|n| state.reads >= n) {
                return Err(Errno::IO.into());
            }
            state.faults.slow_reads
        };
        if !slow.is_zero() {
            #[expect(clippy::disallowed_methods, reason = "a slow disk is slow")]
            std::thread::sleep(slow);
        }
        let content = lock(&self.content);
        let end = offset + buffer.len() as u64;
        if content.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(Errno::IO.into());
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = content.now.get(from..).unwrap_or_default();
        let count = there.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(there) {
            *to = *from;
        }
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        {
            let mut state = self.disk.changing()?;
            state.syncs += 1;
            if state.faults.hung_at_sync == Some(state.syncs) {
                let hung = |state: &mut State| state.faults.hung_at_sync.is_some();
                let waited = self.disk.healed.wait_while(state, hung);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
            if state.faults.broken_at_sync == Some(state.syncs) {
                state.met = true;
                let mut content = lock(&self.content);
                content.poisoned = Some(content.now.clone());
                return Err(Errno::IO.into());
            }
        }
        let mut content = lock(&self.content);
        if content.poisoned.is_none() {
            content.durable = content.now.clone();
        } else {
            // How long a file is, is written elsewhere.
            let bytes = content.now.len();
            content.durable.truncate(bytes);
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        drop(self.disk.changing()?);
        let mut content = lock(&self.content);
        content.now.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
        Ok(())
    }

    fn next_written(&self, offset: u64) -> io::Result<u64> {
        // Of a block that is zero some disks know that nothing was written there, others don't.
        const BLOCK: usize = 4096;
        drop(self.disk.alive()?);
        let content = lock(&self.content);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let length = content.now.len();
        let is_written = |at: &usize| {
            content.now.get(*at..length.min(at + BLOCK)).is_some_and(|b| b.iter().any(|x| *x != 0))
        };
        let first = from / BLOCK * BLOCK;
        let found = (first..length).step_by(BLOCK).find(is_written);
        Ok(found.map_or(length as u64, |at| offset.max(at as u64)))
    }

    fn bytes(&self) -> io::Result<u64> {
        drop(self.disk.alive()?);
        Ok(lock(&self.content).now.len() as u64)
    }
}
