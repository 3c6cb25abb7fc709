//! `receive`: acts as a target.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use rustls::ServerConfig;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::output::{Foreign, Output, Style};
use super::receiver::{Behaviour, Proof, Received, Receiver};
use super::signal::stop_requested;
use super::signature::SignatureArgs;
use super::{Verdict, block_on};
use crate::app::clock::SystemClock;
use crate::config;
use crate::domain::activity;
use crate::domain::time::Clock as _;
use crate::net::tls::{load_files, serve_one};

/// What `help` says first.
pub const ABOUT: &str = "\
Act as a target: take webhooks in, verify them, print a line for each.

What is not signed by the secret is answered 401. Without a secret nothing is verified. Runs until
SIGINT or SIGTERM, or until nobody reads what it prints.

  CRM_SECRET=… aryeo-relay receive --listen 127.0.0.1:9001 --secret-env CRM_SECRET --fail-first 3";

/// The flags of `receive`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// The answer to what was taken
    #[arg(long, value_name = "STATUS", default_value = "200", value_parser = status)]
    pub status: StatusCode,
    /// Hold each answer back for so long
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = config::duration)]
    pub delay: Duration,
    /// Answer the first N requests with 503
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fail_first: u64,
    /// Print the bodies, too
    #[arg(long)]
    pub show_body: bool,
    /// Serve HTTPS with this certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// How requests are verified.
    #[command(flatten)]
    pub signature: SignatureArgs,
}

/// How long requests may take to finish after a signal.
const GRACE: Duration = Duration::from_secs(5);

fn status(text: &str) -> Result<StatusCode, String> {
    let status = text.parse::<u16>().ok().filter(|status| (200..600).contains(status));
    status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| "a status is between 200 and 599".to_owned())
}

/// Receives until told to stop.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let verification = args.signature.secret()?.map(|secret| args.signature.verification(secret));
    let behaviour = Behaviour {
        verification,
        status: args.status,
        delay: args.delay,
        fail_first: args.fail_first,
        ..Behaviour::default()
    };
    let tls = server_config(args)?;
    block_on(receive(args, tls, behaviour))?
}

fn server_config(args: &Args) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let now = i64::try_from(SystemClock::start().now().as_secs()).unwrap_or(i64::MAX);
    Ok(Some(serve_one(load_files(certificate, key, now)?)?))
}

async fn receive(
    args: &Args,
    tls: Option<Arc<ServerConfig>>,
    behaviour: Behaviour,
) -> anyhow::Result<Verdict> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let verified = match &behaviour.verification {
        None => "nothing is verified".to_owned(),
        Some(verification) => {
            let labels: Vec<_> = verification.secrets.iter().map(|secret| secret.label()).collect();
            format!("verified with {}", labels.join(", "))
        }
    };
    let receiver = Receiver::bind(args.listen, tls, behaviour)
        .with_context(|| format!("{} can't be listened on", args.listen))?;
    let out = Output::new();
    let address = receiver.address()?;
    out.line(format_args!("listening on {scheme}://{address}, {verified}; Ctrl-C ends it"));

    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let (printed, ended) = (out.clone(), stop.clone());
    let show_body = args.show_body;
    receiver.serve(&tracker, &stop, Arc::new(SystemClock::start()), move |received| {
        print(&printed, received, show_body);
        if printed.is_closed() {
            ended.cancel();
        }
    });
    tokio::select! {
        signal = stop_requested() => drop(signal.context("signals can't be waited for")?),
        () = stop.cancelled() => {}
    }
    stop.cancel();
    tracker.close();
    // Whoever has not finished by then is not worth waiting for.
    drop(timeout(GRACE, tracker.wait()).await);
    Ok(Verdict::Yes)
}

fn print(out: &Output, received: &Received, show_body: bool) {
    let time = received.at.to_string();
    let time = time.split_once('T').map_or(&*time, |(_, time)| time);
    // What comes from Aryeo or from `send` rather than from the relay only has its body.
    let read = activity::read(&received.body).activity;
    let activity = received.activity().or(read.as_deref()).unwrap_or("(no activity)");
    let from = match (received.webhook_id(), received.attempt()) {
        (Some(id), Some(attempt)) => format!("{id}  attempt {attempt}"),
        (Some(id), None) => id.to_owned(),
        (None, _) => "not from a relay".to_owned(),
    };
    let style = if received.status.is_success() { Style::Good } else { Style::Bad };
    let proof = match received.proof {
        Proof::Verified => out.paint(Style::Good, "verified".to_owned()),
        Proof::NotAsked => out.paint(Style::Dim, "not verified".to_owned()),
        Proof::Failed(error) => out.paint(Style::Bad, format!("NOT VERIFIED: {error}")),
    };
    out.line(format_args!(
        "{}  {}  {}  {proof}  {} bytes  {}",
        out.paint(Style::Dim, time),
        out.paint(Style::Bold, Foreign(activity)),
        Foreign(&from),
        received.body.len(),
        out.paint(style, received.status.as_u16()),
    ));
    if show_body {
        out.line(Foreign(&String::from_utf8_lossy(&received.body)));
    }
}
