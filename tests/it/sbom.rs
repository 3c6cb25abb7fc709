//! The bill of materials names all that is compiled into the program, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::tools::has;

/// What a program prints that is run in the repository.
#[track_caller]
fn printed(program: &str, arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(program);
    let ended = command.args(arguments).current_dir(root).output().unwrap();
    assert!(ended.status.success(), "{program}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// Names and versions as cargo's own tree has them.
fn tree() -> BTreeSet<(String, String)> {
    let arguments = ["tree", "--locked", "--offline", "-e", "normal", "--prefix", "none"];
    let text = printed("cargo", &arguments);
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let mut words = line.split(' ');
            let name = words.next().unwrap().to_owned();
            (name, words.next().unwrap().strip_prefix('v').unwrap().to_owned())
        })
        .filter(|(name, _)| name != env!("CARGO_PKG_NAME"))
        .collect()
}

/// The checksums that the lock file has.
fn checksums() -> BTreeMap<(String, String), String> {
    let lock = include_str!("../../Cargo.lock");
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .filter_map(|block| {
            let field = |name: &str| {
                let start = format!("{name} = \"");
                let line = block.lines().find_map(|line| line.strip_prefix(&start));
                line.map(|value| value.trim_end_matches('"').to_owned())
            };
            Some(((field("name")?, field("version")?), field("checksum")?))
        })
        .collect()
}

fn text<'a>(component: &'a Value, key: &str) -> &'a str {
    component[key].as_str().unwrap_or_else(|| panic!("no {key}: {component}"))
}

#[test]
fn the_bill_of_materials_is_the_tree_that_is_built() {
    if !has("python3", "--version") {
        return;
    }
    let first = printed(".ci/sbom", &[]);
    assert_eq!(first, printed(".ci/sbom", &[]), "the same tree makes the same bytes");
    let bill: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((text(&bill, "bomFormat"), text(&bill, "specVersion")), ("CycloneDX", "1.5"));
    let program = &bill["metadata"]["component"];
    assert_eq!(text(program, "name"), env!("CARGO_PKG_NAME"));
    assert_eq!(text(program, "version"), env!("CARGO_PKG_VERSION"));

    let checksums = checksums();
    let mut listed = BTreeSet::new();
    let mut refs = BTreeSet::from([text(program, "bom-ref")]);
    for component in bill["components"].as_array().unwrap() {
        let (name, version) = (text(component, "name"), text(component, "version"));
        let purl = format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"));
        assert_eq!(text(component, "purl"), purl);
        assert!(!text(&component["licenses"][0], "expression").contains('/'), "{component}");
        let key = (name.to_owned(), version.to_owned());
        assert_eq!(text(&component["hashes"][0], "alg"), "SHA-256");
        assert_eq!(text(&component["hashes"][0], "content"), checksums[&key], "{name}");
        assert!(refs.insert(text(component, "bom-ref")), "{name} twice");
        listed.insert(key);
    }
    assert_eq!(listed, tree());
    for node in bill["dependencies"].as_array().unwrap() {
        let all = node["dependsOn"].as_array().unwrap().iter().map(|other| other.as_str().unwrap());
        assert!(all.chain([text(node, "ref")]).all(|name| refs.contains(name)), "{node}");
    }
}
