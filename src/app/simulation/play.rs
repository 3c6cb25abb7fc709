//! One seed, from its first step to its last.

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::yield_now;

use super::Outcome;
use super::ledger::{Ledger, Post};
use super::life::{self, Heard, IndexFiles, Life, Place};
use super::network::{Mood, Targets};
use super::{number, time};
use crate::store::Store as _;
use crate::store::embedded::sim::Faults;

const NAMES: [&str; 3] = ["crm", "billing", "archive"];
const TURNS_MAX: u32 = 200_000;

/// What may happen in a seed.
#[derive(Debug)]
struct Kind {
    steps: u32,
    faults: bool,
    jumps: bool,
}

/// One seed.
pub(super) struct Play {
    pub(super) random: fastrand::Rng,
    pub(super) place: Place,
    pub(super) life: Option<Life>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) network: Targets,
    pub(super) is_failing: bool,
    /// Nothing could be read for a while: until it can the index may lack what lanes have.
    pub(super) was_unreadable: bool,
    /// Where room is short what is delivered goes before its time.
    pub(super) was_full: bool,
    /// The index may know of settlements that the log has lost.
    pub(super) index_was_ahead: bool,
    kind: Kind,
    seen: usize,
    has_recalled: bool,
    // As it was once, with the segments that were there.
    kept_index: Option<(IndexFiles, Vec<PathBuf>)>,
    _log: Option<tracing::subscriber::DefaultGuard>,
}

impl Play {
    pub(super) fn new(seed: u64) -> Self {
        time::begin(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let kind = Kind {
            steps: random.u32(20..400),
            faults: random.u8(..) < 128,
            jumps: random.u8(..) < 64,
        };
        let tells = number("SIMULATION_SEED").is_some();
        let network = Targets::default();
        let targets = NAMES.iter().map(|name| life::target(name, &mut random)).collect();
        let mut place = Place::new(network.clone(), targets);
        place.settings.segment_bytes = [8 << 10, 16 << 10, 64 << 10][random.usize(..3)];
        place.settings.sweep_wait = Duration::from_secs(random.u64(1..60));
        // Room for one body in each lane, for a few small ones, for most, for all.
        place.settings.delivery_memory = [0, 6 << 10, 24 << 10, 64 << 20][random.usize(..4)];
        place.settings.retain = Duration::from_secs([60, 3600, 72 * 3600][random.usize(..3)]);
        let mut ledger = Ledger::default();
        (ledger.tells, ledger.retain) = (tells, place.settings.retain);
        let ledger = Arc::new(Mutex::new(ledger));
        let log = tells.then(|| {
            println!("{kind:?}");
            let shown = tracing_subscriber::fmt()
                .without_time()
                .with_ansi(false)
                .with_test_writer()
                .finish();
            crate::telemetry::logging::capture(shown)
        });
        Self {
            random,
            place,
            life: None,
            ledger,
            network,
            is_failing: false,
            was_unreadable: false,
            was_full: false,
            index_was_ahead: kind.faults,
            kind,
            seen: 0,
            has_recalled: false,
            kept_index: None,
            _log: log,
        }
    }

    pub(super) async fn run(mut self) -> Outcome {
        self.open();
        for _ in 0..self.kind.steps {
            self.step().await;
            self.look();
        }
        self.end().await;
        let accepted = self.ledger().posts.iter().filter(|post| post.accepted.is_some()).count();
        let lives = self.network.known().life;
        Outcome { accepted, exchanges: self.seen, lives, digest: self.ledger().digest() }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub(super) fn alive(&mut self) -> &mut Life {
        self.life.as_mut().unwrap()
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        self.ledger().tell(what);
    }

    /// Whether anything happened that must not.
    pub(super) fn look(&mut self) {
        let new: Vec<_> = self.network.known().exchanges.iter().skip(self.seen).cloned().collect();
        self.seen += new.len();
        let mut ledger = self.ledger.lock().unwrap();
        for exchange in new {
            ledger.sent(&exchange);
        }
        let broken = self.life.as_mut().and_then(Life::broken);
        let findings = self.life.as_ref().map_or(0, |life| life.store.health().sweep_findings);
        let violation = ledger.violation.clone().or(broken);
        drop(ledger);
        assert_eq!(violation, None);
        assert!(findings == 0 || self.was_unreadable, "the sweep found {findings}");
    }

    async fn step(&mut self) {
        self.send_what_is_due();
        match self.random.u32(..1000) {
            0..300 => self.turn().await,
            300..420 => self.answer().await,
            420..560 => self.post(),
            560..680 => self.pass_some(1..50).await,
            680..765 => self.pass_some(100..5_000).await,
            765..770 => self.outage().await,
            770..800 => self.pass_some(60_000..7_200_000).await,
            800..860 => self.change_mood(),
            860..885 => self.end_life().await,
            885..915 if self.kind.faults => self.fail(),
            915..930 => self.heal(),
            930..940 if self.kind.jumps => {
                let by = self.random.i64(-200_000..200_000);
                self.tell(|| format!("the machine's clock jumps by {by} s"));
                time::jump(by);
            }
            940..985 => self.operate(),
            985..995 => self.change_table(),
            995.. => {
                self.kept_index = Some((self.place.index_files(), self.place.disk.files()));
            }
            _ => {}
        }
    }

    /// Somebody's turn.
    pub(super) async fn turn(&mut self) {
        let who = self.random.u8(..4);
        let recalls = who == 3 && !self.has_recalled;
        self.has_recalled |= recalls;
        let life = self.alive();
        match who {
            0 => life.stepper.commit(),
            1 => life.stepper.index(),
            3 if recalls => life.stepper.recall(),
            _ => yield_now().await,
        }
    }

    /// Some target's answer arrives.
    async fn answer(&mut self) {
        let ready = self.network.ready();
        if ready > 0 {
            self.network.answer(self.random.usize(..ready));
        }
        yield_now().await;
    }

    /// Everybody's turn.
    pub(super) async fn turns(&mut self) {
        for _ in 0..3 {
            yield_now().await;
            while self.network.ready() > 0 {
                self.network.answer(0);
            }
            yield_now().await;
            let life = self.alive();
            life.stepper.commit();
            life.stepper.index();
        }
        yield_now().await;
    }

    async fn pass_some(&mut self, millis: Range<u64>) {
        let time = Duration::from_millis(self.random.u64(millis));
        self.pass(time).await;
    }

    /// Time passes, in a few steps in which the relay gets on.
    pub(super) async fn pass(&mut self, time: Duration) {
        if time >= Duration::from_secs(1) && !self.has_recalled {
            // Nobody waits for that longer than a few seconds.
            self.has_recalled = true;
            self.alive().stepper.recall();
        }
        let parts = if time > Duration::from_secs(10) { 12 } else { 1 };
        for _ in 0..parts {
            if parts > 1 {
                self.turns().await;
            }
            tokio::time::advance(time / parts).await;
            self.alive().clock.look();
        }
        if parts > 1 {
            self.nobody_sleeps().await;
        }
    }

    /// Lets the relay get on until something is done.
    pub(super) async fn drive<T>(&mut self, until: impl Future<Output = T>) -> T {
        let mut until = pin!(until);
        for turn in 1..TURNS_MAX {
            let polled = std::future::poll_fn(|context| Poll::Ready(until.as_mut().poll(context)));
            if let Poll::Ready(done) = polled.await {
                return done;
            }
            self.turns().await;
            if turn % 4 == 0 {
                tokio::time::advance(Duration::from_millis(5)).await;
            }
        }
        panic!("it never ends");
    }

    fn open(&mut self) {
        self.has_recalled = false;
        self.was_unreadable = false;
        if time::ahead().abs() > 200 {
            self.ledger().clock_was_wrong_at_a_start = true;
        }
        let life = self.place.open().or_else(|error| {
            assert!(self.is_failing, "{error}, but the disk is sound");
            self.heal();
            self.place.open()
        });
        self.life = Some(life.unwrap());
        self.network.known().life += 1;
        // Most starts wait until the index knows all.
        if self.random.u8(..) < 200 {
            self.alive().stepper.index();
        }
    }

    /// Who posts comes again until somebody has told him that it is there.
    fn send_what_is_due(&mut self) {
        let now = time::elapsed();
        let due = |post: &Post| post.tries_left > 0 && post.next_try <= now;
        let due: Vec<usize> = {
            let posts = &self.ledger().posts;
            (0..posts.len()).filter(|n| due(&posts[*n])).collect()
        };
        for post in due {
            self.try_post(post);
        }
    }

    fn post(&mut self) {
        let wanted = self.random.u8(..8);
        let wants = |n: &usize| wanted & (1 << n) != 0;
        let targets = (0..NAMES.len()).filter(wants).map(|n| NAMES[n].into()).collect();
        self.post_to(targets);
    }

    pub(super) fn post_to(&mut self, targets: Vec<Arc<str>>) {
        let bytes = if self.random.u8(..) < 200 { 40 } else { 3000 };
        let count = self.ledger().posts.len();
        let fill = self.random.u8(..);
        let body = [&count.to_be_bytes()[..], &vec![fill; self.random.usize(..bytes)]].concat();
        let body = Bytes::from(body);
        self.ledger().posts.push(Post { body, targets, tries_left: 3, ..Post::default() });
        self.try_post(count);
    }

    fn try_post(&mut self, number: usize) {
        let heard = self.random.u8(..) < 230;
        let wait = Duration::from_millis(self.random.u64(10..60_000));
        let life = self.life.as_mut().unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        let post = &mut ledger.posts[number];
        post.tries_left -= 1;
        post.next_try = time::elapsed() + wait;
        let webhook = life.webhook(&post.body, &post.targets);
        let (id, store) = (webhook.id, Arc::clone(&life.store));
        ledger.begun(number, id);
        drop(ledger);
        let ledger = Arc::clone(&self.ledger);
        life.tasks.spawn(async move {
            let told = life::post(&store, webhook).await;
            let mut ledger = ledger.lock().unwrap();
            match told {
                Heard::Committed(result) => ledger.committed(number, id, result, heard),
                Heard::Duplicate(first) => ledger.duplicate(number, id, first, heard),
            }
        });
    }

    fn change_mood(&mut self) {
        let target = NAMES[self.random.usize(..NAMES.len())];
        let mood = match self.random.u8(..12) {
            0 => Mood::Slow(Duration::from_millis(self.random.u64(1..9000))),
            1 => Mood::Failing,
            2 => Mood::Refusing,
            3 => Mood::Hanging,
            4 => Mood::Breaking,
            5 => Mood::Busy(self.random.u32(1..600)),
            6 => Mood::Gone,
            _ => Mood::Well,
        };
        self.tell(|| format!("{target} is {mood:?}"));
        self.network.set_mood(target, mood);
    }

    fn change_table(&mut self) {
        let missing = NAMES[self.random.usize(..NAMES.len())];
        let mut targets = self.place.targets.clone();
        if self.random.bool() {
            self.tell(|| format!("{missing} is not in the table"));
            targets.retain(|target| *target.name != *missing);
            self.ledger().removed.insert(missing.into());
        } else {
            self.tell(|| "all targets are in the table".into());
        }
        self.alive().table.send_replace(life::table(targets));
    }

    fn fail(&mut self) {
        let nth = Some(self.random.u64(1..6));
        let faults = match self.random.u8(..7) {
            0 => Faults { broken_at_write: nth, ..Faults::default() },
            1 => Faults { short_at_write: nth, ..Faults::default() },
            2 => Faults { broken_at_sync: nth, ..Faults::default() },
            3 => Faults { broken_at_dir_sync: nth, ..Faults::default() },
            4 => Faults { full_at_write: nth, ..Faults::default() },
            5 => Faults { no_create: true, ..Faults::default() },
            _ => Faults { broken_from_read: nth, ..Faults::default() },
        };
        self.tell(|| format!("the disk fails: {faults:?}"));
        self.is_failing = true;
        self.was_full |= faults.full_at_write.is_some() || faults.no_create;
        self.was_unreadable |= faults.broken_from_read.is_some();
        self.place.disk.set_faults(faults);
    }

    pub(super) fn heal(&self) {
        // What failed once may still be unwritten: only the end of a life ends that.
        self.place.disk.heal();
    }

    async fn end_life(&mut self) {
        match self.random.u8(..4) {
            0 => {
                self.heal();
                self.stop().await;
                self.kept_index = None;
            }
            1 | 2 => self.die("is killed", |play| play.place.disk.kill()),
            _ => {
                let seed = self.random.u64(..);
                self.index_was_ahead = true;
                // Before a segment goes the index is made durable: no cut takes it back behind that.
                let files = self.place.disk.files();
                let is_whole = |kept: &Vec<PathBuf>| kept.iter().all(|file| files.contains(file));
                let kept = self.kept_index.take().filter(|(_, kept)| is_whole(kept));
                self.die("loses power", |play| play.place.disk.power_cut(seed));
                self.lose_some_of_the_index(kept.map(|(index, _)| index));
            }
        }
        if self.random.u8(..4) == 0 {
            self.tell(|| "the index is gone".into());
            self.place.put_index(&IndexFiles::default());
        }
        self.open();
    }

    /// Of an index a power cut leaves what was synced, or more, up to all of it.
    fn lose_some_of_the_index(&mut self, kept: Option<IndexFiles>) {
        let files = match self.random.u8(..3) {
            0 => self.place.index_files().without_journal(),
            1 => kept.unwrap_or_else(|| self.place.index_files()),
            _ => return,
        };
        self.place.put_index(&files);
    }

    /// The relay ends in the middle of whatever it does.
    fn die(&mut self, how: &str, end: impl FnOnce(&Self) -> crate::store::embedded::sim::SimDisk) {
        self.tell(|| format!("the relay {how}"));
        let number = {
            let mut known = self.network.known();
            known.dead = known.life;
            known.life
        };
        let files = self.place.index_files();
        let disk = end(self);
        // An index that is closed in order has no journal any more.
        drop(self.life.take());
        self.place.put_index(&files);
        self.place.use_disk(disk);
        self.is_failing = false;
        let mut ledger = self.ledger();
        ledger.last_unclean = Some(number);
        ledger.died();
        // The index has an operator's word before the log has.
        let is_ahead = std::mem::take(&mut ledger.deciding) > 0;
        drop(ledger);
        self.index_was_ahead |= is_ahead;
    }

    /// The relay ends in order: attempts in flight, then the store.
    pub(super) async fn stop(&mut self) {
        self.tell(|| "the relay stops".into());
        let life = self.alive();
        life.stop.cancel();
        let mut dispatcher = std::mem::take(&mut life.dispatcher);
        self.drive(async { while dispatcher.join_next().await.is_some() {} }).await;
        let store = Arc::clone(&self.alive().store);
        self.drive(store.close()).await;
        drop(store);
        let number = self.network.known().life;
        drop(self.life.take());
        let mut ledger = self.ledger();
        if self.is_failing {
            ledger.last_unclean = Some(number);
        }
        ledger.died();
        drop(ledger);
        self.is_failing = false;
    }
}
