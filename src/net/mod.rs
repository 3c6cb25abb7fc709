//! Sockets, TLS and HTTP connections, both ways. Knows nothing of webhooks.

use std::error::Error;

use tokio_util::task::TaskTracker;

pub mod acme;
pub mod address;
pub mod body;
pub mod client;
mod connection;
mod crowd;
pub mod inherited;
pub mod listener;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
pub mod otlp;
mod phase;
mod proxied;
pub mod resolve;
pub mod stream;
pub mod tls;

#[cfg(test)]
mod testing;

/// Runs what hyper wants in the background on a tracker, so that its owner can wait for it.
#[derive(Clone, Debug)]
struct TrackedExecutor(TaskTracker);

impl<F> hyper::rt::Executor<F> for TrackedExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        drop(self.0.spawn(future));
    }
}

/// The whole chain of an error on one line, from the outermost to the cause.
fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error).skip(1) {
        let cause = cause.to_string();
        // Wrappers often repeat the text of what they wrap.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The error itself, then each of its sources.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}
