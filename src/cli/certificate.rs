//! `certificate`: a self-signed certificate for development.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;

use super::output::{Output, Style};
use super::{Usage, Verdict};
use crate::app::clock::SystemClock;
use crate::domain::time::{Clock, Timestamp};

/// What `help` says first.
pub const ABOUT: &str = "\
Make a self-signed certificate for development: tls.crt and tls.key, where `serve` looks for them.

It is for localhost, 127.0.0.1 and ::1. Nobody trusts it but who is told to: `send --ca
certs/tls.crt`, or `curl --cacert certs/tls.crt`. Aryeo verifies the whole chain, so that in
production a certificate of a public authority is needed.";

/// The flags of `certificate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One more host name or address it is for; may be repeated
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Where to put it; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub dir: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
}

/// How long it is valid: longer is refused by some clients.
pub const VALIDITY: Duration = Duration::from_secs(397 * 86_400);

/// What every development certificate is for.
pub const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate and its key.
pub struct Made {
    /// PEM. Who trusts it needs nothing else.
    pub certificate: String,
    /// PEM, PKCS #8.
    pub key: String,
    /// When it ends.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Made(until {})", self.not_after)
    }
}

/// Makes a certificate for these host names and addresses that is valid from yesterday on.
pub fn make(names: &[String], now: Timestamp) -> Result<Made, rcgen::Error> {
    let not_after = now.plus(VALIDITY);
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "aryeo-relay development");
    params.distinguished_name = subject;
    params.not_before = moment(now.minus(Duration::from_secs(86_400)));
    params.not_after = moment(not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Made { certificate: certificate.pem(), key: key.serialize_pem(), not_after })
}

fn moment(timestamp: Timestamp) -> OffsetDateTime {
    i64::try_from(timestamp.as_secs())
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Where a certificate and its key lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `tls.crt`.
    pub certificate: PathBuf,
    /// `tls.key`, readable by its owner only.
    pub key: PathBuf,
}

impl Files {
    /// Those of a directory.
    pub fn of(dir: &Path) -> Self {
        Self { certificate: dir.join("tls.crt"), key: dir.join("tls.key") }
    }

    /// Which of them is there already.
    pub fn existing(&self) -> Option<&Path> {
        // A link that leads nowhere is something, too: writing would replace it.
        let is_there = |path: &&PathBuf| path.symlink_metadata().is_ok();
        [&self.certificate, &self.key].into_iter().find(is_there).map(PathBuf::as_path)
    }

    /// Writes both, each whole or not at all; replaces what is there.
    pub fn write(&self, made: &Made) -> io::Result<()> {
        write_file(&self.key, &made.key, 0o600)?;
        write_file(&self.certificate, &made.certificate, 0o644)
    }
}

fn write_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    // Made 0600, so that the key is never open to others, not even for a moment.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Makes a certificate and says what it is good for.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let files = Files::of(&args.dir);
    if let Some(path) = files.existing().filter(|_| !args.force) {
        anyhow::bail!("{} is there already; --force replaces it", path.display());
    }
    let mut names: Vec<String> = LOCAL_NAMES.map(str::to_owned).to_vec();
    for name in &args.names {
        if !is_host(name) {
            let text = format!("--name {name}: neither a host name nor an address");
            return Err(Usage(text).into());
        }
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let made = make(&names, SystemClock::start().now()).context("the certificate can't be made")?;
    let place = || format!("it can't be written to {}", args.dir.display());
    files.write(&made).with_context(place)?;

    let out = Output::new();
    let (certificate, key) = (files.certificate.display(), files.key.display());
    out.line(format_args!("{} {certificate}", out.paint(Style::Good, "made")));
    out.line(format_args!("{} {key}, readable by you only", out.paint(Style::Good, "made")));
    out.line(format_args!("for  {}, until {}", names.join(", "), made.not_after));
    out.line("");
    out.line(format_args!("Trust it where you try things: aryeo-relay send --ca {certificate}"));
    out.line(
        "It is for development only: Aryeo verifies the whole chain, so that production needs a",
    );
    out.line("certificate of a public authority.");
    Ok(Verdict::Yes)
}

fn is_host(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    rustls::pki_types::ServerName::try_from(host).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::{Names, load_certificate};

    #[test]
    fn what_is_made_can_be_served_and_its_key_is_private() {
        let now = SystemClock::start().now();
        let names = LOCAL_NAMES.map(str::to_owned);
        let made = make(&names, now).unwrap();
        let called = Names { certificate: "tls.crt", key: "tls.key" };
        let (certificate, key) = (made.certificate.as_bytes(), made.key.as_bytes());
        let now = i64::try_from(now.as_secs()).unwrap();
        let loaded = load_certificate(certificate, key, called, now).unwrap();
        assert_eq!(u64::try_from(loaded.not_after_unix).unwrap(), made.not_after.as_secs());
        for name in names {
            assert!(loaded.names.contains(&name), "{} lacks {name}", loaded.names);
        }

        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(&dir.path().join("certs"));
        assert_eq!(files.existing(), None);
        files.write(&made).unwrap();
        assert_eq!(files.existing(), Some(&*files.certificate));
        let mode = fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{made:?}").contains("KEY"));
    }

    #[test]
    fn a_certificate_is_for_host_names_and_addresses_only() {
        for name in ["relay.internal", "*.example.com", "10.0.0.1", "fe80::1"] {
            assert!(is_host(name), "{name}");
        }
        for name in ["", "https://x", "a b", "x:8443"] {
            assert!(!is_host(name), "{name}");
        }
    }
}
