//! `send`: acts as Aryeo.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Uri;

use super::output::{Foreign, Output, Style, note};
use super::sender::{Attempt, RETRY_WAITS, Sender, Trust};
use super::signature::SignatureArgs;
use super::{Usage, Verdict, block_on, sample};
use crate::app::clock::SystemClock;
use crate::domain::known;
use crate::domain::signature::Signing;
use crate::domain::time::Clock as _;

/// What `help` says first.
pub const ABOUT: &str = "\
Act as Aryeo: sign a webhook and post it, exactly as Aryeo does on the wire.

The body is made up from the name of an activity, with a fresh id, or read from a file. Each
attempt has a connection of its own and three seconds. Exit status 1 unless each webhook was
answered 2xx.

  aryeo-relay send ORDER_CREATED --ca certs/tls.crt
  aryeo-relay send --body webhook.json --url https://relay.example.com/webhooks/aryeo --retry";

/// The flags of `send`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file to send as it is (- is stdin), the activity of a made-up body, or a sample such as
    /// flat_order [default: LISTING_DELIVERED]
    #[arg(value_name = "FILE|ACTIVITY", conflicts_with_all = ["activity", "body"])]
    pub sample: Option<String>,
    /// The same as a flag
    #[arg(long, value_name = "NAME", conflicts_with = "body")]
    pub activity: Option<String>,
    /// Send these bytes as they are; - is stdin
    #[arg(long, value_name = "FILE")]
    pub body: Option<PathBuf>,
    /// Where to post it
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://localhost:8443/webhooks/aryeo",
        value_parser = url
    )]
    pub url: Uri,
    /// Send no signature at all
    #[arg(long, conflicts_with_all = ["secret_env", "secret_file"], help_heading = "Signature")]
    pub unsigned: bool,
    /// Try again as Aryeo does, after 10 s and after 100 s
    #[arg(long)]
    pub retry: bool,
    /// Send so many, one after the other; made-up bodies have an id each, other bodies are the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Trust only the authorities in this PEM file, such as certs/tls.crt
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
    /// Trust any certificate: for a development certificate
    #[arg(long)]
    pub insecure: bool,
    /// How it is signed.
    #[command(flatten)]
    pub signature: SignatureArgs,
}

/// Where the secret is looked for when no flag says so: what the shipped routes file calls it.
const DEFAULT_SECRET_ENV: &str = "ARYEO_WEBHOOK_SECRET";

const DEFAULT_ACTIVITY: &str = "LISTING_DELIVERED";

fn url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    if !["http", "https"].iter().any(|scheme| url.scheme_str() == Some(scheme)) {
        return Err("it must begin with https:// or http://".to_owned());
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("a user or password can't be part of it".to_owned());
    }
    Ok(url)
}

/// Sends what was asked for.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let content = Content::of(args)?;
    let signing = signing(args)?;
    let authority = args.ca.as_deref().map(|path| {
        std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))
    });
    let authority = authority.transpose()?;
    let trust = match &authority {
        Some(pem) => Trust::Authority(pem),
        None if args.insecure => Trust::Anything,
        None => Trust::System,
    };
    let sender = Sender::new(args.url.clone(), trust)?;
    block_on(send(args, &content, &signing, &sender))
}

async fn send(args: &Args, content: &Content, signing: &Signing, sender: &Sender) -> Verdict {
    let (out, clock) = (Output::new(), SystemClock::start());
    let waits: &[Duration] = if args.retry { &RETRY_WAITS } else { &[] };
    let proof = match signing {
        Signing::None => "unsigned".to_owned(),
        Signing::With { secret, .. } => format!("signed with {}", secret.label()),
    };
    let (mut taken, mut spent) = (0_u32, Duration::ZERO);
    for _ in 0..args.repeat {
        let body = content.body(&clock);
        let what = out.paint(Style::Bold, content.name());
        out.line(format_args!("POST {}  {what}  {} bytes, {proof}", args.url, body.len()));
        // The same at each attempt, as schemes with an id want it.
        let id = format!("send-{:032x}", fastrand::u128(..));
        let prove = || signing.sign(&id, &body, clock.now());
        let report = |attempt: &Attempt| {
            spent += attempt.duration;
            print(&out, attempt, waits);
        };
        taken += u32::from(sender.deliver(&body, waits, prove, report).await);
    }
    if args.repeat > 1 {
        let average = spent / args.repeat;
        out.line(format_args!("{taken} of {} taken, {} each", args.repeat, millis(average)));
    }
    if taken == args.repeat { Verdict::Yes } else { Verdict::No }
}

fn print(out: &Output, attempt: &Attempt, waits: &[Duration]) {
    let took = out.paint(Style::Dim, millis(attempt.duration));
    let style = if attempt.succeeded() { Style::Good } else { Style::Bad };
    let number = attempt.number;
    match &attempt.result {
        Err(failure) => out.line(format_args!("  {number}. {}  {took}", out.paint(style, failure))),
        Ok(answer) => {
            let status = out.paint(style, answer.status);
            let text = String::from_utf8_lossy(&answer.body);
            let text = out.paint(Style::Dim, Foreign(text.trim_end()));
            out.line(format_args!("  {number}. {status}  {took}  {text}"));
            match answer.status.as_u16() {
                300..=399 => note(
                    "Aryeo follows redirects, after 301, 302 and 303 as a GET without a body: \
                     the webhook would be lost",
                ),
                401 => note("is the secret the one in the routes file?"),
                _ => {}
            }
        }
    }
    if let Some(wait) = waits.get(number - 1).filter(|_| !attempt.succeeded()) {
        out.line(format_args!("     again in {} s", wait.as_secs()));
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn signing(args: &Args) -> anyhow::Result<Signing> {
    if args.unsigned {
        return Ok(Signing::None);
    }
    let secret = match args.signature.secret()? {
        Some(secret) => secret,
        None => args.signature.secret_in(DEFAULT_SECRET_ENV).context(
            "no secret to sign with: name one by --secret-env or --secret-file, or send --unsigned",
        )?,
    };
    Ok(args.signature.signing(secret))
}

/// What is sent.
enum Content {
    /// These bytes, each time.
    Bytes { name: String, bytes: Bytes },
    /// A body of this activity, fresh each time.
    Sample(String),
}

impl Content {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let file = args.sample.as_deref().map(Path::new).filter(|path| is_file(path));
        if let Some(path) = args.body.as_deref().or(file) {
            let bytes = read(path)?;
            return Ok(Self::Bytes { name: path.display().to_string(), bytes });
        }
        let name = args.sample.as_ref().or(args.activity.as_ref());
        let name = name.map_or(DEFAULT_ACTIVITY, String::as_str);
        let samples = sample::recorded();
        let is_sample = samples.iter().any(|sample| *sample.name == *name);
        if !is_sample && !sample::is_activity_name(name) {
            let names: Vec<_> = samples.iter().map(|sample| &*sample.name).collect();
            let text = format!(
                "{name:?} is neither an activity such as {DEFAULT_ACTIVITY} nor a sample ({})",
                names.join(", ")
            );
            return Err(Usage(text).into());
        }
        if !is_sample && !known::activities().any(|known| known == name) {
            note(format_args!(
                "{name} is no activity that Aryeo is known to send; sent all the same"
            ));
        }
        Ok(Self::Sample(name.to_owned()))
    }

    fn name(&self) -> &str {
        match self {
            Self::Bytes { name, .. } | Self::Sample(name) => name,
        }
    }

    fn body(&self, clock: &SystemClock) -> Bytes {
        match self {
            Self::Bytes { bytes, .. } => bytes.clone(),
            Self::Sample(name) => {
                let random = fastrand::u128(..).to_be_bytes();
                sample::fresh(name, clock.now(), random).expect("its name was checked")
            }
        }
    }
}

/// Whether an argument names a file rather than an activity: `-`, or what is one.
fn is_file(path: &Path) -> bool {
    path == Path::new("-") || path.is_file()
}

fn read(path: &Path) -> anyhow::Result<Bytes> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("stdin can't be read")?;
        return Ok(bytes.into());
    }
    let bytes = std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    Ok(bytes.into())
}
