//! Who is in the mesh, what they last said, and who is asking for whom. Does no IO and reads no clock.
//!
//! ```text
//! enrolled ──register, heartbeat──► present ──silent for 3 intervals──► unhealthy
//!     ▲                                │  ▲                                │
//!     └──────── unregister ────────────┘  └────────── heartbeat ───────────┘
//! ```
//!
//! A heartbeat costs the same however many members there are. What changed is written out in batches: [`take_dirty`]
//! gives the rows, and a failed write gives them back.
//!
//! [`take_dirty`]: Registry::take_dirty

mod views;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use wiremesh_certs::{
    NodeId, NodeName, NodeRecord, Offer, Opened, OverlayIp, ServiceName, Signed, Trust, UnixTime, Verified, WgPublicKey,
};

use crate::api::{DEFAULT_DHT_PORT, MAX_INTRODUCTIONS};

pub use views::NodeKey;

/// A member that missed this many heartbeats is no longer offered to anybody.
pub const MISSED_INTERVALS: u32 = 3;
/// A record may come from a clock this far ahead of ours, as a proof may.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What enrolment fixed about a member.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its identity.
    pub identity: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its overlay address.
    pub address: OverlayIp,
    /// Its WireGuard key.
    pub wg: WgPublicKey,
}

/// What a member said about itself, as it is kept.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The record, as it is passed on.
    pub signed: Signed<NodeRecord>,
    /// What is in it.
    pub record: NodeRecord,
    /// What the machine is; `None`: it has not registered since we heard of it.
    pub capabilities: Option<Arc<Capabilities>>,
    /// Where its directory listens.
    pub dht_port: u16,
    /// When we last heard from it.
    pub last_heartbeat: UnixTime,
    /// Time in which we could not have heard it, because we were not running.
    deaf: Duration,
}

/// A JSON object.
pub type Capabilities = serde_json::Map<String, serde_json::Value>;

/// A change to be written.
#[derive(Clone, Debug)]
pub enum Dirty {
    /// Only the time of the last heartbeat.
    Heard(UnixTime),
    /// All of it.
    Said(Box<Presence>),
    /// It left.
    Gone,
}

/// Why a record is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordRefused {
    /// Not a member that is known here: the caller looks into the database.
    #[error("this coordinator has no member with identity {0}")]
    UnknownMember(NodeId),
    /// Signed with a certificate that was replaced by one with other facts.
    #[error("the record's certificate is not the one this member has: {0} differs")]
    Superseded(&'static str),
    /// One member speaks for another.
    #[error("the record is {record}'s, but {sender} sent it")]
    SomebodyElses {
        /// Whose record.
        record: NodeName,
        /// Whose request.
        sender: NodeName,
    },
    /// Too old to answer for anything.
    #[error("the record ended at {0}")]
    Ended(UnixTime),
    /// Made by a clock ahead of ours.
    #[error("the record was made {0} s ahead of this coordinator's clock")]
    FromTheFuture(u64),
    /// Beyond what the certificate or the mesh's policy allows.
    #[error("this node may not offer {0}: its certificate or the mesh's policy does not allow it")]
    ServiceNotAllowed(ServiceName),
}

impl RecordRefused {
    /// One stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            RecordRefused::UnknownMember(_) => "unknown_member",
            RecordRefused::Superseded(_) => "superseded",
            RecordRefused::SomebodyElses { .. } => "record_of_another",
            RecordRefused::Ended(_) => "record_ended",
            RecordRefused::FromTheFuture(_) => "record_from_the_future",
            RecordRefused::ServiceNotAllowed(_) => "service_not_allowed",
        }
    }
}

/// All members of the mesh.
#[derive(Debug)]
pub struct Registry {
    interval: Duration,
    entries: BTreeMap<NodeId, Entry>,
    by_name: BTreeMap<NodeName, NodeId>,
    by_address: BTreeMap<OverlayIp, NodeId>,
    by_offer: BTreeMap<Offer, std::collections::BTreeSet<NodeId>>,
    /// Those with a presence, in no order, for drawing samples.
    present: Vec<NodeId>,
    dirty: BTreeMap<NodeId, How>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    presence: Option<Presence>,
    /// Place in `Registry::present`.
    slot: Option<usize>,
    /// Who asked for this node since its last heartbeat, oldest first.
    callers: VecDeque<NodeId>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum How {
    Heard,
    Said,
    Gone,
}

impl Registry {
    /// Nobody yet.
    pub fn new(interval: Duration) -> Registry {
        Registry {
            interval,
            entries: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_offer: BTreeMap::new(),
            present: Vec::new(),
            dirty: BTreeMap::new(),
        }
    }

    /// Takes in somebody who enrolled, or whose enrolment changed. The caller has made sure that nothing it holds is
    /// another's.
    pub fn admit(&mut self, member: Member) {
        self.by_name.insert(member.name.clone(), member.identity);
        self.by_address.insert(member.address, member.identity);
        match self.entries.get_mut(&member.identity) {
            Some(entry) => entry.member = member,
            None => {
                let entry = Entry { member: member.clone(), presence: None, slot: None, callers: VecDeque::new() };
                self.entries.insert(member.identity, entry);
            }
        }
    }

    /// Takes in what was said before this coordinator was started. `deaf` is how long it was not running: silence in
    /// that time was ours.
    pub fn restore(
        &mut self,
        trust: &Trust,
        opened: Opened<NodeRecord>,
        capabilities: Option<Arc<Capabilities>>,
        dht_port: u16,
        last_heartbeat: UnixTime,
        deaf: Duration,
    ) -> Result<(), RecordRefused> {
        self.check_member(&opened.by)?;
        check_offers(trust, &opened)?;
        let Opened { by, payload: record, signed } = opened;
        let presence = Presence { signed, record, capabilities, dht_port, last_heartbeat, deaf };
        self.set_presence(by.id(), presence);
        Ok(())
    }

    /// Removes a member altogether: it was revoked.
    pub fn remove(&mut self, identity: NodeId) {
        self.unregister(identity);
        self.dirty.remove(&identity);
        if let Some(entry) = self.entries.remove(&identity) {
            // Another may have joined under the name in between.
            if self.by_name.get(&entry.member.name) == Some(&identity) {
                self.by_name.remove(&entry.member.name);
            }
            if self.by_address.get(&entry.member.address) == Some(&identity) {
                self.by_address.remove(&entry.member.address);
            }
        }
    }

    /// A member says what it is and what it offers.
    pub fn handle_register(
        &mut self,
        trust: &Trust,
        sender: &Verified,
        opened: Opened<NodeRecord>,
        capabilities: Capabilities,
        dht_port: Option<u16>,
        now: UnixTime,
    ) -> Result<Vec<Signed<NodeRecord>>, RecordRefused> {
        let introductions = self.handle_heartbeat(trust, sender, opened, now)?;
        if let Some(presence) = self.entries.get_mut(&sender.id()).and_then(|entry| entry.presence.as_mut()) {
            presence.capabilities = Some(Arc::new(capabilities));
            presence.dht_port = dht_port.unwrap_or(DEFAULT_DHT_PORT);
        }
        self.mark(sender.id(), How::Said);
        Ok(introductions)
    }

    /// A member is alive. Returns the records of those who asked for it since its last heartbeat, at most
    /// [`MAX_INTRODUCTIONS`].
    pub fn handle_heartbeat(
        &mut self,
        trust: &Trust,
        sender: &Verified,
        opened: Opened<NodeRecord>,
        now: UnixTime,
    ) -> Result<Vec<Signed<NodeRecord>>, RecordRefused> {
        if opened.by.id() != sender.id() {
            return Err(RecordRefused::SomebodyElses {
                record: opened.by.name().clone(),
                sender: sender.name().clone(),
            });
        }
        self.check_member(&opened.by)?;
        check_record(trust, &opened, now)?;
        let identity = sender.id();
        let Some(entry) = self.entries.get_mut(&identity) else {
            return Err(RecordRefused::UnknownMember(identity));
        };
        let callers = std::mem::take(&mut entry.callers);
        match &mut entry.presence {
            // A record that was overtaken on its way: its sender is alive all the same.
            Some(known) if opened.payload.sequence <= known.record.sequence => {
                known.last_heartbeat = now;
                known.deaf = Duration::ZERO;
                self.mark(identity, How::Heard);
            }
            known => {
                let (capabilities, dht_port) = match known {
                    Some(known) => (known.capabilities.clone(), known.dht_port),
                    None => (None, DEFAULT_DHT_PORT),
                };
                let Opened { payload: record, signed, .. } = opened;
                let presence =
                    Presence { signed, record, capabilities, dht_port, last_heartbeat: now, deaf: Duration::ZERO };
                self.set_presence(identity, presence);
                self.mark(identity, How::Said);
            }
        }
        let records = callers.iter().filter_map(|caller| self.entries.get(caller)?.presence.as_ref());
        Ok(records.map(|presence| presence.signed.clone()).collect())
    }

    /// A member left. False if it was not there.
    pub fn unregister(&mut self, identity: NodeId) -> bool {
        let Some(entry) = self.entries.get_mut(&identity) else { return false };
        entry.callers.clear();
        let Some(presence) = entry.presence.take() else { return false };
        if let Some(slot) = entry.slot.take() {
            self.present.swap_remove(slot);
            if let Some(moved) = self.present.get(slot).and_then(|moved| self.entries.get_mut(moved)) {
                moved.slot = Some(slot);
            }
        }
        self.unlist(identity, &presence.record.claimed());
        self.mark(identity, How::Gone);
        true
    }

    /// `caller` asked for `target`'s record and is about to try to reach it: `target` is told with its next heartbeat.
    pub fn introduce(&mut self, caller: NodeId, target: NodeId) {
        let is_present = self.entries.get(&caller).is_some_and(|entry| entry.presence.is_some());
        if caller == target || !is_present {
            return;
        }
        let Some(entry) = self.entries.get_mut(&target) else { return };
        if entry.callers.contains(&caller) {
            return;
        }
        if entry.callers.len() == MAX_INTRODUCTIONS {
            entry.callers.pop_front();
        }
        entry.callers.push_back(caller);
    }

    /// What changed since it was last asked, at most `limit` members.
    pub fn take_dirty(&mut self, limit: usize) -> Vec<(NodeId, Dirty)> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some((identity, how)) = self.dirty.pop_first() else { break };
            let presence = self.entries.get(&identity).and_then(|entry| entry.presence.as_ref());
            taken.push(match (how, presence) {
                (How::Gone, _) | (_, None) => (identity, Dirty::Gone),
                (How::Heard, Some(presence)) => (identity, Dirty::Heard(presence.last_heartbeat)),
                (How::Said, Some(presence)) => (identity, Dirty::Said(Box::new(presence.clone()))),
            });
        }
        taken
    }

    /// They could not be written: they are tried again with what changes until then.
    pub fn give_back(&mut self, taken: Vec<(NodeId, Dirty)>) {
        for (identity, change) in taken {
            match change {
                Dirty::Heard(_) => self.mark(identity, How::Heard),
                Dirty::Said(_) => self.mark(identity, How::Said),
                // Whoever came back in the meantime is marked already, as that.
                Dirty::Gone => {
                    self.dirty.entry(identity).or_insert(How::Gone);
                }
            }
        }
    }

    fn check_member(&self, by: &Verified) -> Result<(), RecordRefused> {
        let entry = self.entries.get(&by.id()).ok_or(RecordRefused::UnknownMember(by.id()))?;
        if entry.member.name != *by.name() {
            return Err(RecordRefused::Superseded("its name"));
        }
        if entry.member.address != by.address() {
            return Err(RecordRefused::Superseded("its overlay address"));
        }
        if entry.member.wg != by.wg() {
            return Err(RecordRefused::Superseded("its WireGuard key"));
        }
        Ok(())
    }

    fn set_presence(&mut self, identity: NodeId, presence: Presence) {
        let Some(entry) = self.entries.get_mut(&identity) else { return };
        let before = entry.presence.take().map(|before| before.record.claimed()).unwrap_or_default();
        let offers = presence.record.claimed();
        entry.presence = Some(presence);
        if entry.slot.is_none() {
            entry.slot = Some(self.present.len());
            self.present.push(identity);
        }
        if before != offers {
            self.unlist(identity, &before);
        }
        for offer in offers {
            self.by_offer.entry(offer).or_default().insert(identity);
        }
    }

    fn unlist(&mut self, identity: NodeId, offers: &[Offer]) {
        for offer in offers {
            if let Some(workers) = self.by_offer.get_mut(offer) {
                workers.remove(&identity);
                if workers.is_empty() {
                    self.by_offer.remove(offer);
                }
            }
        }
    }

    /// The larger change wins, but who left and came back is back.
    fn mark(&mut self, identity: NodeId, how: How) {
        let slot = self.dirty.entry(identity).or_insert(how);
        *slot = match (*slot, how) {
            (How::Gone, How::Heard) => How::Said,
            (How::Said, How::Heard) => How::Said,
            (_, how) => how,
        };
    }
}

fn check_record(trust: &Trust, opened: &Opened<NodeRecord>, now: UnixTime) -> Result<(), RecordRefused> {
    let record = &opened.payload;
    if !record.is_fresh_at(now) {
        return Err(RecordRefused::Ended(record.expires_at));
    }
    // A sequence far ahead would outrank everything its node says once its clock is right.
    let made_at = UnixTime(record.sequence / 1000);
    let ahead = made_at.saturating_since(now);
    if ahead > CLOCK_SKEW {
        return Err(RecordRefused::FromTheFuture(ahead.as_secs()));
    }
    check_offers(trust, opened)
}

fn check_offers(trust: &Trust, opened: &Opened<NodeRecord>) -> Result<(), RecordRefused> {
    match opened.payload.services.iter().find(|service| !trust.may_offer(&opened.by, service)) {
        Some(service) => Err(RecordRefused::ServiceNotAllowed(service.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
