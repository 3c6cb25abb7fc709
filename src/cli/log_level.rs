//! `log-level`: at which level a running relay logs, and another one for a while.

use anyhow::bail;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use crate::cli::admin::AdminClient;
use crate::cli::filter::Asking;
use crate::cli::story::text;
use crate::cli::{Verdict, block_on, value};

/// What `help` says first.
pub const ABOUT: &str = "\
Show the least severe level that a running relay logs, or change it without a restart.

The next start logs by its own --log-level again. Each change is a line in the log.";

/// Where the API has it.
const PATH: &str = "/api/v1/log-level";

/// The names of all levels.
pub const NAMES: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// The flags of `log-level`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The level to log at from now on
    #[arg(value_name = "LEVEL", value_parser = PossibleValuesParser::new(NAMES))]
    pub level: Option<String>,
    /// For how long, such as 15m, at most 7d [default: until the relay ends]
    #[arg(long = "for", value_name = "DURATION", requires = "level", value_parser = value::duration_text)]
    pub lasting: Option<String>,
    /// Where.
    #[command(flatten)]
    pub asking: Asking,
}

/// Asks, and prints how it is then.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    block_on(ask(args))?
}

async fn ask(args: &Args) -> anyhow::Result<Verdict> {
    let client = AdminClient::new(&args.asking.admin)?;
    let answer = match (&args.level, &args.lasting) {
        (None, _) => client.get(PATH).await?,
        (Some(level), None) => client.post(PATH, &json!({ "level": level })).await?,
        (Some(level), Some(lasting)) => {
            client.post(PATH, &json!({ "level": level, "for": lasting })).await?
        }
    };
    let answer = answer.or_else(|refusal| bail!(refusal.detail()))?;
    args.asking.print(&answer, told);
    Ok(Verdict::Yes)
}

/// How it is, for a person.
fn told(answer: &Value) -> String {
    let (level, configured) = (text(answer, "level"), text(answer, "configured"));
    match text(answer, "until") {
        "" if level == configured => level.to_owned(),
        "" => format!("{level} until the relay ends; it was started with {configured}"),
        until => format!("{level} until {until}, then {configured}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_comes_next() {
        let answer = |level: &str, until: Option<&str>| {
            told(&json!({ "level": level, "configured": "info", "until": until }))
        };
        assert_eq!(answer("info", None), "info");
        assert_eq!(answer("debug", None), "debug until the relay ends; it was started with info");
        let until = Some("2026-01-31T08:00:00.000Z");
        assert_eq!(answer("debug", until), "debug until 2026-01-31T08:00:00.000Z, then info");
    }
}
