//! The agent assembled: makes its parts, joins them, stops them in order. The only place that knows two parts.
//!
//! ```text
//! start  membership (who are we) → overlay → services → directory → router → listeners → ready
//! stop   new requests are refused → records withdrawn → answers in flight end → the rest
//! ```

mod adapters;
mod glue;
mod metrics;
mod record;
mod socket;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
};
use wiremesh_certs::{JoinToken, NodeRecord, ServiceName, Signed, files};

pub use self::socket::SOCKET;
use self::{
    adapters::{Coordinator, Pages, PhoneBook},
    glue::Recorder,
    record::Author,
    view::View,
};
use crate::{
    api::Seed,
    cli::failure::Failure,
    clock,
    config::{Config, JoinTokenSource},
    directory, membership, overlay, router, services,
    task::{CancellationToken, Tasks},
};

/// What is not part of answering a request has this long to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether other members are worth knowing after a restart.
const KEEP_CONTACTS_EVERY: Duration = Duration::from_secs(5);

/// Runs an agent until it is asked to stop (SIGTERM, SIGINT) or a part of it fails.
pub async fn run(config: Config) -> Result<(), Failure> {
    let started_at = clock::now();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (tasks, ground) = (Tasks::new(), Tasks::new());
    let starting = start(&config, &tasks, &ground, started_at);
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
    router: router::io::Router,
    listeners: Tasks,
}

async fn start(config: &Config, tasks: &Tasks, ground: &Tasks, started_at: Instant) -> Result<Agent, Failure> {
    let rng = StdRng::try_from_os_rng().context("the system gives no random numbers")?;
    let (member, session) =
        membership::io::load_or_join(&membership_settings(config)?, rng).await.map_err(not_joined)?;
    let own = member.verified.clone();
    let socket = socket::bind(&config.state_dir).await?;

    let (overlay, events) = match config.overlay.enabled {
        true => {
            let settings = overlay_settings(config, &member, &own);
            let (handle, events) = overlay::start(settings, ground).await.map_err(without_overlay)?;
            (Some(handle), Some(events))
        }
        false => (None, None),
    };
    let services = services::io::start(services_config(config)?, tasks)?;
    let tunnel_url = config.api.tunnel_url.clone();
    let author = Author::new(member.identity.clone(), own.clone(), tunnel_url, overlay.is_some());
    let recorder = Arc::new(Recorder {
        author,
        overlay: overlay.clone(),
        services: services.clone(),
        leaving: AtomicBool::new(false),
    });
    let directory = directory::start(
        &directory::Settings {
            table: config.dht.enabled && overlay.is_some(),
            port: config.dht.port,
            device: overlay.as_ref().map(|_| config.overlay.interface.clone()),
            mtu: overlay.as_ref().map_or(crate::config::MIN_OVERLAY_MTU, overlay::Handle::mtu),
            ..directory::Settings::at(own.address())
        },
        member.trust.clone(),
        &member.identity,
        own.chain(),
        Arc::new(Coordinator(member.client.clone())),
        tasks,
    )
    .map_err(anyhow::Error::from)?;
    directory.add_contacts(&records_of(&member.seeds));

    let renewed = Arc::new(Notify::new());
    glue::start(&recorder, events, &directory, &renewed, tasks);
    let membership = session.handle();
    let (sender, membership_events) = mpsc::channel(membership::io::MAX_EVENTS);
    let sources = sources(config, &recorder, overlay.is_some());
    tasks.spawn("membership", |stop| session.run(sources, sender, stop));
    let follow = Follow {
        recorder: recorder.clone(),
        directory: directory.clone(),
        trust: member.trust.clone(),
        renewed: renewed.clone(),
    };
    tasks.spawn("membership events", |stop| follow.run(membership_events, stop));
    let (kept, membership_too, dht_port) = (directory.clone(), membership.clone(), config.dht.port);
    tasks.spawn("keep contacts", |stop| keep_contacts(kept, membership_too, dht_port, stop));
    let (changed, membership_too) = (services.changes(), membership.clone());
    tasks.spawn("announce", |stop| announce(changed, membership_too, stop));

    let router = router::io::Router::new(router::io::Parts {
        name: own.name().clone(),
        services,
        directory: Arc::new(PhoneBook {
            directory: directory.clone(),
            me: own.id(),
            overlay_port: config.api.overlay_port,
        }),
        prove: adapters::prove(member.identity.clone(), recorder.clone()),
        overlay: overlay.is_some(),
        seed: rand::random(),
    })?;
    let prober = router.clone();
    tasks.spawn("router", |stop| prober.run(stop));
    let view = Arc::new(View {
        recorder,
        directory,
        membership,
        router: router.clone(),
        trust: member.trust.clone(),
        listen: config.api.listen,
        ingress: config.api.ingress,
        started_at,
        ready: AtomicBool::new(false),
    });
    let socket_view = view.clone();
    tasks.spawn("socket", |stop| socket::serve(socket, socket_view, stop));
    let listeners = listen(config, &own, &router, &view, overlay.is_some()).await?;
    view.ready.store(true, Ordering::Relaxed);
    tracing::info!(
        listen = %config.api.listen,
        took_ms = clock::now().saturating_duration_since(started_at).as_millis() as u64,
        "ready"
    );
    Ok(Agent { view, router, listeners })
}

impl Agent {
    /// Leaves in order: nobody is sent to us any more, what was begun is finished, then the ground is taken away.
    async fn stop(self, config: &Config, tasks: &Tasks, ground: &Tasks) {
        self.view.recorder.leaving.store(true, Ordering::Relaxed);
        self.router.drain();
        self.view.membership.announce();
        let withdrawing = async {
            if let Some(record) = self.view.recorder.record()
                && let Err(why) = self.view.directory.withdraw(&record).await
            {
                tracing::debug!(%why, "not withdrawn, our record ends by itself");
            }
        };
        let ((), drained) = tokio::join!(withdrawing, self.listeners.drain(config.drain_grace + STOP_LIMIT));
        self.view.membership.keep_seeds(seeds_of(self.view.directory.contacts(), config.dht.port));
        if !drained {
            tracing::warn!(grace = ?config.drain_grace, "some answers did not end in time and were cut");
        }
        // The overlay last: the others still say goodbye through it.
        if !(tasks.drain(STOP_LIMIT).await & ground.drain(STOP_LIMIT).await) {
            tracing::warn!("some tasks did not end in time");
        }
        tracing::info!("stopped");
    }
}

/// Opens all listeners and starts answering on them.
async fn listen(
    config: &Config,
    own: &wiremesh_certs::Verified,
    router: &router::io::Router,
    view: &Arc<View>,
    overlay: bool,
) -> Result<Tasks, Failure> {
    let listeners = Tasks::new();
    let report: Arc<dyn router::Report> = Arc::new(Pages(view.clone()));
    let trust = view.trust.clone();
    let key = match &config.api.key_file {
        Some(path) => Some(router::io::ApiKey::new(&files::read_secret(path).context("reading api.key_file")?)),
        None => None,
    };
    let local = router.local(key, report.clone(), axum::Router::new());
    let mut surfaces = vec![("local API", config.api.listen, local)];
    if overlay {
        let address = SocketAddr::new(own.address().0, config.api.overlay_port);
        let surface = router.overlay(trust.current().network(), report.clone(), axum::Router::new());
        surfaces.push(("overlay API", address, surface));
    }
    if let Some(address) = config.api.ingress {
        surfaces.push(("ingress", address, router.ingress(own.id(), trust, report)));
    }
    for (name, address, surface) in surfaces {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("listening on {address} ({name})")).map_err(
                |error| Failure::from(error).hint("is another program using the port? see [api] in the configuration"),
            )?;
        let grace = config.drain_grace;
        listeners.spawn(name, |stop| router::io::serve(listener, surface, stop, grace));
    }
    Ok(listeners)
}

/// Passes on what our place in the mesh brings: a new certificate, revocations, people to meet.
struct Follow {
    recorder: Arc<Recorder>,
    directory: directory::Handle,
    trust: Arc<wiremesh_certs::TrustStore>,
    renewed: Arc<Notify>,
}

impl Follow {
    async fn run(
        self,
        mut events: mpsc::Receiver<membership::io::Event>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                event = events.recv() => event,
            };
            match event {
                Some(event) => self.handle(event).await,
                None => {
                    stop.cancelled().await;
                    return Ok(());
                }
            }
        }
    }

    async fn handle(&self, event: membership::io::Event) {
        match event {
            membership::io::Event::Renewed(own) => {
                if let Err(error) = self.directory.set_chain(own.chain()) {
                    tracing::error!("the renewed certificate cannot be used for the DHT: {error:#}");
                }
                self.recorder.author.set_own(own);
                self.renewed.notify_one();
            }
            membership::io::Event::RevocationsChanged => {
                if let Some(overlay) = &self.recorder.overlay {
                    overlay.trust_changed().await;
                }
            }
            membership::io::Event::Seeds(seeds) => {
                self.directory.add_contacts(&records_of(&seeds));
            }
            // Said in the log by the membership itself, and shown by the status.
            membership::io::Event::CoordinatorReached | membership::io::Event::CoordinatorLost => {}
            membership::io::Event::Introductions(records) => {
                self.directory.add_contacts(&records);
                let Some(overlay) = &self.recorder.overlay else { return };
                for record in records {
                    // They are about to call us: calling them too opens the way through a NAT on our side.
                    let Ok(opened) = self.trust.current().open(&record, clock::unix()) else { continue };
                    let address = opened.by.address();
                    overlay.upsert_peer(opened.by, opened.payload).await;
                    if let Err(why) = overlay.ping(address).await {
                        tracing::debug!(%address, %why, "introduced, and not reached yet");
                    }
                }
            }
        }
    }
}

/// Hands the members worth knowing after a restart to the membership, which keeps them on disk: when others are known, or
/// the known are elsewhere, not whenever one publishes again.
async fn keep_contacts(
    directory: directory::Handle,
    membership: membership::io::Handle,
    dht_port: u16,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut kept = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(KEEP_CONTACTS_EVERY) => {}
        }
        let contacts = directory.contacts();
        let places = contacts.iter().map(|entry| (entry.id(), entry.record().endpoints.clone())).collect();
        if kept != places {
            membership.keep_seeds(seeds_of(contacts, dht_port));
            kept = places;
        }
    }
}

fn seeds_of(contacts: Vec<directory::Entry>, dht_port: u16) -> Vec<Seed> {
    let seed = |entry: directory::Entry| Seed {
        worker_id: entry.name().clone(),
        vpn_ip: entry.address(),
        tunnel_url: entry.record().tunnel_url.clone(),
        dht_port,
        record: entry.signed().clone(),
    };
    contacts.into_iter().map(seed).collect()
}

/// The coordinator hears at once of services that came or went.
async fn announce(
    mut services: tokio::sync::watch::Receiver<Arc<[ServiceName]>>,
    membership: membership::io::Handle,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = services.changed() => changed?,
        }
        membership.announce();
    }
}

fn sources(config: &Config, recorder: &Arc<Recorder>, overlay: bool) -> membership::io::Sources {
    let (recorder, services) = (recorder.clone(), recorder.services.clone());
    let capabilities = move || match serde_json::to_value(&*services.capabilities()) {
        Ok(serde_json::Value::Object(capabilities)) => capabilities,
        _ => serde_json::Map::new(),
    };
    membership::io::Sources {
        record: Box::new(move || recorder.record()),
        capabilities: Box::new(capabilities),
        dht_port: (config.dht.enabled && overlay).then_some(config.dht.port),
    }
}

fn records_of(seeds: &[Seed]) -> Vec<Signed<NodeRecord>> {
    seeds.iter().map(|seed| seed.record.clone()).collect()
}

fn membership_settings(config: &Config) -> Result<membership::io::Settings, Failure> {
    let text = match &config.join_token {
        Some(JoinTokenSource::Text(text)) => Some(zeroize::Zeroizing::new(text.clone())),
        Some(JoinTokenSource::File(path)) => match files::read_secret(path) {
            Ok(text) => Some(text),
            // Once joined the token is not needed, and a secret that is used up may be gone.
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(Failure::usage(anyhow::Error::new(error).context("reading the join token"))),
        },
        None => None,
    };
    let token = text
        .map(|text| text.parse::<JoinToken>())
        .transpose()
        .map_err(|bad| Failure::usage(bad).hint("make one with: wiremesh token create, on the coordinator"))?;
    let token_file = match &config.join_token {
        Some(JoinTokenSource::File(path)) => Some(path.clone()),
        Some(JoinTokenSource::Text(_)) | None => None,
    };
    Ok(membership::io::Settings {
        token_file,
        state_dir: config.state_dir.clone(),
        name: config.name.clone(),
        token,
        coordinators: config.coordinators.clone(),
    })
}

fn overlay_settings(
    config: &Config,
    member: &membership::io::Member,
    own: &wiremesh_certs::Verified,
) -> overlay::Settings {
    overlay::Settings {
        interface: config.overlay.interface.clone(),
        listen_port: config.overlay.listen_port,
        mtu: config.overlay.mtu,
        advertise: config.overlay.advertise.clone(),
        peers: config
            .overlay
            .peers
            .iter()
            .map(|peer| overlay::ConfiguredPeer {
                public_key: peer.public_key,
                allowed: peer.allowed.clone(),
                endpoint: peer.endpoint,
                keepalive_secs: peer.keepalive_secs,
            })
            .collect(),
        key: member.wg.clone(),
        address: own.address(),
        network: member.trust.current().network(),
        trust: member.trust.clone(),
    }
}

fn services_config(config: &Config) -> Result<services::Config, Failure> {
    let service = |service: &crate::config::ServiceConfig| {
        Ok(services::ServiceConfig {
            name: service.name.clone(),
            upstream: service.upstream.parse().map_err(Failure::usage)?,
            health: service.health.clone(),
            command: service.command.clone(),
            max_concurrency: service.max_concurrency as usize,
            queue: service.queue as usize,
        })
    };
    Ok(services::Config {
        services: config.services.iter().map(service).collect::<Result<_, Failure>>()?,
        worker_type: None,
    })
}

fn not_joined(error: anyhow::Error) -> Failure {
    let hint =
        error.downcast_ref::<membership::io::JoinRefused>().and_then(|refused| refused.hint()).map(str::to_owned);
    match hint {
        Some(hint) => Failure::from(error).hint(hint),
        None => Failure::from(error),
    }
}

fn without_overlay(error: anyhow::Error) -> Failure {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    let hint = match cause {
        Some(std::io::ErrorKind::AddrInUse) => {
            "another program, or another agent, uses this port: name another one as [overlay] listen_port"
        }
        Some(std::io::ErrorKind::AlreadyExists) => {
            "another interface has the overlay's network: one agent for each machine or network namespace, and no VPN \
             with the same addresses"
        }
        Some(std::io::ErrorKind::ResourceBusy) => {
            "another program, or another agent, has this interface: name another one as [overlay] interface"
        }
        _ => {
            "it needs /dev/net/tun and the capability NET_ADMIN; with overlay.enabled = false other nodes are reached \
             by their tunnel URLs alone"
        }
    };
    Failure::from(error.context("the overlay could not start")).hint(hint)
}
