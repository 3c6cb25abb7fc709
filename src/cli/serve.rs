//! `serve`: runs the relay.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser};
use tracing::level_filters::LevelFilter;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::app::watcher::Reloads;
use crate::app::{App, Settings, StoreSettings, TlsFiles, systemd};
use crate::cli::acme::AcmeArgs;
use crate::cli::edge::EdgeArgs;
use crate::cli::signal::{Hangups, StopSignals, outlive_file_size_limit};
use crate::cli::traces::TraceArgs;
use crate::cli::{Usage, Verdict, log_level, value};
use crate::config::ProcessEnvironment;
use crate::net::address::Address;
use crate::net::inherited::{self, Inherited};
use crate::telemetry::log_level::LogLevel;
use crate::telemetry::logging;

/// What `help` says first.
pub const ABOUT: &str = "\
Run the relay: accept webhooks, store them, deliver them to the targets of the routes file.

A flag given on the command line goes before its environment variable. The routes file and the files
that it names are in force again within a second of saving, and so is the certificate; SIGHUP reads them
at once. A file that can't be used changes nothing.

SIGTERM and SIGINT stop it in order: nothing accepted is lost. A second one stops at once.";

/// The flags of `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The routes file
    #[arg(
        long,
        env = "RELAY_ROUTES",
        hide_env_values = true,
        value_name = "FILE",
        default_value = "routes.yaml"
    )]
    pub routes: PathBuf,
    /// Where webhooks come in; 0.0.0.0 where IPv6 is off
    #[arg(
        long,
        env = "RELAY_LISTEN",
        hide_env_values = true,
        value_name = "ADDRESS:PORT",
        default_value = "[::]:8443"
    )]
    pub listen: SocketAddr,
    /// Where probes, metrics and the API are served: an address to be kept off the public network, or
    /// unix:PATH for a socket that only this user can connect to
    #[arg(
        long,
        env = "RELAY_ADMIN",
        hide_env_values = true,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9464"
    )]
    pub admin: Address,
    /// The file of the token that the API wants, as in `Authorization: Bearer …`. Without one the API
    /// answers only where --admin is a loopback address or a socket
    #[arg(long, env = "RELAY_ADMIN_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// A certificate and its chain, PEM. Aryeo verifies the whole chain. Several, each with its key, are
    /// chosen by the name that a sender asks for; the first is for all others
    #[arg(
        long,
        env = "RELAY_TLS_CERT",
        hide_env_values = true,
        value_name = "FILE",
        default_value = "certs/tls.crt",
        value_delimiter = ',',
        help_heading = "TLS"
    )]
    pub tls_cert: Vec<PathBuf>,
    /// The certificate's key, PEM; as many as certificates, in their order
    #[arg(
        long,
        env = "RELAY_TLS_KEY",
        hide_env_values = true,
        value_name = "FILE",
        default_value = "certs/tls.key",
        value_delimiter = ',',
        help_heading = "TLS"
    )]
    pub tls_key: Vec<PathBuf>,
    /// Serve HTTP without TLS: something in front of the relay ends it
    #[arg(
        long,
        env = "RELAY_PLAIN_HTTP", hide_env_values = true,
        value_parser = BoolishValueParser::new(),
        help_heading = "TLS"
    )]
    pub plain_http: bool,
    /// Ask senders for a certificate by one of these roots, PEM. Only a source with a
    /// `client_certificate` wants one; who shows one of another root can't connect
    #[arg(
        long,
        env = "RELAY_CLIENT_CA",
        hide_env_values = true,
        value_name = "FILE",
        conflicts_with = "plain_http",
        help_heading = "TLS"
    )]
    pub client_ca: Option<PathBuf>,
    /// A certificate from an authority.
    #[command(flatten)]
    pub acme: AcmeArgs,

    /// Who is at the other end.
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// What is kept and for how long.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// What is let in at once.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How long is waited.
    #[command(flatten)]
    pub timeouts: TimeoutArgs,

    /// How log lines are written to stderr
    #[arg(
        long,
        env = "RELAY_LOG_FORMAT",
        hide_env_values = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        help_heading = "Logs"
    )]
    pub log_format: LogFormat,
    /// The least severe level that is logged; `log-level` changes it while it runs
    #[arg(
        long,
        env = "RELAY_LOG_LEVEL", hide_env_values = true,
        value_name = "LEVEL",
        default_value = "info",
        value_parser = level_parser(),
        help_heading = "Logs"
    )]
    pub log_level: LevelFilter,
    /// Where webhooks are traced.
    #[command(flatten)]
    pub traces: TraceArgs,
}

/// What is kept and for how long.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageArgs {
    /// The data directory, made if it is not there. One relay at a time can use it
    #[arg(
        long,
        env = "RELAY_DATA",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "data"
    )]
    pub data: PathBuf,
    /// Take a data directory in memory (tmpfs), which a power cut empties
    #[arg(long, env = "RELAY_ALLOW_VOLATILE_DATA", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub allow_volatile_data: bool,
    /// How long a webhook is kept after its last delivery was settled
    #[arg(
        long,
        env = "RELAY_RETAIN", hide_env_values = true,
        value_name = "DURATION",
        default_value = "72h",
        value_parser = value::duration
    )]
    pub retain: Duration,
    /// How long a webhook that no route wanted is kept
    #[arg(
        long,
        env = "RELAY_RETAIN_UNROUTED", hide_env_values = true,
        value_name = "DURATION",
        default_value = "14d",
        value_parser = value::duration
    )]
    pub retain_unrouted: Duration,
    /// How long a delivery that nobody tries any more is kept
    #[arg(
        long,
        env = "RELAY_RETAIN_DEAD_LETTERS", hide_env_values = true,
        value_name = "DURATION",
        default_value = "90d",
        value_parser = value::duration
    )]
    pub retain_dead_letters: Duration,
    /// How much of the disk stored webhooks may take, at least 64MiB; beyond it new ones are refused
    /// [default: four fifths of what is free, its own counted in]
    #[arg(
        long,
        env = "RELAY_STORE_LIMIT",
        hide_env_values = true,
        value_name = "SIZE",
        value_parser = store_limit
    )]
    pub store_limit: Option<u64>,
    /// How many webhooks are remembered to recognise a repeat; then the oldest go first
    #[arg(
        long,
        env = "RELAY_DUPLICATES_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "1000000"
    )]
    pub duplicates_max: NonZeroUsize,
}

/// What is let in at once.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at once; for further ones those end that are idle for longest
    #[arg(
        long,
        env = "RELAY_CONNECTIONS_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "10000",
        value_parser = value::connections
    )]
    pub connections_max: NonZeroUsize,
    /// Requests being taken in at once; when more come, the slowest unverified one is ended
    #[arg(
        long,
        env = "RELAY_IN_FLIGHT_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "1024"
    )]
    pub in_flight_max: NonZeroUsize,
    /// Bytes of bodies being taken in at once, as they arrive; when more come, the oldest unverified
    /// one is ended
    #[arg(
        long,
        env = "RELAY_IN_FLIGHT_BYTES_MAX", hide_env_values = true,
        value_name = "SIZE",
        default_value = "256MiB",
        value_parser = value::size
    )]
    pub in_flight_bytes_max: u64,
    /// Bytes of bodies being delivered at once, shared fairly among the targets
    #[arg(
        long,
        env = "RELAY_DELIVERY_MEMORY", hide_env_values = true,
        value_name = "SIZE",
        default_value = "64MiB",
        value_parser = value::size
    )]
    pub delivery_memory: u64,
}

/// How long is waited.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Time-outs")]
pub struct TimeoutArgs {
    /// For a TLS handshake
    #[arg(
        long,
        env = "RELAY_HANDSHAKE_TIMEOUT", hide_env_values = true,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = value::duration
    )]
    pub handshake_timeout: Duration,
    /// For the head of a request
    #[arg(
        long,
        env = "RELAY_HEADER_TIMEOUT", hide_env_values = true,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = value::duration
    )]
    pub header_timeout: Duration,
    /// For the body of a request
    #[arg(
        long,
        env = "RELAY_BODY_TIMEOUT", hide_env_values = true,
        value_name = "DURATION",
        default_value = "20s",
        value_parser = value::duration
    )]
    pub body_timeout: Duration,
    /// For stopping in order; what is not done by then is done after the next start
    #[arg(
        long,
        env = "RELAY_SHUTDOWN_TIMEOUT", hide_env_values = true,
        value_name = "DURATION",
        default_value = "20s",
        value_parser = value::duration
    )]
    pub shutdown_timeout: Duration,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

fn level_parser() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(log_level::NAMES).try_map(|level| level.parse::<LevelFilter>())
}

/// Runs the relay until it is told to stop.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let inherited = inherited::inherit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("relay")
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("the runtime can't be started")?;
    // Before anything else: a signal that nobody listens for ends the process at once.
    let signals = {
        let _entered = runtime.enter();
        outlive_file_size_limit()?;
        (StopSignals::new()?, Hangups::new()?)
    };
    let format = match args.log_format {
        LogFormat::Text => logging::Format::Text,
        LogFormat::Json => logging::Format::Json,
    };
    let logging = logging::install(format, args.log_level);
    keep_out_of_dumps();
    let (stop_signals, hangups) = signals;
    let ended = runtime.block_on(serve(args, inherited, logging.level(), stop_signals, hangups));
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    ended
}

/// Secrets and bodies are in this memory: no core is dumped of it, and no other process of this user may
/// read it.
fn keep_out_of_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "Cores may be dumped of this process, with secrets in them.");
    }
}

/// Reads from the disk at the same time.
const BLOCKING_THREADS_MAX: usize = 16;

async fn serve(
    args: &Args,
    inherited: Inherited,
    log_level: LogLevel,
    mut stop_signals: StopSignals,
    hangups: Hangups,
) -> anyhow::Result<Verdict> {
    let bound = tokio::select! {
        biased;
        signal = stop_signals.next() => Err(signal),
        bound = App::bind(args.settings()?, inherited, Arc::new(ProcessEnvironment), log_level) => Ok(bound?),
    };
    let app = match bound {
        Ok(app) => app,
        Err(signal) => {
            tracing::info!(signal, "Asked to stop before it was ready.");
            return Ok(Verdict::Yes);
        }
    };
    let reloading = reload_at(hangups, app.reloads());
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(app.run(stop.clone()));
    let signal = tokio::select! {
        ended = &mut running => return ended.map(|()| Verdict::Yes),
        signal = stop_signals.next() => signal,
        never = reloading => match never {},
    };
    tracing::info!(signal, "Asked to stop; a second signal stops at once.");
    stop.cancel();
    tokio::select! {
        ended = running => ended.map(|()| Verdict::Yes),
        signal = stop_signals.next() => {
            tracing::warn!(signal, "Stopping at once; what is unfinished is due again at the next start.");
            Ok(Verdict::No)
        }
    }
}

/// Reloads at every SIGHUP.
async fn reload_at(mut hangups: Hangups, reloads: Reloads) -> Infallible {
    loop {
        hangups.next().await;
        tracing::info!(signal = "SIGHUP", "Asked to reload.");
        systemd::reloading();
        systemd::reloaded(reloads.report().await.is_ok());
    }
}

impl Args {
    fn tls_files(&self) -> Result<Vec<TlsFiles>, Usage> {
        let (certificates, keys) = (&self.tls_cert, &self.tls_key);
        if certificates.len() != keys.len() {
            return Err(Usage(format!(
                "--tls-cert names {} files and --tls-key {}: each certificate needs its key, in the same \
                 order",
                certificates.len(),
                keys.len()
            )));
        }
        let pair = |(certificate, key): (&PathBuf, &PathBuf)| TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        Ok(certificates.iter().zip(keys).map(pair).collect())
    }

    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let bytes = |size: u64, flag: &str| {
            usize::try_from(size).with_context(|| format!("{flag} is larger than this machine"))
        };
        let acme = self.acme.settings(self.plain_http)?;
        // Our own unit and image say where files would be, and ACME is one more variable there.
        if acme.is_some() && !(self.tls_cert.is_empty() && self.tls_key.is_empty()) {
            tracing::info!(
                "Certificates come by --acme-domain; --tls-cert and --tls-key are not used."
            );
        }
        let has_files = !self.plain_http && acme.is_none();
        let tls = if has_files { self.tls_files()? } else { Vec::new() };
        Ok(Settings {
            routes: self.routes.clone(),
            listen: self.listen,
            admin: self.admin.clone(),
            admin_token: self.admin_token_file.clone(),
            tls,
            acme,
            client_ca: self.client_ca.clone(),
            store: StoreSettings {
                data: self.storage.data.clone(),
                allow_volatile: self.storage.allow_volatile_data,
                retain: self.storage.retain,
                retain_unrouted: self.storage.retain_unrouted,
                retain_dead_letters: self.storage.retain_dead_letters,
                duplicates_max: self.storage.duplicates_max.get(),
                delivery_memory: bytes(self.limits.delivery_memory, "--delivery-memory")?,
                limit: self.storage.store_limit,
            },
            edge: self.edge.settings(),
            traces: self.traces.settings()?,
            connections_max: self.limits.connections_max.get(),
            in_flight_max: self.limits.in_flight_max.get(),
            in_flight_bytes_max: bytes(self.limits.in_flight_bytes_max, "--in-flight-bytes-max")?,
            handshake_timeout: self.timeouts.handshake_timeout,
            header_timeout: self.timeouts.header_timeout,
            body_timeout: self.timeouts.body_timeout,
            shutdown_timeout: self.timeouts.shutdown_timeout,
        })
    }
}

/// A segment of the store is as large.
const STORE_LIMIT_MIN: u64 = 64 << 20;

fn store_limit(text: &str) -> Result<u64, String> {
    match value::size(text)? {
        bytes if bytes < STORE_LIMIT_MIN => Err("it must be 64MiB or more".to_owned()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::EdgeSettings;
    use crate::domain::client::Network;
    use crate::domain::trace::Sampling;
    use clap::{Args as _, CommandFactory as _, FromArgMatches as _};
    use std::path::Path;

    fn parsed(flags: &[&str]) -> Result<Args, clap::Error> {
        // Without the environment, which may have settings of its own.
        let command = Args::augment_args(clap::Command::new("serve")).mut_args(|arg| arg.env(None));
        let line = std::iter::once("serve").chain(flags.iter().copied());
        command.try_get_matches_from(line).and_then(|matches| Args::from_arg_matches(&matches))
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let args = parsed(&[]).unwrap();
        assert_eq!(args.routes.to_str(), Some("routes.yaml"));
        assert_eq!(args.listen.to_string(), "[::]:8443");
        assert_eq!(args.admin.to_string(), "127.0.0.1:9464");
        assert!(!args.plain_http && !args.storage.allow_volatile_data);
        assert_eq!(args.storage.retain.as_secs(), 72 * 3600);
        assert_eq!(args.storage.retain_unrouted.as_secs(), 14 * 86_400);
        assert_eq!(args.storage.retain_dead_letters.as_secs(), 90 * 86_400);
        assert_eq!(args.storage.store_limit, None);
        assert!(parsed(&["--store-limit", "63MiB"]).is_err());
        assert_eq!(args.storage.duplicates_max.get(), 1_000_000);
        assert_eq!(args.limits.connections_max.get(), 10_000);
        assert_eq!(args.limits.in_flight_max.get(), 1024);
        assert_eq!(args.limits.in_flight_bytes_max, 256 << 20);
        assert_eq!(args.limits.delivery_memory, 64 << 20);
        assert_eq!(args.edge.requests_per_connection_max.get(), 100_000);
        assert_eq!(args.edge.unverified_rate, crate::config::rate("50/s").unwrap());
        assert_eq!(args.timeouts.body_timeout.as_secs(), 20);
        assert_eq!(args.log_format, LogFormat::Text);
        assert_eq!(args.log_level, LevelFilter::INFO);
    }

    #[test]
    fn flags_are_read() {
        let flags = ["--plain-http", "--retain", "1h30m", "--log-level", "debug"];
        let args = parsed(&flags).unwrap();
        assert!(args.plain_http);
        assert_eq!(args.storage.retain.as_secs(), 5400);
        assert_eq!(args.log_level, LevelFilter::DEBUG);
        for wrong in [
            ["--listen", "8443"],
            ["--admin", "unix:"],
            ["--in-flight-max", "0"],
            ["--body-timeout", "0s"],
            ["--log-level", "loud"],
        ] {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_flag_sets_what_it_is_called_after() {
        let line = "--routes a --listen 127.0.0.1:1 --admin 127.0.0.1:2 --admin-token-file t --tls-cert b --tls-key c --client-ca ca \
                    --data d --allow-volatile-data --retain 3s --retain-unrouted 4s \
                    --retain-dead-letters 5s --duplicates-max 6 --connections-max 7 \
                    --in-flight-max 8 --in-flight-bytes-max 9B --delivery-memory 10B \
                    --handshake-timeout 11s --header-timeout 12s --body-timeout 13s \
                    --trusted-proxies 10.0.0.0/8,::1 \
                    --proxy-protocol --connections-per-address-max 15 --unverified-rate 16/m \
                    --requests-per-connection-max 17 \
                    --shutdown-timeout 14s --store-limit 1GiB --log-format json --log-level warn \
                    --otlp-endpoint http://otel:4318 --otlp-sample 0.5";
        let flags: Vec<&str> = line.split_whitespace().collect();
        let args = parsed(&flags).unwrap();
        assert_eq!((args.log_format, args.log_level), (LogFormat::Json, LevelFilter::WARN));
        // Every flag but those that make others meaningless.
        let command = Args::augment_args(clap::Command::new("serve"));
        for flag in command.get_arguments().filter_map(|arg| arg.get_long()) {
            let is_alone = flag == "plain-http" || flag.starts_with("acme-");
            assert!(is_alone || line.contains(&format!("--{flag} ")), "{flag}");
        }
        let secs = Duration::from_secs;
        let Settings {
            routes,
            listen,
            admin,
            admin_token,
            tls,
            acme,
            client_ca,
            store,
            edge,
            traces,
            connections_max,
            in_flight_max,
            in_flight_bytes_max,
            handshake_timeout,
            header_timeout,
            body_timeout,
            shutdown_timeout,
        } = args.settings().unwrap();
        assert_eq!((routes, listen.port()), (PathBuf::from("a"), 1));
        let traces = traces.unwrap();
        assert_eq!(traces.endpoint.to_string(), "http://otel:4318/v1/traces");
        assert_eq!(Some(traces.sampling), Sampling::share(0.5));
        assert_eq!((admin.to_string().as_str(), acme), ("127.0.0.1:2", None));
        assert_eq!([admin_token, client_ca], ["t", "ca"].map(|path| Some(PathBuf::from(path))));
        let [TlsFiles { certificate, key }] = &*tls else { panic!("{tls:?}") };
        assert_eq!((&**certificate, &**key), (Path::new("b"), Path::new("c")));
        check_edge(edge);
        let StoreSettings {
            data,
            allow_volatile,
            retain,
            retain_unrouted,
            retain_dead_letters,
            duplicates_max,
            delivery_memory,
            limit,
        } = store;
        assert_eq!(limit, Some(1 << 30));
        assert_eq!((data, allow_volatile), (PathBuf::from("d"), true));
        assert_eq!([retain, retain_unrouted, retain_dead_letters], [3, 4, 5].map(secs));
        assert_eq!((duplicates_max, delivery_memory), (6, 10));
        assert_eq!((connections_max, in_flight_max, in_flight_bytes_max), (7, 8, 9));
        let timeouts = [handshake_timeout, header_timeout, body_timeout, shutdown_timeout];
        assert_eq!(timeouts, [11, 12, 13, 14].map(secs));
    }

    #[track_caller]
    fn check_edge(edge: EdgeSettings) {
        let EdgeSettings {
            trusted_proxies,
            proxy_protocol,
            connections_per_address_max,
            requests_per_connection_max,
            unverified_rate,
        } = edge;
        assert_eq!(requests_per_connection_max.map(u32::from), Some(17));
        assert_eq!(unverified_rate, crate::config::rate("16/m").ok());
        assert_eq!((proxy_protocol, connections_per_address_max), (true, Some(15)));
        let networks = ["10.0.0.0/8", "::1/128"].map(|text| text.parse::<Network>().unwrap());
        assert_eq!(trusted_proxies, networks.into_iter().collect());
    }

    #[test]
    fn each_certificate_has_its_key_and_plain_http_has_none() {
        assert!(parsed(&["--plain-http"]).unwrap().settings().unwrap().tls.is_empty());
        let several = ["--tls-cert", "a", "--tls-cert", "b", "--tls-key", "c,d"];
        let pairs = parsed(&several).unwrap().settings().unwrap().tls;
        let keys: Vec<_> = pairs.iter().map(|pair| pair.key.to_str().unwrap()).collect();
        assert_eq!(keys, ["c", "d"]);
        let odd = parsed(&several[..4]).unwrap().settings().unwrap_err();
        assert!(odd.is::<Usage>() && odd.to_string().contains("each certificate needs its key"));
    }

    #[test]
    fn every_flag_reads_the_environment_by_its_name() {
        for command in crate::cli::Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|_| command.get_name() == "serve") {
                let Some(flag) = arg.get_long().filter(|flag| *flag != "help") else { continue };
                let name = format!("RELAY_{}", flag.to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(&*name), "{flag}");
            }
        }
    }
}
