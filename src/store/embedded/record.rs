//! What a record says, as bytes: versioned, bounds-checked, by hand.

use bytes::Bytes;

use crate::domain::delivery::{Cause, Settlement, State};
use crate::domain::limit::{ATTEMPTS_KEPT_FIRST, ATTEMPTS_KEPT_LAST};
use crate::domain::outcome::Attempt;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{NewDelivery, Webhook, WebhookId};
use crate::store::embedded::codec::{Reader, Writer};

/// The version of every record written.
pub const VERSION: u8 = 1;

/// What kind of record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A webhook and its deliveries.
    Webhook,
    /// A settlement.
    Settlement,
    /// Deliveries added to an existing webhook.
    Deliveries,
    /// Where a webhook's deliveries stand.
    State,
    /// A webhook was erased.
    Erase,
    /// Webhooks that ended long ago, whose settlements are no longer kept.
    Gone,
    /// A clean stop.
    Close,
}

impl Kind {
    /// Its byte.
    pub const fn code(self) -> u8 {
        match self {
            Self::Webhook => 1,
            Self::Settlement => 2,
            Self::Deliveries => 3,
            Self::State => 4,
            Self::Erase => 5,
            Self::Gone => 6,
            Self::Close => 7,
        }
    }

    /// What the log calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Settlement => "settlement",
            Self::Deliveries => "deliveries",
            Self::State => "state",
            Self::Erase => "erase",
            Self::Gone => "gone",
            Self::Close => "close",
        }
    }

    /// From its byte.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Webhook,
            2 => Self::Settlement,
            3 => Self::Deliveries,
            4 => Self::State,
            5 => Self::Erase,
            6 => Self::Gone,
            7 => Self::Close,
            _ => return None,
        })
    }
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A webhook; where its deliveries stand, if it was copied forward.
    Webhook(Webhook, Option<Vec<Standing>>),
    /// A settlement.
    Settlement(Settled),
    /// Deliveries added to an existing webhook.
    Deliveries(WebhookId, Vec<FullDelivery>),
    /// Where a webhook's deliveries stand.
    State(WebhookId, Vec<FullDelivery>),
    /// A webhook was erased.
    Erase(WebhookId),
    /// The keys of webhooks that ended long ago.
    Gone(Vec<u64>),
    /// A clean stop.
    Close,
}

/// Where a delivery stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which repeat on purpose.
    pub again: u32,
    /// What it is at.
    pub state: State,
    /// When it is due, if it is pending.
    pub due_at: Timestamp,
    /// How often it was settled: a later standing has a greater one.
    pub version: u32,
    /// Attempts so far.
    pub attempts: u32,
    /// When its time began.
    pub started_at: Timestamp,
    /// The attempts that are kept.
    pub history: Vec<Attempt>,
}

impl Standing {
    /// Where a new delivery stands.
    pub fn new(accepted_at: Timestamp) -> Self {
        Self {
            again: 0,
            state: State::Pending,
            due_at: accepted_at,
            version: 0,
            attempts: 0,
            started_at: accepted_at,
            history: Vec::new(),
        }
    }

    /// The latest moment that it tells of.
    pub fn latest(&self) -> Timestamp {
        let ended = self.history.last().map(Attempt::ended_at);
        ended.unwrap_or_default().max(self.started_at)
    }

    /// Whether more is known here than there: what came later, or the same with what came before it.
    /// Where a settlement is in the log before a state that was asked for earlier, a rebuild has lost
    /// what the state says of the past.
    pub fn says_more_than(&self, other: &Self) -> bool {
        let is_as_late = self.version == other.version;
        let is_as_long = self.history.len() >= other.history.len();
        self.version > other.version || (is_as_late && is_as_long && self != other)
    }

    /// Takes a settlement in; one that was taken in before changes nothing. What was delivered is, however
    /// late that is heard of: who settled it may not have known all that the log says.
    pub fn apply(&mut self, settled: &Settled) -> bool {
        let is_over = matches!(self.state, State::Delivered | State::Discarded);
        let is_delivered = settled.settlement == Settlement::Delivered && !is_over;
        if settled.version <= self.version && !is_delivered {
            return false;
        }
        self.version = self.version.max(settled.version);
        self.attempts = self.attempts.max(settled.attempts);
        match settled.settlement {
            Settlement::DeadLetter(cause) => self.state = State::DeadLetter(cause),
            Settlement::Delivered => self.state = State::Delivered,
            Settlement::Discarded => self.state = State::Discarded,
            Settlement::Redriven { at } => {
                self.state = State::Pending;
                self.due_at = at;
                self.started_at = at;
            }
            Settlement::Retry { at } => {
                self.state = State::Pending;
                self.due_at = at;
            }
        }
        if let Some(attempt) = &settled.attempt {
            self.history.push(attempt.clone());
            if self.history.len() > ATTEMPTS_KEPT_FIRST + ATTEMPTS_KEPT_LAST {
                self.history.remove(ATTEMPTS_KEPT_FIRST);
            }
        }
        true
    }
}

/// A delivery with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullDelivery {
    /// Which of the webhook's deliveries.
    pub number: u16,
    /// As routed.
    pub delivery: NewDelivery,
    /// Where it stands.
    pub standing: Standing,
}

/// A settlement of one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The webhook.
    pub webhook: WebhookId,
    /// Which of its deliveries.
    pub number: u16,
    /// How often it was settled, this one included.
    pub version: u32,
    /// Attempts so far, this one included.
    pub attempts: u32,
    /// The attempt it rests on.
    pub attempt: Option<Attempt>,
    /// What became of it.
    pub settlement: Settlement,
}

impl Settled {
    /// The latest moment that it tells of. When it is due again is still to come.
    pub fn latest(&self) -> Timestamp {
        let ended = self.attempt.as_ref().map(Attempt::ended_at).unwrap_or_default();
        match self.settlement {
            Settlement::Redriven { at } => ended.max(at),
            _ => ended,
        }
    }
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early, or go on after the end.
    #[error("the record has the wrong length")]
    Length,
    /// A field has a value that nothing has.
    #[error("the record has an unknown value")]
    Value,
    /// Written by a newer version.
    #[error("the record has an unknown kind or version")]
    Unknown,
}

/// The payload of a webhook's record but for the body, which follows it.
pub fn encode_webhook(webhook: &Webhook, standings: Option<&[Standing]>) -> Vec<u8> {
    encode_head(webhook, webhook.body.len() as u64, standings)
}

/// The whole payload of the record of a webhook whose body, so many bytes, is left out.
pub fn encode_bare(webhook: &Webhook, body_bytes: u64, standings: &[Standing]) -> Vec<u8> {
    encode_head(webhook, body_bytes, Some(standings))
}

// Where the length of the body is, behind the id and a byte of flags.
const BODY_BYTES_AT: usize = 17;

/// How long the body was that is left out of a webhook's payload; none where it is there.
pub fn left_out(webhook: &Webhook, payload: &[u8]) -> Option<u64> {
    let at = payload.get(BODY_BYTES_AT..).and_then(|rest| rest.first_chunk());
    let body_bytes = at.copied().map_or(0, u64::from_le_bytes);
    (webhook.body.is_empty() && body_bytes > 0).then_some(body_bytes)
}

fn encode_head(webhook: &Webhook, body_bytes: u64, standings: Option<&[Standing]>) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(512));
    out.bytes(webhook.id.as_bytes());
    out.u8(u8::from(webhook.activity_id) | u8::from(standings.is_some()) << 1);
    out.bytes(&body_bytes.to_le_bytes());
    out.time(webhook.received_at);
    out.bytes(webhook.duplicate_key.as_bytes());
    out.bytes(&webhook.table);
    out.text(&webhook.source);
    out.text(&webhook.path);
    out.maybe(webhook.peer.as_deref());
    out.text(&webhook.secret);
    out.maybe(webhook.activity.as_deref());
    out.maybe(webhook.resource.object.as_deref());
    out.maybe(webhook.resource.id.as_deref());
    out.headers(&webhook.headers);
    out.len(webhook.deliveries.len());
    for delivery in &webhook.deliveries {
        out.delivery(delivery);
    }
    for standing in standings.unwrap_or_default() {
        out.standing(standing);
    }
    out.0
}

/// The payloads of settlements, one behind the other.
#[derive(Debug, Default)]
pub struct SettledPayloads {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl SettledPayloads {
    /// Those of these.
    pub fn of(settled: &[Settled]) -> Self {
        let mut out = Writer(Vec::with_capacity(64 * settled.len()));
        let mut ends = Vec::with_capacity(settled.len());
        for settled in settled {
            encode_settled(settled, &mut out);
            ends.push(out.0.len());
        }
        Self { bytes: out.0, ends }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.bytes.get(start..*end).unwrap_or_default())
    }
}

fn encode_settled(settled: &Settled, out: &mut Writer) {
    out.bytes(settled.webhook.as_bytes());
    out.varint(u64::from(settled.number));
    out.varint(u64::from(settled.version));
    out.varint(u64::from(settled.attempts));
    match settled.settlement {
        Settlement::DeadLetter(cause) => {
            out.u8(1);
            out.u8(cause_code(cause));
        }
        Settlement::Delivered => out.u8(2),
        Settlement::Discarded => out.u8(3),
        Settlement::Redriven { at } => {
            out.u8(4);
            out.time(at);
        }
        Settlement::Retry { at } => {
            out.u8(5);
            out.time(at);
        }
    }
    out.u8(u8::from(settled.attempt.is_some()));
    if let Some(attempt) = &settled.attempt {
        out.attempt(attempt);
    }
}

/// The payload of added deliveries, and of a state.
pub fn encode_deliveries(webhook: WebhookId, deliveries: &[FullDelivery]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(256));
    out.bytes(webhook.as_bytes());
    out.len(deliveries.len());
    for full in deliveries {
        out.varint(u64::from(full.number));
        out.delivery(&full.delivery);
        out.standing(&full.standing);
    }
    out.0
}

/// The payload that names webhooks gone.
pub fn encode_gone(keys: &[u64]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(keys.len() * 8 + 4));
    out.len(keys.len());
    for key in keys {
        out.bytes(&key.to_le_bytes());
    }
    out.0
}

/// The attempts of a delivery as the index keeps them.
pub fn encode_history(history: &[Attempt]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(32 * history.len() + 1));
    out.len(history.len());
    for attempt in history {
        out.attempt(attempt);
    }
    out.0
}

/// What [`encode_history`] wrote.
pub fn decode_history(bytes: &[u8]) -> Result<Vec<Attempt>, DecodeError> {
    let mut reader = Reader(bytes);
    let history = reader.history()?;
    reader.end()?;
    Ok(history)
}

/// The key of the webhook that a webhook's payload begins with.
pub fn peek_webhook(payload: &[u8]) -> Option<WebhookId> {
    payload.first_chunk().copied().map(WebhookId::from_bytes)
}

/// What a webhook's payload says before the body, whatever became of that.
pub fn glimpse_webhook(payload: &[u8]) -> Option<Webhook> {
    Reader(payload).before_body().ok().map(|(webhook, ..)| webhook)
}

/// Reads a payload; never panics, whatever the bytes.
pub fn decode(kind: u8, version: u8, payload: &Bytes) -> Result<Record, DecodeError> {
    if version != VERSION {
        return Err(DecodeError::Unknown);
    }
    let kind = Kind::from_code(kind).ok_or(DecodeError::Unknown)?;
    let mut reader = Reader(payload);
    let record = match kind {
        Kind::Webhook => {
            let (mut webhook, standings) = reader.webhook()?;
            let body = payload.len().checked_sub(reader.0.len()).ok_or(DecodeError::Length)?;
            webhook.body = payload.slice(body..);
            return Ok(Record::Webhook(webhook, standings));
        }
        Kind::Settlement => Record::Settlement(reader.settled()?),
        Kind::Deliveries => {
            let (id, deliveries) = reader.deliveries()?;
            Record::Deliveries(id, deliveries)
        }
        Kind::State => {
            let (id, deliveries) = reader.deliveries()?;
            Record::State(id, deliveries)
        }
        Kind::Erase => Record::Erase(WebhookId::from_bytes(reader.array()?)),
        Kind::Gone => {
            let count = reader.len()?;
            let keys = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
            Record::Gone(keys)
        }
        Kind::Close => Record::Close,
    };
    reader.end()?;
    Ok(record)
}

/// The byte of a cause.
pub const fn cause_code(cause: Cause) -> u8 {
    match cause {
        Cause::BacklogFull => 1,
        Cause::Damaged => 2,
        Cause::Expired => 3,
        Cause::GivenUp => 4,
        Cause::TargetRemoved => 5,
    }
}

/// The cause of a byte.
pub fn cause_of(code: u8) -> Option<Cause> {
    Cause::ALL.into_iter().find(|cause| cause_code(*cause) == code)
}
