//! The services as they run: for each one task probes its upstream, one learns from it how busy it is and one supervises
//! its command; one measures the machine; all others hold a [`Handle`].

mod adapter;
mod client;
mod machine;
mod meter;
mod metrics;
mod place;
mod probe;
mod process;
mod service;

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use machine::MachineReader;
pub use place::{Demand, Permit, Reservation};
use service::{Bell, Service};
use tokio::sync::watch;
use wiremesh_certs::{Load, ServiceName};

use super::{
    Admit, Asker, Busy, Capabilities, Change, Config, Kind, Probe, Reading, ServiceConfig, ServiceReport, ServiceState,
    Standing, load_of, report,
};
use crate::{clock, task::Tasks};

/// The names of the models that each service serves; without those that list none.
pub type Models = Arc<[(ServiceName, Arc<[String]>)]>;

/// Starts the services: supervised commands, probes, adapters, the meter of the machine. They stop with `tasks`.
pub fn start(config: Config, tasks: &Tasks) -> anyhow::Result<Handle> {
    let mut reader = MachineReader::new();
    let (machine, _) = reader.read();
    let capabilities = Capabilities::of(machine, config.worker_type.as_deref());
    let handle = Handle::new(config.services, capabilities);
    let client = client::Client::new()?;

    for service in handle.shared.services.values() {
        let each = || (service.clone(), client.clone(), handle.shared.clone());
        if !service.config.command.is_empty() {
            let (service, _, shared) = each();
            tasks.spawn("service process", |stop| async move {
                process::run(&service.config, || shared.on_command_ended(&service), stop).await
            });
        }
        if service.config.kind != Some(Kind::Generic) {
            let (service, client, shared) = each();
            tasks.spawn("service adapter", |stop| adapter::run(service, client, shared, stop));
        }
        let (service, client, shared) = each();
        tasks.spawn("service probe", |stop| probe::run(service, client, shared, stop));
    }
    let meter = handle.clone();
    tasks.spawn("meter", |stop| meter::run(meter, reader, config.worker_type, stop));
    Ok(handle)
}

/// What other parts ask the services. Clones are the same services.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.shared.services.keys()).finish()
    }
}

impl Handle {
    /// Services of which none has been probed yet, on a machine that is `capabilities`.
    pub fn new(services: Vec<ServiceConfig>, capabilities: Capabilities) -> Handle {
        let changed = Arc::new(Bell::default());
        let service = |config: ServiceConfig| (config.name.clone(), Arc::new(Service::new(config, changed.clone())));
        let services = services.into_iter().map(service).collect();
        Handle {
            shared: Arc::new(Shared {
                services,
                offered: watch::Sender::new(Arc::from([])),
                models: watch::Sender::new(Arc::from([])),
                changed,
                draining: AtomicBool::new(false),
                machine: Mutex::new((Arc::new(capabilities), 0.0)),
            }),
        }
    }

    /// The services that take requests: whose upstream is up, or being started again.
    pub fn offered(&self) -> Arc<[ServiceName]> {
        self.shared.offered.borrow().clone()
    }

    /// Tells of every change of [`Handle::offered`].
    pub fn changes(&self) -> watch::Receiver<Arc<[ServiceName]>> {
        self.shared.offered.subscribe()
    }

    /// The models that the services which are offered list.
    pub fn models(&self) -> Models {
        self.shared.models.borrow().clone()
    }

    /// Tells of every change of [`Handle::models`].
    pub fn models_changes(&self) -> watch::Receiver<Models> {
        self.shared.models.subscribe()
    }

    /// Names of all configured services, up or not.
    pub fn configured(&self) -> impl Iterator<Item = &ServiceName> {
        self.shared.services.keys()
    }

    /// Whether there is such a service here, up or not.
    pub fn is_configured(&self, service: &ServiceName) -> bool {
        self.shared.services.contains_key(service)
    }

    /// Whether the command of a service was started for the first time just now, and may not listen yet.
    pub fn is_starting(&self, service: &ServiceName) -> bool {
        let service = self.shared.services.get(service);
        service.is_some_and(|service| lock(&service.door).standing.is_starting(clock::now()))
    }

    /// How busy this node is.
    pub fn load(&self) -> Load {
        let services = self.shared.services.values();
        load_of(services.fold(self.shared.machine_busy(), |busy, service| {
            let door = lock(&service.door);
            report::of_one(&door.admission, door.reading, busy)
        }))
    }

    /// How one service is; `None` if it is not offered.
    pub fn report(&self, service: &ServiceName) -> Option<ServiceReport> {
        let service = self.shared.services.get(service)?;
        let busy = self.shared.machine_busy();
        let draining = self.shared.is_draining();
        let door = lock(&service.door);
        let state = match door.standing {
            _ if draining => ServiceState::Draining,
            standing if standing.is_up() => ServiceState::Ready,
            standing if standing.is_held() => ServiceState::Loading,
            _ => return None,
        };
        Some(ServiceReport::of(&door.admission, door.reading, busy, state))
    }

    /// Whether a request would have to wait in the line of a service of this node.
    pub fn would_wait(&self, service: &ServiceName) -> bool {
        self.shared.services.get(service).is_some_and(|service| {
            let door = lock(&service.door);
            door.admission.running() + door.admission.waiting() >= door.admission.capacity()
        })
    }

    /// Changes whenever a report may have: a request came or ended, an upstream said something, a service came or went.
    pub fn report_changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.0.subscribe()
    }

    /// What the upstream of a service is, if it is known.
    pub fn kind(&self, service: &ServiceName) -> Option<Kind> {
        lock(&self.shared.services.get(service)?.door).kind
    }

    /// What this machine is, measured a moment ago.
    pub fn capabilities(&self) -> Arc<Capabilities> {
        lock(&self.shared.machine).0.clone()
    }

    /// Requests running and waiting at our doors, by service.
    pub fn occupancy(&self) -> Vec<(ServiceName, usize, usize)> {
        let services = self.shared.services.iter();
        services
            .map(|(name, service)| {
                let door = lock(&service.door);
                (name.clone(), door.admission.running(), door.admission.waiting())
            })
            .collect()
    }

    /// Shows the services' numbers in `/metrics`.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        metrics::register(self, registry);
    }

    /// A place at a service of this node for a client of it: at once, or in its line.
    pub fn reserve(&self, service: &ServiceName) -> Result<Reservation, Refused> {
        self.reserve_for(service, Asker::Own)
    }

    /// The same for whoever asks. Nobody keeps a line for themselves while others ask.
    pub fn reserve_for(&self, service: &ServiceName, asker: Asker) -> Result<Reservation, Refused> {
        let service = self.shared.services.get(service).ok_or(Refused::NotOffered)?;
        if self.shared.is_draining() {
            return Err(Refused::NotOffered);
        }
        let mut door = lock(&service.door);
        if !door.standing.is_offered() {
            return Err(Refused::NotOffered);
        }
        let (ticket, displaced) = match door.admission.admit(asker) {
            Admit::Now => {
                drop(door);
                service.changed.ring();
                return Ok(Reservation::running(service.clone(), asker));
            }
            Admit::Wait(ticket) => (ticket, None),
            Admit::Displace(ticket, displaced) => (ticket, Some(displaced)),
            Admit::Full(retry_after) => return Err(Refused::Full(retry_after)),
        };
        let retry_after = door.admission.retry_after();
        door.tell(displaced, Err(Refused::Full(retry_after)));
        let turn = door.wait(ticket);
        drop(door);
        service.changed.ring();
        Ok(Reservation::in_line(service.clone(), asker, ticket, turn))
    }

    /// A request found the upstream of `service` gone: nothing is sent there until a probe says otherwise.
    pub fn on_unreachable(&self, service: &ServiceName) {
        if let Some(service) = self.shared.services.get(service) {
            self.shared.on_probe(service, Probe::Refused);
        }
    }

    /// A connection to the upstream of `service` broke under a request. If we run the upstream, it may just be dying, with
    /// a listener that still takes what nobody will read: the line waits until a probe is answered.
    pub fn on_broken(&self, service: &ServiceName) {
        if let Some(service) = self.shared.services.get(service).filter(|service| !service.config.command.is_empty()) {
            self.shared.on_probe(service, Probe::Refused);
        }
    }

    /// The node is leaving: nothing is offered any more, and nobody let into a line. What is in line has its turn, and what
    /// runs ends.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.publish();
        self.shared.changed.ring();
    }

    /// The node stays after all: what is up is offered again.
    pub fn reopen(&self) {
        self.shared.draining.store(false, Ordering::Relaxed);
        self.shared.publish();
        self.shared.changed.ring();
    }

    /// Whether it is leaving.
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    /// The machine was measured; `cpu` from 0 to 1.
    fn measured(&self, capabilities: Capabilities, cpu: f64) {
        *lock(&self.shared.machine) = (Arc::new(capabilities), cpu);
    }

    /// Marks a service as up without a probe, for tests that run no probes.
    #[cfg(test)]
    pub fn set_up(&self, service: &ServiceName) {
        self.shared.on_probe(&self.shared.services[service], Probe::Answered);
    }

    /// Says what models a service has, for tests that ask no upstreams.
    #[cfg(test)]
    pub fn set_models(&self, service: &ServiceName, models: &[&str]) {
        let service = &self.shared.services[service];
        let life_number = (*service.life.borrow()).expect("the service is up");
        self.shared.on_models(service, life_number, models.iter().map(|name| name.to_string()).collect());
    }
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// There is no such service here, or its upstream is down.
    #[error("not offered here")]
    NotOffered,
    /// All places are taken, those in line too; a place is likely free after this long.
    #[error("full")]
    Full(Duration),
}

/// What the handles and the tasks of this part share. Every lock is held for one call, never across a wait.
struct Shared {
    services: BTreeMap<ServiceName, Arc<Service>>,
    offered: watch::Sender<Arc<[ServiceName]>>,
    models: watch::Sender<Models>,
    changed: Arc<Bell>,
    draining: AtomicBool,
    /// Capabilities, and the utilisation of the CPUs from 0 to 1.
    machine: Mutex<(Arc<Capabilities>, f64)>,
}

impl Shared {
    fn on_probe(&self, service: &Service, probe: Probe) {
        self.on_fact(service, &probe, |standing| standing.on_probe(probe, clock::now()));
    }

    fn on_command_ended(&self, service: &Service) {
        self.on_fact(service, &"its command ended", |standing| standing.on_command_ended(clock::now()));
    }

    /// What an upstream is, found out in its life of this number.
    fn on_kind(&self, service: &Service, life_number: u64, kind: Kind) {
        service.learn(life_number, |door| door.kind = Some(kind));
    }

    /// What it says about its load; `None` if it has not said anything for a while.
    fn on_reading(&self, service: &Service, life_number: u64, reading: Option<Reading>) {
        service.learn(life_number, |door| door.reading = reading);
    }

    /// Which models it serves.
    fn on_models(&self, service: &Service, life_number: u64, models: Arc<[String]>) {
        if *service.life.borrow() == Some(life_number) {
            self.set_models(service, models);
        }
    }

    fn on_fact(&self, service: &Service, why: &dyn Display, learn: impl FnOnce(&mut Standing) -> Change) {
        let name = &service.config.name;
        match service.on_fact(learn) {
            Change::None => return,
            Change::Offered => tracing::info!(service = %name, "service is offered"),
            Change::Held => tracing::warn!(service = %name, %why, "service waits for its upstream"),
            Change::Withdrawn => {
                self.set_models(service, Arc::from([]));
                tracing::warn!(service = %name, %why, "service is not offered");
            }
        }
        self.publish();
        self.changed.ring();
    }

    /// Tells what is offered, if it is another thing than was told last.
    fn publish(&self) {
        self.offered.send_if_modified(|offered| {
            let services = self.services.iter().filter(|(_, service)| lock(&service.door).standing.is_offered());
            let now: Arc<[ServiceName]> = match self.is_draining() {
                true => Arc::from([]),
                false => services.map(|(name, _)| name.clone()).collect(),
            };
            let changed = *offered != now;
            *offered = now;
            changed
        });
    }

    fn set_models(&self, service: &Service, models: Arc<[String]>) {
        self.models.send_if_modified(|all| {
            let name = &service.config.name;
            let before = all.iter().find(|(of, _)| of == name).map_or(&[][..], |(_, models)| models);
            if before == models.as_ref() {
                return false;
            }
            let others = all.iter().filter(|(of, _)| of != name).cloned();
            let these = (!models.is_empty()).then(|| (name.clone(), models));
            let mut now: Vec<_> = others.chain(these).collect();
            now.sort_by(|(one, _), (other, _)| one.cmp(other));
            *all = now.into();
            true
        });
    }

    fn machine_busy(&self) -> Busy {
        let machine = lock(&self.machine);
        Busy { gpu: machine.0.gpu_utilization(), cpu: machine.1, ..Busy::default() }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// A panic elsewhere while a door was held leaves nothing half done in it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
