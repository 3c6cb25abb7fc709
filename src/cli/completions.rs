//! `completions`: what a shell wants to know about this command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::output::Output;
use crate::cli::{Cli, Verdict};

/// The long help of `completions`.
pub const ABOUT: &str = "\
Print completions of commands and flags for a shell.

bash: aryeo-relay completions bash > /etc/bash_completion.d/aryeo-relay

zsh: aryeo-relay completions zsh > /usr/local/share/zsh/site-functions/_aryeo-relay

fish: aryeo-relay completions fish > ~/.config/fish/completions/aryeo-relay.fish";

/// What `completions` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints them.
pub fn run(args: &Args) -> Verdict {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "aryeo-relay", &mut script);
    // For bash the generator spells a name with a hyphen in two ways, and then knows no command's flags
    // (clap-rs/clap#6421). Where that is mended this changes nothing.
    let script = String::from_utf8_lossy(&script).replace("aryeo__subcmd__relay", "aryeo__relay");
    Output::new().line(script.trim_end());
    Verdict::Yes
}
