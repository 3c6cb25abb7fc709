//! What an operator types: the commands, their flags, what they print and how they exit.
//!
//! Each command has a file with its `Args` and its `run`. What the demonstration shares with them
//! stands beside them: [`admin`] asks a running relay, [`sender`] acts as Aryeo, [`receiver`] as a target, [`sample`] has what they
//! exchange, and [`certificate`] makes what both trust.

use std::future::Future;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub mod acme;
pub mod admin;
pub mod certificate;
pub mod check;
pub mod completions;
pub mod dead_letters;
pub mod demo;
pub mod diff;
pub mod edge;
pub mod erase;
pub mod filter;
pub mod health;
pub mod log_level;
pub mod man;
pub mod output;
pub mod receive;
pub mod receiver;
pub mod replay;
pub mod route;
pub mod sample;
pub mod schema;
pub mod send;
pub mod sender;
pub mod serve;
pub mod signal;
pub mod signature;
pub mod store;
pub mod story;
pub mod targets;
pub mod test;
pub mod torture;
pub mod traces;
pub mod value;
pub mod webhooks;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "aryeo-relay",
    version,
    about = "A durable webhook relay for Aryeo: verifies, stores, routes, re-signs and delivers.",
    after_help = EXIT_STATUS,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "\
Results go to stdout, errors and logs to stderr. Colours only on a terminal, and not with NO_COLOR.
Exit status: 0 good, 1 the answer is no or it could not be done, 2 wrong usage.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the relay
    #[command(long_about = serve::ABOUT)]
    Serve(Box<serve::Args>),
    /// Show the main job end to end, on this machine, in one command
    #[command(long_about = demo::ABOUT)]
    Demo(demo::Args),
    /// Validate a routes file
    Check(check::Args),
    /// Which targets a body would reach, and for each route why or why not
    #[command(long_about = route::ABOUT)]
    Route(route::Args),
    /// Run tests of the rules
    #[command(long_about = test::ABOUT)]
    Test(test::Args),
    /// Which stored webhooks another routes file would route otherwise
    #[command(long_about = diff::ABOUT)]
    Diff(diff::Args),
    /// Print the JSON Schema of routes files, for editors
    #[command(long_about = schema::ABOUT)]
    Schema,
    /// What became of webhooks: ask the running relay
    #[command(long_about = webhooks::ABOUT)]
    Webhooks(webhooks::Args),
    /// Deliveries that nobody tries any more: list, bring back, end
    #[command(name = "dead-letters", long_about = dead_letters::ABOUT)]
    DeadLetters(dead_letters::Args),
    /// What waits for each target
    Targets(targets::Args),
    /// Show or change the level at which a running relay logs
    #[command(name = "log-level", long_about = log_level::ABOUT)]
    LogLevel(log_level::Args),
    /// Check, count or copy a data directory while no relay runs on it
    #[command(long_about = store::ABOUT)]
    Store(store::Args),
    /// Act as Aryeo: sign a webhook and post it
    #[command(long_about = send::ABOUT)]
    Send(send::Args),
    /// Act as a target: take webhooks in, verify and print them
    #[command(long_about = receive::ABOUT)]
    Receive(receive::Args),
    /// Make a self-signed certificate for development
    #[command(long_about = certificate::ABOUT)]
    Certificate(certificate::Args),
    /// Prove on this machine's own disk that nothing acknowledged is lost
    #[command(long_about = torture::ABOUT)]
    Torture(torture::Args),
    /// Whether the running relay is well, by the exit status
    #[command(long_about = health::ABOUT)]
    Health(health::Args),
    /// Print completions for a shell
    #[command(long_about = completions::ABOUT)]
    Completions(completions::Args),
    /// Write manual pages into a folder
    #[command(long_about = man::ABOUT)]
    Man(man::Args),
}

/// How a command that could be carried out has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Good.
    Yes,
    /// The answer is no.
    No,
}

/// What was asked for can't be meant: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nobody reads the help any more: that is no failure of ours.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match run(&cli.command) {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) => {
            output::error(&error);
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    if let Some(("serve", typed)) = matches.subcommand() {
        acme::refuse_files(typed)
            .map_err(|text| command.error(ErrorKind::ArgumentConflict, text))?;
    }
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn run(command: &Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Check(args) => check::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Route(args) => route::run(args),
        Command::Test(args) => test::run(args),
        Command::Schema => Ok(schema::run()),
        Command::Webhooks(args) => webhooks::run(args),
        Command::DeadLetters(args) => dead_letters::run(args),
        Command::Targets(args) => targets::run(args),
        Command::LogLevel(args) => log_level::run(args),
        Command::Store(args) => store::run(args),
        Command::Send(args) => send::run(args),
        Command::Receive(args) => receive::run(args),
        Command::Certificate(args) => certificate::run(args),
        Command::Torture(args) => torture::run(args),
        Command::Health(args) => health::run(args),
        Command::Completions(args) => Ok(completions::run(args)),
        Command::Man(args) => man::run(args),
    }
}

/// Runs a small command's future: one thread is enough for it.
fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn no_flag_takes_a_secret() {
        let usable =
            |id: &str| !id.contains("secret") || id.ends_with("env") || id.ends_with("file");
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
                assert!(usable(arg.get_id().as_str()), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            &["aryeo-relay"][..],
            &["aryeo-relay", "serv"],
            &["aryeo-relay", "send", "--url", "ftp://x"],
            &["aryeo-relay", "send", "--secret-env", "A", "--secret-file", "b"],
            &["aryeo-relay", "receive", "--status", "99"],
            &["aryeo-relay", "serve", "--retain", "soon"],
        ] {
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
