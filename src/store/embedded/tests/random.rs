//! Random operations and crashes against a simple model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;
use crate::domain::delivery::Cause;

#[derive(Debug, Clone)]
enum Step {
    Commit(u8),
    Deliver(bool),
    Retry(bool),
    Dead(bool),
    Lapse,
    Wait(u16),
    Flush,
    Restart,
    Kill,
    PowerCut(u64),
    DeleteIndex,
    Clean,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..4u8).prop_map(Step::Commit),
        4 => any::<bool>().prop_map(Step::Deliver),
        3 => any::<bool>().prop_map(Step::Retry),
        1 => any::<bool>().prop_map(Step::Dead),
        1 => Just(Step::Lapse),
        2 => (0..3000u16).prop_map(Step::Wait),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => Just(Step::DeleteIndex),
        1 => Just(Step::Clean),
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
    UntilWritten,
    // A crash may have undone it: either is right until it is settled again.
    Lasting,
}

/// What should be: deliveries by body and target. Settled ones may be due again after a crash in
/// which their settlement was not yet safe.
#[derive(Default)]
struct Model {
    deliveries: BTreeMap<(Vec<u8>, &'static str), (Expected, Doubt)>,
    next: u32,
}

impl Model {
    fn written(&mut self) {
        self.deliveries.values_mut().filter(|d| d.1 == Doubt::UntilWritten).for_each(|d| {
            d.1 = Doubt::None;
        });
    }
}

const TARGETS: [&str; 2] = ["crm", "billing"];

async fn run(steps: Vec<Step>) {
    let mut world = World::new();
    world.settings.segment_bytes = 16 << 10;
    world.settings.retain_dead_letters = Duration::from_secs(1 << 30);
    world.settings.retain = Duration::from_secs(1 << 30);
    let mut model = Model::default();
    let mut store = Some(world.open());
    for step in steps {
        let current = store.as_ref().unwrap();
        match step {
            Step::Commit(targets) => commit(&world, &mut model, current, targets).await,
            Step::Deliver(first) => settle(&mut model, current, first, Settlement::Delivered).await,
            Step::Retry(first) => {
                let at = world.clock.now().plus(Duration::from_millis(1500));
                settle(&mut model, current, first, Settlement::Retry { at }).await;
            }
            Step::Dead(first) => {
                settle(&mut model, current, first, Settlement::DeadLetter(Cause::GivenUp)).await;
            }
            Step::Lapse => drop(quick(current, TARGETS[0]).await),
            Step::Wait(ms) => world.clock.advance(Duration::from_millis(ms.into())),
            Step::Flush => {
                current.flush().await;
                model.written();
            }
            Step::Restart | Step::DeleteIndex | Step::Clean => {
                current.close().await;
                drop(store.take());
                if matches!(step, Step::DeleteIndex) {
                    world.delete_index();
                }
                // Everything was written and synced.
                model.written();
                store = Some(world.open());
            }
            Step::Kill => {
                model.deliveries.values_mut().filter(|d| d.1 == Doubt::UntilWritten).for_each(
                    |d| {
                        d.1 = Doubt::Lasting;
                    },
                );
                let disk = world.disk.kill();
                drop(store.take());
                world.use_disk(disk);
                store = Some(world.open());
            }
            Step::PowerCut(seed) => {
                model.deliveries.values_mut().for_each(|d| d.1 = Doubt::Lasting);
                let disk = world.disk.power_cut(seed);
                drop(store.take());
                world.use_disk(disk);
                world.delete_index();
                store = Some(world.open());
            }
        }
    }
    check(&world, &model, store.unwrap()).await;
}

async fn commit(world: &World, model: &mut Model, store: &EmbeddedStore, targets: u8) {
    model.next += 1;
    let body = [&model.next.to_be_bytes()[..], &vec![targets; usize::from(targets) * 700]].concat();
    let wanted: Vec<_> = (0u8..).zip(TARGETS).filter(|(n, _)| targets & (1 << n) != 0).collect();
    let names: Vec<_> = wanted.iter().map(|(_, name)| *name).collect();
    world.commit(store, &body, &names).await.1.unwrap();
    for name in names {
        model.deliveries.insert((body.clone(), name), (Expected::Pending, Doubt::None));
    }
}

async fn quick(store: &EmbeddedStore, target: &str) -> Vec<Lease> {
    store.flush().await;
    tokio::time::timeout(Duration::from_millis(15), store.lease(target, 2))
        .await
        .unwrap_or_default()
}

async fn settle(model: &mut Model, store: &EmbeddedStore, first: bool, settlement: Settlement) {
    let target = TARGETS[usize::from(!first)];
    for lease in quick(store, target).await {
        let key = (lease.delivery.webhook.body.to_vec(), target);
        let known = model.deliveries.get_mut(&key).expect("what is leased was committed");
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
        store.settle(lease, None, settlement);
    }
}

async fn check(world: &World, model: &Model, store: EmbeddedStore) {
    world.clock.advance(Duration::from_secs(10));
    store.flush().await;
    let mut found = BTreeMap::new();
    for target in TARGETS {
        let lanes = store.lanes();
        let counted = lanes.iter().find(|lane| *lane.target == *target).map_or(0, |l| l.pending);
        let mut held = Vec::new();
        while (held.len() as u64) < counted {
            let leased = tokio::time::timeout(PATIENCE, store.lease(target, 64)).await;
            held.extend(leased.expect("what is counted as pending can be leased"));
        }
        held.extend(quick(&store, target).await);
        for lease in &held {
            let key = (lease.delivery.webhook.body.to_vec(), target);
            assert!(found.insert(key, ()).is_none(), "one delivery was leased twice");
        }
    }
    for (key, (expected, doubtful)) in &model.deliveries {
        let pending = found.contains_key(key);
        match expected {
            Expected::Pending => assert!(pending, "lost"),
            Expected::Delivered | Expected::Dead => {
                assert!(!pending || *doubtful != Doubt::None, "due again")
            }
        }
        assert!(is_duplicate(&store, &key.0).await.is_some(), "its key is forgotten");
    }
    assert!(found.keys().all(|key| model.deliveries.contains_key(key)), "invented");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/data/regressions/store.txt",
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_sequence_of_operations_and_crashes_loses_or_invents_anything(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
            .block_on(run(steps));
    }
}
