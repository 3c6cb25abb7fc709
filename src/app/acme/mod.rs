//! The listener's certificate, got and renewed from an authority.
//!
//! [`keeper`] decides when, [`files`] keeps what came, and here is what is done each time.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admin::readiness::Readiness;
use crate::app::acme::files::{Files, StoredAccount};
use crate::app::acme::keeper::{Failed, Issuer, Keeper};
use crate::app::certificate::{accepted, validity};
use crate::domain::renewal::{Failure, Validity};
use crate::domain::time::Clock;
use crate::net::acme::{Account, AcmeError, Authority, Issued};
use crate::net::tls::{self, LoadedCertificate, Names, Owner, Resolver, TlsError};
use crate::telemetry::metrics::Metrics;

mod files;
mod keeper;

/// The directory of Let's Encrypt, whose certificates everybody accepts.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Its staging: nobody accepts its certificates, and its limits are hard to reach.
pub const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// What is ordered, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The names that the certificate is for: at least one.
    pub domains: Vec<String>,
    /// Whom the authority may write to, as `mailto:` addresses.
    pub contact: Vec<String>,
    /// The address of the authority's directory.
    pub directory: String,
    /// Roots of the authority's own certificate, PEM; the system's without.
    pub ca: Option<PathBuf>,
}

/// What it works with.
pub(super) struct Parts<'a> {
    pub(super) data: &'a Path,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) resolver: Arc<Resolver>,
}

/// The listener's certificate from an authority: what is kept of it is in force, and the rest comes when
/// it runs.
pub(super) struct Acme {
    keeper: Keeper<AtAuthority>,
}

impl Acme {
    /// Reads what is kept, and asks nobody anything yet.
    pub(super) fn prepare(settings: &AcmeSettings, parts: Parts<'_>) -> anyhow::Result<Self> {
        let Parts { data, clock, metrics, readiness, resolver } = parts;
        let roots = settings.ca.as_ref().map(|path| {
            std::fs::read(path).with_context(|| format!("--acme-ca: {}", path.display()))
        });
        let authority = Authority::new(&settings.directory, roots.transpose()?.as_deref())
            .context("the authority (--acme-directory, --acme-ca)")?;
        readiness.without_certificate(true);
        let issuer = AtAuthority {
            settings: settings.clone(),
            authority,
            files: Files::of(data, &settings.directory),
            clock: Arc::clone(&clock),
            metrics,
            readiness,
            resolver,
        };
        let (mut held, mut is_fit) = (None, false);
        if let Some(loaded) = kept(&issuer.files, &*clock) {
            (held, is_fit) = (Some(validity(&loaded)), fits(&loaded, &settings.domains));
            issuer.put_in_force(loaded);
        }
        let keeper = Keeper {
            issuer,
            clock,
            random: || fastrand::u64(..),
            held,
            fits: is_fit,
            now: Arc::default(),
        };
        Ok(Self { keeper })
    }

    /// Notified, it does not wait any longer after a failure.
    pub(super) fn now(&self) -> Arc<Notify> {
        Arc::clone(&self.keeper.now)
    }

    /// Says whose certificate is awaited, and what the authority has to reach for it.
    pub(super) fn announce(&self, listener: SocketAddr) {
        let AcmeSettings { domains, directory, .. } = &self.keeper.issuer.settings;
        let (domains, port) = (domains.join(", "), listener.port());
        match self.keeper.held {
            Some(Validity { not_after, .. }) => tracing::info!(
                domains, directory, %not_after,
                "The certificate that the authority gave is in force; it is renewed by itself."
            ),
            None => tracing::info!(
                domains,
                directory,
                "There is no certificate yet: senders can't connect before the authority gives one."
            ),
        }
        if port != 443 {
            tracing::info!(
                domains,
                port,
                "The authority connects to port 443 of each domain, and the listener is at another one: \
                 forward TCP port 443 to it as it is, TLS and all. On this machine, for example: \
                 `nft add rule ip nat prerouting tcp dport 443 redirect to :{port}`; for a container: \
                 `-p 443:{port}`."
            );
        }
    }

    /// Sees to it that there is a good certificate, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        self.keeper.run(stop).await;
    }
}

/// What was kept, if it can be served.
fn kept(files: &Files, clock: &dyn Clock) -> Option<LoadedCertificate> {
    let path = files.certificate_path().display().to_string();
    let text = match files.certificate() {
        Ok(text) => text?,
        Err(error) => {
            tracing::warn!(%error, path, "The certificate that is kept can't be read.");
            return None;
        }
    };
    match load(&text, &text, &path, clock) {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            tracing::warn!(%error, "The certificate that is kept can't be served: another one is got.");
            None
        }
    }
}

/// Orders from an authority, and keeps what comes in the data directory.
struct AtAuthority {
    settings: AcmeSettings,
    authority: Authority,
    files: Files,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    resolver: Arc<Resolver>,
}

impl Issuer for AtAuthority {
    async fn issue(&mut self) -> Result<Validity, Failed> {
        self.with_files(Files::try_room)
            .await
            .context("the data directory takes no certificate")
            .map_err(Failed::here)?;
        let issued = self.order().await?;
        let loaded = self.checked(&issued).map_err(|error| self.failed(error))?;
        let validity = validity(&loaded);
        tracing::info!(
            names = loaded.names, not_before = %validity.not_before, not_after = %validity.not_after,
            "The authority gave a certificate; it is in force for new connections."
        );
        self.put_in_force(loaded);
        // Served already: who can't connect for want of it gains nothing by waiting for a disk.
        if let Err(error) = self.with_files(move |files| files.keep_certificate(&issued)).await {
            tracing::error!(
                %error, file = %self.files.certificate_path().display(),
                "The new certificate can't be kept: the next start has to order another one."
            );
        }
        Ok(validity)
    }
}

impl AtAuthority {
    /// Shows it to new connections.
    fn put_in_force(&self, loaded: LoadedCertificate) {
        self.metrics.certificates(&[(&*loaded.names, accepted(&loaded))]);
        self.resolver.replace(Owner::Acme, vec![Arc::new(loaded)]);
        self.readiness.without_certificate(false);
    }

    /// Orders as an account that the authority takes.
    async fn order(&self) -> Result<Issued, Failed> {
        let domains = &self.settings.domains;
        let mut refused = None;
        match self.known_account().await {
            Ok(None) => {}
            Ok(Some(account)) => match account.order(domains, &self.resolver).await {
                Err(AcmeError::NoAccount(said)) => refused = Some(said),
                ordered => return ordered.map_err(|error| self.failed(error)),
            },
            Err(AcmeError::NoAccount(said)) => refused = Some(said),
            Err(error) => return Err(self.failed(error)),
        }
        if let Some(said) = refused {
            tracing::warn!(said, "The account that is kept is of no use: another one is made.");
        }
        let account = self.new_account().await?;
        let ordered = account.order(domains, &self.resolver).await;
        ordered.map_err(|error| self.failed(error))
    }

    /// The account that was made before, if there is one.
    async fn known_account(&self) -> Result<Option<Account>, AcmeError> {
        let of_no_use = AcmeError::NoAccount;
        let stored = self.with_files(Files::account).await;
        let stored = stored.map_err(|error| of_no_use(format!("it can't be read: {error}")))?;
        let Some(StoredAccount { directory, contact, credentials }) = stored else {
            return Ok(None);
        };
        if directory != self.settings.directory {
            return Err(of_no_use(format!("it is one of {directory}")));
        }
        let account = self.authority.account(credentials, &self.settings.contact).await?;
        if contact != self.settings.contact {
            self.tell_contact(&account).await?;
        }
        Ok(Some(account))
    }

    /// Whom to write to has changed.
    async fn tell_contact(&self, account: &Account) -> Result<(), AcmeError> {
        account.update_contact().await?;
        tracing::info!("The authority knows the new contact.");
        let contact = self.settings.contact.clone();
        let kept = self.with_files(move |files| match files.account()? {
            Some(stored) => files.keep_account(&StoredAccount { contact, ..stored }),
            None => Ok(()),
        });
        if let Err(error) = kept.await {
            tracing::warn!(%error, "The new contact can't be kept: it is told once more.");
        }
        Ok(())
    }

    async fn new_account(&self) -> Result<Account, Failed> {
        let AcmeSettings { directory, contact, .. } = self.settings.clone();
        tracing::info!(directory, "An account is made at the authority; its terms are agreed to.");
        let made = self.authority.register(&contact).await;
        let (account, credentials) = made.map_err(|error| self.failed(error))?;
        let stored = StoredAccount { directory, contact, credentials };
        self.with_files(move |files| files.keep_account(&stored))
            .await
            .context("the account can't be kept")
            // Each try makes another one, and authorities count them.
            .map_err(|error| Failed { failure: Failure::Refused, ..Failed::here(error) })?;
        tracing::info!(account = account.id(), "The account is made and kept.");
        Ok(account)
    }

    /// What came, if it can be served and is what was ordered.
    fn checked(&self, issued: &Issued) -> Result<LoadedCertificate, AcmeError> {
        let (chain, key) = (issued.chain.as_bytes(), issued.key.as_bytes());
        let unusable = |reason: String| AcmeError::Unusable(reason);
        let loaded = load(chain, key, "what it gave", &*self.clock);
        let loaded = loaded.map_err(|error| unusable(error.to_string()))?;
        if !fits(&loaded, &self.settings.domains) {
            return Err(unusable(format!("it gave a certificate for {}", loaded.names)));
        }
        Ok(loaded)
    }

    fn failed(&self, error: AcmeError) -> Failed {
        Failed::of_authority(error, self.authority.take_asked())
    }

    /// On a thread for blocking work: a disk may hang.
    async fn with_files<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let files = self.files.clone();
        let done = tokio::task::spawn_blocking(move || act(&files)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn load(
    chain: &[u8],
    key: &[u8],
    name: &str,
    clock: &dyn Clock,
) -> Result<LoadedCertificate, TlsError> {
    let now = i64::try_from(clock.wall().as_secs()).unwrap_or(i64::MAX);
    tls::load_certificate(chain, key, Names { certificate: name, key: name }, now)
}

/// Whether it is for all of these names. An authority may have added others.
fn fits(loaded: &LoadedCertificate, domains: &[String]) -> bool {
    domains.iter().all(|domain| loaded.hosts.contains(domain))
}
