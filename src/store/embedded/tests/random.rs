//! Random operations, failures and crashes against a simple model.

use std::collections::BTreeSet;

use proptest::test_runner::{Config as ProptestConfig, FileFailurePersistence, TestRunner};

use super::cleaning::clean;
use super::faults::block_index;
use super::model::{Doubt, Expected, Fate, Model, RETAIN};
use super::steps::{Failure, Step, steps};
use super::*;
use crate::domain::delivery::Cause;
use crate::store::Pick;
use crate::store::archive::{Addition, Archive};
use crate::store::embedded::log::Limit;
use crate::store::embedded::sim::Faults;
use crate::store::marks::{Mark, MarkKeeper, Word};
use crate::store::story::{Filter, Order};

/// One of so many.
fn nth(which: u64, of: usize) -> usize {
    usize::try_from((u128::from(which) * of as u128) >> 64).unwrap()
}

const TARGETS: [&str; 2] = ["crm", "billing"];

struct Run {
    world: World,
    model: Model,
    is_limited: bool,
    // None while it is opened again.
    store: Option<EmbeddedStore>,
}

impl Run {
    fn new() -> Self {
        let mut world = World::new();
        world.settings.segment_bytes = 16 << 10;
        world.settings.retain_dead_letters = Duration::from_secs(1 << 30);
        world.settings.retain = RETAIN;
        world.settings.sweep_wait = Duration::from_millis(5);
        let store = Some(world.open());
        Self { world, model: Model::default(), is_limited: false, store }
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
            Step::Expire(first) => self.end_all(first, false).await,
            Step::Relieve(first) => self.end_all(first, true).await,
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
            Step::Add { which, targets, again, cleaning } => {
                self.add(which, targets, again, cleaning).await;
            }
            Step::Erase(which, cleaning) => self.erase(which, cleaning).await,
            Step::Redrive(first) => self.decide(first, true).await,
            Step::Discard(first) => self.decide(first, false).await,
            Step::Pause(first, pause) => self.mark(first, pause).await,
            Step::Limit(sixteenths) => {
                self.world.settings.limit = match sixteenths {
                    0..64 => Limit::None,
                    _ => Limit::Bytes(u64::from(sixteenths) << 10),
                };
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
        self.model.left_file();
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
            self.model.only_in_file.clear();
        }
        self.model.is_failing = false;
        self.is_limited = self.world.settings.limit != Limit::None;
        self.store = Some(self.world.open());
        assert_eq!(**self.store().marks().borrow(), self.model.marks);
    }

    async fn commit(&mut self, targets: u8) {
        self.model.next += 1;
        let n = self.model.next.to_be_bytes();
        let body = [&n[..], &vec![targets; usize::from(targets) * 700]].concat();
        let wanted = (0u8..).zip(TARGETS).filter(|(n, _)| targets & (1 << n) != 0);
        let names: Vec<_> = wanted.map(|(_, name)| name).collect();
        let (webhook, result) = self.world.commit(self.store(), &body, &names).await;
        if let Err(error) = result {
            let is_full = self.is_limited && error == CommitError::DiskFull;
            assert!(self.model.is_failing || is_full, "{error}, but the disk is sound");
            self.model.refused.push(body);
            return;
        }
        if !self.model.is_failing {
            self.model.synced();
        }
        self.model.accepted.insert(body.clone(), webhook.id);
        for (number, target) in (0..).zip(names) {
            let fate = Fate { target, expected: Expected::Pending, doubt: Doubt::None };
            self.model.deliveries.insert((body.clone(), number), fate);
        }
    }

    /// What was accepted is a duplicate of the first; what was refused is none.
    async fn repeat(&self, which: u64) {
        let Model { accepted, refused, .. } = &self.model;
        let bodies: Vec<&Vec<u8>> = accepted.keys().chain(refused).collect();
        if !bodies.is_empty() {
            self.store().flush().await;
            self.check_duplicate(bodies[nth(which, bodies.len())]).await;
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
            let key = (lease.delivery.webhook.body.to_vec(), lease.delivery.number);
            let Some(known) = self.model.deliveries.get_mut(&key) else {
                assert!(self.model.uncertain.contains(&key.0), "what is leased was committed");
                self.store().settle(lease, None, Settlement::Delivered);
                continue;
            };
            assert_eq!(known.target, target);
            assert!(known.is_due() || known.may_be_due(), "leased again: {known:?}");
            known.settled(match settlement {
                Settlement::Delivered => Expected::Delivered,
                Settlement::DeadLetter(_) => Expected::Dead,
                _ => Expected::Pending,
            });
            self.store().settle(lease, None, settlement);
        }
    }

    /// Ends everything that is pending to a target.
    async fn end_all(&mut self, first: bool, by_limit: bool) {
        let target = TARGETS[usize::from(!first)];
        let before = self.world.clock.now().plus(Duration::from_millis(1));
        let ended = if by_limit {
            self.store().relieve(target, 0, 1000).await.ended
        } else {
            self.store().expire(target, before, 1000, Cause::TargetRemoved).await
        };
        let (mut pending, mut doubtful) = (0, 0);
        for known in self.model.deliveries.values_mut().filter(|known| known.target == target) {
            if known.is_due() {
                known.settled(Expected::Dead);
                pending += 1;
            } else if known.may_be_due() {
                doubtful += 1;
            }
        }
        doubtful += self.model.uncertain.len() * 4;
        assert!((pending..=pending + doubtful).contains(&ended), "{ended} of {pending} ended");
        if by_limit {
            self.model.spare(target);
        }
    }

    /// The webhooks whose bytes are gone: none that something else needs.
    async fn gone(&self) -> BTreeSet<WebhookId> {
        let stories = self.store().stories(Filter::default(), None, Order::OldestFirst, 200).await;
        let mut gone = stories.unwrap().stories;
        gone.retain(|story| story.bytes_gone);
        let gone = gone.into_iter().map(|story| story.id).collect();
        assert!(self.model.may_lack_bytes(&gone), "something needs them");
        gone
    }

    /// Adds deliveries to a webhook that is stored.
    async fn add(&mut self, which: u64, targets: u8, again: bool, cleaning: bool) {
        if cleaning {
            self.world.clock.advance(RETAIN * 2);
        }
        let bodies = self.model.lasting(self.world.clock.now());
        if bodies.is_empty() {
            return;
        }
        let body = &bodies[nth(which, bodies.len())];
        let wanted = (0u8..).zip(TARGETS).filter(|(n, _)| targets & (1 << n) != 0);
        let names: Vec<_> = wanted.map(|(_, name)| name).collect();
        let deliveries = self.world.webhook(b"", &names).deliveries;
        let addition = Addition { id: self.model.accepted[body], deliveries, again };
        let adds = self.store().add(vec![addition]);
        let added = if cleaning {
            tokio::join!(clean(&self.world, self.store()), adds).1
        } else {
            adds.await
        };
        let Ok(added) = added else {
            assert!(self.model.is_failing, "{added:?}, but the disk is sound");
            self.model.uncertain.insert(body.clone());
            return;
        };
        let new = |name: &&str| again || self.model.count(body, Some(name)) == 0;
        let new: Vec<_> = names.into_iter().filter(new).collect();
        assert_eq!(added, [new.len()]);
        for target in new {
            let number = u16::try_from(self.model.count(body, None)).unwrap();
            let fate = Fate { target, expected: Expected::Pending, doubt: Doubt::None };
            self.model.deliveries.insert((body.clone(), number), fate);
        }
    }

    async fn erase(&mut self, which: u64, cleaning: bool) {
        let bodies: Vec<_> = self.model.accepted.keys().cloned().collect();
        if bodies.is_empty() {
            return;
        }
        let body = &bodies[nth(which, bodies.len())];
        let is_over = self.model.may_be_over(body, self.world.clock.now());
        let erases = self.store().erase(self.model.accepted[body]);
        let erased = if cleaning {
            tokio::join!(clean(&self.world, self.store()), erases).1
        } else {
            erases.await
        };
        self.model.forget(body);
        match erased {
            Ok(Some(_)) => {}
            Ok(None) => assert!(is_over || self.model.uncertain.contains(body), "it was stored"),
            Err(error) => {
                let may_fail = self.model.is_failing || self.is_limited;
                assert!(may_fail, "{error}, but the disk is sound");
                self.model.uncertain.insert(body.clone());
            }
        }
    }

    /// An operator decides on the dead letters of a target.
    async fn decide(&mut self, first: bool, redriven: bool) {
        let target = TARGETS[usize::from(!first)];
        let dead = self.model.dead(target);
        let at = self.world.clock.now();
        let word = if redriven { Settlement::Redriven { at } } else { Settlement::Discarded };
        let done = self.store().settle_dead(dead, word).await;
        assert!(done.is_ok() || self.model.is_failing, "{done:?}, but the disk is sound");
        // Of those nothing is left to deliver: they are passed over.
        let gone = if redriven { self.gone().await } else { BTreeSet::new() };
        self.model.decided(target, redriven, done.is_ok(), &gone);
    }

    async fn mark(&mut self, first: bool, pause: bool) {
        let (target, at) = (TARGETS[usize::from(!first)], self.world.clock.now());
        let word = Some(if pause { Word::Pause(at) } else { Word::Resume(at) });
        let mark = Mark { word, suspension: None };
        self.model.marks.insert(target.into(), mark);
        let said = self.store().mark(move |marks| marks.extend([(target.into(), mark)])).await;
        assert_eq!(said, Ok(()));
    }

    /// Everything is as the model has it.
    async fn check(&self) {
        self.world.disk.heal();
        self.world.clock.advance(Duration::from_secs(10));
        assert_eq!(self.store().health().sweep_findings, 0);
        self.gone().await;
        let mut found = Vec::new();
        for target in TARGETS {
            let leases = lease_all(self.store(), target).await;
            let key = |l: &Lease| (l.delivery.webhook.body.to_vec(), l.delivery.number);
            found.extend(leases.iter().map(key));
        }
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count, "one delivery was leased twice");
        for (key, fate) in &self.model.deliveries {
            let pending = found.contains(key);
            assert!(pending || !fate.is_due(), "lost: {}", key.1);
            assert!(!pending || !fate.is_over(), "due again");
        }
        found.retain(|(body, _)| !self.model.uncertain.contains(body));
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
        cases: 128 / THREADS,
        max_shrink_iters: 3000,
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
