//! What the outside knows: what senders were told, what operators were promised. Nothing in it comes from
//! the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::network::Exchange;
use super::time;
use crate::domain::source::DuplicateWindows;
use crate::domain::webhook::WebhookId;
use crate::store::CommitError;

/// What a sender has to say, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Post {
    pub(super) body: Bytes,
    pub(super) targets: Vec<Arc<str>>,
    pub(super) tries_left: u8,
    pub(super) next_try: Duration,
    /// On their way: nobody has answered yet.
    pub(super) in_flight: BTreeSet<WebhookId>,
    /// The relay died before it answered.
    pub(super) unknown: BTreeSet<WebhookId>,
    pub(super) refused: BTreeSet<WebhookId>,
    pub(super) accepted: Option<WebhookId>,
    /// Deliveries that an operator asked for: of which it is known that they were made, and of which it
    /// is not.
    pub(super) added: usize,
    pub(super) added_perhaps: usize,
    /// An operator wants it gone, and since when it is.
    pub(super) to_be_erased: bool,
    pub(super) erased: Option<(WebhookId, Duration)>,
}

impl Post {
    /// The same once more, of which nothing is known yet.
    fn again(&self) -> Self {
        let (body, targets) = (self.body.clone(), self.targets.clone());
        let refused = self.refused.clone();
        Self { body, targets, refused, ..Self::default() }
    }
}

/// All posts, and what must never have been.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) posts: Vec<Post>,
    /// Which post was tried under an id, and since when.
    pub(super) by_id: BTreeMap<WebhookId, (usize, Duration)>,
    /// How many decisions on dead letters nobody was told of yet.
    pub(super) deciding: u32,
    /// Of these targets an operator discarded dead letters.
    pub(super) discarded: BTreeSet<Arc<str>>,
    /// These were missing in the table for a while.
    pub(super) removed: BTreeSet<Arc<str>>,
    /// A start may not have known by its clock how old things are.
    pub(super) clock_was_wrong_at_a_start: bool,
    /// The last life that ended without order, or on a disk that failed.
    pub(super) last_unclean: Option<u32>,
    // In which life a target took a webhook last.
    taken: HashMap<(String, Arc<str>), u32>,
    /// How long what is delivered is kept.
    pub(super) retain: Duration,
    pub(super) violation: Option<String>,
    pub(super) tells: bool,
    digest: u64,
}

impl Ledger {
    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        // FNV-1a over all that is told.
        for byte in what.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.tells {
            println!("{:>14.3?} {what}", time::elapsed());
        }
    }

    /// The post that was accepted under an id.
    pub(super) fn of(&mut self, id: WebhookId) -> &mut Post {
        &mut self.posts[self.by_id[&id].0]
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn violated(&mut self, what: String) {
        self.tell(|| what.clone());
        self.violation.get_or_insert(what);
    }

    pub(super) fn begun(&mut self, post: usize, id: WebhookId) {
        self.tell(|| format!("post {post} is tried as {id}"));
        self.posts[post].in_flight.insert(id);
        self.by_id.insert(id, (post, time::elapsed()));
    }

    /// A try was answered. A sender that did not hear it comes again.
    pub(super) fn committed(
        &mut self,
        post: usize,
        id: WebhookId,
        result: Result<(), CommitError>,
        heard: bool,
    ) {
        self.tell(|| format!("post {post} as {id}: {result:?}, heard: {heard}"));
        let of = &mut self.posts[post];
        of.in_flight.remove(&id);
        match result {
            Ok(()) => {
                let before = of.accepted.replace(id).filter(|before| *before != id);
                // Nothing was stored under it: after a start whose clock is behind it is given again.
                of.refused.remove(&id);
                if heard {
                    of.tries_left = 0;
                }
                if let Some(before) = before {
                    self.accepted_again(post, before, id);
                }
            }
            Err(_) => {
                of.refused.insert(id);
            }
        }
    }

    /// The same bytes are another webhook when the window is over, as the clocks have it.
    fn accepted_again(&mut self, post: usize, before: WebhookId, id: WebhookId) {
        // Of what was erased nothing is known but from the index, and that may be lost.
        let was_erased = self.posts[post].to_be_erased;
        if self.is_same_window(before, id) && !was_erased {
            self.violated(format!("{before} was accepted again as {id}"));
            return;
        }
        let of = &mut self.posts[post];
        let tries_left = of.tries_left;
        let again = Post { accepted: Some(id), tries_left, ..of.again() };
        let first = std::mem::replace(of, again);
        self.posts.push(Post { accepted: Some(before), tries_left: 0, ..first });
        let number = self.posts.len() - 1;
        self.by_id.entry(before).and_modify(|(post, _)| *post = number);
    }

    /// A try was told that it repeats another one.
    pub(super) fn duplicate(&mut self, post: usize, id: WebhookId, first: WebhookId, heard: bool) {
        self.tell(|| format!("post {post} as {id}: repeats {first}, heard: {heard}"));
        let of = &mut self.posts[post];
        of.in_flight.remove(&id);
        if heard {
            of.tries_left = 0;
        }
        // The first may be durable, and nobody told of it yet.
        let may_be = of.unknown.contains(&first) || of.in_flight.contains(&first);
        match of.accepted {
            None if may_be => of.accepted = Some(first),
            Some(before) if may_be && before != first => self.accepted_again(post, before, first),
            _ => {}
        }
        let of = &self.posts[post];
        if of.accepted != Some(first) {
            let accepted = of.accepted;
            self.violated(format!("{id} repeats {first}, but {accepted:?} was accepted"));
        }
    }

    /// The relay is dead: nobody who waits is answered.
    pub(super) fn died(&mut self) {
        for post in &mut self.posts {
            post.unknown.append(&mut post.in_flight);
        }
    }

    /// A target was sent something: it must be what somebody posted, not refused, not erased, and not
    /// what it took before, unless a relay died in between.
    pub(super) fn sent(&mut self, exchange: &Exchange) {
        let Exchange { id: known_as, body, target, life, begun, status } = exchange;
        self.tell(|| {
            format!("{target} is sent {known_as}, since {begun:?}, and answers {status:?}")
        });
        if status.is_some_and(|status| (200..300).contains(&status)) {
            let key = (known_as.clone(), Arc::clone(target));
            let before = self.taken.insert(key, *life);
            if before.is_some_and(|before| self.last_unclean.is_none_or(|unclean| unclean < before))
            {
                self.violated(format!(
                    "{target} took {known_as} before, and no relay has died since"
                ));
            }
        }
        let id = known_as.split('.').next().and_then(WebhookId::parse);
        let Some((id, (post, _))) = id.and_then(|id| Some((id, *self.by_id.get(&id)?))) else {
            self.violated(format!("{known_as} was posted by nobody"));
            return;
        };
        let post = &self.posts[post];
        if post.body != *body {
            self.violated(format!("{id} has other bytes"));
        } else if post.refused.contains(&id) {
            self.violated(format!("{id} was refused, and delivered"));
        } else if post.erased.is_some_and(|(erased, at)| erased == id && at < *begun) {
            self.violated(format!("{id} was erased, and delivered"));
        } else if post.accepted.is_some_and(|accepted| self.is_same_window(accepted, id))
            && !post.to_be_erased
        {
            let accepted = post.accepted;
            self.violated(format!("{id} is another webhook than {accepted:?}"));
        }
    }

    /// Whether two webhooks of the same bytes should have been one. What retention has ended is known from
    /// the index only, and that may be lost.
    fn is_same_window(&self, one: WebhookId, other: WebhookId) -> bool {
        let (one, two) = (one.timestamp(), other.timestamp());
        let between = one.since(two).max(two.since(one));
        one != two && between < DuplicateWindows::default().activities.min(self.retain)
    }
}
