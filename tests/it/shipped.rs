//! The files in the repository are good.

use std::path::{Path, PathBuf};

use crate::support::relay::{BINARY, command, run};
use crate::support::routes::SECRET;
use crate::support::{Sender, TestRelay};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The variables that a table's secrets come from.
fn variables(yaml: &str) -> Vec<String> {
    let mut names: Vec<String> = yaml
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split("env:").skip(1))
        .map(|rest| {
            let rest = rest.trim_start().trim_start_matches('"');
            let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            rest[..end.unwrap_or(rest.len())].to_owned()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_shipped_table_is_valid_once_its_secrets_are_set() {
    let file = root().join("routes.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let names = variables(&yaml);
    assert!(names.len() >= 5, "{names:?}");
    let mut check = command(BINARY);
    check.arg("check").arg(&file).current_dir(root());
    let without = run(&mut check);
    assert_eq!(without.code, Some(1), "its secrets are not set: {without:?}");
    for name in &names {
        check.env(name, format!("the value of {name}"));
        assert!(without.stdout.contains(name), "{name} is not asked for: {without:?}");
    }
    let with = run(&mut check);
    assert_eq!(with.code, Some(0), "{with:?}");
    assert!(!format!("{with:?}").contains("the value of"), "a secret was printed");
    // `serve` looks there when it is told nothing.
    let mut default = command(BINARY);
    default.arg("check").current_dir(root());
    for name in &names {
        default.env(name, "s");
    }
    assert_eq!(run(&mut default).code, Some(0));
}

#[test]
fn serve_runs_the_shipped_table() {
    let yaml = std::fs::read_to_string(root().join("routes.yaml")).unwrap();
    let mut builder = TestRelay::with_file(&yaml);
    for name in variables(&yaml) {
        builder = builder.environment(&name, SECRET);
    }
    let relay = builder.start();
    let path = yaml.lines().find_map(|line| line.trim().strip_prefix("path:")).unwrap().trim();
    // No route of it wants this: nothing goes out into the world.
    let body = br#"{"object":"ACTIVITY","name":"NOBODY_WANTS_THIS","id":"1"}"#;
    let answer = Sender::new(&relay).path(path).post(b"not signed by anyone");
    assert!([200, 202].contains(&answer.status), "{answer:?}");
    let answer = Sender::new(&relay).path(path).secret("another").post(body);
    answer.problem(401);
}

/// Where editors find the schema of the shipped table.
const SCHEMA: &str = "deploy/routes.schema.json";

#[test]
fn the_shipped_schema_is_what_the_command_prints() {
    let printed = run(command(BINARY).arg("schema"));
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let file = root().join(SCHEMA);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &printed.stdout).unwrap();
    }
    let shipped = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(shipped == printed.stdout, "{SCHEMA} is old: BLESS=1 writes it anew");
    let yaml = std::fs::read_to_string(root().join("routes.yaml")).unwrap();
    let first = format!("# yaml-language-server: $schema={SCHEMA}");
    assert_eq!(yaml.lines().next(), Some(&*first));
}

/// What the README says that became of the shipped table in an evening, and what `check` says of that.
const EVENING: [(&str, &str); 7] = [
    ("CRM_WEBHOOK_SECRET }] }\n", "c3bf-not-a-variable }] }\n"),
    ("    timeout: 30s\n", "    timeuot: 30s\n"),
    ("  scheduling:\n", "  calendar:\n"),
    ("\"!ORDER_VIEWED\"", "!ORDER_VIEWED"),
    ("    to: [billing]\n", "    to: [billing]\n    final: true\n"),
    ("\"CUSTOMER_*\"", "\"CUSTOMR_*\""),
    (
        "      - APPOINTMENT_CANCELED\n      - APPOINTMENT_DECLINED\n      - ORDER_SYNC_TO_QUICKBOOKS_FAILED\n",
        "",
    ),
];

#[test]
fn what_the_readme_shows_of_a_table_after_an_evening_is_what_check_says() {
    let mut yaml = std::fs::read_to_string(root().join("routes.yaml")).unwrap();
    let names = variables(&yaml);
    for (as_shipped, after) in EVENING {
        assert!(yaml.contains(as_shipped), "{as_shipped}");
        yaml = yaml.replacen(as_shipped, after, 1);
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("routes.yaml"), yaml).unwrap();
    let mut check = command(BINARY);
    check.args(["check", "routes.yaml"]).current_dir(folder.path());
    check.envs(names.iter().map(|name| (name, SECRET)));
    let said = run(&mut check);
    assert_eq!(said.code, Some(1), "{said:?}");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, shown) = readme.split_once("$ aryeo-relay check routes.yaml\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(shown, said.stdout);
}
