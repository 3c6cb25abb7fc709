//! The image of `deploy/container`, and containers of it as a runtime makes them: a view of the file
//! system of their own, whose root can't be written, and the image's user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::relay::{BINARY, Background, Ended, command, folder, run};
use super::tools::{can_go_on, has};
use super::{AUTHORITY, eventually};

/// What the tests call it.
const TAG: &str = "aryeo-relay:test";

/// An image, in a store of its own.
pub(crate) struct Image {
    _store: TempDir,
    /// What a container of it sees.
    pub(crate) root: PathBuf,
    /// What it says of itself.
    pub(crate) config: Value,
    /// Its program needs no libraries.
    pub(crate) is_static: bool,
}

/// A folder of this machine, and where a container has it.
pub(crate) struct Mount {
    pub(crate) from: PathBuf,
    pub(crate) at: String,
    pub(crate) read_only: bool,
}

/// Binds what follows and the image, adds the devices that every runtime gives (a static program has its random
/// numbers of them), makes the root read-only, and becomes the program.
const RUNTIME: &str = "set -e\n\
    root=$1 user=$2; shift 2\n\
    mount --bind \"$root\" \"$root\"\n\
    while [ \"$1\" != -- ]; do\n\
        mkdir -p \"$root$2\"; mount --bind \"$1\" \"$root$2\"\n\
        [ \"$3\" = rw ] || mount -o remount,bind,ro \"$root$2\"\n\
        shift 3\n\
    done\n\
    shift\n\
    mkdir -p \"$root/dev\"; mount -t tmpfs -o mode=755 none \"$root/dev\"\n\
    for name in full null random urandom zero; do\n\
        touch \"$root/dev/$name\"; mount --bind /dev/$name \"$root/dev/$name\"\n\
    done\n\
    mount -o remount,bind,ro \"$root\"\n\
    exec /usr/sbin/chroot --userspec=\"$user\" --groups= \"$root\" \"$@\" 2>&1";

impl Image {
    /// Builds it as an operator does, but of the program under test: of `RELAY_TEST_STATIC_PROGRAM` where that is
    /// set, else of the tests' own, which is not static and brings its libraries; and with the tests' own authority as
    /// its roots. `None` where that can't be had.
    #[track_caller]
    pub(crate) fn build() -> Option<Self> {
        let mounts =
            command("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
        let may_mount = mounts.is_ok_and(|output| output.status.success());
        if !can_go_on(may_mount, "no mounts of its own: only root may, and not in every container")
            || !has("buildah", "--version")
        {
            return None;
        }
        let store = folder();
        let named = std::env::var_os("RELAY_TEST_STATIC_PROGRAM").map(PathBuf::from);
        let is_static = named.is_some();
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/container/build");
        let buildah = buildah(store.path());
        let mut build = command(build);
        build.env("BUILDER", buildah.join(" ")).env("HOME", store.path());
        let roots = store.path().join("roots.pem");
        fs::write(&roots, AUTHORITY.pem()).unwrap();
        build.env("SSL_CERT_FILE", roots);
        let built = run(build.arg("--program").arg(named.unwrap_or(BINARY.into())).arg(TAG));
        assert_eq!(built.code, Some(0), "{built:?}");
        assert_eq!(built.stdout.lines().last(), Some(TAG), "{built:?}");
        let ask = |words: &[&str]| {
            let mut ask = command(&buildah[0]);
            let asked = run(ask.args(&buildah[1..]).args(words).env("HOME", store.path()));
            assert_eq!(asked.code, Some(0), "{asked:?}");
            asked.stdout
        };
        let inspected: Value =
            serde_json::from_str(&ask(&["inspect", "--type", "image", TAG])).unwrap();
        let config = inspected["Docker"]["config"].clone();
        let container = ask(&["from", "--pull-never", TAG]);
        let root = PathBuf::from(ask(&["mount", container.trim()]).trim());
        Some(Self { _store: store, root, config, is_static })
    }

    /// A list of texts of the configuration.
    pub(crate) fn words(&self, key: &str) -> Vec<&str> {
        self.config[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    }

    /// The names and values of its environment.
    pub(crate) fn environment(&self) -> Vec<(&str, &str)> {
        self.words("Env").into_iter().map(|line| line.split_once('=').unwrap()).collect()
    }

    /// What a container comes to that has these arguments instead of the image's own.
    #[track_caller]
    pub(crate) fn run(&self, mounts: &[Mount], words: &[&str]) -> Ended {
        run(runtime(self, mounts, words).envs(self.environment()))
    }
}

/// With everything in one folder.
fn buildah(store: &Path) -> Vec<String> {
    let at = |name: &str| store.join(name).to_string_lossy().into_owned();
    let words =
        ["buildah", "--storage-driver", "vfs", "--root", &at("root"), "--runroot", &at("run")];
    words.map(str::to_owned).to_vec()
}

/// A container of this image, without variables.
fn runtime(image: &Image, mounts: &[Mount], words: &[&str]) -> Command {
    let mut runtime = Command::new("/usr/bin/unshare");
    runtime.env_clear().stdin(std::process::Stdio::null());
    runtime.args(["-m", "/bin/sh", "-c", RUNTIME, "sh"]).arg(&image.root);
    runtime.arg(image.config["User"].as_str().unwrap());
    for mount in mounts {
        runtime.arg(&mount.from).arg(&mount.at).arg(if mount.read_only { "ro" } else { "rw" });
    }
    runtime.args(["/proc", "/proc", "ro", "--"]);
    runtime.args(image.words("Entrypoint")).args(words);
    runtime
}

/// A container that runs what its image says, until it is dropped.
pub(crate) struct Container<'a> {
    image: &'a Image,
    environment: Vec<(String, String)>,
    process: Background,
}

impl<'a> Container<'a> {
    /// Starts it with these mounts and variables, on this machine's network.
    pub(crate) fn start(
        image: &'a Image,
        mounts: &[Mount],
        environment: &[(String, String)],
    ) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let mut all: Vec<_> = image.environment().into_iter().map(owned).collect();
        all.extend_from_slice(environment);
        let mut runtime = runtime(image, mounts, &image.words("Cmd"));
        runtime.envs(all.iter().map(|(name, value)| (name, value)));
        Self { image, environment: all, process: Background::start(&mut runtime) }
    }

    /// Where it says that it listens, and its admin address.
    #[track_caller]
    pub(crate) fn addresses(&self) -> (std::net::SocketAddr, std::net::SocketAddr) {
        eventually("the relay says where it listens", || {
            let lines = self.process.lines();
            let found = lines.iter().find_map(|line| {
                let event: Value = serde_json::from_str(line).ok()?;
                let address = |key: &str| event[key].as_str()?.parse().ok();
                Some((address("listen")?, address("admin")?))
            });
            found.ok_or_else(|| format!("it says only: {}", lines.join("\n")))
        })
    }

    /// What another command in it comes to; a variable more is as good as the flag.
    pub(crate) fn execute(&self, words: &[&str], environment: &[(&str, &str)]) -> Ended {
        let process = self.process.id().to_string();
        let (user, group) = self.image.config["User"].as_str().unwrap().split_once(':').unwrap();
        let mut enter = Command::new("/usr/bin/nsenter");
        enter.env_clear().stdin(std::process::Stdio::null());
        enter.args(["--target", &process, "--mount", "--root", "--wd=/"]);
        enter.args(["--setuid", user, "--setgid", group]).args(words);
        enter.envs(self.environment.iter().map(|(name, value)| (name, value)));
        run(enter.envs(environment.iter().copied()))
    }

    /// A path in it, seen from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.process.id()))
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the container's last words:\n{}", self.process.lines().join("\n"));
        }
    }
}
