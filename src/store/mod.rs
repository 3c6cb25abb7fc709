//! The durable promises: what a store owes to those who accept and those who deliver.
//!
//! [`Store`] is the contract; [`embedded`] keeps it in one directory of one process.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::delivery::{Cause, Settlement};
use crate::domain::limit::ANSWER_WAIT_MAX;
use crate::domain::outcome::Attempt;
use crate::domain::source::DuplicateWindows;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, Header, Webhook, WebhookId};
use crate::store::claims::Claim;
use crate::store::claims::Claimed;

pub mod archive;
pub mod claims;
pub mod embedded;
pub mod listing;
pub mod marks;
pub mod story;

/// Keeps webhooks and their deliveries.
///
/// # What every store promises
///
/// - **Durable before `Ok`.** When [`commit`](Self::commit) answers `Ok`, the webhook and all its
///   deliveries survive `kill -9` and a power cut. When it answers an error, the sender may be told
///   to come again. It never answers `Ok` for what it can't keep.
/// - **Not cancelled.** A commit that was begun is finished, whether or not its future is polled.
/// - **Each delivery is somewhere.** It is *due* (now or later), *leased*, *delivered*, a *dead
///   letter* or *discarded*; a due one is handed out by [`lease`](Self::lease) in order of its due
///   time; a lease that is dropped unsettled makes it due again; after a restart what was leased is
///   due. Repeats carry the same id.
/// - **Lanes are apart.** No target's backlog delays another target's leases, nor any commit.
/// - **Settlements are kept**, but nobody waits for that: after a power cut a delivery may be due
///   again although it was settled within the last moments; after `kill -9` within the last
///   milliseconds.
/// - **Duplicates.** [`claim`](Self::claim) finds a committed webhook with the same key inside the
///   window, also after a restart; while the first is being committed, a second claim waits for it;
///   if that commit fails, the next claimant is the first. In doubt it is a first, never a
///   duplicate.
/// - **Bytes are exact.** What is leased is what was committed.
/// - **Damage is local.** A flipped bit is noticed, costs one record, is counted, and stops nothing.
/// - **What is stored can be read**, and dead letters brought back: see [`archive::Archive`].
/// - **Bounds.** Memory does not grow with the backlog. What can't be taken is refused.
pub trait Store: Send + Sync + 'static {
    /// Asks for the right to commit a webhook with this key.
    fn claim(
        &self,
        key: DuplicateKey,
        windows: DuplicateWindows,
    ) -> impl Future<Output = Claim> + Send;

    /// Makes a webhook and its deliveries durable. `Ok` means durable.
    fn commit(
        &self,
        webhook: Webhook,
        claimed: Claimed,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Waits until a delivery to `target` is due, and leases at least one and at most `max`.
    /// Dropping the future loses nothing.
    fn lease(
        &self,
        target: &str,
        max: usize,
        pick: Pick,
    ) -> impl Future<Output = Vec<Lease>> + Send;

    /// Settles a leased delivery. `attempt` is the exchange it rests on, if there was one.
    fn settle(&self, lease: Lease, attempt: Option<Attempt>, settlement: Settlement);

    /// Ends deliveries to `target` that began before `started_before` without an attempt, at most
    /// `max` of them, as dead letters `cause`. Answers how many.
    fn expire(
        &self,
        target: &str,
        started_before: Timestamp,
        max: usize,
        cause: Cause,
    ) -> impl Future<Output = usize> + Send;

    /// Where the pending deliveries to `target` and its dead letters pin more than `bytes_max` bytes of
    /// the store, first spares the oldest dead letters, then ends the oldest pending ones without an
    /// attempt, as dead letters [`Cause::BacklogFull`]: as many as it takes, but at most `max` of both,
    /// and none that is leased. Answers how many. What they pin is told by [`LaneCounts::backlog_bytes`]
    /// and [`LaneCounts::dead_letters_bytes`]. Dead letters that are spared, or of a full backlog, pin
    /// nothing: their bytes go as those of a delivered one do, and they stay listed.
    fn relieve(
        &self,
        target: &str,
        bytes_max: u64,
        max: usize,
    ) -> impl Future<Output = Relieved> + Send;

    /// What each lane holds, for every target that was ever named and still has something.
    fn lanes(&self) -> Vec<LaneCounts>;

    /// Whether commits get through. Answered from memory: a disk that hangs holds nobody up here.
    fn pulse(&self) -> Pulse;

    /// How the store is. Answered from memory, as [`pulse`](Self::pulse) is.
    fn health(&self) -> Health;

    /// How large the store is. The disk is asked for that: with a disk that hangs there is no
    /// answer.
    fn sizes(&self) -> Sizes;

    /// Takes nothing more, writes everything down, and answers when that is done.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Which of those that are due are leased first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Those that are due for longest.
    LongestDue,
    /// Those that were never tried, as far as they are among the few hundred that are due for
    /// longest: a delivery that its target does not digest must not be the only one it is asked by.
    UntriedFirst,
}

/// Why a webhook could not be committed. Each means: not acknowledged, come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Closed, or closing.
    #[error("the store is closed")]
    Closed,
    /// No room on the disk.
    #[error("the disk is full")]
    DiskFull,
    /// The queue before the disk is full.
    #[error("too many commits are waiting")]
    Overloaded,
    /// The disk refused.
    #[error("the disk does not take it")]
    Unavailable,
}

/// Whether commits get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    /// Why nothing can be committed now, if so: the last commit failed and no trial has succeeded,
    /// or the disk holds one up.
    pub failing: Option<CommitError>,
    /// For how long the disk has held up those who commit; zero if they wait for no disk.
    pub held_up_for: Duration,
}

impl Pulse {
    /// Whether the disk holds up a commit for longer than any sender waits.
    pub fn is_held_up(&self) -> bool {
        self.held_up_for > ANSWER_WAIT_MAX
    }
}

/// How a store is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// As in [`Pulse::failing`].
    pub failing: Option<CommitError>,
    /// Records found damaged since the start.
    pub damaged_records: u64,
    /// What the sweep of log, index and lanes found since the start that should not be.
    pub sweep_findings: u64,
    /// How far back duplicates are known at most, less than the window where too many came.
    pub duplicates_reach: Option<Duration>,
    /// The newest webhook of each source, for the alert on silence.
    pub newest_by_source: Vec<(Box<str>, Timestamp)>,
    /// How many bytes the store may take, as of a moment ago; none if its disk has not said that yet.
    pub bytes_max: Option<u64>,
    /// What shares of it are shares of. Where nobody has set a limit that is the most that the disk has had
    /// for it since the start, and none in the first minute: others may have filled the disk, and what
    /// waits for targets is theirs to take first.
    pub shares_of: Option<u64>,
    /// Bytes that webhooks without a delivery take, as of a moment ago. They have a quarter of what the
    /// store may take: beyond it the oldest go.
    pub unrouted_bytes: u64,
    /// How many of them went so since the start, before their retention was over.
    pub unrouted_removed: u64,
}

/// How large a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Bytes that the store takes on its disk.
    pub bytes: u64,
    /// Bytes that it may still take: what its disk has left, or less by its limit.
    pub available_bytes: u64,
}

/// What [`Store::relieve`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relieved {
    /// Dead letters whose bytes are not kept for them any more.
    pub spared: usize,
    /// Deliveries that were ended.
    pub ended: usize,
}

/// What a lane holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneCounts {
    /// The target's name.
    pub target: Box<str>,
    /// Due, now or later, and leased.
    pub pending: u64,
    /// When the oldest pending one was accepted (or redriven).
    pub oldest: Option<Timestamp>,
    /// Bytes that its pending deliveries pin, as of a moment ago: of each the bytes that its webhook
    /// takes in the store, whoever else needs them.
    pub backlog_bytes: u64,
    /// The same of its dead letters: of those whose bytes are kept for them.
    pub dead_letters_bytes: u64,
    /// Dead letters by cause.
    pub dead: Vec<(Cause, u64)>,
}

/// A claim on a delivery. Dropped unsettled, it lapses: the delivery is due again.
pub struct Lease {
    /// What is to be delivered.
    pub delivery: Delivery,
    owner: Option<Arc<dyn LeaseOwner>>,
}

impl Lease {
    /// A lease that goes back to `owner` when it is dropped.
    pub fn new(delivery: Delivery, owner: Arc<dyn LeaseOwner>) -> Self {
        Self { delivery, owner: Some(owner) }
    }

    /// Takes the delivery out: whoever calls this settles it.
    pub fn into_delivery(mut self) -> Delivery {
        self.owner = None;
        self.delivery.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.lapse(&self.delivery);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

/// Who takes back a lease that lapsed.
pub trait LeaseOwner: Send + Sync {
    /// Makes the delivery due again at once.
    fn lapse(&self, delivery: &Delivery);
}

/// One webhook on its way to one target.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The webhook with its exact bytes; its `deliveries` are not repeated here.
    pub webhook: Arc<Webhook>,
    /// Which of the webhook's deliveries.
    pub number: u16,
    /// Which repeat on purpose, 0 for the first.
    pub again: u32,
    /// The target's name.
    pub target: Arc<str>,
    /// The routes' headers, rendered at acceptance.
    pub headers: Arc<[Header]>,
    /// Attempts so far.
    pub attempts: u32,
    /// When its time began: acceptance or redrive.
    pub started_at: Timestamp,
    /// When it was due.
    pub due_at: Timestamp,
}

impl Delivery {
    /// Its webhook's id.
    pub fn webhook_id(&self) -> WebhookId {
        self.webhook.id
    }
}
