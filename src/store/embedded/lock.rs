//! One process per directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// The directory is ours until this is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why the directory is not ours.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it; its id, if it could be read.
    InUse(Option<u32>),
    /// The lock file could not be opened, locked or written.
    Io(io::Error),
}

/// Takes the directory.
pub fn lock(dir: &Path) -> Result<DirectoryLock, LockError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(LockError::Io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let text = io::read_to_string(&mut file);
            return Err(LockError::InUse(text.ok().and_then(|text| text.trim().parse().ok())));
        }
        Err(error) => return Err(LockError::Io(error.into())),
    }
    let id = std::process::id();
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{id}"));
    match written {
        // A full disk must not keep the store from starting: it is the lock that counts.
        Ok(()) => {}
        Err(error) => tracing::warn!(%error, "the process id could not be written into the lock"),
    }
    Ok(DirectoryLock { _file: file })
}

/// Keeps others from taking the directory, without changing anything in it. None where nobody ever
/// took it, as in a copy.
pub fn share(dir: &Path) -> Result<Option<DirectoryLock>, LockError> {
    let mut file = match File::open(dir.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(LockError::Io)?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(DirectoryLock { _file: file })),
        Err(Errno::WOULDBLOCK) => {
            let text = io::read_to_string(&mut file);
            Err(LockError::InUse(text.ok().and_then(|text| text.trim().parse().ok())))
        }
        Err(error) => Err(LockError::Io(error.into())),
    }
}
