//! The list that rules the mesh, on this machine: offered by whoever has a newer one, taken over, kept, told on.
//!
//! ```text
//! heartbeat's answer ─┐
//! long question ──────┼─► offer ─► newer? signed by an authority? ─► believed ─► disk ─► the agent enforces it
//! neighbours ─────────┘                                                                    └► acknowledged
//! ```

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::sync::{mpsc, oneshot, watch};
use wiremesh_certs::{Refused, SignedRevocations, TrustStore};

use super::{
    client::{Client, LIST_WAIT},
    disk::StateDir,
    handle::{Event, tell},
};
use crate::{backoff::Backoff, clock, task::CancellationToken, telemetry::seldom::Seldom};

/// Offers that wait. Beyond it whoever offers is told to come again.
const MAX_OFFERS: usize = 8;
/// The first wait before a coordinator is asked again that gave no news, or none that is believed.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest.
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(30);
/// How often it is looked whether there is a certificate again to ask with.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What became of an offered list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Offered {
    /// It is in force.
    TakenOver,
    /// It is the one in force, or an older one.
    Known,
    /// It is not believed.
    Refused(Refused),
    /// Others were offered at the same time, and wait.
    Busy,
}

/// What everybody may know of the list. Clones share it.
#[derive(Clone)]
pub struct Lists {
    trust: Arc<TrustStore>,
    latest: Arc<ArcSwapOption<SignedRevocations>>,
    enforced: watch::Sender<u64>,
    offers: mpsc::Sender<Offer>,
}

struct Offer {
    signed: SignedRevocations,
    answer: oneshot::Sender<Offered>,
}

impl Lists {
    /// With the list in force, and the one who takes over later ones.
    pub fn new(
        client: Client,
        trust: Arc<TrustStore>,
        disk: Arc<StateDir>,
        latest: Option<SignedRevocations>,
    ) -> (Lists, Taker) {
        let (offers, offered) = mpsc::channel(MAX_OFFERS);
        let lists = Lists {
            latest: Arc::new(ArcSwapOption::from_pointee(latest)),
            enforced: watch::Sender::new(trust.current().revocation_number()),
            trust,
            offers,
        };
        let taker = Taker { client, disk, lists: lists.clone(), offered, complained: Seldom::default() };
        (lists, taker)
    }

    /// The list in force, as it travels.
    pub fn latest(&self) -> Option<Arc<SignedRevocations>> {
        self.latest.load_full()
    }

    /// The number of the list in force.
    pub fn number(&self) -> u64 {
        self.trust.current().revocation_number()
    }

    /// The number of the list that every part of the agent enforces.
    pub fn enforced(&self) -> watch::Receiver<u64> {
        self.enforced.subscribe()
    }

    /// Every part of the agent enforces this one. True if it is news.
    pub fn acknowledge(&self, number: u64) -> bool {
        self.enforced.send_if_modified(|enforced| std::mem::replace(enforced, number.max(*enforced)) < number)
    }

    /// Somebody has this list, and it may be newer than ours.
    pub async fn offer(&self, signed: SignedRevocations) -> Offered {
        // An old one is passed over without a look at its signature.
        if signed.claimed_number().is_some_and(|number| number <= self.number()) {
            return Offered::Known;
        }
        let (answer, answered) = oneshot::channel();
        if self.offers.try_send(Offer { signed, answer }).is_err() {
            return Offered::Busy;
        }
        // Without an answer the agent is about to stop.
        answered.await.unwrap_or(Offered::Busy)
    }
}

/// Takes over lists, one at a time.
pub struct Taker {
    client: Client,
    disk: Arc<StateDir>,
    lists: Lists,
    offered: mpsc::Receiver<Offer>,
    complained: Seldom,
}

impl Taker {
    /// Runs until `stop`.
    pub async fn run(mut self, events: mpsc::Sender<Event>, stop: CancellationToken) {
        loop {
            let offer = tokio::select! {
                () = stop.cancelled() => return,
                Some(offer) = self.offered.recv() => offer,
            };
            let offered = self.take(&offer.signed, &events).await;
            // Whoever offered it may have gone.
            let _ = offer.answer.send(offered);
        }
    }

    async fn take(&mut self, signed: &SignedRevocations, events: &mpsc::Sender<Event>) -> Offered {
        let (now, trust) = (clock::unix(), &self.lists.trust);
        let before = trust.current();
        match trust.apply_revocations(signed, now) {
            Ok(true) => {}
            Ok(false) | Err(Refused::OlderRevocations { .. }) => return Offered::Known,
            Err(refused) => {
                if self.complained.is_due(clock::now()) {
                    tracing::warn!(why = %refused, "a list that was offered is not believed");
                }
                return Offered::Refused(refused);
            }
        }
        let (after, own) = (trust.current(), self.client.verified());
        self.lists.latest.store(Some(Arc::new(signed.clone())));
        if let Err(error) = self.disk.keep_trust(Some(&before), &after, signed, Some(&own.authority()), now) {
            tracing::warn!("could not keep the list, it is forgotten by the next start: {error:#}");
        }
        tracing::info!(number = after.revocation_number(), authorities = after.authorities().len(), "list taken over");
        // What vouches for us may be another authority from now on, and our chain shorter.
        if let Ok(again) = after.verify(own.chain(), now)
            && again.authority() != own.authority()
        {
            self.client.set_verified(again.clone());
            tell(events, Event::Renewed(again)).await;
        }
        tell(events, Event::RevocationsChanged).await;
        Offered::TakenOver
    }
}

/// Asks coordinators for newer lists, until `stop`: each question waits at the coordinator until there is one.
pub async fn follow(client: Client, lists: Lists, seed: u64, stop: CancellationToken) {
    let mut backoff = Backoff::new(ASK_AGAIN_AFTER, ASK_AGAIN_AT_MOST, seed);
    loop {
        let asking = async {
            while client.verified().not_after() <= clock::unix() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let (number, asked_at) = (lists.number(), clock::now());
            match client.list_after(number, LIST_WAIT).await {
                Ok(Some(signed)) => _ = lists.offer(signed).await,
                Ok(None) if clock::now().saturating_duration_since(asked_at) >= LIST_WAIT / 2 => return true,
                Ok(None) => {}
                // The heartbeat tells the operator.
                Err(error) => tracing::debug!(why = %error, "no list from a coordinator"),
            }
            lists.number() > number
        };
        let was_worth_it = tokio::select! {
            () = stop.cancelled() => return,
            was_worth_it = asking => was_worth_it,
        };
        if was_worth_it {
            backoff.reset();
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}
