//! What a start costs with a backlog: deliveries to a target that is down, then `kill -9`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep};

use super::body;
use super::process::{Home, Lane, Process, free_port};
use super::sender::{Webhooks, post_all};
use super::target::Target;
use super::{Args, megabytes};

/// What goes to the target that is down, and its activity.
pub(crate) const SMALL: (&str, &str) = ("01_doc_example_listing_delivered", "LISTING_DELIVERED");

/// At most so long for a start: much longer than it should take, so that the figure is seen.
const START_WAIT_MAX: Duration = Duration::from_secs(120);

/// Waited for after a start, before its memory is called its own.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: &Args, pending: usize) -> anyhow::Result<()> {
    let live = Target::start()?;
    let lanes = [
        Lane {
            name: "dead",
            activity: SMALL.1,
            address: free_port()?,
            // Tried once each, then not again while this runs.
            more: format!("    retry: {{ first: {}, max: 4h }}\n", args.dead_retry),
        },
        Lane { name: "live", activity: body::ACTIVITY, address: live.address, more: String::new() },
    ];
    let mut flags = args.flags.clone();
    flags.extend(["--log-level".to_owned(), "error".to_owned()]);
    let home = Home::new(&args.folder, &args.binary, &flags, &lanes)?;

    let mut process = home.start()?;
    process.listening(START_WAIT_MAX).await?;
    println!("empty: listening after {:.0?}", process.started.elapsed());
    sleep(Duration::from_secs(1)).await;
    println!("empty: {} resident", megabytes(process.memory()?.now));

    let webhooks = Arc::new(Webhooks::sign(body::of_vector(SMALL.0), 0, pending)?);
    let cpu = process.cpu()?;
    let posted = post_all(&process.relay, &webhooks, args.senders, None).await?;
    process.is_alive()?;
    let used = process.cpu()? - cpu;
    let memory = process.memory()?;
    println!(
        "{pending} posted in {:.1?} ({:.0}/s), CPU {:.1} µs each with the attempts made so far, \
         p99 {:.1?}, slowest {:.1?}",
        posted.took,
        pending as f64 / posted.took.as_secs_f64(),
        used.as_secs_f64() * 1e6 / pending as f64,
        posted.waits[posted.waits.len() * 99 / 100],
        posted.waits[posted.waits.len() - 1],
    );
    println!("  {} resident, at most {}", megabytes(memory.now), megabytes(memory.peak));
    println!("  {} on the disk", megabytes(home.data_bytes()? as f64));
    drop(webhooks);
    process.kill()?;
    let mut number = pending as u64;
    for round in ["after kill -9", "again, after kill -9", "after an orderly stop"] {
        let process = start(&home, &live, round, &mut number).await?;
        if round.starts_with("again") {
            let begun = Instant::now();
            process.stop().await?;
            println!("stopped in order within {:.0?}", begun.elapsed());
        } else {
            process.kill()?;
        }
    }
    Ok(())
}

/// Starts it over its backlog, and posts to it until it accepts.
pub(crate) async fn start(
    home: &Home,
    live: &Target,
    round: &str,
    number: &mut u64,
) -> anyhow::Result<Process> {
    let webhooks = Webhooks::sign(body::of_size(4096), *number, 1)?;
    *number += 1;
    let mut process = home.start()?;
    let began = process.started;
    loop {
        let posted = async { process.relay.connect().await?.post(&webhooks, 0).await };
        match posted.await {
            Ok(()) => break,
            Err(error) => ensure!(began.elapsed() < START_WAIT_MAX, "{round}: {error:#}"),
        }
        process.is_alive()?;
        sleep(Duration::from_millis(2)).await;
    }
    let accepted = began.elapsed();
    live.wait_for(webhooks.numbers(), START_WAIT_MAX).await?;
    let delivered = began.elapsed();
    let memory = process.memory()?.now;
    sleep(SETTLE).await;
    let (later, cpu) = (process.memory()?, process.cpu()?);
    println!(
        "{round}: first accept {accepted:.0?}, first delivery {delivered:.0?} after exec; \
         resident {}, after {SETTLE:.0?} {}, at most {}; CPU so far {cpu:.1?}",
        megabytes(memory),
        megabytes(later.now),
        megabytes(later.peak),
    );
    live.forget();
    Ok(process)
}
