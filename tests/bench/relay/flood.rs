//! Strangers who post what nobody signed and wait for no answer.
//!
//! Each writes a batch of requests at once over a connection that it keeps, behind those that are not
//! answered yet, when its turn comes; another half of it counts the answers. What is offered is what the
//! kernel took: a relay that reads no more takes the time to offer more away.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::sender::{Relay, Webhooks};

/// Requests a second, of all of them.
const OFFERED: usize = 20_000;
const STRANGERS: usize = 200;
/// Where they come from: nobody honest is there.
const ADDRESSES: usize = 8;
/// Requests in one write.
const BATCH: usize = 10;

/// They go on until they are told to stop.
pub(crate) struct Flood {
    stop: CancellationToken,
    thread: JoinHandle<anyhow::Result<Flooded>>,
}

/// What a flood came to.
pub(crate) struct Flooded {
    took: Duration,
    offered: usize,
    unauthorized: usize,
    too_many: usize,
    others: usize,
}

#[derive(Default)]
struct Counts {
    offered: AtomicUsize,
    unauthorized: AtomicUsize,
    too_many: AtomicUsize,
    others: AtomicUsize,
}

impl Flood {
    /// Begins, on a thread of its own.
    pub(crate) fn start(relay: &Relay, webhooks: &Arc<Webhooks>) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let (relay, webhooks, stopped) = (relay.clone(), Arc::clone(webhooks), stop.clone());
        let thread = std::thread::Builder::new()
            .name("flood".to_owned())
            .spawn(move || run(&relay, &webhooks, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub(crate) fn end(self) -> anyhow::Result<Flooded> {
        self.stop.cancel();
        self.thread.join().ok().context("the flood ended by a defect")?
    }
}

fn run(relay: &Relay, webhooks: &Webhooks, stop: &CancellationToken) -> anyhow::Result<Flooded> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let counts = Arc::new(Counts::default());
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for index in 0..STRANGERS {
            let (relay, counts) = (relay.clone(), Arc::clone(&counts));
            let batch: Vec<u8> =
                (0..BATCH).flat_map(|n| webhooks.forged(index * BATCH + n)).collect();
            tasks.spawn(async move {
                let mut turns = Turns::of(index, begun);
                loop {
                    // It may be refused, or be closed after so many requests.
                    let _ended = post(&relay, index, &batch, &mut turns, &counts).await;
                    turns.wait().await;
                }
            });
        }
        stop.cancelled().await;
        tasks.shutdown().await;
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Ok(Flooded {
            took: begun.elapsed(),
            offered: of(&counts.offered),
            unauthorized: of(&counts.unauthorized),
            too_many: of(&counts.too_many),
            others: of(&counts.others),
        })
    })
}

/// When one of them writes: all of them one after the other, over and over.
struct Turns {
    next: Instant,
}

impl Turns {
    const EVERY: Duration = Duration::from_micros((STRANGERS * BATCH * 1_000_000 / OFFERED) as u64);

    fn of(index: usize, begun: Instant) -> Self {
        Self { next: begun + Self::EVERY.mul_f64(index as f64 / STRANGERS as f64) }
    }

    /// Those that were missed come at once: what is offered is so many a second if it can be.
    async fn wait(&mut self) {
        sleep_until(self.next).await;
        self.next += Self::EVERY;
    }
}

/// Over one connection, to its end.
async fn post(
    relay: &Relay,
    index: usize,
    batch: &[u8],
    turns: &mut Turns,
    counts: &Counts,
) -> anyhow::Result<()> {
    let host = u8::try_from(2 + index % ADDRESSES)?;
    let connection = relay.connect_from(Ipv4Addr::new(127, 0, 0, host)).await?;
    let (from, into) = split(connection.into_stream());
    tokio::select! {
        ended = write(into, batch, turns, counts) => ended,
        ended = read(from, counts) => ended,
    }
}

async fn write(
    mut into: impl AsyncWrite + Unpin,
    batch: &[u8],
    turns: &mut Turns,
    counts: &Counts,
) -> anyhow::Result<()> {
    loop {
        turns.wait().await;
        into.write_all(batch).await?;
        into.flush().await?;
        counts.offered.fetch_add(BATCH, Ordering::Relaxed);
    }
}

async fn read(mut from: impl AsyncRead + Unpin, counts: &Counts) -> anyhow::Result<()> {
    let mut answers = Vec::with_capacity(16 * 1024);
    while from.read_buf(&mut answers).await? > 0 {
        let mut rest = &answers[..];
        while let Some(length) = super::message_length(rest).filter(|n| *n <= rest.len()) {
            counts.saw(rest);
            rest = &rest[length..];
        }
        let taken = answers.len() - rest.len();
        answers.drain(..taken);
    }
    Ok(())
}

impl Counts {
    fn saw(&self, answer: &[u8]) {
        let count = match answer.get(..12) {
            Some(b"HTTP/1.1 401") => &self.unauthorized,
            Some(b"HTTP/1.1 429") => &self.too_many,
            _ => &self.others,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Display for Flooded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per_second = |count: usize| count as f64 / self.took.as_secs_f64();
        write!(
            f,
            "{STRANGERS} connections from {ADDRESSES} addresses that offered {:.0}/s that nobody signed, \
             of {OFFERED}/s (answered 401: {:.0}/s, 429: {:.0}/s, anything else: {:.0}/s)",
            per_second(self.offered),
            per_second(self.unauthorized),
            per_second(self.too_many),
            per_second(self.others),
        )
    }
}
