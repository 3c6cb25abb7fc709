//! What a target that is dead, with a long backlog, costs the one beside it; and how it comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use super::process::{Home, Lane, Process, command, free_port};
use super::sender::{Webhooks, post_all};
use super::target::Target;
use super::{Args, body, median, megabytes, million};

/// At most so long for each part.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// What the healthy target gets, a second and in each round.
const RATE: u32 = 500;
const ROUND: usize = 8;

/// The dead target's limit, and for how long it is held against it.
const LIMIT: u32 = 200;
const DRAIN: Duration = Duration::from_secs(30);

/// What the first attempts after it is back need before the rate is even.
const WARM_UP: Duration = Duration::from_secs(2);

/// How long the healthy target waits for each, in a round, in milliseconds.
struct Round {
    p50: f64,
    p99: f64,
}

pub(crate) async fn run(args: &Args, pending: usize) -> anyhow::Result<()> {
    let (live, alone) = (Target::start()?, Target::start()?);
    let dead_at = free_port()?;
    let lanes = |live: &Target| {
        let more = format!("    retry: {{ first: 2h, max: 4h }}\n    rate_limit: {LIMIT}/s\n");
        let dead = Lane { name: "dead", activity: million::SMALL.1, address: dead_at, more };
        let (activity, address) = (body::ACTIVITY, live.address);
        [dead, Lane { name: "live", activity, address, more: String::new() }]
    };
    let mut flags = args.flags.clone();
    flags.extend(["--log-level".to_owned(), "error".to_owned()]);
    let home = Home::new(&args.folder, &args.binary, &flags, &lanes(&live))?;
    let other = Home::new(&args.folder, &args.binary, &flags, &lanes(&alone))?;
    let (mut with, mut without) = (home.start()?, other.start()?);
    with.listening(WAIT_MAX).await?;
    without.listening(WAIT_MAX).await?;
    let webhooks = Arc::new(Webhooks::sign(body::of_vector(million::SMALL.0), 0, pending)?);
    post_all(&with.relay, &webhooks, args.senders, None).await?;
    drop(webhooks);
    with.cpu_at_rest().await?;
    let mut number = pending as u64;
    compare(args, (&with, &live), (&without, &alone), &mut number).await?;
    without.stop().await?;
    with.kill()?;
    let with = million::start(&home, &live, "after kill -9", &mut number).await?;
    come_back(args, with, Target::start_at(dead_at)?, pending).await
}

/// Rounds in turns: which of both goes first changes.
async fn compare(
    args: &Args,
    with: (&Process, &Target),
    without: (&Process, &Target),
    number: &mut u64,
) -> anyhow::Result<()> {
    let mut rounds = (Vec::new(), Vec::new());
    for nth in 0..args.runs {
        let (a, b);
        if nth % 2 == 0 {
            a = round(args, with, number).await?;
            b = round(args, without, number).await?;
        } else {
            b = round(args, without, number).await?;
            a = round(args, with, number).await?;
        }
        println!(
            "  with a dead one beside it p50 {:.2} ms, p99 {:.2} ms; without p50 {:.2} ms, p99 {:.2} ms",
            a.p50, a.p99, b.p50, b.p99
        );
        rounds.0.push(a);
        rounds.1.push(b);
    }
    for (name, of) in [("p50", (|round| round.p50) as fn(&Round) -> f64), ("p99", |r| r.p99)] {
        let differences =
            rounds.0.iter().zip(&rounds.1).map(|(with, without)| of(with) - of(without));
        println!(
            "{name}: with {:.2} ms, without {:.2} ms, medians of {} rounds; paired difference {:.2} ms",
            median(rounds.0.iter().map(of)),
            median(rounds.1.iter().map(of)),
            args.runs,
            median(differences),
        );
    }
    let (dead, alone) = (with.0.memory()?, without.0.memory()?);
    println!(
        "memory with {} (at most {}), without {} (at most {})",
        megabytes(dead.now),
        megabytes(dead.peak),
        megabytes(alone.now),
        megabytes(alone.peak),
    );
    Ok(())
}

/// From the first byte of each request to the target's having it, so with its acceptance.
async fn round(
    args: &Args,
    (process, target): (&Process, &Target),
    number: &mut u64,
) -> anyhow::Result<Round> {
    let count = RATE as usize * ROUND;
    let webhooks = Arc::new(Webhooks::sign(body::of_size(4096), *number, count)?);
    *number += count as u64;
    let posted = post_all(&process.relay, &webhooks, args.senders, Some(RATE)).await?;
    target.wait_for(webhooks.numbers(), WAIT_MAX).await?;
    let mut waits = Vec::with_capacity(count);
    for (number, sent) in &posted.sent {
        let arrived = target.arrived(*number).context("it is there")?;
        waits.push(arrived.saturating_duration_since(*sent).as_secs_f64() * 1e3);
    }
    waits.sort_by(f64::total_cmp);
    let repeats = target.forget();
    ensure!(waits.len() == count && repeats == 0, "{} delivered, {repeats} twice", waits.len());
    Ok(Round { p50: waits[count / 2], p99: waits[count * 99 / 100] })
}

/// The dead target is there again, and an operator says so.
async fn come_back(
    args: &Args,
    mut process: Process,
    target: Target,
    pending: usize,
) -> anyhow::Result<()> {
    let ask = |words: &[&str]| -> anyhow::Result<String> {
        let output = command(args, &process, words).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.code().is_some_and(|code| code < 2),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    };
    let dead =
        ask(&["dead-letters", "redrive", "--target", "dead", "--dry-run", "--format", "json"])?;
    ensure!(dead.contains("\"found\":0") || dead.contains("\"found\": 0"), "some died: {dead}");
    let begun = Instant::now();
    ask(&["targets", "resume", "dead"])?;
    while target.count() == 0 {
        ensure!(begun.elapsed() < WAIT_MAX, "nothing comes");
        sleep(Duration::from_millis(10)).await;
    }
    println!(
        "the dead target is back: first delivery {:.0?} after `targets resume` was typed",
        begun.elapsed()
    );
    sleep(WARM_UP).await;
    let (before, begun) = (target.count(), Instant::now());
    sleep(DRAIN).await;
    let rate = (target.count() - before) as f64 / begun.elapsed().as_secs_f64();
    let memory = process.memory()?;
    let (drained, repeats) = (target.count(), target.forget());
    println!(
        "it drains at {rate:.1}/s of {LIMIT}/s: {drained} of {pending}, {repeats} twice; {} resident, \
         at most {}",
        megabytes(memory.now),
        megabytes(memory.peak)
    );
    ensure!(repeats == 0, "{repeats} came twice");
    ensure!(rate <= f64::from(LIMIT) * 1.02, "faster than its limit");
    ensure!(rate >= f64::from(LIMIT) * 0.9, "much slower than its limit");
    process.is_alive()?;
    process.stop().await
}
