//! The agent's parts, made in order and joined.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::Context;
use rand::{SeedableRng, TryRngCore, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    sync::Notify,
};
use wiremesh_certs::{TunnelUrl, Verified, files};
use zeroize::Zeroizing;

use super::{
    Agent, Kept,
    adapters::{self, Acquaintances, Coordinator, Pages, PhoneBook},
    drain,
    glue::{self, Recorder},
    keys, members,
    neighbours::Gossip,
    options, probe,
    reach::{Picked, Reach, Wants},
    record::Author,
    socket,
    telling::Telling,
    view::View,
};
use crate::{
    cli::failure::Failure,
    clock,
    config::Config,
    directory, membership,
    overlay::{self, Surroundings},
    router,
    task::Tasks,
};

/// Connections that wait in the kernel to be accepted.
const LISTEN_BACKLOG: u32 = 1024;
/// Random bytes in a key that the agent makes for its API.
const API_KEY_BYTES: usize = 32;

/// Makes the parts and joins them; the agent answers when this returns. The overlay gets tasks of its own, `ground`: it is
/// stopped after all others. What is `kept` runs on from the start before.
pub async fn start(
    config: &Config,
    kept: &mut Kept,
    tasks: &Tasks,
    ground: &Tasks,
    started_at: Instant,
) -> Result<Agent, Failure> {
    let begun_at = clock::now();
    let rng = StdRng::try_from_os_rng().context("the system gives no random numbers")?;
    let settings = options::membership(config)?;
    // What can fail here must not cost a join token, which is good for one join.
    let (reach, place) = survey(config).await?;
    let carries_packets = reach.picked == Picked::Tun;
    let shared_port = Bound::is_port_shared(config);
    let api = Bound::to("local API", config.api.listen, None, shared_port)?;
    let ingress = config.api.ingress.map(|address| Bound::to("ingress", address, None, false)).transpose()?;
    let (audience, telling) = Telling::open(config, &config.name).await?;
    let (member, session) = membership::io::load_or_join(&settings, rng).await.map_err(not_joined)?;
    let own = member.verified.clone();
    let socket = socket::bind(&config.state_dir).await?;

    let (overlay, events) = match carries_packets {
        true => {
            let settings = options::overlay(config, &member, place.surroundings, place.mapped_udp);
            let (handle, events) = overlay::start(settings, ground).await.map_err(without_overlay)?;
            (Some(handle), Some(events))
        }
        false => (None, None),
    };
    let services = kept.services(config)?;
    let tunnel_url = config.api.tunnel_url.clone().or(place.mapped_tunnel);
    let author = Author::new(member.identity.clone(), own.clone(), tunnel_url, overlay.is_some());
    let recorder = Arc::new(Recorder {
        author,
        overlay: overlay.clone(),
        services: services.clone(),
        trust: member.trust.clone(),
        leaving: AtomicBool::new(false),
    });
    let directory = directory::start(
        &options::directory(config, own.address(), overlay.as_ref()),
        member.trust.clone(),
        &member.identity,
        own.chain(),
        Arc::new(Coordinator(member.client.clone())),
        tasks,
    )
    .map_err(anyhow::Error::from)?;
    directory.add_contacts(&members::records_of(&member.seeds));

    let renewed = Arc::new(Notify::new());
    glue::start(&recorder, events, &directory, &renewed, tasks);
    let router = router::io::Router::new(router::io::Parts {
        name: own.name().clone(),
        services,
        directory: Arc::new(PhoneBook {
            directory: directory.clone(),
            me: own.id(),
            overlay_port: config.api.overlay_port,
            trust: member.trust.clone(),
            recorder: recorder.clone(),
        }),
        members: Arc::new(Acquaintances {
            overlay: overlay.clone(),
            directory: directory.clone(),
            trust: member.trust.clone(),
            recorder: recorder.clone(),
        }),
        trust: member.trust.clone(),
        prove: adapters::prove(member.identity.clone(), recorder.clone()),
        overlay: overlay.is_some(),
        audience,
        seed: rand::random(),
    })?;
    let membership = members::start(config, session, &recorder, &directory, router.clone(), renewed, tasks);
    telling.start(router.counters(), tasks);
    let prober = router.clone();
    tasks.spawn("router", |stop| prober.run(stop));

    let neighbours = match &overlay {
        Some(overlay) => {
            let (membership, directory, overlay) = (membership.clone(), directory.clone(), overlay.clone());
            let neighbours = Gossip::new(membership, directory, overlay, own.address(), config.api.overlay_port)?;
            neighbours.clone().start(tasks);
            Some(neighbours)
        }
        None => None,
    };

    let view = Arc::new(View {
        recorder,
        directory,
        membership,
        router: router.clone(),
        trust: member.trust.clone(),
        listen: config.api.listen,
        ingress: config.api.ingress,
        reach,
        wants_overlay: config.overlay.enabled,
        started_at,
        ready: AtomicBool::new(false),
        ending: AtomicBool::new(false),
    });
    let overlay_api = match overlay.is_some() {
        true => {
            let address = SocketAddr::new(own.address().0, config.api.overlay_port);
            Some(Bound::to("overlay API", address, Some(&config.overlay.interface), shared_port)?)
        }
        false => None,
    };
    let overlay_pages = neighbours.map(|neighbours| neighbours.pages()).unwrap_or_default();
    let listeners = Listeners { socket, api, overlay_api, overlay_pages, ingress };
    let listeners = serve(config, &own, &router, &view, listeners)?;
    view.ready.store(true, Ordering::Relaxed);
    let took = clock::now().saturating_duration_since(begun_at);
    tracing::info!(listen = %config.api.listen, ?took, "ready");
    Ok(Agent { view, listeners })
}

/// The key in `api.key_file`, made if there is none.
fn api_key(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    match files::read_secret(path) {
        Err(error) if error.is_missing() => {}
        read => return read.context("reading api.key_file"),
    }
    let mut bytes = Zeroizing::new([0; API_KEY_BYTES]);
    rand::rngs::OsRng.try_fill_bytes(&mut *bytes).context("the system gives no random numbers")?;
    let key = Zeroizing::new(hex::encode(*bytes));
    files::write_new_secret(path, key.as_bytes()).context("making api.key_file")?;
    tracing::info!(path = %path.display(), "made a key for clients of the API");
    Ok(key)
}

/// What else was found out of where the agent runs.
struct Surveyed {
    surroundings: Surroundings,
    /// How our UDP port is reached from outside of this container, where that can be known.
    mapped_udp: Option<SocketAddr>,
    /// The same for our ingress.
    mapped_tunnel: Option<TunnelUrl>,
}

/// Finds out how others can be reached from here, and says so.
async fn survey(config: &Config) -> Result<(Reach, Surveyed), Failure> {
    let (mut found, surroundings) = probe::look(&config.overlay.interface).await;
    if config.overlay.enabled
        && let Err(error) = overlay::check(&config.overlay.interface, config.overlay.listen_port)
    {
        match probe::lack(&error).filter(|_| !config.overlay.required) {
            Some(lack) => found.no_device = Some(lack),
            None => return Err(without_overlay(error)),
        }
    }
    let mapped = |protocol, port| probe::mapped(protocol, port, &|name| std::env::var(name).ok());
    let mapped_udp = mapped("UDP", config.overlay.listen_port);
    let open_ingress = config.api.ingress.filter(|address| !address.ip().is_loopback());
    let mapped_tunnel = open_ingress
        .and_then(|address| mapped("TCP", address.port()))
        .and_then(|address| format!("http://{address}").parse().ok());
    let wants = Wants {
        overlay: config.overlay.enabled,
        advertised: !config.overlay.advertise.is_empty() || mapped_udp.is_some(),
        tunnel: config.api.tunnel_url.is_some() || mapped_tunnel.is_some(),
    };
    let reach = Reach::of(wants, found);
    let (picked, why, more) = (reach.picked.as_str(), &reach.why, reach.advice());
    match reach.is_less_than_wanted(config.overlay.enabled) {
        true => tracing::warn!(picked, why, more, "how others are reached: less than was asked for"),
        false => tracing::info!(picked, why, more, "how others are reached"),
    }
    Ok((reach, Surveyed { surroundings, mapped_udp, mapped_tunnel }))
}

/// Where requests come in.
struct Listeners {
    socket: UnixListener,
    api: Bound,
    overlay_api: Option<Bound>,
    /// What other agents ask this one beside requests.
    overlay_pages: axum::Router,
    ingress: Option<Bound>,
}

/// Starts answering on all listeners.
fn serve(
    config: &Config,
    own: &Verified,
    router: &router::io::Router,
    view: &Arc<View>,
    listeners: Listeners,
) -> Result<Tasks, Failure> {
    let Listeners { socket, api, overlay_api, overlay_pages, ingress } = listeners;
    let (tasks, grace) = (Tasks::new(), config.drain_grace);
    let report: Arc<dyn router::Report> = Arc::new(Pages(view.clone()));
    let trust = view.trust.clone();
    let lock = match &config.api.key_file {
        Some(path) => router::io::Lock::Key(router::io::ApiKey::new(&api_key(path)?)),
        None if config.api.listen.ip().to_canonical().is_loopback() => {
            router::io::Lock::Address(router::Names::OfThisMachine)
        }
        None => router::io::Lock::Address(router::Names::Any),
    };
    let pages = socket::pages(view.clone()).merge(drain::pages(view.clone())).merge(keys::pages(view.clone()));
    let private = router.local(router::io::Lock::File, report.clone(), pages);
    tasks.spawn("socket", |stop| router::io::serve(socket, private, stop, grace));
    let local = router.local(lock, report.clone(), axum::Router::new());
    let api = api.listen()?;
    tasks.spawn("local API", |stop| router::io::serve(api, local, stop, grace));
    if let Some(bound) = overlay_api {
        let listener = bound.listen()?;
        let surface = router.overlay(trust.current().network(), report.clone(), overlay_pages);
        tasks.spawn("overlay API", |stop| router::io::serve(listener, surface, stop, grace));
    }
    if let Some(bound) = ingress {
        let listener = bound.listen()?;
        let surface = router.ingress(own.id(), report);
        tasks.spawn("ingress", |stop| router::io::serve(listener, surface, stop, grace));
    }
    Ok(tasks)
}

/// An address that is ours, where nobody is answered yet.
struct Bound {
    name: &'static str,
    address: SocketAddr,
    socket: TcpSocket,
}

impl Bound {
    /// Whether the local API is wanted on every address, with the port that other nodes use on the overlay's.
    fn is_port_shared(config: &Config) -> bool {
        config.api.listen.ip().is_unspecified() && config.api.listen.port() == config.api.overlay_port
    }

    /// Takes an address; with a `device`, for what arrives through that alone. Linux takes a packet for any of its
    /// addresses on any interface: without this a neighbour in the underlay who sends us packets for our overlay address
    /// would be connected.
    ///
    /// One that is `shared` leaves room for a listener of ours with the same port on one address and device: the kernel
    /// gives that one what is for it.
    fn to(name: &'static str, address: SocketAddr, device: Option<&str>, shared: bool) -> Result<Bound, Failure> {
        let bind = |shared: bool| {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(shared)?;
            if let Some(device) = device {
                socket.bind_device(Some(device.as_bytes()))?;
            }
            socket.bind(address)?;
            Ok(socket)
        };
        // Nobody else's: another agent of this user would share as well.
        if shared && device.is_none() {
            bind(false).map_err(|error| in_use(name, address, error))?;
        }
        let socket = bind(shared).map_err(|error| in_use(name, address, error))?;
        Ok(Bound { name, address, socket })
    }

    fn listen(self) -> Result<TcpListener, Failure> {
        self.socket.listen(LISTEN_BACKLOG).map_err(|error| in_use(self.name, self.address, error))
    }
}

fn in_use(name: &str, address: SocketAddr, error: io::Error) -> Failure {
    Failure::from(anyhow::Error::new(error).context(format!("listening on {address} ({name})")))
        .hint("is another program using the port? see [api] in the configuration")
}

fn not_joined(error: anyhow::Error) -> Failure {
    let hint = error.downcast_ref::<membership::io::JoinRefused>().and_then(|refused| refused.hint());
    match hint.map(str::to_owned) {
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
            "it needs /dev/net/tun and the capability NET_ADMIN; with overlay.required = false other nodes are reached \
             by their tunnel URLs alone"
        }
    };
    Failure::from(error.context("the overlay could not start")).hint(hint)
}
