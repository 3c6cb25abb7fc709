//! What the log says, as the index takes it in: without bodies.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, Resource, Webhook, WebhookId};
use crate::store::embedded::record::{
    DecodeError, FullDelivery, Record, Settled, Standing, decode, left_out,
};
use crate::store::embedded::segment::{Frame, Position};

/// One record's change.
#[derive(Debug)]
pub enum Change {
    /// A webhook came in, or was copied forward.
    Webhook(Box<WebhookRow>),
    /// A delivery was settled.
    Settled(Settled),
    /// Deliveries were added, or where they stand was written down again.
    Deliveries(WebhookId, Vec<FullDelivery>),
    /// A webhook was erased.
    Erase(WebhookId),
    /// Webhooks ended long ago.
    Gone(Vec<u64>),
    /// Nothing changes.
    None,
}

impl Change {
    /// The latest moment that it tells of: when it was written the clock had shown that already.
    pub fn latest(&self) -> Timestamp {
        let of_standings =
            |all: &mut dyn Iterator<Item = &Standing>| all.map(Standing::latest).max();
        let latest = match self {
            Self::Webhook(row) => {
                let standings =
                    of_standings(&mut row.deliveries.iter().map(|(_, standing)| standing));
                standings.max(Some(row.received_at))
            }
            Self::Settled(settled) => Some(settled.latest()),
            Self::Deliveries(_, all) => of_standings(&mut all.iter().map(|of| &of.standing)),
            Self::Erase(_) | Self::Gone(_) | Self::None => None,
        };
        latest.unwrap_or_default()
    }
}

/// What the index knows of a webhook.
#[derive(Debug, Clone)]
pub struct WebhookRow {
    /// Its id.
    pub id: WebhookId,
    /// When it was received.
    pub received_at: Timestamp,
    /// Its source.
    pub source: Arc<str>,
    /// Its activity.
    pub activity: Option<Box<str>>,
    /// Whether the body carries an activity's id.
    pub activity_id: bool,
    /// Its resource.
    pub resource: Resource,
    /// Its key.
    pub duplicate_key: DuplicateKey,
    /// Whether it is durable: only then a second one is a duplicate.
    pub durable: bool,
    /// The length of its body.
    pub body_bytes: u64,
    /// Whether its record leaves the body out.
    pub bare: bool,
    /// Targets, and where the deliveries stand.
    pub deliveries: Vec<(Arc<str>, Standing)>,
}

impl WebhookRow {
    /// Of a webhook that was just committed, or copied forward with `standings`.
    pub fn new(webhook: &Webhook, standings: Option<Vec<Standing>>) -> Self {
        let targets = webhook.deliveries.iter().map(|delivery| Arc::clone(&delivery.target));
        let deliveries = match standings {
            Some(standings) => targets.zip(standings).collect(),
            None => targets.map(|t| (t, Standing::new(webhook.received_at))).collect(),
        };
        Self {
            id: webhook.id,
            received_at: webhook.received_at,
            source: Arc::clone(&webhook.source),
            activity: webhook.activity.clone(),
            activity_id: webhook.activity_id,
            resource: webhook.resource.clone(),
            duplicate_key: webhook.duplicate_key,
            durable: true,
            body_bytes: webhook.body.len() as u64,
            bare: false,
            deliveries,
        }
    }
}

/// A change and where it is written.
#[derive(Debug)]
pub struct Entry {
    /// Where; none while the log could not take it.
    pub position: Option<Position>,
    /// What changes.
    pub change: Change,
}

impl Entry {
    /// The change of a record as found, where it is durable or not.
    pub fn of_frame(frame: &Frame, durable: bool) -> Result<Self, DecodeError> {
        let change = match decode(frame.kind, frame.version, &Bytes::clone(&frame.payload))? {
            Record::Webhook(webhook, standings) => {
                let row = WebhookRow::new(&webhook, standings);
                let left_out = left_out(&webhook, &frame.payload);
                Change::Webhook(Box::new(WebhookRow {
                    durable,
                    bare: left_out.is_some(),
                    body_bytes: left_out.unwrap_or(row.body_bytes),
                    ..row
                }))
            }
            Record::Settlement(settled) => Change::Settled(settled),
            Record::Deliveries(id, deliveries) | Record::State(id, deliveries) => {
                Change::Deliveries(id, deliveries)
            }
            Record::Erase(id) => Change::Erase(id),
            Record::Gone(keys) => Change::Gone(keys),
            Record::Close => Change::None,
        };
        Ok(Self { position: Some(frame.position), change })
    }
}
