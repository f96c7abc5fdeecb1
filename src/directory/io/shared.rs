//! What the tasks and the handle of the directory share: one memory behind a lock that is never held across a wait.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::sync::{broadcast, watch};
use wiremesh_certs::{NodeId, NodeName, NodeRecord, OverlayIp, Signed, TrustStore};

use crate::{
    clock,
    directory::{
        contacts::Contacts,
        entry::{Entry, Opener, Rejected},
        fingers::{Answer, Fingers, LookupId},
        key::Key,
        records::{Learnt, Records},
        spread::Spread,
        stats::Stats,
    },
};

/// News about members that a slow listener has not taken yet; beyond it the oldest are lost to it.
pub const MAX_NEWS: usize = 256;
/// An address or name that nobody knew is not asked for again for this long.
pub const UNRESOLVED_FOR: Duration = Duration::from_secs(1);
/// Addresses and names remembered as unknown; beyond it all are forgotten.
pub const MAX_UNRESOLVED: usize = 1024;

/// Records in our own name that nobody has taken yet; beyond it the oldest are forgotten.
pub const MAX_HEARD_OF_US: usize = 16;

/// Shared by all clones of a handle and by both tasks.
pub struct Shared {
    pub me: NodeId,
    pub trust: Arc<TrustStore>,
    pub news: broadcast::Sender<Entry>,
    memory: Mutex<Memory>,
    chance: Mutex<SmallRng>,
}

/// Everything that is remembered.
#[derive(Default)]
pub struct Memory {
    pub opener: Opener,
    pub fingers: Fingers,
    pub records: Records,
    pub contacts: Contacts,
    pub spread: Spread,
    pub stats: Stats,
    pub table: TableStats,
    /// Where the end of each running lookup will be told.
    pub lookups: BTreeMap<LookupId, Told<Answer>>,
    pub resolving: BTreeMap<Sought, Told<Entry>>,
    unresolved: BTreeMap<Sought, Instant>,
    /// What was heard in our own name, ours and, should there be another machine with our keys, its.
    pub heard_of_us: VecDeque<Entry>,
}

/// Told `Some` when a search has ended, with what was found if anything was.
pub type Told<T> = watch::Receiver<Option<Option<T>>>;

/// Whose record is wanted.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Sought {
    /// Of the node with this overlay address.
    Address(OverlayIp),
    /// Of the node of this name.
    Name(NodeName),
}

/// The last word of the task that owns the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableStats {
    pub connections: usize,
    pub members: usize,
    pub absent: usize,
    pub stored: usize,
    pub stored_keys: usize,
    pub stored_by: usize,
}

impl Sought {
    /// Whose record is kept under this key, if it is one member's.
    pub fn of(key: &Key) -> Option<Sought> {
        match key {
            Key::Offer { .. } => None,
            Key::Address(address) => Some(Sought::Address(*address)),
            Key::Name(name) => Some(Sought::Name(name.clone())),
        }
    }
}

impl Shared {
    pub fn new(me: NodeId, trust: Arc<TrustStore>) -> Shared {
        let (news, _) = broadcast::channel(MAX_NEWS);
        Shared { me, trust, news, memory: Mutex::default(), chance: Mutex::new(SmallRng::from_os_rng()) }
    }

    /// The memory, for as long as one call takes.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Believes a record, or counts why not.
    pub fn open(&self, signed: &Signed<NodeRecord>) -> Result<Entry, Rejected> {
        let (trust, now) = (self.trust.current(), clock::unix());
        let mut memory = self.memory();
        let opened = memory.opener.open(signed, &trust, now);
        match &opened {
            Ok(entry) if entry.id() == self.me => memory.on_heard_of_us(entry),
            Ok(_) => {}
            Err(rejected) => memory.stats.on_rejected(rejected),
        }
        opened
    }

    /// Takes note of a believed record, wherever it came from. Returns the latest of its signer: this, or a later one
    /// that was known.
    pub fn learn(&self, entry: &Entry) -> Entry {
        let (trust, unix, now) = (self.trust.current(), clock::unix(), clock::now());
        let mut memory = self.memory();
        if entry.id() == self.me {
            memory.on_heard_of_us(entry);
        }
        if memory.records.learn(entry, now) == Learnt::News {
            memory.fingers.observe(entry, &trust);
            memory.contacts.refresh(entry);
            if entry.id() != self.me {
                // Nobody listens: nobody needs to know.
                let _ = self.news.send(entry.clone());
            }
        }
        memory.records.by_id(&entry.id(), &trust, unix, now).unwrap_or_else(|| entry.clone())
    }

    /// A member that need not exist, to choose by.
    pub fn anybody(&self) -> NodeId {
        NodeId(self.chance.lock().unwrap_or_else(PoisonError::into_inner).random())
    }

    /// The record of a member, if it is remembered.
    pub fn recall(&self, sought: &Sought) -> Option<Entry> {
        let (trust, unix, now) = (self.trust.current(), clock::unix(), clock::now());
        let records = &mut self.memory().records;
        match sought {
            Sought::Address(address) => records.by_address(*address, &trust, unix, now),
            Sought::Name(name) => records.by_name(name, &trust, unix, now),
        }
    }

    /// Forgets whoever is no longer believed.
    pub fn sweep(&self) {
        let (trust, unix) = (self.trust.current(), clock::unix());
        let mut memory = self.memory();
        memory.records.sweep(&trust, unix);
        memory.contacts.sweep(&trust, unix);
        memory.fingers.sweep(&trust, unix);
    }
}

impl Memory {
    /// Somebody, ourselves as a rule, has said this in our name.
    fn on_heard_of_us(&mut self, entry: &Entry) {
        if self.heard_of_us.iter().any(|heard| heard.sequence() == entry.sequence()) {
            return;
        }
        if self.heard_of_us.len() == MAX_HEARD_OF_US {
            self.heard_of_us.pop_front();
        }
        self.heard_of_us.push_back(entry.clone());
    }

    /// Nobody knew it.
    pub fn on_unresolved(&mut self, sought: Sought, now: Instant) {
        if self.unresolved.len() >= MAX_UNRESOLVED {
            self.unresolved.clear();
        }
        self.unresolved.insert(sought, now + UNRESOLVED_FOR);
    }

    /// Whether nobody knew it a moment ago.
    pub fn is_unresolved(&mut self, sought: &Sought, now: Instant) -> bool {
        let unresolved = self.unresolved.get(sought).is_some_and(|until| now < *until);
        if !unresolved {
            self.unresolved.remove(sought);
        }
        unresolved
    }
}
