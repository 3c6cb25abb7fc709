//! What a store owes to those who ask about the past.

use std::future::Future;

use bytes::Bytes;

use crate::domain::delivery::Settlement;
use crate::domain::webhook::{NewDelivery, WebhookId};
use crate::store::listing::{Page, Place, ReadError, Summary};
use crate::store::story::{Filter, Order, Stories, Whole};

/// Deliveries for a webhook that is stored.
#[derive(Debug, Clone)]
pub struct Addition {
    /// Which webhook.
    pub id: WebhookId,
    /// As routed.
    pub deliveries: Vec<NewDelivery>,
    /// Also to targets that have one already.
    pub again: bool,
}

/// A webhook that was erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    /// How many of its deliveries were pending and ended with it.
    pub ended: usize,
    /// How long its body was; 0 if it had been erased before, but not to the end.
    pub body_bytes: u64,
}

/// Why bytes of a webhook may still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EraseError {
    /// Nothing was done, or not all: it can be asked for again.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is over, and told to nobody any more, but a part of the store that has bytes of it could not
    /// be written again now.
    #[error("bytes of it remain in segment {segment}, which can't be written again now")]
    Remains {
        /// The number of the segment.
        segment: u64,
    },
}

/// What is stored, for an operator: all of it can be read, and dead letters can be brought back.
///
/// # What every store promises
///
/// - **Everything acknowledged is seen.** Each answer sees all that was acknowledged and settled before
///   it was asked for.
/// - **Order.** [`page`](Self::page) and [`stories`](Self::stories) go through all webhooks that are
///   kept in the order of their ids: that is the order in which they were accepted, and what the store
///   does to keep a webhook (such as writing it down again elsewhere) does not change its place.
/// - **Nothing is held.** Whoever reads pulls page after page and holds nothing between two of them: no
///   lock, no snapshot. Each webhook that is stored from the first page to the last is seen exactly
///   once. What retention ends meanwhile may be missing. What is erased is never seen again.
/// - **Nobody waits.** Reading delays no commit and no lease by more than a page.
/// - **An operator's word is kept.** When [`settle_dead`](Self::settle_dead), [`add`](Self::add) or
///   [`erase`](Self::erase) answers, what it did survives `kill -9` and a power cut.
pub trait Archive: Send + Sync + 'static {
    /// The webhooks behind a place, the oldest first, without their bodies: at least one if any
    /// follows, and at most `max`; a store may answer fewer. Damaged ones are left out and counted;
    /// those whose bytes are gone are left out.
    ///
    /// To go through all since a moment, begin with [`Place::since`] and go on with each page's
    /// `next` until there is none.
    fn page(
        &self,
        after: Place,
        max: usize,
    ) -> impl Future<Output = Result<Page, ReadError>> + Send;

    /// The exact bytes of a webhook that a page named; none if it is no longer stored.
    fn body(&self, of: &Summary) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Webhooks that `filter` wants and how far each has come, at most `max`, behind a place in this
    /// order. A store may answer fewer, or none yet: go on with `next` until there is none.
    fn stories(
        &self,
        filter: Filter,
        behind: Option<Place>,
        order: Order,
        max: usize,
    ) -> impl Future<Output = Result<Stories, ReadError>> + Send;

    /// One webhook with all that is stored of it; none if it is not stored.
    fn whole(&self, id: WebhookId)
    -> impl Future<Output = Result<Option<Whole>, ReadError>> + Send;

    /// Adds deliveries to stored webhooks. To a target that has one of that webhook already none is
    /// added, unless it is to be sent `again`: then it is a repeat on purpose, with a number of its own.
    /// Answers how many were added to each, once they are durable; a webhook that is not stored gets
    /// none. Nothing is added to one webhook twice in a call.
    fn add(
        &self,
        additions: Vec<Addition>,
    ) -> impl Future<Output = Result<Vec<usize>, ReadError>> + Send;

    /// Settles dead letters by an operator's word: [`Settlement::Redriven`] or
    /// [`Settlement::Discarded`]. Each is a webhook and which of its deliveries; what is no dead
    /// letter is passed over, and so is one to be redriven whose bytes are gone
    /// ([`Story::bytes_gone`](crate::store::story::Story::bytes_gone)). Answers how many were, once that is durable.
    fn settle_dead(
        &self,
        dead: Vec<(WebhookId, u16)>,
        settlement: Settlement,
    ) -> impl Future<Output = Result<usize, ReadError>> + Send;

    /// Erases a webhook: what is pending of it ends, and it is told to nobody any more. An attempt that
    /// is under way is not called back. When this answers, what is stored has neither its body nor its
    /// headers nor what targets answered; that it was there is known until its duplicates need not be.
    /// None if nothing of it is stored. After a crash, or an error, it can be asked for again.
    fn erase(
        &self,
        id: WebhookId,
    ) -> impl Future<Output = Result<Option<Erased>, EraseError>> + Send;
}
