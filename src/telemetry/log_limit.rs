//! Keeps a flood of events of one kind from filling the disk with log lines.

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

    fn is_over(&self, now: Instant) -> bool {
        self.window_began.is_none_or(|began| now.duration_since(began) >= self.window)
    }
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
}
