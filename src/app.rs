//! The agent assembled: makes its parts, joins them, stops them in order. The only place that knows two parts.
//!
//! ```text
//! start  membership (who are we) → overlay → services → directory → router → listeners → ready
//! stop   new requests are refused → records withdrawn → answers in flight end → the rest
//! keys   certified → all stops but the services → starts with them
//! ```

mod adapters;
mod assemble;
mod copies;
mod drain;
mod glue;
mod keys;
mod members;
mod metrics;
mod neighbours;
mod options;
mod probe;
mod reach;
mod record;
mod socket;
mod standing;
mod telling;
#[cfg(test)]
mod tests;
mod view;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::socket::SOCKET;
use self::view::View;
use crate::{cli::failure::Failure, clock, config::Config, open_files, services, task::Tasks, telemetry, watchdog};

/// What is not part of answering a request has this long to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs an agent until it is asked to stop (SIGTERM, SIGINT) or a part of it fails. When its keys change it stops and
/// starts again in between, with the services running on.
pub async fn run(config: Config) -> Result<(), Failure> {
    let started_at = clock::now();
    open_files::raise();
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        hangup: signal(SignalKind::hangup())?,
    };
    let mut kept = Kept::default();
    let ended = loop {
        match once(&config, &mut kept, &mut signals, started_at).await {
            Ok(Ended::KeysChanged) => {}
            Ok(Ended::Asked) => break Ok(()),
            Err(failure) => {
                telemetry::last_words(&failure.error);
                break Err(failure);
            }
        }
    };
    watchdog::stopping();
    if !kept.stop(&config).await {
        tracing::warn!("some services did not end in time");
    }
    tracing::info!("stopped");
    ended
}

/// From one start to the next.
async fn once(config: &Config, kept: &mut Kept, signals: &mut Signals, started_at: Instant) -> Result<Ended, Failure> {
    let (tasks, ground) = (Tasks::new(), Tasks::new());
    let agent = tokio::select! {
        started = assemble::start(config, kept, &tasks, &ground, started_at) => match started {
            Ok(agent) => agent,
            Err(failure) => {
                // What was begun ends as if it had been asked to.
                _ = tasks.drain(STOP_LIMIT).await & ground.drain(STOP_LIMIT).await;
                return Err(failure);
            }
        },
        // Joining waits for a coordinator for as long as it takes; being told to stop ends it.
        _ = signals.any() => return Ok(Ended::Asked),
    };
    watchdog::ready();
    let view = agent.view.clone();
    watchdog::start(&tasks, move || {
        let view = view.clone();
        async move { view.answers().await }
    });

    let ended = tokio::select! {
        why = signals.any() => {
            tracing::info!(why, "stopping");
            Ended::Asked
        }
        () = agent.view.membership.keys_ready() => {
            tracing::info!(why = "the keys change", "starting anew");
            Ended::KeysChanged
        }
        () = tasks.stopped() => {
            tracing::error!("a part of the agent failed, stopping");
            Ended::Asked
        }
        () = kept.tasks.stopped() => {
            tracing::error!("a service failed, stopping");
            Ended::Asked
        }
        () = ground.stopped() => {
            tracing::error!("the overlay failed, stopping");
            Ended::Asked
        }
        () = agent.listeners.stopped() => {
            tracing::error!("a listener failed, stopping");
            Ended::Asked
        }
    };
    let failed = tasks.failed() || kept.tasks.failed() || ground.failed() || agent.listeners.failed();
    if matches!(ended, Ended::Asked) {
        watchdog::stopping();
    }
    agent.stop(config, &tasks, &ground).await;
    if failed {
        return Err(anyhow::anyhow!("a part of the agent failed; its log says which and why").into());
    }
    Ok(ended)
}

/// Why one run of the parts is over.
enum Ended {
    /// The agent is to end.
    Asked,
    /// It has other keys, and is to start with them.
    KeysChanged,
}

/// How the agent is told to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// It asks for the access log to be opened again. Where there is none there is nothing to do, least of all to end.
    hangup: Signal,
}

impl Signals {
    /// Which of them came.
    async fn any(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => tracing::info!("SIGHUP: the configuration stays as it was read at the start"),
            }
        }
    }
}

/// What goes on while the agent starts with other keys: services know no keys, and a model takes minutes to load.
#[derive(Default)]
struct Kept {
    tasks: Tasks,
    services: Option<services::Handle>,
}

impl Kept {
    /// The services, started if this is the first time.
    fn services(&mut self, config: &Config) -> Result<services::Handle, Failure> {
        if let Some(services) = &self.services {
            services.reopen();
            return Ok(services.clone());
        }
        let services = services::io::start(options::services(config)?, &self.tasks)?;
        Ok(self.services.insert(services).clone())
    }

    /// False if some had not ended when they should have.
    async fn stop(&self, config: &Config) -> bool {
        let commands = config.services.iter().filter(|service| !service.command.is_empty());
        let commands_end_in = commands.map(|service| service.stop_grace).max().unwrap_or_default();
        self.tasks.drain(STOP_LIMIT + commands_end_in).await
    }
}

/// A running agent, as far as stopping it needs to know.
struct Agent {
    view: Arc<View>,
    listeners: Tasks,
}

impl Agent {
    /// Leaves in order: nobody is sent to us any more, what was begun is finished, then the ground is taken away.
    async fn stop(self, config: &Config, tasks: &Tasks, ground: &Tasks) {
        self.view.ending.store(true, Ordering::Relaxed);
        let ((), drained) = tokio::join!(self.view.drain(), self.listeners.drain(config.drain_grace + STOP_LIMIT));
        self.view.membership.keep_seeds(members::seeds_of(self.view.directory.contacts(), config.dht.port));
        if !drained {
            tracing::warn!(grace = ?config.drain_grace, "some answers did not end in time and were cut");
        }
        // The overlay last: the others still say goodbye through it.
        if !(tasks.drain(STOP_LIMIT).await & ground.drain(STOP_LIMIT).await) {
            tracing::warn!("some tasks did not end in time");
        }
    }
}
