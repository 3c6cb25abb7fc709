//! What connections cost that nothing comes over, and whether honest senders still get in beside them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::process;
use super::sender::{Webhooks, post_all};
use super::target::Target;
use super::{Args, WAIT_MAX, body, megabytes};

/// Handshakes at the same time.
const AT_ONCE: usize = 64;
/// One address has a quarter of all connections at most.
const PER_ADDRESS: usize = 2000;
/// What honest senders post beside them.
const COUNT: usize = 5000;
const HONEST: usize = 16;

pub(crate) async fn run(args: &Args, connections: usize) -> anyhow::Result<()> {
    raise_open_files_limit(connections + 1000)?;
    let target = Target::start()?;
    let (_home, mut process) = process::alone(args, &target).await?;
    // What the first handshakes and webhooks bring in is not the connections'.
    let warm = Arc::new(Webhooks::sign(body::of_size(4096), 0, 1000)?);
    post_all(&process.relay, &warm, HONEST, None).await?;
    process.cpu_at_rest().await?;
    let before = process.memory()?;

    let (mut idle, mut tasks) = (Vec::with_capacity(connections), JoinSet::new());
    for number in 0..connections {
        let host = u8::try_from(number / PER_ADDRESS + 2)?;
        let relay = process.relay.clone();
        if tasks.len() >= AT_ONCE
            && let Some(connected) = tasks.join_next().await
        {
            idle.push(connected??);
        }
        tasks.spawn(async move { relay.connect_from(Ipv4Addr::new(127, 0, 0, host)).await });
    }
    while let Some(connected) = tasks.join_next().await {
        idle.push(connected??);
    }
    sleep(Duration::from_secs(1)).await;
    let with = process.memory()?;
    println!(
        "{} idle connections: {} more, {:.1} KB each; {} resident",
        idle.len(),
        megabytes(with.now - before.now),
        (with.now - before.now) / idle.len() as f64 / 1e3,
        megabytes(with.now),
    );

    let webhooks = Arc::new(Webhooks::sign(body::of_size(4096), warm.numbers().end, COUNT)?);
    let posted = post_all(&process.relay, &webhooks, HONEST, Some(1000)).await?;
    target.wait_for(webhooks.numbers(), WAIT_MAX).await?;
    println!(
        "{COUNT} posted beside them at 1,000/s by {HONEST} senders, all accepted and delivered: p99 \
         {:.1?}, slowest {:.1?}",
        posted.waits[posted.waits.len() * 99 / 100],
        posted.waits[posted.waits.len() - 1]
    );
    process.is_alive()?;
    drop(idle);
    process.stop().await
}

fn raise_open_files_limit(wanted: usize) -> anyhow::Result<()> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    let has = limit.maximum.is_none_or(|maximum| maximum >= wanted as u64);
    ensure!(has, "this needs a limit on open files of {wanted}");
    Ok(())
}
