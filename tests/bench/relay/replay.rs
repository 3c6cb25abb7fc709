//! Webhooks that no route wanted, replayed by the command once the rules are mended.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep};

use super::process::{Home, Lane, Process, command};
use super::sender::{Webhooks, post_all};
use super::target::Target;
use super::{Args, body, megabytes};

/// At most so long for each part.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// Whoever sends something again does it within that.
const REPEATS_WAIT: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: &Args, count: usize) -> anyhow::Result<()> {
    for _ in 0..args.runs {
        once(args, count).await?;
    }
    Ok(())
}

async fn once(args: &Args, count: usize) -> anyhow::Result<()> {
    let target = Target::start()?;
    let lane = |activity| Lane {
        name: "target",
        activity,
        address: target.address,
        more: format!("    concurrency: {}\n", args.concurrency),
    };
    let mut flags = args.flags.clone();
    flags.extend(["--log-level".to_owned(), "error".to_owned()]);
    let home = Home::new(&args.folder, &args.binary, &flags, &[lane("ORDR_CREATED")])?;
    let mut process = home.start()?;
    process.listening(WAIT_MAX).await?;
    let webhooks = Arc::new(Webhooks::sign(body::of_size(4096), 0, count)?);
    post_all(&process.relay, &webhooks, args.senders, None).await?;
    let before = process.memory()?;
    home.route(&[lane(body::ACTIVITY)])?;
    in_force(args, &process, count).await?;
    ensure!(target.count() == 0, "something came before the replay");

    let cpu = process.cpu_at_rest().await?;
    let begun = Instant::now();
    let output = command(args, &process, &["webhooks", "replay", "--unrouted"]).output()?;
    let said = begun.elapsed();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.wait_for(webhooks.numbers(), WAIT_MAX).await?;
    let all = begun.elapsed();
    let used = process.cpu_at_rest().await? - cpu;
    sleep(REPEATS_WAIT).await;
    let memory = process.memory()?;
    println!("{}", String::from_utf8_lossy(&output.stdout).trim());
    println!(
        "  said within {said:.2?}, all {count} delivered within {all:.2?}; CPU {:.1} µs each; {} \
         resident before, {} after, at most {}",
        used.as_secs_f64() * 1e6 / count as f64,
        megabytes(before.now),
        megabytes(memory.now),
        megabytes(memory.peak),
    );
    let repeats = target.forget();
    ensure!(repeats == 0, "{repeats} came twice");
    process.is_alive()?;
    process.stop().await
}

/// Waits until the mended table is in force, by which all of them have somewhere to go.
async fn in_force(args: &Args, process: &Process, count: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    let words = ["webhooks", "replay", "--unrouted", "--dry-run"];
    let all = format!("{count} of {count} ");
    loop {
        let output = command(args, process, &words).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if said.starts_with(&all) {
            return Ok(());
        }
        ensure!(begun.elapsed() < WAIT_MAX, "the table is not in force: {said}");
        sleep(Duration::from_millis(200)).await;
    }
}
