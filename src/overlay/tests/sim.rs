//! Real overlays over a simulated network: addresses, loss and time are the test's to set.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use wiremesh_certs::{
    AllowedServices, Authority, CaParameters, Chain, Claims, IdentityKey, Load, NodeName, NodeRecord, OverlayIp,
    RevocationList, Signed, Trust, TrustStore, UnixTime, Verified, WgPrivateKey,
};

use crate::overlay::{Counters, Dropped, Event, Overlay, Parameters, REKEY_AFTER, packet::write_header};

pub const LIFETIME: Duration = Duration::from_secs(3600);
pub const UNIX: UnixTime = UnixTime(1_800_000_000);

/// Where simulated time begins.
pub fn t0() -> Instant {
    static T0: OnceLock<Instant> = OnceLock::new();
    *T0.get_or_init(|| crate::clock::now() + Duration::from_secs(1000))
}

pub fn authority() -> Authority {
    authority_of("sim")
}

pub fn authority_of(mesh: &str) -> Authority {
    let parameters = CaParameters {
        mesh: mesh.parse().unwrap(),
        network: "10.42.0.0/16".parse().unwrap(),
        lifetime: Duration::from_secs(10 * 365 * 24 * 3600),
    };
    Authority::create(&parameters, UnixTime(1_700_000_000), &mut StdRng::seed_from_u64(mesh.len() as u64)).unwrap()
}

/// A node with its keys and certificate.
pub struct Node {
    pub identity: IdentityKey,
    pub wg: WgPrivateKey,
    pub chain: Chain,
    pub verified: Verified,
    pub trust: Arc<TrustStore>,
}

impl Node {
    pub fn new(authority: &Authority, number: u8, lifetime: Duration, unix: UnixTime) -> Node {
        Node::with_keys(authority, number, number.into(), lifetime, unix)
    }

    pub fn with_keys(authority: &Authority, number: u8, keys: u64, lifetime: Duration, unix: UnixTime) -> Node {
        let rng = &mut StdRng::seed_from_u64(keys);
        let (identity, wg) = (IdentityKey::generate(rng), WgPrivateKey::generate(rng));
        let chain = authority.issue(&claims(&identity, &wg, number, lifetime), unix, rng).unwrap();
        let trust = Trust::new(authority.certificate().clone());
        let verified = trust.verify(&chain, unix).unwrap();
        Node { identity, wg, chain, verified, trust: Arc::new(TrustStore::new(trust)) }
    }

    /// What it says of itself. `sequence` in seconds of simulated time.
    pub fn record(&self, endpoints: &[SocketAddr], sequence: u64) -> (NodeRecord, Signed<NodeRecord>) {
        let record = NodeRecord {
            sequence,
            expires_at: UnixTime(sequence / 1000).plus(Duration::from_secs(90)),
            endpoints: endpoints.to_vec(),
            services: Vec::new(),
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: Vec::new(),
        };
        let signed = Signed::sign(&record, &self.identity, &self.chain).unwrap();
        (record, signed)
    }

    pub fn overlay(&self, seed: u64, now: Instant) -> Overlay {
        let parameters = Parameters {
            key: &self.wg,
            address: self.verified.address(),
            network: "10.42.0.0/16".parse().unwrap(),
            trust: self.trust.clone(),
            rekey_after: REKEY_AFTER,
            beat: now,
            seed,
        };
        Overlay::new(parameters, now)
    }
}

pub fn claims(identity: &IdentityKey, wg: &WgPrivateKey, number: u8, lifetime: Duration) -> Claims {
    Claims {
        identity: identity.id(),
        wg: wg.public(),
        name: NodeName::new(&format!("node-{number}")).unwrap(),
        address: address(number),
        groups: Vec::new(),
        services: AllowedServices::Any,
        lifetime,
    }
}

pub fn address(number: u8) -> OverlayIp {
    OverlayIp([10, 42, 0, number + 1].into())
}

pub fn endpoint(number: u8) -> SocketAddr {
    ([192, 0, 2, number + 1], 51820).into()
}

/// Somebody among many: verified, with a record, and no more.
pub fn crowd(authority: &Authority, number: u32) -> (Verified, NodeRecord) {
    let rng = &mut StdRng::seed_from_u64(10_000 + u64::from(number));
    let (identity, wg) = (IdentityKey::generate(rng), WgPrivateKey::generate(rng));
    let mut claims = claims(&identity, &wg, 0, LIFETIME);
    claims.address = OverlayIp(std::net::Ipv4Addr::from_bits(0x0a2a_1000 + number).into());
    let chain = authority.issue(&claims, UNIX, rng).unwrap();
    let verified = Trust::new(authority.certificate().clone()).verify(&chain, UNIX).unwrap();
    let record = NodeRecord {
        sequence: 1,
        expires_at: UNIX,
        endpoints: vec![([198, 51, 100, 1], number as u16).into()],
        services: Vec::new(),
        load: Load::default(),
        tunnel_url: None,
        overlay: true,
        models: Vec::new(),
        revocations: 0,
        nearby: Vec::new(),
    };
    (verified, record)
}

/// A UDP packet, checksums aside.
pub fn packet(from: OverlayIp, to: OverlayIp, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 40 + payload.len()];
    let header = write_header(from, to, 17, payload.len(), &mut bytes).unwrap();
    bytes[header..header + payload.len()].copy_from_slice(payload);
    bytes.truncate(header + payload.len());
    bytes
}

/// Nodes 0 to n-1, each at its endpoint, none knowing another.
pub struct Mesh {
    pub authority: Authority,
    pub nodes: Vec<Node>,
    pub overlays: Vec<Overlay>,
    pub at: Vec<SocketAddr>,
    /// Whether a question about an address is answered with its node's record.
    pub resolves: bool,
    /// Endpoints that nothing reaches or leaves.
    pub cut: BTreeSet<SocketAddr>,
    pub now: Instant,
    pub events: Vec<Vec<Event>>,
    received: Vec<Vec<Vec<u8>>>,
    /// Every datagram that was sent, with whom it came from and went to.
    pub wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    revocations: u64,
}

impl Mesh {
    pub fn of(count: u8) -> Mesh {
        let authority = authority();
        let nodes: Vec<_> = (0..count).map(|number| Node::new(&authority, number, LIFETIME, UNIX)).collect();
        let mut mesh = Mesh {
            overlays: nodes.iter().enumerate().map(|(at, node)| node.overlay(at as u64, t0())).collect(),
            authority,
            nodes,
            at: (0..count).map(endpoint).collect(),
            resolves: true,
            cut: BTreeSet::new(),
            now: t0(),
            events: vec![Vec::new(); count.into()],
            received: vec![Vec::new(); count.into()],
            wire: Vec::new(),
            revocations: 0,
        };
        (0..count.into()).for_each(|node| mesh.publish(node));
        mesh
    }

    /// The node tells its overlay what to say of it.
    pub fn publish(&mut self, node: usize) {
        let (now, unix) = (self.now, self.unix());
        let (_, signed) = self.nodes[node].record(&[self.at[node]], self.sequence());
        self.overlays[node].set_own_record(signed, now, unix).unwrap();
    }

    /// The node gets another certificate for the same keys, and publishes it.
    pub fn renew(&mut self, node: usize) {
        let (identity, wg) = (&self.nodes[node].identity, &self.nodes[node].wg);
        let claims = claims(identity, wg, node as u8, LIFETIME);
        let chain = self.authority.issue(&claims, self.unix(), &mut StdRng::seed_from_u64(self.sequence())).unwrap();
        self.nodes[node].verified = self.nodes[node].trust.current().verify(&chain, self.unix()).unwrap();
        self.nodes[node].chain = chain;
        self.publish(node);
    }

    /// The node's process ends and another begins, with the same keys and no memory.
    pub fn restart(&mut self, node: usize) {
        self.overlays[node] = self.nodes[node].overlay(1000 + node as u64, self.now);
        self.publish(node);
    }

    /// A packet leaves `from` for `to`, and everything that follows happens.
    pub fn send(&mut self, from: usize, to: usize, payload: &[u8]) -> Result<(), Dropped> {
        self.send_as(from, from, to, payload)
    }

    /// As [`Mesh::send`], but `from` puts another's address into the packet after its own overlay has let it pass.
    pub fn send_as(&mut self, from: usize, pretended: usize, to: usize, payload: &[u8]) -> Result<(), Dropped> {
        let own = std::mem::replace(&mut self.overlays[from].own.at.address, address(pretended as u8));
        let bytes = packet(address(pretended as u8), address(to as u8), payload);
        let done = self.overlays[from].handle_tun_packet(&bytes, self.now);
        self.overlays[from].own.at.address = own;
        self.settle();
        done
    }

    /// Delivers until nobody has anything to say.
    pub fn settle(&mut self) {
        let mut under_way = VecDeque::new();
        loop {
            for node in 0..self.overlays.len() {
                self.fetch(node, &mut under_way);
            }
            let Some((from, to, datagram)) = under_way.pop_front() else { return };
            if self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            if let Some(node) = self.at.iter().position(|at| *at == to) {
                let unix = self.unix();
                _ = self.overlays[node].handle_datagram(from, &datagram, self.now, unix);
            }
        }
    }

    /// A datagram reaches `to` from `from`, whoever sent it.
    pub fn inject(&mut self, from: SocketAddr, to: usize, datagram: &[u8]) -> Result<(), Dropped> {
        let unix = self.unix();
        let done = self.overlays[to].handle_datagram(from, datagram, self.now, unix);
        self.settle();
        done
    }

    /// Time passes, in which everybody is woken when it asks to be.
    pub fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..100_000 {
            let next = self.overlays.iter().filter_map(|overlay| overlay.poll_timeout()).map(|(at, _)| at).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            let unix = self.unix();
            for overlay in &mut self.overlays {
                if overlay.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                    overlay.handle_timeout(self.now, unix);
                }
            }
            self.settle();
        }
        panic!("it spins");
    }

    /// Revokes a node, as far as `knowing` hears of it.
    pub fn revoke(&mut self, node: usize, knowing: usize) {
        self.revocations += 1;
        let serials = BTreeSet::from([self.nodes[node].verified.serial()]);
        let list = RevocationList { number: self.revocations, serials, ..RevocationList::default() };
        let signed = self.authority.sign_revocations(&list).unwrap();
        self.nodes[knowing].trust.apply_revocations(&signed, self.unix()).unwrap();
        self.overlays[knowing].trust_changed();
        self.settle();
    }

    /// The payloads that reached a node since the last time this was asked.
    pub fn received(&mut self, node: usize) -> Vec<Vec<u8>> {
        self.received_packets(node).into_iter().map(|packet| packet[20..].to_vec()).collect()
    }

    /// The whole packets.
    pub fn received_packets(&mut self, node: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.received[node])
    }

    pub fn counters(&self, node: usize) -> &Counters {
        self.overlays[node].counters()
    }

    /// What a node dropped, and how often.
    pub fn dropped(&self, node: usize) -> Vec<(Dropped, u64)> {
        self.counters(node).iter().filter(|(_, count)| *count > 0).collect()
    }

    pub fn unix(&self) -> UnixTime {
        UNIX.plus(self.now - t0())
    }

    pub fn sequence(&self) -> u64 {
        self.unix().0 * 1000
    }

    fn fetch(&mut self, node: usize, under_way: &mut VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>) {
        let (now, unix) = (self.now, self.unix());
        while let Some(event) = self.overlays[node].poll_event() {
            if let (Event::Resolve(asked), true) = (&event, self.resolves) {
                match (0..self.nodes.len()).find(|other| address(*other as u8) == *asked) {
                    None => self.overlays[node].unresolvable(*asked, now),
                    Some(other) => {
                        let (record, _) = self.nodes[other].record(&[self.at[other]], self.sequence());
                        _ = self.overlays[node].upsert_peer(&self.nodes[other].verified, &record, now, unix);
                    }
                }
            }
            self.events[node].push(event);
        }
        while let Some(packet) = self.overlays[node].poll_packet() {
            self.received[node].push(packet.to_vec());
        }
        while let Some(transmit) = self.overlays[node].poll_transmit() {
            for datagram in transmit.datagrams() {
                under_way.push_back((self.at[node], transmit.to, datagram.to_vec()));
                self.wire.push((self.at[node], transmit.to, datagram.to_vec()));
            }
        }
    }
}
