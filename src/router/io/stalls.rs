//! Clients that have a place at a service of this node and do nothing, while others want one.
//!
//! ```text
//! let in ──► begin ──► the answer's head ──► keep ──► its end: dropped
//!              └──────────────┴── stalled, and a place is wanted ──► cut: the place and the upstream are given up
//! ```
//!
//! Nobody polls the answer of a client that does not read; so they are looked at from outside, and what a request holds
//! stands where it can be taken away. Who holds nothing up, as a reader that pauses, is left alone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{Shared, answer::Flow, lock};
use crate::{clock, router::Pulse, services::Demand};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The places at services of this node that clients have: as many as the services let in.
#[derive(Default)]
pub(super) struct Stalls(Mutex<Places>);

#[derive(Default)]
struct Places {
    places: BTreeMap<u64, Arc<Place>>,
    next: u64,
}

/// Looks for them until `stop`.
pub(super) async fn run(shared: &Shared, stop: CancellationToken) {
    let mut looks = clock::beats(LOOK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => shared.stalls.look(clock::now()),
        }
    }
}

impl Stalls {
    /// A client has a place, for which others may wait as `demand` tells.
    pub fn begin(self: &Arc<Stalls>, demand: Demand) -> Watched {
        let place = Arc::new(Place {
            demand,
            pulse: Mutex::new(Pulse::new(clock::now())),
            cut: CancellationToken::new(),
            flow: Mutex::default(),
        });
        let mut all = lock(&self.0);
        let number = all.next;
        all.next += 1;
        all.places.insert(number, place.clone());
        Watched { stalls: self.clone(), number, place }
    }

    /// Takes the place of everybody who is stalled, where somebody wants it.
    pub fn look(&self, now: Instant) {
        let all: Vec<Arc<Place>> = lock(&self.0).places.values().cloned().collect();
        for place in all {
            if lock(&place.pulse).is_stalled(now) && place.demand.is_unmet() {
                tracing::debug!("a client neither sends nor reads while others wait: cut");
                place.cut();
            }
        }
    }
}

/// What one client does with its place.
pub(super) struct Place {
    demand: Demand,
    pulse: Mutex<Pulse>,
    cut: CancellationToken,
    /// Once the answer has begun.
    flow: Mutex<Weak<Mutex<Flow>>>,
}

impl Place {
    /// Something was seen of the client.
    pub fn note(&self, note: impl FnOnce(&mut Pulse, Instant)) {
        note(&mut lock(&self.pulse), clock::now());
    }

    fn cut(&self) {
        self.cut.cancel();
        let flow = lock(&self.flow).upgrade();
        if let Some(flow) = flow {
            // Dropped after the lock is.
            let gone = std::mem::take(&mut *lock(&flow));
            drop(gone);
        }
    }
}

/// A place that is looked at, until this is dropped.
pub(super) struct Watched {
    stalls: Arc<Stalls>,
    number: u64,
    place: Arc<Place>,
}

impl Watched {
    /// For those who see something of the client.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The answer has begun: this is what to take away.
    pub fn keep(&self, flow: &Arc<Mutex<Flow>>) {
        *lock(&self.place.flow) = Arc::downgrade(flow);
        // Between its head and here.
        if self.is_cut() {
            self.place.cut();
        }
    }

    /// Whether the place was taken away.
    pub fn is_cut(&self) -> bool {
        self.place.cut.is_cancelled()
    }

    /// Ends when it is.
    pub async fn cut(&self) {
        self.place.cut.cancelled().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        lock(&self.stalls.0).places.remove(&self.number);
    }
}
