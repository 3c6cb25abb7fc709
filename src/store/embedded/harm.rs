//! Does to the files of a store that is not running what power cuts and bad disks do: for proofs.
//!
//! Each harm is one that can befall a real disk, no worse: what a proof finds lost after it was lost
//! by the store.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::domain::webhook::WebhookId;
use crate::store::embedded::disk::{Disk, RealDisk, read_fully, write_fully};
use crate::store::embedded::index::Index;
use crate::store::embedded::record::{Kind, peek_webhook};
use crate::store::embedded::scanner::Scanner;
use crate::store::embedded::segment::{
    FRAME_HEAD, Frame, HEADER_BYTES, Head, Header, Heading, LogPoint, Position, Seal, Segment,
};

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// A bit that is another now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flipped {
    /// In the record of which webhook, or of one of its settlements.
    pub webhook: WebhookId,
    /// Where the record is.
    pub at: Position,
}

/// What a power cut took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// How many sectors.
    pub sectors: usize,
    /// The webhooks that had a record in the batch that was cut.
    pub webhooks: Vec<WebhookId>,
}

/// Takes from the newest segment what a power cut may take: sectors that no sync had made durable.
///
/// All batches but the last one were synced before the last one was written. The last one was too if
/// somebody knows of a webhook in it: `is_known` tells which. Or if the index does: it is told of nothing
/// sooner. Then nothing is taken. Nor from a segment up to number `old`: those were there when the relay
/// started that was killed, which wrote none of them.
pub fn cut_power(
    data: &Path,
    old: u64,
    is_known: impl Fn(WebhookId) -> bool,
    mut random: impl FnMut() -> u64,
) -> io::Result<Cut> {
    let newest = segments(data)?.pop().filter(|segment| segment.header.number > old);
    let Some(segment) = newest else { return Ok(Cut::default()) };
    let mut scanner = Scanner::new(Arc::clone(&segment), 0, u64::MAX)?;
    let (mut batch, mut from, mut is_durable) = (None, HEADER_BYTES, true);
    let mut cut = Cut::default();
    while let Some(frame) = scanner.next_frame()? {
        let of = batch_of(&segment, &frame)?;
        if of != batch {
            (batch, from, is_durable) = (of, frame.position.offset, false);
            cut.webhooks.clear();
        }
        match Kind::from_code(frame.kind) {
            Some(Kind::Settlement) => {}
            Some(Kind::Webhook) => {
                let id = peek_webhook(&frame.payload);
                is_durable |= id.is_some_and(&is_known);
                cut.webhooks.extend(id);
            }
            // The store itself may have acted on it: a segment that is copied forward is removed.
            _ => is_durable = true,
        }
    }
    if is_durable || indexed(data) > (LogPoint { segment: segment.header.number, offset: from }) {
        return Ok(Cut::default());
    }
    let all = random().is_multiple_of(2);
    let mut at = from;
    while at < scanner.offset() {
        let upto = (at + 1).next_multiple_of(SECTOR).min(scanner.offset());
        if all || random().is_multiple_of(2) {
            let zeros = vec![0; usize::try_from(upto - at).unwrap_or_default()];
            write_fully(&*segment.file, &mut [io::IoSlice::new(&zeros)], at)?;
            cut.sectors += 1;
        }
        at = upto;
    }
    segment.file.sync_all()?;
    Ok(cut)
}

/// Up to where the log is in the index.
fn indexed(data: &Path) -> LogPoint {
    let path = data.join("index.sqlite");
    if !path.exists() {
        return LogPoint::default();
    }
    // What can't be opened knows nothing: a start makes it again.
    Index::open_file(&path).map(|index| index.applied()).unwrap_or_default()
}

/// The number of the newest segment; 0 if there is none.
pub fn newest_segment(data: &Path) -> io::Result<u64> {
    Ok(segments(data)?.pop().map_or(0, |segment| segment.header.number))
}

/// Flips one bit in one record of a webhook or a settlement, each record as likely as any other.
/// Answers which; none if there is no record.
pub fn flip_bit(data: &Path, mut random: impl FnMut() -> u64) -> io::Result<Option<Flipped>> {
    let mut seen = 0;
    let mut chosen = None;
    for segment in segments(data)? {
        let mut scanner = Scanner::new(Arc::clone(&segment), 0, u64::MAX)?;
        while let Some(frame) = scanner.next_frame()? {
            let kind = Kind::from_code(frame.kind);
            if !matches!(kind, Some(Kind::Webhook | Kind::Settlement)) {
                continue;
            }
            let Some(webhook) = peek_webhook(&frame.payload) else { continue };
            seen += 1;
            if random().is_multiple_of(seen) {
                chosen = Some((Arc::clone(&segment), Flipped { webhook, at: frame.position }));
            }
        }
    }
    let Some((segment, flipped)) = chosen else { return Ok(None) };
    let at = flipped.at.offset + random() % flipped.at.length;
    let mut byte = [0];
    read_fully(&*segment.file, &mut byte, at)?;
    let [value] = byte;
    let other = [value ^ (1 << (random() % 8))];
    write_fully(&*segment.file, &mut [io::IoSlice::new(&other)], at)?;
    segment.file.sync_all()?;
    Ok(Some(flipped))
}

/// The segments with a sound header, the oldest first.
fn segments(data: &Path) -> io::Result<Vec<Arc<Segment>>> {
    let disk = RealDisk;
    let dir = data.join("segments");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut names = disk.list(&dir)?;
    names.retain(|name| name.ends_with(".log"));
    names.sort();
    let mut segments = Vec::new();
    for name in names {
        let file = disk.open(&dir.join(name))?;
        let mut block = vec![0; usize::try_from(HEADER_BYTES).unwrap_or(4096)];
        read_fully(&*file, &mut block, 0)?;
        if let Heading::Valid(header) = Header::decode(&block) {
            segments.push(Arc::new(Segment::new(header, file, u64::MAX)));
        }
    }
    Ok(segments)
}

fn batch_of(segment: &Segment, frame: &Frame) -> io::Result<Option<u32>> {
    let mut head = [0; FRAME_HEAD];
    read_fully(&*segment.file, &mut head, frame.position.offset)?;
    let seal = Seal::new(segment.header.salt, frame.position.offset);
    Ok(Head::decode(&head, seal).map(|head| head.batch))
}
