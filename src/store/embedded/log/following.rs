//! Going through the log, from a point to a point, over damage and around what can't be read.

use std::io;

use crate::store::embedded::change::Entry;
use crate::store::embedded::log::Log;
use crate::store::embedded::scanner::{Scanner, Unread};
use crate::store::embedded::segment::{LogPoint, Position};

/// What becomes of a read that fails while the log is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It ends there: it may be read later.
    Stop,
    /// What can't be read is damage, and the rest is read.
    GoAround,
}

/// A piece of the log.
#[derive(Debug)]
pub struct Piece {
    /// What it says.
    pub entries: Vec<Entry>,
    /// The point behind it.
    pub upto: LogPoint,
    /// What of it could not be read.
    pub unread: Vec<Unread>,
}

/// Why the log could not be followed.
#[derive(Debug)]
pub enum FollowError<E> {
    /// The disk refused.
    Io(io::Error),
    /// Whoever it was passed to.
    Pass(E),
}

impl Log {
    /// Whether a point can be gone on from: its segment exists, or none before it does.
    pub fn can_follow(&self, from: LogPoint) -> bool {
        from == LogPoint::default() || self.exists(from.segment)
    }

    /// Passes on what lies between two points in pieces; answers whether nothing of it is damaged.
    pub fn follow<E>(
        &self,
        from: LogPoint,
        upto: LogPoint,
        on_error: OnError,
        mut pass: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<bool, FollowError<E>> {
        let closed = self.unread.range(from.segment..=upto.segment.max(from.segment));
        let whole = |segment: &u64| {
            let offset = if *segment == from.segment { from.offset } else { 0 };
            Unread { segment: *segment, offset, bytes: u64::MAX }
        };
        let piece = Piece { entries: Vec::new(), upto: from, unread: closed.map(whole).collect() };
        let mut is_sound = piece.unread.is_empty();
        if !is_sound {
            pass(piece).map_err(FollowError::Pass)?;
        }
        for segment in self.all() {
            let number = segment.header.number;
            if number < from.segment || number > upto.segment {
                continue;
            }
            let start = if number == from.segment { from.offset } else { 0 };
            let end = if number == upto.segment { upto.offset } else { u64::MAX };
            let mut scanner = Scanner::new(segment, start, end).map_err(FollowError::Io)?;
            if on_error == OnError::GoAround {
                scanner = scanner.around_errors();
            }
            let (mut all_unread, mut flaws) = (Vec::new(), Vec::new());
            loop {
                let piece = self.piece(&mut scanner).map_err(FollowError::Io)?;
                let (entries, more, is_known) = piece;
                is_sound &= is_known;
                let upto = LogPoint { segment: number, offset: scanner.offset() };
                let unread = scanner.take_unread();
                all_unread.extend_from_slice(&unread);
                let found = scanner.take_flaws();
                // Before whoever follows the log is past it: what is behind that may be cleaned away.
                for flaw in &found {
                    self.set_aside(flaw.segment, flaw.offset, flaw.bytes);
                }
                flaws.extend(found);
                pass(Piece { entries, upto, unread }).map_err(FollowError::Pass)?;
                if !more {
                    break;
                }
            }
            is_sound &= flaws.is_empty() && all_unread.is_empty();
            self.damage.note_kept(&flaws, &all_unread, |flaw| {
                self.set_aside(flaw.segment, flaw.offset, flaw.bytes)
            });
            if let Some(torn) = scanner.take_torn() {
                torn.tell_torn();
            }
        }
        Ok(is_sound)
    }

    /// Some entries, whether more may follow, and whether every record was understood.
    fn piece(&self, scanner: &mut Scanner) -> io::Result<(Vec<Entry>, bool, bool)> {
        const PIECE: usize = 1024;
        let mut entries = Vec::with_capacity(PIECE);
        let mut is_known = true;
        while let Some(frame) = scanner.next_frame()? {
            match Entry::of_frame(&frame, self.is_durable(frame.position.segment)) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    is_known = false;
                    let Position { segment, offset, .. } = frame.position;
                    if self.damage.add(segment, offset) && self.damage.may_name() {
                        tracing::error!(%error, segment, offset, "a record is not understood");
                    }
                }
            }
            if entries.len() == PIECE {
                return Ok((entries, true, is_known));
            }
        }
        Ok((entries, false, is_known))
    }
}
