//! Reading files that others write: bounded, never held up, and remembered by what was in them.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Room beside what the file says of its length: to see its end, and for files that say zero, as
/// those of `/proc` do.
const ROOM_BESIDE: usize = 1024;

/// Why a file could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("can't be read: {0}")]
    Missing(String),
    /// A pipe, a folder, a device.
    #[error("is not a file")]
    NotAFile,
    /// Larger than this.
    #[error("is larger than {0} bytes")]
    TooLarge(usize),
    /// The system refused.
    #[error("can't be read: {0}")]
    Unreadable(String),
}

/// One file as it was read: what was in it, or why it could not be read. Two are equal if both
/// readings came to the same.
#[derive(Clone, PartialEq, Eq)]
pub struct FileRead {
    path: PathBuf,
    bytes_max: usize,
    content: Result<[u8; 32], ReadError>,
}

impl fmt::Debug for FileRead {
    /// Without the digest: that of a short secret gives it away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileRead").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FileRead {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same file, read anew.
    #[must_use]
    pub fn again(&self) -> Self {
        read(&self.path, self.bytes_max).1
    }
}

/// Reads a file of at most `bytes_max` bytes, and says what there was.
pub fn read(path: &Path, bytes_max: usize) -> (Result<Zeroizing<Vec<u8>>, ReadError>, FileRead) {
    let bytes = bounded(path, bytes_max);
    let content = bytes.as_ref().map(|bytes| Sha256::digest(bytes).into()).map_err(Clone::clone);
    (bytes, FileRead { path: path.to_owned(), bytes_max, content })
}

/// The bytes of a file of at most `bytes_max`.
pub(super) fn bounded(path: &Path, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => ReadError::Missing(error.to_string()),
        _ => ReadError::Unreadable(error.to_string()),
    };
    // Opened without waiting: a pipe without a writer would hold the load for ever.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile);
    }
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(bytes_max);
    let bytes = whole(file.take(bytes_max as u64 + 1), length + ROOM_BESIDE).map_err(failed)?;
    if bytes.len() > bytes_max { Err(ReadError::TooLarge(bytes_max)) } else { Ok(bytes) }
}

/// Everything of `reader`. A buffer that is too small is wiped once its bytes are in a larger one:
/// one that grows by itself would leave a copy of a secret behind.
fn whole(mut reader: impl Read, room: usize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(room.max(1)));
    loop {
        let space = bytes.capacity() - bytes.len();
        let read = reader.by_ref().take(space as u64).read_to_end(&mut bytes)?;
        if read < space {
            return Ok(bytes);
        }
        let mut larger = Zeroizing::new(Vec::with_capacity(bytes.capacity() * 2));
        larger.extend_from_slice(&bytes);
        bytes = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_are_equal_while_the_content_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (bytes, missing) = read(&path, 10);
        assert!(matches!(bytes, Err(ReadError::Missing(_))), "{bytes:?}");
        assert_eq!(missing.again(), missing);
        std::fs::write(&path, "one").unwrap();
        let (bytes, one) = read(&path, 10);
        assert_eq!(bytes.unwrap().as_slice(), b"one");
        assert_ne!(one, missing);
        std::fs::write(&path, "two").unwrap();
        assert_ne!(one.again(), one);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "one").unwrap();
        assert_eq!(one.again(), one, "another file with the same content");
        assert!(!format!("{one:?}").contains("content"));
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(bounded(folder.path(), 10), Err(ReadError::NotAFile));
        assert_eq!(bounded(Path::new("/dev/zero"), 10), Err(ReadError::NotAFile));
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        assert_eq!(bounded(&pipe, 10), Err(ReadError::NotAFile));
        let path = folder.path().join("large");
        std::fs::write(&path, "12345678901").unwrap();
        assert_eq!(bounded(&path, 10), Err(ReadError::TooLarge(10)));
        assert_eq!(bounded(&path, 11).unwrap().len(), 11);
    }

    #[test]
    fn a_file_takes_the_room_of_its_length_and_one_that_grows_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, vec![7; 3000]).unwrap();
        let bytes = bounded(&path, 1024 * 1024).unwrap();
        assert!(bytes.capacity() < 8 * 1024, "{} for 3000 bytes", bytes.capacity());
        let grown: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
        assert_eq!(whole(grown.as_slice(), 1).unwrap().as_slice(), grown);
        let of_no_length = bounded(Path::new("/proc/self/status"), 1024 * 1024).unwrap();
        assert!(of_no_length.starts_with(b"Name:"));
    }
}
