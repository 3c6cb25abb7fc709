//! The data directory: whose it is, and how it is made.
//!
//! An operator may mistype `--data`. What is not the store's is neither changed nor filled.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::io::Errno;

use crate::store::embedded::lock::{DirectoryLock, LockError, lock};
use crate::store::embedded::{OpenError, Settings};

/// For its owner only.
pub(super) const MODE: u32 = 0o700;

/// What a store puts into its directory, what a new file system comes with, and what the relay keeps of
/// certificate authorities.
/// The folder of certificate authorities; what is in it is not the store's.
pub(super) const AUTHORITIES: &str = "acme";

const OURS: [&str; 6] = [AUTHORITIES, "lanes.json", "lock", "lost+found", "quarantine", "segments"];

/// The index, the files beside it, and what was set aside of it.
const INDEX: &str = "index.sqlite";

/// Takes the directory; makes it if there is none. Nothing is changed before all is decided.
pub(super) fn claim(settings: &Settings) -> Result<DirectoryLock, OpenError> {
    let dir = &*settings.dir;
    let io = |source| OpenError::Io { dir: dir.to_owned(), source };
    let volatile = settings.disk.is_volatile(nearest_existing(dir)).map_err(io)?;
    if volatile && !settings.allow_volatile {
        return Err(OpenError::Volatile { dir: dir.to_owned() });
    }
    if dir.try_exists().map_err(io)? {
        if let Some(found) = foreign(dir).map_err(io)? {
            return Err(OpenError::Foreign { dir: dir.to_owned(), found });
        }
        tighten(dir).map_err(io)?;
    } else {
        create(dir).map_err(io)?;
    }
    lock(dir).map_err(|error| match error {
        LockError::InUse(process) => OpenError::InUse { dir: dir.to_owned(), process },
        LockError::Io(source) => io(source),
    })
}

/// Makes a directory with its parents, each for its owner only, and makes that durable. What is
/// there already stays as it is.
pub(super) fn create(dir: &Path) -> io::Result<()> {
    if dir.try_exists()? {
        return Ok(());
    }
    let parent = parent(dir);
    create(parent)?;
    match DirBuilder::new().mode(MODE).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    // A power cut must not take the directory away from under what was acknowledged in it.
    File::open(parent)?.sync_all()
}

/// The directory that a path is in.
pub(super) fn parent(path: &Path) -> &Path {
    // Of a relative path's first part: the working directory.
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The directory itself, or what it would be made in.
fn nearest_existing(dir: &Path) -> &Path {
    let mut named = dir.ancestors().take_while(|path| !path.as_os_str().is_empty());
    named.find(|path| path.exists()).unwrap_or(Path::new("."))
}

/// Something in the directory that shows that it is somebody else's.
fn foreign(dir: &Path) -> io::Result<Option<String>> {
    let mut found = None;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let is_ours = (name == "segments" && kind.is_dir()) || (name == INDEX && kind.is_file());
        if is_ours {
            return Ok(None);
        }
        let of_index = name.as_encoded_bytes().starts_with(INDEX.as_bytes());
        if !of_index && !OURS.iter().any(|known| name == OsStr::new(known)) {
            found.get_or_insert_with(|| name.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Whether a name in the directory is one of a store's.
pub(super) fn is_known(name: &str) -> bool {
    name.starts_with(INDEX) || name.starts_with("lanes.json") || OURS.contains(&name)
}

/// Takes everybody else's rights to a directory of ours away.
fn tighten(dir: &Path) -> io::Result<()> {
    if std::fs::metadata(dir)?.permissions().mode() & 0o777 == MODE {
        return Ok(());
    }
    match std::fs::set_permissions(dir, Permissions::from_mode(MODE)) {
        // A volume whose root belongs to another user; the files in it are ours alone anyway.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            tracing::warn!(dir = %dir.display(), %error, "the data directory's mode can't be set");
            Ok(())
        }
        set => set,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::sim::SimDisk;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// On a disk that is not volatile, wherever the tests run.
    fn claim_here(dir: &Path) -> Result<DirectoryLock, OpenError> {
        let disk = Arc::new(SimDisk::default());
        claim(&Settings { disk, ..Settings::new(dir.to_owned()) })
    }

    #[test]
    fn what_is_made_is_for_its_owner_only_and_what_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o755);
        let dir = folder.path().join("a/b");
        drop(claim_here(&dir).unwrap());
        assert_eq!((mode(folder.path()), mode(&folder.path().join("a")), mode(&dir)), {
            (0o755, 0o700, 0o700)
        });
    }

    #[test]
    fn a_directory_of_ours_and_an_empty_one_are_tightened() {
        let fill: [fn(&Path); 4] = [
            |_| {},
            |dir| fs::create_dir(dir.join("lost+found")).unwrap(),
            |dir| fs::write(dir.join("lock"), "1\n").unwrap(),
            |dir| {
                fs::create_dir(dir.join("segments")).unwrap();
                fs::write(dir.join("notes.txt"), "the operator's").unwrap();
            },
        ];
        for fill in fill {
            let folder = tempfile::tempdir().unwrap();
            set_mode(folder.path(), 0o755);
            fill(folder.path());
            drop(claim_here(folder.path()).unwrap());
            assert_eq!(mode(folder.path()), 0o700);
        }
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_not_changed() {
        for name in ["passwd", "segments", "lock.d"] {
            let folder = tempfile::tempdir().unwrap();
            set_mode(folder.path(), 0o1777);
            fs::write(folder.path().join("lock"), "").unwrap();
            fs::write(folder.path().join(name), "").unwrap();
            fs::write(folder.path().join("zzz"), "").unwrap();
            let refused = claim_here(folder.path()).unwrap_err();
            assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
            assert_eq!(mode(folder.path()), 0o777);
            assert_eq!(fs::read(folder.path().join("lock")).unwrap(), b"");
        }
    }

    #[test]
    fn a_relative_directory_is_looked_for_where_we_are() {
        assert_eq!(nearest_existing(Path::new("no-such-folder/data")), Path::new("."));
        assert_eq!(nearest_existing(Path::new("src/no-such-folder/data")), Path::new("src"));
        let absolute = PathBuf::from("/no-such-folder/data");
        assert_eq!(nearest_existing(&absolute), Path::new("/"));
    }
}
