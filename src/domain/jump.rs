//! Whether the machine's wall clock can be believed.

use std::time::Duration;

use crate::domain::time::Timestamp;

/// A wall clock that is further than this from where it should be has jumped.
pub const JUMP_MAX: Duration = Duration::from_secs(300);

/// So long nothing expires after that: time for somebody to look.
pub const DOUBT: Duration = Duration::from_secs(3600);

/// How far the wall clock is from where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// It shows a later time.
    Ahead(Duration),
    /// It shows an earlier time.
    Behind(Duration),
}

/// Watches a wall clock. Running time, which is monotonic, is what it is compared with.
#[derive(Debug)]
pub struct WallWatch {
    // What the wall clock showed, and the running time then.
    seen: (Timestamp, Duration),
    doubted_until: Option<Duration>,
}

impl WallWatch {
    /// Believes what the wall clock shows when running time begins.
    pub fn new(wall: Timestamp) -> Self {
        Self { seen: (wall, Duration::ZERO), doubted_until: None }
    }

    /// Compares with what the wall clock showed at the last look. Each jump is found once; one that
    /// is slow enough is none.
    pub fn look(&mut self, wall: Timestamp, running: Duration) -> Option<Jump> {
        let (shown, at) = std::mem::replace(&mut self.seen, (wall, running));
        self.compare(shown.plus(running.saturating_sub(at)), wall, running)
    }

    /// Compares with the newest record of a store that is opened. Ahead of it may be a jump as well
    /// as a long stop: nothing tells them apart.
    pub fn opened(
        &mut self,
        newest: Timestamp,
        wall: Timestamp,
        running: Duration,
    ) -> Option<Jump> {
        self.compare(newest, wall, running)
    }

    /// Whether the wall clock has jumped lately.
    pub fn is_doubted(&self, running: Duration) -> bool {
        self.doubted_until.is_some_and(|until| running < until)
    }

    fn compare(&mut self, expected: Timestamp, wall: Timestamp, running: Duration) -> Option<Jump> {
        let jump = match (wall.since(expected), expected.since(wall)) {
            (by, _) if by > JUMP_MAX => Jump::Ahead(by),
            (_, by) if by > JUMP_MAX => Jump::Behind(by),
            _ => return None,
        };
        self.doubted_until = Some(running + DOUBT);
        Some(jump)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_jump_either_way_is_found_once_and_doubted_for_an_hour() {
        let mut watch = WallWatch::new(START);
        assert_eq!(watch.look(START.plus(MINUTE), MINUTE), None);
        assert!(!watch.is_doubted(MINUTE));
        let ahead = START.plus(MINUTE * 600);
        assert_eq!(watch.look(ahead, MINUTE * 2), Some(Jump::Ahead(MINUTE * 598)));
        assert_eq!(watch.look(ahead.plus(MINUTE), MINUTE * 3), None);
        assert!(watch.is_doubted(MINUTE * 61));
        assert!(!watch.is_doubted(MINUTE * 62));
        let back = START.plus(MINUTE * 4);
        assert_eq!(watch.look(back, MINUTE * 4), Some(Jump::Behind(MINUTE * 598)));
        assert!(watch.is_doubted(MINUTE * 63));
    }

    #[test]
    fn what_moves_slowly_or_little_is_no_jump() {
        let mut watch = WallWatch::new(START);
        for minutes in 1..1000 {
            // Half as fast again, as a clock that is being corrected might.
            let wall = START.plus(MINUTE * minutes * 3 / 2);
            assert_eq!(watch.look(wall, MINUTE * minutes), None);
        }
        let mut watch = WallWatch::new(START);
        assert_eq!(watch.look(START.plus(JUMP_MAX), Duration::ZERO), None);
        assert_eq!(watch.look(START, Duration::ZERO), None);
    }

    #[test]
    fn a_store_whose_newest_record_is_far_from_now_is_doubted_either_way() {
        for (newest, jump) in [
            (START.minus(MINUTE * 4), None),
            (START.plus(MINUTE * 4), None),
            (START.minus(MINUTE * 600), Some(Jump::Ahead(MINUTE * 600))),
            (START.plus(MINUTE * 600), Some(Jump::Behind(MINUTE * 600))),
        ] {
            let mut watch = WallWatch::new(START);
            assert_eq!(watch.opened(newest, START, Duration::ZERO), jump);
            assert_eq!(watch.is_doubted(DOUBT - MINUTE), jump.is_some());
            assert!(!watch.is_doubted(DOUBT));
        }
    }
}
