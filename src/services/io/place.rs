//! A request's place at a service: in its line, or at its upstream. Dropping it gives it up.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

use super::{Service, lock};
use crate::{
    clock,
    services::{Asker, Refused, Ticket, Upstream},
};

/// How often a request that found nobody at the upstream may go back into the line.
const MAX_RETURNS: u8 = 3;

/// A place at a service: running, or in line. Dropping it gives the place up.
pub struct Reservation {
    place: Place,
    returns: u8,
}

impl Reservation {
    pub(super) fn running(service: Arc<Service>, asker: Asker) -> Reservation {
        Reservation { place: Place::In(Permit::new(service, asker, 0)), returns: 0 }
    }

    pub(super) fn in_line(service: Arc<Service>, asker: Asker, ticket: Ticket, turn: Turn) -> Reservation {
        Reservation { place: Place::Line(InLine { service: Some(service), asker, ticket, turn }), returns: 0 }
    }

    /// Waits for our turn. Dropping the future leaves the line. An error if the service is offered no more, or others had
    /// less of the line than who asked.
    pub async fn ready(self) -> Result<Permit, Refused> {
        match self.place {
            Place::In(permit) => Ok(permit),
            Place::Line(line) => line.ready(self.returns).await,
        }
    }

    /// Whether the request has to wait.
    pub fn must_wait(&self) -> bool {
        matches!(self.place, Place::Line(_))
    }
}

/// The right to send one request to the upstream, until it is dropped.
pub struct Permit {
    service: Arc<Service>,
    asker: Asker,
    returns: u8,
    started_at: Instant,
    /// False once the place was given back.
    held: bool,
}

impl Permit {
    /// Where the request goes.
    pub fn upstream(&self) -> &Upstream {
        &self.service.config.upstream
    }

    /// Tells whether others want such a place, for as long as it is asked.
    pub fn demand(&self) -> Demand {
        Demand(self.service.clone())
    }

    /// The request found nobody at the upstream and nothing of it was sent: if the upstream is being started again, it is
    /// the first in line; else its place is given up.
    pub fn back_in_line(mut self) -> Option<Reservation> {
        let service = self.service.clone();
        let mut door = lock(&service.door);
        self.held = false;
        if !door.standing.is_held() || self.returns >= MAX_RETURNS {
            let next = door.admission.give_back(self.asker);
            door.tell(next, Ok(()));
            drop(door);
            service.changed.ring();
            return None;
        }
        let ticket = door.admission.back_in_line(self.asker);
        let turn = door.wait(ticket);
        drop(door);
        service.changed.ring();
        let line = InLine { service: Some(service), asker: self.asker, ticket, turn };
        Some(Reservation { place: Place::Line(line), returns: self.returns + 1 })
    }

    fn new(service: Arc<Service>, asker: Asker, returns: u8) -> Permit {
        Permit { service, asker, returns, started_at: clock::now(), held: true }
    }
}

/// Whether more want a place at a service than it has.
pub struct Demand(Arc<Service>);

impl Demand {
    /// Whether all are taken and somebody waits for one, or was sent away since one was last given.
    pub fn is_unmet(&self) -> bool {
        lock(&self.0.door).admission.is_wanted()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.held {
            let mut door = lock(&self.service.door);
            let next = door.admission.release(self.asker, self.started_at, clock::now());
            door.tell(next, Ok(()));
            drop(door);
            self.service.changed.ring();
        }
    }
}

enum Place {
    In(Permit),
    Line(InLine),
}

/// How somebody in line learns that they are let in, or put out and why.
pub(super) type Turn = oneshot::Receiver<Result<(), Refused>>;

/// Leaves the line, or gives up the place it was just given, when dropped.
struct InLine {
    /// Taken when the wait is over.
    service: Option<Arc<Service>>,
    asker: Asker,
    ticket: Ticket,
    turn: Turn,
}

impl InLine {
    async fn ready(mut self, returns: u8) -> Result<Permit, Refused> {
        // The sender is dropped unused by nobody: the door keeps it until our turn, and we hold the door.
        let turn = (&mut self.turn).await.unwrap_or(Err(Refused::NotOffered));
        let service = self.service.take().expect("taken only here, and `self` is gone afterwards");
        turn.map(|()| Permit::new(service, self.asker, returns))
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let Some(service) = self.service.take() else { return };
        let mut door = lock(&service.door);
        door.line.remove(&self.ticket);
        // Whoever was put out has no place to give up. It is told under the same lock.
        if !matches!(self.turn.try_recv(), Ok(Err(_))) {
            let next = door.admission.abandon(self.ticket, self.asker);
            door.tell(next, Ok(()));
        }
        drop(door);
        service.changed.ring();
    }
}
