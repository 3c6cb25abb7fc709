//! `demo`: the main job end to end on one machine.

use super::Verdict;

/// What `help` says first.
pub const ABOUT: &str = "\
Show the main job end to end, on this machine, in one command.

Makes a development certificate, starts the relay, three targets and a simulated Aryeo, and prints
each webhook as it is verified, stored, routed, re-signed and delivered. One target fails first and
recovers. Then everything is left running for you to play with.";

/// The flags of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after the show; exit 0 only if every delivery arrived and was verified
    #[arg(long)]
    pub once: bool,
}

/// Runs the show.
pub fn run(_args: &Args) -> anyhow::Result<Verdict> {
    anyhow::bail!("`demo` is not in this build yet")
}
