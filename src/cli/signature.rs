//! The flags that say how something is signed. A secret itself is never on the command line.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use http::HeaderName;

use super::Usage;
use crate::config::{self, ProcessEnvironment};
use crate::domain::limit::TIMESTAMP_TOLERANCE;
use crate::domain::signature::{Scheme, Secret, Signing, Verification};

/// How something is signed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Signature")]
pub struct SignatureArgs {
    /// The environment variable that has the secret
    #[arg(long, value_name = "NAME", conflicts_with = "secret_file")]
    pub secret_env: Option<String>,
    /// The file that has the secret; a newline at its end is dropped
    #[arg(long, value_name = "PATH")]
    pub secret_file: Option<PathBuf>,
    /// How the signature is computed
    #[arg(long, value_enum, value_name = "SCHEME", default_value_t)]
    pub scheme: SchemeArg,
    /// The header that carries the signature [default: the scheme's]
    #[arg(long, value_name = "NAME")]
    pub signature_header: Option<HeaderName>,
}

/// How a signature is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SchemeArg {
    /// Hex HMAC-SHA256 of the body
    #[default]
    Aryeo,
    /// The same over `<timestamp>.<body>`, with a Timestamp header
    AryeoTimestamped,
    /// Base64 HMAC-SHA256 of `<id>.<timestamp>.<body>`, with the headers webhook-id and
    /// webhook-timestamp; the secret is base64, after `whsec_`
    StandardWebhooks,
    /// Hex HMAC-SHA256 of the body after `sha256=`, in X-Hub-Signature-256
    Github,
}

impl From<SchemeArg> for Scheme {
    fn from(scheme: SchemeArg) -> Self {
        match scheme {
            SchemeArg::Aryeo => Self::Aryeo,
            SchemeArg::AryeoTimestamped => Self::AryeoTimestamped,
            SchemeArg::StandardWebhooks => Self::StandardWebhooks,
            SchemeArg::Github => Self::Github,
        }
    }
}

impl SignatureArgs {
    /// The secret that was named, if any.
    pub fn secret(&self) -> anyhow::Result<Option<Secret>> {
        match (&self.secret_env, &self.secret_file) {
            (Some(name), _) => self.secret_in(name).map(Some),
            (None, Some(path)) => from_file(self.scheme.into(), path).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The secret in an environment variable.
    pub fn secret_in(&self, variable: &str) -> anyhow::Result<Secret> {
        from_env(self.scheme.into(), variable)
    }

    fn header(&self) -> HeaderName {
        self.signature_header.clone().unwrap_or_else(|| Scheme::from(self.scheme).header())
    }

    /// How requests are signed with this secret.
    pub fn signing(&self, secret: Secret) -> Signing {
        let header = self.header();
        Signing::With { scheme: self.scheme.into(), secret, also: Vec::new(), header }
    }

    /// How requests are verified with this secret.
    pub fn verification(&self, secret: Secret) -> Verification {
        Verification {
            scheme: self.scheme.into(),
            secrets: vec![secret],
            header: self.header(),
            tolerance: TIMESTAMP_TOLERANCE,
        }
    }
}

fn from_env(scheme: Scheme, name: &str) -> anyhow::Result<Secret> {
    // Someone may have put the secret itself there: what can't be a name is not repeated.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty()
        || !name.bytes().all(is_name)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        let text = "--secret-env takes the name of an environment variable, not the secret";
        return Err(Usage(text.to_owned()).into());
    }
    let value = config::from_env(&ProcessEnvironment, name).map_err(anyhow::Error::msg)?;
    Secret::written(scheme, format!("env:{name}"), &value).with_context(|| name.to_owned())
}

fn from_file(scheme: Scheme, path: &Path) -> anyhow::Result<Secret> {
    let value = config::from_file(path).map_err(anyhow::Error::msg)?;
    Secret::written(scheme, format!("file:{}", path.display()), &value)
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use http::HeaderMap;

    #[test]
    fn a_secret_file_may_end_with_a_newline_and_may_not_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let signed = |text: &str| {
            std::fs::write(&path, text).unwrap();
            from_file(Scheme::Aryeo, &path).map(|secret| {
                let signing = Signing::With {
                    scheme: Scheme::Aryeo,
                    secret,
                    also: Vec::new(),
                    header: crate::domain::signature::SIGNATURE,
                };
                signing.sign("", b"x", Timestamp::default())
            })
        };
        let plain = signed("abc").unwrap();
        assert_eq!(signed("abc\n").unwrap(), plain);
        assert_eq!(signed("abc\r\n").unwrap(), plain);
        assert_ne!(signed("abc\n\n").unwrap(), plain);
        assert!(signed("\n").unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn what_is_no_variable_s_name_is_not_repeated() {
        let error = from_env(Scheme::Aryeo, "hunter2-!").unwrap_err();
        assert!(error.is::<Usage>() && !error.to_string().contains("hunter2"));
        let error = from_env(Scheme::Aryeo, "ARYEO_RELAY_TEST_SURELY_UNSET").unwrap_err();
        assert!(error.to_string().contains("ARYEO_RELAY_TEST_SURELY_UNSET is not set"));
    }

    #[test]
    fn what_is_signed_by_these_flags_is_verified_by_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "whsec_c2VjcmV0\n").unwrap();
        let now = Timestamp::from_millis(1_700_000_000_000);
        for scheme in SchemeArg::value_variants() {
            for header in [None, Some(HeaderName::from_static("x-mine"))] {
                let args = SignatureArgs {
                    secret_env: None,
                    secret_file: Some(path.clone()),
                    scheme: *scheme,
                    signature_header: header.clone(),
                };
                let secret = args.secret().unwrap().unwrap();
                let headers: HeaderMap =
                    args.signing(secret.clone()).sign("id", b"x", now).into_iter().collect();
                assert!(args.verification(secret).verify(&headers, b"x", now).is_ok());
                let name = header.unwrap_or_else(|| Scheme::from(*scheme).header());
                assert!(headers.contains_key(name), "{scheme:?}");
            }
        }
        std::fs::write(&path, "hunter2!").unwrap();
        let error = format!("{:#}", from_file(Scheme::StandardWebhooks, &path).unwrap_err());
        assert!(error.contains("base64") && !error.contains("hunter2"), "{error}");
    }
}
