//! The whole relay from outside: what an accepted and delivered webhook costs.
//!
//! ```text
//! cargo bench --bench relay                        # 4 KB and 26 KB, unthrottled and at 1,000/s
//! cargo bench --bench relay -- --million           # start over 1,000,000 pending deliveries
//! cargo bench --bench relay -- --redrive           # 100,000 dead letters, brought back
//! cargo bench --bench relay -- --replay            # 10,000 unrouted webhooks, replayed
//! cargo bench --bench relay -- --dead-beside       # a target beside one with 1,000,000 pending
//! cargo bench --bench relay -- --overload          # five times what it can do, and a flood, as root
//! cargo bench --bench relay -- --idle              # 10,000 idle TLS connections
//! cargo bench --bench relay -- --scrape            # pages of metrics of 100 targets
//! cargo bench --bench relay -- --help
//! ```
//!
//! Each run starts the program anew on an empty data directory on a real disk: one HTTPS listener,
//! one plain-HTTP target that answers 200 from a thread of this process, keep-alive senders
//! (HTTP/1.1, TLS 1.3) in this process, everything on loopback. A run is warmed up first; it ends
//! when all webhooks are delivered and the relay has come to rest, so that its index is written. The
//! CPU time is the relay's own as the kernel counts it; it includes what the loopback makes the relay
//! do for the receiving side. Waits are from the first byte of a request to its answer.
#![expect(
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench prints its figures, and one that panics says why"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;

use process::{Home, Lane, Memory};
use sender::{Webhooks, post_all};
use target::Target;

mod beside;
#[path = "../body.rs"]
mod body;
mod flood;
mod idle;
mod million;
mod overload;
mod process;
mod redrive;
mod replay;
mod scrape;
mod sender;
mod target;

/// At most so long for a start and for the last delivery.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Parser)]
#[command(
    about = "Measures the whole relay from outside.",
    after_help = "Without `--bench`, as `cargo test` runs it, nothing is measured."
)]
struct Args {
    /// Set by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs of each case; the medians are printed
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Webhooks of an unthrottled run
    #[arg(long, default_value_t = 20_000)]
    count: usize,
    /// Sizes of the bodies
    #[arg(long, value_delimiter = ',', default_values_t = [4 * 1024, 26 * 1024])]
    sizes: Vec<usize>,
    /// Webhooks a second, 0 for as many as are answered; a throttled run takes 8 s
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1000])]
    rates: Vec<u32>,
    /// Connections
    #[arg(long, default_value_t = 32)]
    senders: usize,
    /// Measure a start over this many pending deliveries instead
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "1000000")]
    million: Option<usize>,
    /// Measure a redrive of this many dead letters instead
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "100000")]
    redrive: Option<usize>,
    /// Measure a replay of this many unrouted webhooks instead
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10000")]
    replay: Option<usize>,
    /// Measure a target beside a dead one that has so many pending instead
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "1000000")]
    dead_beside: Option<usize>,
    /// Measure a relay that is held to this share of a core, in percent, and asked for much more than
    /// that gives; as root, who can hold it back
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "25")]
    overload: Option<u32>,
    /// Measure so many idle TLS connections instead
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10000")]
    idle: Option<usize>,
    /// Measure pages of metrics of so many targets instead, and webhooks beside them
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "100")]
    scrape: Option<usize>,
    /// With --million: when the dead target is tried again
    #[arg(long, default_value = "2h")]
    dead_retry: String,
    /// Concurrency of the target
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Wait so many seconds in each run once it is warm, for a profiler to be attached
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Where the data goes: a real disk
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// The program
    #[arg(long, default_value = env!("CARGO_BIN_EXE_aryeo-relay"))]
    binary: PathBuf,
    /// Further flags of `serve`
    #[arg(last = true)]
    flags: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !args.bench {
        println!("Nothing is measured: run it as `cargo bench --bench relay`.");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(pending) = args.million {
            million::run(&args, pending).await
        } else if let Some(count) = args.redrive {
            redrive::run(&args, count).await
        } else if let Some(count) = args.replay {
            replay::run(&args, count).await
        } else if let Some(pending) = args.dead_beside {
            beside::run(&args, pending).await
        } else if let Some(percent) = args.overload {
            overload::run(&args, percent).await
        } else if let Some(connections) = args.idle {
            idle::run(&args, connections).await
        } else if let Some(targets) = args.scrape {
            scrape::run(&args, targets).await
        } else {
            compare(&args).await
        }
    })
}

/// What one run came to.
struct Run {
    cpu: f64,
    per_second: f64,
    p50: f64,
    p99: f64,
    idle: Memory,
    after: Memory,
    repeats: u64,
}

/// All cases in turn, `runs` times over, so that what else the machine does meets all of them.
async fn compare(args: &Args) -> anyhow::Result<()> {
    let cases: Vec<(usize, u32)> =
        args.sizes.iter().flat_map(|size| args.rates.iter().map(|rate| (*size, *rate))).collect();
    let target = Target::start()?;
    let mut runs: Vec<Vec<Run>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.runs {
        for ((size, rate), runs) in cases.iter().zip(&mut runs) {
            let run = measure(args, &target, *size, *rate).await?;
            println!("  {size} bytes, rate {rate}: {:.1} µs, {:.0}/s", run.cpu, run.per_second);
            runs.push(run);
        }
    }
    println!();
    println!(
        "| body | load | CPU µs per webhook | webhooks/s | ack p50 ms | p99 ms | idle | after | \
         peak | repeats |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for ((size, rate), runs) in cases.iter().zip(&runs) {
        let of = |value: fn(&Run) -> f64| median(runs.iter().map(value));
        let cpus = || runs.iter().map(|run| run.cpu);
        println!(
            "| {:.0} KB | {} | **{:.1}** ({:.1}–{:.1}) | {:.0} | {:.2} | {:.2} | {} | {} | {} | {} |",
            *size as f64 / 1024.0,
            if *rate == 0 { "unthrottled".to_owned() } else { format!("{rate}/s") },
            of(|run| run.cpu),
            cpus().fold(f64::INFINITY, f64::min),
            cpus().fold(0.0, f64::max),
            of(|run| run.per_second),
            of(|run| run.p50),
            of(|run| run.p99),
            megabytes(of(|run| run.idle.now)),
            megabytes(of(|run| run.after.now)),
            megabytes(of(|run| run.after.peak)),
            runs.iter().map(|run| run.repeats).sum::<u64>(),
        );
    }
    Ok(())
}

async fn measure(args: &Args, target: &Target, size: usize, rate: u32) -> anyhow::Result<Run> {
    let lane = Lane {
        name: "target",
        activity: body::ACTIVITY,
        address: target.address,
        more: format!("    concurrency: {}\n", args.concurrency),
    };
    let home = Home::new(&args.folder, &args.binary, &args.flags, &[lane])?;
    let mut process = home.start()?;
    process.listening(WAIT_MAX).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let idle = process.memory()?;

    let warm = Arc::new(Webhooks::sign(body::of_size(size), 0, 1_000)?);
    post_all(&process.relay, &warm, args.senders, None).await?;
    target.wait_for(warm.numbers(), WAIT_MAX).await?;
    target.forget();

    let rate = (rate > 0).then_some(rate);
    let count = rate.map_or(args.count, |rate| rate as usize * 8);
    let webhooks = Arc::new(Webhooks::sign(body::of_size(size), warm.numbers().end, count)?);
    let before = process.cpu_at_rest().await?;
    if args.pause > 0 {
        println!("  the relay is process {}", process.id());
        tokio::time::sleep(Duration::from_secs(args.pause)).await;
    }
    let posted = post_all(&process.relay, &webhooks, args.senders, rate).await?;
    target.wait_for(webhooks.numbers(), WAIT_MAX).await?;
    let after = process.memory()?;
    let cpu = process.cpu_at_rest().await? - before;
    process.is_alive()?;
    process.stop().await?;
    let wait = |part: usize| posted.waits[posted.waits.len() * part / 100].as_secs_f64() * 1e3;
    Ok(Run {
        cpu: cpu.as_secs_f64() * 1e6 / count as f64,
        per_second: count as f64 / posted.took.as_secs_f64(),
        p50: wait(50),
        p99: wait(99),
        idle,
        after,
        repeats: target.forget(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

/// Where the head of an HTTP/1.1 message ends, once it is there.
fn head_length(message: &[u8]) -> Option<usize> {
    message.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4)
}

/// How long the whole message is, once its head is there.
fn message_length(message: &[u8]) -> Option<usize> {
    let head = head_length(message)?;
    let length = message[..head].split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then(|| value.trim_ascii())
    });
    let length: usize =
        length.map_or(Some(0), |text| std::str::from_utf8(text).ok()?.parse().ok())?;
    Some(head + length)
}
