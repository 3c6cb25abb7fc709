//! Completions and manual pages are of use to the programs that they are for.

use std::fs;
use std::path::Path;

use crate::support::relay::{BINARY, command, folder, run};
use crate::support::tools::has;

fn completions(shell: &str) -> String {
    let ended = run(command(BINARY).args(["completions", shell]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

/// The commands that the help names.
fn commands() -> Vec<String> {
    let help = run(command(BINARY).arg("--help")).stdout;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !["", "help"].contains(name)).map(str::to_owned).collect()
}

#[test]
fn each_shell_gets_completions_of_every_command() {
    let commands = commands();
    assert!(commands.len() > 15, "{commands:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = completions(shell);
        for name in commands.iter().map(String::as_str).chain(["shutdown-timeout"]) {
            assert!(script.contains(name), "{shell} does not know {name}");
        }
    }
    let refused = run(command(BINARY).args(["completions", "sh"]));
    assert_eq!(refused.code, Some(2), "{refused:?}");
}

#[test]
fn bash_completes_commands_flags_and_values() {
    if !has("bash", "--version") {
        return;
    }
    let folder = folder();
    let script = folder.path().join("aryeo-relay");
    fs::write(&script, completions("bash")).unwrap();
    let syntax = run(command("bash").arg("-n").arg(&script));
    assert_eq!((syntax.code, &*syntax.stderr), (Some(0), ""));
    // What bash does at the tabulator, for the last word.
    const TAB: &str = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
        function=$(complete -p aryeo-relay | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
        $function aryeo-relay \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
        echo \"${COMPREPLY[@]}\"";
    for (line, completed) in [
        ("aryeo-relay ser", "serve"),
        ("aryeo-relay serve --shut", "--shutdown-timeout"),
        ("aryeo-relay serve --log-format j", "json"),
        ("aryeo-relay dead-letters red", "redrive"),
    ] {
        let mut bash = command("bash");
        bash.args(["--norc", "-c", TAB, "bash"]).arg(&script).args(line.split(' '));
        let ended = run(&mut bash);
        assert_eq!(ended.stdout.trim(), completed, "{line}: {ended:?}");
    }
}

fn page(path: &Path) -> String {
    let mut man = command("man");
    man.env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8").args(["--warnings=w", "-l"]).arg(path);
    let ended = run(&mut man);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{}", path.display());
    ended.stdout
}

#[test]
fn every_command_has_a_manual_page_that_man_takes_without_a_warning() {
    if !has("man", "--version") {
        return;
    }
    let folder = folder();
    let pages = folder.path().join("share/man1");
    let ended = run(command(BINARY).arg("man").arg(&pages));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for name in commands() {
        assert!(pages.join(format!("aryeo-relay-{name}.1")).exists(), "{name}");
    }
    for entry in fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        let text = page(&path);
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION"] {
            let is_there = text.lines().any(|line| line == heading);
            assert!(is_there, "no {heading} in {}:\n{text}", path.display());
        }
    }
    let serve = page(&pages.join("aryeo-relay-serve.1"));
    for word in ["--shutdown-timeout", "RELAY_SHUTDOWN_TIMEOUT", "20s", "SIGHUP"] {
        assert!(serve.contains(word), "no {word} in:\n{serve}");
    }
    let nested = page(&pages.join("aryeo-relay-dead-letters-redrive.1"));
    assert!(nested.contains("aryeo-relay dead-letters redrive"), "{nested}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = run(command(BINARY).arg("man").arg(&file));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains(&*file.to_string_lossy()), "{refused:?}");
}
