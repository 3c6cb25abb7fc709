//! A disk that is only read: what a start would change is noted down instead of done.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use crate::store::embedded::disk::{Disk, DiskFile, FileId};

/// The disk, and what would have been done to it.
#[derive(Debug)]
pub(super) struct Unchanged {
    disk: Arc<dyn Disk>,
    steps: Mutex<Vec<String>>,
}

impl Unchanged {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, steps: Mutex::default() }
    }

    /// What a start would have changed so far, in words.
    pub(super) fn steps(&self) -> Vec<String> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, step: String) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Disk for Unchanged {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, _path: &Path, _bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        Err(Errno::ROFS.into())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(UnchangedFile(self.disk.open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn id_at(&self, path: &Path) -> io::Result<FileId> {
        self.disk.id_at(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note(format!("removes {}, which was only half made", name(path)));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(format!("puts {} aside as {}", name(from), name(to)));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn available_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.available_bytes(dir)
    }

    fn is_volatile(&self, dir: &Path) -> io::Result<bool> {
        self.disk.is_volatile(dir)
    }
}

#[derive(Debug)]
struct UnchangedFile(Arc<dyn DiskFile>);

impl DiskFile for UnchangedFile {
    fn write_at(&self, _buffers: &[IoSlice<'_>], _offset: u64) -> io::Result<usize> {
        Err(Errno::ROFS.into())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn id(&self) -> io::Result<FileId> {
        self.0.id()
    }

    fn truncate(&self, _bytes: u64) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }

    fn next_written(&self, offset: u64) -> io::Result<u64> {
        self.0.next_written(offset)
    }
}
