//! `demo`: the main job end to end on one machine.
//!
//! Everything is real: a certificate, the relay as `serve` builds it, three targets that verify what
//! they get, and a sender that posts bodies and signatures that PHP made.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use http::HeaderValue;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::level_filters::LevelFilter;

use crate::app::clock::SystemClock;
use crate::app::{App, Settings, StoreSettings, TlsFiles};
use crate::cli::Verdict;
use crate::cli::certificate::{Files, LOCAL_NAMES, make};
use crate::cli::output::{Output, Style};
use crate::cli::receiver::{Behaviour, Proof, Received, Receiver};
use crate::cli::sample::{Recorded, recorded};
use crate::cli::sender::{Sender, Trust};
use crate::cli::signal::stop_requested;
use crate::domain::limit::TIMESTAMP_TOLERANCE;
use crate::domain::signature::{SIGNATURE, Scheme, Secret, Verification};
use crate::domain::time::Clock;
use crate::net::address::Address;
use crate::net::inherited::Inherited;
use crate::telemetry::log_level::LogLevel;
use crate::telemetry::logging;

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

/// The targets: name, secret, how many requests fail first.
const TARGETS: [(&str, &str, u64); 3] = [
    ("crm", "demo-crm-secret", 0),
    ("billing", "demo-billing-secret", 3),
    ("media", "demo-media-secret", 0),
];

/// For all deliveries of the show. They take a second or two.
const SHOW_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the show.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let _logging = logging::install(logging::Format::Text, LevelFilter::ERROR);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    runtime.block_on(show(args))
}

async fn show(args: &Args) -> anyhow::Result<Verdict> {
    let output = Output::new();
    let folder = tempfile::Builder::new().prefix("aryeo-relay-demo-").tempdir()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let ledger = Arc::new(Ledger::default());
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();

    output.line(output.paint(Style::Bold, "A relay, three targets and a sender, on this machine:"));
    let mut addresses = Vec::new();
    for (name, secret, fail_first) in TARGETS {
        let behaviour = Behaviour {
            verification: Some(verification(name, secret)?),
            fail_first,
            ..Behaviour::default()
        };
        let receiver = Receiver::bind(any_port(), None, behaviour)?;
        let address = receiver.address()?;
        let (screen, heard) = (output.clone(), Arc::clone(&ledger));
        receiver.serve(&tasks, &stop, Arc::clone(&clock), move |received| {
            heard.heard(&screen, name, received);
        });
        let remark = if fail_first > 0 { "  (fails first, then recovers)" } else { "" };
        output.line(format_args!("  target {name:<8} http://{address}{remark}"));
        addresses.push((name, address));
    }
    let app = relay(folder.path(), &addresses, &clock).await?;
    let url = format!("https://localhost:{}/webhooks/aryeo", app.address().port());
    let admin = app.admin_address().clone();
    output.line(format_args!("  relay           {url}"));
    output.line(format_args!("  metrics         http://{admin}/metrics\n"));
    let relay_stop = CancellationToken::new();
    let relaying = tasks.spawn(app.run(relay_stop.clone()));

    let arrived = perform(&output, &url, folder.path(), &ledger).await;
    let verdict = finish(&output, &ledger, &arrived);
    if !args.once && arrived.is_ok() {
        output.line(how_to_play(&output, folder.path(), &url, &admin));
        let _signal = stop_requested().await?;
    }
    relay_stop.cancel();
    relaying.await.context("the relay broke off")??;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    arrived.map(|()| verdict)
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn verification(name: &str, secret: &str) -> anyhow::Result<Verification> {
    let secret = Secret::new(name, secret.as_bytes()).context("a demonstration secret is empty")?;
    Ok(Verification {
        scheme: Scheme::Aryeo,
        secrets: vec![secret],
        header: SIGNATURE,
        tolerance: TIMESTAMP_TOLERANCE,
    })
}

/// Writes a certificate and a routing table, and binds a relay to them.
async fn relay(
    folder: &Path,
    targets: &[(&'static str, SocketAddr)],
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<App> {
    let names = LOCAL_NAMES.map(str::to_owned);
    let files = Files::of(folder);
    files.write(&make(&names, clock.now())?)?;
    std::fs::write(folder.join("routes.yaml"), routes(targets))?;
    let mut environment: HashMap<String, String> = TARGETS
        .iter()
        .map(|(name, secret, _)| (format!("{}_SECRET", name.to_uppercase()), (*secret).to_owned()))
        .collect();
    let secret = recorded().first().map(|sample| sample.secret.to_string());
    environment.insert("ARYEO_WEBHOOK_SECRET".to_owned(), secret.context("there are no samples")?);
    let settings = Settings {
        routes: folder.join("routes.yaml"),
        listen: any_port(),
        admin: Address::Tcp(any_port()),
        tls: vec![TlsFiles { certificate: files.certificate, key: files.key }],
        store: StoreSettings {
            data: folder.join("data"),
            // It lives as long as the show, wherever temporary files are kept.
            allow_volatile: true,
            ..StoreSettings::default()
        },
        ..Settings::default()
    };
    App::bind(settings, Inherited::default(), Arc::new(environment), LogLevel::default()).await
}

fn routes(targets: &[(&str, SocketAddr)]) -> String {
    let mut text = String::from(
        "sources:
  aryeo:
    path: /webhooks/aryeo
    verify:
      scheme: aryeo
      secrets: [{ env: ARYEO_WEBHOOK_SECRET }]

targets:
",
    );
    for (name, address) in targets {
        text.push_str(&format!(
            "  {name}:
    url: http://{address}/hooks/aryeo
    sign: {{ scheme: aryeo, secrets: [{{ env: {}_SECRET }}] }}
    headers: {{ X-Tenant: realtour }}
    retry: {{ first: 500ms, max: 5s }}
",
            name.to_uppercase()
        ));
    }
    text.push_str(
        "
routes:
  - name: everything-about-people-and-visits
    activity: [\"APPOINTMENT_*\", \"CUSTOMER_TEAM_*\", \"LISTING_*\"]
    to: [crm]
  - name: money
    activity: [\"ORDER_*\", \"!ORDER_VIEWED\"]
    to: [crm, billing]
  - name: pictures
    activity: LISTING_DELIVERED
    to: [media]
  - name: orders-without-the-wrapper
    resource: ORDER
    to: [billing]
",
    );
    text
}

/// What was sent and what arrived.
#[derive(Debug, Default)]
struct Ledger {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    arrivals: HashMap<(String, &'static str), Arrival>,
    // Some deliveries arrive before the sender has read its answer: their lines wait for it.
    announced: HashSet<String>,
    waiting: Vec<(String, String)>,
}

#[derive(Debug, Default, Clone)]
struct Arrival {
    attempts: usize,
    taken: bool,
    body: bytes::Bytes,
}

impl Ledger {
    fn heard(&self, screen: &Output, target: &'static str, received: &Received) {
        let id = received.webhook_id().unwrap_or("?").to_owned();
        let line = arrived(screen, target, received);
        let mut state = self.lock();
        let arrival = state.arrivals.entry((id.clone(), target)).or_default();
        arrival.attempts += 1;
        arrival.taken |= received.status.is_success() && received.proof == Proof::Verified;
        arrival.body = received.body.clone();
        if state.announced.contains(&id) {
            screen.line(line);
        } else {
            state.waiting.push((id, line));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Prints what was sent, and what has arrived of it already.
    fn announce(&self, screen: &Output, id: &str, line: String) {
        let mut state = self.lock();
        screen.line(line);
        state.announced.insert(id.to_owned());
        for (_, line) in state.waiting.extract_if(.., |(waiting, _)| waiting == id) {
            screen.line(line);
        }
    }

    fn has(&self, id: &str, target: &'static str, sample: &Recorded) -> bool {
        let state = self.lock();
        let arrival = state.arrivals.get(&(id.to_owned(), target));
        arrival.is_some_and(|arrival| arrival.taken && arrival.body == sample.body)
    }

    fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let taken = state.arrivals.values().filter(|arrival| arrival.taken).count();
        (taken, state.arrivals.values().map(|arrival| arrival.attempts).sum())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends every sample and waits until each has arrived where it should, byte for byte.
async fn perform(output: &Output, url: &str, folder: &Path, ledger: &Ledger) -> anyhow::Result<()> {
    let authority = std::fs::read(Files::of(folder).certificate)?;
    let sender = Sender::new(url.parse()?, Trust::Authority(&authority))?;
    let mut expected = Vec::new();
    for sample in recorded() {
        let attempt = sender.post(&sample.body, &[(SIGNATURE, sample.signature.clone())]).await;
        let answer = attempt.result?;
        let told: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let id = told.get("webhook_id").and_then(|id| id.as_str()).unwrap_or("?").to_owned();
        ledger.announce(output, &id, sent(output, &sample, answer.status.as_u16(), &id));
        anyhow::ensure!(answer.status.as_u16() == 202, "the relay answered {}", answer.status);
        for target in wanted(&sample) {
            expected.push((id.clone(), target, sample.clone()));
        }
    }
    let forged = HeaderValue::from_static("00");
    if let Some(sample) = recorded().first() {
        let attempt = sender.post(&sample.body, &[(SIGNATURE, forged)]).await;
        let status = attempt.result?.status.as_u16();
        output.line(format_args!("aryeo ─▶ relay  a forged signature: {status}"));
        anyhow::ensure!(status == 401, "a forged signature was answered {status}");
    }
    let all = async {
        loop {
            let arrived = |(id, target, sample): &(String, &'static str, Recorded)| {
                ledger.has(id, target, sample)
            };
            if expected.iter().all(arrived) {
                return;
            }
            ledger.changed.notified().await;
        }
    };
    timeout(SHOW_TIMEOUT, all).await.context("not every delivery arrived in time")
}

/// The targets that the table gives a sample to, said once more by hand: this is what is checked.
fn wanted(sample: &Recorded) -> Vec<&'static str> {
    match sample.activity.as_deref() {
        Some("LISTING_DELIVERED") => vec!["crm", "media"],
        Some(name) if name.starts_with("ORDER_") => vec!["crm", "billing"],
        Some(_) => vec!["crm"],
        None => vec!["billing"],
    }
}

fn sent(output: &Output, sample: &Recorded, status: u16, id: &str) -> String {
    let name = sample.activity.as_deref().unwrap_or("an order without the wrapper");
    let status = output.paint(Style::Good, format!("{status} durable"));
    let id = output.paint(Style::Dim, id);
    format!("aryeo ─▶ relay  {name}, {} bytes, signed by PHP: {status} {id}", sample.body.len())
}

fn arrived(output: &Output, target: &str, received: &Received) -> String {
    let name = received.activity().unwrap_or("an order without the wrapper");
    let attempt = received.attempt().unwrap_or(0);
    let proof = match received.proof {
        Proof::Verified => output.paint(Style::Good, "verified".to_owned()),
        Proof::Failed(error) => output.paint(Style::Bad, error.to_string()),
        Proof::NotAsked => output.paint(Style::Notice, "not verified".to_owned()),
    };
    let style = if received.status.is_success() { Style::Good } else { Style::Notice };
    let status = output.paint(style, received.status.as_u16());
    let id = output.paint(Style::Dim, received.webhook_id().unwrap_or("?"));
    format!(
        "relay ─▶ {target:<7} {name}, attempt {attempt}, {proof} with its own secret: {status} {id}"
    )
}

fn finish(output: &Output, ledger: &Ledger, arrived: &anyhow::Result<()>) -> Verdict {
    let (taken, attempts) = ledger.counts();
    let samples = recorded().len();
    match arrived {
        Ok(()) => {
            let text = format!(
                "\nAll there: {samples} webhooks, {taken} deliveries byte for byte, {attempts} attempts."
            );
            output.line(output.paint(Style::Good, text));
            Verdict::Yes
        }
        Err(_) => Verdict::No,
    }
}

fn how_to_play(output: &Output, folder: &Path, url: &str, admin: &Address) -> String {
    let secret = recorded().first().map(|sample| sample.secret.clone()).unwrap_or_default();
    let program = std::env::args_os().next().unwrap_or_else(|| "aryeo-relay".into());
    let program = Path::new(&program).display().to_string();
    let folder = folder.display();
    let title = output.paint(Style::Bold, "Everything is still running. In another terminal:");
    format!(
        "
{title}
  # send a webhook of your own
  ARYEO_WEBHOOK_SECRET={secret} {program} send --insecure \\
    --url {url} --secret-env ARYEO_WEBHOOK_SECRET --activity LISTING_DELIVERED
  # what the relay counts
  curl -s http://{admin}/metrics | grep relay_deliveries
  # its routing table and its store
  cat {folder}/routes.yaml; ls -lR {folder}/data
Ctrl-C ends it and removes {folder}."
    )
}
