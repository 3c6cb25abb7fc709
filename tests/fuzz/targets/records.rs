//! Whatever is in a segment, reading it ends, and yields no record whose checksums are wrong. What is
//! written is read again as it was; a bit that flips is noticed, and costs one record.
//!
//! The input: a byte that chooses what it is, then one of
//! - the payload of a record, its first byte the kind;
//! - a segment from its first byte, or from its first record;
//! - payloads of a length byte each, of which records are made: in one of them a bit flips.
#![no_main]

use std::io::{self, IoSlice};
use std::sync::Arc;

use aryeo_relay::domain::time::Timestamp;
use aryeo_relay::store::embedded::disk::{DiskFile, FileId};
use aryeo_relay::store::embedded::record::{self, Record, SettledPayloads, VERSION};
use aryeo_relay::store::embedded::scanner::Scanner;
use aryeo_relay::store::embedded::segment::{
    FRAME_HEAD, Frame, HEADER_BYTES, Header, Heading, NewFrame, Seal, Segment,
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

const HEADER: Header = Header {
    number: 7,
    salt: 0x0123_4567_89ab_cdef,
    created_at: Timestamp::from_millis(1_700_000_000_000),
    previous_end: None,
};

/// Of what was never synced a power cut loses whole sectors: a record that lacks one may be what that
/// leaves, and is no damage. So none here has as many zeros.
const ZEROS_MAX: usize = 500;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0, [kind, payload @ ..])) => decoded(*kind, payload),
        Some((1, segment)) => scanned(segment.to_vec(), None),
        Some((2, records)) => {
            scanned([&HEADER.encode(), records].concat(), Some(HEADER));
        }
        Some((3, rest)) => flipped(rest),
        _ => {}
    }
});

/// A payload that can be read is the same when it is written and read again.
fn decoded(kind: u8, payload: &[u8]) {
    let payload = Bytes::copy_from_slice(payload);
    let Ok(record) = record::decode(kind, VERSION, &payload) else { return };
    let again = match &record {
        Record::Webhook(webhook, standings) => {
            match (record::left_out(webhook, &payload), standings) {
                (Some(bytes), Some(standings)) => record::encode_bare(webhook, bytes, standings),
                // Only what was copied forward is written without its body.
                (Some(_), None) => return,
                (None, standings) => {
                    [&record::encode_webhook(webhook, standings.as_deref())[..], &webhook.body]
                        .concat()
                }
            }
        }
        Record::Settlement(settled) => {
            let payloads = SettledPayloads::of(std::slice::from_ref(settled));
            payloads.iter().flatten().copied().collect()
        }
        Record::Deliveries(id, deliveries) | Record::State(id, deliveries) => {
            record::encode_deliveries(*id, deliveries)
        }
        Record::Erase(id) => id.as_bytes().to_vec(),
        Record::Gone(keys) => record::encode_gone(keys),
        Record::Close => Vec::new(),
    };
    assert_eq!(record::decode(kind, VERSION, &Bytes::from(again)), Ok(record));
}

/// Nothing but records with the right checksums comes out of these bytes.
fn scanned(bytes: Vec<u8>, header: Option<Header>) {
    let file: Arc<dyn DiskFile> = Arc::new(Memory(bytes.clone()));
    let heading = Header::decode(bytes.get(..4096).unwrap_or(&bytes));
    let recovered = Header::recover(&*file, HEADER.number).unwrap();
    let header = header.or(match heading {
        Heading::Valid(header) => Some(header),
        _ => recovered,
    });
    let Some(header) = header else { return };
    let segment = Arc::new(Segment::new(header, file, u64::MAX));
    let mut at = HEADER_BYTES;
    for frame in frames(&segment).0 {
        assert!(frame.position.offset >= at, "it goes back");
        at = frame.position.offset + frame.position.length;
        assert!(at <= bytes.len() as u64, "it goes beyond the end");
        check(&frame, header, &bytes);
        let found = segment.read(frame.position).unwrap().expect("it was found there");
        assert_eq!(
            (found.kind, found.version, found.payload),
            (frame.kind, frame.version, frame.payload)
        );
    }
}

/// A frame is what would be written for it, at its place.
fn check(frame: &Frame, header: Header, bytes: &[u8]) {
    let at = usize::try_from(frame.position.offset).unwrap();
    let found = &bytes[at..at + FRAME_HEAD];
    let new = NewFrame {
        kind: frame.kind,
        version: frame.version,
        batch: word(found, 12),
        payload_bytes: frame.payload.len(),
        payload_crc: crc(&frame.payload),
    };
    let written = new.head(Seal::new(header.salt, frame.position.offset));
    let written = written.as_flattened();
    assert_eq!(frame.position.length, new.frame_bytes() as u64);
    assert_eq!((&found[..10], &found[12..20]), (&written[..10], &written[12..20]));
    // Two bytes of the head are nothing's yet: its checksum covers them, whatever they are.
    let seal = word(written, 20) ^ crc(&written[..20]);
    assert_eq!(word(found, 20), crc(&found[..20]) ^ seal, "the head's checksum is wrong");
    assert_eq!(frame.payload, bytes[at + FRAME_HEAD..at + FRAME_HEAD + frame.payload.len()]);
    // Whatever it says, reading it ends.
    let _record = record::decode(frame.kind, frame.version, &frame.payload);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Of records one after the other, one of which has a flipped bit, the others are found, and that it is
/// damaged is said.
fn flipped(input: &[u8]) {
    let [high, low, records @ ..] = input else { return };
    let place = usize::from(u16::from_be_bytes([*high, *low]));
    // Whoever knows the salt can make a payload with a record in it, and libFuzzer finds it out by what it
    // sees compared. Nobody knows it in real segments, and here it is others for other payloads.
    let digest = Sha256::digest(input);
    let salt = u64::from_le_bytes(digest[..8].try_into().unwrap());
    let header = Header { salt, ..HEADER };
    let mut rest = records;
    let mut bytes = header.encode();
    let mut written: Vec<(u64, u64, Vec<u8>)> = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let kind = 1 + length % 7;
        // Some words, or some sectors.
        let length = usize::from(length & 0x7f) << (if length & 0x80 == 0 { 0 } else { 4 });
        let (payload, after) = after.split_at_checked(length).unwrap_or((after, &[]));
        rest = after;
        if payload.windows(ZEROS_MAX).any(|zeros| zeros.iter().all(|byte| *byte == 0)) {
            return;
        }
        let frame = NewFrame {
            kind,
            version: VERSION,
            batch: u32::try_from(written.len() / 3).unwrap(),
            payload_bytes: payload.len(),
            payload_crc: crc(payload),
        };
        let at = bytes.len() as u64;
        let seal = Seal::new(salt, at);
        bytes.extend_from_slice(frame.head(seal).as_flattened());
        bytes.extend_from_slice(payload);
        frame.tail(seal, &mut bytes);
        written.push((at, frame.frame_bytes() as u64, payload.to_vec()));
    }
    let sound = frames(&segment(header, &bytes));
    assert_eq!(found(&sound.0), written, "what was written is not read");
    assert_eq!(sound.1, 0, "damage is seen where there is none");
    if written.is_empty() {
        return;
    }

    let first = usize::try_from(HEADER_BYTES).unwrap();
    let bit = place % ((bytes.len() - first) * 8);
    let at = first + bit / 8;
    bytes[at] ^= 1 << (bit % 8);
    let hit =
        |(from, length, _): &(u64, u64, Vec<u8>)| (*from..from + length).contains(&(at as u64));
    let (frames, damaged) = frames(&segment(header, &bytes));
    let found = found(&frames);
    let others: Vec<_> = written.iter().filter(|record| !hit(record)).cloned().collect();
    if found == written {
        // In what only fills up, or the last word, which says nothing that the rest does not.
        let (from, _, payload) = written.iter().find(|record| hit(record)).unwrap();
        let meant = usize::try_from(*from).unwrap() + FRAME_HEAD + payload.len();
        assert!(at >= meant, "a bit of what it says has flipped, and nobody noticed");
    } else {
        assert_eq!(found, others, "it costs others than the one");
        assert!(damaged > 0, "a record is gone, and nobody says so");
    }
}

fn segment(header: Header, bytes: &[u8]) -> Arc<Segment> {
    Arc::new(Segment::new(header, Arc::new(Memory(bytes.to_vec())), u64::MAX))
}

/// All records, and how many places are said to be damaged, or torn.
fn frames(segment: &Arc<Segment>) -> (Vec<Frame>, usize) {
    let mut scanner = Scanner::new(Arc::clone(segment), 0, u64::MAX).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = scanner.next_frame().unwrap() {
        frames.push(frame);
    }
    let torn = usize::from(scanner.take_torn().is_some());
    (frames, scanner.take_flaws().len() + torn)
}

fn found(frames: &[Frame]) -> Vec<(u64, u64, Vec<u8>)> {
    let each = frames
        .iter()
        .map(|frame| (frame.position.offset, frame.position.length, frame.payload.to_vec()));
    each.collect()
}

/// CRC-32 as it is defined, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// A file in memory.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl DiskFile for Memory {
    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = buffer.len().min(self.0.len() - from);
        buffer[..count].copy_from_slice(&self.0[from..from + count]);
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(FileId(0, 0))
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn next_written(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}
