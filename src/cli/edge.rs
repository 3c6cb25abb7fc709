//! The flags of `serve` about who is at the other end of a connection.

use crate::app::EdgeSettings;
use crate::domain::client::{Network, NetworkError};

/// Who is at the other end.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Proxies")]
pub struct EdgeArgs {
    /// Networks of the proxies in front of the relay, such as 10.0.0.0/8. They are believed when they
    /// say in X-Forwarded-For whose requests they forward: the rightmost address there that is none of
    /// theirs is the client's. Several are separated by commas
    #[arg(
        long,
        env = "RELAY_TRUSTED_PROXIES",
        hide_env_values = true,
        value_name = "NETWORK",
        value_delimiter = ',',
        value_parser = network
    )]
    pub trusted_proxies: Vec<Network>,
}

impl EdgeArgs {
    pub(super) fn settings(&self) -> EdgeSettings {
        EdgeSettings { trusted_proxies: self.trusted_proxies.iter().copied().collect() }
    }
}

fn network(text: &str) -> Result<Network, String> {
    text.trim().parse().map_err(|error| match error {
        NetworkError::HostBits(meant) => format!("it {error}; did you mean {meant}?"),
        NetworkError::Malformed => format!("it {error}"),
    })
}
