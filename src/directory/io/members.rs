//! Kademlia with our store under it and our rules around it, as one libp2p behaviour.
//!
//! Rules: a member that did not answer is not dialled for a while; no more than a few connections to one member, and a
//! bounded number in all.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    iter::Empty,
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_kad::{
    Behaviour, BucketInserts, Caching, Config, Event, K_VALUE, Mode, ProviderRecord, Record, RecordKey, StoreInserts,
    store::{Error, RecordStore},
};
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, StreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use wiremesh_certs::NodeId;

use super::{
    gate::node_id,
    shared::{Shared, Sought},
};
use crate::{
    clock,
    directory::{
        absent::{Absent, Verdict},
        entry::Rejected,
        key::Key,
        publisher::STORERS,
        store::Store,
        value,
    },
};

/// Kademlia's protocol name on a stream.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/wiremesh/kad/1");
/// Members asked at a time in one lookup.
const PARALLEL: NonZeroUsize = NonZeroUsize::new(5).expect("not zero");
/// A member that does not answer a request within this is passed over.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Kademlia's own limit for a whole query; ours are shorter and have a timer.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message: a full bucket and the contacts that travel with it.
const MAX_PACKET_BYTES: usize = 64 * 1024;
/// Connections to one member: two who dial each other at once get two.
const MAX_CONNECTIONS_PER_MEMBER: usize = 2;
/// Connections in all; beyond it no more are let in, and dialled only as they end.
pub const MAX_CONNECTIONS: usize = 512;

/// Kademlia among members.
pub struct Members {
    pub kad: Behaviour<KadStore>,
    absent: Absent,
    connections: BTreeMap<ConnectionId, PeerId>,
    /// Connections that made room for later ones, to be closed.
    replaced: Vec<(PeerId, ConnectionId)>,
    gone: Vec<PeerId>,
}

impl Members {
    /// An empty table of the node `me`.
    pub fn new(me: PeerId, shared: Arc<Shared>) -> Members {
        let mut config = Config::new(PROTOCOL);
        config
            .set_query_timeout(QUERY_TIMEOUT)
            .set_substreams_timeout(REQUEST_TIMEOUT)
            .set_replication_factor(NonZeroUsize::new(STORERS).unwrap_or(K_VALUE))
            .set_parallelism(PARALLEL)
            .set_max_packet_size(MAX_PACKET_BYTES)
            .set_caching(Caching::Disabled)
            .set_record_filtering(StoreInserts::Unfiltered)
            .set_kbucket_inserts(BucketInserts::OnConnected)
            // Dates are in the records, and workers refresh their own.
            .set_record_ttl(None)
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None)
            .set_periodic_bootstrap_interval(None);
        let store = KadStore { store: Store::default(), shared };
        let mut kad = Behaviour::with_config(me, store, config);
        kad.set_mode(Some(Mode::Server));
        Members { kad, absent: Absent::default(), connections: BTreeMap::new(), replaced: Vec::new(), gone: Vec::new() }
    }

    /// Members that have been silent for too long, to be taken out of the table.
    pub fn take_gone(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.gone)
    }

    /// Whoever did not answer may be dialled again at once.
    pub fn forget_absences(&mut self) {
        self.absent.forget();
    }

    /// Members not to be dialled at this moment.
    pub fn absent(&self) -> usize {
        self.absent.count(clock::now())
    }

    /// Another connection that a member opens takes the place of its oldest: a member that was restarted knows nothing of
    /// those it had, and would be locked out until they end by themselves.
    fn make_room(&mut self, peer: PeerId) {
        let to_peer: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, connected)| **connected == peer).map(|(id, _)| *id).collect();
        if to_peer.len() >= MAX_CONNECTIONS_PER_MEMBER {
            // Ids grow: the first is the oldest.
            self.connections.remove(&to_peer[0]);
            self.replaced.push((peer, to_peer[0]));
        }
    }

    fn admit(&mut self, id: ConnectionId, peer: PeerId) -> Result<(), ConnectionDenied> {
        let to_peer = self.connections.values().filter(|connected| **connected == peer).count();
        if to_peer >= MAX_CONNECTIONS_PER_MEMBER || self.connections.len() >= MAX_CONNECTIONS {
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        self.connections.insert(id, peer);
        Ok(())
    }

    fn on_dial_failed(&mut self, peer: PeerId, error: &DialError) {
        let did_not_answer = match error {
            DialError::Transport(_) | DialError::WrongPeerId { .. } => true,
            DialError::LocalPeerId { .. }
            | DialError::NoAddresses
            | DialError::DialPeerConditionFalse(_)
            | DialError::Aborted
            | DialError::Denied { .. } => false,
        };
        let Some(id) = node_id(&peer).filter(|_| did_not_answer) else { return };
        if self.absent.on_failed(id, clock::now()) == Verdict::Gone {
            self.gone.push(peer);
        }
    }
}

/// Not an error of anybody's: the other connection is used.
#[derive(Debug, thiserror::Error)]
#[error("connected often enough")]
struct TooManyConnections;

/// It did not answer a moment ago.
#[derive(Debug, thiserror::Error)]
#[error("{0} did not answer a moment ago")]
struct IsAbsent(NodeId);

impl NetworkBehaviour for Members {
    type ConnectionHandler = <Behaviour<KadStore> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.make_room(peer);
        self.admit(id, peer)?;
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if let Some(member) = peer.as_ref().and_then(node_id)
            && self.absent.is_absent(&member, clock::now())
        {
            return Err(ConnectionDenied::new(IsAbsent(member)));
        }
        self.kad.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer)?;
        self.kad.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::ConnectionEstablished(established) => {
                if let Some(member) = node_id(&established.peer_id) {
                    self.absent.on_heard(&member);
                }
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.connections.remove(&closed.connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.connections.remove(&failure.connection_id);
                if let Some(peer) = failure.peer_id {
                    self.on_dial_failed(peer, failure.error);
                }
            }
            FromSwarm::ListenFailure(failure) => {
                self.connections.remove(&failure.connection_id);
            }
            // Kademlia would bootstrap on it, and warn that it knows nobody yet.
            FromSwarm::NewListenAddr(_) => return,
            _ => {}
        }
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        if let Some((peer_id, id)) = self.replaced.pop() {
            return Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) });
        }
        self.kad.poll(cx)
    }
}

/// Our [`Store`] as Kademlia's. A write that it refuses is an error here, before any acknowledgement goes out, so that
/// a writer's count of storers is true.
pub struct KadStore {
    pub store: Store,
    shared: Arc<Shared>,
}

impl RecordStore for KadStore {
    type RecordsIter<'a> = Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Empty<Cow<'a, ProviderRecord>>;

    /// What is stored here; for an address or name what is only remembered, if it is later. Whoever names a member to
    /// another has met it, so a new member can be reached through those who know it even if its storers are strangers as
    /// well; and one that introduced itself a moment ago may not have been able to write to its storers yet.
    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let (trust, now) = (self.shared.trust.current(), clock::unix());
        let sought = Key::from_bytes(key.as_ref()).and_then(|key| Sought::of(&key));
        let remembered = sought.and_then(|sought| self.shared.recall(&sought)).filter(|entry| entry.is_hint(now));
        let stored = self.store.latest(key.as_ref(), &trust, now);
        let value = match remembered {
            Some(entry) if stored.is_none_or(|stored| stored < entry.sequence()) => value::encode([entry.signed()]),
            _ => self.store.get(key.as_ref(), &trust, now)?,
        };
        Some(Cow::Owned(Record::new(key.clone(), value)))
    }

    fn put(&mut self, record: Record) -> Result<(), Error> {
        let (trust, now) = (self.shared.trust.current(), clock::unix());
        let put = {
            let opener = &mut self.shared.memory().opener;
            self.store.put(record.key.as_ref(), &record.value, opener, &trust, now)
        };
        match put {
            Ok(stored) => {
                stored.iter().for_each(|entry| drop(self.shared.learn(entry)));
                Ok(())
            }
            Err(rejected) => {
                self.shared.memory().stats.on_rejected(&rejected);
                tracing::debug!(reason = rejected.reason(), why = %rejected, "write refused");
                Err(match rejected {
                    Rejected::StoreFull | Rejected::BucketFull => Error::MaxRecords,
                    _ => Error::ValueTooLarge,
                })
            }
        }
    }

    fn remove(&mut self, _: &RecordKey) {
        // Entries leave by their own date.
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<(), Error> {
        // Who offers what is said in signed records alone.
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

/// The bytes of `key` as Kademlia's key.
pub fn record_key(key: &Key) -> RecordKey {
    RecordKey::from(key.to_bytes())
}
