//! Tools that a test needs and a machine may not have.

use std::path::Path;
use std::process::Command;

use super::relay::command;

/// Whether a test can go on. Where what it needs is missing it fails, so that nobody takes a test
/// that was not run for one that passed; with `RELAY_TEST_MAY_SKIP` set it says so and is skipped.
#[track_caller]
pub(crate) fn can_go_on(is_there: bool, what: &str) -> bool {
    let may_skip = std::env::var_os("RELAY_TEST_MAY_SKIP").is_some();
    assert!(is_there || may_skip, "{what}; with RELAY_TEST_MAY_SKIP set this test is skipped");
    if !is_there {
        eprintln!("skipped: {what}");
    }
    is_there
}

/// The reference library of Standard Webhooks.
const STANDARD_WEBHOOKS: &str = "standardwebhooks";

/// What OpenTelemetry publishes to read what is exported.
pub(crate) const TRACES: &str = "opentelemetry.proto.collector.trace.v1.trace_service_pb2";

/// Python with the reference library of Standard Webhooks, if both are there.
#[track_caller]
pub(crate) fn python() -> Option<Command> {
    python_with(STANDARD_WEBHOOKS)
}

/// Python with a library, if both are there.
#[track_caller]
pub(crate) fn python_with(library: &str) -> Option<Command> {
    // The folder in which all that cargo makes is; cargo's own for tests is below it.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = || {
        let mut command = command("python3");
        command.env("PYTHONPATH", target.join("tools/python"));
        command
    };
    let import = python().args(["-c", &format!("import {library}")]).output();
    let is_there = import.is_ok_and(|output| output.status.success());
    let what = format!("Python's {library} is missing: `tests/all --prepare` installs it");
    can_go_on(is_there, &what).then(python)
}

/// The same for a program, which is asked for with an argument that ends it at once.
#[track_caller]
pub(crate) fn has(program: &str, argument: &str) -> bool {
    let is_there = Command::new(program).arg(argument).output().is_ok();
    can_go_on(is_there, &format!("{program} is missing: `tests/all --prepare` installs it"))
}

/// The same for `strace`.
#[track_caller]
pub(crate) fn has_strace() -> bool {
    has("strace", "--version")
}
