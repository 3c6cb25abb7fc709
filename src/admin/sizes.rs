//! Asking how large the store is, which a disk that hangs never answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::store::{Sizes, Store};

/// How long an answer waits for the sizes of the store, and for its turn to ask for them.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Measures one at a time: where the disk hangs, one thread waits for it and no more.
#[derive(Debug, Clone)]
pub struct Measuring(Arc<Semaphore>);

impl Default for Measuring {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Measuring {
    /// The sizes of the store; none if its disk does not say.
    pub async fn sizes<S: Store>(&self, store: Arc<S>) -> Option<Sizes> {
        let asked = async {
            let turn = Arc::clone(&self.0).acquire_owned().await.ok()?;
            let measured = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                store.sizes()
            });
            measured.await.ok()
        };
        timeout(WAIT_MAX, asked).await.ok().flatten()
    }
}
