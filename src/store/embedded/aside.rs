//! What waits for the disk on behalf of a task is done where no other task waits for it.

/// Where that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aside {
    /// On one of the runtime's threads for that.
    Thread,
    /// Here and now: nothing goes on meanwhile.
    #[cfg(any(test, feature = "test-util"))]
    Here,
}

impl Aside {
    /// Does it. None at the end of the runtime only: then nobody waits for the answer.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        match self {
            Self::Thread => tokio::task::spawn_blocking(work).await.ok(),
            #[cfg(any(test, feature = "test-util"))]
            Self::Here => Some(work()),
        }
    }
}
