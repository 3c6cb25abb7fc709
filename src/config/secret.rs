//! Where secrets and other files come from, and reading them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::file::{self, FileRead};
use crate::config::token;

/// A secret longer than this is a wrong file.
pub(super) const SECRET_BYTES_MAX: usize = 64 * 1024;

/// A bundle of all public authorities is a quarter of this.
pub(super) const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Where environment variables come from.
pub trait Environment {
    /// The value of a variable, if it is set and text.
    fn var(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads secrets' variables")]
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

impl Environment for HashMap<String, String> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

/// What happens to secrets and TLS files that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// They are not looked for at all, as for a question that no secret answers. Stand-ins as for
    /// [`Warn`](Self::Warn) take their places; nothing may be signed, sent or verified with them.
    Ignore,
    /// They are errors.
    Resolve,
    /// They are warnings, as for a check where the secrets are not. Something random that proves
    /// nothing to anybody stands in for each.
    Warn,
}

/// Where a service manager puts a service's credentials: systemd's LoadCredential=.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Where a file is: relative to `folder`, but with `$CREDENTIALS_DIRECTORY/` before it among the credentials of
/// this service.
pub(super) fn location(text: &str, folder: &Path, env: &dyn Environment) -> PathBuf {
    let name = text.strip_prefix('$').and_then(|text| text.strip_prefix(CREDENTIALS));
    let credential =
        name.and_then(|text| Some(Path::new(&env.var(CREDENTIALS)?).join(text.strip_prefix('/')?)));
    credential.unwrap_or_else(|| folder.join(text))
}

/// The bytes of a secret in a variable.
pub fn from_env(env: &dyn Environment, name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    if name.is_empty() {
        return Err("the name of the environment variable is empty".to_owned());
    }
    let wrong = |what: &str| {
        if is_conventional(name) {
            return Err(format!("the environment variable {name} is {what}"));
        }
        let hint = "`env` takes the name of a variable, not the secret";
        Err(format!("the environment variable of that name is {what}: {hint}"))
    };
    match env.var(name) {
        None => wrong("not set"),
        Some(value) if value.is_empty() => wrong("empty"),
        Some(value) if value.len() > SECRET_BYTES_MAX => {
            wrong(&format!("longer than {SECRET_BYTES_MAX} bytes"))
        }
        Some(value) => Ok(Zeroizing::new(value.into_bytes())),
    }
}

/// Whether a name is written as those of variables are. What is not could be the secret itself in the
/// place of its name, and is not shown.
pub(super) fn is_conventional(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    // Names of several words have something between them; without, digits are of a key as AKIA….
    let is_run = name.len() >= token::CHARS_MIN && !name.contains('_');
    let is_random = is_run && name.bytes().any(|byte| byte.is_ascii_digit());
    name.bytes().all(fits)
        && name.starts_with(|c: char| !c.is_ascii_digit())
        && !is_random
        && !token::is_token(name)
}

/// The bytes of a secret in a file, without the newline at its end.
pub fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    without_newline(path, read_file(path, SECRET_BYTES_MAX, &mut Vec::new())?)
}

/// The bytes of a token in a file: a secret that a header can carry. What was read is remembered in
/// `files`.
pub fn token_from_file(
    path: &Path,
    files: &mut Vec<FileRead>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let token = from_file_remembered(path, files)?;
    if token.iter().all(u8::is_ascii_graphic) {
        return Ok(token);
    }
    Err(format!("{} is no token: it has spaces or more than one line", path.display()))
}

/// A secret as [`from_file`] reads it, remembered in `files`.
pub(super) fn from_file_remembered(
    path: &Path,
    files: &mut Vec<FileRead>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    without_newline(path, read_file(path, SECRET_BYTES_MAX, files)?)
}

fn without_newline(
    path: &Path,
    mut bytes: Zeroizing<Vec<u8>>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    if bytes.is_empty() { Err(format!("{} is empty", path.display())) } else { Ok(bytes) }
}

/// The bytes of a file of at most `bytes_max`, remembered in `files`.
pub(super) fn read_file(
    path: &Path,
    bytes_max: usize,
    files: &mut Vec<FileRead>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let (bytes, read) = file::read(path, bytes_max);
    if !files.contains(&read) {
        files.push(read);
    }
    bytes.map_err(|error| {
        let path = path.display().to_string();
        let unset = path.contains(&format!("${CREDENTIALS}/"));
        let hint =
            if unset { ": CREDENTIALS_DIRECTORY is not set: it is for a service" } else { "" };
        format!("{path} {error}{hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_where_the_service_manager_says() {
        let at = |text: &str, env: &HashMap<String, String>| location(text, Path::new("etc"), env);
        let none = HashMap::new();
        let service = HashMap::from([(CREDENTIALS.to_owned(), "/run/credentials/r".to_owned())]);
        let name = "$CREDENTIALS_DIRECTORY/crm";
        assert_eq!(at(name, &service), Path::new("/run/credentials/r/crm"));
        for other in
            ["crm", "/crm", "$CREDENTIALS_DIRECTORY", "$CREDENTIALS_DIRECTORYcrm", "$HOME/a"]
        {
            assert_eq!(at(other, &service), Path::new("etc").join(other));
        }
        let error = from_file(&at(name, &none)).unwrap_err();
        assert!(error.contains("CREDENTIALS_DIRECTORY is not set"), "{error}");
    }

    #[test]
    fn one_newline_at_the_end_of_a_file_is_dropped_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (content, expected) in [
            ("abc", Some("abc")),
            ("abc\n", Some("abc")),
            ("abc\r\n", Some("abc")),
            ("abc\n\n", Some("abc\n")),
            (" abc ", Some(" abc ")),
            ("abc\r", Some("abc\r")),
            ("", None),
            ("\n", None),
            ("\r\n", None),
        ] {
            std::fs::write(&path, content).unwrap();
            let read = from_file(&path).ok().map(|bytes| bytes.to_vec());
            assert_eq!(read.as_deref(), expected.map(str::as_bytes), "{content:?}");
        }
    }

    #[test]
    fn what_can_not_be_a_secret_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = from_file(folder.path()).unwrap_err();
        assert_eq!(error, format!("{} is not a file", folder.path().display()));
        assert!(from_file(&folder.path().join("none")).unwrap_err().contains("can't be read"));
        let path = folder.path().join("large");
        std::fs::write(&path, vec![b'x'; SECRET_BYTES_MAX + 1]).unwrap();
        assert!(from_file(&path).unwrap_err().contains("larger than"));
    }

    #[test]
    fn a_token_is_what_a_header_can_carry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (content, is_good) in [
            ("s3cr3t-._~+/=\n", true),
            ("two words\n", false),
            ("uno\ndos\n", false),
            ("tab\t", false),
            ("schlüssel", false),
            ("\n", false),
        ] {
            std::fs::write(&path, content).unwrap();
            let token = token_from_file(&path, &mut Vec::new());
            assert_eq!(token.is_ok(), is_good, "{content:?}");
            let error = token.err().unwrap_or_default();
            assert!(!content.lines().any(|line| line.len() > 1 && error.contains(line)), "{error}");
        }
    }

    #[test]
    fn each_file_is_remembered_once_unless_it_changes_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "one").unwrap();
        let mut files = Vec::new();
        for content in ["one", "one", "two"] {
            std::fs::write(&path, content).unwrap();
            from_file_remembered(&path, &mut files).unwrap();
        }
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn a_variable_that_is_unset_or_empty_is_no_secret() {
        let env =
            HashMap::from([("A".to_owned(), "x".to_owned()), ("B".to_owned(), String::new())]);
        assert_eq!(from_env(&env, "A").unwrap().as_slice(), b"x");
        assert_eq!(from_env(&env, "B").unwrap_err(), "the environment variable B is empty");
        assert_eq!(from_env(&env, "C").unwrap_err(), "the environment variable C is not set");
        let unnamed = "the name of the environment variable is empty";
        assert_eq!(from_env(&env, "").unwrap_err(), unnamed);
        // It could be the secret itself.
        let hidden = "the environment variable of that name is not set: `env` takes the name of a \
                      variable, not the secret";
        for name in ["hunter2", "AKIAIOSFODNN7EXAMPLE", "JBSWY3DPEHPK3PXP", "7TH", "A-B"] {
            assert_eq!(from_env(&env, name).unwrap_err(), hidden);
        }
        for name in ["ARYEO_WEBHOOK_SECRET_2026", "PGPASSWORD", "SECRET_S3_EU_WEST_1"] {
            assert!(from_env(&env, name).unwrap_err().contains(name));
        }
    }
}
