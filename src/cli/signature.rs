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
    /// The header that carries the signature
    #[arg(long, value_name = "NAME", default_value = "Signature")]
    pub signature_header: HeaderName,
}

/// How a signature is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SchemeArg {
    /// Hex HMAC-SHA256 of the body
    #[default]
    Aryeo,
    /// The same over `<timestamp>.<body>`, with a Timestamp header
    AryeoTimestamped,
}

impl From<SchemeArg> for Scheme {
    fn from(scheme: SchemeArg) -> Self {
        match scheme {
            SchemeArg::Aryeo => Self::Aryeo,
            SchemeArg::AryeoTimestamped => Self::AryeoTimestamped,
        }
    }
}

impl SignatureArgs {
    /// The secret that was named, if any.
    pub fn secret(&self) -> anyhow::Result<Option<Secret>> {
        match (&self.secret_env, &self.secret_file) {
            (Some(name), _) => from_env(name).map(Some),
            (None, Some(path)) => from_file(path).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// How requests are signed with this secret.
    pub fn signing(&self, secret: Secret) -> Signing {
        Signing::With {
            scheme: self.scheme.into(),
            secret,
            also: Vec::new(),
            header: self.signature_header.clone(),
        }
    }

    /// How requests are verified with this secret.
    pub fn verification(&self, secret: Secret) -> Verification {
        Verification {
            scheme: self.scheme.into(),
            secrets: vec![secret],
            header: self.signature_header.clone(),
            tolerance: TIMESTAMP_TOLERANCE,
        }
    }
}

/// The secret in an environment variable.
pub fn from_env(name: &str) -> anyhow::Result<Secret> {
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
    Secret::new(format!("env:{name}"), &value).context("a secret can't be empty")
}

fn from_file(path: &Path) -> anyhow::Result<Secret> {
    let value = config::from_file(path).map_err(anyhow::Error::msg)?;
    Secret::new(format!("file:{}", path.display()), &value).context("a secret can't be empty")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    #[test]
    fn a_secret_file_may_end_with_a_newline_and_may_not_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let signed = |text: &str| {
            std::fs::write(&path, text).unwrap();
            from_file(&path).map(|secret| {
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
        let error = from_env("hunter2-!").unwrap_err();
        assert!(error.is::<Usage>() && !error.to_string().contains("hunter2"));
        let error = from_env("ARYEO_RELAY_TEST_SURELY_UNSET").unwrap_err();
        assert!(error.to_string().contains("ARYEO_RELAY_TEST_SURELY_UNSET is not set"));
    }
}
