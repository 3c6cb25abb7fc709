//! The roots of clients' certificates: loaded at the start, and again when their file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::sync::watch;

use crate::config::Problem;
use crate::config::file::{self, FileRead};
use crate::net::tls::{self, Resolver, ServerTls, TlsError};

/// The largest bundles are a tenth of this.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// What was made of the file.
pub(super) type Outcome = Result<Arc<RootCertStore>, String>;

/// Reads the file, and says what was read.
pub(super) fn reader(path: PathBuf) -> impl FnMut() -> (Outcome, Vec<FileRead>) {
    move || {
        let (bytes, read) = file::read(&path, BYTES_MAX);
        (bytes.map_err(|error| said(&path, &error)).and_then(|pem| roots(&pem, &path)), vec![read])
    }
}

fn said(path: &Path, error: &file::ReadError) -> String {
    format!("{} {error}", path.display())
}

fn roots(pem: &[u8], path: &Path) -> Outcome {
    let name = path.display().to_string();
    tls::roots(pem, &name).map(Arc::new).map_err(|error| error.to_string())
}

/// What the listener is configured with, but for its certificates.
pub(super) struct Listening {
    pub(super) config: watch::Sender<Arc<ServerConfig>>,
    pub(super) resolver: Arc<Resolver>,
    /// Whether challenges are answered.
    pub(super) challenges: bool,
}

impl Listening {
    /// With these roots of clients, if any.
    pub(super) fn new(
        resolver: Arc<Resolver>,
        challenges: bool,
        client_roots: Option<Arc<RootCertStore>>,
    ) -> Result<Self, TlsError> {
        let settings = ServerTls { challenges, client_roots };
        let config = tls::server_config(Arc::clone(&resolver), &settings)?;
        Ok(Self { config: watch::Sender::new(config), resolver, challenges })
    }

    /// New connections have to show certificates of other roots. Their session tickets are sealed with
    /// another key: what a root that is gone has vouched for is not taken on a ticket's word.
    fn trust(&self, roots: Arc<RootCertStore>) -> Result<(), TlsError> {
        let settings = ServerTls { challenges: self.challenges, client_roots: Some(roots) };
        let config = tls::server_config(Arc::clone(&self.resolver), &settings)?;
        self.config.send_replace(config);
        Ok(())
    }
}

/// The roots in force.
pub(super) struct ClientCa {
    pub(super) listening: Listening,
    /// What they rest on.
    pub(super) in_force: Vec<FileRead>,
    pub(super) refused: Option<Refused>,
}

/// What could not be taken over.
pub(super) struct Refused {
    files: Vec<FileRead>,
    error: String,
}

impl ClientCa {
    /// Takes over a content that is at rest. Connections that are open keep what they have shown.
    pub(super) fn take(&mut self, outcome: Outcome, files: Vec<FileRead>, asked: bool) {
        let before = self.refused.take();
        let trust = |roots| self.listening.trust(roots).map_err(|error| error.to_string());
        match outcome.and_then(|roots| {
            if files == self.in_force { Ok(false) } else { trust(roots).map(|()| true) }
        }) {
            Ok(false) => {
                if before.is_some() {
                    tracing::info!("The roots of clients' certificates are as they are in force.");
                }
            }
            Ok(true) => {
                self.in_force = files;
                tracing::info!("New roots of clients' certificates are in force.");
            }
            Err(error) => {
                if asked || before.is_none_or(|before| before.files != files) {
                    tracing::error!(
                        error,
                        "The roots of clients' certificates can't be renewed: those from before are \
                         trusted."
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
        Some(Problem::of_file(file, &*refused.error).json())
    }
}
