//! What the agent tells about itself while it runs. Logs: for people on a terminal, JSON on standard output elsewhere;
//! `RUST_LOG` chooses what is said. One line per request in the access log, spans for a collector, both if they are asked for.

pub mod access_log;
pub mod seldom;
pub mod spans;

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// What is logged unless `RUST_LOG` says otherwise. The libraries below us are silent about what they can handle; boringtun
/// calls every handshake that was not answered an error, netlink_proto warns of changes that nobody waits for any more.
const DEFAULT_FILTER: &str = "info,boringtun=off,libp2p_kad=warn,libp2p_swarm=warn,quinn=warn,sqlx=warn,\
    netlink_packet_route=error,netlink_proto=error";

/// Starts logging. Once per process.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|why| {
        if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|said| !said.is_empty()) {
            eprintln!("warning: RUST_LOG says nothing that can be understood, logging as usual: {why}");
        }
        EnvFilter::new(DEFAULT_FILTER)
    });
    let registry = tracing_subscriber::registry().with(filter);
    // A second start in one process (tests) changes nothing.
    let _ = if std::io::stdout().is_terminal() {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stdout);
        registry.with(layer.json().flatten_event(true).with_current_span(false)).try_init()
    };
}

/// Why the program ends, for whoever reads its JSON. On a terminal it is the last line anyway.
pub fn last_words(why: &anyhow::Error) {
    if !std::io::stdout().is_terminal() {
        tracing::error!("ends: {why:#}");
    }
}
