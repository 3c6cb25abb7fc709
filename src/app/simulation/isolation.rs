//! A target that is dead for three days beside one that is well, in simulated time: nothing else disturbs it,
//! so the one must not notice the other at all.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::yield_now;

use super::life::{self, Heard, Life, Place};
use super::network::{Mood, Targets};
use super::{number, time};
use crate::domain::target::{BacklogLimit, Rate};
use crate::store::Store as _;

const WELL: &str = "well";
const DEAD: &str = "dead";
const AWAY: Duration = Duration::from_secs(72 * 3600);
// What waits for the dead one in the end, unless the environment says otherwise.
const BACKLOG: u64 = 3_000;
const DRAINED_PER_SECOND: u32 = 50;
const TICK: Duration = Duration::from_millis(50);

struct Scene {
    network: Targets,
    life: Life,
    sent: u64,
    // When each that was accepted was posted.
    posted: Arc<Mutex<Vec<(String, Duration)>>>,
    _place: Place,
}

impl Scene {
    fn new() -> Self {
        time::begin(1);
        let network = Targets::default();
        let mut random = fastrand::Rng::with_seed(1);
        let targets = [WELL, DEAD].map(|name| {
            let mut target = life::target(name, &mut random);
            target.retry.max = Duration::from_secs(3600);
            target.retry.keep_for = AWAY + Duration::from_secs(24 * 3600);
            target.concurrency = 16;
            target.backlog_limit = BacklogLimit::default();
            if name == DEAD {
                let count = NonZeroU32::new(DRAINED_PER_SECOND).unwrap();
                target.rate_limit = Some(Rate { count, per: Duration::from_secs(1) });
            }
            target
        });
        let mut place = Place::new(network.clone(), targets.into());
        place.settings.segment_bytes = 256 << 10;
        let mut life = place.open().unwrap();
        network.known().life = 1;
        life.stepper.recall();
        Self { network, life, sent: 0, posted: Arc::default(), _place: place }
    }

    async fn pass(&mut self, time: Duration) {
        yield_now().await;
        while self.network.ready() > 0 {
            self.network.answer(0);
        }
        yield_now().await;
        self.life.stepper.commit();
        self.life.stepper.index();
        yield_now().await;
        tokio::time::advance(time).await;
        assert_eq!(self.life.broken(), None);
    }

    fn post(&mut self, targets: &[&str]) {
        self.sent += 1;
        let body = Bytes::copy_from_slice(&self.sent.to_be_bytes());
        let targets: Vec<Arc<str>> = targets.iter().map(|name| (*name).into()).collect();
        let webhook = self.life.webhook(&body, &targets);
        let (id, store, posted) =
            (webhook.id.to_string(), Arc::clone(&self.life.store), Arc::clone(&self.posted));
        let at = time::elapsed();
        self.life.tasks.spawn(async move {
            let Heard::Committed(Ok(())) = life::post(&store, webhook).await else {
                panic!("it was refused")
            };
            posted.lock().unwrap().push((id, at));
        });
    }

    /// Both targets get a hundred a second for some seconds; how long each took to the one that is well.
    async fn waits(&mut self) -> Vec<Duration> {
        let before = self.network.known().exchanges.len();
        self.posted.lock().unwrap().clear();
        for ms in 0..3_000 {
            if ms % 10 == 0 {
                self.post(&[WELL, DEAD]);
            }
            self.pass(Duration::from_millis(1)).await;
        }
        for _ in 0..100 {
            self.pass(Duration::from_millis(1)).await;
        }
        let known = self.network.known();
        let exchanges: Vec<_> =
            known.exchanges.iter().skip(before).filter(|sent| *sent.target == *WELL).collect();
        let posted = self.posted.lock().unwrap();
        assert_eq!((exchanges.len(), posted.len()), (300, 300));
        let mut waits: Vec<_> = posted.iter().map(|(id, at)| (at, id)).collect();
        waits.sort();
        let arrived = |id: &str| exchanges.iter().find(|sent| sent.id == id).unwrap().begun;
        waits.into_iter().map(|(at, id)| arrived(id) - *at).collect()
    }

    fn pending(&self) -> u64 {
        let lanes = self.life.store.lanes();
        lanes.iter().find(|lane| &*lane.target == DEAD).map_or(0, |lane| lane.pending)
    }
}

async fn beside_nobody() -> Vec<Duration> {
    let mut scene = Scene::new();
    scene.pass(AWAY).await;
    scene.waits().await
}

/// The waits, and the scene with all that is pending.
async fn beside_a_dead_one(backlog: u64) -> (Vec<Duration>, Scene) {
    let mut scene = Scene::new();
    scene.network.set_mood(DEAD, Mood::Refusing);
    let steps = backlog.min(3_000);
    for step in 0..steps {
        for _ in 0..backlog / steps + u64::from(step < backlog % steps) {
            scene.post(&[DEAD]);
        }
        scene.pass(AWAY / u32::try_from(steps).unwrap()).await;
    }
    assert_eq!(scene.pending(), backlog);
    let waits = scene.waits().await;
    assert_eq!(scene.pending(), backlog + 300);
    (waits, scene)
}

#[test]
fn a_target_dead_for_three_days_is_not_noticed_and_gets_all_of_it_at_its_rate() {
    let backlog = number("SIMULATION_BACKLOG").unwrap_or(BACKLOG);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let alone = beside_nobody().await;
        let (beside, mut scene) = beside_a_dead_one(backlog).await;
        assert_eq!(beside, alone, "one target's failure slows another");
        // It is back, and nothing of its backlog has died meanwhile.
        scene.network.set_mood(DEAD, Mood::Well);
        let before = scene.network.known().exchanges.len();
        while scene.pending() > 0 {
            scene.pass(TICK).await;
        }
        assert!(scene.life.store.lanes().iter().all(|lane| lane.dead.is_empty()));
        let known = scene.network.known();
        assert_eq!(known.taken.len() as u64, backlog + 600, "each was taken");
        assert!(known.taken.values().all(|times| *times == 1), "each was taken once");
        let begun: Vec<_> = known.exchanges.iter().skip(before).map(|sent| sent.begun).collect();
        let second = usize::try_from(DRAINED_PER_SECOND).unwrap();
        let fastest =
            begun.windows(second + 2).map(|some| some[second + 1] - some[0]).min().unwrap();
        assert!(fastest + TICK >= Duration::from_secs(1), "faster than its rate: {fastest:?}");
        let whole = *begun.last().unwrap() - begun[0];
        let expected = Duration::from_secs((backlog + 300) / u64::from(DRAINED_PER_SECOND));
        println!("{} drained in {whole:?}, at its rate in {expected:?}", backlog + 300);
        assert!(whole < expected * 2, "it does not drain at its rate: {whole:?}, not {expected:?}");
    });
}
