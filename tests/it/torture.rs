//! The proof that operators run on their own disk, run on ours: everything that can be done to a relay
//! is done to it, round after round, and nothing that was acknowledged is lost.

use std::fs;

use serde_json::Value;

use crate::support::relay::{BINARY, Ended, command, folder, run};

/// Enough that each fault comes several times.
const ROUNDS: &str = "60";

/// What it said, and how many entries it left in its folder. It bounds its own time.
fn torture(arguments: &[&str]) -> (Ended, usize) {
    let folder = folder();
    let mut command = command(BINARY);
    let output = command.arg("torture").arg("--dir").arg(folder.path()).args(arguments).output();
    let ended = Ended::from(output.unwrap());
    let left = fs::read_dir(folder.path()).unwrap().count();
    (ended, left)
}

#[test]
fn nothing_acknowledged_is_lost_whatever_is_done_to_the_relay() {
    let (ended, left) = torture(&["--rounds", ROUNDS, "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(left, 0, "the folder is removed where all is well");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let count = |name: &str| report[name].as_u64().unwrap_or_default();
    assert_eq!(report["good"], true);
    assert_eq!(count("rounds").to_string(), ROUNDS);
    for fault in ["kill", "stop", "cut", "flip", "index", "fill"] {
        assert!(report["faults"][fault].as_u64() > Some(0), "no {fault} in {report}");
    }
    // Each kind of harm was done indeed.
    for name in ["acknowledged", "refused", "sectors_cut", "bits_flipped"] {
        assert!(count(name) > 0, "no {name} in {report}");
    }
    // All to two targets, some to a third; what a flipped bit destroyed to none, perhaps.
    assert!(count("delivered") + 3 * count("damaged") >= 2 * count("acknowledged"), "{report}");
}

#[test]
fn the_report_is_for_people_and_faults_can_be_chosen() {
    let (ended, left) = torture(&["--rounds", "2", "--faults", "kill,stop", "--seed", "7"]);
    assert_eq!((ended.code, left), (Some(0), 0), "{ended:?}");
    assert!(ended.stderr.contains("--seed 7"), "{ended:?}");
    assert!(ended.stdout.starts_with("2 rounds in "), "{ended:?}");
    for line in ["  acknowledged  ", "  lost          0\n", "  invented      0\n"] {
        assert!(ended.stdout.contains(line), "{ended:?}");
    }
}

#[test]
fn a_folder_that_can_t_be_made_is_said() {
    let ended = run(command(BINARY).args(["torture", "--dir", "/nowhere", "--rounds", "1"]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no folder in /nowhere"), "{ended:?}");
}
