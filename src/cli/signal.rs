//! Being asked to stop, and what is not to end the process.

use std::io;

use rustix::process;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, from now on.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Listens from now on: none is missed between two calls of [`next`](Self::next).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for one, and names it.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// SIGHUP, from now on: it asks others to read their settings again, and ends who does not listen.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Listens from now on.
    pub fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// A write beyond the limit of a file's size (RLIMIT_FSIZE) is an error from now on, as one on a full disk is:
/// who does not listen for SIGXFSZ is ended by it.
pub fn outlive_file_size_limit() -> io::Result<()> {
    // Once somebody has listened, it is never again what the kernel does by itself.
    signal(SignalKind::from_raw(process::Signal::XFSZ.as_raw())).map(drop)
}

/// Waits for SIGINT or SIGTERM, and names the one that came.
pub async fn stop_requested() -> io::Result<&'static str> {
    Ok(StopSignals::new()?.next().await)
}
