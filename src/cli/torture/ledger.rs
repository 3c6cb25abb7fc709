//! What everybody knows who is not the relay, and the findings that follows from it.

use std::collections::{HashMap, HashSet};

use crate::domain::webhook::WebhookId;

/// How many targets there are.
pub(super) const TARGETS: usize = 3;

/// A webhook as its sender and its targets know it.
#[derive(Debug, Clone, Default)]
struct Known {
    digest: u64,
    /// What it was acknowledged as.
    id: Option<WebhookId>,
    /// What it was delivered as; set by the first delivery.
    delivered_as: Option<WebhookId>,
    /// How often each target took it.
    taken: [u32; TARGETS],
}

/// What was sent, acknowledged, delivered and harmed.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    webhooks: HashMap<u64, Known>,
    known_ids: HashSet<WebhookId>,
    harmed: HashSet<WebhookId>,
    // Nobody had heard of them when the power was cut, but a delivery may have been on its way.
    cut: HashSet<WebhookId>,
    told: HashSet<WebhookId>,
    invented: Vec<String>,
    acknowledged: u64,
    refused: u64,
}

/// The figures of a run, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Bodies that were sent at least once.
    pub(super) sent: u64,
    /// Those that were answered 2xx.
    pub(super) acknowledged: u64,
    /// How often the answer was 503.
    pub(super) refused: u64,
    /// Deliveries that were taken, each of an acknowledged webhook to one target.
    pub(super) delivered: u64,
    /// Deliveries that were taken more than once.
    pub(super) repeated: u64,
    /// Acknowledged webhooks that were damaged on purpose, did not arrive, and were named by the relay.
    pub(super) damaged_told: u64,
    /// Acknowledged webhooks that did not arrive everywhere, and nobody said so.
    pub(super) lost: Vec<String>,
    /// What came that should not have come.
    pub(super) invented: Vec<String>,
}

impl Findings {
    /// Whether every promise was kept.
    pub(super) fn is_good(&self) -> bool {
        self.lost.is_empty() && self.invented.is_empty()
    }
}

/// The targets that a webhook goes to, by its number: half of them everywhere, half to the first two.
pub(super) fn wanted(number: u64) -> [bool; TARGETS] {
    [true, true, number.is_multiple_of(2)]
}

fn bits_between(one: WebhookId, other: WebhookId) -> u32 {
    (u128::from_be_bytes(*one.as_bytes()) ^ u128::from_be_bytes(*other.as_bytes())).count_ones()
}

impl Ledger {
    /// Takes note of a body before it is sent for the first time.
    pub(super) fn sending(&mut self, number: u64, digest: u64) {
        self.webhooks.insert(number, Known { digest, ..Known::default() });
    }

    /// A 2xx came.
    pub(super) fn acknowledge(&mut self, number: u64, id: WebhookId) {
        self.known_ids.insert(id);
        let spoiled = |id: &WebhookId| self.harmed.contains(id) || self.cut.contains(id);
        let Some(known) = self.webhooks.get_mut(&number) else { return };
        match known.id {
            None => {
                known.id = Some(id);
                self.acknowledged += 1;
                let delivered = known.delivered_as.filter(|other| *other != id);
                if let Some(other) = delivered.filter(|other| !spoiled(other)) {
                    self.invented.push(format!("{id} was delivered before as {other}"));
                }
            }
            // What a bit flipped in can't be recognised any more.
            Some(first) if first != id && !spoiled(&first) => {
                self.invented.push(format!("a copy of {first} was taken for new, as {id}"));
            }
            Some(_) => {}
        }
    }

    /// A 503 came: nothing is owed.
    pub(super) fn refuse(&mut self) {
        self.refused += 1;
    }

    /// A target took a delivery; `number` and `digest` are what it says of itself.
    pub(super) fn take(&mut self, target: usize, number: u64, digest: u64, id: WebhookId) {
        self.known_ids.insert(id);
        let spoiled = |id: &WebhookId| self.harmed.contains(id) || self.cut.contains(id);
        let Some(known) = self.webhooks.get_mut(&number).filter(|known| known.digest == digest)
        else {
            self.invented.push(format!("{id} has bytes that nobody sent"));
            return;
        };
        if !wanted(number).get(target).copied().unwrap_or(false) {
            self.invented.push(format!("{id} came to a target that no route gives it"));
        }
        if let Some(taken) = known.taken.get_mut(target) {
            *taken += 1;
        }
        let first = known.id.or(known.delivered_as);
        known.delivered_as.get_or_insert(id);
        if let Some(first) = first.filter(|first| *first != id && !spoiled(first)) {
            self.invented.push(format!("{first} came a second time, as {id}"));
        }
    }

    /// Something came that can't be told by its number.
    pub(super) fn invent(&mut self, text: String) {
        self.invented.push(text);
    }

    /// A bit of it was flipped.
    pub(super) fn harm(&mut self, id: WebhookId) {
        self.harmed.insert(id);
    }

    /// It was written when the power was cut, and nobody had heard of it: it may come as another.
    pub(super) fn cut(&mut self, id: WebhookId) {
        self.cut.insert(id);
    }

    fn is_spoiled(&self, id: WebhookId) -> bool {
        self.harmed.contains(&id) || self.cut.contains(&id)
    }

    /// The relay named it as damaged. Where the bit that was flipped is one of the id itself, the relay
    /// can only name what stands there now.
    pub(super) fn tell(&mut self, id: WebhookId) {
        let meant = self.harmed.iter().copied().filter(|harmed| bits_between(*harmed, id) == 1);
        let meant: Vec<WebhookId> = meant.collect();
        if meant.is_empty() && !self.is_spoiled(id) && !self.told.contains(&id) {
            self.invented.push(format!("{id} was called damaged and nobody harmed it"));
        }
        self.told.extend(meant);
        self.told.insert(id);
    }

    /// Whether anybody outside of the relay has heard of it.
    pub(super) fn knows(&self, id: WebhookId) -> bool {
        self.known_ids.contains(&id)
    }

    /// How many were answered 2xx.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// How often the answer was 503.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// How many deliveries of acknowledged webhooks are to come yet.
    pub(super) fn missing(&self) -> u64 {
        self.acknowledged_ones().map(|(_, _, missing)| missing).sum()
    }

    fn acknowledged_ones(&self) -> impl Iterator<Item = (WebhookId, &Known, u64)> {
        self.webhooks.iter().filter_map(|(number, known)| {
            let id = known.id?;
            let taken = known.taken.iter();
            let missing = wanted(*number).into_iter().zip(taken).filter(|(w, n)| *w && **n == 0);
            // Nothing more comes of what the relay has called damaged.
            let is_over = self.told.contains(&id) && self.harmed.contains(&id);
            Some((id, known, if is_over { 0 } else { missing.count() as u64 }))
        })
    }

    /// What follows from all of it.
    pub(super) fn findings(&self) -> Findings {
        let mut findings = Findings {
            sent: self.webhooks.len() as u64,
            acknowledged: self.acknowledged,
            refused: self.refused,
            invented: self.invented.clone(),
            ..Findings::default()
        };
        for (id, known, missing) in self.acknowledged_ones() {
            let taken = known.taken.iter().filter(|times| **times > 0).count() as u64;
            findings.delivered += taken;
            findings.repeated +=
                known.taken.iter().map(|n| u64::from(n.saturating_sub(1))).sum::<u64>();
            findings.damaged_told +=
                u64::from(self.told.contains(&id) && self.harmed.contains(&id));
            if missing > 0 {
                findings.lost.push(format!("{id} lacks {missing} of its deliveries"));
            }
        }
        findings.lost.sort();
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> WebhookId {
        WebhookId::from_bytes([number; 16])
    }

    fn acknowledged(number: u64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.sending(number, 7);
        ledger.acknowledge(number, id(1));
        ledger
    }

    #[test]
    fn what_was_acknowledged_and_arrived_everywhere_is_good() {
        let mut ledger = acknowledged(1);
        ledger.take(0, 1, 7, id(1));
        assert_eq!(ledger.missing(), 1);
        ledger.take(1, 1, 7, id(1));
        ledger.take(1, 1, 7, id(1));
        let findings = ledger.findings();
        assert!(findings.is_good(), "{findings:?}");
        assert_eq!((findings.sent, findings.acknowledged), (1, 1));
        assert_eq!((findings.delivered, findings.repeated, ledger.missing()), (2, 1, 0));
    }

    #[test]
    fn one_target_that_did_not_get_it_is_a_loss() {
        let mut ledger = acknowledged(2);
        ledger.take(0, 2, 7, id(1));
        ledger.take(1, 2, 7, id(1));
        let findings = ledger.findings();
        assert_eq!(findings.lost.len(), 1);
        assert!(!findings.is_good());
    }

    #[test]
    fn what_got_no_answer_may_arrive_or_not_and_only_as_one() {
        let mut ledger = Ledger::default();
        ledger.sending(1, 7);
        assert!(ledger.findings().is_good());
        ledger.take(0, 1, 7, id(1));
        assert!(ledger.findings().is_good());
        ledger.take(1, 1, 7, id(2));
        assert_eq!(ledger.findings().invented.len(), 1);
    }

    #[test]
    fn what_nobody_sent_other_bytes_and_another_target_are_invented() {
        for (target, number, digest) in [(0, 9, 7), (0, 1, 8), (2, 1, 7)] {
            let mut ledger = acknowledged(1);
            ledger.take(target, number, digest, id(1));
            assert_eq!(ledger.findings().invented.len(), 1, "{target} {number} {digest}");
        }
    }

    #[test]
    fn a_copy_that_is_taken_for_new_is_invented_whoever_hears_of_it_first() {
        let mut ledger = acknowledged(1);
        ledger.acknowledge(1, id(1));
        assert!(ledger.findings().invented.is_empty());
        ledger.acknowledge(1, id(2));
        assert_eq!(ledger.findings().invented.len(), 1);

        let mut ledger = Ledger::default();
        ledger.sending(1, 7);
        ledger.take(0, 1, 7, id(3));
        ledger.acknowledge(1, id(1));
        assert_eq!(ledger.findings().invented.len(), 1);
    }

    #[test]
    fn damage_that_was_done_has_to_be_told_and_none_else_may_be() {
        let mut ledger = acknowledged(1);
        ledger.harm(id(1));
        assert_eq!(ledger.findings().lost.len(), 1, "nobody was told");
        ledger.tell(id(1));
        let findings = ledger.findings();
        assert!(findings.is_good(), "{findings:?}");
        assert_eq!((findings.damaged_told, ledger.missing()), (1, 0));

        let mut ledger = acknowledged(1);
        ledger.tell(id(1));
        let findings = ledger.findings();
        assert_eq!((findings.invented.len(), findings.lost.len()), (1, 1));
    }

    #[test]
    fn damage_to_the_id_itself_is_told_by_what_stands_there_now() {
        let mut ledger = acknowledged(1);
        ledger.harm(id(1));
        let mut bytes = [1; 16];
        bytes[3] = 3;
        ledger.tell(WebhookId::from_bytes(bytes));
        let findings = ledger.findings();
        assert!(findings.is_good(), "{findings:?}");
        ledger.tell(id(2));
        assert_eq!(ledger.findings().invented.len(), 1);
    }
}
