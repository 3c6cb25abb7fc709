//! The flags of `serve` about traces.

use crate::app::traces::TraceSettings;
use crate::cli::Usage;
use crate::domain::trace::Sampling;
use crate::net::otlp::Endpoint;

/// Where webhooks are traced.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// Trace each webhook: a receiver of OpenTelemetry's (OTLP over HTTP, protobuf), such as
    /// http://127.0.0.1:4318, gets its spans, and targets get a traceparent
    #[arg(long, env = "RELAY_OTLP_ENDPOINT", hide_env_values = true, value_name = "URL")]
    // Read later: what is refused is not to be shown, for a password may be in it.
    pub otlp_endpoint: Option<String>,
    /// The share of webhooks that are traced, above 0 and up to 1. A webhook's id decides, for all its
    /// attempts
    #[arg(
        long,
        env = "RELAY_OTLP_SAMPLE",
        hide_env_values = true,
        value_name = "SHARE",
        default_value = "1",
        value_parser = share
    )]
    pub otlp_sample: Sampling,
}

impl TraceArgs {
    pub(super) fn settings(&self) -> Result<Option<TraceSettings>, Usage> {
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(None) };
        let endpoint: Endpoint =
            endpoint.parse().map_err(|error| Usage(format!("--otlp-endpoint: {error}")))?;
        Ok(Some(TraceSettings { endpoint, sampling: self.otlp_sample }))
    }
}

fn share(text: &str) -> Result<Sampling, String> {
    let ratio = text.parse().ok().and_then(Sampling::share);
    ratio.ok_or_else(|| "it must be above 0 and at most 1, such as 0.1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches as _};

    fn parsed(flags: &[&str]) -> Result<Option<TraceSettings>, String> {
        let command =
            TraceArgs::augment_args(clap::Command::new("serve")).mut_args(|arg| arg.env(None));
        let matches = command.try_get_matches_from(std::iter::once(&"serve").chain(flags));
        let args = matches.and_then(|matches| TraceArgs::from_arg_matches(&matches));
        args.map_err(|error| error.to_string())?.settings().map_err(|Usage(text)| text)
    }

    #[test]
    fn traces_are_off_until_it_is_said_where_they_go() {
        assert_eq!(parsed(&[]).unwrap(), None);
        let settings = |flags: &[&str]| parsed(flags).unwrap().unwrap();
        let all = settings(&["--otlp-endpoint", "http://[::1]:4318"]);
        assert_eq!(all.endpoint.to_string(), "http://[::1]:4318/v1/traces");
        assert_eq!(all.sampling, Sampling::ALL);
        let flags = ["--otlp-endpoint", "https://otel.test/in/v1/traces/", "--otlp-sample", "0.1"];
        let some = settings(&flags);
        assert_eq!(some.endpoint.to_string(), "https://otel.test/in/v1/traces");
        assert_eq!(some.sampling, Sampling::share(0.1).unwrap());
    }

    #[test]
    fn what_can_not_be_meant_or_would_tell_a_secret_is_refused() {
        for endpoint in [
            "127.0.0.1:4318",
            "grpc://127.0.0.1:4317",
            "http://",
            "http://user:the-word@127.0.0.1:4318",
            "http://127.0.0.1:4318/?key=the-word",
        ] {
            let error = parsed(&["--otlp-endpoint", endpoint]).unwrap_err();
            assert!(error.starts_with("--otlp-endpoint: it must"), "{error}");
            assert!(!error.contains("the-word"), "{error}");
        }
        for share in ["0", "1.1", "-1", "NaN", "half"] {
            assert!(parsed(&["--otlp-sample", share]).is_err(), "{share}");
        }
    }
}
