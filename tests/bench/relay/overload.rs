//! A relay that is asked for much more than it can do: what it still accepts, and whether honest senders
//! notice a flood.
//!
//! It is held to a share of one core by a control group, as containers are; the bench itself has all of
//! the machine. First as many senders as usual post as fast as they are answered: what is accepted then is
//! the capacity. Then five times as much is offered, by as many connections as it takes: senders whose
//! answer does not come within their time-out hang up and connect again. Last, strangers offer 20,000
//! requests a second that nobody signed, beside senders who post a quarter of the capacity: they wait for
//! no answer, and have a thread of their own, so that it is the relay that sets the bound if there is one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::flood::Flood;
use super::process::{self, Process};
use super::sender::{Connection, Relay, Webhooks};
use super::target::Target;
use super::{Args, body};

/// The sender's whole time-out.
const PATIENCE: Duration = Duration::from_secs(3);
const SIZE: usize = 4096;
/// Each part lasts so long, the first second of which does not count.
const PART: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(1);
const HONEST: usize = 16;
/// Connections that offer too much.
const CROWD: usize = 1000;
/// How many webhooks are signed beforehand for each part.
const SIGNED: usize = 200_000;

pub(crate) async fn run(args: &Args, percent: u32) -> anyhow::Result<()> {
    let target = Target::start()?;
    let (_home, mut process) = process::alone(args, &target).await?;
    let _held = Held::new(&process, percent)?;
    let mut number = 0;
    let mut sign = || -> anyhow::Result<Arc<Webhooks>> {
        let webhooks = Webhooks::sign(body::of_size(SIZE), number, SIGNED)?;
        number = webhooks.numbers().end;
        Ok(Arc::new(webhooks))
    };

    let usual = offer(&process.relay, &sign()?, HONEST, None).await?;
    let capacity = usual.per_second();
    println!("held to {percent} % of a core, {HONEST} senders: {usual}");

    let webhooks = sign()?;
    let offered = capacity * 5.0;
    let over = offer(&process.relay, &webhooks, CROWD, Some(offered)).await?;
    println!("offered {offered:.0}/s over {CROWD} connections: {over}");
    println!("accepted of the capacity: {:.0} %", over.per_second() / capacity * 100.0);
    drain(&process).await?;

    let webhooks = sign()?;
    let flood = Flood::start(&process.relay, &webhooks)?;
    let honest = offer(&process.relay, &webhooks, HONEST, Some(capacity / 4.0)).await?;
    let flooded = flood.end()?;
    println!("beside {flooded}: {honest}");
    println!("memory: at most {}", super::megabytes(process.memory()?.peak));
    process.is_alive()?;
    drain(&process).await?;
    process.stop().await
}

/// Waits until it has come to rest.
async fn drain(process: &Process) -> anyhow::Result<()> {
    process.cpu_at_rest().await.map(|_| ())
}

/// What became of the requests that were sent, as their senders saw it.
#[derive(Default)]
struct Seen {
    accepted: AtomicUsize,
    refused: AtomicUsize,
    unanswered: AtomicUsize,
    slowest_micros: AtomicUsize,
}

impl Seen {
    fn per_second(&self) -> f64 {
        self.accepted.load(Ordering::Relaxed) as f64 / (PART - WARM_UP).as_secs_f64()
    }

    fn saw(&self, status: &anyhow::Result<u16>, took: Duration) {
        let count = match status {
            Ok(202) => &self.accepted,
            Ok(_) => &self.refused,
            Err(_) => &self.unanswered,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let micros = usize::try_from(took.as_micros()).unwrap_or(usize::MAX);
        self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        write!(
            f,
            "{:.0}/s accepted, {} refused, {} without an answer, slowest {} ms",
            self.per_second(),
            of(&self.refused),
            of(&self.unanswered),
            of(&self.slowest_micros) / 1000
        )
    }
}

/// Posts for a while over so many connections: so many a second, or as fast as they are answered.
async fn offer(
    relay: &Relay,
    webhooks: &Arc<Webhooks>,
    connections: usize,
    rate: Option<f64>,
) -> anyhow::Result<Seen> {
    let seen = Arc::new(Seen::default());
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (relay, webhooks) = (relay.clone(), Arc::clone(webhooks));
        let (seen, next) = (Arc::clone(&seen), Arc::clone(&next));
        tasks.spawn(async move {
            let mut connection = None;
            while begun.elapsed() < PART {
                let index = next.fetch_add(1, Ordering::Relaxed);
                ensure!(index < webhooks.count(), "too few webhooks were signed");
                if let Some(rate) = rate {
                    sleep_until(begun + Duration::from_secs_f64(index as f64 / rate)).await;
                }
                let sent = Instant::now();
                let status = exchange(&relay, &mut connection, &webhooks.request(index)).await;
                if (WARM_UP..PART).contains(&begun.elapsed()) {
                    seen.saw(&status, sent.elapsed());
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    drop(next);
    Arc::into_inner(seen).context("all have ended")
}

/// One request over a connection that is there, or a new one; it is kept if it is of any more use.
async fn exchange(
    relay: &Relay,
    kept: &mut Option<Connection>,
    request: &[u8],
) -> anyhow::Result<u16> {
    let until = Instant::now() + PATIENCE;
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => tokio::time::timeout_at(until, relay.connect()).await.context("no handshake")??,
    };
    let left = until.saturating_duration_since(Instant::now());
    let status = connection.ask(request, left).await?;
    *kept = Some(connection);
    Ok(status)
}

/// A control group that holds a process to a share of a core. Gone when dropped.
struct Held(PathBuf);

impl Held {
    const PERIOD_MICROS: u32 = 20_000;

    fn new(process: &Process, percent: u32) -> anyhow::Result<Self> {
        let name = format!("relay-bench-{}", process.id());
        let quota = Self::PERIOD_MICROS * percent / 100;
        let first = PathBuf::from("/sys/fs/cgroup/cpu");
        let is_first = first.join("cpu.cfs_quota_us").exists();
        let group = if is_first { first } else { PathBuf::from("/sys/fs/cgroup") }.join(name);
        std::fs::create_dir(&group).with_context(|| {
            format!("{}: a control group can't be made; that needs root", group.display())
        })?;
        let held = Self(group);
        let write = |name: &str, text: String| {
            let path = held.0.join(name);
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        if is_first {
            write("cpu.cfs_period_us", Self::PERIOD_MICROS.to_string())?;
            write("cpu.cfs_quota_us", quota.to_string())?;
        } else {
            write("cpu.max", format!("{quota} {}", Self::PERIOD_MICROS))?;
        }
        write("cgroup.procs", process.id().to_string())?;
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The process may still be in it: then the group stays until the machine is started again.
        let _left = std::fs::remove_dir(&self.0);
    }
}
