//! What the files of `deploy` name exists in the binary: flags, variables, commands, ports, paths, metrics.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::delivers::walk;
use crate::support::relay::{BINARY, command, run};
use crate::support::{Receiver, Routes, TestRelay};

/// Flags of other programs that these files speak of.
const OTHERS: &[&str] = &[
    // Of a Dockerfile.
    "--chown",
    "--interval",
    "--retries",
    "--start-period",
    "--timeout",
    // Of kubectl.
    "--cascade",
    "--cert",
    "--for",
    "--from-file",
    "--key",
    "--replicas",
];

/// Everything that tells how the relay is run. Scripts are run by tests of their own.
fn files() -> Vec<(PathBuf, String)> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let folders = ["container", "debian", "kubernetes", "systemd"];
    let files = folders.iter().flat_map(|name| walk(&deploy.join(name)));
    let texts = files.map(|file| (fs::read_to_string(&file).unwrap(), file));
    let texts = texts.filter(|(text, _)| !text.starts_with("#!"));
    let all: Vec<_> = texts.map(|(text, file)| (file, text)).collect();
    assert!(all.len() > 15, "{all:?}");
    all
}

/// Words that begin so and go on with these characters, where no other word ends before them.
fn words<'a>(text: &'a str, start: &'a str, goes_on: impl Fn(char) -> bool) -> BTreeSet<&'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let found = text.match_indices(start).filter_map(|(at, _)| {
        if text[..at].ends_with(is_part) {
            return None;
        }
        let rest = &text[at..];
        let end = rest[start.len()..].find(|c| !goes_on(c)).map(|end| start.len() + end);
        let word = rest[..end.unwrap_or(rest.len())].trim_end_matches(['-', '_']);
        (word.len() > start.len()).then_some(word)
    });
    found.collect()
}

fn help(of: &[&str]) -> String {
    run(command(BINARY).args(of).arg("--help")).stdout
}

/// The help of every command.
fn all_help() -> String {
    let listed = |help: &str| -> Vec<String> {
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        names.filter(|name| !["", "help"].contains(name)).map(str::to_owned).collect()
    };
    let mut all = String::new();
    for name in listed(&help(&[])) {
        let text = help(&[&name]);
        for nested in listed(&text) {
            all.push_str(&help(&[&name, &nested]));
        }
        all.push_str(&text);
    }
    all
}

/// A flag is never taken for a tag or a folder, for which a build would begin that takes minutes.
#[test]
fn what_builds_a_package_tells_its_flags_and_takes_no_others() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for name in ["container/build", "debian/build"] {
        let script = deploy.join(name);
        // A build that begins all the same ends at once.
        let build = |words: &[&str]| {
            run(command(&script).args(words).env("RUSTC", "false").env("BUILDER", "false"))
        };
        for flag in ["-h", "--help"] {
            let told = build(&[flag]);
            assert_eq!((told.code, &*told.stderr), (Some(0), ""), "{name}: {told:?}");
            assert!(told.stdout.contains(&format!("deploy/{name} [--program FILE] [")), "{told:?}");
            assert!(told.stdout.lines().all(|line| !line.contains("set -e")), "{told:?}");
        }
        let wrong = [&["--tag"][..], &["-x", "a"], &["--program", BINARY, "--x"], &["a", "--help"]];
        for words in wrong {
            let refused = build(words);
            assert_eq!((refused.code, &*refused.stdout), (Some(1), ""), "{name}: {refused:?}");
            let flag = words.iter().rev().find(|word| word.starts_with('-')).unwrap();
            let said = &refused.stderr;
            assert!(said.lines().count() == 1 && said.contains(flag), "{name}: {refused:?}");
        }
    }
}

#[test]
fn flags_and_variables_are_those_of_the_command_line() {
    let help = all_help();
    let flags = words(&help, "--", |c| c.is_ascii_lowercase() || c == '-');
    assert!(flags.len() > 50, "{flags:?}");
    let mut variables = 0;
    for (file, text) in files() {
        let file = file.display();
        for flag in words(&text, "--", |c| c.is_ascii_lowercase() || c == '-') {
            let is_known = flags.contains(flag) || OTHERS.contains(&flag);
            assert!(is_known, "{file}: no command has {flag}");
        }
        for name in words(&text, "RELAY_", |c| c.is_ascii_uppercase() || c == '_') {
            assert!(help.contains(&format!("[env: {name}]")), "{file}: nothing reads {name}");
            variables += 1;
        }
    }
    assert!(variables > 10, "{variables}");
}

#[test]
fn ports_are_the_defaults_of_serve() {
    let help = help(&["serve"]);
    let mut count = 0;
    for (file, text) in files() {
        let numbers = |line: &str| -> Vec<String> {
            let words = line.split(|c: char| !c.is_ascii_digit());
            words.filter(|word| word.len() == 4).map(str::to_owned).collect()
        };
        let starts =
            ["EXPOSE ", "ListenStream=", "- { name: admin,", "- { name: webhooks,", "port: 9"];
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let lines = lines.filter(|line| starts.iter().any(|start| line.starts_with(start)));
        for port in lines.flat_map(numbers) {
            let is_default = help.contains(&format!(":{port}]"));
            assert!(is_default, "{}: {port} is no default", file.display());
            count += 1;
        }
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn paths_and_metrics_are_answered_by_a_running_relay() {
    let crm = Receiver::willing();
    let routes = Routes::new().target("crm", &crm.url(), &[]).all_to(&["crm"]);
    let relay = TestRelay::with(&routes).start();
    let page = String::from_utf8(relay.get("/metrics").body).unwrap();
    let (mut paths, mut metrics) = (0, 0);
    for (file, text) in files() {
        let file = file.display();
        let named = text.split("path: /").skip(1);
        for path in named.map(|rest| rest.split([',', ' ', '\n']).next().unwrap()) {
            // Those of a routes file are where webhooks come in.
            if path.starts_with("webhooks/") {
                continue;
            }
            assert_eq!(relay.get(&format!("/{path}")).status, 200, "{file}: {path}");
            paths += 1;
        }
        for name in words(&text, "relay_", |c| c.is_ascii_lowercase() || c == '_') {
            assert!(page.contains(&format!("# HELP {name} ")), "{file}: no metric {name}");
            metrics += 1;
        }
    }
    assert!(paths >= 3 && metrics >= 1, "{paths} paths, {metrics} metrics");
}

#[test]
fn commands_are_those_of_the_binary() {
    let mut count = 0;
    let mut try_it = |words: &[&str]| {
        let asked = run(command(BINARY).args(words).arg("--help"));
        assert_eq!(asked.code, Some(0), "{words:?}: {asked:?}");
        count += 1;
    };
    for (_, text) in files() {
        for line in text.lines() {
            let line = line.trim();
            if let Some(words) = line.strip_prefix("ExecStart=/usr/bin/aryeo-relay ") {
                try_it(&words.split(' ').collect::<Vec<_>>());
            }
            if let Some(words) = line.strip_prefix("args: [") {
                try_it(&words.trim_end_matches(']').split(", ").collect::<Vec<_>>());
            }
            if let Some((_, words)) = line.split_once("-- aryeo-relay ") {
                try_it(&words.split(' ').collect::<Vec<_>>());
            }
        }
    }
    assert!(count >= 3, "{count}");
}
