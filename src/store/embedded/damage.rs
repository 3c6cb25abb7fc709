//! What was found damaged: each place is counted once and named once, to whoever has to act.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{Webhook, WebhookId};
use crate::store::embedded::record::{Kind, VERSION, glimpse_webhook, peek_webhook};
use crate::store::embedded::scanner::Unread;

// As many places are remembered: one that is found beyond may be counted more than once.
const PLACES_MAX: usize = 65_536;
/// As many are named in the log of one run: a rotten disk must not fill another one.
pub const NAMED_MAX: u32 = 100;

/// A place where a record was and is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The number of the segment.
    pub segment: u64,
    /// The first byte.
    pub offset: u64,
    /// How many up to the next record.
    pub bytes: u64,
    /// What it was, if that can still be read.
    pub trace: Option<Trace>,
}

/// What a damaged record still says of itself; this too may be damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What kind of record it was.
    pub kind: Kind,
    /// The webhook that it told of.
    pub webhook: WebhookId,
    /// That webhook's activity.
    pub activity: Option<Box<str>>,
    /// When that was received.
    pub received_at: Timestamp,
}

impl Trace {
    /// What a payload says whose checksum is wrong.
    pub fn of(kind: u8, version: u8, payload: &Bytes) -> Option<Self> {
        let kind = Kind::from_code(kind)?;
        let webhook = match kind {
            Kind::Webhook => match glimpse_webhook(payload) {
                Some(webhook) => return Self::of_webhook(&webhook),
                None => peek_webhook(payload)?,
            },
            Kind::Settlement | Kind::Deliveries | Kind::State | Kind::Erase => {
                peek_webhook(payload)?
            }
            Kind::Gone | Kind::Close => return None,
        };
        let known = version == VERSION && is_id(webhook);
        known.then(|| Self { kind, webhook, activity: None, received_at: webhook.timestamp() })
    }

    /// What is found where even the head of a record is damaged: most often it was a webhook's.
    pub fn of_headless(payload: &Bytes) -> Option<Self> {
        glimpse_webhook(payload).and_then(|webhook| Self::of_webhook(&webhook))
    }

    fn of_webhook(webhook: &Webhook) -> Option<Self> {
        is_id(webhook.id).then(|| Self {
            kind: Kind::Webhook,
            webhook: webhook.id,
            activity: webhook.activity.clone(),
            received_at: webhook.received_at,
        })
    }
}

/// Zeros can be read as a record, and are what a disk has lost.
fn is_id(id: WebhookId) -> bool {
    *id.as_bytes() != [0; 16]
}

/// All that was found since the start.
#[derive(Debug, Default)]
pub struct Damage(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    places: BTreeSet<(u64, u64)>,
    count: u64,
    named: u32,
}

impl Damage {
    /// How many places.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Counts a place; answers whether it is news.
    pub fn add(&self, segment: u64, offset: u64) -> bool {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = if found.places.len() < PLACES_MAX {
            found.places.insert((segment, offset))
        } else {
            !found.places.contains(&(segment, offset))
        };
        found.count += u64::from(is_news);
        is_news
    }

    /// Whether one more may be named in the log.
    pub fn may_name(&self) -> bool {
        let named = {
            let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            found.named = found.named.saturating_add(1);
            found.named
        };
        if named == NAMED_MAX + 1 {
            tracing::error!(
                named = NAMED_MAX,
                "more is damaged than is named here: it is only counted until the next start"
            );
        }
        named <= NAMED_MAX
    }

    /// Counts what was found in a segment and names it.
    pub fn note(&self, flaws: &[Flaw], unread: &[Unread]) {
        self.note_kept(flaws, unread, |_| None);
    }

    /// The same where the bytes of a record are kept in a file, which is named too.
    pub fn note_kept(
        &self,
        flaws: &[Flaw],
        unread: &[Unread],
        keep: impl Fn(&Flaw) -> Option<PathBuf>,
    ) {
        let mut news = Vec::with_capacity(flaws.len());
        for flaw in flaws {
            let is_news = self.add(flaw.segment, flaw.offset);
            news.push(is_news);
            if !is_news {
                continue;
            }
            let kept = keep(flaw);
            if self.may_name() {
                flaw.tell(kept.as_deref());
            }
        }
        for part in unread {
            // The records in it are flaws already, if any were.
            let meets = |flaw: &Flaw| {
                flaw.offset < part.offset.saturating_add(part.bytes)
                    && part.offset < flaw.offset + flaw.bytes
            };
            let is_news = match flaws.iter().zip(&news).find(|(flaw, _)| meets(flaw)) {
                Some((_, is_news)) => *is_news,
                None => self.add(part.segment, part.offset),
            };
            if is_news && self.may_name() {
                let Unread { segment, offset, bytes } = *part;
                tracing::error!(segment, offset, bytes, "a part of a segment can't be read");
            }
        }
    }
}

impl Flaw {
    /// Names what lies torn at the end of a segment. That is what a crash leaves of a write whose sync
    /// had not come, and no loss; but a disk that says it synced and did not leaves the same.
    pub fn tell_torn(&self) {
        let Self { segment, offset, bytes, trace } = self;
        let webhook_id = trace.as_ref().map(|trace| trace.webhook.to_string());
        tracing::warn!(
            webhook_id,
            segment,
            offset,
            bytes,
            "the end of a segment is torn: nobody was told that this was stored, if the disk keeps \
             what it has synced"
        );
    }

    fn tell(&self, kept: Option<&Path>) {
        let file = kept.map(|kept| kept.display().to_string());
        let Self { segment, offset, bytes, trace } = self;
        let Some(trace) = trace else {
            tracing::error!(
                segment,
                offset,
                bytes,
                file,
                "a record is damaged: what it was is not known"
            );
            return;
        };
        let record = trace.kind.name();
        let message = match trace.kind {
            Kind::Webhook => "a record is damaged: its webhook can't be delivered any more",
            _ => "a record is damaged: what became of its webhook's deliveries may be repeated",
        };
        tracing::error!(
            webhook_id = %trace.webhook,
            activity = trace.activity.as_deref(),
            received_at = %trace.received_at,
            record,
            segment,
            offset,
            bytes,
            file,
            "{message}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_once_however_often_it_is_met() {
        let damage = Damage::default();
        assert!(damage.add(1, 4096));
        assert!(!damage.add(1, 4096));
        assert!(damage.add(1, 8192) && damage.add(2, 4096));
        assert_eq!(damage.count(), 3);
    }

    #[test]
    fn no_more_are_remembered_than_the_bound_but_all_are_counted() {
        let damage = Damage::default();
        let all = PLACES_MAX as u64 + 10;
        (0..all).for_each(|offset| assert!(damage.add(1, offset)));
        assert!(!damage.add(1, 0));
        assert_eq!(damage.count(), all);
    }

    #[test]
    fn so_many_are_named_and_the_rest_is_not() {
        let damage = Damage::default();
        let named = (0..NAMED_MAX * 2).filter(|_| damage.may_name()).count();
        assert_eq!(named, NAMED_MAX as usize);
    }

    #[test]
    fn what_can_not_be_read_counts_once_where_it_hides_records_too() {
        let damage = Damage::default();
        let flaw = Flaw { segment: 1, offset: 5000, bytes: 100, trace: None };
        let part = |offset| Unread { segment: 1, offset, bytes: 4096 };
        damage.note(&[flaw], &[part(4096), part(65_536)]);
        assert_eq!(damage.count(), 2);
    }
}
