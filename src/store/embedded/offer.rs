//! What goes into a lane, and what comes out.

use std::sync::Arc;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{Header, NewDelivery, Webhook};
use crate::store::embedded::index::queries::DueRow;
use crate::store::embedded::segment::Position;

/// A webhook that is durable, on its way into the lanes.
#[derive(Debug)]
pub struct Routed {
    /// The webhook, without its deliveries.
    pub webhook: Arc<Webhook>,
    /// Its deliveries.
    pub deliveries: Vec<NewDelivery>,
    /// Its record.
    pub position: Position,
}

/// What an attempt needs.
#[derive(Debug, Clone)]
pub struct Body {
    /// The webhook, without its deliveries.
    pub webhook: Arc<Webhook>,
    /// The routes' headers.
    pub headers: Arc<[Header]>,
}

/// What a lane has to offer.
#[derive(Debug)]
pub enum Offer {
    /// These, leased.
    Due(Vec<(DueRow, Option<Body>)>),
    /// Something at that time.
    At(Timestamp),
    /// Nothing now; it says when that changes.
    Nothing,
}
