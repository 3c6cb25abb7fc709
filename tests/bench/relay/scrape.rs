//! What a page of metrics costs where there are many targets, and whether senders notice it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use super::process::{Home, Lane};
use super::sender::{Posted, Webhooks, post_all};
use super::target::Target;
use super::{Args, WAIT_MAX, body};

const PAGES: u32 = 200;
/// What is posted with and without somebody who reads pages all the time.
const COUNT: usize = 8000;
const RATE: u32 = 1000;

pub(crate) async fn run(args: &Args, targets: usize) -> anyhow::Result<()> {
    let target = Target::start()?;
    let lanes: Vec<Lane> = (0..targets)
        .map(|number| Lane {
            name: format!("target-{number}").leak(),
            activity: if number == 0 { body::ACTIVITY } else { "NEVER_SENT" },
            address: target.address,
            more: String::new(),
        })
        .collect();
    let mut flags = args.flags.clone();
    flags.extend(["--log-level".to_owned(), "error".to_owned()]);
    let home = Home::new(&args.folder, &args.binary, &flags, &lanes)?;
    let mut process = home.start()?;
    process.listening(WAIT_MAX).await?;
    let warm = Arc::new(Webhooks::sign(body::of_size(4096), 0, 1000)?);
    post_all(&process.relay, &warm, args.senders, None).await?;
    target.wait_for(warm.numbers(), WAIT_MAX).await?;

    let before = process.cpu_at_rest().await?;
    let (mut took, mut bytes) = (Vec::new(), 0);
    for _ in 0..PAGES {
        let asked = Instant::now();
        bytes = page(process.admin)?;
        took.push(asked.elapsed());
    }
    let cpu = (process.cpu()? - before) / PAGES;
    took.sort();
    println!(
        "{PAGES} pages of {targets} targets, {} KB each: median {:.1?}, slowest {:.1?}, CPU {cpu:.1?}",
        bytes / 1000,
        took[took.len() / 2],
        took[took.len() - 1]
    );

    let mut first = warm.numbers().end;
    for round in 0..args.runs {
        // In turns, so that what else the machine does meets both.
        for is_scraped in [round % 2 == 0, round % 2 != 0] {
            let webhooks = Arc::new(Webhooks::sign(body::of_size(4096), first, COUNT)?);
            first = webhooks.numbers().end;
            let reader = is_scraped.then(|| Reader::start(process.admin));
            let posted = post_all(&process.relay, &webhooks, args.senders, Some(RATE)).await?;
            if let Some(reader) = reader {
                reader.stop()?;
            }
            target.wait_for(webhooks.numbers(), WAIT_MAX).await?;
            let how = if is_scraped { "beside ten pages a second" } else { "alone" };
            let (p50, p99) = (wait(&posted, 50), wait(&posted, 99));
            println!("  {COUNT} at {RATE}/s, {how}: p50 {p50:.2?}, p99 {p99:.2?}");
        }
    }
    process.is_alive()?;
    process.stop().await
}

fn wait(posted: &Posted, part: usize) -> Duration {
    posted.waits[posted.waits.len() * part / 100]
}

/// Reads pages all the time, on a thread of its own: what it does is not to hold senders up.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Reader {
    fn start(admin: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                page(admin)?;
                std::thread::park_timeout(Duration::from_millis(100));
            }
            Ok(())
        });
        Self { stop, thread }
    }

    fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    }
}

/// Reads one page; how long it is.
fn page(admin: SocketAddr) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect(admin)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "a page was refused");
    Ok(answer.len())
}
