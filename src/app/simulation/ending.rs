//! The end of a seed: everything is well again, and everything that was promised is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::life::{self, IndexFiles};
use super::network::Mood;
use super::operate::dead;
use super::play::Play;
use super::time;
use crate::domain::delivery::{Cause, Settlement, State};
use crate::domain::target::BacklogLimit;
use crate::domain::time::Clock as _;
use crate::domain::webhook::WebhookId;
use crate::store::Store as _;
use crate::store::archive::Archive as _;
use crate::store::marks::{Mark, MarkKeeper as _, Word};
use crate::store::story::{Filter, Order, Story};

// With everything well the last delivery is made within this: the longest wait of a retry, and of a probe.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);

type Told = BTreeMap<WebhookId, Story>;

impl Play {
    /// Lets everything come to its end, and checks it.
    pub(super) async fn end(&mut self) {
        self.make_well().await;
        self.settle_down().await;
        let told = self.stories().await;
        self.check(&told);
        // What is dead comes back when an operator wants it, and now the targets take it.
        let told = self.redrive_until_delivered().await;
        // The index is made of the log: another one says the same.
        self.stop().await;
        self.place.put_index(&IndexFiles::default());
        self.reopen().await;
        let again = self.stories().await;
        self.check_rebuilt(&told, &again);
        assert_eq!(self.alive().store.health().damaged_records, 0, "nothing decays here");
        self.stop().await;
    }

    async fn make_well(&mut self) {
        self.tell(|| "all is well".into());
        self.heal();
        if self.was_unreadable {
            // What could not be read is looked for again after a while.
            self.pass(Duration::from_secs(180)).await;
        }
        for target in self.place.targets.clone() {
            self.network.set_mood(&target.name, Mood::Well);
        }
        // Nobody may still be at it: operators, and senders, of whom some come again.
        let mut tasks = std::mem::take(&mut self.alive().tasks);
        self.drive(async { while tasks.join_next().await.is_some() {} }).await;
        self.complete_table();
        self.end_pauses().await;
        let posts = &mut self.ledger.lock().unwrap().posts;
        for post in posts.iter_mut() {
            post.tries_left = 0;
        }
    }

    /// All targets are in the table. One that says nothing new would wake lanes: they are to go on by
    /// themselves.
    fn complete_table(&mut self) {
        let targets = self.place.targets.clone();
        self.alive().table.send_if_modified(|table| {
            let lacks_some = table.targets.len() < targets.len();
            if lacks_some {
                *table = life::table(targets);
            }
            lacks_some
        });
    }

    /// A pause ends by an operator's word, and a suspension by itself: nobody says anything of that.
    async fn end_pauses(&mut self) {
        let store = Arc::clone(&self.alive().store);
        let at = self.alive().clock.now();
        let is_paused = |mark: &Mark| mark.paused_at().is_some();
        if store.marks().borrow().values().any(is_paused) {
            let resumed = store.mark(move |marks| {
                for mark in marks.values_mut().filter(|mark| is_paused(mark)) {
                    mark.word = Some(Word::Resume(at));
                }
            });
            self.drive(resumed).await.unwrap();
        }
    }

    /// Waits until nothing is pending.
    async fn settle_down(&mut self) {
        let until = time::elapsed() + PATIENCE;
        let mut wait = Duration::from_millis(1);
        loop {
            self.turns().await;
            let store = Arc::clone(&self.alive().store);
            self.drive(store.flush()).await;
            self.look();
            let pending: u64 = store.lanes().iter().map(|lane| lane.pending).sum();
            if pending == 0 {
                return;
            }
            let lanes = store.lanes();
            assert!(time::elapsed() < until, "it waits for nothing: {lanes:?}");
            self.pass(wait).await;
            wait = (wait * 2).min(Duration::from_secs(30));
        }
    }

    /// What fills a target's backlog again goes in parts: each time something is delivered.
    async fn redrive_until_delivered(&mut self) -> Told {
        let mut dead = None;
        loop {
            self.redrive_all().await;
            self.settle_down().await;
            let told = self.stories().await;
            self.check(&told);
            let now_dead = self.count_dead(&told);
            if now_dead == 0 {
                return told;
            }
            assert!(dead.is_none_or(|dead| now_dead < dead), "{now_dead} die again and again");
            dead = Some(now_dead);
        }
    }

    async fn redrive_all(&mut self) {
        for target in self.place.targets.clone() {
            let store = Arc::clone(&self.alive().store);
            // A disk that has just healed is tried again in a moment.
            let mut trials = 0;
            loop {
                let at = self.alive().clock.now();
                let redriven = async {
                    let dead = dead(&store, &target.name).await?;
                    store.settle_dead(dead, Settlement::Redriven { at }).await
                };
                let Err(error) = self.drive(redriven).await else { break };
                trials += 1;
                assert!(trials < 5, "{error}, and the disk is well");
                self.pass(Duration::from_secs(2)).await;
            }
        }
    }

    async fn reopen(&mut self) {
        self.life = Some(self.place.open().unwrap());
        self.network.known().life += 1;
        self.alive().stepper.recall();
        self.turns().await;
    }

    /// All that is stored.
    async fn stories(&mut self) -> Told {
        let store = Arc::clone(&self.alive().store);
        let all = async {
            let (mut all, mut behind) = (BTreeMap::new(), None);
            loop {
                let order = Order::OldestFirst;
                let page = store.stories(Filter::default(), behind, order, 100).await.unwrap();
                all.extend(page.stories.into_iter().map(|story| (story.id, story)));
                match page.next {
                    Some(next) => behind = Some(next),
                    None => return all,
                }
            }
        };
        self.drive(all).await
    }

    /// Each that was accepted came to one end, and it is known why.
    fn check(&self, told: &Told) {
        let ledger = self.ledger();
        for post in &ledger.posts {
            let Some(id) = post.accepted.filter(|_| !post.to_be_erased) else { continue };
            let Some(story) = told.get(&id) else {
                // Its retention is over: then everything of it was delivered.
                let delivered = |target: &Arc<str>| self.network.taken(&id.to_string(), target) > 0;
                let ended = |target| delivered(target) || ledger.discarded.contains(target);
                assert!(self.is_past_retention(id), "{id} is gone");
                assert!(post.targets.iter().all(ended), "{id} is gone, and was not delivered");
                let deliveries = post.targets.len() + post.added + post.added_perhaps;
                assert!(deliveries > 0, "{id} is gone, unrouted");
                continue;
            };
            let routed = story.deliveries.iter().zip(&post.targets);
            assert!(routed.clone().all(|(of, target)| of.target == *target), "{story:?}");
            let count = post.targets.len() + post.added;
            let counts = count..=count + post.added_perhaps;
            assert!(counts.contains(&story.deliveries.len()), "{count} were promised: {story:?}");
            let begun = ledger.by_id[&id].1;
            self.check_story(story, begun, ledger.clock_was_wrong_at_a_start);
        }
        for id in told.keys() {
            let post = ledger.by_id.get(id).map(|(post, _)| &ledger.posts[*post]);
            let is_known = post.is_some_and(|of| !of.refused.contains(id));
            assert!(is_known, "{id} is stored, and was refused or posted by nobody");
        }
    }

    /// Whether its retention may be over, by the machine's clock.
    fn is_past_retention(&self, id: WebhookId) -> bool {
        self.was_full || time::latest().since(id.timestamp()) >= self.place.settings.retain
    }

    fn check_story(&self, story: &Story, begun: Duration, clock_was_wrong: bool) {
        for delivery in &story.deliveries {
            let (target, known_as) = (&delivery.target, story.id.known_as(delivery.again));
            let settings = self.place.targets.iter().find(|of| of.name == *target).unwrap();
            match delivery.state {
                State::Delivered => {
                    assert!(self.network.taken(&known_as, target) > 0, "{known_as}: {delivery:?}");
                }
                State::DeadLetter(Cause::GivenUp) => {
                    assert!(self.network.gave_up(&known_as, target), "{known_as}: {delivery:?}");
                }
                State::DeadLetter(Cause::Expired) => {
                    assert!(delivery.attempts > 0, "{known_as} died untried: {delivery:?}");
                    let is_old = time::elapsed() - begun >= settings.retry.keep_for;
                    assert!(is_old || clock_was_wrong, "{known_as} died early: {delivery:?}");
                }
                State::DeadLetter(Cause::BacklogFull) => {
                    let is_limited = settings.backlog_limit != BacklogLimit::default();
                    assert!(is_limited, "{known_as}: {delivery:?}");
                }
                State::DeadLetter(Cause::TargetRemoved) | State::Discarded => {}
                State::Pending | State::DeadLetter(_) => panic!("{known_as}: {delivery:?}"),
            }
        }
    }

    /// An index that is made of the log says what the one before said.
    fn check_rebuilt(&self, before: &Told, after: &Told) {
        // A disk that failed or lost power may have kept of a settlement only what the index has: then the
        // log may say something else under the same number, and either is right.
        let is_exact = !self.index_was_ahead;
        for (id, story) in before {
            match after.get(id) {
                Some(other) if is_exact => {
                    // Which bytes may go is the index's to know; those that are gone stay so.
                    let other = Story { bytes_gone: story.bytes_gone, ..other.clone() };
                    assert_eq!(other, *story, "another index differs");
                }
                Some(other) => {
                    let targets = |of: &Story| -> Vec<Arc<str>> {
                        of.deliveries.iter().map(|of| Arc::clone(&of.target)).collect()
                    };
                    assert_eq!(targets(other), targets(story), "another index differs in {id}");
                }
                None => assert!(self.is_past_retention(*id), "another index lacks {id}"),
            }
        }
        // What retention has ended comes back as long as its record is there, but nothing of it is due.
        let more = after.values().filter(|story| !before.contains_key(&story.id));
        let mut more = more.flat_map(|story| &story.deliveries);
        let nothing_is_due = more.all(|of| of.state != State::Pending);
        assert!(nothing_is_due || !is_exact, "another index has more that is due");
    }

    /// How many were redriven, and are dead letters again, though their target is well.
    fn count_dead(&self, told: &Told) -> usize {
        // Of what a full backlog ended the bytes may be gone.
        let whole = told.values().filter(|story| !story.bytes_gone);
        let over = |state| matches!(state, State::Delivered | State::Discarded);
        let dead = whole.flat_map(|story| &story.deliveries).filter(|of| !over(of.state));
        dead.inspect(|of| {
            let is_full = of.state == State::DeadLetter(Cause::BacklogFull);
            assert!(is_full, "it was redriven, and its target is well: {of:?}");
        })
        .count()
    }
}
