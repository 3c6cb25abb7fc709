//! Taking the log in.

use hashbrown::HashMap;
use rusqlite::{OptionalExtension, params};

use crate::domain::delivery::State;
use crate::domain::time::Timestamp;
use crate::domain::webhook::{DuplicateKey, WebhookId};
use crate::store::embedded::change::{Change, Entry, WebhookRow};
use crate::store::embedded::index::sums::{LEFT_OUT, Sums, is_spared, state_columns, state_of};
use crate::store::embedded::index::{Index, int, uint};
use crate::store::embedded::recent::Known;
use crate::store::embedded::record::{
    FullDelivery, Settled, Standing, decode_history, encode_history,
};
use crate::store::embedded::scanner::Unread;
use crate::store::embedded::segment::{LogPoint, Position};

const KNOWN_BYTES: usize = 33;

/// The ids of a webhook's names.
struct Names {
    source: i64,
    activity: Option<i64>,
    kind: Option<i64>,
    targets: Vec<i64>,
}

/// Webhooks that are not in the index yet, with what was settled of them in the meantime.
#[derive(Default)]
struct Fresh {
    rows: Vec<(Box<WebhookRow>, Position)>,
    by_key: HashMap<u64, usize>,
}

impl Index {
    /// Takes entries in, in one transaction; what is already in it is passed over. `upto` is where
    /// the log is in it then.
    pub fn apply(&mut self, entries: Vec<Entry>, upto: Option<LogPoint>) -> rusqlite::Result<()> {
        // Nothing to write: a start on a full disk must get past this.
        if entries.is_empty() && upto.is_none_or(|upto| upto <= self.applied) {
            return Ok(());
        }
        self.transaction(|index| {
            let mut sums = Sums::default();
            let mut fresh = Fresh::default();
            for entry in entries {
                if let Some(position) = entry.position {
                    if position.end() <= index.applied {
                        continue;
                    }
                    index.applied = position.end();
                }
                index.take(entry, &mut fresh, &mut sums)?;
            }
            index.flush(&mut fresh, &mut sums)?;
            if let Some(upto) = upto {
                index.applied = index.applied.max(upto);
            }
            index.write_sums(sums)?;
            index.write_applied()
        })
    }

    /// Remembers what of the log could not be read and is missing here.
    pub fn note_unread(&mut self, parts: &[Unread]) -> rusqlite::Result<()> {
        self.transaction(|index| {
            let mut statement = index
                .connection
                .prepare_cached("INSERT OR REPLACE INTO unread VALUES (?1,?2,?3)")?;
            for part in parts {
                statement.execute([int(part.segment), int(part.offset), int(part.bytes)])?;
            }
            Ok(())
        })
    }

    fn take(&mut self, entry: Entry, fresh: &mut Fresh, sums: &mut Sums) -> rusqlite::Result<()> {
        sums.latest = sums.latest.max(entry.change.latest());
        match (entry.change, entry.position) {
            (Change::Webhook(row), Some(position)) => {
                // Copied forward while the first is still waiting to be inserted.
                if fresh.by_key.contains_key(&row.id.key()) {
                    self.flush(fresh, sums)?;
                }
                fresh.by_key.insert(row.id.key(), fresh.rows.len());
                fresh.rows.push((row, position));
                Ok(())
            }
            (Change::Settled(settled), _) => {
                let waiting = fresh
                    .by_key
                    .get(&settled.webhook.key())
                    .and_then(|at| fresh.rows.get_mut(*at))
                    .and_then(|(row, _)| row.deliveries.get_mut(usize::from(settled.number)));
                match waiting {
                    Some((_, standing)) => {
                        standing.apply(&settled);
                        Ok(())
                    }
                    None => self.settle(&settled, sums),
                }
            }
            (Change::Deliveries(id, deliveries), position) => {
                self.flush(fresh, sums)?;
                self.add_deliveries(id, deliveries, position, sums)
            }
            (Change::Erase(id), _) => {
                self.flush(fresh, sums)?;
                self.delete(id.key(), sums)
            }
            (Change::Gone(keys), position) => {
                self.flush(fresh, sums)?;
                for key in keys {
                    // A later copy of it would mean that it is not gone.
                    let at = self.position(key)?.map(|at| at.start());
                    if at.is_some() && at < position.map(|position| position.start()) {
                        self.delete(key, sums)?;
                    }
                }
                Ok(())
            }
            (Change::Webhook(_), None) | (Change::None, _) => Ok(()),
        }
    }

    fn flush(&mut self, fresh: &mut Fresh, sums: &mut Sums) -> rusqlite::Result<()> {
        fresh.by_key.clear();
        let rows = std::mem::take(&mut fresh.rows);
        // First all names: while statements are open none can be added.
        let mut names = Vec::with_capacity(rows.len());
        for (row, _) in &rows {
            names.push(self.names_of(row)?);
        }
        for (row, position) in self.insert_all(rows, names, sums)? {
            self.move_to(&row, position, sums)?;
        }
        Ok(())
    }

    fn names_of(&mut self, row: &WebhookRow) -> rusqlite::Result<Names> {
        let mut targets = Vec::with_capacity(row.deliveries.len());
        for (target, _) in &row.deliveries {
            targets.push(self.name_id(target)?);
        }
        Ok(Names {
            source: self.name_id(&row.source)?,
            activity: row.activity.as_deref().map(|name| self.name_id(name)).transpose()?,
            kind: row.resource.object.as_deref().map(|name| self.name_id(name)).transpose()?,
            targets,
        })
    }

    /// Inserts webhooks; answers those that are in the index already.
    fn insert_all(
        &self,
        rows: Vec<(Box<WebhookRow>, Position)>,
        names: Vec<Names>,
        sums: &mut Sums,
    ) -> rusqlite::Result<Vec<(Box<WebhookRow>, Position)>> {
        // Looked up once: that takes as long as binding a row's values.
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO webhook VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)
             ON CONFLICT DO NOTHING",
        )?;
        let mut insert_delivery = self.connection.prepare_cached(
            "INSERT INTO delivery VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,NULL,NULL,NULL,?12)",
        )?;
        let mut known = Vec::new();
        for ((row, at), names) in rows.into_iter().zip(names) {
            let key = row.id.key();
            let span = sums.span.entry(at.segment).or_insert((key, key));
            *span = (span.0.min(key), span.1.max(key));
            let inserted = insert.execute(params![
                int(key),
                row.id.as_bytes(),
                int(at.segment),
                int(at.offset),
                int(at.length),
                int(row.received_at.as_millis()),
                names.source,
                names.activity,
                names.kind,
                row.resource.id.as_deref(),
                int(row.body_bytes),
                row.deliveries.is_empty(),
                if row.bare { LEFT_OUT } else { 0 },
            ])?;
            if inserted == 0 {
                known.push((row, at));
                continue;
            }
            sums.add(&row, at, names.source);
            let targets = names.targets.into_iter();
            for (number, (target, (_, standing))) in targets.zip(&row.deliveries).enumerate() {
                let (state, cause) = state_columns(standing.state);
                let spared = is_spared(standing.state, row.bare);
                insert_delivery.execute(params![
                    int(key),
                    int(number as u64),
                    target,
                    standing.again,
                    state,
                    cause,
                    int(standing.due_at.as_millis()),
                    standing.version,
                    standing.attempts,
                    int(standing.started_at.as_millis()),
                    history_column(standing),
                    spared,
                ])?;
                sums.count(target, (standing.state, spared), 1, at.length);
            }
        }
        Ok(known)
    }

    /// A webhook that is in the index was copied forward.
    fn move_to(&mut self, row: &WebhookRow, at: Position, sums: &mut Sums) -> rusqlite::Result<()> {
        let key = row.id.key();
        if let Some(first) =
            self.identity(key)?.map(|known| known.id).filter(|first| *first != row.id)
        {
            let (webhook_id, segment, offset) = (row.id, at.segment, at.offset);
            // Of two the one that was there keeps its deliveries and its body: no target gets the
            // other's. This one can only be had from its record.
            tracing::error!(
                %webhook_id, %first, segment, offset,
                "two webhooks have one key: the second is left out"
            );
            return Ok(());
        }
        if let Some(old) = self.position(key)? {
            self.count_live(key, -1, sums)?;
            self.resize(key, int(at.length) - int(old.length), sums)?;
        }
        self.connection
            .prepare_cached(
                "UPDATE webhook SET segment=?2, start=?3, length=?4, bare=IIF(?5, ?6, bare)
                 WHERE id=?1",
            )?
            .execute(params![
                int(key),
                int(at.segment),
                int(at.offset),
                int(at.length),
                row.bare,
                LEFT_OUT,
            ])?;
        self.count_live(key, 1, sums)?;
        // What was added while the copy was made is not in it: its own record still says what it is.
        self.connection
            .prepare_cached(
                "UPDATE delivery SET segment=NULL, start=NULL, length=NULL
                 WHERE webhook=?1 AND number<?2",
            )?
            .execute([int(key), int(row.deliveries.len() as u64)])?;
        if !row.deliveries.is_empty() {
            self.routed(key, at.length, sums)?;
        }
        for (number, (target, standing)) in row.deliveries.iter().enumerate() {
            let key = (key, int(number as u64));
            self.merge(key, target, (standing, None), at.length, sums)?;
        }
        if row.bare {
            self.spare_all_of(key, at.length, sums)?;
        }
        Ok(())
    }

    fn add_deliveries(
        &mut self,
        id: WebhookId,
        deliveries: Vec<FullDelivery>,
        at: Option<Position>,
        sums: &mut Sums,
    ) -> rusqlite::Result<()> {
        let Some(length) = self.position(id.key())?.map(|webhook_at| webhook_at.length) else {
            return Ok(());
        };
        for full in deliveries {
            let (number, target) = (i64::from(full.number), &full.delivery.target);
            self.merge((id.key(), number), target, (&full.standing, at), length, sums)?;
        }
        self.routed(id.key(), length, sums)
    }

    /// Takes a standing over if it is later than what is known. `at` is the record that says so, if
    /// that is not the webhook's, and `length` is that of the webhook's.
    fn merge(
        &mut self,
        (key, number): (u64, i64),
        target: &str,
        (standing, at): (&Standing, Option<Position>),
        length: u64,
        sums: &mut Sums,
    ) -> rusqlite::Result<()> {
        let known = self.standing(key, number)?;
        let mut spared = is_spared(standing.state, false);
        if let Some((target, old)) = &known {
            if let Some(at) = at {
                self.define_at(key, number, at)?;
            }
            if !standing.says_more_than(old) {
                return Ok(());
            }
            let before = (old.state, self.was_spared(key, number, old.state)?);
            spared = is_spared(standing.state, before.1);
            sums.count(*target, before, -1, length);
        }
        let target = self.name_id(target)?;
        if standing.state == State::Pending {
            self.needs_body(key, sums)?;
        }
        sums.count(target, (standing.state, spared), 1, length);
        if known.is_some() {
            return self.update_delivery(key, number, standing, spared);
        }
        self.insert_delivery(key, number, target, standing, at)
    }

    /// A delivery that was added was written down again: the record before may go.
    fn define_at(&self, key: u64, number: i64, at: Position) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE delivery SET segment=?3, start=?4, length=?5
                 WHERE webhook=?1 AND number=?2 AND (segment, start) < (?3, ?4)",
            )?
            .execute(params![int(key), number, int(at.segment), int(at.offset), int(at.length)])?;
        Ok(())
    }

    fn settle(&self, settled: &Settled, sums: &mut Sums) -> rusqlite::Result<()> {
        let (key, number) = (settled.webhook.key(), i64::from(settled.number));
        let Some((target, mut standing)) = self.standing(key, number)? else { return Ok(()) };
        let before = standing.state;
        if !standing.apply(settled) {
            return Ok(());
        }
        let was_spared = self.was_spared(key, number, before)?;
        let spared = is_spared(standing.state, was_spared);
        if before != standing.state {
            if standing.state == State::Pending {
                self.needs_body(key, sums)?;
            }
            let length = self.position(key)?.map_or(0, |at| at.length);
            sums.count(target, (before, was_spared), -1, length);
            sums.count(target, (standing.state, spared), 1, length);
        }
        self.update_delivery(key, number, &standing, spared)
    }

    /// Whether a delivery is a dead letter that pins nothing.
    fn was_spared(&self, key: u64, number: i64, state: State) -> rusqlite::Result<bool> {
        if !matches!(state, State::DeadLetter(_)) {
            return Ok(false);
        }
        self.connection
            .prepare_cached("SELECT spared FROM delivery WHERE webhook=?1 AND number=?2")?
            .query_row([int(key), number], |row| row.get(0))
    }

    fn insert_delivery(
        &self,
        key: u64,
        number: i64,
        target: i64,
        standing: &Standing,
        at: Option<Position>,
    ) -> rusqlite::Result<()> {
        let (state, cause) = state_columns(standing.state);
        self.connection
            .prepare_cached(
                "INSERT INTO delivery VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15)",
            )?
            .execute(params![
                int(key),
                number,
                target,
                standing.again,
                state,
                cause,
                int(standing.due_at.as_millis()),
                standing.version,
                standing.attempts,
                int(standing.started_at.as_millis()),
                history_column(standing),
                at.map(|at| int(at.segment)),
                at.map(|at| int(at.offset)),
                at.map(|at| int(at.length)),
                is_spared(standing.state, false),
            ])?;
        Ok(())
    }

    fn update_delivery(
        &self,
        key: u64,
        number: i64,
        new: &Standing,
        spared: bool,
    ) -> rusqlite::Result<()> {
        let (state, cause) = state_columns(new.state);
        self.connection
            .prepare_cached(
                "UPDATE delivery SET state=?3, cause=?4, due_at=?5, version=?6, attempts=?7,
                 started_at=?8, history=?9, spared=?10 WHERE webhook=?1 AND number=?2",
            )?
            .execute(params![
                int(key),
                number,
                state,
                cause,
                int(new.due_at.as_millis()),
                new.version,
                new.attempts,
                int(new.started_at.as_millis()),
                history_column(new),
                spared,
            ])?;
        Ok(())
    }

    /// The target of a delivery, and where it stands.
    pub(in crate::store::embedded) fn standing(
        &self,
        key: u64,
        number: i64,
    ) -> rusqlite::Result<Option<(i64, Standing)>> {
        self.connection
            .prepare_cached(
                "SELECT target, again, state, cause, due_at, version, attempts, started_at, history
                 FROM delivery WHERE webhook=?1 AND number=?2",
            )?
            .query_row([int(key), number], |row| {
                let history: Option<Vec<u8>> = row.get(8)?;
                let history = history.map_or(Ok(Vec::new()), |bytes| decode_history(&bytes));
                let time = |at| row.get(at).map(|ms| Timestamp::from_millis(uint(ms)));
                let standing = Standing {
                    again: row.get(1)?,
                    state: state_of(row.get(2)?, row.get(3)?),
                    due_at: time(4)?,
                    version: row.get(5)?,
                    attempts: row.get(6)?,
                    started_at: time(7)?,
                    history: history.map_err(|_| rusqlite::Error::InvalidQuery)?,
                };
                Ok((row.get(0)?, standing))
            })
            .optional()
    }

    /// Deletes a webhook and its deliveries.
    pub(super) fn delete(&self, key: u64, sums: &mut Sums) -> rusqlite::Result<()> {
        let Some(at) = self.position(key)? else { return Ok(()) };
        self.count_live(key, -1, sums)?;
        for (target, state) in self.states(key)? {
            sums.count(target, state, -1, at.length);
        }
        if self.is_unrouted(key)? {
            sums.unrouted.add(-1, at.length);
        }
        self.connection
            .prepare_cached("DELETE FROM delivery WHERE webhook=?1")?
            .execute([int(key)])?;
        self.connection.prepare_cached("DELETE FROM webhook WHERE id=?1")?.execute([int(key)])?;
        Ok(())
    }

    fn write_applied(&self) -> rusqlite::Result<()> {
        let mut statement =
            self.connection.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
        statement.execute(params!["applied_segment", int(self.applied.segment)])?;
        statement.execute(params!["applied_offset", int(self.applied.offset)])?;
        Ok(())
    }
}

fn history_column(standing: &Standing) -> Option<Vec<u8>> {
    (!standing.history.is_empty()).then(|| encode_history(&standing.history))
}

/// The keys that [`Index::apply`] packed.
pub(super) fn unpack(bytes: &[u8]) -> impl DoubleEndedIterator<Item = Known> {
    bytes.chunks_exact(KNOWN_BYTES).filter_map(|chunk| {
        let (key, rest) = chunk.split_first_chunk::<16>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        Some(Known {
            key: DuplicateKey::from_bytes(*key),
            id: WebhookId::from_bytes(*id),
            activity_id: rest.first() == Some(&1),
        })
    })
}
