//! A disk that fails once: at each write, each sync and each sync of a directory, up to the last.

use std::collections::BTreeSet;

use super::cleaning::{clean, small};
use super::*;
use crate::domain::delivery::Cause;
use crate::store::embedded::sim::Faults;

const TARGET: &str = "crm";

/// What fails, and how the nth of it is told.
type Kind = (&'static str, fn(u64) -> Faults);

const KINDS: [Kind; 5] = [
    ("a short write", |nth| Faults { short_at_write: Some(nth), ..Faults::default() }),
    ("no space", |nth| Faults { full_at_write: Some(nth), ..Faults::default() }),
    ("a failed write", |nth| Faults { broken_at_write: Some(nth), ..Faults::default() }),
    ("a failed sync", |nth| Faults { broken_at_sync: Some(nth), ..Faults::default() }),
    ("a failed sync of the directory", |nth| Faults {
        broken_at_dir_sync: Some(nth),
        ..Faults::default()
    }),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
    /// In order, and then the power goes.
    Close,
}

/// A store on a disk that fails, and what should be in it.
struct Run {
    world: World,
    store: EmbeddedStore,
    pending: BTreeSet<Bytes>,
    settled: BTreeSet<Bytes>,
    has_met: bool,
}

impl Run {
    fn new(faults: Faults) -> Self {
        let world = small();
        let store = world.open();
        world.disk.set_faults(faults);
        let (pending, settled) = Default::default();
        Self { world, store, pending, settled, has_met: false }
    }

    /// Mends the disk if it has failed, and waits until the store has tried by itself.
    async fn heal(&mut self) {
        if self.world.disk.has_met_fault() {
            self.has_met = true;
            self.world.disk.heal();
        }
        let healthy = async {
            while self.store.pulse().failing.is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(PATIENCE, healthy).await;
    }

    /// Commits as a sender does, who comes again, and leases it.
    async fn commit(&mut self, n: u8) -> Lease {
        // What stays pending is less than a quarter of its segment: that is cleaned.
        let body = vec![n; if n.is_multiple_of(4) { 300 } else { 3000 }];
        let webhook = loop {
            let (webhook, result) = self.world.commit(&self.store, &body, &[TARGET]).await;
            let Err(error) = result else { break webhook };
            assert!(matches!(error, CommitError::DiskFull | CommitError::Unavailable), "{error}");
            assert_eq!(is_duplicate(&self.store, &body).await, None);
            self.heal().await;
            assert!(self.has_met, "refused by a disk that is sound");
        };
        let lease = lease(&self.store, TARGET, 1).await.pop().unwrap();
        assert_eq!(lease.delivery.webhook.id, webhook.id);
        lease
    }

    fn settle(&mut self, lease: Lease, settlement: Settlement) {
        let body = lease.delivery.webhook.body.clone();
        let is_pending = matches!(settlement, Settlement::Retry { .. });
        if is_pending { &mut self.pending } else { &mut self.settled }.insert(body);
        self.store.settle(lease, None, settlement);
    }

    /// Webhooks of all fates, over several segments. Some settlements are written alone.
    async fn fill(&mut self) {
        let at = self.world.clock.now().plus(Duration::from_secs(3600));
        let mut late = None;
        for n in 0..8 {
            let lease = self.commit(n).await;
            match n % 4 {
                0 => self.settle(lease, Settlement::Retry { at }),
                1 => self.settle(lease, Settlement::Delivered),
                2 => late = Some(lease),
                _ => {
                    self.settle(lease, Settlement::DeadLetter(Cause::GivenUp));
                    self.settle(late.take().unwrap(), Settlement::Delivered);
                }
            }
            if n % 2 == 1 {
                self.store.flush().await;
            }
        }
    }

    /// Lets retention end what is settled, and the cleaner copy what lives.
    async fn clean(&mut self) {
        let first = segments(&self.world).remove(0);
        self.world.clock.advance(Duration::from_secs(10));
        clean(&self.world, &self.store).await;
        self.heal().await;
        let cleaned = async {
            while segments(&self.world).contains(&first) {
                clean(&self.world, &self.store).await;
            }
        };
        within(PATIENCE, cleaned).await;
    }

    /// Ends it; answers whether every settlement must have been kept.
    async fn end(&mut self, end: End) -> bool {
        let before = self.has_met;
        if end == End::Close {
            self.store.close().await;
        } else {
            self.store.flush().await;
        }
        let at_the_end = self.world.disk.has_met_fault();
        self.has_met |= at_the_end;
        let disk = match end {
            End::Kill => self.world.disk.kill(),
            End::PowerCut | End::Close => self.world.disk.power_cut(fastrand::u64(..)),
        };
        self.world.use_disk(disk);
        end == End::Close && (before || !at_the_end)
    }
}

/// Exactly what should be due is due, whatever becomes of the index.
async fn check(run: Run, keeps_settlements: bool, what: &str) {
    let Run { world, store, pending, settled, .. } = run;
    drop(store);
    world.clock.advance(Duration::from_secs(7200));
    for delete_index in [false, true] {
        if delete_index {
            world.delete_index();
        }
        let what = format!("{what}, index deleted: {delete_index}");
        let store = world.open();
        let leases = lease_all(&store, TARGET).await;
        let mut found = BTreeSet::new();
        for lease in &leases {
            assert!(found.insert(lease.delivery.webhook.body.clone()), "leased twice: {what}");
        }
        assert!(found.is_superset(&pending), "lost: {what}");
        for body in found.difference(&pending) {
            assert!(settled.contains(body), "invented {}: {what}", body[0]);
            assert!(!keeps_settlements, "due again {}: {what}", body[0]);
        }
        for body in &pending {
            assert!(is_duplicate(&store, body).await.is_some(), "its key is forgotten: {what}");
        }
        assert_eq!(store.health().damaged_records, 0, "{what}");
    }
}

/// Answers whether the disk failed before the end.
async fn survives(kind: Kind, nth: u64, end: End) -> bool {
    let mut run = Run::new(kind.1(nth));
    run.fill().await;
    run.clean().await;
    let lease = run.commit(8).await;
    run.settle(lease, Settlement::Delivered);
    let keeps_settlements = run.end(end).await;
    let has_met = run.has_met;
    check(run, keeps_settlements, &format!("{} at {nth}, then {end:?}", kind.0)).await;
    has_met
}

#[test]
fn nothing_acknowledged_is_lost_whichever_write_or_sync_fails() {
    let ends = [End::Kill, End::PowerCut, End::Close];
    std::thread::scope(|scope| {
        for (kind, end) in KINDS.into_iter().flat_map(|kind| ends.map(|end| (kind, end))) {
            scope.spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut nth = 1;
                while runtime.block_on(survives(kind, nth, end)) {
                    nth += 1;
                }
                // Of these there are the fewest: made segments, and removed ones.
                assert!(nth > 3, "{} was met only {nth} times", kind.0);
            });
        }
    });
}
