//! The overlay in the world: a TUN device, a UDP socket, netlink, and what moves packets between them.
//!
//! `overlay-outbound` and `overlay-inbound` carry packets on threads of their own (see [`lanes`]). The task `overlay` owns
//! the machine, which takes what they leave and keeps time; `overlay-links` watches the machine's network interfaces and
//! keeps endpoints and MTU true to them. Everybody else holds a [`Handle`].

mod handle;
mod lanes;
mod links;
mod moderation;
mod sys;
#[cfg(test)]
mod tests;
pub mod tun;
pub mod udp;
mod watching;

use std::{collections::BTreeMap, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use anyhow::Context;
use ipnet::IpNet;
use rand::TryRngCore;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant as Deadline, sleep_until},
};
use wiremesh_certs::{OverlayIp, TrustStore, WgPrivateKey};

pub use self::handle::Handle;
use self::{
    handle::Command,
    lanes::Asides,
    links::Links,
    moderation::Moderation,
    tun::{Tun, TunDevice},
    udp::{Udp, UnderlaySocket, Wait},
    watching::Watching,
};
use super::{
    Aside, ConfiguredPeer, Event, Offloads, Overlay, Parameters,
    endpoints::{self, Surroundings, Survey},
    offload::Takes,
    ping::{PingFailed, PingId, Pong},
    status::Place,
};
use crate::{
    clock,
    task::{CancellationToken, Tasks},
};

/// Commands that wait for the loop; who sends more waits for room.
const MAX_COMMANDS: usize = 256;
/// Events that wait for the app; beyond it they are lost, and questions asked again.
const MAX_EVENTS: usize = 256;
/// What a thread that carries packets may leave to the loop; beyond it is dropped. A few milliseconds of handshakes.
const MAX_ASIDES: usize = 512;
/// What the loop takes of that at once, before it sends what follows.
const ASIDES_AT_ONCE: usize = 32;
/// When nothing is due the loop still looks around this often.
const IDLE: Duration = Duration::from_secs(3600);

/// What the operator and the certificate say about the overlay.
#[derive(Clone)]
pub struct Settings {
    /// The TUN device's name.
    pub interface: String,
    /// The UDP port; 0 for any.
    pub listen_port: u16,
    /// The device's MTU; none: from the underlay.
    pub mtu: Option<u16>,
    /// Endpoints that others should try first.
    pub advertise: Vec<SocketAddr>,
    /// Where the agent runs.
    pub surroundings: Surroundings,
    /// Standard WireGuard peers.
    pub peers: Vec<ConfiguredPeer>,
    /// The age at which a session gets new keys, [`super::REKEY_AFTER`] at most.
    pub rekey_after: Duration,
    /// What the kernel may do with many packets at once.
    pub offloads: Offloads,
    /// Our WireGuard key.
    pub key: Arc<WgPrivateKey>,
    /// Our overlay address.
    pub address: OverlayIp,
    /// The overlay network.
    pub network: IpNet,
    /// Whom to believe.
    pub trust: Arc<TrustStore>,
}

/// Whether this machine lets us have what [`start`] will need. For before joining, which cannot be undone.
pub fn check(interface: &str, listen_port: u16) -> anyhow::Result<()> {
    let offloads = Offloads::default();
    UnderlaySocket::bind(listen_port, &offloads).with_context(|| format!("opening UDP port {listen_port}"))?;
    TunDevice::create(interface, &offloads).with_context(|| format!("creating the TUN device {interface}"))?;
    Ok(())
}

/// Looks at the network interfaces, once. `own` is the overlay's own.
pub async fn survey(own: &str, surroundings: &Surroundings) -> anyhow::Result<Survey> {
    let interfaces = Links::look().await.context("listing network interfaces")?;
    Ok(endpoints::survey(&interfaces, own, surroundings))
}

/// Makes the interface and starts carrying packets. The interface, its address and its routes are gone when the tasks
/// have stopped, however they stopped: they live as long as the device is open.
pub async fn start(settings: Settings, tasks: &Tasks) -> anyhow::Result<(Handle, mpsc::Receiver<Event>)> {
    let Settings { interface, listen_port, mtu, advertise, surroundings, peers, rekey_after, offloads, .. } = settings;
    let Settings { key, address, network, trust, .. } = settings;
    let udp =
        UnderlaySocket::bind(listen_port, &offloads).with_context(|| format!("opening UDP port {listen_port}"))?;
    let listen_port = udp.port()?;
    let families = udp.families();
    let links = Links::open(tasks).context("opening netlink")?;
    let interfaces = links.interfaces().await.context("listing network interfaces")?;
    let fixed_mtu = mtu.map(|mtu| mtu.max(endpoints::MIN_MTU));
    let mtu = fixed_mtu.unwrap_or_else(|| endpoints::overlay_mtu(&interfaces, &interface, families));
    // Without the device there is no overlay: what was begun ends quietly, the error says all.
    let tun = TunDevice::create(&interface, &offloads)
        .inspect_err(|_| tasks.stop())
        .with_context(|| format!("creating the TUN device {interface}"))?;
    links
        .set_up(&interface, address, &network, mtu)
        .await
        .inspect_err(|_| tasks.stop())
        .with_context(|| format!("setting up {interface} with {address} in {network}"))?;
    tracing::info!(%interface, %address, mtu, listen_port, "overlay is up");

    let parameters = Parameters {
        key: &key,
        address,
        network,
        trust,
        rekey_after,
        beat: clock::beat(),
        seed: rand::rngs::OsRng.try_next_u64()?,
    };
    let mut overlay = Overlay::new(parameters, clock::now());
    for peer in &peers {
        overlay
            .configure_peer(peer, clock::now())
            .with_context(|| format!("the configured peer {}", peer.public_key))?;
    }

    let interface_name = interface.clone();
    let watching = Watching {
        interface: interface_name,
        listen_port,
        advertise,
        families,
        fixed_mtu,
        network,
        address,
        surroundings,
    };
    let place = Place { interface, listen_port, mtu, endpoints: watching.endpoints(&interfaces) };
    overlay.set_bridges(place.endpoints.bridges());
    let (place_sender, place) = watch::channel(place);
    let (commands_sender, commands) = mpsc::channel(MAX_COMMANDS);
    let (events_sender, events) = mpsc::channel(MAX_EVENTS);
    let takes = tun.takes();
    let (tun, udp) = (Arc::new(tun), Arc::new(udp));
    let asides = carry(&overlay, takes, &tun, &udp, tasks);
    let closing = Arc::clone(&udp);
    tasks.spawn("overlay-links", |stop| watching.run(links, place_sender, stop, move || closing.close()));
    let outside = Outside { tun, udp, asides, commands, events: events_sender, place: place.clone() };
    let handle = Handle::new(commands_sender, place, overlay.shared());
    tasks.spawn("overlay", |stop| run(overlay, outside, stop));
    Ok((handle, events))
}

/// Starts the threads that carry packets. What they leave to the loop.
fn carry<T: Tun, U: Udp>(
    overlay: &Overlay,
    takes: Takes,
    tun: &Arc<T>,
    udp: &Arc<U>,
    tasks: &Tasks,
) -> [mpsc::Receiver<Aside>; 2] {
    let [moderates_outbound, moderates_inbound] = Moderation::pair();
    let (machine, tun_there, udp_there) = (overlay.outbound(), Arc::clone(tun), Arc::clone(udp));
    let (sender, left_outbound) = mpsc::channel(MAX_ASIDES);
    let asides = Asides::new(sender, Arc::clone(overlay.counters()));
    tasks.spawn("overlay-outbound", |stop| {
        let moderation = moderates_outbound;
        lanes::run("wm-outbound", stop, move || lanes::outbound(machine, &*tun_there, &*udp_there, &asides, moderation))
    });
    let (machine, tun_there, udp_there) = (overlay.inbound(takes), Arc::clone(tun), Arc::clone(udp));
    let (sender, left_inbound) = mpsc::channel(MAX_ASIDES);
    let asides = Asides::new(sender, Arc::clone(overlay.counters()));
    tasks.spawn("overlay-inbound", |stop| {
        let (stopped, moderation) = (stop.clone(), moderates_inbound);
        lanes::run("wm-inbound", stop, move || {
            lanes::inbound(machine, &*tun_there, &*udp_there, &asides, moderation, &stopped)
        })
    });
    [left_outbound, left_inbound]
}

/// Everything the loop waits for and writes to.
struct Outside<T, U> {
    tun: Arc<T>,
    udp: Arc<U>,
    /// Apart, so that a flood from one side leaves room for the other.
    asides: [mpsc::Receiver<Aside>; 2],
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    place: watch::Receiver<Place>,
}

/// Does what the threads that carry packets leave to do, until `stop`.
async fn run<T: Tun, U: Udp>(
    mut overlay: Overlay,
    outside: Outside<T, U>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Outside { tun, udp, asides: [mut left_outbound, mut left_inbound], mut commands, events, mut place } = outside;
    let mut pings = BTreeMap::new();
    let mut outbound = Vec::with_capacity(ASIDES_AT_ONCE);
    let mut inbound = Vec::with_capacity(ASIDES_AT_ONCE);
    let mut alarm = pin!(sleep_until(Deadline::now() + IDLE));
    loop {
        let (wake_at, why) = overlay.poll_timeout().unwrap_or((clock::now() + IDLE, "idle"));
        if alarm.deadline() != Deadline::from_std(wake_at) {
            alarm.as_mut().reset(Deadline::from_std(wake_at));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),

            () = &mut alarm => {
                tracing::trace!(why, "woke");
                overlay.handle_timeout(clock::now(), clock::unix());
            }

            Some(command) = commands.recv() => obey(command, &mut overlay, &mut pings, &place),

            Ok(()) = place.changed() => overlay.set_bridges(place.borrow_and_update().endpoints.bridges()),

            1.. = left_outbound.recv_many(&mut outbound, ASIDES_AT_ONCE) => {}

            1.. = left_inbound.recv_many(&mut inbound, ASIDES_AT_ONCE) => {}
        }
        for aside in outbound.drain(..).chain(inbound.drain(..)) {
            overlay.handle_aside(aside, clock::now(), clock::unix());
        }
        flush(&mut overlay, &*tun, &*udp);
        while let Some(event) = overlay.poll_event() {
            if let Err(error) = events.try_send(event) {
                tracing::debug!(%error, "event lost");
            }
        }
        while let Some((id, result)) = overlay.poll_pong() {
            if let Some(asker) = pings.remove(&id) {
                // Whoever asked may have gone.
                let _: Result<(), _> = oneshot::Sender::send(asker, result);
            }
        }
    }
}

/// Does what the machine asks of the device and the socket. Neither makes the loop wait.
fn flush(overlay: &mut Overlay, tun: &impl Tun, udp: &impl Udp) {
    while let Some(transmit) = overlay.poll_transmit() {
        let to = transmit.to;
        if let Err(dropped) = udp.send(&transmit, Wait::No) {
            overlay.on_send_failed(to, dropped, clock::now());
        }
    }
    while let Some(packet) = overlay.poll_packet() {
        if let Err(error) = lanes::write_plain(tun, packet) {
            tracing::trace!(%error, "the TUN device refused a packet");
            overlay.on_device_failed();
        }
    }
}

fn obey(
    command: Command,
    overlay: &mut Overlay,
    pings: &mut BTreeMap<PingId, oneshot::Sender<Result<Pong, PingFailed>>>,
    place: &watch::Receiver<Place>,
) {
    let (now, unix) = (clock::now(), clock::unix());
    match command {
        Command::UpsertPeer(verified, record) => {
            if let Err(why) = overlay.upsert_peer(&verified, &record, now, unix) {
                tracing::debug!(name = %verified.name(), %why, "not taken as a peer");
            }
        }
        Command::RefreshPeer(verified, record) => {
            if let Err(why) = overlay.refresh_peer(&verified, &record, now, unix) {
                tracing::debug!(name = %verified.name(), %why, "the peer stays as it was");
            }
        }
        Command::Unresolvable(address) => overlay.unresolvable(address, now),
        Command::SetOwnRecord(record) => {
            if let Err(why) = overlay.set_own_record(record, now, unix) {
                tracing::warn!(%why, "our own record is refused; nobody new can be introduced to us");
            }
        }
        Command::TrustChanged => overlay.trust_changed(),
        Command::Ping(to, answer) => match overlay.ping(to, now) {
            Ok(id) => _ = pings.insert(id, answer),
            Err(why) => _ = answer.send(Err(why)),
        },
        Command::Status(answer) => _ = answer.send(overlay.status(&place.borrow(), now)),
    }
}
