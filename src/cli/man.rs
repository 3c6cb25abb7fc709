//! `man`: a manual page for each command, made of what the command line says of itself.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::output::Output;
use crate::cli::{Cli, Verdict};

/// The long help of `man`.
pub const ABOUT: &str = "\
Write manual pages, one for each command, into a folder.

aryeo-relay man /usr/local/share/man/man1, and from then on: man aryeo-relay-serve

One is read without being installed by: man -l DIR/aryeo-relay-serve.1";

/// What `man` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder, made if it is not there
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Writes them.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let folder = args.folder.display();
    std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder))
        .with_context(|| format!("{folder} can't be written"))?;
    Output::new().line(format_args!("manual pages are in {folder}: man -l {folder}/aryeo-relay.1"));
    Ok(Verdict::Yes)
}
