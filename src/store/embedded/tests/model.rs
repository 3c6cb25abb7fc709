//! What a store should have after random operations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::time::Timestamp;
use crate::domain::webhook::WebhookId;
use crate::store::marks::Marks;

// Short, so that a pass of the cleaner is not waited for.
pub(super) const RETAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Pending,
    Delivered,
    Dead,
}

/// Whether a settlement may be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    None,
    // It is written. Where a write or a sync fails then, what was not synced is written again, but not
    // at once: a crash before that undoes it.
    UntilSynced,
    UntilWritten,
    // A crash may have undone it: either is right until it is settled again.
    Lasting,
    // It is dead, or it was redriven though the disk did not take that: a crash may undo all since.
    Refused,
    // The index's file may know of a settlement that the log lost, and another one has its number in
    // the log: which one is right depends on the index.
    Open,
}

/// A delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fate {
    pub(super) target: &'static str,
    pub(super) expected: Expected,
    pub(super) doubt: Doubt,
}

impl Fate {
    /// Whether it may be due though it was settled.
    pub(super) fn may_be_due(&self) -> bool {
        matches!(self.doubt, Doubt::Lasting | Doubt::Refused | Doubt::Open)
    }

    /// Whether it must be due.
    pub(super) fn is_due(&self) -> bool {
        self.expected == Expected::Pending && self.doubt != Doubt::Open
    }

    /// Whether it must not be due: it was settled for good.
    pub(super) fn is_over(&self) -> bool {
        self.expected != Expected::Pending && self.doubt == Doubt::None
    }

    /// It was settled again: until that is flushed a crash may undo it.
    pub(super) fn settled(&mut self, expected: Expected) {
        match self.doubt {
            Doubt::Open => {}
            Doubt::Refused if expected == Expected::Pending => {}
            _ => (self.expected, self.doubt) = (expected, Doubt::UntilWritten),
        }
    }
}

/// What should be: deliveries by body and number. Settled ones may be due again after a crash in
/// which their settlement was not yet safe.
#[derive(Default)]
pub(super) struct Model {
    pub(super) deliveries: BTreeMap<(Vec<u8>, u16), Fate>,
    pub(super) accepted: BTreeMap<Vec<u8>, WebhookId>,
    pub(super) refused: Vec<Vec<u8>>,
    // Since then the disk may have failed: what is in the index need not be in the log.
    pub(super) is_failing: bool,
    pub(super) next: u32,
    // To these something was added that the disk did not take, perhaps.
    pub(super) uncertain: BTreeSet<Vec<u8>>,
    pub(super) marks: Marks,
    // Of these the index's file may know what the log lost.
    pub(super) only_in_file: BTreeSet<(Vec<u8>, u16)>,
    // Dead letters that pinned too much: they may have lost their bytes.
    pub(super) spared: BTreeSet<(Vec<u8>, u16)>,
}

impl Model {
    /// What was settled is in the log.
    pub(super) fn written(&mut self) {
        for Fate { doubt, .. } in self.deliveries.values_mut() {
            if *doubt == Doubt::UntilWritten {
                *doubt = Doubt::UntilSynced;
            }
        }
    }

    /// What was settled is durable.
    pub(super) fn synced(&mut self) {
        for Fate { doubt, .. } in self.deliveries.values_mut() {
            if matches!(doubt, Doubt::UntilWritten | Doubt::UntilSynced) {
                *doubt = Doubt::None;
            }
        }
    }

    /// The process was killed: what was settled may be undone, unless it was written.
    pub(super) fn killed(&mut self) {
        for (key, Fate { doubt, .. }) in &mut self.deliveries {
            let is_undone = *doubt == Doubt::UntilSynced && self.is_failing;
            if is_undone || *doubt == Doubt::UntilWritten {
                *doubt = Doubt::Lasting;
                self.only_in_file.insert(key.clone());
            }
        }
    }

    /// The power went: all that was settled may be undone.
    pub(super) fn cut_off(&mut self) {
        for Fate { doubt, .. } in self.deliveries.values_mut() {
            if !matches!(*doubt, Doubt::Refused | Doubt::Open) {
                *doubt = Doubt::Lasting;
            }
        }
    }

    /// The index's file is left where it is, and another one is made of the log.
    pub(super) fn left_file(&mut self) {
        for key in &self.only_in_file {
            if let Some(fate) = self.deliveries.get_mut(key) {
                fate.doubt = Doubt::Open;
            }
        }
    }

    /// Whether retention may have ended it: nothing of it is pending.
    pub(super) fn may_be_over(&self, body: &[u8], now: Timestamp) -> bool {
        let is_old = now.since(self.accepted[body].timestamp()) >= RETAIN;
        let of = self.deliveries.iter().filter(|((other, _), _)| other == body);
        is_old && of.clone().count() > 0 && of.clone().all(|(_, fate)| !fate.is_due())
    }
}

impl Model {
    /// Webhooks to which something may be added: none that retention may end meanwhile.
    pub(super) fn lasting(&self, now: Timestamp) -> Vec<Vec<u8>> {
        let may_end = |body: &Vec<u8>| self.may_be_over(body, now);
        let may_lack_bytes = |body: &Vec<u8>| self.spared.iter().any(|(other, _)| other == body);
        let lasting = self.accepted.keys().filter(|body| !may_end(body) && !may_lack_bytes(body));
        lasting.filter(|body| !self.uncertain.contains(*body)).cloned().collect()
    }

    /// It is erased: nothing of it may come any more.
    pub(super) fn forget(&mut self, body: &[u8]) {
        self.accepted.remove(body);
        self.deliveries.retain(|(other, _), _| other != body);
        self.only_in_file.retain(|(other, _)| other != body);
        self.spared.retain(|(other, _)| other != body);
    }

    /// How many deliveries a webhook has, and those to a target.
    pub(super) fn count(&self, body: &[u8], target: Option<&str>) -> usize {
        let of = self.deliveries.iter().filter(|((other, _), _)| other == body);
        of.filter(|(_, fate)| target.is_none_or(|target| target == fate.target)).count()
    }

    /// The dead letters of a target.
    pub(super) fn dead(&self, target: &str) -> Vec<(WebhookId, u16)> {
        let is_dead = |fate: &Fate| fate.target == target && fate.expected == Expected::Dead;
        let dead = self.deliveries.iter().filter(|(_, fate)| is_dead(fate));
        dead.map(|((body, number), _)| (self.accepted[body], *number)).collect()
    }

    /// What is dead to a target pins nothing any more.
    pub(super) fn spare(&mut self, target: &str) {
        let is_dead = |fate: &Fate| fate.target == target && fate.expected == Expected::Dead;
        let dead = self.deliveries.iter().filter(|(_, fate)| is_dead(fate));
        self.spared.extend(dead.map(|(key, _)| key.clone()));
    }

    /// Whether nothing needs the bytes of these.
    pub(super) fn may_lack_bytes(&self, gone: &BTreeSet<WebhookId>) -> bool {
        let is_gone = |body: &Vec<u8>| self.accepted.get(body).is_some_and(|id| gone.contains(id));
        let needs_them = |key: &(Vec<u8>, u16), fate: &Fate| {
            let is_kept = fate.expected == Expected::Dead && !self.spared.contains(key);
            fate.is_due() || (is_kept && fate.is_over())
        };
        !self.deliveries.iter().any(|(key, fate)| is_gone(&key.0) && needs_them(key, fate))
    }

    /// An operator said something of the dead letters of a target; or the disk did not take it.
    /// Nothing is to be delivered of what is gone.
    pub(super) fn decided(
        &mut self,
        target: &str,
        redriven: bool,
        is_done: bool,
        gone: &BTreeSet<WebhookId>,
    ) {
        for (key, fate) in &mut self.deliveries {
            let is_dead = fate.target == target && fate.expected == Expected::Dead;
            let is_gone = self.accepted.get(&key.0).is_some_and(|id| gone.contains(id));
            if !is_dead || fate.doubt == Doubt::Open || is_gone {
                continue;
            }
            if redriven && is_done {
                self.spared.remove(key);
            }
            // What a crash made due again is passed over, and is due.
            *fate = match (redriven, is_done) {
                (true, true) => Fate { expected: Expected::Pending, doubt: Doubt::None, ..*fate },
                (true, false) => Fate { doubt: Doubt::Refused, ..*fate },
                (false, true) if !fate.may_be_due() => {
                    Fate { expected: Expected::Delivered, doubt: Doubt::None, ..*fate }
                }
                (false, _) => {
                    Fate { expected: Expected::Delivered, doubt: Doubt::Lasting, ..*fate }
                }
            };
        }
    }
}
