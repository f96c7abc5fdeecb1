//! A bad wire: something between two agents that loses, delays, damages and doubles datagrams on purpose, and counts
//! what it did.
//!
//! ```text
//!  near ──► port of far ──[ lost · late · damaged · doubled ]──► from port of near ──► far
//!  near ◄── from port of far ◄──[ lost · late · damaged · doubled ]── port of near ◄── far
//! ```
//!
//! Each agent advertises its port of the wire as its endpoint, and what would go past the wire is cut.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use wiremesh::sandbox::{Cut, Network, Node, Traffic};

/// Where agents listen unless told otherwise.
const AGENT_PORT: u16 = 51820;
/// The wire's own ports: where the one agent is for the other.
const NEAR_PORT: u16 = 4001;
const FAR_PORT: u16 = 4002;
/// As much as the agents give their sockets. What does not fit in is lost without being counted as injected.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// The kernel puts so much together of one sender at most.
const BUFFER_BYTES: usize = 1 << 16;
/// A datagram that is late is overtaken by so many others at most …
const OVERTAKEN_BY: usize = 12;
/// … or, when none come, waits about this long.
const LATE_BY: Duration = Duration::from_millis(1);
/// More are never held back at once: beyond it datagrams pass in their order.
const MAX_LATE: usize = 64;

/// What the wire does to datagrams, each in so many of a hundred thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairments {
    /// Not passed on.
    pub lost: u32,
    /// Passed on after others that came later.
    pub late: u32,
    /// Passed on with one bit changed.
    pub damaged: u32,
    /// Passed on twice.
    pub doubled: u32,
}

/// How many datagrams met which fate, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Everything that came.
    pub came: u64,
    /// See [`Impairments`].
    pub lost: u64,
    /// See [`Impairments`].
    pub late: u64,
    /// See [`Impairments`].
    pub damaged: u64,
    /// See [`Impairments`].
    pub doubled: u64,
}

/// A wire between two nodes, at work until it is dropped.
#[derive(Debug)]
pub struct Wire {
    near_at: SocketAddr,
    far_at: SocketAddr,
    fates: Arc<Mutex<Fates>>,
    over: Arc<AtomicBool>,
    directions: Vec<JoinHandle<()>>,
    _cut: Cut,
}

impl Wire {
    /// Cuts the UDP between `near` and `far` and stands between them, on a node of its own.
    pub fn between(
        network: &mut Network,
        near: &Node,
        far: &Node,
        impairments: Impairments,
        seed: u64,
    ) -> anyhow::Result<Wire> {
        let node = network.add("wire")?;
        let cut = network.cut(near, far, Traffic::Udp)?;
        let near_at = SocketAddr::new(node.address(), NEAR_PORT);
        let far_at = SocketAddr::new(node.address(), FAR_PORT);
        let (for_near, for_far) = node.run(|| anyhow::Ok((Port::open(near_at)?, Port::open(far_at)?)))??;
        let (for_near, for_far) = (Arc::new(for_near), Arc::new(for_far));
        let mut wire =
            Wire { near_at, far_at, fates: Arc::default(), over: Arc::default(), directions: Vec::new(), _cut: cut };
        let directions = [(&for_far, &for_near, far), (&for_near, &for_far, near)];
        for ((into, out, to), seed) in directions.into_iter().zip(seed..) {
            let direction = Direction {
                into: into.clone(),
                out: out.clone(),
                to: SocketAddr::new(to.address(), AGENT_PORT),
                impairments,
                chance: SmallRng::seed_from_u64(seed),
                fates: Fates::default(),
                told: wire.fates.clone(),
                late: Vec::with_capacity(MAX_LATE),
            };
            let over = wire.over.clone();
            wire.directions.push(thread::spawn(move || direction.run(&over)));
        }
        Ok(wire)
    }

    /// The configuration that makes others call `near` through the wire.
    pub fn near_advertises(&self) -> String {
        format!("advertise = [\"{}\"]", self.near_at)
    }

    /// The configuration that makes others call `far` through the wire.
    pub fn far_advertises(&self) -> String {
        format!("advertise = [\"{}\"]", self.far_at)
    }

    /// What happened so far.
    pub fn fates(&self) -> Fates {
        *self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            let _ = direction.join();
        }
    }
}

/// One end of the wire. One direction receives from it, the other sends by it.
#[derive(Debug)]
struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Port {
    fn open(at: SocketAddr) -> anyhow::Result<Port> {
        let socket = UdpSocket::bind(at).with_context(|| format!("binding {at}"))?;
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES)?;
        }
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(LATE_BY))?;
        Ok(Port { socket, state })
    }

    /// Sends datagrams of one size that lie side by side. What the network does not take is lost.
    fn send(&self, to: SocketAddr, bytes: &[u8], size: usize) {
        for several in bytes.chunks(size * self.state.max_gso_segments().max(1)) {
            let segment_size = (several.len() > size).then_some(size);
            let transmit = Transmit { destination: to, ecn: None, contents: several, segment_size, src_ip: None };
            let _ = self.state.try_send((&self.socket).into(), &transmit);
        }
    }
}

struct Direction {
    into: Arc<Port>,
    out: Arc<Port>,
    to: SocketAddr,
    impairments: Impairments,
    chance: SmallRng,
    /// Of this direction, since it last told them.
    fates: Fates,
    told: Arc<Mutex<Fates>>,
    late: Vec<Late>,
}

/// A datagram held back.
struct Late {
    datagram: Vec<u8>,
    /// How many others may still overtake it.
    overtaken_by: usize,
}

#[derive(Clone, Copy)]
enum Fate {
    Passed,
    Lost,
    Late,
    Damaged,
    Doubled,
}

impl Direction {
    fn run(mut self, over: &AtomicBool) {
        let mut buffer = vec![0; BUFFER_BYTES];
        while !over.load(Ordering::Relaxed) {
            let mut meta = [RecvMeta::default()];
            match self.into.state.recv((&self.into.socket).into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta) {
                Ok(_) => {
                    let [RecvMeta { len, stride, .. }] = meta;
                    self.pass(&mut buffer[..len], stride.max(1));
                    self.tell();
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    for late in self.late.drain(..) {
                        self.out.send(self.to, &late.datagram, late.datagram.len());
                    }
                }
                // The news that an earlier datagram found nobody.
                Err(_) => {}
            }
        }
    }

    /// Passes on datagrams of one size that lie side by side. Those between two impaired ones leave as one send.
    fn pass(&mut self, bytes: &mut [u8], size: usize) {
        let (mut begin, mut at) = (0, 0);
        while at < bytes.len() {
            let end = (at + size).min(bytes.len());
            let fate = self.fate();
            match fate {
                Fate::Passed => {}
                Fate::Lost | Fate::Late => {
                    self.out.send(self.to, &bytes[begin..at], size);
                    begin = end;
                }
                Fate::Damaged => {
                    let byte = self.chance.random_range(at..end);
                    bytes[byte] ^= 1 << self.chance.random_range(0..8);
                }
                Fate::Doubled => {
                    self.out.send(self.to, &bytes[begin..end], size);
                    begin = at;
                }
            }
            for late in &mut self.late {
                late.overtaken_by -= 1;
            }
            if self.late.iter().any(|late| late.overtaken_by == 0) {
                self.out.send(self.to, &bytes[begin..end], size);
                begin = end;
                for late in self.late.extract_if(.., |late| late.overtaken_by == 0) {
                    self.out.send(self.to, &late.datagram, late.datagram.len());
                }
            }
            if let Fate::Late = fate {
                let overtaken_by = self.chance.random_range(1..=OVERTAKEN_BY);
                self.late.push(Late { datagram: bytes[at..end].to_vec(), overtaken_by });
            }
            at = end;
        }
        self.out.send(self.to, &bytes[begin..], size);
    }

    fn fate(&mut self) -> Fate {
        let Impairments { lost, late, damaged, doubled } = self.impairments;
        let late = if self.late.len() < MAX_LATE { late } else { 0 };
        self.fates.came += 1;
        let draw = self.chance.random_range(0..100_000);
        let shares = [
            (lost, Fate::Lost, &mut self.fates.lost),
            (late, Fate::Late, &mut self.fates.late),
            (damaged, Fate::Damaged, &mut self.fates.damaged),
            (doubled, Fate::Doubled, &mut self.fates.doubled),
        ];
        let mut below = 0;
        for (share, fate, count) in shares {
            below += share;
            if draw < below {
                *count += 1;
                return fate;
            }
        }
        Fate::Passed
    }

    fn tell(&mut self) {
        let Fates { came, lost, late, damaged, doubled } = std::mem::take(&mut self.fates);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.came += came;
        told.lost += lost;
        told.late += late;
        told.damaged += damaged;
        told.doubled += doubled;
    }
}
