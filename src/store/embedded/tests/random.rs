//! Random operations, failures and crashes against a simple model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

use super::cleaning::clean;
use super::faults::block_index;
use super::*;
use crate::domain::delivery::Cause;
use crate::store::Pick;
use crate::store::embedded::sim::Faults;

// Short, so that a pass of the cleaner is not waited for.
const RETAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
enum Step {
    Commit(u8),
    /// The same body as an earlier one.
    Repeat(prop::sample::Index),
    Deliver(bool),
    Retry(bool),
    Dead(bool),
    Expire(bool),
    Lapse,
    Wait(u16),
    Flush,
    Restart,
    Kill,
    PowerCut(u64),
    DeleteIndex,
    /// The next index is in memory; the file stays for the one after it.
    IndexInMemory,
    Clean,
    /// Which of the next writes or syncs fails, or is short.
    Fault(Failure, u64),
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    Write,
    Short,
    Sync,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let failure = prop_oneof![Just(Failure::Write), Just(Failure::Short), Just(Failure::Sync)];
    let step = prop_oneof![
        8 => (0..4u8).prop_map(Step::Commit),
        2 => any::<prop::sample::Index>().prop_map(Step::Repeat),
        4 => any::<bool>().prop_map(Step::Deliver),
        3 => any::<bool>().prop_map(Step::Retry),
        1 => any::<bool>().prop_map(Step::Dead),
        1 => any::<bool>().prop_map(Step::Expire),
        1 => Just(Step::Lapse),
        2 => (0..3000u16).prop_map(Step::Wait),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::DeleteIndex),
        1 => Just(Step::IndexInMemory),
        1 => Just(Step::Clean),
        2 => (failure, 1..4u64).prop_map(|(failure, nth)| Step::Fault(failure, nth)),
    ];
    proptest::collection::vec(step, 1..60)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Pending,
    Delivered,
    Dead,
}

/// Whether a settlement may be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    None,
    // It is written. Where a write or a sync fails then, what was not synced is written again, but not
    // at once: a crash before that undoes it.
    UntilSynced,
    UntilWritten,
    // A crash may have undone it: either is right until it is settled again.
    Lasting,
}

/// What should be: deliveries by body and target. Settled ones may be due again after a crash in
/// which their settlement was not yet safe.
#[derive(Default)]
struct Model {
    deliveries: BTreeMap<(Vec<u8>, &'static str), (Expected, Doubt)>,
    accepted: BTreeMap<Vec<u8>, WebhookId>,
    refused: Vec<Vec<u8>>,
    // Since then the disk may have failed: what is in the index need not be in the log.
    is_failing: bool,
    next: u32,
}

impl Model {
    /// What was settled is in the log.
    fn written(&mut self) {
        for (_, doubt) in self.deliveries.values_mut() {
            if *doubt == Doubt::UntilWritten {
                *doubt = Doubt::UntilSynced;
            }
        }
    }

    /// What was settled is durable.
    fn synced(&mut self) {
        for (_, doubt) in self.deliveries.values_mut() {
            if matches!(doubt, Doubt::UntilWritten | Doubt::UntilSynced) {
                *doubt = Doubt::None;
            }
        }
    }

    /// The process was killed: what was settled may be undone, unless it was written.
    fn killed(&mut self) {
        for (_, doubt) in self.deliveries.values_mut() {
            let is_undone = *doubt == Doubt::UntilSynced && self.is_failing;
            if is_undone || *doubt == Doubt::UntilWritten {
                *doubt = Doubt::Lasting;
            }
        }
    }

    /// The power went: all that was settled may be undone.
    fn cut_off(&mut self) {
        self.deliveries.values_mut().for_each(|(_, doubt)| *doubt = Doubt::Lasting);
    }

    /// Whether retention may have ended it: nothing of it is pending.
    fn may_be_over(&self, body: &[u8], now: Timestamp) -> bool {
        let is_old = now.since(self.accepted[body].timestamp()) >= RETAIN;
        let of = self.deliveries.iter().filter(|((other, _), _)| other == body);
        is_old && of.clone().count() > 0 && of.clone().all(|(_, d)| d.0 != Expected::Pending)
    }
}

const TARGETS: [&str; 2] = ["crm", "billing"];

struct Run {
    world: World,
    model: Model,
    // None while it is opened again.
    store: Option<EmbeddedStore>,
}

impl Run {
    fn new() -> Self {
        let mut world = World::new();
        world.settings.segment_bytes = 16 << 10;
        world.settings.retain_dead_letters = Duration::from_secs(1 << 30);
        world.settings.retain = RETAIN;
        let store = Some(world.open());
        Self { world, model: Model::default(), store }
    }

    fn store(&self) -> &EmbeddedStore {
        self.store.as_ref().unwrap()
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Commit(targets) => self.commit(targets).await,
            Step::Repeat(which) => self.repeat(which).await,
            Step::Deliver(first) => self.settle(first, Settlement::Delivered).await,
            Step::Retry(first) => {
                let at = self.world.clock.now().plus(Duration::from_millis(1500));
                self.settle(first, Settlement::Retry { at }).await;
            }
            Step::Dead(first) => {
                self.settle(first, Settlement::DeadLetter(Cause::GivenUp)).await;
            }
            Step::Expire(first) => self.expire(first).await,
            Step::Lapse => drop(quick(self.store(), TARGETS[0]).await),
            Step::Wait(ms) => self.world.clock.advance(Duration::from_millis(ms.into())),
            Step::Flush => {
                self.store().flush().await;
                if !self.model.is_failing {
                    self.model.written();
                }
            }
            Step::Clean => {
                self.world.clock.advance(RETAIN * 2);
                clean(&self.world, self.store()).await;
            }
            Step::Fault(failure, nth) => self.fail(failure, nth),
            Step::Restart => self.restart(false).await,
            Step::DeleteIndex => self.restart(true).await,
            Step::IndexInMemory => self.restart_without_file().await,
            Step::Kill => {
                self.model.killed();
                self.open_on(self.world.disk.kill(), false);
            }
            Step::PowerCut(seed) => {
                self.model.cut_off();
                self.open_on(self.world.disk.power_cut(seed), true);
            }
        }
    }

    fn fail(&mut self, failure: Failure, nth: u64) {
        let nth = Some(nth);
        self.model.is_failing = true;
        self.world.disk.set_faults(match failure {
            Failure::Write => Faults { broken_at_write: nth, ..Faults::default() },
            Failure::Short => Faults { short_at_write: nth, ..Faults::default() },
            Failure::Sync => Faults { broken_at_sync: nth, ..Faults::default() },
        });
    }

    /// Stops in order, on a disk that is sound: everything is written and synced then.
    async fn restart(&mut self, delete_index: bool) {
        self.world.disk.heal();
        self.store().close().await;
        self.model.synced();
        self.open_on(self.world.disk.clone(), delete_index);
    }

    /// The same, where SQLite can't open the index that is there.
    async fn restart_without_file(&mut self) {
        self.world.disk.heal();
        self.store().close().await;
        self.model.synced();
        drop(self.store.take());
        let in_the_way = block_index(&self.world);
        self.open_on(self.world.disk.clone(), false);
        // Where there was no index it was put aside.
        if in_the_way.is_dir() {
            std::fs::remove_dir_all(in_the_way).unwrap();
        }
    }

    fn open_on(&mut self, disk: SimDisk, delete_index: bool) {
        drop(self.store.take());
        self.world.use_disk(disk);
        if delete_index {
            self.world.delete_index();
        }
        self.model.is_failing = false;
        self.store = Some(self.world.open());
    }

    async fn commit(&mut self, targets: u8) {
        self.model.next += 1;
        let n = self.model.next.to_be_bytes();
        let body = [&n[..], &vec![targets; usize::from(targets) * 700]].concat();
        let wanted = (0u8..).zip(TARGETS).filter(|(n, _)| targets & (1 << n) != 0);
        let names: Vec<_> = wanted.map(|(_, name)| name).collect();
        let (webhook, result) = self.world.commit(self.store(), &body, &names).await;
        if let Err(error) = result {
            assert!(self.model.is_failing, "{error}, but the disk is sound");
            self.model.refused.push(body);
            return;
        }
        if !self.model.is_failing {
            self.model.synced();
        }
        self.model.accepted.insert(body.clone(), webhook.id);
        for name in names {
            self.model.deliveries.insert((body.clone(), name), (Expected::Pending, Doubt::None));
        }
    }

    /// What was accepted is a duplicate of the first; what was refused is none.
    async fn repeat(&self, which: prop::sample::Index) {
        let Model { accepted, refused, .. } = &self.model;
        let bodies: Vec<&Vec<u8>> = accepted.keys().chain(refused).collect();
        if !bodies.is_empty() {
            self.store().flush().await;
            self.check_duplicate(bodies[which.index(bodies.len())]).await;
        }
    }

    async fn check_duplicate(&self, body: &[u8]) {
        let known = is_duplicate(self.store(), body).await;
        let first = self.model.accepted.get(body).copied();
        let is_over = first.is_some() && self.model.may_be_over(body, self.world.clock.now());
        assert!(known == first || (known.is_none() && is_over), "{known:?}, not {first:?}");
    }

    async fn settle(&mut self, first: bool, settlement: Settlement) {
        let target = TARGETS[usize::from(!first)];
        for lease in quick(self.store(), target).await {
            let key = (lease.delivery.webhook.body.to_vec(), target);
            let known = self.model.deliveries.get_mut(&key).expect("what is leased was committed");
            assert!(
                known.0 == Expected::Pending || known.1 == Doubt::Lasting,
                "leased again: {known:?}"
            );
            let expected = match settlement {
                Settlement::Delivered => Expected::Delivered,
                Settlement::DeadLetter(_) => Expected::Dead,
                _ => Expected::Pending,
            };
            // Until it is flushed a crash may undo it.
            *known = (expected, Doubt::UntilWritten);
            self.store().settle(lease, None, settlement);
        }
    }

    /// Ends everything that is pending to a target.
    async fn expire(&mut self, first: bool) {
        let target = TARGETS[usize::from(!first)];
        let before = self.world.clock.now().plus(Duration::from_millis(1));
        let ended = self.store().expire(target, before, 1000, Cause::TargetRemoved).await;
        let (mut pending, mut doubtful) = (0, 0);
        let of_target = self.model.deliveries.iter_mut().filter(|((_, name), _)| *name == target);
        for (_, known) in of_target {
            if known.0 == Expected::Pending {
                *known = (Expected::Dead, Doubt::UntilWritten);
                pending += 1;
            } else if known.1 == Doubt::Lasting {
                doubtful += 1;
            }
        }
        assert!((pending..=pending + doubtful).contains(&ended), "{ended} of {pending} ended");
    }

    /// Everything is as the model has it.
    async fn check(&self) {
        self.world.disk.heal();
        self.world.clock.advance(Duration::from_secs(10));
        let mut found = Vec::new();
        for target in TARGETS {
            let leases = lease_all(self.store(), target).await;
            found.extend(leases.iter().map(|l| (l.delivery.webhook.body.to_vec(), target)));
        }
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count, "one delivery was leased twice");
        for (key, (expected, doubt)) in &self.model.deliveries {
            let pending = found.contains(key);
            match expected {
                Expected::Pending => assert!(pending, "lost"),
                Expected::Delivered | Expected::Dead => {
                    assert!(!pending || *doubt != Doubt::None, "due again")
                }
            }
        }
        assert!(found.iter().all(|key| self.model.deliveries.contains_key(key)), "invented");
        for body in self.model.accepted.keys().chain(&self.model.refused) {
            self.check_duplicate(body).await;
        }
        // Nothing decays here: a power cut is no damage, whatever it leaves of what was not synced.
        assert_eq!(self.store().health().damaged_records, 0);
    }
}

async fn run(steps: Vec<Step>) {
    let mut run = Run::new();
    for step in steps {
        run.step(step).await;
    }
    run.check().await;
}

async fn quick(store: &EmbeddedStore, target: &str) -> Vec<Lease> {
    store.flush().await;
    tokio::time::timeout(Duration::from_millis(15), store.lease(target, 2, Pick::LongestDue))
        .await
        .unwrap_or_default()
}

// Most of the time is waiting: for disks, and for what is not due.
const THREADS: u32 = 8;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 64 / THREADS,
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/data/regressions/store.txt",
        ))),
        ..ProptestConfig::default()
    }
}

#[test]
fn no_sequence_of_operations_failures_and_crashes_loses_or_invents_anything() {
    let search = || {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        TestRunner::new(config()).run(&steps(), |steps| {
            runtime().unwrap().block_on(run(steps));
            Ok(())
        })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(search)).collect();
        for thread in threads {
            if let Err(failed) = thread.join().unwrap() {
                panic!("{failed}");
            }
        }
    });
}

#[tokio::test]
async fn what_was_found_once_is_not_found_again() {
    use Step::{Clean, Commit, Dead, DeleteIndex, Deliver, Expire, Fault, Flush, IndexInMemory};
    use Step::{Kill, Lapse, PowerCut, Restart};
    use Step::{Retry, Wait};
    run(vec![Commit(2), Deliver(false), Kill, DeleteIndex]).await;
    let cut = PowerCut(16_290_209_344_099_156_367);
    let first = vec![Retry(false), Kill, Lapse, Wait(1776), Retry(false), Kill, Lapse, Commit(1)];
    let then = vec![Commit(1), Retry(true), Deliver(false), cut, Restart, Dead(false)];
    let last = vec![Retry(false), Lapse, Flush, DeleteIndex, DeleteIndex, Commit(3)];
    run([first, then, last].concat()).await;
    // The index's file knows of a settlement that the log does not have.
    let fault = Fault(Failure::Short, 1);
    let known = [fault, Commit(3), Dead(false), Kill, IndexInMemory, Deliver(false)];
    run(known.to_vec()).await;
    // A copy that was made before a settlement was known outlives its original and the settlement.
    let old = vec![Commit(2), Commit(0), Retry(false), Clean, Commit(1), DeleteIndex, Dead(true)];
    let copied = vec![Commit(2), Fault(Failure::Write, 2), Expire(true), IndexInMemory, Commit(3)];
    let gone = vec![Deliver(false), Wait(2637), Flush, Deliver(false), Wait(1292), Deliver(true)];
    run([old, copied, gone, vec![IndexInMemory]].concat()).await;
}
