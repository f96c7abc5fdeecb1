//! The task that owns the Kademlia table: the swarm, what is stored here, and our own record's publication.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::StreamExt;
use libp2p_identity::PeerId;
use libp2p_kad::{
    Event, GetRecordOk, KBucketKey, PeerInfo, PeerRecord, PutRecordError, QueryId, QueryResult, QueryStats, Quorum,
    Record,
};
use libp2p_swarm::{
    Config, Swarm, SwarmEvent,
    dial_opts::{DialOpts, PeerCondition},
};
use quinn::Endpoint;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use wiremesh_certs::NodeId;

use super::{
    gate::{self, Gate},
    members::{KadStore, Members, record_key},
    shared::{Shared, TableStats},
    transport,
};
use crate::{
    clock,
    directory::{
        entry::Entry,
        key::Key,
        publisher::{Command, Publisher, STORERS},
        store, value,
    },
    task::CancellationToken,
};

/// After the first answer of a lookup, answers that are under way are waited for this long, behind the asker's back.
const LINGER: Duration = Duration::from_millis(20);
/// Finding the closest nodes to a key, and writing to them, end with what they have after this.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(2);
/// Certificates are looked at, and empty tables noticed, this often.
const TICK: Duration = Duration::from_secs(2);
/// Expired entries are swept this often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Somewhere random in the table is looked up this often, give or take a quarter: buckets stay fresh without a storm.
const EXPLORE_EVERY: Duration = Duration::from_secs(300);
/// While nobody is connected the contacts are tried again this often; the absent among them more rarely.
const RETRY_CONTACTS_EVERY: Duration = Duration::from_secs(5);
/// Queries at a time; a lookup beyond it finds nobody, at once.
const MAX_QUERIES: usize = 256;
/// Orders that wait for the task; beyond it they fail at once.
pub const MAX_ORDERS: usize = 256;
/// Protocol negotiations a member may have open on one connection.
const MAX_NEGOTIATING: usize = 64;
/// A connection is kept this long after it was last used: longer than the time until a node that offers nothing says
/// again where it is, and so finds its storers connected. Who lost them all would have to join again. Both sides count, and whoever is first tells the other.
const IDLE_CONNECTION: Duration = Duration::from_secs(180);
/// The longest time until our connections have said goodbye.
const GOODBYE: Duration = Duration::from_millis(300);

/// What the task is asked to do.
pub enum Order {
    /// Look a key up. Progress comes at the first valid answer from a member, and at the end.
    Get { key: Key, deadline: Duration, progress: mpsc::Sender<Progress> },
    /// This is our record from now on.
    Publish(Entry),
    /// Tell when everything to be published has been written, as well as it could be.
    Settle(oneshot::Sender<()>),
    /// Members to begin from.
    Contacts(Vec<Entry>),
    /// Where nobody is connected, everybody is dialled again, also who did not answer a moment ago.
    Reconnect,
    /// Revocations or policy have changed.
    TrustChanged,
}

/// What a lookup has found so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The latest valid entry of each signer. May be withdrawals.
    pub entries: Vec<Entry>,
    /// Whether any other member answered at all.
    pub was_answered: bool,
}

/// What a query of Kademlia's is for.
enum Purpose {
    Get { key: Key, found: BTreeMap<NodeId, Entry>, was_answered: bool, progress: mpsc::Sender<Progress> },
    Count { key: Key, most: usize },
    Closest { key: Key },
    Write { key: Key },
    Explore,
}

struct Query {
    purpose: Purpose,
    started_at: Instant,
    finish_at: Instant,
}

/// The table and everything it needs.
pub struct Table {
    swarm: Swarm<Members>,
    endpoint: Endpoint,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    me: SocketAddr,
    connections: TaskTracker,
    publisher: Publisher,
    queries: HashMap<QueryId, Query>,
    settling: Vec<oneshot::Sender<()>>,
    rng: SmallRng,
    sweep_at: Instant,
    explore_at: Instant,
    retry_at: Instant,
    look_back_at: Instant,
    look_back_every: Duration,
}

impl Table {
    /// A table at the address `me` of the overlay.
    pub fn new(
        endpoint: Endpoint,
        gate: Arc<Gate>,
        shared: Arc<Shared>,
        me: SocketAddr,
        look_back_every: Duration,
    ) -> anyhow::Result<Table> {
        let peer = gate::peer_id(&shared.me).context("our identity is no Ed25519 key")?;
        let connections = TaskTracker::new();
        let spawner = connections.clone();
        let config = Config::with_executor(move |task| drop(spawner.spawn(task)))
            .with_substream_upgrade_protocol_override(libp2p_core::upgrade::Version::V1Lazy)
            .with_max_negotiating_inbound_streams(MAX_NEGOTIATING)
            .with_idle_connection_timeout(IDLE_CONNECTION);
        let transport = transport::transport(endpoint.clone(), gate.clone());
        let mut swarm = Swarm::new(transport, Members::new(peer, shared.clone()), peer, config);
        swarm.listen_on(gate::multiaddr(me))?;
        swarm.add_external_address(gate::multiaddr(me));
        let now = clock::now();
        Ok(Table {
            swarm,
            endpoint,
            gate,
            shared,
            me,
            connections,
            publisher: Publisher::default(),
            queries: HashMap::new(),
            settling: Vec::new(),
            rng: SmallRng::from_os_rng(),
            sweep_at: now + SWEEP_EVERY,
            explore_at: now + EXPLORE_EVERY,
            retry_at: now + RETRY_CONTACTS_EVERY,
            look_back_at: now + look_back_every,
            look_back_every,
        })
    }

    /// Runs until asked to stop.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tick = clock::beats(TICK);
        loop {
            let (wake_at, why) = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(order) = orders.recv() => self.handle_order(order),
                event = self.swarm.select_next_some() => self.handle_event(event),
                _ = tick.tick() => self.handle_tick(clock::now()),
                () = tokio::time::sleep_until(wake_at.into()) => {
                    tracing::trace!(why, "woke");
                    self.handle_timeout(clock::now());
                }
            }
            self.obey_publisher(clock::now());
        }
        self.leave().await;
        Ok(())
    }

    fn handle_order(&mut self, order: Order) {
        let now = clock::now();
        match order {
            Order::Get { key, deadline, progress } => {
                if self.queries.len() >= MAX_QUERIES {
                    return;
                }
                let id = self.swarm.behaviour_mut().kad.get_record(record_key(&key));
                let purpose = Purpose::Get { key, found: BTreeMap::new(), was_answered: false, progress };
                self.begin(id, purpose, deadline, now);
            }
            Order::Publish(entry) => self.publisher.publish(entry, now),
            Order::Settle(settled) => self.settling.push(settled),
            Order::Contacts(entries) => self.add_contacts(&entries),
            Order::Reconnect if self.is_alone() => {
                self.swarm.behaviour_mut().forget_absences();
                self.dial_contacts(now);
            }
            Order::Reconnect => {}
            Order::TrustChanged => {
                self.disconnect_disbelieved();
                self.sweep_store();
            }
        }
    }

    fn handle_event(&mut self, event: SwarmEvent<Event>) {
        let now = clock::now();
        match event {
            SwarmEvent::Behaviour(Event::OutboundQueryProgressed { id, result, stats, step }) => {
                self.on_progress(id, result, &stats, step.last, now);
            }
            SwarmEvent::Behaviour(Event::RoutingUpdated { peer, is_new_peer: true, .. }) => {
                tracing::debug!(%peer, "joined our table");
                self.publisher.on_new_member(now);
            }
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, established_in, .. } => {
                tracing::debug!(peer = %peer_id, ?established_in, dialled = endpoint.is_dialer(), "connected");
                self.on_connected(peer_id, endpoint.get_remote_address(), now);
            }
            SwarmEvent::ConnectionClosed { peer_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, cause = cause.map(|cause| cause.to_string()), "disconnected");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(peer = peer_id.map(|peer| peer.to_string()), %error, "not connected");
            }
            SwarmEvent::IncomingConnectionError { error, .. } => tracing::debug!(%error, "not let in"),
            _ => {}
        }
    }

    fn on_progress(&mut self, id: QueryId, result: QueryResult, stats: &QueryStats, is_last: bool, now: Instant) {
        match result {
            QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(record))) => self.on_found_record(id, &record, now),
            QueryResult::GetClosestPeers(Ok(closest)) => self.on_closest(id, &closest.peers, now),
            QueryResult::GetClosestPeers(Err(libp2p_kad::GetClosestPeersError::Timeout { peers, .. })) => {
                self.on_closest(id, &peers, now);
            }
            QueryResult::PutRecord(result) => {
                let stored_by = match result {
                    Ok(_) => usize::try_from(stats.num_successes()).unwrap_or(0),
                    Err(PutRecordError::QuorumFailed { success, .. } | PutRecordError::Timeout { success, .. }) => {
                        success.len()
                    }
                };
                self.on_written(id, stored_by, now);
            }
            _ => {}
        }
        if is_last && let Some(query) = self.queries.remove(&id) {
            self.end(query, stats, now);
        }
    }

    /// A record came in, from a member or from our own store.
    fn on_found_record(&mut self, id: QueryId, record: &PeerRecord, now: Instant) {
        let Some(query) = self.queries.get_mut(&id) else { return };
        match &mut query.purpose {
            Purpose::Count { key, most } => {
                let entries = read(&self.shared, key, &record.record.value);
                *most = (*most).max(entries.len());
            }
            Purpose::Get { key, found, was_answered, progress } => {
                let entries = read(&self.shared, key, &record.record.value);
                // An expired record of a member may be what somebody happens to remember; its storers may have a later.
                let unix = clock::unix();
                let from_member = record.peer.is_some() && entries.iter().any(|entry| !entry.is_expired(unix));
                for entry in entries {
                    let known = found.get(&entry.id()).map(Entry::sequence);
                    if known.is_none_or(|known| known < entry.sequence()) {
                        found.insert(entry.id(), entry);
                    }
                }
                if from_member && !*was_answered {
                    *was_answered = true;
                    query.finish_at = query.finish_at.min(now + LINGER);
                    self.shared.memory().stats.on_found(now - query.started_at, now);
                    let so_far = Progress { entries: found.values().cloned().collect(), was_answered: true };
                    // Two messages fit; nobody listens if this fails.
                    let _ = progress.try_send(so_far);
                }
            }
            Purpose::Closest { .. } | Purpose::Write { .. } | Purpose::Explore => {}
        }
    }

    fn on_closest(&mut self, id: QueryId, peers: &[PeerInfo], now: Instant) {
        if let Some(Query { purpose: Purpose::Closest { key }, .. }) = self.queries.get(&id) {
            let closest = peers.iter().filter_map(|peer| gate::node_id(&peer.peer_id)).collect();
            let members = self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
            self.publisher.on_found(key, closest, members, now);
        }
    }

    fn on_written(&mut self, id: QueryId, stored_by: usize, now: Instant) {
        if let Some(Query { purpose: Purpose::Write { key }, .. }) = self.queries.get(&id) {
            if stored_by > 0 {
                self.shared.memory().stats.written_at = Some(now);
            }
            self.publisher.on_written(key, stored_by, now);
        }
    }

    /// A query is over.
    fn end(&mut self, query: Query, stats: &QueryStats, now: Instant) {
        match query.purpose {
            Purpose::Get { found, was_answered, progress, .. } => {
                let was_answered = was_answered || stats.num_successes() > 0;
                let counted = &mut self.shared.memory().stats;
                counted.lookups += 1;
                if was_answered {
                    counted.answered_at = Some(now);
                } else {
                    counted.lookups_unreachable += 1;
                }
                let _ = progress.try_send(Progress { entries: found.into_values().collect(), was_answered });
            }
            Purpose::Count { key, most } => self.publisher.on_count(&key, most, now),
            Purpose::Closest { .. } | Purpose::Write { .. } | Purpose::Explore => {}
        }
    }

    /// Does what the publisher wants done.
    fn obey_publisher(&mut self, now: Instant) {
        while let Some(command) = self.publisher.poll_command() {
            match command {
                Command::Find(key) => {
                    let id = self.closest_to(key.to_bytes());
                    self.begin(id, Purpose::Closest { key }, PUBLISH_DEADLINE, now);
                }
                Command::Count(key) => {
                    let id = self.swarm.behaviour_mut().kad.get_record(record_key(&key));
                    self.begin(id, Purpose::Count { key, most: 0 }, PUBLISH_DEADLINE, now);
                }
                Command::Write { key, entry, to } => self.write(key, &entry, &to, now),
            }
        }
        if !self.settling.is_empty() && self.publisher.is_settled() {
            for settled in self.settling.drain(..) {
                // Whoever asked no longer waits if this fails.
                let _ = settled.send(());
            }
        }
    }

    fn write(&mut self, key: Key, entry: &Entry, to: &[NodeId], now: Instant) {
        let peers: Vec<PeerId> = to.iter().filter_map(gate::peer_id).collect();
        let trust = self.shared.trust.current();
        let behaviour = self.swarm.behaviour_mut();
        if is_among_closest(&self.shared.me, &key, to) {
            // A write to others does not store here, and no other will write our own record to us.
            if let Err(rejected) = behaviour.kad.store_mut().store.put_entry(&key, entry.clone(), &trust, clock::unix())
            {
                tracing::debug!(why = %rejected, "own record not stored here");
            }
        }
        if peers.is_empty() {
            return self.publisher.on_written(&key, 0, now);
        }
        let record = Record::new(record_key(&key), value::encode([entry.signed()]));
        // All, not One: a quorum of one drops the writes to members that are still being dialled.
        let id = behaviour.kad.put_record_to(record, peers.into_iter(), Quorum::All);
        self.begin(id, Purpose::Write { key }, PUBLISH_DEADLINE, now);
    }

    fn closest_to(&mut self, target: Vec<u8>) -> QueryId {
        let count = STORERS.try_into().unwrap_or(libp2p_kad::K_VALUE);
        self.swarm.behaviour_mut().kad.get_n_closest_peers(target, count)
    }

    fn begin(&mut self, id: QueryId, purpose: Purpose, deadline: Duration, now: Instant) {
        self.queries.insert(id, Query { purpose, started_at: now, finish_at: now + deadline });
    }

    /// Somebody is connected: a dialler's source address is its listening address, as all use one endpoint.
    fn on_connected(&mut self, peer: PeerId, address: &libp2p_core::Multiaddr, now: Instant) {
        if let Some(address) = gate::socket_address(address) {
            self.swarm.behaviour_mut().kad.add_address(&peer, gate::multiaddr(address));
        }
        let Some(id) = gate::node_id(&peer) else { return };
        let (trust, unix) = (self.shared.trust.current(), clock::unix());
        let mut memory = self.shared.memory();
        if let Some(entry) = memory.records.by_id(&id, &trust, unix, now) {
            memory.contacts.add(&entry);
        }
        memory.contacts.on_proven(&id, now);
    }

    fn add_contacts(&mut self, entries: &[Entry]) {
        for entry in entries.iter().filter(|entry| entry.id() != self.shared.me) {
            let Some(peer) = gate::peer_id(&entry.id()) else { continue };
            let address = gate::multiaddr(SocketAddr::new(entry.address().0, self.me.port()));
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
        if !entries.is_empty() && self.is_alone() {
            self.join();
        }
    }

    /// Looks ourselves up: the nearest learn of us, and we of them.
    fn join(&mut self) {
        if self.swarm.behaviour_mut().kad.bootstrap().is_err() {
            tracing::trace!("no contacts yet");
        }
    }

    fn handle_tick(&mut self, now: Instant) {
        self.gate.close_silent(now);
        self.disconnect_disbelieved();
        for peer in self.swarm.behaviour_mut().take_gone() {
            tracing::debug!(%peer, "silent for long, out of our table");
            self.forget(Some(peer));
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.shared.sweep();
            self.sweep_store();
        }
        if now >= self.explore_at {
            self.explore_at = now + EXPLORE_EVERY.mul_f64(self.rng.random_range(0.75..1.25));
            let somewhere: [u8; 32] = self.rng.random();
            let id = self.closest_to(somewhere.to_vec());
            self.begin(id, Purpose::Explore, PUBLISH_DEADLINE, now);
        }
        if now >= self.retry_at && self.is_alone() {
            self.dial_contacts(now);
        }
        if now >= self.look_back_at {
            self.look_back_at = now + self.look_back_every.mul_f64(self.rng.random_range(0.75..1.25));
            self.look_back();
        }
        self.report();
    }

    fn is_alone(&self) -> bool {
        self.swarm.connected_peers().next().is_none()
    }

    fn dial_contacts(&mut self, now: Instant) {
        self.retry_at = now + RETRY_CONTACTS_EVERY;
        let contacts = self.shared.memory().contacts.list();
        self.add_contacts(&contacts);
    }

    /// Dials one of the members we once met and are not connected to. When a network that was in two parts is whole again, each
    /// part has taken the other out of its table, and nobody in a table names anybody who is in none.
    fn look_back(&mut self) {
        let contacts = self.shared.memory().contacts.list();
        let lost = contacts.iter().filter_map(|entry| Some((gate::peer_id(&entry.id())?, entry.address().0)));
        let lost: Vec<_> = lost.filter(|(peer, _)| !self.swarm.is_connected(peer)).collect();
        let Some((peer, address)) = lost.choose(&mut self.rng) else { return };
        let address = gate::multiaddr(SocketAddr::new(*address, self.me.port()));
        let dial = DialOpts::peer_id(*peer).condition(PeerCondition::Disconnected).addresses(vec![address]).build();
        // One that did not answer a moment ago is not dialled: another minute, another member.
        if let Err(error) = self.swarm.dial(dial) {
            tracing::trace!(%peer, %error, "not dialled");
        }
    }

    fn forget(&mut self, peer: Option<PeerId>) {
        if let Some(peer) = peer {
            self.swarm.behaviour_mut().kad.remove_peer(&peer);
        }
    }

    fn disconnect_disbelieved(&mut self) {
        let (trust, unix, now) = (self.shared.trust.current(), clock::unix(), clock::now());
        let latest = |id: &NodeId| {
            let entry = self.shared.memory().records.by_id(id, &trust, unix, now)?;
            Some(entry.verified().clone())
        };
        for id in self.gate.close_disbelieved(latest) {
            tracing::info!(peer = %id, "certificate revoked or over, disconnected");
            self.forget(gate::peer_id(&id));
        }
    }

    fn sweep_store(&mut self) {
        let (trust, unix) = (self.shared.trust.current(), clock::unix());
        self.swarm.behaviour_mut().kad.store_mut().store.sweep(&trust, unix);
    }

    fn handle_timeout(&mut self, now: Instant) {
        for (id, query) in &mut self.queries {
            if query.finish_at <= now {
                if let Some(mut running) = self.swarm.behaviour_mut().kad.query_mut(id) {
                    running.finish();
                }
                // Its end is on the way; this only keeps it from being finished again and again.
                query.finish_at = now + PUBLISH_DEADLINE;
            }
        }
        self.publisher.handle_timeout(now);
    }

    fn wake_at(&self) -> (Instant, &'static str) {
        let queries = self.queries.values().map(|query| (query.finish_at, "a query's deadline"));
        let publisher = self.publisher.poll_timeout();
        let none = (clock::now() + EXPLORE_EVERY, "nothing to do");
        queries.chain(publisher).min_by_key(|(at, _)| *at).unwrap_or(none)
    }

    fn report(&mut self) {
        let connections = self.gate.open();
        let behaviour = self.swarm.behaviour_mut();
        let members = behaviour.kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let absent = behaviour.absent();
        let KadStore { store, .. } = behaviour.kad.store_mut();
        let (stored, stored_keys) = (store.len(), store.keys());
        let stored_by = self.publisher.stored_by();
        self.shared.memory().table = TableStats { connections, members, absent, stored, stored_keys, stored_by };
    }

    /// Closes the endpoint so that the others know at once.
    async fn leave(self) {
        self.endpoint.close(quinn::VarInt::from_u32(0), b"leaving");
        drop(self.swarm);
        self.connections.close();
        let gone = async { tokio::join!(self.connections.wait(), self.endpoint.wait_idle()) };
        if tokio::time::timeout(GOODBYE, gone).await.is_err() {
            tracing::debug!("left without every goodbye");
        }
    }
}

/// The valid entries of a value under `key`. Each is taken note of.
fn read(shared: &Shared, key: &Key, value: &[u8]) -> Vec<Entry> {
    let (trust, now) = (shared.trust.current(), clock::unix());
    let records = value::decode(value).unwrap_or_default();
    let opened = records.iter().filter_map(|record| shared.open(record).ok());
    let valid = opened.filter(|entry| store::check(key, entry, &trust, now).is_ok());
    // The latest word of each signer, in case a later one reached us on another way.
    valid.map(|entry| shared.learn(&entry)).collect()
}

/// Whether this node is one of those who should store `key`, when `others` are the closest others.
fn is_among_closest(me: &NodeId, key: &Key, others: &[NodeId]) -> bool {
    let target = KBucketKey::new(key.to_bytes());
    let distance = |id: &NodeId| gate::peer_id(id).map(|peer| KBucketKey::from(peer).distance(&target));
    others.len() < STORERS || others.iter().any(|other| distance(other) > distance(me))
}
