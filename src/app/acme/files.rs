//! What is kept of an authority: the account, and the certificate with its key.
//!
//! In the data directory, in a folder for each authority, so that what a staging authority gave is never
//! taken for the real one's. Everything is written whole, beside the old one, for its owner only.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::app::hex;
use crate::net::acme::{Credentials, Issued};

/// The folder of all authorities.
const FOLDER: &str = "acme";

const ACCOUNT: &str = "account.json";

/// The key first, then the chain: one file, so that they always belong together.
const CERTIFICATE: &str = "certificate.pem";

/// More than a certificate with its chain and key takes.
const ROOM: usize = 64 * 1024;

/// An authority's folder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
}

/// An account, and what it was made with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredAccount {
    /// The authority's directory; a folder that was copied from another one's shows by it.
    pub(super) directory: String,
    /// Whom the authority was told to write to.
    pub(super) contact: Vec<String>,
    /// The account's address and key.
    pub(super) credentials: Credentials,
}

impl Files {
    /// The folder of the authority with this directory.
    pub(super) fn of(data: &Path, directory: &str) -> Self {
        let address = directory.strip_prefix("https://").unwrap_or(directory);
        let allowed = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '-' };
        let readable: String = address.chars().take(80).map(allowed).collect();
        // What is readable may be the same for two.
        let digest = hex(&Sha256::digest(directory.as_bytes()));
        let name =
            format!("{}-{}", readable.trim_matches(['-', '.']), digest.get(..8).unwrap_or(""));
        Self { dir: data.join(FOLDER).join(name) }
    }

    /// Where the certificate is.
    pub(super) fn certificate_path(&self) -> PathBuf {
        self.dir.join(CERTIFICATE)
    }

    /// The account, if there is one.
    pub(super) fn account(&self) -> io::Result<Option<StoredAccount>> {
        let Some(text) = self.read(ACCOUNT)? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Keeps an account instead of the one before.
    pub(super) fn keep_account(&self, account: &StoredAccount) -> io::Result<()> {
        self.write(ACCOUNT, &Zeroizing::new(serde_json::to_vec_pretty(account)?))
    }

    /// The key and the chain, PEM, if they are there.
    pub(super) fn certificate(&self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        self.read(CERTIFICATE)
    }

    /// Keeps a certificate instead of the one before.
    pub(super) fn keep_certificate(&self, issued: &Issued) -> io::Result<()> {
        let mut text = issued.key.clone();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&issued.chain);
        self.write(CERTIFICATE, text.as_bytes())
    }

    /// Whether a certificate could be kept here: an authority gives only so many of them, so that is
    /// asked before one is ordered.
    pub(super) fn try_room(&self) -> io::Result<()> {
        self.make()?;
        let new = self.new_of(CERTIFICATE);
        write_safely(&new, &[b'\n'; ROOM])?;
        std::fs::remove_file(&new)
    }

    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        match std::fs::read(self.dir.join(name)) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, text: &[u8]) -> io::Result<()> {
        self.make()?;
        let new = self.new_of(name);
        write_safely(&new, text)?;
        std::fs::rename(&new, self.dir.join(name))?;
        File::open(&self.dir)?.sync_all()
    }

    fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    fn new_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.new"))
    }
}

fn write_safely(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

    fn issued(text: &str) -> Issued {
        Issued { chain: format!("chain {text}\n"), key: Zeroizing::new(format!("key {text}")) }
    }

    #[test]
    fn each_authority_has_a_folder_of_its_own_with_a_name_to_be_read() {
        let name = |directory: &str| {
            let files = Files::of(Path::new("data"), directory);
            files.dir.strip_prefix("data/acme").unwrap().to_str().unwrap().to_owned()
        };
        let staging = name(STAGING);
        assert!(
            staging.starts_with("acme-staging-v02.api.letsencrypt.org-directory-"),
            "{staging}"
        );
        assert_ne!(name("https://a/b"), name("https://a-b"));
        for odd in ["https://../../etc/passwd", "https://[::1]:14000/dir", "https:///"] {
            assert!(!name(odd).contains('/') && !name(odd).starts_with('.'), "{}", name(odd));
        }
    }

    #[test]
    fn what_is_kept_is_its_owner_s_and_read_back() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::of(data.path(), STAGING);
        assert!(files.certificate().unwrap().is_none() && files.account().unwrap().is_none());
        files.try_room().unwrap();
        assert!(files.certificate().unwrap().is_none(), "room is no certificate");
        for text in ["1", "2"] {
            files.keep_certificate(&issued(text)).unwrap();
            let kept = files.certificate().unwrap().unwrap();
            assert_eq!(&**kept, format!("key {text}\nchain {text}\n").as_bytes());
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.dir), mode(&data.path().join(FOLDER))), (0o700, 0o700));
        assert_eq!(mode(&files.certificate_path()), 0o600);
        assert_eq!(std::fs::read_dir(&files.dir).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn an_account_that_can_t_be_read_is_no_account() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::of(data.path(), STAGING);
        files.write(ACCOUNT, b"{").unwrap();
        assert!(files.account().is_err());
        let key = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgJVWC";
        let text = format!(
            r#"{{"directory":"{STAGING}","contact":[],"credentials":{{"id":"https://a/1","key_pkcs8":"{key}","directory":"{STAGING}"}}}}"#
        );
        files.write(ACCOUNT, text.as_bytes()).unwrap();
        let account = files.account().unwrap().unwrap();
        assert_eq!(account.directory, STAGING);
        assert!(!format!("{account:?}").contains("MIGH"), "{account:?}");
        files.keep_account(&account).unwrap();
        assert!(files.account().unwrap().is_some());
    }
}
