//! A target that fails while webhooks for it come in, and what must hold of lanes all the while.

use std::sync::Arc;
use std::time::Duration;

use super::network::Mood;
use super::play::Play;

impl Play {
    /// Long enough for a lane to be suspended, and for probes among webhooks that were tried and such that
    /// were not. How it ends is for the steps after it to say.
    pub(super) async fn outage(&mut self) {
        let target = Arc::clone(&self.place.targets[self.random.usize(..3)].name);
        self.tell(|| format!("{target} fails for a while"));
        self.network.set_mood(&target, Mood::Failing);
        for _ in 0..self.random.u32(4..12) {
            for _ in 0..self.random.u32(..4) {
                self.post_to(vec![Arc::clone(&target)]);
                self.turns().await;
            }
            let wait = Duration::from_millis(self.random.u64(50..3_000));
            self.pass(wait).await;
            self.nobody_sleeps().await;
        }
    }

    /// What is due is leased once everybody had a turn, wherever its lane may begin something.
    pub(super) async fn nobody_sleeps(&mut self) {
        for _ in 0..10 {
            if self.alive().asleep().is_none() {
                return;
            }
            self.turns().await;
        }
        assert_eq!(self.alive().asleep(), None);
    }
}
