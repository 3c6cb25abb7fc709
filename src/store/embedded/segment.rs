//! A segment: its header, the frames of its records, and how they are found again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::domain::time::Timestamp;
use crate::store::embedded::disk::{DiskFile, read_fully};

/// Where the records begin.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes before a payload.
pub const FRAME_HEAD: usize = 24;
const FRAME_TAIL: usize = 8;
/// What a frame takes besides its payload, at most.
pub const FRAME_BYTES_MAX: usize = FRAME_HEAD + 7 + FRAME_TAIL;
const SECOND_COPY: usize = 2048;
const COPY_BYTES: usize = 64;
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"ARYEOLOG";
const FRAME_MAGIC: u32 = 0x5752_6c79;
// A longer payload is not believed: it could only come from damage.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;
const CHUNK: usize = 1 << 20;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The number of the segment.
    pub segment: u64,
    /// The first byte of the frame.
    pub offset: u64,
    /// The bytes of the frame.
    pub length: u64,
}

/// A point in the log: everything before it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPoint {
    /// The number of the segment.
    pub segment: u64,
    /// Bytes into it.
    pub offset: u64,
}

impl Position {
    /// The point where it begins.
    pub fn start(&self) -> LogPoint {
        LogPoint { segment: self.segment, offset: self.offset }
    }

    /// The point behind it.
    pub fn end(&self) -> LogPoint {
        LogPoint { segment: self.segment, offset: self.offset + self.length }
    }
}

/// What a segment's first block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its number.
    pub number: u64,
    /// By chance, so that no foreign or stale bytes pass for one of its records.
    pub salt: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// The records of another segment at or beyond this point are void.
    pub previous_end: Option<LogPoint>,
}

/// What the first block of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    /// A header.
    Valid(Header),
    /// Zeros, or too short: the file was being made.
    Absent,
    /// Written by a newer version.
    Newer(u32),
    /// Something else.
    Damaged,
}

impl Header {
    /// The first block.
    pub fn encode(&self) -> Vec<u8> {
        let previous = self.previous_end.unwrap_or_default();
        let mut copy = Vec::with_capacity(COPY_BYTES);
        copy.extend_from_slice(MAGIC);
        copy.extend_from_slice(&FORMAT.to_le_bytes());
        copy.extend_from_slice(&[0; 4]);
        for value in
            [self.number, self.salt, self.created_at.as_millis(), previous.segment, previous.offset]
        {
            copy.extend_from_slice(&value.to_le_bytes());
        }
        copy.resize(COPY_BYTES - 4, 0);
        copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
        let mut block = copy.clone();
        block.resize(SECOND_COPY, 0);
        block.extend_from_slice(&copy);
        block.resize(4096, 0);
        block
    }

    /// Reads the first block; either copy is enough.
    pub fn decode(block: &[u8]) -> Heading {
        let copies = [block.get(..COPY_BYTES), block.get(SECOND_COPY..SECOND_COPY + COPY_BYTES)];
        for copy in copies.into_iter().flatten() {
            if let Some(heading) = Self::decode_copy(copy) {
                return heading;
            }
        }
        if block.len() < 4096 || block.iter().all(|byte| *byte == 0) {
            Heading::Absent
        } else {
            Heading::Damaged
        }
    }

    fn decode_copy(copy: &[u8]) -> Option<Heading> {
        let (body, crc) = copy.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) || !body.starts_with(MAGIC) {
            return None;
        }
        let format = u32_at(body, 8)?;
        if format != FORMAT {
            return Some(Heading::Newer(format));
        }
        let previous = LogPoint { segment: u64_at(body, 40)?, offset: u64_at(body, 48)? };
        Some(Heading::Valid(Self {
            number: u64_at(body, 16)?,
            salt: u64_at(body, 24)?,
            created_at: Timestamp::from_millis(u64_at(body, 32)?),
            previous_end: Some(previous).filter(|point| point.segment != 0),
        }))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// A segment that exists.
#[derive(Debug)]
pub struct Segment {
    /// Its first block.
    pub header: Header,
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    // Records at or beyond are void, or not yet readable.
    limit: AtomicU64,
}

impl Segment {
    /// A segment whose records end at `limit` at the latest.
    pub fn new(header: Header, file: Arc<dyn DiskFile>, limit: u64) -> Self {
        Self { header, file, limit: AtomicU64::new(limit) }
    }

    /// Where its records end at the latest.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// Says where its records end.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Release);
    }

    /// Reads one record, if it is whole.
    pub fn read(&self, position: Position) -> io::Result<Option<Frame>> {
        let Ok(length) = usize::try_from(position.length) else { return Ok(None) };
        if length > PAYLOAD_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        let read = read_fully(&*self.file, &mut bytes, position.offset)?;
        if read < length {
            return Ok(None);
        }
        let bytes = Bytes::from(bytes);
        let seal = Seal::new(self.header.salt, position.offset);
        let Some(head) = Head::decode(&bytes, seal) else { return Ok(None) };
        if head.frame_bytes() != length {
            return Ok(None);
        }
        let payload = bytes.slice(FRAME_HEAD..FRAME_HEAD + head.payload_bytes);
        Ok((seal.payload_crc(crc32fast::hash(&payload)) == head.payload_crc).then_some(Frame {
            position,
            kind: head.kind,
            version: head.version,
            payload,
        }))
    }
}

/// What binds a frame to its place: the same bytes elsewhere are not a record.
#[derive(Debug, Clone, Copy)]
pub struct Seal(u64);

impl Seal {
    /// The seal of the frame at `offset` of the segment with this salt.
    pub fn new(salt: u64, offset: u64) -> Self {
        let mut mixed = salt ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(mixed ^ (mixed >> 31))
    }

    fn halves(self) -> (u32, u32) {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    fn payload_crc(self, crc: u32) -> u32 {
        crc ^ self.halves().0
    }

    fn header_crc(self, crc: u32) -> u32 {
        crc ^ self.halves().1
    }

    // Never zero: an unwritten one is.
    fn trailer(self) -> [u8; FRAME_TAIL] {
        (self.0.rotate_left(17) | 1).to_le_bytes()
    }
}

/// The frame of a payload in the making.
#[derive(Debug, Clone, Copy)]
pub struct NewFrame {
    /// What it holds.
    pub kind: u8,
    /// Its version.
    pub version: u8,
    /// Which of the segment's syncs makes it durable.
    pub batch: u32,
    /// The payload's length.
    pub payload_bytes: usize,
    /// The payload's CRC-32.
    pub payload_crc: u32,
}

impl NewFrame {
    /// What goes before the payload.
    pub fn head(&self, seal: Seal) -> [u8; FRAME_HEAD] {
        let mut head = [0; FRAME_HEAD];
        let length = u32::try_from(self.payload_bytes).unwrap_or(u32::MAX);
        let fields = FRAME_MAGIC
            .to_le_bytes()
            .into_iter()
            .chain(length.to_le_bytes())
            .chain([self.kind, self.version, 0, 0])
            .chain(self.batch.to_le_bytes())
            .chain(seal.payload_crc(self.payload_crc).to_le_bytes());
        for (to, from) in head.iter_mut().zip(fields) {
            *to = from;
        }
        let (covered, _) = head.split_at(FRAME_HEAD - 4);
        let crc = seal.header_crc(crc32fast::hash(covered)).to_le_bytes();
        for (to, from) in head.iter_mut().skip(FRAME_HEAD - 4).zip(crc) {
            *to = from;
        }
        head
    }

    /// What goes behind the payload: filling, then the mark that it was written to the end.
    pub fn tail(&self, seal: Seal, out: &mut Vec<u8>) {
        let filled = self.payload_bytes.next_multiple_of(8);
        out.resize(out.len() + filled - self.payload_bytes, 0);
        out.extend_from_slice(&seal.trailer());
    }

    /// The bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(self.payload_bytes)
    }
}

fn frame_bytes(payload: usize) -> usize {
    FRAME_HEAD + payload.next_multiple_of(8) + FRAME_TAIL
}

#[derive(Debug, Clone, Copy)]
struct Head {
    kind: u8,
    version: u8,
    batch: u32,
    payload_bytes: usize,
    payload_crc: u32,
}

impl Head {
    fn decode(bytes: &[u8], seal: Seal) -> Option<Self> {
        let head = bytes.get(..FRAME_HEAD)?;
        let (covered, crc) = head.split_last_chunk::<4>()?;
        // First the cheap question: most places are not a frame.
        if u32_at(covered, 0)? != FRAME_MAGIC
            || seal.header_crc(crc32fast::hash(covered)) != u32::from_le_bytes(*crc)
        {
            return None;
        }
        let payload_bytes = usize::try_from(u32_at(covered, 4)?).ok()?;
        (payload_bytes <= PAYLOAD_BYTES_MAX).then_some(Self {
            kind: *covered.get(8)?,
            version: *covered.get(9)?,
            batch: u32_at(covered, 12)?,
            payload_bytes,
            payload_crc: u32_at(covered, 16)?,
        })
    }

    fn frame_bytes(&self) -> usize {
        frame_bytes(self.payload_bytes)
    }
}

/// A whole record as found.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Where.
    pub position: Position,
    /// What it holds.
    pub kind: u8,
    /// Its version.
    pub version: u8,
    /// Its payload.
    pub payload: Bytes,
}

const ZEROS: [u8; 4096] = [0; 4096];

/// Reads a segment's records one after the other and steps over damage.
#[derive(Debug)]
pub struct Scanner {
    segment: Arc<Segment>,
    offset: u64,
    end: u64,
    chunk: Bytes,
    chunk_at: u64,
    batch: u32,
    // A gap that counts as damage only if what follows shows that it had been made durable.
    doubtful: Option<u32>,
    damaged: u64,
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
            damaged: 0,
        })
    }

    /// Where it is: behind the last record that was found.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Records found damaged so far.
    pub fn damaged(&self) -> u64 {
        self.damaged
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
            self.follow(head.batch);
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
            if frame.ends_with(&seal.trailer()) {
                self.damaged += 1;
                self.offset = at + length;
            } else if self.doubtful.is_none() {
                self.doubtful = Some(head.batch);
            }
            at += length;
        }
    }

    /// Takes note of a frame's batch: a gap before an earlier one's sync was damage.
    fn follow(&mut self, batch: u32) {
        if self.doubtful.is_some_and(|doubtful| batch > doubtful) {
            self.damaged += 1;
            self.doubtful = None;
        }
        self.batch = batch;
    }

    /// Looks for the next frame behind a place that is none.
    fn gap(&mut self, from: u64) -> io::Result<Option<u64>> {
        let trailer = Seal::new(self.segment.header.salt, from).trailer();
        let mut complete = false;
        let mut at = from;
        while at + 8 <= self.end {
            // Behind the last record lie megabytes of zeros: reserved, never written.
            if at.is_multiple_of(ZEROS.len() as u64)
                && self.bytes(at, ZEROS.len())?.is_some_and(|block| *block == ZEROS)
            {
                at += ZEROS.len() as u64;
                continue;
            }
            let Some(word) = self.bytes(at, 8)? else { break };
            if *word == trailer {
                complete = true;
            } else if u32_at(&word, 0) == Some(FRAME_MAGIC)
                && at != from
                && let Some(head) = self.head_at(at)?
            {
                if complete || head.batch > self.batch.saturating_add(1) {
                    self.damaged += 1;
                } else if self.doubtful.is_none() {
                    self.doubtful = Some(head.batch);
                }
                return Ok(Some(at));
            }
            at += 8;
        }
        if complete {
            self.damaged += 1;
        }
        Ok(None)
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
            let read = read_fully(&*self.segment.file, &mut chunk, at)?;
            chunk.truncate(read);
            self.chunk = Bytes::from(chunk);
            self.chunk_at = at;
        }
        let from = usize::try_from(at - self.chunk_at).unwrap_or(usize::MAX);
        let to = from.saturating_add(count);
        Ok((to <= self.chunk.len()).then(|| self.chunk.slice(from..to)))
    }
}
