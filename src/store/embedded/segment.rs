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
// Since 2 a record of a webhook may lack its body: who does not know that takes it for damage.
const FORMAT: u32 = 2;
const FORMAT_MIN: u32 = 1;
const MAGIC: &[u8; 8] = b"ARYEOLOG";
pub(super) const FRAME_MAGIC: u32 = 0x5752_6c79;
// A longer payload is not believed: it could only come from damage.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

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

    /// The header of a segment whose first block is damaged or can't be read, made from its first
    /// record. What is not known from there is left out: when it was made, and where the one before
    /// it ends.
    pub fn recover(file: &dyn DiskFile, number: u64) -> io::Result<Option<Self>> {
        let mut head = [0; FRAME_HEAD];
        if read_fully(file, &mut head, HEADER_BYTES)? < FRAME_HEAD
            || u32_at(&head, 0) != Some(FRAME_MAGIC)
        {
            return Ok(None);
        }
        let Some(length) = u32_at(&head, 4).and_then(|n| usize::try_from(n).ok()) else {
            return Ok(None);
        };
        if length > PAYLOAD_BYTES_MAX {
            return Ok(None);
        }
        let end = HEADER_BYTES + frame_bytes(length) as u64;
        let mut trailer = [0; FRAME_TAIL];
        read_fully(file, &mut trailer, end - FRAME_TAIL as u64)?;
        let salts = Seal::salts_of(u64::from_le_bytes(trailer), HEADER_BYTES);
        let sound = |salt: &u64| Head::decode(&head, Seal::new(*salt, HEADER_BYTES)).is_some();
        Ok(salts.into_iter().find(sound).map(|salt| Self {
            number,
            salt,
            created_at: Timestamp::from_millis(0),
            previous_end: None,
        }))
    }

    fn decode_copy(copy: &[u8]) -> Option<Heading> {
        let (body, crc) = copy.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) || !body.starts_with(MAGIC) {
            return None;
        }
        let format = u32_at(body, 8)?;
        if !(FORMAT_MIN..=FORMAT).contains(&format) {
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

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
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

    /// The salt of the segment that has a frame with this trailer at `offset`: one of these.
    fn salts_of(trailer: u64, offset: u64) -> [u64; 2] {
        [trailer, trailer & !1].map(|word| {
            let mut mixed = word.rotate_right(17);
            mixed = mixed ^ (mixed >> 31) ^ (mixed >> 62);
            mixed = mixed.wrapping_mul(0x3196_42b2_d24d_8ec3);
            mixed = mixed ^ (mixed >> 27) ^ (mixed >> 54);
            mixed = mixed.wrapping_mul(0x96de_1b17_3f11_9089);
            mixed = mixed ^ (mixed >> 30) ^ (mixed >> 60);
            mixed ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }

    fn halves(self) -> (u32, u32) {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    pub(super) fn payload_crc(self, crc: u32) -> u32 {
        crc ^ self.halves().0
    }

    fn header_crc(self, crc: u32) -> u32 {
        crc ^ self.halves().1
    }

    // Never zero: an unwritten one is.
    pub(super) fn trailer(self) -> [u8; FRAME_TAIL] {
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
    /// What goes before the payload, in words.
    pub fn head(&self, seal: Seal) -> [[u8; 4]; FRAME_HEAD / 4] {
        let length = u32::try_from(self.payload_bytes).unwrap_or(u32::MAX);
        let covered = [
            FRAME_MAGIC.to_le_bytes(),
            length.to_le_bytes(),
            [self.kind, self.version, 0, 0],
            self.batch.to_le_bytes(),
            seal.payload_crc(self.payload_crc).to_le_bytes(),
        ];
        let crc = seal.header_crc(crc32fast::hash(covered.as_flattened())).to_le_bytes();
        let [magic, length, kind, batch, payload] = covered;
        [magic, length, kind, batch, payload, crc]
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

/// What goes before a payload, as found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) version: u8,
    pub(super) batch: u32,
    pub(super) payload_bytes: usize,
    pub(super) payload_crc: u32,
}

impl Head {
    pub(super) fn decode(bytes: &[u8], seal: Seal) -> Option<Self> {
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

    pub(super) fn frame_bytes(&self) -> usize {
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
