//! What is read from the registry: who offers what, whom to begin with, who somebody is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{Rng, seq::SliceRandom};
use wiremesh_certs::{NodeId, NodeName, NodeRecord, Offer, OverlayIp, ServiceName, Signed, UnixTime};

use super::{MISSED_INTERVALS, Member, Presence, Registry};
use crate::{
    api::{MAX_DISCOVERED, MAX_SEEDS, MemberCounts, Seed, ServiceSummary, Worker},
    coordinator::config::CatalogEntry,
};

/// Up to this many members a sample is drawn from a shuffle of all; beyond, by trying at random.
const SHUFFLE_UP_TO: usize = 512;
/// Tries per wanted seed. With half of all members silent, a sample of 16 is full but once in a blue moon.
const TRIES_PER_SEED: usize = 16;

/// How somebody is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeKey {
    /// `10.42.0.7`
    Address(OverlayIp),
    /// `worker-1`
    Name(NodeName),
    /// All 64 hexadecimal digits of an identity.
    Identity(NodeId),
}

impl NodeKey {
    /// Reads what stands in a path. An identity is one digit too long for a name, so nothing is read two ways.
    pub fn parse(text: &str) -> Option<NodeKey> {
        text.parse()
            .map(NodeKey::Address)
            .or_else(|_| text.parse().map(NodeKey::Identity))
            .or_else(|_| text.parse().map(NodeKey::Name))
            .ok()
    }
}

impl Registry {
    /// Healthy workers that offer it, the least busy first, at most [`MAX_DISCOVERED`].
    pub fn discover(&self, offer: &Offer, now: UnixTime) -> Vec<Worker> {
        let Some(workers) = self.by_offer.get(offer) else { return Vec::new() };
        let mut found: Vec<_> = workers.iter().filter_map(|id| self.healthy(id, now)).collect();
        found.sort_by_key(|(member, presence)| (presence.record.load, &member.name));
        found.truncate(MAX_DISCOVERED);
        found
            .into_iter()
            .map(|(member, presence)| Worker {
                worker_id: member.name.clone(),
                tunnel_url: presence.record.tunnel_url.clone(),
                vpn_ip: member.address,
                capabilities: presence.capabilities.as_deref().cloned().unwrap_or_default(),
                load: presence.record.load.share(),
                last_heartbeat: presence.last_heartbeat,
                record: presence.signed.clone(),
            })
            .collect()
    }

    /// Every service that somebody healthy offers or the catalog names.
    pub fn services(
        &self,
        catalog: &BTreeMap<ServiceName, CatalogEntry>,
        now: UnixTime,
    ) -> BTreeMap<ServiceName, ServiceSummary> {
        let offered = self.by_offer.keys().filter_map(|offer| match offer {
            Offer::Service(service) => Some(service),
            Offer::Model(_) | Offer::AnyModel => None,
        });
        let names: BTreeSet<_> = offered.chain(catalog.keys()).collect();
        names
            .into_iter()
            .filter_map(|name| {
                let workers = self.by_offer.get(&Offer::Service(name.clone()));
                let healthy_workers =
                    workers.map_or(0, |workers| workers.iter().filter(|id| self.healthy(id, now).is_some()).count());
                let entry = catalog.get(name);
                if healthy_workers == 0 && entry.is_none() {
                    return None;
                }
                let entry = entry.cloned().unwrap_or_default();
                let summary =
                    ServiceSummary { name: name.clone(), healthy_workers, tier: entry.tier, requires: entry.requires };
                Some((name.clone(), summary))
            })
            .collect()
    }

    /// A random sample of healthy members that carry overlay packets, without the one that asks, at most
    /// [`MAX_SEEDS`].
    pub fn seeds(&self, asker: Option<NodeId>, now: UnixTime, rng: &mut impl Rng) -> Vec<Seed> {
        let suits = |id: &NodeId| {
            let (member, presence) = self.healthy(id, now)?;
            (Some(*id) != asker && presence.record.overlay).then(|| Seed {
                worker_id: member.name.clone(),
                vpn_ip: member.address,
                tunnel_url: presence.record.tunnel_url.clone(),
                dht_port: presence.dht_port,
                record: presence.signed.clone(),
            })
        };
        if self.present.len() <= SHUFFLE_UP_TO {
            let mut order = self.present.clone();
            order.shuffle(rng);
            return order.iter().filter_map(suits).take(MAX_SEEDS).collect();
        }
        let mut tried = BTreeSet::new();
        let mut seeds = Vec::new();
        for _ in 0..MAX_SEEDS * TRIES_PER_SEED {
            let id = self.present[rng.random_range(0..self.present.len())];
            if tried.insert(id) {
                seeds.extend(suits(&id));
            }
            if seeds.len() == MAX_SEEDS {
                break;
            }
        }
        seeds
    }

    /// Who it is, and its record as last heard, if any.
    pub fn node(&self, key: &NodeKey) -> Option<(&Member, Option<&Signed<NodeRecord>>)> {
        let identity = match key {
            NodeKey::Address(address) => self.by_address.get(address)?,
            NodeKey::Name(name) => self.by_name.get(name)?,
            NodeKey::Identity(identity) => identity,
        };
        let entry = self.entries.get(identity)?;
        Some((&entry.member, entry.presence.as_ref().map(|presence| &presence.signed)))
    }

    /// Whether somebody with this identity has joined.
    pub fn knows(&self, identity: NodeId) -> bool {
        self.entries.contains_key(&identity)
    }

    /// Whether a member has said what it is since we heard of it.
    pub fn is_registered(&self, identity: NodeId) -> bool {
        self.presence(&identity).is_some_and(|(_, presence)| presence.capabilities.is_some())
    }

    /// How many there are of each kind.
    pub fn counts(&self, now: UnixTime) -> MemberCounts {
        MemberCounts {
            enrolled: self.entries.len(),
            registered: self.present.len(),
            healthy: self.present.iter().filter(|id| self.healthy(id, now).is_some()).count(),
        }
    }

    /// Changes that wait to be written.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// What a member last said about itself, if it has not left.
    pub fn said(&self, identity: &NodeId) -> Option<&Presence> {
        self.entries.get(identity)?.presence.as_ref()
    }

    /// Whether somebody was heard from within [`MISSED_INTERVALS`], not counting time in which we were deaf.
    pub fn is_healthy(&self, presence: &Presence, now: UnixTime) -> bool {
        let silent: Duration = now.saturating_since(presence.last_heartbeat).saturating_sub(presence.deaf);
        silent < self.interval * MISSED_INTERVALS
    }

    pub(super) fn healthy(&self, identity: &NodeId, now: UnixTime) -> Option<(&Member, &Presence)> {
        self.presence(identity).filter(|(_, presence)| self.is_healthy(presence, now))
    }

    fn presence(&self, identity: &NodeId) -> Option<(&Member, &Presence)> {
        let entry = self.entries.get(identity)?;
        Some((&entry.member, entry.presence.as_ref()?))
    }
}
