//! What senders are shown, prepared: certificates of files or of an authority, and whose are asked for.

use std::sync::Arc;

use anyhow::anyhow;
use rustls::ServerConfig;
use tokio::sync::watch;

use crate::admin::readiness::Readiness;
use crate::app::Settings;
use crate::app::acme::{self, Acme};
use crate::app::certificate::Certificates;
use crate::app::client_ca::{self, Listening};
use crate::app::clock::SystemClock;
use crate::app::followed::Followed;
use crate::domain::time::Clock;
use crate::net::tls::{Resolver, TlsError};
use crate::telemetry::metrics::Metrics;

/// What senders are shown, and where it comes from: files, an authority, or neither.
pub(super) struct Tls {
    pub(super) certificates: Option<Certificates>,
    pub(super) acme: Option<Acme>,
    pub(super) client_ca: Option<Followed<Listening>>,
    pub(super) config: Option<watch::Sender<Arc<ServerConfig>>>,
}

impl Tls {
    /// A listener with the certificates of `resolver`.
    fn listening(
        settings: &Settings,
        metrics: &Arc<Metrics>,
        resolver: Arc<Resolver>,
        certificates: Option<Certificates>,
        acme: Option<Acme>,
    ) -> anyhow::Result<Self> {
        let challenges = acme.is_some();
        let Some(path) = settings.client_ca.clone() else {
            let listening = Listening::new(resolver, challenges, None, Arc::clone(metrics))?;
            let config = Some(listening.config);
            return Ok(Self { certificates, acme, client_ca: None, config });
        };
        let client_ca = Followed::begin(client_ca::reader(path), |outcome| {
            let roots = outcome.map_err(|error| anyhow!("--client-ca: {error}"))?;
            let metrics = Arc::clone(metrics);
            Ok::<_, anyhow::Error>(Listening::new(resolver, challenges, Some(roots), metrics)?)
        })?;
        let (config, client_ca) = (Some(client_ca.held.config.clone()), Some(client_ca));
        Ok(Self { certificates, acme, client_ca, config })
    }
}

pub(super) fn prepare(
    settings: &Settings,
    clock: &Arc<SystemClock>,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
) -> anyhow::Result<Tls> {
    if let Some(acme) = &settings.acme {
        let resolver = Arc::new(Resolver::default());
        let parts = acme::Parts {
            data: &settings.store.data,
            clock: clock.clone(),
            metrics: Arc::clone(metrics),
            readiness: Arc::clone(readiness),
            resolver: Arc::clone(&resolver),
        };
        let acme = Some(Acme::prepare(acme, parts)?);
        return Tls::listening(settings, metrics, resolver, None, acme);
    }
    let Some(certificates) = load_certificate(settings, clock, metrics)? else {
        return Ok(Tls { certificates: None, acme: None, client_ca: None, config: None });
    };
    let resolver = Arc::clone(&certificates.resolver);
    Tls::listening(settings, metrics, resolver, Some(certificates), None)
}

fn load_certificate(
    settings: &Settings,
    clock: &Arc<SystemClock>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<Certificates>> {
    if settings.tls.is_empty() {
        return Ok(None);
    }
    let clock: Arc<dyn Clock> = clock.clone();
    let certificates = Certificates::load(&settings.tls, &clock, Arc::clone(metrics));
    certificates.map(Some).map_err(|errors| {
        // Only who has none wants another one.
        let is_missing = errors.iter().any(|error| matches!(error, TlsError::Missing { .. }));
        let hint = if is_missing {
            "; `aryeo-relay certificate` makes one for development, --plain-http serves without where \
             TLS ends in front of the relay"
        } else {
            ""
        };
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow!("{}{hint}", errors.join("; "))
    })
}
