//! Those around the relay: senders that post as Aryeo does, and targets that come and go.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::clock::SystemClock;
use crate::cli::receiver::{Behaviour, Proof, Received, Receiver};
use crate::cli::sample::{self, Recorded};
use crate::cli::sender::Sender;
use crate::cli::torture::ledger::{Ledger, TARGETS};
use crate::domain::limit::TIMESTAMP_TOLERANCE;
use crate::domain::signature::{SIGNATURE, Scheme, Secret, Signing, Verification};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::webhook::{Header, WebhookId};

/// What the targets are called.
pub(super) const NAMES: [&str; TARGETS] = ["crm", "billing", "orders"];

/// A secret of the run, shared by all: everything is on this machine.
pub(super) const SECRET: &str = "torture";

/// Requests on their way at once.
const SENDERS: usize = 8;

/// As Aryeo does, and so much sooner that a round need not wait for it.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(300);

/// A body of this size is sent where a store is to be filled.
const LARGE: usize = 512 << 10;

/// The bit of a number that says that its body is large.
const IS_LARGE: u64 = 1 << 40;

/// One of so many acknowledged webhooks is sent once more.
const COPIES: u64 = 16;

/// The ledger, and who waits for it to change.
#[derive(Debug, Default)]
pub(super) struct Shared {
    ledger: Mutex<Ledger>,
    changed: Condvar,
}

impl Shared {
    /// Looks at the ledger, or writes in it.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        let result = act(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until something has changed, a moment at most.
    pub(super) fn wait(&self, moment: Duration) {
        drop(self.changed.wait_timeout(self.lock(), moment));
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A target: where it listens, and whether it is down.
#[derive(Debug)]
pub(super) struct Target {
    /// Where.
    pub(super) address: SocketAddr,
    /// Set it, and everything is answered 503.
    pub(super) is_down: Arc<AtomicBool>,
}

/// Starts the targets.
pub(super) fn targets(
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    clock: &Arc<SystemClock>,
) -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::new();
    for number in 0..TARGETS {
        let verification = Verification {
            scheme: Scheme::Aryeo,
            secrets: vec![secret()?],
            header: SIGNATURE,
            tolerance: TIMESTAMP_TOLERANCE,
        };
        let behaviour = Behaviour { verification: Some(verification), ..Behaviour::default() };
        let is_down = Arc::clone(&behaviour.is_down);
        let receiver = Receiver::bind((Ipv4Addr::LOCALHOST, 0).into(), None, behaviour)?;
        let address = receiver.address()?;
        let shared = Arc::clone(shared);
        let clock: Arc<dyn Clock> = clock.clone();
        receiver.serve(tasks, stop, clock, move |received| take(&shared, number, received));
        targets.push(Target { address, is_down });
    }
    Ok(targets)
}

fn secret() -> anyhow::Result<Secret> {
    Secret::new("torture", SECRET.as_bytes()).context("the secret is empty")
}

fn take(shared: &Shared, target: usize, received: &Received) {
    let id = received.webhook_id().and_then(WebhookId::parse);
    let number = number_of(&received.body);
    if received.proof != Proof::Verified {
        let text = format!("{id:?} came to {target} with a signature that is not its own");
        shared.with(|ledger| ledger.invent(text));
    } else if received.status.is_success() {
        match id.zip(number) {
            Some((id, number)) => {
                let digest = digest(&received.body);
                shared.with(|ledger| ledger.take(target, number, digest, id));
            }
            None => shared.with(|ledger| ledger.invent("a delivery without an id".to_owned())),
        }
    }
}

/// What tells one body from another.
fn digest(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

fn number_of(body: &[u8]) -> Option<u64> {
    let [a, b, c, d, e, f, ..] = sample::id_of(body)?;
    Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

/// What is to be sent: new webhooks, and again what got no 2xx.
#[derive(Debug)]
pub(super) struct Work {
    orders: Vec<Recorded>,
    others: Vec<Recorded>,
    now: Timestamp,
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    again: VecDeque<(Instant, u64, u32)>,
    is_large: bool,
    is_held: bool,
    is_over: bool,
    /// Requests on their way.
    under_way: usize,
}

/// What a sender does next.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It sends this one, which was sent so often before.
    Send(u64, u32),
    Wait,
    End,
}

impl Work {
    /// Nothing is sent yet.
    pub(super) fn new(now: Timestamp) -> Self {
        let mut recorded = sample::recorded();
        recorded.retain(|sample| sample.activity.is_some());
        let is_order = |sample: &Recorded| {
            sample.activity.as_deref().is_some_and(|name| name.starts_with("ORDER_"))
        };
        let (orders, others) = recorded.into_iter().partition(is_order);
        Self { orders, others, now, state: Mutex::default() }
    }

    /// Nothing new is sent from now on.
    pub(super) fn end(&self) {
        self.lock().is_over = true;
    }

    /// Whether what is new is large from now on.
    pub(super) fn enlarge(&self, is_large: bool) {
        self.lock().is_large = is_large;
    }

    /// Whether nothing is sent for now.
    pub(super) fn hold(&self, is_held: bool) {
        self.lock().is_held = is_held;
    }

    /// Whether no answer is waited for.
    pub(super) fn is_quiet(&self) -> bool {
        self.lock().under_way == 0
    }

    fn next(&self) -> Turn {
        let mut state = self.lock();
        if state.is_held {
            return Turn::Wait;
        }
        let is_over = state.is_over;
        let is_due = |(due, ..): &(Instant, u64, u32)| is_over || *due <= Instant::now();
        let (number, tries) = if state.again.front().is_some_and(is_due) {
            let Some((_, number, tries)) = state.again.pop_front() else { return Turn::Wait };
            (number, tries)
        } else if is_over {
            return Turn::End;
        } else {
            state.next += 1;
            (if state.is_large { state.next | IS_LARGE } else { state.next }, 0)
        };
        state.under_way += 1;
        Turn::Send(number, tries)
    }

    fn ended(&self) {
        self.lock().under_way -= 1;
    }

    fn again(&self, number: u64, tries: u32) {
        if tries < TRIES {
            self.lock().again.push_back((Instant::now() + WAIT, number, tries));
        }
    }

    /// Even numbers are orders, for which there is a route of their own.
    fn body(&self, number: u64) -> Option<Bytes> {
        let samples = if number.is_multiple_of(2) { &self.orders } else { &self.others };
        let count = u64::try_from(samples.len()).ok().filter(|count| *count > 0)?;
        let sample = samples.get(usize::try_from(number / 2 % count).ok()?)?;
        let [_, _, head @ ..] = number.to_be_bytes();
        let mut random = [0x5a; 16];
        random.iter_mut().zip(head).for_each(|(byte, of)| *byte = of);
        let body = sample::fresh(&sample.name, self.now, random)?;
        Some(if number & IS_LARGE == 0 { body } else { enlarged(&body) })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn enlarged(body: &[u8]) -> Bytes {
    let (last, members) = body.split_last().unwrap_or((&b'}', b"{"));
    let mut large = Vec::with_capacity(body.len() + LARGE);
    large.extend_from_slice(members);
    large.extend_from_slice(b",\"padding\":\"");
    large.resize(large.len() + LARGE, b'x');
    large.extend([b'"', *last]);
    large.into()
}

/// Starts the senders; each ends when there is nothing more to send.
pub(super) fn send(
    tasks: &TaskTracker,
    sender: &Sender,
    work: &Arc<Work>,
    shared: &Arc<Shared>,
    clock: &Arc<SystemClock>,
) -> anyhow::Result<()> {
    let signing = Signing::With {
        scheme: Scheme::Aryeo,
        secret: secret()?,
        also: Vec::new(),
        header: SIGNATURE,
    };
    for _ in 0..SENDERS {
        let (sender, work, shared) = (sender.clone(), Arc::clone(work), Arc::clone(shared));
        let (clock, signing) = (Arc::clone(clock), signing.clone());
        tasks.spawn(async move {
            loop {
                match work.next() {
                    Turn::Send(number, tries) => {
                        let is_done = send_one(&sender, &work, &shared, number, tries, |body| {
                            signing.sign("", body, clock.now())
                        });
                        let is_done = is_done.await;
                        work.ended();
                        if is_done {
                            continue;
                        }
                    }
                    Turn::Wait => {}
                    Turn::End => return,
                }
                // Nobody may listen just now.
                sleep(WAIT / 10).await;
            }
        });
    }
    Ok(())
}

/// Whether it was acknowledged; else it is sent again later.
async fn send_one(
    sender: &Sender,
    work: &Work,
    shared: &Shared,
    number: u64,
    tries: u32,
    sign: impl FnOnce(&[u8]) -> Vec<Header>,
) -> bool {
    let Some(body) = work.body(number) else { return false };
    if tries == 0 {
        shared.with(|ledger| ledger.sending(number, digest(&body)));
    }
    let proof = sign(&body);
    let Some(id) = post(sender, shared, &body, &proof).await else {
        work.again(number, tries + 1);
        return false;
    };
    shared.with(|ledger| ledger.acknowledge(number, id));
    if number.is_multiple_of(COPIES)
        && let Some(id) = post(sender, shared, &body, &proof).await
    {
        shared.with(|ledger| ledger.acknowledge(number, id));
    }
    true
}

/// What it was acknowledged as, if it was.
async fn post(
    sender: &Sender,
    shared: &Shared,
    body: &Bytes,
    proof: &[Header],
) -> Option<WebhookId> {
    let answer = sender.post(body, proof).await.result.ok()?;
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        shared.with(Ledger::refuse);
    }
    let answer = Some(answer).filter(|answer| answer.status.is_success())?;
    let told: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    told.get("webhook_id")?.as_str().and_then(WebhookId::parse)
}

/// Takes a target down, or up again.
pub(super) fn set_down(target: &Target, is_down: bool) {
    target.is_down.store(is_down, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::torture::ledger::wanted;

    #[test]
    fn a_body_tells_its_number_and_is_the_same_whenever_it_is_made() {
        let work = Work::new(Timestamp::from_millis(1_772_359_500_123));
        for number in (1..100).chain([IS_LARGE | 101, IS_LARGE | 102]) {
            let body = work.body(number).unwrap();
            assert_eq!(
                (number_of(&body), work.body(number).unwrap()),
                (Some(number), body.clone())
            );
            assert_eq!(body.len() > LARGE, number > IS_LARGE);
            let facts = crate::domain::activity::read(&body);
            let is_order = facts.activity.as_deref().is_some_and(|name| name.starts_with("ORDER_"));
            assert_eq!(is_order, wanted(number)[2]);
        }
    }

    #[test]
    fn what_got_no_answer_is_sent_three_times_also_at_the_end() {
        let work = Work::new(Timestamp::from_millis(0));
        assert_eq!(work.next(), Turn::Send(1, 0));
        work.again(1, 1);
        work.end();
        assert_eq!(work.next(), Turn::Send(1, 1));
        work.again(1, 2);
        assert_eq!(work.next(), Turn::Send(1, 2));
        work.again(1, 3);
        assert_eq!(work.next(), Turn::End);
    }

    #[test]
    fn nothing_is_sent_while_it_is_held_and_it_is_quiet_when_all_answers_came() {
        let work = Work::new(Timestamp::from_millis(0));
        assert_eq!(work.next(), Turn::Send(1, 0));
        work.hold(true);
        assert_eq!((work.next(), work.is_quiet()), (Turn::Wait, false));
        work.ended();
        assert!(work.is_quiet());
        work.hold(false);
        assert_eq!(work.next(), Turn::Send(2, 0));
    }
}
