//! The disk under the segments, so that tests can cut its power.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::store::embedded::directory;

/// What tells a file from all others for as long as it is open, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(pub u64, pub u64);

/// A place for segment files.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Makes a directory with its parents, for its owner only, and makes that durable.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes a new file of that many bytes, all zero, with room reserved for them.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that exists.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// The names of a directory's files.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Which file is there.
    fn id_at(&self, path: &Path) -> io::Result<FileId>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes what was created, removed and renamed in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// How many bytes are left.
    fn available_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Whether a power cut empties it.
    fn is_volatile(&self, dir: &Path) -> io::Result<bool>;
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Writes some of the buffers, answers how many bytes.
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Reads some bytes, none at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes the data durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes the data and the length durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Which file it is.
    fn id(&self) -> io::Result<FileId>;
    /// Sets the length.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// The length.
    fn bytes(&self) -> io::Result<u64>;
    /// Where, at or behind an offset, something was written for all that is known; the length, if that
    /// is nowhere. What lies between was reserved only.
    fn next_written(&self, offset: u64) -> io::Result<u64>;
}

/// The machine's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

// <linux/magic.h>
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        directory::create(dir)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes)?,
            Err(error) => {
                drop(file);
                if let Err(error) = std::fs::remove_file(path) {
                    tracing::warn!(%error, "a half-made segment could not be removed");
                }
                return Err(error.into());
            }
            Ok(()) => {}
        }
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            // What is in it counts, and nothing is written to an old segment but its length.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::ACCESS | Errno::PERM | Errno::ROFS)
                ) =>
            {
                File::open(path)?
            }
            file => file?,
        };
        Ok(Arc::new(file))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            // A name that is not text is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn id_at(&self, path: &Path) -> io::Result<FileId> {
        std::fs::metadata(path).map(|at| FileId(at.dev(), at.ino()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn available_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn is_volatile(&self, dir: &Path) -> io::Result<bool> {
        let kind = rustix::fs::statfs(dir)?.f_type;
        Ok([TMPFS_MAGIC, RAMFS_MAGIC].iter().any(|magic| u64::try_from(kind) == Ok(*magic)))
    }
}

impl DiskFile for File {
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, buffers, offset)?)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::sync_all(self)
    }

    fn id(&self) -> io::Result<FileId> {
        self.metadata().map(|of| FileId(of.dev(), of.ino()))
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn next_written(&self, offset: u64) -> io::Result<u64> {
        // Moves the file's own position, which nobody uses.
        match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Ok(at) => Ok(at),
            Err(Errno::NXIO) => DiskFile::bytes(self),
            // A file system that does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads until the buffer is full or the file ends, answers how many bytes.
pub fn read_fully(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

// What the kernel takes in one call (IOV_MAX).
const SLICES_MAX: usize = 1024;

/// Writes all of the buffers.
pub fn write_fully(
    file: &dyn DiskFile,
    mut buffers: &mut [IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        let now = buffers.get(..SLICES_MAX).unwrap_or(buffers);
        match file.write_at(now, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut buffers, n);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
