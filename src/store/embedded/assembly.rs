//! One write in the making: frames one behind the other, large bodies where they are.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use crate::store::embedded::disk::FileId;
use crate::store::embedded::disk::write_fully;
use crate::store::embedded::record::{Kind, VERSION};
use crate::store::embedded::segment::{FRAME_HEAD, NewFrame, Position, Seal, Segment};

// A body below this is copied beside its frame: cheaper than a slice of its own.
const COPIED_BODY_MAX: usize = 4096;
// What is kept for the next write.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) segment: Arc<Segment>,
    // Which file that is, asked once.
    pub(super) file: FileId,
    pub(super) offset: u64,
    pub(super) synced: u64,
    pub(super) batch: u32,
    pub(super) room: u64,
    // Made beyond the limit: for what frees room, not for webhooks.
    pub(super) is_reserve: bool,
}

/// One write in the making; used again for the next one, so that its memory is there already.
#[derive(Default)]
pub(super) struct Assembly {
    plain: Vec<u8>,
    // After so many bytes of `plain` comes this body.
    bodies: Vec<(usize, Bytes)>,
    positions: Vec<Position>,
    pub(super) bytes: u64,
}

impl Assembly {
    /// Begins anew, and says what was written where.
    pub(super) fn finish(&mut self) -> Vec<Position> {
        self.plain.clear();
        self.plain.shrink_to(KEPT_BYTES_MAX);
        self.bodies.clear();
        self.bytes = 0;
        std::mem::take(&mut self.positions)
    }

    pub(super) fn add(&mut self, writer: &Writer, kind: Kind, crc: u32, meta: &[u8], body: &Bytes) {
        let offset = writer.offset + self.bytes;
        let seal = Seal::new(writer.segment.header.salt, offset);
        let frame = NewFrame {
            kind: kind.code(),
            version: VERSION,
            batch: writer.batch,
            payload_bytes: meta.len() + body.len(),
            payload_crc: crc,
        };
        self.plain.extend_from_slice(frame.head(seal).as_flattened());
        self.plain.extend_from_slice(meta);
        if body.len() < COPIED_BODY_MAX {
            self.plain.extend_from_slice(body);
        } else {
            self.bodies.push((self.plain.len(), body.clone()));
        }
        frame.tail(seal, &mut self.plain);
        let length = frame.frame_bytes() as u64;
        debug_assert!(length > FRAME_HEAD as u64);
        self.positions.push(Position { segment: writer.segment.header.number, offset, length });
        self.bytes += length;
    }

    pub(super) fn write(&self, writer: &Writer) -> io::Result<()> {
        let mut slices = Vec::with_capacity(self.bodies.len() * 2 + 1);
        let mut rest = self.plain.as_slice();
        let mut done = 0;
        for (at, body) in &self.bodies {
            let (before, after) = rest.split_at_checked(at - done).unwrap_or((rest, &[]));
            slices.push(IoSlice::new(before));
            slices.push(IoSlice::new(body));
            rest = after;
            done = *at;
        }
        slices.push(IoSlice::new(rest));
        write_fully(&*writer.segment.file, &mut slices, writer.offset)
    }
}
