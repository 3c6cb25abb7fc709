//! The bytes of damaged records, kept where a cleaned segment does not take them along.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::store::embedded::directory::MODE;
use crate::store::embedded::disk::{DiskFile, read_fully};

/// Its name in the data directory.
pub(super) const FOLDER: &str = "quarantine";
/// All files together take no more: a rotten disk must not be filled by what is kept of it.
pub(super) const BYTES_MAX: u64 = 64 << 20;
/// And no more of them than this: each is synced, and a start does that before it goes on.
const FILES_MAX: u64 = 1000;
const CHUNK: u64 = 64 << 10;

/// The folder.
#[derive(Debug)]
pub(super) struct Quarantine {
    dir: PathBuf,
    bytes_max: u64,
    is_full_told: AtomicBool,
    // Files and bytes that are in it, once that was looked at.
    taken: Mutex<Option<(u64, u64)>>,
}

impl Quarantine {
    /// The folder in a data directory, made when it is needed.
    pub(super) fn new(data: &Path, bytes_max: u64) -> Self {
        Self {
            dir: data.join(FOLDER),
            bytes_max,
            is_full_told: AtomicBool::new(false),
            taken: Mutex::default(),
        }
    }

    /// Keeps bytes of a segment, once per place; answers the file that has them.
    pub(super) fn keep(
        &self,
        file: &dyn DiskFile,
        segment: u64,
        offset: u64,
        bytes: u64,
    ) -> Option<PathBuf> {
        let path = self.dir.join(format!("{segment:08}-{offset}.bin"));
        if path.exists() {
            return Some(path);
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, taken_bytes) = taken.get_or_insert_with(|| self.weigh());
        if *files >= FILES_MAX || taken_bytes.saturating_add(bytes) > self.bytes_max {
            if !self.is_full_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    dir = %self.dir.display(),
                    bytes_max = self.bytes_max,
                    "quarantine is full: what is damaged is no longer kept there"
                );
            }
            return None;
        }
        match self.write(&path, file, offset, bytes) {
            Ok(()) => {
                *files += 1;
                *taken_bytes += bytes;
                Some(path)
            }
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "a damaged record can't be kept");
                None
            }
        }
    }

    /// Under another name until it is whole: what has its name is never written again.
    fn write(&self, path: &Path, from: &dyn DiskFile, offset: u64, bytes: u64) -> io::Result<()> {
        match DirBuilder::new().mode(MODE).create(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let new = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut to = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut chunk = vec![0; usize::try_from(CHUNK.min(bytes)).unwrap_or(0)];
        let mut done = 0;
        while done < bytes {
            let wanted = usize::try_from(bytes - done).unwrap_or(chunk.len()).min(chunk.len());
            let Some(part) = chunk.get_mut(..wanted) else { break };
            let read = read_fully(from, part, offset + done)?;
            to.write_all(part.get(..read).unwrap_or_default())?;
            done += read as u64;
            if read == 0 {
                break;
            }
        }
        to.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(&self.dir)?.sync_all()
    }

    fn weigh(&self) -> (u64, u64) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        sizes.fold((0, 0), |(files, bytes), size| (files + 1, bytes + size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn source(folder: &Path) -> File {
        let path = folder.join("source");
        std::fs::write(&path, (0..=255).collect::<Vec<u8>>()).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn a_place_is_kept_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = source(folder.path());
        let quarantine = Quarantine::new(folder.path(), BYTES_MAX);
        let kept = quarantine.keep(&file, 7, 16, 32).unwrap();
        assert_eq!(kept, folder.path().join("quarantine/00000007-16.bin"));
        assert_eq!(std::fs::read(&kept).unwrap(), (16..48).collect::<Vec<u8>>());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&kept), mode(kept.parent().unwrap())), (0o600, 0o700));
        std::fs::write(&kept, "as it was").unwrap();
        let again = Quarantine::new(folder.path(), BYTES_MAX);
        assert_eq!(again.keep(&file, 7, 16, 32).unwrap(), kept);
        assert_eq!(std::fs::read(&kept).unwrap(), b"as it was");
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let file = source(folder.path());
        let quarantine = Quarantine::new(folder.path(), 80);
        let kept = [0, 40, 80, 120].map(|at| quarantine.keep(&file, 1, at, 40).is_some());
        assert_eq!(kept, [true, true, false, false]);
    }

    #[test]
    fn where_nothing_can_be_kept_it_is_told_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let file = source(folder.path());
        std::fs::write(folder.path().join(FOLDER), "in the way").unwrap();
        assert_eq!(Quarantine::new(folder.path(), BYTES_MAX).keep(&file, 1, 0, 8), None);
    }
}
