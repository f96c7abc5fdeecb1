//! One service: its door, the line before it, and the lives of its upstream.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{oneshot, watch};

use super::{Refused, lock, place::Turn};
use crate::{
    clock,
    services::{Admission, Change, Kind, Reading, ServiceConfig, Standing, Ticket},
};

/// A service, as the tasks that look after it share it.
pub(super) struct Service {
    pub config: ServiceConfig,
    pub door: Mutex<Door>,
    /// The number of the life that the upstream is in; `None` while it does not answer.
    pub life: watch::Sender<Option<u64>>,
    pub changed: Arc<Bell>,
}

impl Service {
    pub fn new(config: ServiceConfig, changed: Arc<Bell>) -> Service {
        let door = Door {
            admission: Admission::new(config.capacity(config.kind, None), config.queue),
            standing: Standing::new(!config.command.is_empty(), clock::now()),
            kind: config.kind,
            reading: None,
            lives: 0,
            line: BTreeMap::new(),
        };
        Service { config, door: Mutex::new(door), life: watch::Sender::new(None), changed }
    }

    /// Something was learnt of how the upstream stands: the door, and who waits at it, follow.
    pub fn on_fact(&self, learn: impl FnOnce(&mut Standing) -> Change) -> Change {
        let mut door = lock(&self.door);
        let change = learn(&mut door.standing);
        match change {
            Change::None => return change,
            Change::Offered => {
                door.lives += 1;
                self.life.send_replace(Some(door.lives));
                door.admission.resume();
                door.let_in();
                return change;
            }
            Change::Held => door.admission.hold(),
            Change::Withdrawn => {
                while let Some(ticket) = door.admission.close() {
                    door.tell(Some(ticket), Err(Refused::NotOffered));
                }
            }
        }
        // What was learnt of that life may be wrong in the next.
        door.reading = None;
        door.kind = self.config.kind;
        self.life.send_replace(None);
        change
    }

    /// Something was learnt of the upstream in its life of this number. Of an earlier one it is worth nothing.
    pub fn learn(&self, life_number: u64, learn: impl FnOnce(&mut Door)) {
        let mut door = lock(&self.door);
        if *self.life.borrow() != Some(life_number) {
            return;
        }
        learn(&mut door);
        let capacity = self.config.capacity(door.kind, door.reading.and_then(|reading| reading.capacity));
        door.admission.set_capacity(capacity);
        door.let_in();
        drop(door);
        self.changed.ring();
    }

    /// Whether its upstream may answer at any moment: its line waits for it, or it was just started.
    pub fn is_awaited(&self) -> bool {
        let standing = lock(&self.door).standing;
        standing.is_held() || standing.is_starting(clock::now())
    }
}

/// Who may go to the upstream, and what is known of it.
pub(super) struct Door {
    pub admission: Admission,
    pub standing: Standing,
    pub kind: Option<Kind>,
    /// What the upstream said last about its load.
    pub reading: Option<Reading>,
    /// How many lives the upstream has had.
    lives: u64,
    /// How those in line are told that it is their turn.
    pub line: BTreeMap<Ticket, oneshot::Sender<Result<(), Refused>>>,
}

impl Door {
    /// Somebody waits with this ticket.
    pub fn wait(&mut self, ticket: Ticket) -> Turn {
        let (tell, turn) = oneshot::channel();
        self.line.insert(ticket, tell);
        turn
    }

    /// Lets in as many as there is room for.
    fn let_in(&mut self) {
        while let Some(next) = self.admission.let_in() {
            self.tell(Some(next), Ok(()));
        }
    }

    /// Tells somebody in line, if it is anybody, that they are let in or put out.
    pub fn tell(&mut self, ticket: Option<Ticket>, turn: Result<(), Refused>) {
        if let Some(tell) = ticket.and_then(|ticket| self.line.remove(&ticket)) {
            // Fails if they are leaving at this moment; then their leaving lets the next one in.
            let _ = tell.send(turn);
        }
    }
}

/// Rung at every change of a report; costs next to nothing while nobody listens.
#[derive(Default)]
pub(super) struct Bell(pub watch::Sender<u64>);

impl Bell {
    pub fn ring(&self) {
        if self.0.receiver_count() > 0 {
            self.0.send_modify(|rung| *rung = rung.wrapping_add(1));
        }
    }
}
