//! The flags of `serve` about who is at the other end of a connection.

use std::num::{NonZeroU32, NonZeroUsize};

use clap::builder::BoolishValueParser;

use crate::app::EdgeSettings;
use crate::config;
use crate::domain::client::{Network, NetworkError};
use crate::domain::target::Rate;

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
    /// The proxies begin each connection with a header of the PROXY protocol, version 1 or 2, which
    /// says for whom they connect. From --trusted-proxies it is mandatory, from others it is refused
    #[arg(
        long,
        env = "RELAY_PROXY_PROTOCOL",
        hide_env_values = true,
        value_parser = BoolishValueParser::new(),
        // Not where the environment says no.
        requires_ifs = ["1", "on", "t", "true", "True", "TRUE", "y", "yes"].map(|yes| (yes, "trusted_proxies"))
    )]
    pub proxy_protocol: bool,
    /// Connections at once from one address, or from one /64 network of IPv6; for further ones those
    /// of the same address end that are idle for longest. Not where the address may be a proxy's:
    /// with --plain-http it needs --trusted-proxies [default: a quarter of --connections-max]
    #[arg(
        long,
        env = "RELAY_CONNECTIONS_PER_ADDRESS_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        help_heading = "Limits"
    )]
    pub connections_per_address_max: Option<NonZeroUsize>,
    /// Requests on one connection; then it ends, and the sender opens another
    #[arg(
        long,
        env = "RELAY_REQUESTS_PER_CONNECTION_MAX",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "100000",
        help_heading = "Limits"
    )]
    pub requests_per_connection_max: NonZeroU32,
    /// Requests that are refused of one address, or of one /64 network of IPv6, before more of them
    /// are answered 429 unread; four times as many at once. Not where a verified webhook came from
    /// within a day, nor where the address may be a proxy's
    #[arg(
        long,
        env = "RELAY_UNVERIFIED_RATE",
        hide_env_values = true,
        value_name = "RATE",
        default_value = "50/s",
        value_parser = config::rate,
        help_heading = "Limits"
    )]
    pub unverified_rate: Rate,
}

impl EdgeArgs {
    pub(super) fn settings(&self) -> EdgeSettings {
        EdgeSettings {
            trusted_proxies: self.trusted_proxies.iter().copied().collect(),
            proxy_protocol: self.proxy_protocol,
            connections_per_address_max: self.connections_per_address_max.map(NonZeroUsize::get),
            requests_per_connection_max: Some(self.requests_per_connection_max),
            unverified_rate: Some(self.unverified_rate),
        }
    }
}

fn network(text: &str) -> Result<Network, String> {
    text.trim().parse().map_err(|error| match error {
        NetworkError::HostBits(meant) => format!("it {error}; did you mean {meant}?"),
        NetworkError::Malformed => format!("it {error}"),
    })
}
