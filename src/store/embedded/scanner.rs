//! Going through a segment: record after record, over damage, and around what can't be read.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::store::embedded::damage::{Flaw, Trace};
use crate::store::embedded::disk::read_fully;
use crate::store::embedded::segment::{
    FRAME_HEAD, FRAME_MAGIC, Frame, HEADER_BYTES, Head, Position, Seal, Segment, u32_at,
};

const CHUNK: usize = 1 << 20;
// What a disk fails to read is no smaller.
const BLOCK: usize = 4096;

// What a webhook's record says of itself stands in front of the body.
const TRACE_BYTES_MAX: usize = 64 * 1024;
// What a power cut loses is no smaller, of what was not synced: there it is as reserved, zero.
const SECTOR: usize = 512;

const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A part of a segment that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unread {
    /// The number of the segment.
    pub segment: u64,
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// Reads a segment's records one after the other and steps over damage.
#[derive(Debug)]
pub struct Scanner {
    segment: Arc<Segment>,
    offset: u64,
    end: u64,
    chunk: Bytes,
    chunk_at: u64,
    batch: u32,
    // Damage only if what follows shows that it had been made durable: by a sync after this batch.
    doubtful: Option<(u32, Flaw)>,
    flaws: Vec<Flaw>,
    goes_around: bool,
    unread: Vec<Unread>,
    unread_upto: u64,
}

impl Scanner {
    /// Begins at `offset`; ends at `end` or the segment's own end.
    pub fn new(segment: Arc<Segment>, offset: u64, end: u64) -> io::Result<Self> {
        let end = end.min(segment.limit()).min(segment.file.bytes()?);
        Ok(Self {
            segment,
            offset: offset.max(HEADER_BYTES),
            end,
            chunk: Bytes::new(),
            chunk_at: 0,
            batch: 0,
            doubtful: None,
            flaws: Vec::new(),
            goes_around: false,
            unread: Vec::new(),
            unread_upto: 0,
        })
    }

    /// Takes what can't be read for damage, instead of ending with an error there.
    #[must_use]
    pub fn around_errors(mut self) -> Self {
        self.goes_around = true;
        self
    }

    /// What could not be read so far, and is not known yet.
    pub fn take_unread(&mut self) -> Vec<Unread> {
        std::mem::take(&mut self.unread)
    }

    /// At the end: what may be damage, and may be what a crash leaves of what nobody was told of.
    pub fn take_torn(&mut self) -> Option<Flaw> {
        self.doubtful.take().map(|(_, flaw)| flaw)
    }

    /// Where it is: behind the last record that was found.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What was found damaged so far.
    pub fn take_flaws(&mut self) -> Vec<Flaw> {
        std::mem::take(&mut self.flaws)
    }

    /// The next record, or none if nothing follows.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let mut at = self.offset;
        loop {
            let Some(head) = self.head_at(at)? else {
                match self.gap(at)? {
                    Some(found) => at = found,
                    None => return Ok(None),
                }
                continue;
            };
            let length = head.frame_bytes();
            let Some(frame) = self.bytes(at, length)?.filter(|frame| frame.len() == length) else {
                // It reaches beyond the end: it was never written to its end.
                return Ok(None);
            };
            self.confirm(head.batch);
            let seal = Seal::new(self.segment.header.salt, at);
            let payload = frame.slice(FRAME_HEAD..FRAME_HEAD + head.payload_bytes);
            let length = length as u64;
            if seal.payload_crc(crc32fast::hash(&payload)) == head.payload_crc {
                self.offset = at + length;
                return Ok(Some(Frame {
                    position: Position { segment: self.segment.header.number, offset: at, length },
                    kind: head.kind,
                    version: head.version,
                    payload,
                }));
            }
            let flaw = self.flaw(at, length, Trace::of(head.kind, head.version, &payload));
            if frame.ends_with(&seal.trailer()) && !lacks_sector(&frame, at) {
                self.flaws.push(flaw);
                self.offset = at + length;
            } else if self.doubtful.is_none() {
                self.doubtful = Some((head.batch, flaw));
            }
            at += length;
        }
    }

    /// Takes note of a frame's batch: a gap before an earlier one's sync was damage.
    fn confirm(&mut self, batch: u32) {
        let is_damage = |doubtful: &mut (u32, Flaw)| batch > doubtful.0;
        self.flaws.extend(self.doubtful.take_if(is_damage).map(|(_, flaw)| flaw));
        self.batch = batch;
    }

    fn flaw(&self, offset: u64, bytes: u64, trace: Option<Trace>) -> Flaw {
        Flaw { segment: self.segment.header.number, offset, bytes, trace }
    }

    /// The same where there is not even a head.
    fn headless(&mut self, from: u64, upto: u64) -> io::Result<Flaw> {
        let payload_at = from + FRAME_HEAD as u64;
        let count = usize::try_from(upto.saturating_sub(payload_at)).unwrap_or(usize::MAX);
        let payload = self.bytes(payload_at, count.min(TRACE_BYTES_MAX))?;
        let trace = payload.and_then(|payload| Trace::of_headless(&payload));
        Ok(self.flaw(from, upto - from, trace))
    }

    /// Looks for the next frame behind a place that is none.
    fn gap(&mut self, from: u64) -> io::Result<Option<u64>> {
        let trailer = Seal::new(self.segment.header.salt, from).trailer();
        let mut complete = None;
        let mut at = from;
        while at + 8 <= self.end {
            // Behind the last record lie megabytes of zeros: reserved, never written.
            if at.is_multiple_of(ZEROS.len() as u64)
                && self.bytes(at, ZEROS.len())?.is_some_and(|block| *block == ZEROS)
            {
                at = self.behind_zeros(at + ZEROS.len() as u64)?;
                continue;
            }
            let Some(word) = self.bytes(at, 8)? else { break };
            if *word == trailer {
                let length = usize::try_from(at + 8 - from).unwrap_or(usize::MAX);
                let whole = self.bytes(from, length)?;
                let is_whole = whole.is_some_and(|whole| !lacks_sector(&whole, from));
                complete = is_whole.then_some(at + 8);
            } else if u32_at(&word, 0) == Some(FRAME_MAGIC)
                && at != from
                && let Some(head) = self.head_at(at)?
            {
                let flaw = self.headless(from, at)?;
                if complete.is_some() || head.batch > self.batch.saturating_add(1) {
                    self.flaws.push(flaw);
                } else if self.doubtful.is_none() {
                    self.doubtful = Some((head.batch, flaw));
                }
                return Ok(Some(at));
            }
            at += 8;
        }
        if let Some(upto) = complete {
            let flaw = self.headless(from, upto)?;
            self.flaws.push(flaw);
        }
        Ok(None)
    }

    /// The next block that is worth reading behind one of zeros. Behind the last record most of a
    /// segment was never written: to read that costs more than all that was.
    fn behind_zeros(&self, at: u64) -> io::Result<u64> {
        let written = match self.segment.file.next_written(at) {
            Err(_) if self.goes_around => at,
            written => written?,
        };
        let block = ZEROS.len() as u64;
        Ok(at.max(written / block * block))
    }

    fn head_at(&mut self, at: u64) -> io::Result<Option<Head>> {
        let seal = Seal::new(self.segment.header.salt, at);
        Ok(self.bytes(at, FRAME_HEAD)?.and_then(|bytes| Head::decode(&bytes, seal)))
    }

    /// Some bytes, read ahead; none beyond the end.
    fn bytes(&mut self, at: u64, count: usize) -> io::Result<Option<Bytes>> {
        let Some(end) = at.checked_add(count as u64).filter(|end| *end <= self.end) else {
            return Ok(None);
        };
        if at < self.chunk_at || end > self.chunk_at + self.chunk.len() as u64 {
            let left = usize::try_from(self.end - at).unwrap_or(usize::MAX);
            let mut chunk = vec![0; count.max(CHUNK).min(left)];
            let read = match read_fully(&*self.segment.file, &mut chunk, at) {
                Err(_) if self.goes_around => self.read_around(&mut chunk, at),
                read => read?,
            };
            chunk.truncate(read);
            self.chunk = Bytes::from(chunk);
            self.chunk_at = at;
        }
        let from = usize::try_from(at - self.chunk_at).unwrap_or(usize::MAX);
        let to = from.saturating_add(count);
        Ok((to <= self.chunk.len()).then(|| self.chunk.slice(from..to)))
    }

    /// Reads block by block; what can't be read is zero.
    fn read_around(&mut self, chunk: &mut [u8], at: u64) -> usize {
        let mut done = 0;
        while done < chunk.len() {
            let offset = at + done as u64;
            let rest = BLOCK - usize::try_from(offset % BLOCK as u64).unwrap_or(0);
            let upto = (done + rest).min(chunk.len());
            let Some(block) = chunk.get_mut(done..upto) else { break };
            match read_fully(&*self.segment.file, block, offset) {
                Ok(read) if read < block.len() => return done + read,
                Ok(_) => {}
                Err(_) => {
                    block.fill(0);
                    self.note_unread(offset, (upto - done) as u64);
                }
            }
            done = upto;
        }
        done
    }

    fn note_unread(&mut self, offset: u64, bytes: u64) {
        // The same place may be read more than once.
        if offset < self.unread_upto {
            return;
        }
        match self.unread.last_mut() {
            Some(last) if last.offset + last.bytes == offset => last.bytes += bytes,
            _ => {
                let segment = self.segment.header.number;
                self.unread.push(Unread { segment, offset, bytes });
            }
        }
        self.unread_upto = offset + bytes;
    }
}

/// Whether a record at this offset, which is written to its end but not sound, lacks a whole sector of
/// its bytes. Then the power was cut before it was synced, and nobody was told that it is there: a
/// disk writes the sectors of a record in any order. Damage does not look like that, and where a disk
/// gives up a block that it had for good, what follows shows it: later batches, or the read fails.
///
/// The last batch of a segment is the only one in doubt. That it was synced could only be written behind it,
/// which would be the next batch.
fn lacks_sector(record: &[u8], offset: u64) -> bool {
    let into = usize::try_from(offset % SECTOR as u64).unwrap_or(0);
    let (first, rest) = record.split_at_checked(SECTOR - into).unwrap_or((record, &[]));
    let is_zero = |piece: &[u8]| piece.iter().all(|byte| *byte == 0);
    is_zero(first) || rest.chunks(SECTOR).any(is_zero)
}
