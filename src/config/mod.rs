//! `routes.yaml`: read, checked and compiled into a [`RoutingTable`].
//!
//! [`load`] is what a server does, [`check`] what an operator asks, [`read`](fn@read) what a reload
//! does; all say the same. The way of a file: [`position`] reads the text as a tree that knows
//! places; [`shape`] finds every problem of form in it; [`schema`] deserialises the text (or, after
//! problems, what is left of the tree); [`compile`], [`source`], [`target`], [`settings`], [`route`]
//! and [`condition`] find every problem of meaning and resolve secrets by [`secret`], which reads by
//! [`mod@file`]; [`value`] reads single values; [`lint`] warns of what is probably not meant.
//! [`problem`] is what all of them report, with a [`quote`] from which [`mask`] leaves out what could
//! be a secret, and with what [`suggest`] takes for meant. [`routing_test`] reads tests of the rules in
//! the same way. [`json_schema()`] tells editors what [`keys`] says.

mod compile;
mod condition;
pub mod file;
mod forms;
mod json_schema;
mod keys;
mod lint;
mod mask;
mod node;
mod position;
mod problem;
mod quote;
mod route;
mod routing_test;
mod schema;
mod secret;
mod settings;
mod shape;
mod source;
mod spot;
mod suggest;
mod target;
mod token;
mod value;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::config::compile::Context;
use crate::config::file::FileRead;
use crate::config::lint::Lint;
use crate::config::node::Node;
use crate::config::problem::Report;
use crate::config::quote::Page;
use crate::config::schema::SchemaError;
use crate::domain::limit::ROUTES_FILE_BYTES_MAX;
use crate::domain::route::RoutingTable;

pub use crate::config::json_schema::json_schema;
pub use crate::config::problem::{Position, Problem, Problems, Severity};
pub use crate::config::quote::Quote;
pub use crate::config::routing_test::{
    Body, ExpectedHeader, RoutingTest, RoutingTests, UNROUTED, load_tests,
};
pub use crate::config::secret::{
    Environment, ProcessEnvironment, Secrets, from_env, from_file, token_from_file,
};
pub use crate::config::value::{duration, rate, size};

/// A file that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub table: RoutingTable,
    /// What somebody should look at; no errors.
    pub warnings: Problems,
}

/// What a load came to.
#[derive(Debug)]
pub struct Reading {
    /// The table, or everything that is wrong with the file.
    pub outcome: Result<Loaded, Problems>,
    /// All files that this rests on, the routes file first.
    pub files: Vec<FileRead>,
}

/// Loads a file as [`load`] does, and says what was read for it: as long as those files read the
/// same, the outcome is the same. Takes regular files only, so that nobody can hold it up.
pub fn read(path: &Path, env: &dyn Environment, secrets: Secrets) -> Reading {
    let (bytes, read) = file::read(path, ROUTES_FILE_BYTES_MAX);
    let mut files = vec![read];
    let outcome = match bytes {
        Ok(bytes) => compile_all(&bytes, path, env, secrets, &mut files),
        Err(error) => {
            let mut report = Report::new(path);
            report.file_error(format!("the file {error}"));
            Err(report.finish())
        }
    };
    Reading { outcome, files }
}

/// Loads a file.
///
/// # Errors
///
/// Everything that is wrong with it, warnings included, in file order.
pub fn load(path: &Path, env: &dyn Environment, secrets: Secrets) -> Result<Loaded, Problems> {
    let mut report = Report::new(path);
    match read_bytes(path, &mut report) {
        Some(bytes) => load_bytes(&bytes, path, env, secrets),
        None => Err(report.finish()),
    }
}

fn read_bytes(path: &Path, report: &mut Report) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    // One byte more than is allowed tells a file that is too large.
    let read = file.and_then(|f| f.take(ROUTES_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Some(bytes),
        Err(error) => {
            report.file_error(format!("the file can't be read: {error}"));
            None
        }
    }
}

/// Loads a file whose content has been read already. `path` names it in problems; relative paths in
/// the file are relative to its folder.
///
/// # Errors
///
/// As [`load`].
pub fn load_bytes(
    bytes: &[u8],
    path: &Path,
    env: &dyn Environment,
    secrets: Secrets,
) -> Result<Loaded, Problems> {
    compile_all(bytes, path, env, secrets, &mut Vec::new())
}

fn compile_all(
    bytes: &[u8],
    path: &Path,
    env: &dyn Environment,
    secrets: Secrets,
    files: &mut Vec<FileRead>,
) -> Result<Loaded, Problems> {
    let mut report = Report::new(path);
    let folder = path.parent().unwrap_or(Path::new(""));
    let lint = Lint::default();
    let mut context = Context { report: &mut report, env, secrets, folder, files, lint };
    let (table, tree) = compile_bytes(bytes, &mut context);
    let failed = report.has_failed();
    let problems = report.finish();
    let problems = if problems.is_empty() { problems } else { quoted(problems, bytes, &tree) };
    match table {
        Some(table) if !failed => Ok(Loaded { table, warnings: problems }),
        _ => Err(problems),
    }
}

/// Everything that is wrong with a file: its errors and warnings, in file order.
pub fn check(path: &Path, env: &dyn Environment, secrets: Secrets) -> Problems {
    load(path, env, secrets).map_or_else(|problems| problems, |loaded| loaded.warnings)
}

/// The same of a file whose content has been read already, as [`load_bytes`].
pub fn check_bytes(bytes: &[u8], path: &Path, env: &dyn Environment, secrets: Secrets) -> Problems {
    load_bytes(bytes, path, env, secrets).map_or_else(|problems| problems, |loaded| loaded.warnings)
}

/// The table, and the tree as far as it could be read: an error where it could not to its end.
fn compile_bytes(
    bytes: &[u8],
    context: &mut Context<'_>,
) -> (Option<RoutingTable>, Result<Node, Option<Node>>) {
    let Some(text) = decode(bytes, context.report) else { return (None, Err(None)) };
    let tree = position::parse(text, context.report);
    let table = tree.as_ref().ok().and_then(|tree| compile_tree(bytes, text, tree, context));
    (table, tree)
}

fn compile_tree(
    bytes: &[u8],
    text: &str,
    tree: &Node,
    context: &mut Context<'_>,
) -> Option<RoutingTable> {
    let pruned = shape::check(tree, context.report)?;
    let file = match read_twice(text, &pruned, context.report.has_failed()) {
        Ok(file) => file,
        Err(error) => {
            context.report.error(error.position, error.message);
            return None;
        }
    };
    let sha256 = Sha256::digest(bytes).into();
    Some(compile::compile(&file, tree, &pruned, sha256, context))
}

/// The problems with the lines that they are about.
fn quoted(problems: Problems, bytes: &[u8], tree: &Result<Node, Option<Node>>) -> Problems {
    if bytes.len() > ROUTES_FILE_BYTES_MAX {
        return problems;
    }
    let text = String::from_utf8_lossy(without_mark(bytes));
    let is_whole = tree.is_ok();
    let tree = tree.as_ref().map_or_else(Option::as_ref, Some);
    problems.quoted(&Page { text: &text, tree, is_whole })
}

/// Deserialises the text; where it has problems already, what is left of the tree.
fn read_twice(text: &str, tree: &Node, failed: bool) -> Result<schema::File, SchemaError> {
    let of_tree = schema::from_node(tree)?;
    if failed {
        return Ok(of_tree);
    }
    let of_text = schema::from_text(text)?;
    if of_text == of_tree {
        return Ok(of_text);
    }
    // What was checked would not be what is used: better refused than half understood.
    let message =
        "not every reader of YAML takes this for the same: write it more simply".to_owned();
    Err(SchemaError { position: Position::START, message })
}

fn decode<'a>(bytes: &'a [u8], report: &mut Report) -> Option<&'a str> {
    if bytes.len() > ROUTES_FILE_BYTES_MAX {
        report.file_error(format!("the file is larger than {ROUTES_FILE_BYTES_MAX} bytes"));
        return None;
    }
    let bytes = without_mark(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let (good, _) = bytes.split_at_checked(error.valid_up_to())?;
            let good = String::from_utf8_lossy(good);
            let reported = report.error(quote::position_after(&good), "the file is not UTF-8");
            let is_wide = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
            reported.help(if is_wide {
                "this is UTF-16: save it as UTF-8"
            } else {
                "have your editor save it as UTF-8"
            });
            None
        }
    }
}

/// The text without the byte order mark that some editors put before it.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
