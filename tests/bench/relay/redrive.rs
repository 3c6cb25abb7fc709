//! Dead letters brought back: interrupted, typed again, and each delivered once.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use super::process::{Home, Lane, Process, command};
use super::sender::{Webhooks, post_all};
use super::target::{TAKEN, Target};
use super::{Args, body, megabytes};

/// At most so long for each part.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The command is interrupted after so long, the first time.
const INTERRUPTED_AFTER: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: &Args, count: usize) -> anyhow::Result<()> {
    let target = Target::start()?;
    target.answer(410);
    let lane = Lane {
        name: "target",
        activity: body::ACTIVITY,
        address: target.address,
        more: format!("    concurrency: {}\n", args.concurrency),
    };
    let mut flags = args.flags.clone();
    flags.extend(["--log-level".to_owned(), "error".to_owned()]);
    let home = Home::new(&args.folder, &args.binary, &flags, &[lane])?;
    let mut process = home.start()?;
    process.listening(WAIT_MAX).await?;
    let taken = usize::try_from(TAKEN)?;
    let all = count * taken / (taken - 1);
    let webhooks = Arc::new(Webhooks::sign(body::of_size(4096), 0, all)?);
    let posted = post_all(&process.relay, &webhooks, args.senders, None).await?;
    println!("{all} posted in {:.1?}; {count} of them are answered 410", posted.took);
    let begun = Instant::now();
    let mut dead = 0;
    // Of a number that is no multiple of it one more is taken.
    while dead + 1 < count {
        dead = dead_letters(args, &process)?;
        ensure!(begun.elapsed() < WAIT_MAX, "only {dead} become dead letters");
        sleep(Duration::from_millis(200)).await;
    }
    println!("all are dead letters; {} resident", megabytes(process.memory()?.now));
    target.answer(200);
    let cpu = process.cpu()?;
    let begun = Instant::now();
    let mut first = redrive(args, &process, &[]).spawn()?;
    sleep(INTERRUPTED_AFTER).await;
    first.kill()?;
    first.wait()?;
    let left = dead_letters(args, &process)?;
    println!("interrupted after {INTERRUPTED_AFTER:.0?}: {left} dead letters are left");
    let output = redrive(args, &process, &[]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("typed again: {}", String::from_utf8_lossy(&output.stdout).trim());
    let said = begun.elapsed();
    target.wait_for(webhooks.numbers(), WAIT_MAX).await?;
    let all = begun.elapsed();
    let used = process.cpu_at_rest().await? - cpu;
    let memory = process.memory()?;
    println!(
        "redriven within {said:.1?}, delivered within {all:.1?}, {} came twice; CPU {:.1} µs each; \
         {} resident, at most {}",
        target.forget(),
        used.as_secs_f64() * 1e6 / count as f64,
        megabytes(memory.now),
        megabytes(memory.peak),
    );
    process.is_alive()?;
    process.stop().await
}

fn redrive(args: &Args, process: &Process, more: &[&str]) -> Command {
    let words = ["dead-letters", "redrive", "--target", "target"];
    command(args, process, &[&words, more].concat())
}

fn dead_letters(args: &Args, process: &Process) -> anyhow::Result<usize> {
    let output = redrive(args, process, &["--dry-run", "--format", "json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, rest) = text.split_once("\"found\":").unwrap_or(("", "0"));
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("no count in {text}"))
}
