//! `torture`: proves on the operator's own disk that nothing acknowledged is lost.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::clock::SystemClock;
use crate::app::harm;
use crate::cli::Verdict;
use crate::cli::admin::{AdminClient, Relay as Address};
use crate::cli::check::Format;
use crate::cli::output::{Output, Style, note};
use crate::cli::sender::{Sender, Trust};
use crate::cli::signal::StopSignals;
use crate::cli::torture::ledger::Findings;
use crate::cli::torture::load::{Shared, Target, Work};
use crate::cli::torture::stage::{Relay, Stage};
use crate::cli::value;
use crate::domain::time::Clock as _;

mod ledger;
mod load;
mod stage;

/// What `help` says first.
pub const ABOUT: &str = "\
Prove on this machine's own disk that nothing acknowledged is lost, and nothing invented.

Starts a relay in a temporary folder, sends it webhooks as Aryeo does to three targets that come and
go, and round after round does one of these to it: kill -9; a stop in order; a power cut (sectors
that no sync made durable are zeroed); a bit flipped in a record; the index lost or cut short; a
store at its limit. In the end everything that was answered 2xx has to have reached each of its
targets, byte for byte, under one id. What a flipped bit has destroyed has to be named by the relay.

The power cut is simulated on what the system has written: whether this machine's disk keeps what it
says it has synced, only a real one can tell.

Exit status 1 if anything was lost or invented; the folder is kept then. It takes up to a few
hundred MB, and as much of the processor as it gets.

  aryeo-relay torture --dir /var/lib --for 10m
  aryeo-relay torture --rounds 1000 --faults kill";

/// The flags of `torture`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the temporary folder is made: on the disk to be proved
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// How many rounds
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: Option<u64>,
    /// For how long [default: 1m]
    #[arg(long = "for", id = "duration", value_name = "DURATION", value_parser = value::duration)]
    pub duration: Option<Duration>,
    /// What is done to it
    #[arg(long, value_name = "FAULT,…", value_enum, value_delimiter = ',', default_values_t = Fault::ALL)]
    pub faults: Vec<Fault>,
    /// Which faults come when, as a run has told; what happens between them is not the same twice
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
}

/// What is done to a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// kill -9
    Kill,
    /// A stop in order
    Stop,
    /// kill -9, and what was not synced is gone
    Cut,
    /// kill -9, and a bit of a record is another
    Flip,
    /// kill -9, and the index is gone or cut short
    Index,
    /// A start with a store that may not grow
    Fill,
}

impl Fault {
    const ALL: [Self; 6] = [Self::Kill, Self::Stop, Self::Cut, Self::Flip, Self::Index, Self::Fill];

    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Cut => "cut",
            Self::Flip => "flip",
            Self::Index => "index",
            Self::Fill => "fill",
        }
    }
}

/// Acknowledged in a round, at most, before the fault comes.
const PER_ROUND_MAX: u64 = 200;

/// A round does not wait longer for them: a full store acknowledges none.
const ROUND_MAX: Duration = Duration::from_secs(2);

/// What a store may take, in MiB, in the rounds that fill it and in the others. 64 MiB is the least
/// that a relay starts with.
const SMALL: RangeInclusive<u64> = 64..=256;
const ROOMY: u64 = 512;

/// A store is full when so many were refused, or this took too long.
const REFUSED: u64 = 5;
const FILL_MAX: Duration = Duration::from_secs(20);

/// In the end something arrives within this time, or it does not arrive at all.
const SILENCE_MAX: Duration = Duration::from_secs(60);

const PROGRESS: Duration = Duration::from_secs(10);

/// Lost and invented ones that are listed.
const LISTED_MAX: usize = 20;

/// Runs it and tells what it found.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let runtime = Runtime::new().context("the runtime can't be started")?;
    let folder = tempfile::Builder::new().prefix("aryeo-relay-torture-").tempdir_in(&args.dir);
    let folder = folder.with_context(|| format!("no folder in {}", args.dir.display()))?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    note(format_args!("in {}, --seed {seed}", folder.path().display()));
    let outcome = {
        let _entered = runtime.enter();
        Run::prepare(args, folder.path(), seed)
    };
    let outcome = outcome.and_then(|mut run| {
        let ended = run.rounds(&runtime).and_then(|relay| run.finish(&runtime, relay));
        run.stop.cancel();
        run.tasks.close();
        runtime.block_on(run.tasks.wait());
        ended.map(|()| run)
    });
    let is_good = match &outcome {
        Ok(run) => report(args, run, seed),
        Err(_) => false,
    };
    if !is_good {
        let kept = folder.keep();
        note(format_args!("everything is kept in {}", kept.display()));
    }
    outcome.map(|_| if is_good { Verdict::Yes } else { Verdict::No })
}

/// A run under way.
struct Run {
    stage: Stage,
    targets: Vec<Target>,
    shared: Arc<Shared>,
    work: Arc<Work>,
    clock: Arc<SystemClock>,
    tasks: TaskTracker,
    sending: TaskTracker,
    stop: CancellationToken,
    is_asked_to_stop: Arc<AtomicBool>,
    random: fastrand::Rng,
    faults: Vec<Fault>,
    rounds_max: Option<u64>,
    until: Option<Instant>,
    began: Instant,
    told_at: Instant,
    done: [u64; Fault::ALL.len()],
    sectors: usize,
    flipped: u64,
}

impl Run {
    fn prepare(args: &Args, folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let (shared, clock) = (Arc::<Shared>::default(), Arc::new(SystemClock::start()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let targets = load::targets(&shared, &tasks, &stop, &clock)?;
        let began = Instant::now();
        let duration = args.duration.unwrap_or(Duration::from_secs(60));
        let is_asked_to_stop = Arc::<AtomicBool>::default();
        let (asked, mut signals) = (Arc::clone(&is_asked_to_stop), StopSignals::new()?);
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                _ = signals.next() => asked.store(true, Ordering::Relaxed),
                () = stopped.cancelled() => {}
            }
        });
        Ok(Self {
            stage: Stage::set(folder, &targets, &shared, clock.now())?,
            targets,
            shared,
            work: Arc::new(Work::new(clock.now())),
            clock,
            tasks,
            sending: TaskTracker::new(),
            stop,
            is_asked_to_stop,
            random: fastrand::Rng::with_seed(seed),
            faults: args.faults.clone(),
            rounds_max: args.rounds,
            until: args.rounds.is_none().then(|| began + duration),
            began,
            told_at: began,
            done: [0; Fault::ALL.len()],
            sectors: 0,
            flipped: 0,
        })
    }

    /// Goes through the rounds; answers the relay that runs in the end.
    fn rounds(&mut self, runtime: &Runtime) -> anyhow::Result<Relay> {
        let mut relay = self.stage.start(ROOMY)?;
        let authority = self.stage.authority()?;
        let sender = Sender::new(self.stage.url().parse()?, Trust::Authority(&authority))?;
        {
            let _entered = runtime.enter();
            load::send(&self.sending, &sender, &self.work, &self.shared, &self.clock)?;
        }
        while !self.is_over() {
            let choice = self.random.usize(..self.faults.len());
            let Some(fault) = self.faults.get(choice).copied() else { break };
            for target in &self.targets {
                load::set_down(target, self.random.u8(..4) == 0);
            }
            self.wait_for_some(&mut relay)?;
            relay = self.inflict(fault, relay)?;
            if let Some(done) = self.done.get_mut(fault as usize) {
                *done += 1;
            }
            self.tell_progress();
        }
        Ok(relay)
    }

    fn is_over(&self) -> bool {
        self.is_asked_to_stop.load(Ordering::Relaxed)
            || self.rounds_max.is_some_and(|max| self.count() >= max)
            || self.until.is_some_and(|until| Instant::now() >= until)
    }

    fn count(&self) -> u64 {
        self.done.iter().sum()
    }

    fn faults_done(&self) -> impl Iterator<Item = (Fault, u64)> {
        Fault::ALL.into_iter().zip(self.done).filter(|(_, times)| *times > 0)
    }

    /// Lets the senders work, for a part of a second mostly.
    fn wait_for_some(&mut self, relay: &mut Relay) -> anyhow::Result<()> {
        let acknowledged = |shared: &Shared| shared.with(|ledger| ledger.acknowledged());
        let enough = acknowledged(&self.shared) + self.random.u64(1..=PER_ROUND_MAX);
        let until = Instant::now() + ROUND_MAX;
        while acknowledged(&self.shared) < enough && Instant::now() < until {
            relay.still_runs()?;
            self.shared.wait(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Does it to the relay, and starts it again.
    fn inflict(&mut self, fault: Fault, relay: Relay) -> anyhow::Result<Relay> {
        if matches!(fault, Fault::Stop | Fault::Fill) {
            relay.stop()?;
        } else {
            relay.kill()?;
        }
        let data = self.stage.data();
        match fault {
            Fault::Kill | Fault::Stop => {}
            Fault::Cut => self.cut(&data)?,
            Fault::Flip => {
                let random = &mut self.random;
                if let Some(id) = harm::flip_bit(&data, || random.u64(..))? {
                    self.flipped += 1;
                    self.shared.with(|ledger| ledger.harm(id));
                }
            }
            Fault::Index => self.spoil_index(&data)?,
            Fault::Fill => {
                let mut relay = self.stage.start(self.random.u64(SMALL))?;
                self.fill(&mut relay)?;
                relay.kill()?;
            }
        }
        self.stage.start(ROOMY)
    }

    /// Takes what was not durable. What was, the answers tell: all that are on their way come in first.
    fn cut(&mut self, data: &Path) -> anyhow::Result<()> {
        self.work.hold(true);
        while !self.work.is_quiet() {
            self.shared.wait(Duration::from_millis(5));
        }
        let known = |id| self.shared.with(|ledger| ledger.knows(id));
        let random = &mut self.random;
        let (sectors, webhooks) =
            harm::cut_power(data, self.stage.old_segment(), known, || random.u64(..))?;
        self.work.hold(false);
        self.sectors += sectors;
        self.shared.with(|ledger| webhooks.into_iter().for_each(|id| ledger.cut(id)));
        Ok(())
    }

    /// Sends large webhooks until some are refused.
    fn fill(&self, relay: &mut Relay) -> anyhow::Result<()> {
        let refused = |shared: &Shared| shared.with(|ledger| ledger.refused());
        let enough = refused(&self.shared) + REFUSED;
        let until = Instant::now() + FILL_MAX;
        self.work.enlarge(true);
        while refused(&self.shared) < enough && Instant::now() < until {
            relay.still_runs()?;
            self.shared.wait(Duration::from_millis(20));
        }
        self.work.enlarge(false);
        Ok(())
    }

    fn spoil_index(&mut self, data: &Path) -> anyhow::Result<()> {
        let is_cut = self.random.bool();
        for entry in std::fs::read_dir(data)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("index.sqlite") {
                continue;
            }
            if is_cut {
                let file = std::fs::OpenOptions::new().write(true).open(&path)?;
                let bytes = file.metadata()?.len();
                file.set_len(self.random.u64(..=bytes))?;
            } else {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Lets everything arrive.
    fn finish(&self, runtime: &Runtime, mut relay: Relay) -> anyhow::Result<()> {
        for target in &self.targets {
            load::set_down(target, false);
        }
        self.work.end();
        self.sending.close();
        runtime.block_on(self.sending.wait());
        // Suspended targets would be asked again by themselves, minutes later perhaps.
        runtime.block_on(resume(&relay.admin))?;
        let mut missing = self.shared.with(|ledger| ledger.missing());
        let mut since = Instant::now();
        while missing > 0 && since.elapsed() < SILENCE_MAX {
            relay.still_runs()?;
            self.shared.wait(Duration::from_millis(50));
            let now = self.shared.with(|ledger| ledger.missing());
            if now < missing {
                (missing, since) = (now, Instant::now());
            }
        }
        relay.stop()
    }

    fn tell_progress(&mut self) {
        if self.told_at.elapsed() >= PROGRESS {
            self.told_at = Instant::now();
            let acknowledged = self.shared.with(|ledger| ledger.acknowledged());
            let of = self.rounds_max.map(|max| format!(" of {max}")).unwrap_or_default();
            note(format_args!("round {}{of}: {acknowledged} acknowledged so far", self.count()));
        }
    }
}

async fn resume(admin: &str) -> anyhow::Result<()> {
    let client =
        AdminClient::new(&Address { url: format!("http://{admin}"), admin_token_file: None })?;
    for name in load::NAMES {
        let answer = client.post(&format!("/api/v1/targets/{name}/resume"), &json!({})).await?;
        answer.map_err(|refusal| anyhow::Error::msg(refusal.detail()))?;
    }
    Ok(())
}

/// Prints what came of it; true if all promises were kept.
fn report(args: &Args, run: &Run, seed: u64) -> bool {
    let findings = run.shared.with(|ledger| ledger.findings());
    if args.format == Format::Json {
        Output::new().line(report_as_json(run, &findings, seed));
    } else {
        print_report(run, &findings);
    }
    findings.is_good()
}

fn report_as_json(run: &Run, findings: &Findings, seed: u64) -> Value {
    let faults: serde_json::Map<String, Value> =
        run.faults_done().map(|(fault, times)| (fault.name().to_owned(), times.into())).collect();
    json!({
        "good": findings.is_good(),
        "rounds": run.count(),
        "seconds": run.began.elapsed().as_secs(),
        "seed": seed,
        "faults": faults,
        "sectors_cut": run.sectors,
        "bits_flipped": run.flipped,
        "sent": findings.sent,
        "acknowledged": findings.acknowledged,
        "refused": findings.refused,
        "delivered": findings.delivered,
        "repeated": findings.repeated,
        "damaged": findings.damaged_told,
        "lost": findings.lost,
        "invented": findings.invented,
    })
}

fn print_report(run: &Run, findings: &Findings) {
    let out = Output::new();
    let faults: Vec<String> =
        run.faults_done().map(|(fault, times)| format!("{times} {}", fault.name())).collect();
    let (rounds, secs) = (run.count(), run.began.elapsed().as_secs());
    out.line(format_args!("{rounds} rounds in {secs} s: {}", faults.join(", ")));
    for (what, count) in [
        ("sent", findings.sent),
        ("acknowledged", findings.acknowledged),
        ("refused", findings.refused),
        ("delivered", findings.delivered),
        ("repeated", findings.repeated),
        ("sectors cut", run.sectors as u64),
        ("bits flipped", run.flipped),
        ("damaged", findings.damaged_told),
    ] {
        out.line(format_args!("  {what:<13} {count}"));
    }
    for (what, found) in [("lost", &findings.lost), ("invented", &findings.invented)] {
        let style = if found.is_empty() { Style::Good } else { Style::Bad };
        out.line(format_args!("  {what:<13} {}", out.paint(style, found.len())));
        for line in found.iter().take(LISTED_MAX) {
            out.line(format_args!("    {line}"));
        }
    }
}
