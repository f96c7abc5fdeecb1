//! The task that runs searches: first in the table, then at the coordinator, each within its deadline.
//!
//! However many ask for one thing, one search runs for it; they are all told its end.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot, watch};
use wiremesh_certs::{NodeRecord, Offer, OverlayIp, Signed};

use super::{
    Discover,
    shared::{Shared, Sought},
    table::{Order, Progress},
};
use crate::{
    clock,
    directory::{
        entry::Entry,
        fingers::{Answer, LookupId, Outcome, Source},
        key::{Key, bucket_of},
    },
    task::CancellationToken,
};

/// Searches at a time; further ones wait in the queue.
const MAX_RUNNING: usize = 64;
/// Searches that wait; beyond it they end at once, without having found anything.
pub const MAX_WAITING: usize = 256;
/// The coordinator is given so long to answer.
const HTTP_DEADLINE: Duration = Duration::from_secs(3);
/// A look for what is stored in our name ends so long after it began, answered or not: the overlay makes a session anew
/// within a fraction of a second of finding it silent, and whoever was asked is dialled again.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);
/// From one try of such a look to the next, where nobody could be asked.
const LOOK_PAUSE: Duration = Duration::from_millis(300);
/// Records taken from one answer of the coordinator.
const MAX_DISCOVERED: usize = 256;

/// What to search for, and where to tell the end.
pub enum Search {
    /// The workers of a service or model.
    Offer { offer: Offer, lookup: LookupId, why: Why, told: watch::Sender<Option<Option<Answer>>> },
    /// A member's record.
    Member { sought: Sought, told: watch::Sender<Option<Option<Entry>>> },
    /// What others store in our name; told is whether any of them answered.
    Ourselves { address: OverlayIp, told: oneshot::Sender<bool> },
}

/// Whether somebody waits for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// A question.
    Asked,
    /// An answer that was given already and has become old.
    Refresh,
}

/// Where searches go.
pub struct Lookups {
    pub shared: Arc<Shared>,
    pub discover: Arc<dyn Discover>,
    /// None while the table is disabled.
    pub table: Option<mpsc::Sender<Order>>,
    /// How long the table is given to answer.
    pub deadline: Duration,
}

impl Lookups {
    /// Runs until asked to stop.
    pub async fn run(self, mut searches: mpsc::Receiver<Search>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut running: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(search) = searches.recv(), if running.len() < MAX_RUNNING => {
                    running.push(Box::pin(self.search(search)));
                }
                Some(()) = running.next() => {}
            }
        }
    }

    async fn search(&self, search: Search) {
        match search {
            Search::Offer { offer, lookup, why, told } => {
                let (outcome, more) = self.find(&offer, why).await;
                let (trust, unix, now) = (self.shared.trust.current(), clock::unix(), clock::now());
                let answer = {
                    let mut memory = self.shared.memory();
                    memory.lookups.remove(&lookup);
                    memory.fingers.on_outcome(&offer, lookup, outcome, &trust, unix, now)
                };
                let _ = told.send(Some(answer));
                self.take_more(&offer, more).await;
            }
            Search::Member { sought, told } => {
                let found = self.resolve(&sought).await;
                {
                    let mut memory = self.shared.memory();
                    memory.resolving.remove(&sought);
                    if found.is_none() {
                        memory.on_unresolved(sought, clock::now());
                    }
                }
                let _ = told.send(Some(found));
            }
            Search::Ourselves { address, told } => {
                // Whoever asked has stopped waiting if this fails: it stops altogether.
                let _ = told.send(self.look_for_ourselves(address).await);
            }
        }
    }

    /// The workers of a service or model, and where later answers of the table will come from.
    async fn find(&self, offer: &Offer, why: Why) -> (Outcome, Option<mpsc::Receiver<Progress>>) {
        let mut local = Outcome::Unreachable;
        if self.table.is_some() {
            self.count(Source::Dht, why);
            let (found, more) = self.find_in_table(offer).await;
            let trust = self.shared.trust.current();
            let is_offered = found.entries.iter().any(|entry| entry.offers(offer, &trust));
            if found.was_answered && is_offered {
                return (Outcome::Found(found.entries, Source::Dht), more);
            }
            // Only we ourselves answered, or nobody is known there: the coordinator may know of others.
            if !found.entries.is_empty() {
                local = Outcome::Found(found.entries, Source::Dht);
            } else if found.was_answered {
                local = Outcome::Nobody;
            }
        }
        self.count(Source::Http, why);
        let outcome = match self.discover(offer).await {
            Some(discovered) if !discovered.is_empty() => {
                let local = if let Outcome::Found(entries, _) = local { entries } else { Vec::new() };
                let others = discovered.iter().any(|entry| !local.iter().any(|known| known.id() == entry.id()));
                let source = if others { Source::Http } else { Source::Dht };
                Outcome::Found([local, discovered].concat(), source)
            }
            Some(_) if matches!(local, Outcome::Unreachable) => Outcome::Nobody,
            Some(_) | None => local,
        };
        (outcome, None)
    }

    /// One bucket of it; where it is empty the first one, which always has a sample.
    async fn find_in_table(&self, offer: &Offer) -> (Progress, Option<mpsc::Receiver<Progress>>) {
        let bits = self.shared.memory().spread.bits(offer);
        let mut any_answered = false;
        for bits in if bits == 0 { vec![0] } else { vec![bits, 0] } {
            // Readers spread over the buckets as writers do.
            let bucket = bucket_of(&self.shared.anybody(), bits);
            let (progress, more) = self.get(Key::Offer { offer: offer.clone(), bits, bucket }).await;
            let trust = self.shared.trust.current();
            let live = progress.entries.iter().filter(|entry| entry.offers(offer, &trust)).count();
            if progress.was_answered {
                self.shared.memory().spread.on_count(offer, bits, live);
            }
            any_answered |= progress.was_answered;
            if live > 0 || bits == 0 {
                return (Progress { was_answered: any_answered, ..progress }, more);
            }
        }
        (Progress::default(), None)
    }

    async fn resolve(&self, sought: &Sought) -> Option<Entry> {
        let key = match sought {
            Sought::Address(address) => Key::Address(*address),
            Sought::Name(name) => Key::Name(name.clone()),
        };
        let (progress, _) = self.get(key.clone()).await;
        // An introduction may have brought it meanwhile; whatever was found is remembered there too.
        if !progress.entries.is_empty()
            && let Some(entry) = self.shared.recall(sought)
        {
            return Some(entry);
        }
        let asked = tokio::time::timeout(HTTP_DEADLINE, self.discover.node(sought)).await;
        match asked.map_err(anyhow::Error::from).and_then(|answer| answer) {
            Ok(Some(record)) => {
                let entry = self.shared.open(&record).ok().filter(|entry| entry.belongs_under(&key));
                entry.iter().for_each(|entry| drop(self.shared.learn(entry)));
            }
            Ok(None) => {}
            Err(error) => tracing::debug!("asking the coordinator for a member: {error:#}"),
        }
        self.shared.recall(sought)
    }

    /// Whether anybody told what they store in our name. Whoever uses our keys elsewhere has the answers of others, until the
    /// overlay has made its session with them anew; so long all of them seem to be gone.
    async fn look_for_ourselves(&self, address: OverlayIp) -> bool {
        let until = clock::now() + LOOK_DEADLINE;
        loop {
            if let Some(table) = &self.table {
                let _ = table.try_send(Order::Reconnect);
            }
            let (progress, _) = self.get_once(Key::Address(address), LOOK_DEADLINE).await;
            if progress.was_answered || clock::now() >= until {
                return progress.was_answered;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Looks a key up in the table. Returns at the first answer; more may follow.
    async fn get(&self, key: Key) -> (Progress, Option<mpsc::Receiver<Progress>>) {
        let begun_at = clock::now();
        let (progress, more) = self.get_once(key.clone(), self.deadline).await;
        let was_early = clock::now().saturating_duration_since(begun_at) < self.deadline / 2;
        if progress.was_answered || !was_early {
            return (progress, more);
        }
        // Connections that ended just as they were to be used: those asked are dialled anew. Where nobody is left to be
        // asked, this too ends at once.
        self.get_once(key, self.deadline).await
    }

    async fn get_once(&self, key: Key, deadline: Duration) -> (Progress, Option<mpsc::Receiver<Progress>>) {
        let Some(table) = &self.table else { return (Progress::default(), None) };
        // The first answer and the end.
        let (progress, mut answers) = mpsc::channel(2);
        if table.try_send(Order::Get { key, deadline, progress }).is_err() {
            return (Progress::default(), None);
        }
        match answers.recv().await {
            Some(first) => (first, Some(answers)),
            None => (Progress::default(), None),
        }
    }

    /// What other storers knew, after the question has been answered.
    async fn take_more(&self, offer: &Offer, more: Option<mpsc::Receiver<Progress>>) {
        let Some(mut more) = more else { return };
        if let Some(rest) = more.recv().await {
            let (trust, unix, now) = (self.shared.trust.current(), clock::unix(), clock::now());
            self.shared.memory().fingers.on_more(offer, &rest.entries, &trust, unix, now);
        }
    }

    /// The coordinator's answer; none if it gave none.
    async fn discover(&self, offer: &Offer) -> Option<Vec<Entry>> {
        let asked = tokio::time::timeout(HTTP_DEADLINE, self.discover.discover(offer)).await;
        let records: Vec<Signed<NodeRecord>> = match asked.map_err(anyhow::Error::from).and_then(|answer| answer) {
            Ok(records) => records,
            Err(error) => {
                tracing::debug!(%offer, "asking the coordinator: {error:#}");
                return None;
            }
        };
        let (trust, now) = (self.shared.trust.current(), clock::unix());
        let opened = records.iter().take(MAX_DISCOVERED).filter_map(|record| self.shared.open(record).ok());
        let learnt: Vec<Entry> = opened.map(|entry| self.shared.learn(&entry)).collect();
        Some(learnt.into_iter().filter(|entry| entry.offers(offer, &trust) && !entry.is_expired(now)).collect())
    }

    fn count(&self, source: Source, why: Why) {
        if why == Why::Asked {
            self.shared.memory().fingers.on_asked(source);
        }
    }
}
