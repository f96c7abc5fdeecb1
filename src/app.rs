//! The agent assembled: makes its parts, joins them, stops them in order. The only place that knows two parts.
//!
//! ```text
//! start  membership (who are we) → overlay → services → directory → router → listeners → ready
//! stop   new requests are refused → records withdrawn → answers in flight end → the rest
//! ```

mod adapters;
mod assemble;
mod drain;
mod glue;
mod members;
mod metrics;
mod neighbours;
mod options;
mod record;
mod socket;
mod standing;
mod telling;
#[cfg(test)]
mod tests;
mod view;

use std::{sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

pub use self::socket::SOCKET;
use self::view::View;
use crate::{cli::failure::Failure, clock, config::Config, task::Tasks};

/// What is not part of answering a request has this long to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs an agent until it is asked to stop (SIGTERM, SIGINT) or a part of it fails.
pub async fn run(config: Config) -> Result<(), Failure> {
    let started_at = clock::now();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (tasks, ground) = (Tasks::new(), Tasks::new());
    let starting = assemble::start(&config, &tasks, &ground, started_at);
    let agent = tokio::select! {
        started = starting => started?,
        // Joining waits for a coordinator for as long as it takes; being told to stop ends it.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    tokio::select! {
        _ = terminate.recv() => tracing::info!(why = "SIGTERM", "stopping"),
        _ = interrupt.recv() => tracing::info!(why = "SIGINT", "stopping"),
        () = tasks.stopped() => tracing::error!("a part of the agent failed, stopping"),
        () = ground.stopped() => tracing::error!("the overlay failed, stopping"),
        () = agent.listeners.stopped() => tracing::error!("a listener failed, stopping"),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let failed = tasks.failed() || ground.failed() || agent.listeners.failed();
    agent.stop(&config, &tasks, &ground).await;
    if failed { Err(anyhow::anyhow!("a part of the agent failed; its log says which and why").into()) } else { Ok(()) }
}

/// A running agent, as far as stopping it needs to know.
struct Agent {
    view: Arc<View>,
    listeners: Tasks,
}

impl Agent {
    /// Leaves in order: nobody is sent to us any more, what was begun is finished, then the ground is taken away.
    async fn stop(self, config: &Config, tasks: &Tasks, ground: &Tasks) {
        let ((), drained) = tokio::join!(self.view.drain(), self.listeners.drain(config.drain_grace + STOP_LIMIT));
        self.view.membership.keep_seeds(members::seeds_of(self.view.directory.contacts(), config.dht.port));
        if !drained {
            tracing::warn!(grace = ?config.drain_grace, "some answers did not end in time and were cut");
        }
        // The overlay last: the others still say goodbye through it.
        let commands = config.services.iter().filter(|service| !service.command.is_empty());
        let commands_end_in = commands.map(|service| service.stop_grace).max().unwrap_or_default();
        if !(tasks.drain(STOP_LIMIT + commands_end_in).await & ground.drain(STOP_LIMIT).await) {
            tracing::warn!("some tasks did not end in time");
        }
        tracing::info!("stopped");
    }
}
