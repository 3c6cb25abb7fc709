//! Compares log, index and lanes, a little of them every minute, and reports what should not be.
//!
//! A lane that differs begins anew, as it would at a start. One that goes on to differ, and a record that is
//! not where the index says, speak against the index: it is made again from the log. What differs is a bug, or
//! a disk that forgets; an operator hears of it before a delivery is missed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::embedded::inbox::Request;
use crate::store::embedded::index::Index;
use crate::store::embedded::index::queries::{Count, StoredRow};
use crate::store::embedded::indexer::Indexer;
use crate::store::embedded::lane::tally::Counted;
use crate::store::embedded::lane::{Lane, Standing};
use crate::store::embedded::lanes::Lanes;
use crate::store::embedded::listing::{note_unfit, read_webhook, read_webhook_and_added};
use crate::store::embedded::log::Log;
use crate::store::embedded::queue::Queue;
use crate::store::embedded::reader::Unfit;
use crate::store::embedded::suspicion::{ELSEWHERE, MISPLACED, Sought};

/// How long it waits between two looks.
pub(super) const SWEEP_WAIT: Duration = Duration::from_secs(60);

// Of the records so many are read at once, or so many bytes of them: a thousandth of a busy disk.
const RECORDS: usize = 64;
const RECORD_BYTES: u64 = 4 << 20;

/// How many findings there were.
#[derive(Debug, Default)]
pub(super) struct Findings(AtomicU64);

impl Findings {
    /// Since the start.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a lane counts otherwise than the index, or holds nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Difference {
    by_lane: Counted,
    by_index: Counted,
    without_next_step: i64,
}

impl Difference {
    fn is_none(&self) -> bool {
        self.by_lane == self.by_index && self.without_next_step == 0
    }
}

/// What is remembered from one look to the next.
#[derive(Debug)]
pub(super) struct Sweep {
    wait: Duration,
    queue: Arc<Queue>,
    next: Instant,
    cursor: u64,
    // What a look found may be on its way: what the next one finds unchanged is not.
    suspects: HashMap<Arc<str>, Difference>,
    told: BTreeSet<Arc<str>>,
    // They have begun anew.
    mended: BTreeSet<Arc<str>>,
    // They differed as before after that.
    blamed: BTreeSet<Arc<str>>,
    // The index knows more than the lanes were told: they count as it does.
    recounts: bool,
    findings: Arc<Findings>,
}

impl Sweep {
    /// The first look comes after a wait.
    pub(super) fn new(wait: Duration, queue: Arc<Queue>, findings: Arc<Findings>) -> Self {
        Self {
            wait,
            queue,
            next: Instant::now() + wait,
            cursor: 0,
            suspects: HashMap::new(),
            told: BTreeSet::new(),
            mended: BTreeSet::new(),
            blamed: BTreeSet::new(),
            recounts: false,
            findings,
        }
    }

    /// Looks, if it is time to; answers what speaks against the index.
    pub(super) fn step(
        &mut self,
        index: &Index,
        lanes: &Lanes,
        log: &Log,
    ) -> rusqlite::Result<Option<String>> {
        if Instant::now() < self.next {
            return Ok(None);
        }
        self.next = Instant::now() + self.wait;
        // What a lane has settled by now is behind this request: only a lane in which nothing is
        // settled meanwhile can be compared.
        let before: Vec<(Arc<Lane>, Standing)> =
            lanes.all().into_iter().map(|lane| (Arc::clone(&lane), lane.standing())).collect();
        self.queue.request(Request::Ask(Box::new(move |indexer| look(&before, indexer))));
        self.read_some(index, log)
    }

    /// Reads records where the index says that they are.
    fn read_some(&mut self, index: &Index, log: &Log) -> rusqlite::Result<Option<String>> {
        let rows = index.stored(self.cursor, RECORDS)?;
        let mut bytes = 0;
        // Segments are read for it: one record at a time is enough.
        let mut is_blamed = false;
        // Behind the last one it begins anew.
        self.cursor = 0;
        for row in rows {
            if bytes > RECORD_BYTES {
                break;
            }
            self.cursor = row.id.key();
            bytes += row.at.length;
            // No record moves meanwhile: this is the thread that moves them.
            let Err(unfit) = read_webhook_and_added(log, &row) else { continue };
            if !std::mem::replace(&mut is_blamed, true)
                && let Some(why) = blame(index, log, &row, &unfit)?
            {
                return Ok(Some(why.into()));
            }
            note_unfit(log, row.id, row.at, &unfit);
        }
        Ok(None)
    }

    /// One more, of another kind.
    pub(super) fn add_finding(&self) {
        self.findings.add();
    }

    /// Whether a lane that has begun anew differs still, as it did before; each is blamed once.
    fn goes_on(&mut self, found: &HashMap<Arc<str>, Difference>) -> bool {
        self.blamed.retain(|target| found.contains_key(target));
        let Self { told, blamed, suspects, .. } = self;
        let goes_on = |(target, difference): &(&Arc<str>, &Difference)| {
            told.contains(*target) && suspects.get(*target) == Some(*difference)
        };
        let going_on = found.iter().filter(goes_on).map(|(target, _)| Arc::clone(target));
        let before = blamed.len();
        blamed.extend(going_on);
        blamed.len() > before
    }

    /// The index knows more than the lanes were told: what differs is counted anew, and is no finding.
    pub(super) fn recount(&mut self) {
        self.recounts = true;
        self.next = Instant::now();
    }

    /// Tells what was found twice, once; answers what that is.
    fn judge(&mut self, found: &HashMap<Arc<str>, Difference>) -> Vec<Arc<str>> {
        self.told.retain(|target| found.contains_key(target));
        let mut told = Vec::new();
        for (target, difference) in found {
            let is_same = self.suspects.get(target) == Some(difference);
            if !is_same || !self.told.insert(Arc::clone(target)) {
                continue;
            }
            self.findings.add();
            tell(target, difference);
            told.push(Arc::clone(target));
        }
        self.suspects.clone_from(found);
        told
    }
}

/// What a record that is not sound where the index says tells against the index.
fn blame(
    index: &Index,
    log: &Log,
    row: &StoredRow,
    unfit: &Unfit,
) -> rusqlite::Result<Option<&'static str>> {
    let sought = Sought::Webhook(row.id.key());
    Ok(match unfit {
        Unfit::Misplaced => Some(MISPLACED),
        Unfit::Damaged | Unfit::Moved
            if read_webhook(log, row.at).is_err() && sought.is_in(log, &index.holdings()?) =>
        {
            Some(ELSEWHERE)
        }
        Unfit::Damaged | Unfit::Moved | Unfit::Failed(_) => None,
    })
}

/// Compares, tells what is not as it should be, and has those lanes begin anew as a restart would.
fn look(before: &[(Arc<Lane>, Standing)], indexer: &mut Indexer) -> rusqlite::Result<()> {
    let found = compare(before, indexer)?;
    let is_as_it_was =
        |(lane, standing): &(Arc<Lane>, Standing)| lane.standing().revision == standing.revision;
    let mends: Vec<Arc<str>> = if indexer.sweep.recounts {
        indexer.sweep.recounts = !before.iter().all(is_as_it_was);
        found.keys().cloned().collect()
    } else {
        let goes_on = indexer.sweep.goes_on(&found);
        let told = indexer.sweep.judge(&found);
        let mended = &mut indexer.sweep.mended;
        let is_told_again =
            told.iter().filter(|target| !mended.insert(Arc::clone(target))).count() > 0;
        if goes_on || is_told_again {
            indexer.suspect("a lane that has begun anew differs again".into());
        }
        told
    };
    for (lane, standing) in before.iter().filter(|(lane, _)| mends.contains(lane.name())) {
        if let Some(difference) = found.get(lane.name()) {
            lane.recount(standing.revision, &difference.by_index);
            indexer.begin_anew(lane)?;
        }
    }
    Ok(())
}

fn tell(target: &str, difference: &Difference) {
    let Difference { by_lane, by_index, without_next_step } = difference;
    if *without_next_step != 0 {
        tracing::error!(
            target_name = target,
            deliveries = without_next_step,
            "pending deliveries had no next step: their lane has begun anew; report this"
        );
    }
    if by_lane != by_index {
        tracing::error!(
            target_name = target,
            ?by_lane,
            ?by_index,
            "a target's lane and the index counted differently: it is counted anew; report this"
        );
    }
}

/// What differs, of those lanes in which nothing has changed since.
fn compare(
    before: &[(Arc<Lane>, Standing)],
    indexer: &Indexer,
) -> rusqlite::Result<HashMap<Arc<str>, Difference>> {
    let mut counted: HashMap<Arc<str>, Counted> = HashMap::new();
    for Count { target, cause, n } in indexer.index.counts()? {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        let counted = counted.entry(target).or_default();
        match cause {
            None => counted.pending += n,
            Some(cause) => *counted.dead.entry(cause).or_default() += n,
        }
    }
    let mut found = HashMap::new();
    for (lane, Standing { revision, counted: by_lane, without_next_step }) in before {
        if lane.standing().revision != *revision {
            continue;
        }
        let mut by_lane = by_lane.clone();
        // The index has no row for none.
        by_lane.dead.retain(|_, n| *n != 0);
        let by_index = counted.remove(lane.name()).unwrap_or_default();
        let difference = Difference { by_lane, by_index, without_next_step: *without_next_step };
        if !difference.is_none() {
            found.insert(Arc::clone(lane.name()), difference);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep() -> Sweep {
        Sweep::new(SWEEP_WAIT, Arc::default(), Arc::default())
    }

    fn found(pending: i64) -> HashMap<Arc<str>, Difference> {
        let by_lane = Counted { pending, ..Counted::default() };
        let difference = Difference { by_lane, ..Difference::default() };
        HashMap::from([("crm".into(), difference)])
    }

    #[test]
    fn what_is_found_twice_alike_is_told_once() {
        let mut sweep = sweep();
        let looks = [(1, 0, false), (2, 0, false), (2, 1, false), (2, 1, true), (2, 1, false)];
        for (difference, findings, goes_on) in looks.into_iter().chain([(3, 1, false)]) {
            assert_eq!(sweep.goes_on(&found(difference)), goes_on, "{difference}");
            sweep.judge(&found(difference));
            assert_eq!(sweep.findings.count(), findings, "{difference}");
        }
        sweep.judge(&HashMap::new());
        sweep.judge(&found(3));
        sweep.judge(&found(3));
        assert_eq!(sweep.findings.count(), 2, "it was over in between");
    }
}
