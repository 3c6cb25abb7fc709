//! What `torture` does to the store of a relay that it has just killed.

use std::io;
use std::path::Path;

use crate::domain::webhook::WebhookId;
use crate::store::embedded::harm;

/// Takes what a power cut may take of what was written last; answers how many sectors that were, and
/// which webhooks had been written last. Those that `is_known` to anybody were durable: the disk keeps
/// them. Segments up to number `old` are left alone.
pub fn cut_power(
    data: &Path,
    old: u64,
    is_known: impl Fn(WebhookId) -> bool,
    random: impl FnMut() -> u64,
) -> io::Result<(usize, Vec<WebhookId>)> {
    harm::cut_power(data, old, is_known, random).map(|cut| (cut.sectors, cut.webhooks))
}

/// The number of the newest segment; 0 if there is none.
pub fn newest_segment(data: &Path) -> io::Result<u64> {
    harm::newest_segment(data)
}

/// Flips a bit in a record by chance, and names the webhook that it is about.
pub fn flip_bit(data: &Path, random: impl FnMut() -> u64) -> io::Result<Option<WebhookId>> {
    Ok(harm::flip_bit(data, random)?.map(|flipped| flipped.webhook))
}
