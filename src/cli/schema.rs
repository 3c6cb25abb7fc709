//! `schema`: what an editor wants to know about `routes.yaml`.

use crate::cli::Verdict;
use crate::cli::output::Output;
use crate::config;

/// The long help of `schema`.
pub const ABOUT: &str = "\
Print the JSON Schema (2020-12) of routes.yaml, with which editors complete and explain its keys.

An editor with the YAML language server finds it by a comment in the file's first line:
# yaml-language-server: $schema=deploy/routes.schema.json

What it takes may still be wrong in meaning, such as a name that is nobody's: `check` tells.";

/// Prints the schema.
pub fn run() -> Verdict {
    Output::new().line(format_args!("{:#}", config::json_schema()));
    Verdict::Yes
}
