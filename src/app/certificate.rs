//! The listener's certificates: loaded at the start, and again when their files change.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::app::TlsFiles;
use crate::config::Problem;
use crate::config::file::{self, FileRead, ReadError};
use crate::domain::time::{Clock, Timestamp};
use crate::net::tls::{self, LoadedCertificate, Names, Owner, Resolver, TlsError};
use crate::telemetry::metrics::Metrics;

/// The longest chains and the largest keys are a tenth of this.
const BYTES_MAX: usize = 1024 * 1024;

/// What was made of each pair of files.
pub(super) type Outcomes = Vec<Result<LoadedCertificate, TlsError>>;

/// The files of a pair.
const FILES: usize = 2;

/// Reads certificates and keys, and says what was read.
pub(super) fn reader(
    pairs: Vec<TlsFiles>,
    clock: Arc<dyn Clock>,
) -> impl FnMut() -> (Outcomes, Vec<FileRead>) {
    move || {
        let read = pairs.iter().map(|files| read(files, &*clock));
        let (outcomes, files): (Vec<_>, Vec<_>) = read.unzip();
        (outcomes, files.into_iter().flatten().collect())
    }
}

fn read(
    files: &TlsFiles,
    clock: &dyn Clock,
) -> (Result<LoadedCertificate, TlsError>, [FileRead; FILES]) {
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
    (load(), [of_certificate, of_key])
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

/// The certificates that new connections get.
pub(super) struct Certificates {
    pub(super) resolver: Arc<Resolver>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    pairs: Vec<Pair>,
}

/// One of them, and what its files came to last.
struct Pair {
    loaded: Arc<LoadedCertificate>,
    /// What it rests on.
    in_force: Vec<FileRead>,
    refused: Option<Refused>,
}

/// What could not be taken over.
struct Refused {
    files: Vec<FileRead>,
    error: TlsError,
}

impl Certificates {
    /// Puts in force what was read, all of which has to be good. What is to be warned about can wait.
    pub(super) fn new(
        outcomes: Outcomes,
        files: &[FileRead],
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, TlsError> {
        let mut pairs = Vec::with_capacity(outcomes.len());
        for (outcome, files) in outcomes.into_iter().zip(files.chunks(FILES)) {
            let loaded = Arc::new(outcome?);
            pairs.push(Pair { loaded, in_force: files.to_vec(), refused: None });
        }
        let certificates = Self { resolver: Arc::default(), clock, metrics, pairs };
        certificates.serve();
        Ok(certificates)
    }

    /// Takes over a content that is at rest: of each pair that is good. Connections that are open keep
    /// theirs.
    pub(super) fn take(&mut self, outcomes: Outcomes, files: &[FileRead], asked: bool) {
        let mut is_changed = false;
        let read = outcomes.into_iter().zip(files.chunks(FILES));
        for (pair, (outcome, files)) in self.pairs.iter_mut().zip(read) {
            is_changed |= pair.take(outcome, files, asked);
        }
        if is_changed {
            self.serve();
            self.warn();
        }
    }

    /// Says what senders may not like of those in force, and which of them are never shown.
    pub(super) fn warn(&self) {
        self.pairs.iter().for_each(|pair| pair.warn(&*self.clock));
        for clash in tls::clashes(&self.served()) {
            let file = |position: usize| self.pairs.get(position).map(Pair::name);
            tracing::warn!(
                host = clash.host,
                served = file(clash.served),
                ignored = file(clash.ignored),
                "Two certificates are for one name: the first is served."
            );
        }
    }

    fn served(&self) -> Vec<Arc<LoadedCertificate>> {
        self.pairs.iter().map(|pair| Arc::clone(&pair.loaded)).collect()
    }

    fn serve(&self) {
        let served = self.served();
        let shown: Vec<_> = served.iter().map(|loaded| (&*loaded.names, end_of(loaded))).collect();
        self.metrics.certificates(&shown);
        self.resolver.replace(Owner::Files, served);
    }

    /// What is wrong with what is there, as the API says it.
    pub(super) fn problems(&self) -> Vec<Value> {
        self.pairs.iter().filter_map(Pair::problem).collect()
    }
}

impl Pair {
    /// Takes over its files, if they are good and new; answers whether they were.
    fn take(
        &mut self,
        outcome: Result<LoadedCertificate, TlsError>,
        files: &[FileRead],
        asked: bool,
    ) -> bool {
        let before = self.refused.take();
        match outcome {
            Ok(_) if files == self.in_force => {
                if before.is_some() {
                    tracing::info!(
                        file = self.name(),
                        "The listener's certificate and key are as they are in force."
                    );
                }
                false
            }
            Ok(loaded) => {
                self.in_force = files.to_vec();
                let not_after = end_of(&loaded);
                tracing::info!(names = loaded.names, %not_after, "A new certificate is in force.");
                self.loaded = Arc::new(loaded);
                true
            }
            Err(error) => {
                if asked || before.is_none_or(|before| before.files != files) {
                    tracing::error!(
                        %error,
                        "The listener's certificate can't be renewed: the one from before is served."
                    );
                }
                self.refused = Some(Refused { files: files.to_vec(), error });
                false
            }
        }
    }

    /// Says what senders may not like of it.
    fn warn(&self, clock: &dyn Clock) {
        let now = i64::try_from(clock.wall().as_secs()).unwrap_or(i64::MAX);
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

    fn problem(&self) -> Option<Value> {
        let refused = self.refused.as_ref()?;
        let file = refused.files.first()?.path();
        Some(Problem::of_file(file, refused.error.to_string()).json())
    }

    /// The certificate's file.
    fn name(&self) -> String {
        let first = self.in_force.first();
        first.map(|file| file.path().display().to_string()).unwrap_or_default()
    }
}
