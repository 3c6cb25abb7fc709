//! Tools that a test needs and a machine may not have.

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

/// The same for `strace`.
#[track_caller]
pub(crate) fn has_strace() -> bool {
    let is_there = std::process::Command::new("strace").arg("--version").output().is_ok();
    can_go_on(is_there, "strace is missing: `tests/all --prepare` installs it")
}
