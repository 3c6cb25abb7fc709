//! What a service manager is told: ready, reloading, stopping, alive. Nothing where there is none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::net::address::Address;
use crate::store::embedded::EmbeddedStore;

/// It accepts and delivers.
pub(super) fn ready(listen: SocketAddr, admin: &Address) {
    let status = format!("Accepting on {listen} and delivering; admin address {admin}");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// It ends in order.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("Finishing what is in flight")]);
}

/// It reads its files again; to be followed by [`reloaded`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Its files were read. It is ready in any case: where they are bad, what was in force stays.
pub fn reloaded(is_good: bool) {
    let status = if is_good {
        "Accepting and delivering; the last reload was good"
    } else {
        "Accepting and delivering; the last reload was REFUSED, the log says why: what was in force stays"
    };
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Within which time it has to say that it is alive, if anybody asks for that.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero())
}

/// Says twice within `within` that the relay is alive, each time that the thread on which every acknowledgement
/// depends has answered: on a runtime that is stuck this does not run, and a store that is stuck does
/// not answer.
pub(super) async fn keep_alive(
    within: Duration,
    store: Arc<EmbeddedStore>,
    stop: CancellationToken,
) {
    let mut beat = interval(within / 2);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_late = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        if timeout(within / 2, store.answers()).await.is_ok() {
            tell(&[NotifyState::Watchdog]);
            is_late = false;
        } else if !std::mem::replace(&mut is_late, true) {
            tracing::warn!("The store does not answer: the service manager's watchdog is not fed.");
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "The service manager can't be told.");
    }
}
