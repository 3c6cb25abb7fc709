//! A target on a thread of its own: it answers 200 and remembers the numbers it was sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::body;

/// One of so many is taken, whatever the others are answered.
pub(crate) const TAKEN: u64 = 4;

/// How often somebody who waits for a delivery looks.
const GLANCE: Duration = Duration::from_millis(1);

/// A running target; it ends with the bench.
pub(crate) struct Target {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    got: Arc<Mutex<Got>>,
    status: Arc<AtomicU16>,
}

/// What it has got.
#[derive(Default)]
struct Got {
    numbers: HashMap<u64, Instant>,
    repeats: u64,
}

impl Target {
    /// Starts one on a free port.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts one there.
    pub(crate) fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let got = Arc::new(Mutex::new(Got::default()));
        let status = Arc::new(AtomicU16::new(200));
        let (shared, answers) = (Arc::clone(&got), Arc::clone(&status));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("target".into()).spawn(move || {
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener)?;
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    connections.spawn(serve(stream, Arc::clone(&shared), Arc::clone(&answers)));
                    while connections.try_join_next().is_some() {}
                }
                #[expect(unreachable_code, reason = "says what `?` above returns")]
                anyhow::Ok(())
            })
        })?;
        Ok(Self { address, got, status })
    }

    /// Answers with this status from now on.
    pub(crate) fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Waits until all of `numbers` are there, each at least once.
    pub(crate) async fn wait_for(
        &self,
        numbers: Range<u64>,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        let wanted = usize::try_from(numbers.end - numbers.start)?;
        loop {
            let there = {
                let got = self.got();
                // Asking for each would keep the target from its work.
                if got.numbers.len() < wanted {
                    got.numbers.len()
                } else {
                    numbers.clone().filter(|number| got.numbers.contains_key(number)).count()
                }
            };
            if there == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{there} of {wanted} were delivered within {limit:?}");
            sleep(GLANCE).await;
        }
    }

    fn got(&self) -> MutexGuard<'_, Got> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many it has, each counted once.
    pub(crate) fn count(&self) -> usize {
        self.got().numbers.len()
    }

    /// When it had all of this one.
    pub(crate) fn arrived(&self, number: u64) -> Option<Instant> {
        self.got().numbers.get(&number).copied()
    }

    /// Forgets all, and says how many came again.
    pub(crate) fn forget(&self) -> u64 {
        let mut got = self.got();
        got.numbers.clear();
        std::mem::take(&mut got.repeats)
    }
}

async fn serve(
    mut stream: TcpStream,
    got: Arc<Mutex<Got>>,
    status: Arc<AtomicU16>,
) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let Some(length) = super::message_length(&buffer) else { continue };
        if buffer.len() < length {
            continue;
        }
        let body_at = super::head_length(&buffer).context("it was there")?;
        let number = body::number(&buffer[body_at..]).context("a body without a number")?;
        let mut status = status.load(Ordering::Relaxed);
        // Who takes nothing at all is suspended.
        if number.is_multiple_of(TAKEN) {
            status = 200;
        }
        if status == 200 {
            let mut got = got.lock().unwrap_or_else(PoisonError::into_inner);
            if got.numbers.insert(number, Instant::now()).is_some() {
                got.repeats += 1;
            }
        }
        buffer.drain(..length);
        let answer = format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
    }
}
