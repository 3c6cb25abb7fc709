//! What is stored, page by page: for those who ask about the past.

use std::sync::Arc;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{Resource, WebhookId};

/// A place in the order of what is stored, between two webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

impl Place {
    /// Before everything.
    pub const START: Self = Self(0);

    /// Before everything that was received at this moment or later.
    pub fn since(moment: Timestamp) -> Self {
        Self((moment.as_millis() << 12).saturating_sub(1))
    }

    /// Behind a webhook, whether it is still stored or not.
    pub fn behind(id: WebhookId) -> Self {
        Self(id.key())
    }

    /// At the webhook with this key.
    pub fn at_key(key: u64) -> Self {
        Self(key)
    }

    /// Keys greater than this one are behind it.
    pub fn key(self) -> u64 {
        self.0
    }
}

/// Some webhooks that follow each other.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The oldest first.
    pub webhooks: Vec<Summary>,
    /// Where the next page begins; none if nothing follows now.
    pub next: Option<Place>,
    /// So many have their place in this page, but can't be read.
    pub left_out: u64,
}

/// A stored webhook without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its identity.
    pub id: WebhookId,
    /// When it was received.
    pub received_at: Timestamp,
    /// Which source posted it.
    pub source: Arc<str>,
    /// The concrete path.
    pub path: Box<str>,
    /// The activity, where it has one.
    pub activity: Option<Box<str>>,
    /// What it is about.
    pub resource: Resource,
    /// The first eight bytes of the SHA-256 of the table that routed it.
    pub table: [u8; 8],
    /// The length of its body.
    pub body_bytes: u64,
    /// Its deliveries, in their order; none if it is unrouted.
    pub deliveries: Vec<Routed>,
    /// Where its store keeps it: means nothing to anybody else.
    pub kept_at: [u64; 3],
}

/// Which target a webhook goes to, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The target's name.
    pub target: Arc<str>,
    /// The names of the routes that matched, in file order.
    pub routes: Vec<Arc<str>>,
}

/// Why what is stored can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Closed, or closing.
    #[error("the store is closed")]
    Closed,
    /// Nothing has needed it any more.
    #[error("its bytes are gone: nothing needed them but dead letters beyond a backlog_limit")]
    Gone,
    /// What is there is not what was written.
    #[error("the record is damaged")]
    Damaged,
    /// The disk refused.
    #[error("the record can't be read")]
    Unavailable,
}
