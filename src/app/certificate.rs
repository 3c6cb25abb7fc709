//! The listener's certificates: loaded at the start, and again when their files change.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::TlsFiles;
use crate::app::followed::{Followed, Held, Reading};
use crate::config::file::{self, ReadError};
use crate::domain::time::{Clock, Timestamp};
use crate::net::tls::{self, Clash, LoadedCertificate, Names, Owner, Resolver, TlsError};
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

fn end_of(loaded: &LoadedCertificate) -> Timestamp {
    let secs = u64::try_from(loaded.not_after_unix).unwrap_or(0);
    Timestamp::from_millis(secs.saturating_mul(1000))
}

/// The certificates that new connections get, in the order in which they were named.
struct Served {
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    files: Vec<TlsFiles>,
    loaded: Mutex<Vec<Arc<LoadedCertificate>>>,
}

impl Served {
    /// Puts one in its place, or behind all others; connections that are open keep theirs.
    fn put(&self, position: usize, certificate: Arc<LoadedCertificate>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded.get_mut(position) {
            Some(place) => *place = certificate,
            None => loaded.push(certificate),
        }
        let shown: Vec<_> = loaded.iter().map(|loaded| (&*loaded.names, end_of(loaded))).collect();
        self.metrics.certificates(&shown);
        self.resolver.replace(Owner::Files, loaded.clone());
    }

    /// Says which are never shown for a name, as far as that is `wanted`.
    fn warn(&self, wanted: impl Fn(&Clash) -> bool) {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = |position: usize| self.files.get(position).map(name);
        for clash in tls::clashes(&loaded).into_iter().filter(wanted) {
            tracing::warn!(
                host = clash.host,
                served = file(clash.served),
                ignored = file(clash.ignored),
                "Two certificates are for one name: the first is served."
            );
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
    loaded: Arc<LoadedCertificate>,
    clock: Arc<dyn Clock>,
}

impl Certificates {
    /// Puts in force what is in these files, all of which has to be good. What is to be warned about can
    /// wait.
    pub(super) fn load(
        files: &[TlsFiles],
        clock: &Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, TlsError> {
        let resolver = Arc::<Resolver>::default();
        let served = Arc::new(Served {
            resolver: Arc::clone(&resolver),
            metrics,
            files: files.to_vec(),
            loaded: Mutex::default(),
        });
        let pairs = files.iter().enumerate().map(|(position, files)| {
            let (files, now) = (files.clone(), Arc::clone(clock));
            Followed::begin(
                move || read(&files, &*now),
                |outcome| {
                    let (served, clock) = (Arc::clone(&served), Arc::clone(clock));
                    let loaded = Arc::new(outcome?);
                    served.put(position, Arc::clone(&loaded));
                    Ok(Pair { position, served, loaded, clock })
                },
            )
        });
        Ok(Self { pairs: pairs.collect::<Result<_, TlsError>>()?, resolver })
    }

    /// Says what senders may not like of those in force, and which of them are never shown.
    pub(super) fn warn(&self) {
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
        self.loaded = Arc::new(loaded);
        self.served.put(self.position, Arc::clone(&self.loaded));
        let (names, not_after) = (&self.loaded.names, end_of(&self.loaded));
        tracing::info!(names, %not_after, "A new certificate is in force.");
        self.warn();
        self.served.warn(|clash| [clash.served, clash.ignored].contains(&self.position));
        Ok(())
    }

    fn say_unchanged(&self) {
        tracing::info!(
            file = self.name(),
            "The listener's certificate and key are as they are in force."
        );
    }

    fn say_refused(&self, error: &TlsError) {
        tracing::error!(
            %error,
            "The listener's certificate can't be renewed: the one from before is served."
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
        let names = &self.loaded.names;
        if self.loaded.not_before_unix > now {
            tracing::warn!(names, "The certificate is not valid yet.");
        }
        if let Some(issuer) = &self.loaded.issuer_missing {
            tracing::warn!(
                file = self.name(),
                names,
                issuer,
                "The certificate's issuer does not follow it in the file: senders that do not trust just \
                 that issuer refuse it, as Aryeo verifies the whole chain. Append the intermediate \
                 certificates."
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
