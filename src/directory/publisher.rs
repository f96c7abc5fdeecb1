//! Our own record, written to the storers closest to each of its keys, again and again.
//!
//! ```text
//!   publish ─► for each key: find the closest ─► write to them ─► done until the next publish
//!                             ▲     (kept FIND_AGAIN)    │ most refused or silent
//!                             └──────── after a while ◄──┘
//!   a service is offered no longer ─► the record without it is written once more under that service's key
//!   the table gained a member      ─► what has too few storers is written at once
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use wiremesh_certs::{NodeId, NodeRecord};

use super::{entry::Entry, key::Key, spread::Spread};

/// Storers of a key: Kademlia's k.
pub const STORERS: usize = 8;
/// The closest nodes to a key are looked for again when this old: members come and go.
pub const FIND_AGAIN: Duration = Duration::from_secs(300);
/// What only says where the node is, and says the same, is written again when this old: with every third publication,
/// just before its record ends. What is offered is written with every one, as nobody else says that it still is.
pub const SAY_AGAIN_WHERE: Duration = Duration::from_secs(75);
/// A write that most storers did not take is repeated after this, doubled up to [`RETRY_AT_MOST`].
pub const RETRY_AFTER: Duration = Duration::from_secs(2);
/// The longest time until a failed write is repeated; a publication comes about as often.
pub const RETRY_AT_MOST: Duration = Duration::from_secs(30);
/// A withdrawal that most storers still do not take after so many attempts is left to the record's own date.
pub const WITHDRAWALS_AT_MOST: u32 = 4;
/// After the table has changed this long is waited for further changes: members are often learnt of in bunches.
pub const SETTLE_FOR: Duration = Duration::from_millis(100);
/// Keys written at a time at most: all services and models of a record and "any model" in two spreads, address, name,
/// and some withdrawn ones.
pub const MAX_PLACES: usize = 84;

/// What the shell is to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Find the nodes closest to the key, then call [`Publisher::on_found`].
    Find(Key),
    /// Write the entry under the key to these nodes (and store it here, if this node is among the closest), then call
    /// [`Publisher::on_written`].
    Write { key: Key, entry: Entry, to: Vec<NodeId> },
    /// Read the key and call [`Publisher::on_count`] with the number of live entries there.
    Count(Key),
}

/// The record to be published and where it is.
#[derive(Debug, Default)]
pub struct Publisher {
    record: Option<Entry>,
    places: BTreeMap<Key, Place>,
    spread: Spread,
    commands: VecDeque<Command>,
}

/// One key and its storers.
#[derive(Debug)]
struct Place {
    storers: Vec<NodeId>,
    /// As many storers as there should be.
    wanted: usize,
    found_at: Option<Instant>,
    /// The record at hand is not written yet.
    is_due: bool,
    written_at: Option<Instant>,
    is_busy: bool,
    /// It is still to be found here; otherwise this is a withdrawal, and the place goes once it is written.
    is_offered: bool,
    not_before: Instant,
    failures: u32,
    /// How many took the last write.
    stored_by: usize,
}

impl Publisher {
    /// This is our record from now on.
    pub fn publish(&mut self, entry: Entry, now: Instant) {
        let wanted = self.keys_of(&entry);
        self.places.retain(|key, place| {
            place.is_offered = wanted.contains(key);
            place.is_offered || offers_no_more(key, &entry)
        });
        for key in wanted {
            if self.places.len() < MAX_PLACES || self.places.contains_key(&key) {
                self.places.entry(key).or_insert_with(|| Place::new(now));
            }
        }
        let has_moved = self.record.as_ref().is_none_or(|last| !says_the_same_place(last, &entry));
        for (key, place) in &mut self.places {
            if has_moved || place.must_be_renewed(key, now) {
                place.is_due = true;
                place.not_before = now;
            }
        }
        self.record = Some(entry);
        self.advance(now);
    }

    /// The closest nodes to a key were found; none, if we are alone. With `members` in our table at least so many, up to
    /// [`STORERS`], should have been.
    pub fn on_found(&mut self, key: &Key, closest: Vec<NodeId>, members: usize, now: Instant) {
        let Some(place) = self.places.get_mut(key) else { return };
        place.is_busy = false;
        place.found_at = Some(now);
        place.storers = closest;
        place.storers.truncate(STORERS);
        place.wanted = members.min(STORERS);
        if matches!(key, Key::Offer { .. }) && !place.storers.is_empty() && place.is_offered {
            self.commands.push_back(Command::Count(key.clone()));
        }
        self.advance(now);
    }

    /// A write under a key ended; these took it.
    pub fn on_written(&mut self, key: &Key, stored_by: usize, now: Instant) {
        let Some(place) = self.places.get_mut(key) else { return };
        place.is_busy = false;
        place.stored_by = stored_by;
        if !place.is_offered && place.failures >= WITHDRAWALS_AT_MOST {
            self.places.remove(key);
        } else if place.storers.len() < place.wanted || stored_by * 2 < place.storers.len() {
            let wait = RETRY_AFTER.saturating_mul(1 << place.failures.min(6)).min(RETRY_AT_MOST);
            place.failures = place.failures.saturating_add(1);
            place.is_due = true;
            place.found_at = None;
            place.not_before = now + wait;
        } else {
            place.failures = 0;
            if !place.is_offered && !place.is_due {
                self.places.remove(key);
            }
        }
        self.advance(now);
    }

    /// So many live entries are where ours is among those who offer the same.
    pub fn on_count(&mut self, key: &Key, count: usize, now: Instant) {
        let Key::Offer { offer, bits, .. } = key else { return };
        if self.spread.on_count(offer, *bits, count)
            && let Some(record) = self.record.clone()
        {
            self.publish(record, now);
        }
    }

    /// The table gained a member, who may be closer to our keys than those who store them.
    pub fn on_new_member(&mut self, now: Instant) {
        for place in self.places.values_mut() {
            place.found_at = None;
            if place.storers.len() < STORERS {
                place.is_due = true;
                place.not_before = place.not_before.max(now + SETTLE_FOR);
            }
        }
    }

    /// When there is something to do by itself next, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let due = self.places.values().filter(|place| place.is_due && !place.is_busy).map(|place| place.not_before);
        due.min().map(|at| (at, "a record is due to be written"))
    }

    /// The time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Whether everything has been written, as well as it could be.
    pub fn is_settled(&self) -> bool {
        self.places.values().all(|place| !place.is_busy && (!place.is_due || place.failures > 0))
    }

    /// How many members store the record under the key where the fewest do; none is normal for a lone node.
    pub fn stored_by(&self) -> usize {
        self.places.values().map(|place| place.stored_by).min().unwrap_or(0)
    }

    fn advance(&mut self, now: Instant) {
        let Some(record) = &self.record else { return };
        for (key, place) in &mut self.places {
            if place.is_busy || !place.is_due || now < place.not_before {
                continue;
            }
            place.is_busy = true;
            let known = place.found_at.is_some_and(|at| now.saturating_duration_since(at) < FIND_AGAIN);
            self.commands.push_back(if known {
                place.is_due = false;
                place.written_at = Some(now);
                Command::Write { key: key.clone(), entry: record.clone(), to: place.storers.clone() }
            } else {
                Command::Find(key.clone())
            });
        }
    }

    /// Address, name, the first bucket of each service and model and, for a large one, its bucket among many.
    fn keys_of(&self, entry: &Entry) -> Vec<Key> {
        let mut keys = vec![Key::Address(entry.address()), Key::Name(entry.name().clone())];
        for offer in entry.record().claimed() {
            let bits = self.spread.bits(&offer);
            if bits > 0 {
                keys.push(Key::of_worker(offer.clone(), bits, &entry.id()));
            }
            keys.push(Key::of_worker(offer, 0, &entry.id()));
        }
        keys
    }
}

impl Place {
    fn new(now: Instant) -> Place {
        Place {
            storers: Vec::new(),
            wanted: 0,
            found_at: None,
            is_due: true,
            written_at: None,
            is_busy: false,
            is_offered: true,
            not_before: now,
            failures: 0,
            stored_by: 0,
        }
    }

    /// Whether a record that leads to its node as the last one did has to be written here.
    fn must_be_renewed(&self, key: &Key, now: Instant) -> bool {
        match key {
            Key::Offer { .. } => true,
            Key::Address(_) | Key::Name(_) => {
                self.written_at.is_none_or(|at| now.saturating_duration_since(at) >= SAY_AGAIN_WHERE)
            }
        }
    }
}

/// Whether two records of a node lead to it in the same way, with the same certificate.
fn says_the_same_place(one: &Entry, other: &Entry) -> bool {
    let (a, b) = (one.record(), other.record());
    let way = |record: &NodeRecord| (record.endpoints.clone(), record.tunnel_url.clone(), record.overlay);
    way(a) == way(b) && one.verified().chain() == other.verified().chain()
}

fn offers_no_more(key: &Key, entry: &Entry) -> bool {
    matches!(key, Key::Offer { offer, .. } if !entry.record().claims(offer))
}

#[cfg(test)]
mod tests;
