//! The fields of records, as bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::domain::delivery::{Settlement, State};
use crate::domain::outcome::{Attempt, Outcome};
use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, Header, NewDelivery, Resource, Webhook, WebhookId};
use crate::store::embedded::record::{
    DecodeError, FullDelivery, Settled, Standing, cause_code, cause_of,
};

const fn outcome_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::AnswerTooLarge => 1,
        Outcome::Delivered => 2,
        Outcome::GivenUp => 3,
        Outcome::Refused => 4,
        Outcome::Reset => 5,
        Outcome::Status => 6,
        Outcome::Timeout => 7,
        Outcome::Tls => 8,
    }
}

/// Fields into bytes.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    pub(super) fn len(&mut self, len: usize) {
        self.varint(len as u64);
    }

    pub(super) fn time(&mut self, time: Timestamp) {
        self.varint(time.as_millis());
    }

    pub(super) fn block(&mut self, bytes: &[u8]) {
        self.len(bytes.len());
        self.bytes(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.block(text.as_bytes());
    }

    pub(super) fn maybe(&mut self, text: Option<&str>) {
        self.u8(u8::from(text.is_some()));
        if let Some(text) = text {
            self.text(text);
        }
    }

    pub(super) fn headers(&mut self, headers: &[Header]) {
        self.len(headers.len());
        for (name, value) in headers {
            self.text(name.as_str());
            self.block(value.as_bytes());
        }
    }

    pub(super) fn delivery(&mut self, delivery: &NewDelivery) {
        self.text(&delivery.target);
        self.headers(&delivery.headers);
        self.len(delivery.routes.len());
        for route in &delivery.routes {
            self.text(route);
        }
    }

    pub(super) fn standing(&mut self, standing: &Standing) {
        self.varint(u64::from(standing.again));
        match standing.state {
            State::Pending => self.u8(0),
            State::Delivered => self.u8(1),
            State::DeadLetter(cause) => {
                self.u8(2);
                self.u8(cause_code(cause));
            }
            State::Discarded => self.u8(3),
        }
        self.time(standing.due_at);
        self.varint(u64::from(standing.version));
        self.varint(u64::from(standing.attempts));
        self.time(standing.started_at);
        self.len(standing.history.len());
        for attempt in &standing.history {
            self.attempt(attempt);
        }
    }

    pub(super) fn attempt(&mut self, attempt: &Attempt) {
        self.time(attempt.at);
        self.varint(u64::try_from(attempt.duration.as_micros()).unwrap_or(u64::MAX));
        self.u8(outcome_code(attempt.outcome));
        self.varint(u64::from(attempt.status.unwrap_or(0)));
        self.block(&attempt.excerpt);
    }
}

/// Fields out of bytes; every count is checked against what is there.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Length) }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecodeError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Value);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Value)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::Value)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        u16::try_from(self.varint()?).map_err(|_| DecodeError::Value)
    }

    /// A count of things that take a byte at least, so that no allocation exceeds the input.
    pub(super) fn len(&mut self) -> Result<usize, DecodeError> {
        let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Length)?;
        if len > self.0.len() { Err(DecodeError::Length) } else { Ok(len) }
    }

    pub(super) fn time(&mut self) -> Result<Timestamp, DecodeError> {
        self.varint().map(Timestamp::from_millis)
    }

    pub(super) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value),
        }
    }

    pub(super) fn block(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.len()?;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.block()?).map_err(|_| DecodeError::Value)
    }

    pub(super) fn maybe(&mut self) -> Result<Option<Box<str>>, DecodeError> {
        Ok(if self.flag()? { Some(self.text()?.into()) } else { None })
    }

    pub(super) fn header(&mut self) -> Result<Header, DecodeError> {
        let name = HeaderName::from_bytes(self.block()?).map_err(|_| DecodeError::Value)?;
        let value = HeaderValue::from_bytes(self.block()?).map_err(|_| DecodeError::Value)?;
        Ok((name, value))
    }

    pub(super) fn headers(&mut self) -> Result<Vec<Header>, DecodeError> {
        let count = self.len()?;
        (0..count).map(|_| self.header()).collect()
    }

    pub(super) fn delivery(&mut self) -> Result<NewDelivery, DecodeError> {
        let target = Arc::from(self.text()?);
        let headers = self.headers()?;
        let count = self.len()?;
        let routes = (0..count).map(|_| self.text().map(Arc::from)).collect::<Result<_, _>>()?;
        Ok(NewDelivery { target, headers, routes })
    }

    pub(super) fn standing(&mut self) -> Result<Standing, DecodeError> {
        Ok(Standing {
            again: self.u32()?,
            state: match self.u8()? {
                0 => State::Pending,
                1 => State::Delivered,
                2 => State::DeadLetter(cause_of(self.u8()?).ok_or(DecodeError::Value)?),
                3 => State::Discarded,
                _ => return Err(DecodeError::Value),
            },
            due_at: self.time()?,
            version: self.u32()?,
            attempts: self.u32()?,
            started_at: self.time()?,
            history: self.history()?,
        })
    }

    pub(super) fn history(&mut self) -> Result<Vec<Attempt>, DecodeError> {
        let count = self.len()?;
        (0..count).map(|_| self.attempt()).collect()
    }

    pub(super) fn attempt(&mut self) -> Result<Attempt, DecodeError> {
        Ok(Attempt {
            at: self.time()?,
            duration: Duration::from_micros(self.varint()?),
            outcome: {
                let code = self.u8()?;
                let found = Outcome::ALL.into_iter().find(|o| outcome_code(*o) == code);
                found.ok_or(DecodeError::Value)?
            },
            status: Some(self.u16()?).filter(|status| *status != 0),
            excerpt: Bytes::copy_from_slice(self.block()?),
        })
    }

    /// A webhook whose body is all that is left, and where its deliveries stand.
    pub(super) fn webhook(&mut self) -> Result<(Webhook, Option<Vec<Standing>>), DecodeError> {
        let (webhook, standings, body_bytes) = self.before_body()?;
        // A body may be left out, not cut: its checksum keeps a cut one from getting here.
        if ![0, body_bytes].contains(&(self.0.len() as u64)) {
            return Err(DecodeError::Length);
        }
        Ok((webhook, standings))
    }

    /// What stands before a webhook's body, and how long that is said to be.
    pub(super) fn before_body(
        &mut self,
    ) -> Result<(Webhook, Option<Vec<Standing>>, u64), DecodeError> {
        let id = WebhookId::from_bytes(self.array()?);
        let flags = self.u8()?;
        if flags > 3 {
            return Err(DecodeError::Value);
        }
        let body_bytes = self.u64()?;
        let mut webhook = Webhook {
            id,
            received_at: self.time()?,
            duplicate_key: DuplicateKey::from_bytes(self.array()?),
            table: self.array()?,
            source: self.text()?.into(),
            path: self.text()?.into(),
            peer: self.maybe()?,
            secret: self.text()?.into(),
            activity: self.maybe()?,
            activity_id: flags & 1 != 0,
            resource: Resource { object: self.maybe()?, id: self.maybe()? },
            headers: self.headers()?,
            body: Bytes::new(),
            deliveries: Vec::new(),
        };
        let count = self.len()?;
        webhook.deliveries = (0..count).map(|_| self.delivery()).collect::<Result<_, _>>()?;
        let standings = if flags & 2 == 0 {
            None
        } else {
            Some((0..count).map(|_| self.standing()).collect::<Result<_, _>>()?)
        };
        Ok((webhook, standings, body_bytes))
    }

    pub(super) fn settled(&mut self) -> Result<Settled, DecodeError> {
        Ok(Settled {
            webhook: WebhookId::from_bytes(self.array()?),
            number: self.u16()?,
            version: self.u32()?,
            attempts: self.u32()?,
            settlement: match self.u8()? {
                1 => Settlement::DeadLetter(cause_of(self.u8()?).ok_or(DecodeError::Value)?),
                2 => Settlement::Delivered,
                3 => Settlement::Discarded,
                4 => Settlement::Redriven { at: self.time()? },
                5 => Settlement::Retry { at: self.time()? },
                _ => return Err(DecodeError::Value),
            },
            attempt: if self.flag()? { Some(self.attempt()?) } else { None },
        })
    }

    pub(super) fn deliveries(&mut self) -> Result<(WebhookId, Vec<FullDelivery>), DecodeError> {
        let id = WebhookId::from_bytes(self.array()?);
        let count = self.len()?;
        let deliveries = (0..count).map(|_| {
            let number = self.u16()?;
            Ok(FullDelivery { number, delivery: self.delivery()?, standing: self.standing()? })
        });
        Ok((id, deliveries.collect::<Result<_, _>>()?))
    }
}
