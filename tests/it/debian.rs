//! The Debian package: what is in it, what installing it does, and what is left when it goes.
//!
//! It is built of the tests' own program and installed in a copy of this machine's file system that nothing is written
//! through to, for a package's scripts need a system around them. No service manager runs there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::relay::{BINARY, Ended, command, folder, run};
use crate::support::tools::{can_go_on, has};

/// A package of the program under test; it is not compressed, which would take longer than all else.
#[track_caller]
fn package(into: &TempDir) -> PathBuf {
    package_of(Path::new(env!("CARGO_MANIFEST_DIR")), env!("CARGO_PKG_VERSION"), into)
}

/// The same of another tree, which comes to this version.
#[track_caller]
fn package_of(tree: &Path, version: &str, into: &TempDir) -> PathBuf {
    let mut build = command(tree.join("deploy/debian/build"));
    build.args(["--program", BINARY]).arg(into.path()).env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    let built = run(&mut build);
    assert_eq!(built.code, Some(0), "{built:?}");
    let architecture = run(command("dpkg").arg("--print-architecture")).stdout;
    let name = format!("aryeo-relay_{version}_{}.deb", architecture.trim());
    let package = into.path().join(name);
    assert_eq!(built.stdout.trim(), package.to_str().unwrap());
    package
}

#[track_caller]
fn printed(program: &str, arguments: &[&str], file: &Path) -> String {
    let ended = run(command(program).args(arguments).arg(file));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

#[test]
fn the_package_has_the_program_its_units_and_what_shells_and_readers_want() {
    if !has("dpkg-shlibdeps", "--version") {
        return;
    }
    let into = folder();
    let package = package(&into);
    let field = |name: &str| {
        let ended = run(command("dpkg-deb").arg("--field").arg(&package).arg(name));
        ended.stdout.trim().to_owned()
    };
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    let needs = field("Depends");
    for need in ["libc6 (>= ", "systemd (>= 251)"] {
        assert!(needs.contains(need), "{needs}");
    }
    let size: u64 = field("Installed-Size").parse().unwrap();
    let program = fs::metadata(BINARY).unwrap().len() / 1024;
    assert!(size > program && size < program + 4096, "{size} KiB for {program} KiB");
    for line in printed("dpkg-deb", &["--contents"], &package).lines() {
        assert!(line.contains(" root/root "), "{line}");
    }
    let control = into.path().join("control");
    let extract = run(command("dpkg-deb").arg("--control").arg(&package).arg(&control));
    assert_eq!(extract.code, Some(0), "{extract:?}");
    let settings = fs::read_to_string(control.join("conffiles")).unwrap();
    assert_eq!(settings, "/etc/default/aryeo-relay\n");

    let tree = into.path().join("tree");
    let extract = run(command("dpkg-deb").arg("--extract").arg(&package).arg(&tree));
    assert_eq!(extract.code, Some(0), "{extract:?}");
    let relay = |words: &[&str]| -> Ended {
        let ended = run(command(tree.join("usr/bin/aryeo-relay")).args(words));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    };
    assert!(relay(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
    for (shell, file) in [
        ("bash", "usr/share/bash-completion/completions/aryeo-relay"),
        ("zsh", "usr/share/zsh/vendor-completions/_aryeo-relay"),
        ("fish", "usr/share/fish/vendor_completions.d/aryeo-relay.fish"),
    ] {
        let script = fs::read_to_string(tree.join(file)).unwrap();
        assert_eq!(script, relay(&["completions", shell]).stdout);
    }
    let pages = into.path().join("pages");
    relay(&["man", pages.to_str().unwrap()]);
    for entry in fs::read_dir(&pages).unwrap() {
        let page = entry.unwrap();
        let name = format!("usr/share/man/man1/{}.gz", page.file_name().to_str().unwrap());
        let packed = printed("gzip", &["-dc"], &tree.join(name));
        assert_eq!(packed, fs::read_to_string(page.path()).unwrap());
    }
    let doc = tree.join("usr/share/doc/aryeo-relay");
    let described =
        ["README.md", "deploy/README.md", "deploy/metrics.md", "deploy/prometheus/alerts.yaml"];
    for name in
        ["copyright", "changelog.gz", "deploy/grafana/aryeo-relay.json"].iter().chain(&described)
    {
        assert!(doc.join(name).is_file(), "{name}");
    }
    secrets_are_credentials(&doc.join("examples/routes.yaml"));
    verified(&tree);
}

/// The example is good where each secret is what systemd makes of a file in the folder of secrets, and says so.
#[track_caller]
fn secrets_are_credentials(routes: &Path) {
    let without = run(command(BINARY).args(["check", "--no-secrets"]).arg(routes));
    assert_eq!(without.code, Some(0), "{without:?}");
    let credentials = folder();
    let text = fs::read_to_string(routes).unwrap();
    let code = text.lines().filter(|line| !line.starts_with('#'));
    let mut count = 0;
    for line in code {
        assert!(!line.contains("env:"), "{line}");
        let Some((_, named)) = line.split_once("file: $CREDENTIALS_DIRECTORY/") else { continue };
        let name = named.split([',', ' ']).next().unwrap();
        assert!(name.starts_with("secret_"), "{line}");
        fs::write(credentials.path().join(name), format!("of-{name}")).unwrap();
        count += 1;
    }
    assert!(count > 5, "{text}");
    let mut check = command(BINARY);
    check.env("CREDENTIALS_DIRECTORY", credentials.path()).arg("check").arg(routes);
    let checked = run(&mut check);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(text.contains("secrets/crm is $CREDENTIALS_DIRECTORY/secret_crm"), "{text}");
}

#[test]
fn a_release_candidate_is_older_than_its_release() {
    if !has("dpkg-shlibdeps", "--version") {
        return;
    }
    // This tree, but for its version.
    let tree = folder();
    for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
        let entry = entry.unwrap();
        symlink(entry.path(), tree.path().join(entry.file_name())).unwrap();
    }
    let manifest = tree.path().join("Cargo.toml");
    let version = |version: &str| format!("\nversion = \"{version}\"\n");
    let text = fs::read_to_string(&manifest).unwrap();
    let text = text.replacen(&version(env!("CARGO_PKG_VERSION")), &version("1.0.0-rc.1"), 1);
    fs::remove_file(&manifest).unwrap();
    fs::write(manifest, text).unwrap();

    let into = folder();
    let package = package_of(tree.path(), "1.0.0~rc.1", &into);
    let found = run(command("dpkg-deb").arg("--field").arg(&package).arg("Version")).stdout;
    let compare = ["--compare-versions", found.trim(), "lt", "1.0.0"];
    assert_eq!(run(command("dpkg").args(compare)).code, Some(0), "{found}");
}

/// systemd takes the units as they are in the package.
fn verified(tree: &Path) {
    if !has("systemd-analyze", "--version") {
        return;
    }
    let program = tree.join("usr/bin/aryeo-relay");
    let copies = folder();
    for name in ["aryeo-relay.service", "aryeo-relay.socket"] {
        let unit = fs::read_to_string(tree.join("usr/lib/systemd/system").join(name)).unwrap();
        let unit = unit.replace("/usr/bin/aryeo-relay", program.to_str().unwrap());
        fs::write(copies.path().join(name), unit).unwrap();
    }
    for name in ["aryeo-relay.service", "aryeo-relay.socket"] {
        let mut verify = command("systemd-analyze");
        let verified = run(verify.args(["--man=no", "verify"]).arg(copies.path().join(name)));
        assert_eq!((verified.code, &*verified.stderr), (Some(0), ""), "{verified:?}");
    }
}

/// Everything of this machine, seen through a layer in memory that takes what is written; then `$2`, in there.
///
/// Nothing goes on unless the mark that is put into the layer is seen where the script runs.
const COPY: &str = "set -e\n\
    mount --make-rprivate /\n\
    mount -t tmpfs none \"$1\"\n\
    mkdir \"$1/upper\" \"$1/work\" \"$1/system\"\n\
    mount -t overlay overlay -o lowerdir=/,upperdir=\"$1/upper\",workdir=\"$1/work\" \"$1/system\"\n\
    touch \"$1/system/only-a-copy\"\n\
    mount -t proc none \"$1/system/proc\"\n\
    mount -t tmpfs none \"$1/system/run\"\n\
    mount -t tmpfs none \"$1/system/tmp\"\n\
    cp \"$3\" \"$1/system/tmp/package.deb\"\n\
    exec /usr/sbin/chroot \"$1/system\" /bin/sh -ec \"test -e /only-a-copy; test ! -e /run/systemd; $2\"";

/// Runs a script there; the package lies in `/tmp/package.deb`.
fn in_a_copy(script: &str, package: &Path) -> Ended {
    let at = folder();
    let mut copy = command("unshare");
    copy.args(["-m", "sh", "-c", COPY, "sh"]).arg(at.path()).arg(script).arg(package);
    run(copy.env("DEBIAN_FRONTEND", "noninteractive"))
}

#[test]
fn installed_it_has_its_user_and_starts_nothing_and_gone_it_leaves_what_is_the_operators() {
    if !has("dpkg-shlibdeps", "--version") || !has("systemd-sysusers", "--version") {
        return;
    }
    let into = folder();
    let package = package(&into);
    let tried = in_a_copy("true", &package);
    let what = format!("no copy of the file system: {}", tried.stderr.trim());
    if !can_go_on(tried.code == Some(0), &what) {
        return;
    }
    // Its needs may be newer here than what the tests run on; they are the package manager's to look after.
    const STORY: &str = "\
        dpkg --no-triggers --force-depends -i /tmp/package.deb\n\
        echo == installed\n\
        getent passwd aryeo-relay\n\
        cd / && stat -c '%n %a %U %G' etc/aryeo-relay etc/aryeo-relay/* var/lib/aryeo-relay\n\
        find etc/systemd -name '*aryeo*'\n\
        setpriv --reuid aryeo-relay --regid aryeo-relay --clear-groups \
            aryeo-relay check --no-secrets /usr/share/doc/aryeo-relay/examples/routes.yaml | tail -n 1\n\
        mkdir -p etc/systemd/system/multi-user.target.wants var/lib/aryeo-relay/segments\n\
        ln -s /usr/lib/systemd/system/aryeo-relay.service etc/systemd/system/multi-user.target.wants/\n\
        touch var/lib/aryeo-relay/segments/1.log etc/aryeo-relay/routes.yaml etc/aryeo-relay/secrets/crm\n\
        echo == again\n\
        dpkg --no-triggers --force-depends -i /tmp/package.deb\n\
        echo == removed\n\
        dpkg --no-triggers -r aryeo-relay\n\
        ls usr/bin/aryeo-relay usr/lib/systemd/system/aryeo-relay* etc/default/aryeo-relay 2>/dev/null || true\n\
        echo == purged\n\
        dpkg --no-triggers -P aryeo-relay\n\
        ls etc/default/aryeo-relay 2>/dev/null || true\n\
        find etc/systemd -name '*aryeo*'\n\
        echo == kept\n\
        find etc/aryeo-relay var/lib/aryeo-relay -type f | sort\n\
        getent passwd aryeo-relay | cut -d : -f 1";
    let ended = in_a_copy(STORY, &package);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let chapter = |name: &str| -> Vec<&str> {
        let lines = ended.stdout.lines().skip_while(|line| *line != format!("== {name}")).skip(1);
        lines.take_while(|line| !line.starts_with("== ")).collect()
    };
    assert!(ended.stdout.contains("systemctl enable --now aryeo-relay.socket"), "{ended:?}");
    let installed = chapter("installed");
    assert!(installed[0].starts_with("aryeo-relay:x:"), "{installed:?}");
    assert!(installed[0].contains(":/var/lib/aryeo-relay:"), "{installed:?}");
    let folders = [
        "etc/aryeo-relay 755 root root",
        "etc/aryeo-relay/secrets 700 root root",
        "etc/aryeo-relay/tls 750 root aryeo-relay",
        "var/lib/aryeo-relay 700 aryeo-relay aryeo-relay",
    ];
    assert_eq!(installed[1..5], folders);
    // Nothing is enabled.
    assert!(installed.len() == 6 && installed[5].contains("routes.yaml"), "{installed:?}");
    // Who has it already need not be told again.
    let again = chapter("again").join("\n");
    assert!(!again.contains("systemctl enable"), "{again}");
    for name in ["removed", "purged"] {
        let told = chapter(name).join("\n");
        assert!(told.contains("kept: /var/lib/aryeo-relay"), "{name}: {told}");
    }
    // Only the settings of the package's own, until they are purged.
    assert_eq!(chapter("removed").last(), Some(&"etc/default/aryeo-relay"));
    assert!(chapter("purged").iter().all(|line| !line.starts_with("etc/")), "{ended:?}");
    let kept = [
        "etc/aryeo-relay/routes.yaml",
        "etc/aryeo-relay/secrets/crm",
        "var/lib/aryeo-relay/segments/1.log",
        "aryeo-relay",
    ];
    assert_eq!(chapter("kept"), kept, "{ended:?}");
    assert!(!Path::new("/only-a-copy").exists() && !Path::new("/etc/aryeo-relay").exists());
}
