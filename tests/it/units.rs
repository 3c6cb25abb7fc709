//! The units of `deploy/systemd` are good, and fit the binary.

use std::path::{Path, PathBuf};

use crate::support::relay::{BINARY, command, folder, run};
use crate::support::tools::has;

const SERVICE: &str = "aryeo-relay.service";
const SOCKET: &str = "aryeo-relay.socket";

/// Tenths of systemd's exposure level that may be, of 100: what it calls OK ends at 4.4 of 10.
const EXPOSURE_MAX: &str = "15";

fn unit(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
    std::fs::read_to_string(file).unwrap()
}

/// Copies that name the binary of these tests: the one that they name is not installed here.
fn units(into: &Path) -> [PathBuf; 2] {
    [SERVICE, SOCKET].map(|name| {
        let path = into.join(name);
        std::fs::write(&path, unit(name).replace("/usr/bin/aryeo-relay", BINARY)).unwrap();
        path
    })
}

#[test]
fn systemd_finds_no_fault_with_them() {
    if !has("systemd-analyze", "--version") {
        return;
    }
    let into = folder();
    for path in units(into.path()) {
        let verified = run(command("systemd-analyze").args(["--man=no", "verify"]).arg(&path));
        assert_eq!((verified.code, &*verified.stderr), (Some(0), ""), "{verified:?}");
    }
}

#[test]
fn the_service_has_few_rights() {
    if !has("systemd-analyze", "--version") {
        return;
    }
    let into = folder();
    let [service, _] = units(into.path());
    let mut analyze = command("systemd-analyze");
    analyze.args(["security", "--offline=true", "--threshold", EXPOSURE_MAX]).arg(service);
    let analyzed = run(&mut analyze);
    assert_eq!(analyzed.code, Some(0), "{analyzed:?}");
}

#[test]
fn they_set_what_serve_reads_and_name_its_socket() {
    let help = run(command(BINARY).args(["serve", "--help"])).stdout;
    let service = unit(SERVICE);
    let set = |line: &str| {
        let variable = line.strip_prefix("Environment=")?.split('=').next()?;
        Some(variable.to_owned())
    };
    let variables: Vec<String> = service.lines().filter_map(set).collect();
    assert!(variables.len() >= 4, "{variables:?}");
    for variable in variables {
        assert!(help.contains(&format!("[env: {variable}]")), "serve does not read {variable}");
    }
    assert!(unit(SOCKET).contains("\nFileDescriptorName=webhooks\n"));
}

/// Whoever types a command has neither the unit's variables nor its user.
#[test]
fn the_runbook_types_commands_with_what_the_unit_sets() {
    let service = unit(SERVICE);
    let set = |key: &str| {
        let mut lines = service.lines().filter_map(|line| line.strip_prefix(key));
        lines.next().unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let (user, data) = (set("User="), set("Environment=RELAY_DATA="));
    let routes = set("Environment=RELAY_ROUTES=");
    let runbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/README.md");
    let runbook = std::fs::read_to_string(runbook).unwrap();
    for typed in [
        format!("aryeo-relay check --no-secrets {routes}"),
        format!("sudo -u {user} aryeo-relay store check --data {data}"),
        format!("sudo -u {user} aryeo-relay store backup --data {data} --to "),
    ] {
        assert!(runbook.contains(&typed), "the runbook does not say {typed}");
    }
    // The socket alone would start it again.
    let stops = runbook.lines().filter_map(|line| line.strip_prefix("systemctl stop "));
    let stops: Vec<_> = stops.collect();
    assert!(stops.len() > 1 && stops.iter().all(|units| *units == format!("{SOCKET} {SERVICE}")));
}

/// With what the unit sets itself.
#[test]
fn the_settings_that_the_package_suggests_are_taken() {
    let service = unit(SERVICE);
    let set = service.lines().filter_map(|line| line.strip_prefix("Environment="));
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/debian/default");
    let settings = std::fs::read_to_string(settings).unwrap();
    let suggested: Vec<_> = settings
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.starts_with("RELAY_").then_some(&line[1..]))
        .collect();
    assert!(suggested.len() > 2, "{settings}");
    let mut serve = command(BINARY);
    serve.arg("serve").envs(set.chain(suggested).filter_map(|line| line.split_once('=')));
    // Flags are looked at first: it comes so far, and no farther.
    let nowhere = folder().path().join("routes.yaml");
    let ended = run(serve.env("RELAY_ROUTES", nowhere));
    assert!(ended.code == Some(1) && ended.stderr.contains("routes.yaml"), "{ended:?}");
}
