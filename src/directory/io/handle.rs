//! How the rest of the agent asks the directory and tells it things.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use wiremesh_certs::{Chain, NodeId, NodeName, NodeRecord, Offer, OverlayIp, Signed, Verified};

use super::{
    lookups::{Search, Why},
    shared::{Shared, Sought, Told},
    table::Order,
    tls::Credentials,
};
use crate::{
    clock,
    directory::{
        entry::{Entry, Rejected},
        fingers::{Answer, Asked, Counters, LookupId, Outcome},
    },
};

/// Members whose records are searched for at a time; beyond it the answer is that nobody knows.
pub const MAX_RESOLVING: usize = 256;
/// A withdrawal is given so long to reach its storers.
pub const WITHDRAW_DEADLINE: Duration = Duration::from_secs(1);

/// The directory, for everybody else. Clones are the same.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    credentials: Arc<Credentials>,
    table: Option<mpsc::Sender<Order>>,
    searches: mpsc::Sender<Search>,
}

impl Handle {
    pub(super) fn new(
        shared: Arc<Shared>,
        credentials: Arc<Credentials>,
        table: Option<mpsc::Sender<Order>>,
        searches: mpsc::Sender<Search>,
    ) -> Handle {
        Handle { shared, credentials, table, searches }
    }

    /// Who offers it: from memory at once, or found out. `None` if nobody does. Our own record is among the
    /// workers if we do.
    ///
    /// **Invariant:** nobody whose certificate is revoked or over, or who may not offer it, is in an answer, however fresh
    /// the memory of it is.
    pub async fn find(&self, offer: &Offer) -> Option<Answer> {
        let (asked, told, wait) = {
            let trust = self.shared.trust.current();
            let mut memory = self.shared.memory();
            let asked = memory.fingers.ask(offer, &trust, clock::unix(), clock::now());
            let (told, wait) = match &asked {
                Asked::Wait(lookup) => (None, memory.lookups.get(lookup).cloned()),
                Asked::Look(lookup) | Asked::Now(_, Some(lookup)) => {
                    let (told, wait) = watch::channel(None);
                    memory.lookups.insert(*lookup, wait.clone());
                    (Some(told), Some(wait))
                }
                Asked::Now(_, None) | Asked::Nobody => (None, None),
            };
            (asked, told, wait)
        };
        match (asked, told) {
            (Asked::Now(answer, Some(lookup)), Some(told)) => {
                self.search_offer(offer, lookup, Why::Refresh, told);
                Some(answer)
            }
            (Asked::Now(answer, _), _) => Some(answer),
            (Asked::Look(lookup), Some(told)) => {
                self.search_offer(offer, lookup, Why::Asked, told);
                end_of(wait?).await
            }
            (Asked::Wait(_) | Asked::Look(_), _) => end_of(wait?).await,
            (Asked::Nobody, _) => None,
        }
    }

    /// Revocations or policy have changed: whoever is no longer believed is forgotten and disconnected at once, and what
    /// may no longer be offered is not told any more.
    pub fn trust_changed(&self) {
        self.shared.sweep();
        self.shared.memory().fingers.on_trust_changed(clock::now());
        if let Some(table) = &self.table {
            // At the bound the table's own beat does it a moment later.
            let _ = table.try_send(Order::TrustChanged);
        }
    }

    /// This worker failed at this: it is not offered again until it has published a later record.
    pub fn forget(&self, offer: &Offer, worker: &NodeId) {
        self.shared.memory().fingers.forget(offer, worker, clock::now());
    }

    /// The record of the member with this overlay address: from memory at once, or found out.
    pub async fn resolve(&self, address: OverlayIp) -> Option<Entry> {
        self.sought(Sought::Address(address)).await
    }

    /// The record of the member of this name: from memory at once, or found out.
    pub async fn resolve_name(&self, name: &NodeName) -> Option<Entry> {
        self.sought(Sought::Name(name.clone())).await
    }

    /// The record of the member with this overlay address, if it is remembered. Asks nobody.
    pub fn known(&self, address: OverlayIp) -> Option<Entry> {
        self.shared.recall(&Sought::Address(address))
    }

    /// Asks other members what they store under our own address, `address`; [`Handle::take_heard_of_us`] tells what that
    /// is. False if none of them answered, which shows nothing; without a table there is nothing to be shown.
    pub async fn look_for_ourselves(&self, address: OverlayIp) -> bool {
        if self.table.is_none() {
            return true;
        }
        let (told, answered) = oneshot::channel();
        self.searches.try_send(Search::Ourselves { address, told }).is_ok() && answered.await.unwrap_or(false)
    }

    /// Every record in our own name that was heard since this was last asked, ours among them. One that we never made
    /// is another machine's that has our keys.
    pub fn take_heard_of_us(&self) -> Vec<Entry> {
        std::mem::take(&mut self.shared.memory().heard_of_us).into()
    }

    /// The certificate of a member whose record is remembered, as the latest of them has it. Asks nobody.
    pub fn member(&self, id: &NodeId) -> Option<Verified> {
        let (trust, unix, now) = (self.shared.trust.current(), clock::unix(), clock::now());
        Some(self.shared.memory().records.by_id(id, &trust, unix, now)?.verified().clone())
    }

    /// Every record that is remembered and has not expired, for whoever wants an overview. Asks nobody.
    pub fn remembered(&self) -> Vec<Entry> {
        let unix = clock::unix();
        self.shared.memory().records.all().filter(|entry| !entry.is_expired(unix)).cloned().collect()
    }

    /// Publishes our record from now on, until the next. To be called with a freshly signed one well within its life,
    /// and whenever something in it has changed.
    pub fn publish(&self, record: &Signed<NodeRecord>) -> Result<(), Rejected> {
        let entry = self.shared.open(record)?;
        self.shared.learn(&entry);
        if let Some(table) = &self.table
            && table.try_send(Order::Publish(entry)).is_err()
        {
            tracing::warn!("too much to do, our record is published with the next");
        }
        Ok(())
    }

    /// Publishes a record that offers nothing, and waits (not for long) until its storers have it: from then on no
    /// answer of theirs names us. To be called before leaving.
    pub async fn withdraw(&self, record: &Signed<NodeRecord>) -> Result<(), Rejected> {
        self.publish(record)?;
        let Some(table) = &self.table else { return Ok(()) };
        let (settled, wait) = oneshot::channel();
        if table.try_send(Order::Settle(settled)).is_ok()
            && tokio::time::timeout(WITHDRAW_DEADLINE, wait).await.is_err()
        {
            tracing::debug!("not everybody was told that we leave; our record ends by itself");
        }
        Ok(())
    }

    /// Members to begin from: the coordinator's seeds, those of the last run, whoever introduced itself. What is not
    /// believed is left out; the number of those taken is returned.
    pub fn add_contacts(&self, records: &[Signed<NodeRecord>]) -> usize {
        let opened = records.iter().filter_map(|record| self.shared.open(record).ok());
        let entries: Vec<Entry> = opened.filter(|entry| entry.id() != self.shared.me).collect();
        for entry in &entries {
            self.shared.learn(entry);
            self.shared.memory().contacts.add(entry);
        }
        let taken = entries.len();
        if let Some(table) = &self.table {
            // At the bound nothing is lost: contacts are tried again as long as nobody is connected.
            let _ = table.try_send(Order::Contacts(entries));
        }
        taken
    }

    /// Members worth keeping for the next start, most recently proven first.
    pub fn contacts(&self) -> Vec<Entry> {
        self.shared.memory().contacts.list()
    }

    /// New connections show this certificate from now on.
    pub fn set_chain(&self, chain: &Chain) -> anyhow::Result<()> {
        self.credentials.replace(chain)
    }

    /// Later records of other members as they are heard of. A listener that is too slow misses some.
    pub fn news(&self) -> broadcast::Receiver<Entry> {
        self.shared.news.subscribe()
    }

    /// How often what happened to questions.
    pub fn counters(&self) -> Counters {
        self.shared.memory().fingers.counters()
    }

    /// How the directory is.
    pub fn status(&self) -> Status {
        let now = clock::now();
        let memory = self.shared.memory();
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let age = |at| now.saturating_duration_since(at).as_secs_f64();
        Status {
            dht_enabled: self.table.is_some(),
            connections: memory.table.connections,
            members: memory.table.members,
            absent: memory.table.absent,
            contacts: memory.contacts.len(),
            records: memory.records.len(),
            services: memory.fingers.len(),
            stored: memory.table.stored,
            stored_keys: memory.table.stored_keys,
            stored_by: memory.table.stored_by,
            lookups: memory.stats.lookups,
            lookups_found: memory.stats.lookups_found,
            lookups_unreachable: memory.stats.lookups_unreachable,
            last_lookup_ms: memory.stats.last_lookup.map(millis),
            average_lookup_ms: memory.stats.average_lookup.map(millis),
            answered_secs_ago: memory.stats.answered_at.max(memory.stats.written_at).map(age),
            published_secs_ago: memory.stats.written_at.map(age),
            rejected: memory.stats.rejected.clone(),
            counters: memory.fingers.counters(),
        }
    }

    async fn sought(&self, sought: Sought) -> Option<Entry> {
        let known = self.shared.recall(&sought);
        let is_recent = known.as_ref().is_some_and(|entry| !entry.is_expired(clock::unix()));
        if is_recent {
            return known;
        }
        let told = self.search_member(sought);
        // A lookup may itself wait for an answer to this very question, so whatever is known is the answer; a later
        // record, if there is one, comes as news.
        match (known, told) {
            (Some(entry), _) => Some(entry),
            (None, Some(told)) => end_of(told).await,
            (None, None) => None,
        }
    }

    fn search_offer(&self, offer: &Offer, lookup: LookupId, why: Why, told: watch::Sender<Option<Option<Answer>>>) {
        let search = Search::Offer { offer: offer.clone(), lookup, why, told };
        if let Err(error) = self.searches.try_send(search) {
            let Search::Offer { told, .. } = error.into_inner() else { return };
            let (trust, unix, now) = (self.shared.trust.current(), clock::unix(), clock::now());
            let mut memory = self.shared.memory();
            memory.lookups.remove(&lookup);
            let answer = memory.fingers.on_outcome(offer, lookup, Outcome::Unreachable, &trust, unix, now);
            told.send_replace(Some(answer));
        }
    }

    fn search_member(&self, sought: Sought) -> Option<Told<Entry>> {
        let (told, wait) = watch::channel(None);
        {
            let mut memory = self.shared.memory();
            if let Some(running) = memory.resolving.get(&sought) {
                return Some(running.clone());
            }
            if memory.resolving.len() >= MAX_RESOLVING || memory.is_unresolved(&sought, clock::now()) {
                return None;
            }
            memory.resolving.insert(sought.clone(), wait.clone());
        }
        if self.searches.try_send(Search::Member { sought: sought.clone(), told }).is_err() {
            self.shared.memory().resolving.remove(&sought);
            return None;
        }
        Some(wait)
    }
}

/// How the directory is: what it holds, and the age of its evidence.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Whether we take part in the table.
    pub dht_enabled: bool,
    /// Connections to other members.
    pub connections: usize,
    /// Members in our part of the table.
    pub members: usize,
    /// Members not dialled for a while because they did not answer.
    pub absent: usize,
    /// Members to begin from.
    pub contacts: usize,
    /// Members whose record is remembered.
    pub records: usize,
    /// Services whose workers are remembered.
    pub services: usize,
    /// Entries stored here for others.
    pub stored: usize,
    /// Keys they are stored under.
    pub stored_keys: usize,
    /// How many members store our record, under the key where the fewest do.
    pub stored_by: usize,
    /// Lookups in the table that have ended.
    pub lookups: u64,
    /// Of these, the ones that found something.
    pub lookups_found: u64,
    /// Of these, the ones in which nobody could be reached.
    pub lookups_unreachable: u64,
    /// Time to the first valid answer of the last lookup that found something.
    pub last_lookup_ms: Option<f64>,
    /// Moving average of the same.
    pub average_lookup_ms: Option<f64>,
    /// When another member last answered us: a question, or a write with its word that it is stored.
    pub answered_secs_ago: Option<f64>,
    /// When our record was last written to another member.
    pub published_secs_ago: Option<f64>,
    /// Records and writes refused, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// What happened to questions.
    pub counters: Counters,
}

/// The end of a search that may have been begun by others.
async fn end_of<T: Clone>(mut told: Told<T>) -> Option<T> {
    let ended = told.wait_for(Option::is_some).await.ok()?;
    ended.clone().flatten()
}
