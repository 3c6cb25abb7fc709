//! `health`: whether the running relay is well, for whoever runs its container.

use std::time::Duration;

use http::StatusCode;

use crate::cli::admin::{AdminClient, DEFAULT_URL, Relay};
use crate::cli::output::{Foreign, Output};
use crate::cli::{Verdict, block_on};

/// The long help of `health`.
pub const ABOUT: &str = "\
Ask the running relay whether it is well, as the health check of a container.

It is asked whether it is alive (/livez); with --ready, whether it should get webhooks (/readyz). Exit
status: 0 yes; 1 no, or no answer within 2 seconds, and a line says why.";

/// A relay that is well answers in milliseconds, and health checks have time-outs of their own.
const TIMEOUT: Duration = Duration::from_secs(2);

/// More of an answer is not a relay's.
const ANSWER_CHARS_MAX: usize = 200;

/// The flags of `health`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The relay's admin address: a URL, or what its `serve` is told; unix:PATH for a socket
    #[arg(
        long,
        env = "RELAY_ADMIN",
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_URL
    )]
    pub admin: String,
    /// Whether it should get webhooks, not only whether it is alive
    #[arg(long)]
    pub ready: bool,
}

/// Asks and tells.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    // Probes want no token.
    let relay = Relay { url: args.admin.clone(), admin_token_file: None };
    let client = AdminClient::new(&relay)?;
    let (path, good) = if args.ready { ("/readyz", "ready") } else { ("/livez", "alive") };
    let (verdict, line) = match block_on(client.probe(path, TIMEOUT))? {
        Ok((StatusCode::OK, _)) => (Verdict::Yes, good.to_owned()),
        Ok((status, reasons)) => {
            let reasons: Vec<&str> = reasons.lines().collect();
            let reasons: String = reasons.join(", ").chars().take(ANSWER_CHARS_MAX).collect();
            let line = format!("not {good}: {}: {}", status.as_u16(), Foreign(&reasons));
            (Verdict::No, line)
        }
        Err(error) => (Verdict::No, format!("not {good}: {error:#}")),
    };
    Output::new().line(line);
    Ok(verdict)
}
