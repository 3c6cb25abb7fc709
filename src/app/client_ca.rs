//! The roots of clients' certificates: loaded at the start, and again when their file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;

use crate::app::followed::{Held, Reading};
use crate::config::file;
use crate::net::tls::{self, Resolver, ServerTls, TlsError};
use crate::telemetry::metrics::{Metrics, SavedFile};

/// The largest bundles are a tenth of this.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// Reads the file, and says what was read.
pub(super) fn reader(path: PathBuf) -> impl FnMut() -> Reading<Listening> {
    move || {
        let (bytes, read) = file::read(&path, BYTES_MAX);
        (bytes.map_err(|error| said(&path, &error)).and_then(|pem| roots(&pem, &path)), vec![read])
    }
}

fn said(path: &Path, error: &file::ReadError) -> String {
    format!("{} {error}", path.display())
}

fn roots(pem: &[u8], path: &Path) -> Result<Arc<RootCertStore>, String> {
    let name = path.display().to_string();
    tls::roots(pem, &name).map(Arc::new).map_err(|error| error.to_string())
}

/// What the listener is configured with, but for its certificates.
pub(super) struct Listening {
    pub(super) config: watch::Sender<Arc<ServerConfig>>,
    resolver: Arc<Resolver>,
    /// Whether challenges are answered.
    challenges: bool,
    metrics: Arc<Metrics>,
}

impl Listening {
    /// With these roots of clients, if any.
    pub(super) fn new(
        resolver: Arc<Resolver>,
        challenges: bool,
        client_roots: Option<Arc<RootCertStore>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, TlsError> {
        let settings = ServerTls { challenges, client_roots };
        let config = tls::server_config(Arc::clone(&resolver), &settings)?;
        Ok(Self { config: watch::Sender::new(config), resolver, challenges, metrics })
    }
}

impl Held for Listening {
    type Content = Arc<RootCertStore>;
    type Error = String;

    /// New connections have to show certificates of other roots, and those that are open keep what they
    /// have shown. Session tickets are sealed with another key: what a root that is gone has vouched for
    /// is not taken on a ticket's word.
    fn put_in_force(&mut self, roots: Arc<RootCertStore>) -> Result<(), String> {
        let settings = ServerTls { challenges: self.challenges, client_roots: Some(roots) };
        let config = tls::server_config(Arc::clone(&self.resolver), &settings);
        self.config.send_replace(config.map_err(|error| error.to_string())?);
        tracing::info!("New roots of clients' certificates are in force.");
        Ok(())
    }

    fn say_unchanged(&self) {
        tracing::info!("The roots of clients' certificates are as they are in force.");
    }

    fn say_refused(&self, error: &String) {
        tracing::error!(
            error,
            "The roots of clients' certificates can't be renewed: those from before are trusted."
        );
    }

    fn show_refused(&self, is_refused: bool) {
        self.metrics.file_refused(SavedFile::ClientCa, is_refused);
    }
}
