//! `route`: which targets a body would reach, and for each route why or why not.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::cli::admin::{AdminClient, Relay};
use crate::cli::check::{Format, json as problems_json, print_problem};
use crate::cli::output::{Output, Style};
use crate::cli::{Usage, Verdict, block_on};
use crate::config::{self, ProcessEnvironment, Secrets};
use crate::domain::explain::{Explanation, RouteVerdict, ShownHeader, TargetReached};
use crate::domain::question::Question;

/// What `--help` says before the flags.
pub const ABOUT: &str = "\
Tell which targets a body would reach, and for each route why or why not.

Nothing is sent, and no secret is looked up. Without a body, --activity stands for the smallest body that
names it; with one, for {activity} in the source's path. With --admin the table in force of a running
relay answers.";

/// What is expected where no target is.
const UNROUTED: &str = "unrouted";

/// More than any source takes.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The flags of `route`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The body's file, or - for stdin
    #[arg(value_name = "BODY_FILE|-")]
    pub body: Option<PathBuf>,
    /// The routes file
    #[arg(long, value_name = "FILE", default_value = "routes.yaml", conflicts_with = "admin")]
    pub routes: PathBuf,
    /// Which source posts it; needed where there are several
    #[arg(long)]
    pub source: Option<String>,
    /// The activity, without a body or in the path
    #[arg(long)]
    pub activity: Option<String>,
    /// The targets that are expected, as in crm,billing; `unrouted` for none
    #[arg(long, value_name = "TARGETS", value_delimiter = ',')]
    pub expect: Option<Vec<String>>,
    /// Ask the running relay with this admin address; unix:PATH for a socket
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// The file of its admin token, where it wants one
    #[arg(long, value_name = "FILE", requires = "admin")]
    pub admin_token_file: Option<PathBuf>,
    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// Explains, and compares with what is expected.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let body = read_body(args)?;
    if body.is_none() && args.activity.is_none() {
        return Err(Usage("a body or --activity is needed".to_owned()).into());
    }
    let output = Output::new();
    let explained = match &args.admin {
        Some(url) => {
            let relay = Relay { url: url.clone(), admin_token_file: args.admin_token_file.clone() };
            Some(block_on(ask(&AdminClient::new(&relay)?, args, body.as_deref()))??)
        }
        None => explain(&output, args, body.as_deref())?,
    };
    let Some(explanation) = explained else { return Ok(Verdict::No) };
    let found: BTreeSet<&str> = explanation.targets.iter().map(|one| &*one.target).collect();
    let expected = args.expect.as_ref().map(|names| {
        let names = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        names.filter(|name| *name != UNROUTED).collect::<BTreeSet<_>>()
    });
    let agrees = expected.as_ref().is_none_or(|expected| *expected == found);
    match args.format {
        Format::Json => {
            let mut value = serde_json::to_value(&explanation)?;
            if let (Some(members), Some(expected)) = (value.as_object_mut(), &expected) {
                members.insert("expected".to_owned(), json!(expected));
                members.insert("as_expected".to_owned(), json!(agrees));
            }
            output.line(value);
        }
        Format::Text => {
            print(&output, &explanation);
            if let Some(expected) = expected.filter(|_| !agrees) {
                let text = format!("expected {}, found {}", named(&expected), named(&found));
                output.line(output.paint(Style::Bad, text));
            }
        }
    }
    Ok(if agrees { Verdict::Yes } else { Verdict::No })
}

fn read_body(args: &Args) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(path) = &args.body else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(BODY_BYTES_MAX).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(BODY_BYTES_MAX).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("{} can't be read", path.display()))?;
    Ok(Some(bytes))
}

/// By the file; none if it can't be used, which has been said.
fn explain(
    output: &Output,
    args: &Args,
    body: Option<&[u8]>,
) -> anyhow::Result<Option<Explanation>> {
    let loaded = match config::load(&args.routes, &ProcessEnvironment, Secrets::Ignore) {
        Ok(loaded) => loaded,
        Err(problems) => {
            match args.format {
                Format::Json => output.line(problems_json(&args.routes, &problems)),
                Format::Text => problems.iter().for_each(|one| print_problem(output, one)),
            }
            return Ok(None);
        }
    };
    let question =
        Question { source: args.source.as_deref(), activity: args.activity.as_deref(), body };
    let case = question.case(&loaded.table).map_err(|error| Usage(error.to_string()))?;
    Ok(Some(Explanation::new(&loaded.table, &case)))
}

/// By the table in force of a running relay.
async fn ask(
    client: &AdminClient,
    args: &Args,
    body: Option<&[u8]>,
) -> anyhow::Result<Explanation> {
    let asked = json!({
        "source": args.source,
        "activity": args.activity,
        "body_base64": body.map(|body| BASE64_STANDARD.encode(body)),
    });
    match client.post("/api/v1/routes/explain", &asked).await? {
        Ok(answer) => serde_json::from_value(answer).context("the relay's answer can't be read"),
        Err(refusal) => anyhow::bail!(refusal.detail()),
    }
}

/// The targets of a set, or that there are none.
pub(super) fn named(targets: &BTreeSet<&str>) -> String {
    match targets.len() {
        0 => UNROUTED.to_owned(),
        _ => targets.iter().copied().collect::<Vec<_>>().join(", "),
    }
}

fn print(output: &Output, explanation: &Explanation) {
    let activity = explanation.activity.as_deref();
    let mut about = vec![
        format!("source {}", explanation.source),
        activity.map_or("no activity".to_owned(), |activity| format!("activity {activity}")),
    ];
    if let Some(kind) = &explanation.resource_type {
        about.push(format!("resource {kind} {}", explanation.resource_id.as_deref().unwrap_or("")));
    }
    output.line(output.paint(Style::Bold, about.join(", ").trim_end()));
    let width = explanation.routes.iter().map(|route| route.route.len()).max().unwrap_or_default();
    for route in &explanation.routes {
        output.line(verdict(output, route, width));
    }
    for target in &explanation.targets {
        print_target(output, target);
    }
    match explanation.unrouted.as_deref() {
        Some("drop") => output.line("goes nowhere: acknowledged, counted, not stored"),
        Some(_) => output.line("goes nowhere: kept as unrouted"),
        None => {
            let names = format!("and with each: {}", explanation.relay_headers.join(", "));
            output.line(output.paint(Style::Dim, names));
        }
    }
}

fn verdict(output: &Output, route: &RouteVerdict, width: usize) -> String {
    let name = &route.route;
    if route.matched {
        let yes = output.paint(Style::Good, "yes");
        return format!("  {yes}  {name:width$}  -> {}", route.to.join(", "));
    }
    let because = route.because.as_deref().unwrap_or_default();
    let detail = route.detail.as_deref().unwrap_or_default();
    let reason = output.paint(Style::Dim, format!("{because}: {detail}"));
    format!("  {}   {name:width$}  {reason}", output.paint(Style::Notice, "no"))
}

fn print_target(output: &Output, target: &TargetReached) {
    let name = output.paint(Style::Bold, &target.target);
    output.line(format_args!("goes to {name} by {}", target.routes.join(", ")));
    for header in &target.headers {
        output.line(format_args!("    {}", shown(header)));
    }
    for name in &target.left_out {
        let text = format!("    {name} is left out: a placeholder has no value");
        output.line(output.paint(Style::Notice, text));
    }
    for name in &target.signature {
        let secret = target.signed_with.as_deref().unwrap_or("no secret");
        output.line(format_args!("    {name}: (made with {secret})"));
    }
    for name in &target.forwarded {
        output.line(format_args!("    {name}: (as it came in)"));
    }
}

fn shown(header: &ShownHeader) -> String {
    match (&header.value, &header.secret) {
        (Some(value), _) => format!("{}: {value}", header.name),
        (None, Some(from)) => format!("{}: (secret from {from})", header.name),
        (None, None) => format!("{}: (secret)", header.name),
    }
}
