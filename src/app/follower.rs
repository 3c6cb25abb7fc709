//! Follows the content of files: says when it is another and has come to rest.
//!
//! What counts is content, not events: files are looked at every [`LOOK_EVERY`] by what the system
//! knows of them, through all symlinks, and read when that has changed. Unlike notifications this
//! works on every file system, over a network as well, for a renamed file as for one written in
//! place and for the `..data` of Kubernetes, and costs some calls of `stat` a second. A write that
//! `stat` does not show (a second one within a tick of the file system's clock) is seen by
//! [`READ_EVERY`].
//!
//! A content is taken when two readings [`SETTLE`] apart agree on all the files: half a routes file
//! may be a good one with fewer routes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::file::FileRead;

/// Short enough that together with [`SETTLE`] what was saved is in force within a second.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What agrees over so long is not being written.
const SETTLE: Duration = Duration::from_millis(250);

/// How often files are read although nothing shows that they have changed.
const READ_EVERY: Duration = Duration::from_secs(10);

/// Readings in a row that did not agree, after which somebody should know.
const RESTLESS_AFTER: u32 = 20;

/// What the system knows of a file without reading it; none where there is no file.
type Stamp = Option<[u64; 7]>;

/// Makes something of files, and says which files that rests on.
type Read<T> = Box<dyn FnMut() -> (T, Vec<FileRead>) + Send>;

/// Follows some files, and what is made of them.
pub(super) struct Follower<T> {
    read: Read<T>,
    // As of the last content that was at rest, good or bad.
    known: Vec<FileRead>,
    stamps: Vec<Stamp>,
    read_at: Instant,
    candidate: Option<Candidate<T>>,
    readings: u32,
}

/// What has been read once.
struct Candidate<T> {
    made: T,
    files: Vec<FileRead>,
    settles_at: Instant,
}

/// What a look came to.
pub(super) enum Look<T> {
    /// Nothing is new.
    AtRest,
    /// Something is: look again then.
    Moving(Instant),
    /// Something was, or might have been, and this is what is there now.
    Settled(T, Vec<FileRead>),
}

impl<T> Follower<T> {
    /// Follows files that have been read just now.
    pub(super) fn new(
        known: Vec<FileRead>,
        read: impl FnMut() -> (T, Vec<FileRead>) + Send + 'static,
    ) -> Self {
        Self {
            read: Box::new(read),
            known,
            // Not of that reading: what changed since then must not be missed.
            stamps: Vec::new(),
            read_at: Instant::now(),
            candidate: None,
            readings: 0,
        }
    }

    /// Looks at the files, and reads them if there is reason to, which may take a while.
    pub(super) fn look(&mut self) -> Look<T> {
        match self.candidate.take() {
            Some(candidate) => self.confirm(candidate),
            None => {
                let stamps = stamps(&self.known);
                if stamps == self.stamps && Instant::now() < self.read_at + READ_EVERY {
                    return Look::AtRest;
                }
                // Taken before the files are read: what changes later is another stamp.
                self.stamps = stamps;
                self.read_at = Instant::now();
                if unchanged(&self.known) { Look::AtRest } else { self.begin() }
            }
        }
    }

    /// The same, and reads them in any case: what is at rest settles anew.
    pub(super) fn look_closely(&mut self) -> Look<T> {
        match self.candidate.take() {
            Some(candidate) => self.confirm(candidate),
            None => self.begin(),
        }
    }

    fn confirm(&mut self, candidate: Candidate<T>) -> Look<T> {
        let settles_at = candidate.settles_at;
        if Instant::now() < settles_at {
            self.candidate = Some(candidate);
            return Look::Moving(settles_at);
        }
        self.stamps = stamps(&candidate.files);
        self.read_at = Instant::now();
        if !unchanged(&candidate.files) {
            return self.begin();
        }
        self.readings = 0;
        self.known.clone_from(&candidate.files);
        Look::Settled(candidate.made, candidate.files)
    }

    fn begin(&mut self) -> Look<T> {
        self.readings += 1;
        if self.readings == RESTLESS_AFTER {
            let file = self.known.first().map(|file| file.path().display().to_string());
            tracing::warn!(file, "The file changes all the time: it is read when it rests.");
        }
        let (made, files) = (self.read)();
        let settles_at = Instant::now() + SETTLE;
        self.candidate = Some(Candidate { made, files, settles_at });
        Look::Moving(settles_at)
    }
}

fn stamps(files: &[FileRead]) -> Vec<Stamp> {
    files.iter().map(|file| stamp(file.path())).collect()
}

fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    let times = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
    let [mtime, mtime_nsec, ctime, ctime_nsec] = times.map(i64::cast_unsigned);
    Some([data.dev(), data.ino(), data.size(), mtime, mtime_nsec, ctime, ctime_nsec])
}

fn unchanged(files: &[FileRead]) -> bool {
    files.iter().all(|file| file.again() == *file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tempfile::TempDir;
    use tokio::time::advance;

    struct World {
        folder: TempDir,
        follower: Follower<Option<String>>,
        reads: Arc<AtomicUsize>,
    }

    impl World {
        fn new(content: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            fs::write(&path, content).unwrap();
            let reads = Arc::new(AtomicUsize::new(0));
            let (counter, followed) = (Arc::clone(&reads), path.clone());
            let follower = Follower::new(vec![file::read(&path, 100).1], move || {
                counter.fetch_add(1, Ordering::Relaxed);
                let (bytes, read) = file::read(&followed, 100);
                (bytes.ok().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()), vec![read])
            });
            Self { folder, follower, reads }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, content: &str) {
            fs::write(self.path("file"), content).unwrap();
        }

        /// Looks once, when the time for it has come.
        async fn look(&mut self) -> Look<Option<String>> {
            advance(LOOK_EVERY.max(SETTLE)).await;
            self.follower.look()
        }

        /// What has settled after two looks.
        async fn settled(&mut self) -> Option<Option<String>> {
            if let Look::Settled(..) = self.look().await {
                panic!("taken at once");
            }
            match self.look().await {
                Look::Settled(made, _) => Some(made),
                Look::AtRest | Look::Moving(_) => None,
            }
        }

        async fn is_at_rest(&mut self) -> bool {
            matches!(self.look().await, Look::AtRest)
        }
    }

    fn some(text: &str) -> Option<Option<String>> {
        Some(Some(text.to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_content_is_taken_by_the_second_reading_that_agrees() {
        let mut world = World::new("one");
        assert!(world.is_at_rest().await && world.is_at_rest().await);
        world.write("two");
        assert_eq!(world.settled().await, some("two"));
        assert!(world.is_at_rest().await);
        assert_eq!(world.reads.load(Ordering::Relaxed), 1, "made once of what was read once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_reading_too_soon_decides_nothing() {
        let mut world = World::new("one");
        world.write("two");
        assert!(matches!(world.look().await, Look::Moving(_)));
        advance(SETTLE - Duration::from_millis(1)).await;
        assert!(matches!(world.follower.look(), Look::Moving(_)));
        advance(Duration::from_millis(1)).await;
        assert!(matches!(world.follower.look(), Look::Settled(..)));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_file_is_never_taken() {
        let mut world = World::new("whole before");
        for half in ["ha", "half", "half of", "half of it"] {
            world.write(half);
            assert!(matches!(world.look().await, Look::Moving(_)), "{half}");
        }
        world.write("whole after");
        assert_eq!(world.settled().await, some("whole after"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_vanishes_for_a_moment_is_as_it_was() {
        let mut world = World::new("one");
        assert!(world.is_at_rest().await);
        fs::remove_file(world.path("file")).unwrap();
        assert!(matches!(world.look().await, Look::Moving(_)));
        world.write("one");
        assert_eq!(world.settled().await, some("one"), "which whoever asked sees is the same");
        fs::remove_file(world.path("file")).unwrap();
        assert_eq!(world.settled().await, Some(None));
        assert!(world.is_at_rest().await, "it stays away, and that is known");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_content_again_is_nothing_new() {
        let mut world = World::new("one");
        assert!(world.is_at_rest().await);
        world.write("one");
        assert!(world.is_at_rest().await);
        fs::write(world.path("other"), "one").unwrap();
        fs::rename(world.path("other"), world.path("file")).unwrap();
        assert!(world.is_at_rest().await);
        assert_eq!(world.reads.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn another_file_behind_a_symlink_is_another_content() {
        let mut world = World::new("one");
        fs::remove_file(world.path("file")).unwrap();
        for (folder, content) in [("a", "one"), ("b", "two")] {
            fs::create_dir(world.path(folder)).unwrap();
            fs::write(world.path(folder).join("file"), content).unwrap();
        }
        let swap = |world: &World, to: &str| {
            std::os::unix::fs::symlink(to, world.path("new")).unwrap();
            fs::rename(world.path("new"), world.path("..data")).unwrap();
        };
        swap(&world, "a");
        std::os::unix::fs::symlink("..data/file", world.path("file")).unwrap();
        assert!(world.is_at_rest().await);
        swap(&world, "b");
        assert_eq!(world.settled().await, some("two"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_stamp_shows_is_seen_by_reading_now_and_then() {
        let mut world = World::new("one");
        assert!(world.is_at_rest().await);
        world.write("two");
        // As if it had been written within a tick of the clock.
        world.follower.stamps = stamps(&world.follower.known);
        assert!(world.is_at_rest().await);
        advance(READ_EVERY).await;
        assert_eq!(world.settled().await, some("two"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_gets_what_is_there_even_if_nothing_is_new() {
        let mut world = World::new("one");
        assert!(world.is_at_rest().await);
        assert!(matches!(world.follower.look_closely(), Look::Moving(_)));
        advance(SETTLE).await;
        assert!(
            matches!(world.follower.look_closely(), Look::Settled(Some(one), _) if one == "one")
        );
    }
}
