//! The listener's certificate: loaded at the start, and again when its files change.

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

/// What was made of the files.
pub(super) type Outcome = Result<LoadedCertificate, TlsError>;

/// Reads certificate and key, and says what was read.
pub(super) fn reader(
    files: TlsFiles,
    clock: Arc<dyn Clock>,
) -> impl FnMut() -> (Outcome, Vec<FileRead>) {
    move || read(&files, &*clock)
}

fn read(files: &TlsFiles, clock: &dyn Clock) -> (Outcome, Vec<FileRead>) {
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

/// Says which certificate is served, and until when.
pub(super) fn show(loaded: &LoadedCertificate, clock: &dyn Clock, metrics: &Metrics) {
    let now = i64::try_from(clock.wall().as_secs()).unwrap_or(i64::MAX);
    if loaded.not_before_unix > now {
        tracing::warn!(names = loaded.names, "The certificate is not valid yet.");
    }
    metrics.certificate(&loaded.names, end_of(loaded));
}

fn end_of(loaded: &LoadedCertificate) -> Timestamp {
    let secs = u64::try_from(loaded.not_after_unix).unwrap_or(0);
    Timestamp::from_millis(secs.saturating_mul(1000))
}

/// The certificate that new connections get.
pub(super) struct Certificates {
    pub(super) resolver: Arc<Resolver>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    /// What the one in force rests on.
    pub(super) in_force: Vec<FileRead>,
    pub(super) refused: Option<Refused>,
}

/// What could not be taken over.
pub(super) struct Refused {
    files: Vec<FileRead>,
    error: TlsError,
}

impl Certificates {
    /// Takes over a content that is at rest. Connections that are open keep theirs.
    pub(super) fn take(&mut self, outcome: Outcome, files: Vec<FileRead>, asked: bool) {
        let before = self.refused.take();
        match outcome {
            Ok(_) if files == self.in_force => {
                if before.is_some() {
                    tracing::info!("The listener's certificate and key are as they are in force.");
                }
            }
            Ok(loaded) => {
                self.in_force = files;
                show(&loaded, &*self.clock, &self.metrics);
                let not_after = end_of(&loaded);
                tracing::info!(names = loaded.names, %not_after, "A new certificate is in force.");
                self.resolver.replace(Owner::Files, vec![Arc::new(loaded)]);
            }
            Err(error) => {
                if asked || before.is_none_or(|before| before.files != files) {
                    tracing::error!(
                        %error,
                        "The listener's certificate can't be renewed: the one from before is served."
                    );
                }
                self.refused = Some(Refused { files, error });
            }
        }
    }

    /// What is wrong with what is there, as the API says it.
    pub(super) fn problem(&self) -> Option<Value> {
        let refused = self.refused.as_ref()?;
        let file = refused.files.first()?.path();
        Some(Problem::of_file(file, refused.error.to_string()).json())
    }
}
