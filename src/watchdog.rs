//! What a supervisor is told (`sd_notify(3)`): ready, stopping, and at intervals that the program still does its work.
//! Where no supervisor asked to be told, nothing happens.

use std::future::Future;

use sd_notify::NotifyState;

use crate::{clock, task::Tasks};

/// What was begun is done: what needs us may be started.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// We are about to end.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// Says twice in every interval that the supervisor gives us (`WatchdogSec=`) that we are alive. `alive` asks whatever may
/// hang and returns when that has answered; if it does not, nothing is said, and the supervisor starts us again.
pub fn start<F>(tasks: &Tasks, alive: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send,
{
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    tasks.spawn("watchdog", |stop| async move {
        let mut due = clock::beats(interval / 2);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = async {
                    due.tick().await;
                    alive().await;
                } => tell(NotifyState::Watchdog),
            }
        }
    });
}

/// A supervisor that cannot be told is no reason to do otherwise.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the supervisor was not told");
    }
}
