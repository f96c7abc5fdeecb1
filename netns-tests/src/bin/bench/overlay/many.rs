//! Many peers at once: one device, and peers that are no more than sessions in this program.
//!
//! ```text
//!   far                                        near
//!   peer 1 ─ session ─ socket ──┐         ┌── the device ── echo server
//!   peer 2 ─ session ─ socket ──┼─ cable ─┤
//!   …                           │         │
//!   peer n ─ session ─ socket ──┘
//! ```
//!
//! Each peer has a few requests under way and sends the next when an answer has come, so that the rate is what the
//! device can do without losses of its own making. Every answer is looked at whole.

mod echo;
mod peer;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use netns_tests::forge;
use wiremesh::clock;
use wiremesh_certs::{WgPrivateKey, WgPublicKey};

use self::peer::Peer;
use super::{
    implementations::{Device, Implementation},
    measures::Numbers,
    place::{Cable, Place, Side},
};

/// Where every device listens.
const DEVICE_PORT: u16 = 51820;
const ECHO_PORT: u16 = 7007;
/// Between the first calls of two peers: devices under more handshakes than that ask for cookies.
const BETWEEN_HANDSHAKES: Duration = Duration::from_millis(15);
const HANDSHAKES_LIMIT: Duration = Duration::from_secs(20);
/// How often a session is told the time while it has no keys.
const TIMERS: Duration = Duration::from_millis(250);
const WARM_UP: Duration = Duration::from_millis(500);
/// When no peer had anything to do.
const NAP: Duration = Duration::from_micros(30);
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// All peers, and what became of their requests.
struct Crowd {
    peers: Vec<Peer>,
}

/// One implementation with so many peers, for so long.
pub fn measure(
    implementation: &Implementation,
    cable: Cable,
    folder: &Path,
    number: usize,
    count: usize,
    length: Duration,
) -> anyhow::Result<Numbers> {
    fs::create_dir_all(folder)?;
    let place = Place::new(cable)?;
    let keys: Vec<WgPrivateKey> = (0..count).map(|_| WgPrivateKey::generate(&mut forge::randomness())).collect();
    let known: Vec<(WgPublicKey, IpAddr)> =
        keys.iter().enumerate().map(|(at, key)| (key.public(), address_of(at).into())).collect();
    let mut device = implementation.start_alone(&place, folder, number, &known)?;
    let echo = place.namespace(Side::Near).run(|| echo::Echo::start((device.address, ECHO_PORT).into()))??;

    let mut crowd = Crowd::of(&keys, &place, &device)?;
    crowd.shake_hands(&mut device)?;
    let numbers = crowd.run(&mut device, length);
    drop(echo);
    numbers
}

/// In the overlay's network, away from where members get theirs.
fn address_of(at: usize) -> Ipv4Addr {
    let at = u16::try_from(at).unwrap_or(u16::MAX);
    let [high, low] = (at + 1).to_be_bytes();
    Ipv4Addr::new(10, 42, 200_u8.saturating_add(high), low)
}

impl Crowd {
    fn of(keys: &[WgPrivateKey], place: &Place, device: &Device) -> anyhow::Result<Crowd> {
        let endpoint = SocketAddr::from((Side::Near.underlay(), DEVICE_PORT));
        let IpAddr::V4(server) = device.address else { anyhow::bail!("the device has no IPv4 address") };
        let peers = place.namespace(Side::Far).run(|| {
            let numbered = (0..).zip(keys);
            numbered
                .map(|(number, key)| {
                    let own = address_of(number as usize);
                    Peer::new(number, key, &device.public_key, (own, server), ECHO_PORT, endpoint)
                })
                .collect::<anyhow::Result<Vec<Peer>>>()
        })??;
        Ok(Crowd { peers })
    }

    /// Until every peer has had an answer.
    fn shake_hands(&mut self, device: &mut Device) -> anyhow::Result<()> {
        let deadline = clock::now() + HANDSHAKES_LIMIT;
        for at in 0..self.peers.len() {
            self.peers[at].fill(clock::now())?;
            thread::sleep(BETWEEN_HANDSHAKES);
            self.turn(clock::now(), Fill::No)?;
        }
        let mut timers_at = clock::now();
        loop {
            let now = clock::now();
            if now >= timers_at {
                self.peers.iter_mut().try_for_each(Peer::update_timers)?;
                timers_at = now + TIMERS;
            }
            self.turn(now, Fill::Yes)?;
            let silent = self.peers.iter().filter(|peer| peer.answers() == 0).count();
            if silent == 0 {
                return Ok(());
            }
            device.daemons.expect_running()?;
            anyhow::ensure!(now < deadline, "{silent} of {} peers had no answer", self.peers.len());
            thread::sleep(NAP);
        }
    }

    fn run(&mut self, device: &mut Device, length: Duration) -> anyhow::Result<Numbers> {
        self.go_on_until(clock::now() + WARM_UP, device)?;
        let (cpu, started) = (device.daemons.cpu_time()?, clock::now());
        let (answers, lost) = (self.answers(), self.lost());

        self.go_on_until(started + length, device)?;

        let took = (clock::now() - started).as_secs_f64();
        let (answers, lost) = ((self.answers() - answers) as f64, (self.lost() - lost) as f64);
        let cpu = (device.daemons.cpu_time()? - cpu).as_secs_f64();
        device.daemons.expect_running()?;
        anyhow::ensure!(answers > 0.0, "no answers");
        let memory = device.daemons.memory().context("a device has memory")?;
        Ok(Numbers::from([
            ("peers_rate", answers / took / 1e3),
            ("peers_cpu", cpu * 1e6 / answers),
            ("peers_lost", lost / (answers + lost) * 100.0),
            ("peers_memory", memory.peak),
        ]))
    }

    fn go_on_until(&mut self, deadline: Instant, device: &mut Device) -> anyhow::Result<()> {
        let mut sample_at = clock::now();
        loop {
            let now = clock::now();
            if now >= deadline {
                return Ok(());
            }
            if now >= sample_at {
                device.daemons.sample_memory()?;
                sample_at = now + SAMPLE_EVERY;
            }
            if self.turn(now, Fill::Yes)? == 0 {
                thread::sleep(NAP);
            }
        }
    }

    /// Takes what has come for each peer, and has it send what it may. How many datagrams came.
    fn turn(&mut self, now: Instant, fill: Fill) -> anyhow::Result<usize> {
        let mut came = 0;
        for peer in &mut self.peers {
            came += peer.receive()?;
            if fill == Fill::Yes {
                peer.fill(now)?;
            }
        }
        Ok(came)
    }

    fn answers(&self) -> u64 {
        self.peers.iter().map(Peer::answers).sum()
    }

    fn lost(&self) -> u64 {
        self.peers.iter().map(Peer::lost).sum()
    }
}

/// Whether peers that may send do so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Yes,
    No,
}
