//! Keeps a flood of events of one kind from filling the disk with log lines.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets the first events of each window through and counts the others.
#[derive(Debug)]
pub struct LogLimit {
    per_window: u32,
    window: Duration,
    window_began: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl LogLimit {
    /// So many in each window.
    pub fn new(per_window: u32, window: Duration) -> Self {
        Self { per_window, window, window_began: None, logged: 0, suppressed: 0 }
    }

    /// Whether to log one now, and how many were not logged since the last one that was.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_over(now) {
            self.window_began = Some(now);
            self.logged = 0;
        }
        if self.logged == self.per_window {
            self.suppressed += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    /// How many were not logged in a window that is over, of which nobody has been told yet.
    pub fn untold(&mut self, now: Instant) -> u64 {
        if self.is_over(now) { std::mem::take(&mut self.suppressed) } else { 0 }
    }

    /// The same of a window that is not over yet: nothing more will come.
    pub fn rest(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.window_began.is_none_or(|began| now.duration_since(began) >= self.window)
    }
}

/// What strangers can cause at will is logged so often of each kind within [`FLOOD_WINDOW`].
pub const FLOOD_LOGGED: u32 = 10;

/// Within this; then the number of the others is.
pub const FLOOD_WINDOW: Duration = Duration::from_secs(10);

/// A limit for each kind of what strangers can cause at will, so that a flood of one hides no other.
#[derive(Debug)]
pub struct LogLimits<K>(Vec<(K, Mutex<LogLimit>)>);

impl<K: Copy + PartialEq> LogLimits<K> {
    /// For these kinds; nothing is logged of any other.
    pub fn new(kinds: impl IntoIterator<Item = K>) -> Self {
        let limit = || Mutex::new(LogLimit::new(FLOOD_LOGGED, FLOOD_WINDOW));
        Self(kinds.into_iter().map(|kind| (kind, limit())).collect())
    }

    /// Whether to log one of this kind now, and how many have to be told first that were not.
    pub fn admit(&self, kind: K) -> Option<u64> {
        let (_, limit) = self.0.iter().find(|(known, _)| *known == kind)?;
        locked(limit).admit(Instant::now())
    }

    /// Tells how many of each kind were not logged, once their window is over.
    pub fn tell_untold(&self, tell: impl FnMut(K, u64)) {
        let now = Instant::now();
        self.tell(|limit| limit.untold(now), tell);
    }

    /// The same at the end, without waiting for that.
    pub fn tell_rest(&self, tell: impl FnMut(K, u64)) {
        self.tell(LogLimit::rest, tell);
    }

    fn tell(&self, take: impl Fn(&mut LogLimit) -> u64, mut tell: impl FnMut(K, u64)) {
        for (kind, limit) in &self.0 {
            let untold = take(&mut locked(limit));
            if untold > 0 {
                tell(*kind, untold);
            }
        }
    }
}

fn locked(limit: &Mutex<LogLimit>) -> std::sync::MutexGuard<'_, LogLimit> {
    limit.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn a_flood_is_logged_by_its_first_lines_and_then_by_its_number() {
        let mut limit = LogLimit::new(10, WINDOW);
        let start = Instant::now();
        let flood = |limit: &mut LogLimit, at| (0..1000).filter_map(|_| limit.admit(at)).collect();
        let first: Vec<u64> = flood(&mut limit, start);
        assert_eq!(first, [0; 10]);
        assert_eq!(limit.admit(start + Duration::from_secs(9)), None);
        assert_eq!(limit.untold(start + Duration::from_secs(9)), 0, "more may come");
        let second: Vec<u64> = flood(&mut limit, start + WINDOW);
        assert_eq!(second, [991, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(limit.admit(start + WINDOW * 5), Some(990));
    }

    #[test]
    fn what_was_not_logged_is_told_once_when_its_window_is_over() {
        let mut limit = LogLimit::new(1, WINDOW);
        let start = Instant::now();
        assert_eq!([(); 5].map(|()| limit.admit(start)), [Some(0), None, None, None, None]);
        assert_eq!(limit.untold(start + WINDOW), 4);
        assert_eq!(limit.untold(start + WINDOW), 0);
        assert_eq!(limit.admit(start + WINDOW), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_kind_hides_no_other_and_each_is_told_by_its_number() {
        let limits = LogLimits::new(["flood", "other"]);
        let logged = (0..1000).filter(|_| limits.admit("flood").is_some()).count();
        assert_eq!(logged, FLOOD_LOGGED as usize);
        assert_eq!(limits.admit("other"), Some(0));
        assert_eq!(limits.admit("unknown"), None);
        let told = || {
            let mut told = Vec::new();
            limits.tell_untold(|kind, count| told.push((kind, count)));
            told
        };
        assert_eq!(told(), [], "more may come");
        tokio::time::advance(FLOOD_WINDOW).await;
        assert_eq!(told(), [("flood", 990)]);
        assert_eq!(told(), []);
        assert_eq!((0..15).filter(|_| limits.admit("other").is_some()).count(), 10);
        let mut rest = Vec::new();
        limits.tell_rest(|kind, count| rest.push((kind, count)));
        assert_eq!(rest, [("other", 5)]);
    }
}
