//! The coordinator in the world: HTTPS, the Unix socket, the database, the files of the authority.
//!
//! Order of leaving: listeners close, requests in flight end, what changed is written, the database is closed.

mod fleet;
mod http;
mod keys;
mod metrics;
mod rotation;
mod ruling;
mod serve;
mod shared;
mod store;
mod tls;
pub(super) mod tunnels;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use wiremesh_certs::{Signed, Trust, UnixTime};

use self::{
    ruling::Ruling,
    shared::Shared,
    store::{Saved, Store},
};
use super::{Config, config::DEFAULT_DATA_DIR, registry::RecordRefused};
use crate::{
    clock, open_files,
    task::{CancellationToken, Tasks},
    watchdog,
};

/// How often what changed is written. A crash loses at most this much of when somebody was last heard.
pub const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Members written in one transaction.
pub const FLUSH_BATCH: usize = 4096;
/// How often what no longer matters is removed from the database.
pub const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// The Unix socket in the data directory.
pub const SOCKET: &str = "coordinator.sock";
const DATABASE: &str = "coordinator.db";

/// A coordinator that runs.
pub struct Running {
    /// Where it listens, also if the configuration left the port to the system.
    pub address: SocketAddr,
    /// Where agents reach it; empty if it cannot know.
    pub urls: Vec<String>,
    /// The operator's socket.
    pub socket: PathBuf,
    /// Whether the mesh has no member yet.
    pub is_new: bool,
}

/// Runs a coordinator until it is asked to stop (SIGTERM, SIGINT) or fails.
pub async fn run(config: Config) -> anyhow::Result<()> {
    open_files::raise();
    let tasks = Tasks::new();
    // How the operator's commands find this one, where they would not by themselves.
    let elsewhere = match config.data_dir == Path::new(DEFAULT_DATA_DIR) {
        true => String::new(),
        false => format!(" --data-dir {}", config.data_dir.display()),
    };
    let running = start(config, &tasks, StdRng::from_os_rng()).await?;
    if running.is_new {
        let url = if running.urls.is_empty() { " --url https://HOST:PORT" } else { "" };
        tracing::info!(
            "nobody has joined yet; make a join token with: wiremesh token create --ttl 24h --uses 1{url}{elsewhere}"
        );
    }
    watchdog::ready();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            () = tasks.stopped() => {}
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "stopping"),
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: the configuration stays as it was read at the start");
                continue;
            }
        }
        break;
    }
    watchdog::stopping();
    let all_left = tasks.drain(serve::DRAIN + Duration::from_secs(5)).await;
    anyhow::ensure!(all_left && !tasks.failed(), "not everything ended as it should");
    Ok(())
}

/// Starts a coordinator's tasks. When this returns, it answers.
pub async fn start(config: Config, tasks: &Tasks, mut rng: StdRng) -> anyhow::Result<Running> {
    let now = clock::unix();
    let lock = keys::lock(&config.data_dir)?;
    let authority = keys::authority(&config, now, &mut rng)?;
    let admin_key = keys::admin_key(&config, &mut rng)?;
    let database = config.database.clone().unwrap_or_else(|| config.data_dir.join(DATABASE));
    let store = Store::open(&database, &authority, now)
        .await
        .with_context(|| format!("could not open the database {}", database.display()))?;
    let ruling = ruling(&config, authority, &store, now).await?;

    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("could not listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let urls = match config.public_urls.as_slice() {
        [] if address.ip().is_unspecified() => Vec::new(),
        [] => vec![format!("https://{address}")],
        urls => urls.to_vec(),
    };
    let socket_path = config.data_dir.join(SOCKET);
    let socket = serve::bind_socket(&socket_path)?;

    let stopping = tasks.token().clone();
    let (look, looks) = mpsc::channel(tunnels::MAX_WAITING);
    let shared = Arc::new(Shared::new(config, urls.clone(), ruling, store, &admin_key, (stopping, look), rng));
    let members = load(&shared, now).await.context("could not read the members from the database")?;
    if let Err(problem) = http::list_former(shared.clone()).await {
        tracing::error!(why = %problem.message, "identities that were left behind are not revoked yet");
    }
    let certificate = tls::Certificate::issue(&shared, now)?;
    let acceptor = TlsAcceptor::from(Arc::new(certificate.server_config()?));

    let (https_done, socket_done) = (CancellationToken::new(), CancellationToken::new());
    tasks.spawn("https", {
        let (shared, done) = (shared.clone(), https_done.clone().drop_guard());
        |stop| async move {
            let _done = done;
            serve::https(listener, acceptor, shared, stop).await
        }
    });
    tasks.spawn("socket", {
        let (shared, path, done) = (shared.clone(), socket_path.clone(), socket_done.clone().drop_guard());
        |stop| async move {
            let _done = done;
            serve::socket(socket, &path, shared, stop).await
        }
    });
    tasks.spawn("tls", {
        let shared = shared.clone();
        |stop| certificate.keep(shared, stop)
    });
    tasks.spawn("tunnels", {
        let shared = shared.clone();
        |stop| tunnels::keep(shared, looks, stop)
    });
    tasks.spawn("rotation", {
        let shared = shared.clone();
        |stop| rotation::keep(shared, stop)
    });
    let database = shared.store.clone();
    watchdog::start(tasks, move || {
        let database = database.clone();
        async move { database.answers().await }
    });
    tasks.spawn("store", |stop| async move {
        let _lock = lock;
        keep_written(&shared, stop).await;
        https_done.cancelled().await;
        socket_done.cancelled().await;
        flush(&shared).await;
        shared.store.close().await;
        Ok(())
    });
    tracing::info!(%address, members, "coordinator is up");
    Ok(Running { address, urls, socket: socket_path, is_new: members == 0 })
}

/// Whom the mesh believes, and the keys to it.
async fn ruling(
    config: &Config,
    first: wiremesh_certs::Authority,
    store: &Store,
    now: UnixTime,
) -> anyhow::Result<(Trust, Ruling)> {
    let (authorities, crosses) = (store.authorities().await?, store.crosses().await?);
    let trust = Trust::of(authorities.believed())?;
    let keys = keys::keys(config, first, &authorities, now)?;
    Ok((trust, Ruling::new(authorities, crosses, keys)?))
}

/// Puts the list in force that should be, and fills the registry with what was known when the last coordinator stopped.
async fn load(shared: &Shared, now: UnixTime) -> anyhow::Result<usize> {
    if let Some(signed) = shared.store.revocations().await? {
        shared.set_revocations(signed, now)?;
    }
    shared.store.tidy(shared.config.renewal_window, now).await?;
    ruling::refresh(shared).await?;
    let deaf = shared.store.flushed_at().await?.map_or(Duration::ZERO, |at| now.saturating_since(at));
    let members = shared.store.members().await?;
    let count = members.len();
    let trust = shared.trust.current();
    let mut registry = shared.registry();
    for Saved { member, said } in members {
        let (name, identity) = (member.name.clone(), member.identity);
        registry.admit(member);
        let Some(said) = said else { continue };
        // What lies in the database is believed no more than what comes over the network.
        let restored = Signed::from_bytes(&said.record)
            .map_err(wiremesh_certs::Refused::from)
            .and_then(|signed| trust.open(&signed, now))
            .map_err(|refused| refused.to_string())
            .and_then(|opened| {
                registry
                    .restore(&trust, opened, said.capabilities, said.dht_port, said.last_heartbeat, deaf)
                    .map_err(|refused: RecordRefused| refused.to_string())
            });
        if let Err(why) = restored {
            tracing::debug!(%name, %identity, why, "its last record is not taken over");
        }
    }
    Ok(count)
}

/// Writes what changed every few seconds, until stopped.
async fn keep_written(shared: &Shared, stop: CancellationToken) {
    let mut flushes = tokio::time::interval(FLUSH_EVERY);
    let mut tidies = tokio::time::interval(TIDY_EVERY);
    flushes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tidies.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = flushes.tick() => flush(shared).await,
            _ = tidies.tick() => {
                shared.copies().sweep(clock::unix());
                shared.tunnels().sweep(clock::unix());
                let tidied = shared.store.tidy(shared.config.renewal_window, clock::unix()).await;
                // What ended need not be on the list any more.
                let refreshed = match tidied {
                    Ok(()) => ruling::refresh(shared).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = refreshed {
                    tracing::warn!("could not tidy the database: {error}");
                }
            }
        }
    }
}

/// One batch after the other until nothing is left or the disk refuses; then the rest waits for the next time.
async fn flush(shared: &Shared) {
    loop {
        let changes = shared.registry().take_dirty(FLUSH_BATCH);
        let count = changes.len();
        if let Err(error) = shared.store.flush(&changes, clock::unix()).await {
            shared.metrics.flush_failures.inc();
            tracing::warn!(members = count, "could not write what changed, trying again: {error}");
            shared.registry().give_back(changes);
            return;
        }
        shared.metrics.flushes.inc();
        if count < FLUSH_BATCH {
            return;
        }
    }
}
