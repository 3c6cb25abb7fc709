//! The listener's certificates: loaded at the start, and again when their files change. Where several are
//! named, one that has expired or is broken stops no start, for that would lose the webhooks of all others.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::TlsFiles;
use crate::app::followed::{Followed, Held, Reading};
use crate::config::file::{self, ReadError};
use crate::domain::renewal::Validity;
use crate::domain::time::{Clock, Timestamp};
use crate::net::tls::{self, Clash, Doubt, LoadedCertificate, Names, Owner, Resolver, TlsError};
use crate::telemetry::metrics::{Metrics, SavedFile};

/// The longest chains and the largest keys are a tenth of this.
const BYTES_MAX: usize = 1024 * 1024;

/// Reads a certificate and its key, and says what was read.
fn read(files: &TlsFiles, clock: &dyn Clock) -> Reading<Pair> {
    let (certificate, of_certificate) = file::read(&files.certificate, BYTES_MAX);
    let (key, of_key) = file::read(&files.key, BYTES_MAX);
    let now = i64::try_from(clock.wall().as_secs()).unwrap_or(i64::MAX);
    let load = || {
        let certificate = certificate.map_err(|error| unreadable(&files.certificate, error))?;
        let key = key.map_err(|error| unreadable(&files.key, error))?;
        let names = [&files.certificate, &files.key].map(|path| path.display().to_string());
        let names = Names { certificate: &names[0], key: &names[1] };
        tls::load_certificate(&certificate, &key, names, now)
    };
    (load(), vec![of_certificate, of_key])
}

fn unreadable(path: &Path, error: ReadError) -> TlsError {
    let name = path.display().to_string();
    match error {
        ReadError::Missing(_) => TlsError::Missing { name },
        ReadError::Unreadable(reason) => {
            TlsError::Unreadable { name, reason: std::io::Error::other(reason) }
        }
        other @ (ReadError::NotAFile | ReadError::TooLarge(_)) => {
            TlsError::Unreadable { name, reason: std::io::Error::other(format!("it {other}")) }
        }
    }
}

fn moment(unix: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(unix).unwrap_or(0).saturating_mul(1000))
}

/// From when until when it is good itself.
pub(super) fn validity(loaded: &LoadedCertificate) -> Validity {
    let LoadedCertificate { not_before_unix, not_after_unix, .. } = loaded;
    Validity { not_before: moment(*not_before_unix), not_after: moment(*not_after_unix) }
}

/// From when until when senders accept it: no longer than what it needs of its chain.
pub(super) fn accepted(loaded: &LoadedCertificate) -> Validity {
    Validity { not_after: moment(loaded.chain.not_after_unix), ..validity(loaded) }
}

/// The certificates that new connections get, in the order in which they were named.
struct Served {
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    files: Vec<TlsFiles>,
    /// One for each of the files, or none where they can't be used yet.
    loaded: Mutex<Vec<Option<Arc<LoadedCertificate>>>>,
}

impl Served {
    /// Puts one in its place; connections that are open keep theirs.
    fn put(&self, position: usize, certificate: Arc<LoadedCertificate>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = loaded.get_mut(position) {
            *place = Some(certificate);
        }
        let in_force: Vec<_> = loaded.iter().flatten().map(Arc::clone).collect();
        let shown: Vec<_> =
            in_force.iter().map(|loaded| (&*loaded.names, accepted(loaded))).collect();
        self.metrics.certificates(&shown);
        self.resolver.replace(Owner::Files, in_force);
    }

    /// Says which are never shown for a name, as far as that is `wanted` of their positions.
    fn warn(&self, wanted: impl Fn([usize; 2]) -> bool) {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (positions, loaded): (Vec<_>, Vec<_>) = loaded
            .into_iter()
            .enumerate()
            .filter_map(|(position, loaded)| Some((position, loaded?)))
            .unzip();
        let file = |position: usize| self.files.get(position).map(name);
        let position = |of: usize| positions.get(of).copied().unwrap_or(usize::MAX);
        for Clash { host, served, ignored } in tls::clashes(&loaded) {
            let [served, ignored] = [served, ignored].map(position);
            if wanted([served, ignored]) {
                tracing::warn!(
                    host,
                    served = file(served),
                    ignored = file(ignored),
                    "Two certificates are for one name: the first is served."
                );
            }
        }
    }
}

/// The certificates of files, each of which is renewed by itself.
pub(super) struct Certificates {
    pub(super) resolver: Arc<Resolver>,
    pub(super) pairs: Vec<Followed<Pair>>,
}

/// One of them.
pub(super) struct Pair {
    position: usize,
    served: Arc<Served>,
    /// None before its files could be used for the first time.
    loaded: Option<Arc<LoadedCertificate>>,
    clock: Arc<dyn Clock>,
}

impl Certificates {
    /// Puts in force what is good in these files, and tells all that is wrong where nothing is, or where
    /// a file is not there: its name was typed wrong, and whoever did that is here now. What is to be
    /// said of the others can wait.
    pub(super) fn load(
        files: &[TlsFiles],
        clock: &Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Vec<TlsError>> {
        let readings: Vec<_> = files.iter().map(|files| read(files, &**clock)).collect();
        let is_missing = |error: &TlsError| matches!(error, TlsError::Missing { .. });
        let outcomes = || readings.iter().map(|(outcome, _)| outcome.as_ref());
        if outcomes().all(|outcome| outcome.is_err())
            || outcomes().filter_map(Result::err).any(is_missing)
        {
            return Err(readings.into_iter().filter_map(|(outcome, _)| outcome.err()).collect());
        }
        let resolver = Arc::<Resolver>::default();
        let served = Arc::new(Served {
            resolver: Arc::clone(&resolver),
            metrics,
            files: files.to_vec(),
            loaded: Mutex::new(vec![None; files.len()]),
        });
        let pairs = readings.into_iter().zip(files).enumerate();
        let pairs = pairs.map(|(position, ((outcome, read_files), files))| {
            let (loaded, refused) = match outcome {
                Ok(loaded) => (Some(Arc::new(loaded)), None),
                Err(error) => (None, Some(error)),
            };
            if let Some(loaded) = &loaded {
                served.put(position, Arc::clone(loaded));
            }
            let (files, now) = (files.clone(), Arc::clone(clock));
            let (served, clock) = (Arc::clone(&served), Arc::clone(clock));
            let pair = Pair { position, served, loaded, clock };
            Followed::follow(pair, refused, read_files, move || read(&files, &*now))
        });
        Ok(Self { pairs: pairs.collect(), resolver })
    }

    /// Says which can't be used, what senders may not like of the others, and which of those are never
    /// shown.
    pub(super) fn warn(&self) {
        self.pairs.iter().for_each(Followed::say_refused);
        self.pairs.iter().for_each(|pair| pair.held.warn());
        if let Some(pair) = self.pairs.first() {
            pair.held.served.warn(|_| true);
        }
    }
}

impl Held for Pair {
    type Content = LoadedCertificate;
    type Error = TlsError;

    fn put_in_force(&mut self, loaded: LoadedCertificate) -> Result<(), TlsError> {
        let loaded = Arc::new(loaded);
        self.loaded = Some(Arc::clone(&loaded));
        self.served.put(self.position, Arc::clone(&loaded));
        let (names, not_after) = (&loaded.names, validity(&loaded).not_after);
        tracing::info!(names, %not_after, "A new certificate is in force.");
        self.warn();
        self.served.warn(|positions| positions.contains(&self.position));
        Ok(())
    }

    fn say_unchanged(&self) {
        tracing::info!(
            file = self.name(),
            "The listener's certificate and key are as they are in force."
        );
    }

    fn say_refused(&self, error: &TlsError) {
        if self.loaded.is_some() {
            tracing::error!(
                %error,
                "The listener's certificate can't be renewed: the one from before is served."
            );
            return;
        }
        tracing::error!(
            %error,
            "The listener serves without it: senders that ask for its names are shown another \
             certificate and refuse it. Mend the files of --tls-cert and --tls-key, which are taken \
             within a second, or take the pair out before the next start."
        );
    }

    fn show_refused(&self, is_refused: bool) {
        self.served.metrics.file_refused(SavedFile::Certificate, is_refused);
    }
}

impl Pair {
    /// Says what senders may not like of it.
    fn warn(&self) {
        let now = i64::try_from(self.clock.wall().as_secs()).unwrap_or(i64::MAX);
        let Some(loaded) = &self.loaded else { return };
        let names = &loaded.names;
        if loaded.not_before_unix > now {
            tracing::warn!(names, "The certificate is not valid yet.");
        }
        for Doubt { subject, flaw } in &loaded.chain.doubts {
            tracing::warn!(
                file = self.name(),
                names,
                subject,
                %flaw,
                "Senders may refuse the certificate for its chain, all of which Aryeo verifies."
            );
        }
    }

    fn name(&self) -> Option<String> {
        self.served.files.get(self.position).map(name)
    }
}

/// The certificate's file.
fn name(files: &TlsFiles) -> String {
    files.certificate.display().to_string()
}
