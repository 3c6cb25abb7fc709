//! The flags by which `serve` gets its certificate by itself.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::ArgMatches;
use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use http::Uri;
use http::uri::Scheme;
use rustls::pki_types::DnsName;

use crate::app::acme::{AcmeSettings, LETS_ENCRYPT, LETS_ENCRYPT_STAGING};
use crate::cli::Usage;

/// As many as the largest authority puts on one certificate.
const DOMAINS_MAX: usize = 100;

/// A certificate from an authority.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Certificate from an authority (ACME)")]
pub struct AcmeArgs {
    /// Get a certificate for this domain, and renew it, instead of --tls-cert and --tls-key; repeat it for
    /// more domains. The authority connects to port 443 of each: forward that port to --listen as it is,
    /// TLS and all. By this flag you agree to the authority's terms
    #[arg(
        long,
        env = "RELAY_ACME_DOMAIN", hide_env_values = true,
        value_name = "DOMAIN",
        value_delimiter = ',',
        value_parser = domain
    )]
    pub acme_domain: Vec<String>,
    /// An e-mail address that the authority may write to; repeat it for more
    #[arg(
        long,
        env = "RELAY_ACME_CONTACT", hide_env_values = true,
        value_name = "EMAIL",
        value_delimiter = ',',
        value_parser = contact
    )]
    pub acme_contact: Vec<String>,
    /// The address of the authority's directory [default: the one of Let's Encrypt]
    #[arg(
        long,
        env = "RELAY_ACME_DIRECTORY", hide_env_values = true,
        value_name = "URL",
        value_parser = directory
    )]
    pub acme_directory: Option<String>,
    /// Use the staging of Let's Encrypt: its certificates are accepted by nobody, its limits hard to reach
    #[arg(
        long,
        env = "RELAY_ACME_TEST", hide_env_values = true,
        value_parser = BoolishValueParser::new()
    )]
    pub acme_test: bool,
    /// Roots of the authority's own certificate, PEM, where they are not the system's
    #[arg(long, env = "RELAY_ACME_CA", hide_env_values = true, value_name = "FILE")]
    pub acme_ca: Option<PathBuf>,
}

impl AcmeArgs {
    /// What is asked for; nothing without a domain.
    pub(super) fn settings(&self, plain_http: bool) -> Result<Option<AcmeSettings>, Usage> {
        let usage = |text: &str| Err(Usage(text.to_owned()));
        let mut domains = Vec::new();
        for domain in &self.acme_domain {
            if !domains.contains(domain) {
                domains.push(domain.clone());
            }
        }
        if domains.is_empty() {
            let is_alone = !self.acme_contact.is_empty()
                || self.acme_directory.is_some()
                || self.acme_test
                || self.acme_ca.is_some();
            return match is_alone {
                true => usage("flags of --acme-… say nothing without an --acme-domain"),
                false => Ok(None),
            };
        }
        if plain_http {
            return usage("--acme-domain and --plain-http exclude each other: one is with TLS");
        }
        if domains.len() > DOMAINS_MAX {
            return usage("one certificate has 100 domains at most");
        }
        let directory = match (&self.acme_directory, self.acme_test) {
            (Some(_), true) => {
                return usage("--acme-test is a directory too: leave it or --acme-directory out");
            }
            (Some(directory), false) => directory.clone(),
            (None, true) => LETS_ENCRYPT_STAGING.to_owned(),
            (None, false) => LETS_ENCRYPT.to_owned(),
        };
        let (contact, ca) = (self.acme_contact.clone(), self.acme_ca.clone());
        Ok(Some(AcmeSettings { domains, contact, directory, ca }))
    }
}

/// Files that are typed besides a domain can't be meant. As variables they can: our own unit and image
/// say where they would be.
pub(super) fn refuse_files(typed: &ArgMatches) -> Result<(), String> {
    if typed.value_source("acme_domain").is_none() {
        return Ok(());
    }
    for (id, flag) in [("tls_cert", "--tls-cert"), ("tls_key", "--tls-key")] {
        if typed.value_source(id) == Some(ValueSource::CommandLine) {
            return Err(format!(
                "{flag} and --acme-domain exclude each other: leave one of them out"
            ));
        }
    }
    Ok(())
}

fn domain(text: &str) -> Result<String, String> {
    let name = text.trim().trim_end_matches('.').to_ascii_lowercase();
    if name.starts_with("*.") {
        return Err("a wildcard can't be proved over TLS: name each domain".to_owned());
    }
    if name.parse::<IpAddr>().is_ok() {
        return Err("it is an address, a domain is wanted".to_owned());
    }
    match DnsName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => Err("it is no domain; write other letters than ASCII in punycode".to_owned()),
    }
}

fn contact(text: &str) -> Result<String, String> {
    let address = text.trim();
    let address = address.strip_prefix("mailto:").unwrap_or(address);
    let is_address = address
        .split_once('@')
        .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'));
    if !is_address || address.contains(char::is_whitespace) {
        return Err("it is no e-mail address".to_owned());
    }
    Ok(format!("mailto:{address}"))
}

fn directory(text: &str) -> Result<String, String> {
    let uri: Uri = text.trim().parse().map_err(|_| "it is no URL".to_owned())?;
    if uri.scheme() != Some(&Scheme::HTTPS) || uri.host().is_none_or(str::is_empty) {
        return Err("it has to begin with https:// and a host".to_owned());
    }
    Ok(uri.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::serve;
    use clap::{Args as _, FromArgMatches as _};

    fn parsed(line: &str) -> Result<serve::Args, clap::Error> {
        // Without the environment, which may have settings of its own.
        let command =
            serve::Args::augment_args(clap::Command::new("serve")).mut_args(|arg| arg.env(None));
        let line = std::iter::once("serve").chain(line.split_whitespace());
        command
            .try_get_matches_from(line)
            .and_then(|matches| serve::Args::from_arg_matches(&matches))
    }

    fn settings(line: &str) -> Result<Option<AcmeSettings>, Usage> {
        let args = parsed(line).unwrap();
        args.acme.settings(args.plain_http)
    }

    #[test]
    fn a_domain_is_enough() {
        assert_eq!(settings("").unwrap(), None);
        let asked = settings("--acme-domain Relay.Example.com.").unwrap().unwrap();
        assert_eq!(asked.domains, ["relay.example.com"]);
        assert_eq!((asked.directory.as_str(), asked.ca), (LETS_ENCRYPT, None));
        assert!(asked.contact.is_empty());
    }

    #[test]
    fn each_flag_sets_what_it_is_called_after() {
        let line = "--acme-domain a.example,b.example --acme-domain a.example --acme-contact a@b.example \
                    --acme-contact mailto:c@d.example --acme-directory https://ca.internal:9000/acme/directory \
                    --acme-ca roots.pem";
        let expected = AcmeSettings {
            domains: ["a.example", "b.example"].map(str::to_owned).to_vec(),
            contact: ["mailto:a@b.example", "mailto:c@d.example"].map(str::to_owned).to_vec(),
            directory: "https://ca.internal:9000/acme/directory".to_owned(),
            ca: Some(PathBuf::from("roots.pem")),
        };
        assert_eq!(settings(line).unwrap(), Some(expected));
        let staging = settings("--acme-domain a.example --acme-test").unwrap().unwrap();
        assert_eq!(staging.directory, LETS_ENCRYPT_STAGING);
    }

    #[test]
    fn where_files_would_be_may_be_said_as_our_own_unit_and_image_do() {
        for files in ["--tls-cert a.crt --tls-key a.key", "--tls-cert a.crt", ""] {
            let args = parsed(&format!("--acme-domain a.example {files}")).unwrap();
            let settings = args.settings().unwrap();
            assert!(settings.acme.is_some() && settings.tls.is_empty(), "{files}");
        }
    }

    #[test]
    fn what_can_t_be_meant_is_refused() {
        for line in [
            "--acme-domain *.example.com",
            "--acme-domain 192.0.2.1",
            "--acme-domain ::1",
            "--acme-domain a_b!",
            "--acme-domain a.example --acme-contact nobody",
            "--acme-domain a.example --acme-contact a@b@c",
            "--acme-domain a.example --acme-directory http://ca.internal/",
            "--acme-domain a.example --acme-directory ca.internal",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in [
            "--acme-domain a.example --plain-http",
            "--acme-domain a.example --acme-test --acme-directory https://ca.internal/",
            "--acme-test",
            "--acme-contact a@b.example",
            "--acme-ca roots.pem",
            "--acme-directory https://ca.internal/",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
        let many: Vec<String> = (0..101).map(|n| format!("{n}.example")).collect();
        assert!(settings(&format!("--acme-domain {}", many.join(","))).is_err());
    }
}
