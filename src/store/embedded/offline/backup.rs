//! A copy of a directory that a relay can start with: whole under its name, or not there.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, DirEntry, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use serde_json::{Value, json};

use crate::store::embedded::directory::{self, MODE, parent};
use crate::store::embedded::marks;
use crate::store::embedded::offline::{Found, Offline, Refused, Scratch};

const CHUNK: usize = 1 << 20;
// What a disk fails to read is no smaller.
const BLOCK: usize = 4096;

/// What was copied.
#[derive(Debug)]
pub struct Report {
    /// All of it, as programs read it.
    pub json: Value,
    /// Whether nothing in it is damaged.
    pub is_good: bool,
}

/// A file's ranges that were ever written.
struct Source {
    file: File,
    to: PathBuf,
    length: u64,
    ranges: Vec<(u64, u64)>,
}

/// Copies a directory on the machine's disk into one that is empty or not there.
pub fn backup(dir: &Path, to: &Path) -> Result<Report, Refused> {
    let offline = Offline::open(dir)?;
    let target = |why: String| Refused::Target { to: to.to_owned(), why };
    may_take(dir, to).map_err(target)?;
    let parent = parent(to);
    let failed = |error: io::Error| target(error.to_string());
    directory::create(parent).map_err(failed)?;
    let before = Seen::of(&offline)?;
    let sources = sources(&offline).map_err(|(path, source)| Refused::Io { path, source })?;
    let bytes: u64 = sources.iter().flat_map(|source| &source.ranges).map(|range| range.1).sum();
    let free = rustix::fs::statvfs(parent).map_err(|error| failed(error.into()))?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    if bytes > free {
        return Err(target(format!("it needs {bytes} bytes and {free} are free")));
    }
    // Removed again, whatever goes wrong before it has its name.
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.partial-");
    let mut new = tempfile::Builder::new();
    new.prefix(&prefix).permissions(Permissions::from_mode(MODE));
    let new = new.tempdir_in(parent).map_err(failed)?;
    let mut unread = 0;
    for folder in folders(&sources) {
        DirBuilder::new().mode(MODE).create(new.path().join(folder)).map_err(failed)?;
    }
    for source in &sources {
        unread += source.copy(new.path()).map_err(failed)?;
    }
    for made in folders(&sources).into_iter().rev().chain([Path::new("")]) {
        File::open(new.path().join(made)).and_then(|made| made.sync_all()).map_err(failed)?;
    }
    let after = Seen::of(&Offline::open(new.path())?)?;
    if unread == 0 && after != before {
        return Err(target(format!("the copy is not the same: {after:?} instead of {before:?}")));
    }
    std::fs::rename(new.path(), to).map_err(failed)?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
    let is_good = before.damaged == 0 && unread == 0;
    let json = json!({
        "data": dir.display().to_string(), "to": to.display().to_string(),
        "good": is_good, "files": sources.len(), "bytes": bytes,
        "records": before.records, "webhooks": before.webhooks, "pending": before.pending,
        "damaged": before.damaged, "unreadable_bytes": unread,
    });
    Ok(Report { json, is_good })
}

/// Whether a place is empty, and not inside what is copied.
fn may_take(dir: &Path, to: &Path) -> Result<(), String> {
    let parent = parent(to);
    if to.file_name().is_none() {
        return Err("it has no name of its own".to_owned());
    }
    let real = |path: &Path| path.canonicalize().map_err(|error| error.to_string());
    let place = parent.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    if real(place)?.starts_with(real(dir)?) {
        return Err("it is inside the data directory".to_owned());
    }
    match std::fs::read_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err("it is not empty".to_owned()),
        },
    }
}

/// What a start would find.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    records: u64,
    bytes: u64,
    webhooks: u64,
    pending: u64,
    damaged: u64,
    torn: u64,
}

impl Seen {
    /// Made from the log alone: the index is not copied.
    fn of(offline: &Offline) -> Result<Self, Refused> {
        let mut scratch = offline.scratch(true)?;
        let Found { kinds, flaws_count, torn_count, .. } = offline.scan(&mut scratch)?;
        let Scratch { made, .. } = &scratch;
        let counts = made.as_ref().and_then(|made| made.counts().ok()).unwrap_or_default();
        let extent = made.as_ref().and_then(|made| made.extent().ok());
        Ok(Self {
            records: kinds.values().map(|tally| tally.records).sum(),
            bytes: kinds.values().map(|tally| tally.bytes).sum(),
            webhooks: extent.map_or(0, |extent| extent.webhooks),
            pending: counts.iter().filter(|count| count.cause.is_none()).map(|c| c.n).sum(),
            damaged: flaws_count,
            torn: torn_count,
        })
    }
}

/// The folders of these files, each after the one that it is in.
fn folders(sources: &[Source]) -> BTreeSet<&Path> {
    let of_files = sources.iter().flat_map(|source| source.to.ancestors().skip(1));
    let named = of_files.filter(|path| !path.as_os_str().is_empty());
    named.chain([Path::new("segments")]).collect()
}

/// The segments, their marks and the lanes' file; and what others keep there that a start elsewhere
/// can't do without.
fn sources(offline: &Offline) -> Result<Vec<Source>, (PathBuf, io::Error)> {
    let folder = offline.dir.join("segments");
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|error| (folder.clone(), error))? {
        let entry = entry.map_err(|error| (folder.clone(), error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = name.ends_with(".log") || name.ends_with(".doubtful");
        let number = name.split('.').next().and_then(|stem| stem.parse().ok());
        if is_ours && number.is_some_and(|number| offline.log.exists(number)) {
            names.push(Path::new("segments").join(name));
        }
    }
    names.sort();
    names.push(marks::FILE.into());
    names.extend(of_authorities(&offline.dir)?);
    let mut sources = Vec::new();
    for name in names {
        let path = offline.dir.join(&name);
        match Source::open(&path, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            source => sources.push(source.map_err(|error| (path, error))?),
        }
    }
    Ok(sources)
}

/// Accounts at certificate authorities, and the certificates that those gave with their keys: without
/// them nobody could connect to a relay that is restored before it has got others.
fn of_authorities(dir: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut names = Vec::new();
    for folder in entries(dir, Path::new(directory::AUTHORITIES))? {
        if !dir.join(&folder).is_dir() {
            continue;
        }
        // What is beside its name was being written.
        let is_whole = |name: &PathBuf| {
            dir.join(name).is_file() && name.extension().is_none_or(|end| end != "new")
        };
        names.extend(entries(dir, &folder)?.into_iter().filter(is_whole));
    }
    Ok(names)
}

/// What is in a folder, if it is there.
fn entries(dir: &Path, folder: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let failed = |error| (dir.join(folder), error);
    let entries = match std::fs::read_dir(dir.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let name = |entry: io::Result<DirEntry>| entry.map(|entry| folder.join(entry.file_name()));
    entries.map(name).collect::<Result<_, _>>().map_err(failed)
}

impl Source {
    fn open(path: &Path, to: PathBuf) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < length {
            let (Ok(from), Ok(upto)) = (
                rustix::fs::seek(&file, SeekFrom::Data(at)),
                rustix::fs::seek(&file, SeekFrom::Data(at))
                    .and_then(|from| rustix::fs::seek(&file, SeekFrom::Hole(from))),
            ) else {
                // Nothing more was written, or the file system does not know.
                if !is_hole(&file, at) {
                    ranges.push((at, length - at));
                }
                break;
            };
            ranges.push((from, upto.min(length) - from));
            at = upto;
        }
        Ok(Self { file, to, length, ranges })
    }

    /// Copies what was written; how many bytes could not be read, which are zero in the copy.
    fn copy(&self, dir: &Path) -> io::Result<u64> {
        let mut options = OpenOptions::new();
        let mut to = options.write(true).create_new(true).mode(0o600).open(dir.join(&self.to))?;
        to.set_len(self.length)?;
        let mut unread = 0;
        let mut chunk = vec![0; CHUNK];
        for (from, bytes) in &self.ranges {
            let mut at = *from;
            while at < from + bytes {
                let left = usize::try_from(from + bytes - at).unwrap_or(CHUNK).min(CHUNK);
                let Some(part) = chunk.get_mut(..left) else { break };
                match self.file.read_exact_at(part, at) {
                    Ok(()) => to.write_all_at(part, at)?,
                    Err(_) => unread += self.copy_around(&to, at, left)?,
                }
                at += left as u64;
            }
        }
        to.flush()?;
        to.sync_all()?;
        Ok(unread)
    }

    fn copy_around(&self, to: &File, from: u64, bytes: usize) -> io::Result<u64> {
        let mut unread = 0;
        let mut block = [0; BLOCK];
        for at in (0..bytes).step_by(BLOCK) {
            let place = from + at as u64;
            let Some(part) = block.get_mut(..BLOCK.min(bytes - at)) else { break };
            match self.file.read_exact_at(part, place) {
                Ok(()) => to.write_all_at(part, place)?,
                Err(_) => unread += part.len() as u64,
            }
        }
        Ok(unread)
    }
}

fn is_hole(file: &File, at: u64) -> bool {
    rustix::fs::seek(file, SeekFrom::Data(at)) == Err(rustix::io::Errno::NXIO)
}
