//! Every record, the index against the log, and what lies there besides; what a start would do.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::domain::delivery::State;
use crate::domain::webhook::WebhookId;
use crate::store::embedded::damage::Flaw;
use crate::store::embedded::directory;
use crate::store::embedded::disk::{Disk, RealDisk};
use crate::store::embedded::index::compare::Difference;
use crate::store::embedded::marks;
use crate::store::embedded::offline::{
    Found, IndexState, NAMED_MAX, Offline, Refused, Scratch, weigh,
};
use crate::store::embedded::record::Kind;
use crate::store::embedded::segment::LogPoint;

// A webhook is looked for in all of the index where its record does not say which it was.
const LOOKED_UP_MAX: usize = 100;

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// All of it, as programs read it.
    pub json: Value,
    /// Whether nothing that was acknowledged is damaged.
    pub is_good: bool,
}

/// Checks a directory on the machine's disk.
pub fn check(dir: &Path) -> Result<Report, Refused> {
    check_on(dir, Arc::new(RealDisk))
}

/// The same on another disk.
pub fn check_on(dir: &Path, disk: Arc<dyn Disk>) -> Result<Report, Refused> {
    let offline = Offline::open_on(dir, disk)?;
    let mut scratch = offline.scratch(true)?;
    let found = offline.scan(&mut scratch)?;
    Ok(Checked::new(&offline, scratch, found).report())
}

/// What is needed to tell of it.
struct Checked<'a> {
    offline: &'a Offline,
    found: Found,
    scratch: Scratch,
    difference: Difference,
    notes: Vec<String>,
    start: Vec<String>,
}

impl<'a> Checked<'a> {
    fn new(offline: &'a Offline, mut scratch: Scratch, found: Found) -> Self {
        let made = scratch.folder.path().join("made.sqlite");
        let compared = scratch.lying.as_ref().map(|lying| lying.compare(&made, NAMED_MAX));
        let difference = match compared {
            None => Difference::default(),
            Some(Ok(difference)) => difference,
            Some(Err(_)) => {
                scratch.lying = None;
                scratch.state = IndexState::Unsound;
                Difference::default()
            }
        };
        if difference.elsewhere > 0 {
            scratch.state = scratch.state.wrong();
        }
        let (notes, start) = (Vec::new(), offline.disk.steps());
        Self { offline, found, scratch, difference, notes, start }
    }

    fn report(mut self) -> Report {
        let damaged: Vec<Value> = self.found.flaws.iter().map(|flaw| self.flaw(flaw)).collect();
        let missing = self.missing();
        let unopened = self.unopened();
        let acknowledged = damaged
            .iter()
            .filter(|flaw| flaw.get("acknowledged") == Some(&Value::Bool(true)))
            .count() as u64
            + self.found.flaws_count.saturating_sub(damaged.len() as u64);
        let without_record = self.without_record();
        let set_aside = self.start.iter().filter(|step| step.starts_with("puts ")).count();
        let is_good = acknowledged == 0
            && without_record == 0
            && unopened.is_empty()
            && self.found.unread_bytes == 0
            && self.found.unknown_count == 0
            && set_aside == 0;
        self.look_around();
        self.tell_start();
        let torn: Vec<Value> = self.found.torn.iter().map(|flaw| self.flaw(flaw)).collect();
        let segments = self.offline.log.all();
        let json = json!({
            "data": self.offline.dir.display().to_string(),
            "good": is_good,
            "segments": segments.len(),
            "bytes": self.offline.log.bytes(),
            "records": self.found.kinds.values().map(|tally| tally.records).sum::<u64>(),
            "webhooks": self.scratch.made.as_ref().and_then(|made| made.extent().ok())
                .map(|extent| extent.webhooks),
            "damaged": damaged,
            "damaged_unnamed": self.found.flaws_count.saturating_sub(damaged.len() as u64),
            "missing": missing,
            "missing_unnamed": without_record.saturating_sub(missing.len() as u64),
            "unreadable": self.unreadable(&unopened),
            "not_understood": self.found.unknown.iter().map(place).collect::<Vec<_>>(),
            "torn": torn,
            "torn_unnamed": self.found.torn_count.saturating_sub(torn.len() as u64),
            "index": self.index(),
            "quarantine": {
                "files": weigh(&self.offline.dir.join("quarantine")).records,
                "bytes": weigh(&self.offline.dir.join("quarantine")).bytes,
            },
            "notes": self.notes,
            "start": self.start,
        });
        Report { json, is_good }
    }

    /// What is known of a damaged or torn place.
    fn flaw(&self, flaw: &Flaw) -> Value {
        let at = LogPoint { segment: flaw.segment, offset: flaw.offset };
        let trace = flaw.trace.as_ref();
        let id = trace.map(|trace| trace.webhook).or_else(|| self.webhook_at(at));
        let made = self.scratch.made.as_ref();
        let other = id.and_then(|id| made?.identity(id.key()).ok().flatten()).is_some();
        let kind = trace.map(|trace| trace.kind);
        let pending = id.and_then(|id| self.pending(id));
        // Of a settlement nobody outside was told; what is lost with it is only done once more.
        let is_of_ours = matches!(kind, Some(Kind::Settlement | Kind::Erase));
        let is_copied = kind == Some(Kind::Webhook) && other;
        let means = match kind {
            _ if is_copied => "another record of this webhook is sound: nothing is lost",
            Some(Kind::Webhook) if pending == Some(0) => {
                "this webhook can't be read any more; none of its deliveries was pending"
            }
            Some(Kind::Webhook) => "this webhook can't be delivered any more",
            Some(Kind::Deliveries | Kind::State) => {
                "deliveries that were added to this webhook may be lost, others repeated"
            }
            Some(_) => "what became of this webhook's deliveries may be repeated",
            None if id.is_some() => "this webhook can't be delivered any more",
            None => "what it was is not known",
        };
        let received_at = trace.map(|t| t.received_at).or(id.map(|id| id.timestamp()));
        json!({
            "segment": flaw.segment,
            "file": file_of(flaw),
            "offset": flaw.offset,
            "bytes": flaw.bytes,
            "record": kind.map(Kind::name),
            "webhook_id": id.map(|id| id.to_string()),
            "activity": trace.and_then(|trace| trace.activity.clone()),
            "received_at": received_at.map(|at| at.to_string()),
            "pending": pending,
            "acknowledged": !is_of_ours && !is_copied,
            "means": means,
        })
    }

    /// How many deliveries of a webhook the index has pending, if it knows the webhook.
    fn pending(&self, id: WebhookId) -> Option<usize> {
        let lying = self.scratch.lying.as_ref()?;
        lying.identity(id.key()).ok().flatten()?;
        let standings = lying.standings(id.key()).ok()?;
        Some(standings.iter().filter(|(_, standing, _)| standing.state == State::Pending).count())
    }

    fn webhook_at(&self, at: LogPoint) -> Option<WebhookId> {
        let few = self.found.flaws.len() <= LOOKED_UP_MAX;
        few.then(|| self.scratch.lying.as_ref()?.webhook_at(at).ok().flatten()).flatten()
    }

    /// Webhooks that the index knows and whose record is neither there nor named as damaged.
    fn missing(&self) -> Vec<Value> {
        let is_named = |at: &LogPoint| {
            let same = |flaw: &&Flaw| (flaw.segment, flaw.offset) == (at.segment, at.offset);
            self.found.flaws.iter().any(|flaw| same(&flaw))
                || self.offline.log.is_unread(at.segment)
        };
        let only_here = self.difference.only_here.iter().filter(|(_, at)| !is_named(at));
        only_here
            .map(|(id, at)| {
                json!({
                    "webhook_id": id.to_string(), "received_at": id.timestamp().to_string(),
                    "segment": at.segment, "offset": at.offset,
                    "segment_exists": self.offline.log.exists(at.segment),
                })
            })
            .collect()
    }

    fn without_record(&self) -> u64 {
        let named = self.difference.only_here.len() as u64;
        self.missing().len() as u64 + self.difference.only_here_count.saturating_sub(named)
    }

    /// Segments that can't be opened.
    fn unopened(&self) -> Vec<u64> {
        self.offline.log.unread_segments().collect()
    }

    fn unreadable(&self, unopened: &[u64]) -> Vec<Value> {
        let whole = unopened.iter().map(|number| json!({ "segment": number }));
        let parts = self.found.unread.iter().map(
            |part| json!({ "segment": part.segment, "offset": part.offset, "bytes": part.bytes }),
        );
        whole.chain(parts).collect()
    }

    fn index(&self) -> Value {
        let (state, means) = match self.scratch.state {
            IndexState::Absent => ("absent", "a start makes it from the log"),
            IndexState::Unsound => ("unsound", "a start makes it again from the log"),
            IndexState::KnowsGoneSegment => {
                ("foreign", "it knows a segment that is gone: a start makes it again from the log")
            }
            IndexState::Wrong => (
                "wrong",
                "it says of records where they are not: a start makes it again from the log when it \
                 comes across one",
            ),
            IndexState::Behind => ("behind", "a start reads the rest of the log into it"),
            IndexState::Current => ("current", "a start uses it"),
        };
        let Difference {
            only_here_count, pending_only_there, otherwise_pending, elsewhere, ..
        } = &self.difference;
        json!({
            "state": state,
            "means": means,
            "webhooks_only_in_index": only_here_count,
            "pending_only_in_log": pending_only_there,
            "otherwise_pending": otherwise_pending,
            "records_elsewhere": elsewhere,
        })
    }

    /// What lies in the directory besides.
    fn look_around(&mut self) {
        for entry in std::fs::read_dir(&self.offline.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !directory::is_known(&name) {
                self.notes.push(format!("{name} is none of the relay's files"));
            } else if name.ends_with(".unreadable") {
                self.notes.push(format!("{name} was put aside by an earlier start"));
            } else if name.ends_with(".new") {
                self.notes.push(format!("{name} is half written; the file before it counts"));
            }
        }
        let kept = weigh(&self.offline.dir.join("quarantine"));
        if kept.records > 0 {
            self.notes.push(format!(
                "quarantine has the bytes of records that were found damaged before: {} in {} files",
                kept.bytes, kept.records
            ));
        }
        if !marks::is_sound(&self.offline.dir) {
            self.notes
                .push("lanes.json can't be read: which targets are paused is lost".to_owned());
            self.start.push("puts lanes.json aside as lanes.json.unreadable".to_owned());
        }
        let listed = self.offline.disk.list(&self.offline.dir.join("segments"));
        let mut names = listed.unwrap_or_default();
        names.sort();
        for name in names {
            let (stem, kind) = name.split_once('.').unwrap_or((&name, ""));
            let number = stem.parse().ok();
            let exists = number.is_some_and(|number| self.offline.log.exists(number));
            let note = match kind {
                "log" if number.is_some() => continue,
                "doubtful" if exists => {
                    "says that its segment is not durable: it is delivered, but \
                                         a copy of what is in it is no duplicate"
                }
                "doubtful" => "is a mark of a segment that is gone",
                "log.unreadable" => {
                    "was put aside by an earlier start: its webhooks are not delivered"
                }
                _ => "is none of the relay's files",
            };
            self.notes.push(format!("segments/{name} {note}"));
        }
    }

    fn tell_start(&mut self) {
        let start = &mut self.start;
        match self.scratch.state {
            IndexState::Absent => start.push("makes the index from the log".to_owned()),
            IndexState::Unsound | IndexState::KnowsGoneSegment | IndexState::Wrong => {
                start.push("makes the index again from the log".to_owned());
            }
            IndexState::Behind => start.push("reads the rest of the log into the index".to_owned()),
            IndexState::Current => {}
        }
        if self.found.flaws_count > 0 {
            start.push(
                "goes on without damaged records; it keeps their bytes in quarantine, counts and \
                 names them, as soon as it reads them"
                    .to_owned(),
            );
        }
        if self.found.torn_count > 0 {
            start.push("passes over what is torn: nobody was told that it was stored".to_owned());
        }
        let lost = self.difference.pending_only_there;
        if lost > 0 && self.scratch.state != IndexState::KnowsGoneSegment {
            self.notes.push(format!(
                "{lost} deliveries are pending in the log and not in the index, where a start looks: \
                 remove index.sqlite before it, and it makes that again"
            ));
        }
        if self.found.spare_bytes > 0 {
            let bytes = self.found.spare_bytes;
            self.start.push(format!("gives back {bytes} bytes behind the last records"));
        }
    }
}

fn place(flaw: &Flaw) -> Value {
    json!({
        "segment": flaw.segment, "file": file_of(flaw),
        "offset": flaw.offset, "bytes": flaw.bytes,
    })
}

fn file_of(flaw: &Flaw) -> String {
    format!("segments/{:08}.log", flaw.segment)
}
