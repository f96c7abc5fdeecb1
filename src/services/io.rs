//! The services as they run: one task probes each upstream, one supervises each command, one measures the machine; all
//! others hold a [`Handle`].

mod machine;
mod metrics;
mod probe;
mod process;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use machine::MachineReader;
use tokio::sync::{oneshot, watch};
use wiremesh_certs::{Load, ServiceName};

use super::{
    Admission, Admit, Busy, Capabilities, Config, Probe, ServiceConfig, ServiceHealth, Ticket, Upstream, load_of,
};
use crate::{clock, task::Tasks};

/// How often GPU and CPU are measured.
const METER_EVERY: Duration = Duration::from_secs(2);

/// Starts the services: supervised commands, probes, the meter of the machine. They stop with `tasks`.
pub fn start(config: Config, tasks: &Tasks) -> anyhow::Result<Handle> {
    let mut reader = MachineReader::new();
    let (machine, _) = reader.read();
    let capabilities = Capabilities::of(machine, config.worker_type.as_deref());
    let handle = Handle::new(config.services, capabilities);
    let prober = probe::Prober::new()?;

    for service in handle.shared.services.values() {
        let (service, prober, shared) = (service.clone(), prober.clone(), handle.shared.clone());
        if !service.config.command.is_empty() {
            let config = service.config.clone();
            tasks.spawn("service process", |stop| process::run(config, stop));
        }
        tasks.spawn("service probe", |stop| probe::run(service, prober, shared, stop));
    }
    let (meter, worker_type) = (handle.clone(), config.worker_type);
    tasks.spawn("meter", |stop| async move {
        let mut due = clock::beats(METER_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = due.tick() => {}
            }
            let (machine, cpu);
            if reader.may_block() {
                (reader, machine, cpu) = tokio::task::spawn_blocking(move || {
                    let (machine, cpu) = reader.read();
                    (reader, machine, cpu)
                })
                .await?;
            } else {
                (machine, cpu) = reader.read();
            }
            meter.measured(Capabilities::of(machine, worker_type.as_deref()), cpu);
        }
    });
    Ok(handle)
}

/// Services and the names of the models that each serves.
pub type Models = Arc<[(ServiceName, Arc<[String]>)]>;

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
        let services =
            services.into_iter().map(|config| (config.name.clone(), Arc::new(Service::new(config)))).collect();
        Handle {
            shared: Arc::new(Shared {
                services,
                offered: watch::Sender::new(Arc::from([])),
                models: watch::Sender::new(Arc::from([])),
                machine: Mutex::new((Arc::new(capabilities), 0.0)),
            }),
        }
    }

    /// The services whose upstream is up.
    pub fn offered(&self) -> Arc<[ServiceName]> {
        self.shared.offered.borrow().clone()
    }

    /// Tells of every change of [`Handle::offered`].
    pub fn changes(&self) -> watch::Receiver<Arc<[ServiceName]>> {
        self.shared.offered.subscribe()
    }

    /// The models of each service, as its upstream lists them.
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

    /// How busy this node is.
    pub fn load(&self) -> Load {
        let requests =
            self.shared.services.values().map(|service| lock(&service.door).admission.occupancy()).fold(0.0, f64::max);
        let machine = lock(&self.shared.machine);
        load_of(Busy { requests, gpu: machine.0.gpu_utilization(), cpu: machine.1 })
    }

    /// What this machine is, measured a moment ago.
    pub fn capabilities(&self) -> Arc<Capabilities> {
        lock(&self.shared.machine).0.clone()
    }

    /// Requests running and waiting, by service.
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

    /// A place at a service of this node: at once, or in its line.
    pub fn reserve(&self, service: &ServiceName) -> Result<Reservation, Refused> {
        let service = self.shared.services.get(service).ok_or(Refused::NotOffered)?;
        let mut door = lock(&service.door);
        if !door.health.is_up() {
            return Err(Refused::NotOffered);
        }
        match door.admission.admit() {
            Admit::Now => Ok(Reservation { place: Place::In(Permit::new(service.clone())) }),
            Admit::Wait(ticket) => {
                let (let_in, turn) = oneshot::channel();
                door.line.insert(ticket, let_in);
                let line = InLine { service: Some(service.clone()), ticket, turn };
                Ok(Reservation { place: Place::Line(line) })
            }
            Admit::Full(retry_after) => Err(Refused::Full(retry_after)),
        }
    }

    /// A request found the upstream of `service` gone: it is not offered until a probe says otherwise.
    pub fn on_unreachable(&self, service: &ServiceName) {
        if let Some(service) = self.shared.services.get(service) {
            self.shared.on_probe(service, Probe::Refused);
        }
    }

    /// The machine was measured; `cpu` from 0 to 1.
    fn measured(&self, capabilities: Capabilities, cpu: f64) {
        *lock(&self.shared.machine) = (Arc::new(capabilities), cpu);
    }

    /// Says what a service serves without having asked its upstream, for tests that run no probes.
    #[cfg(test)]
    pub fn set_models(&self, service: &ServiceName, models: &[&str]) {
        let names = models.iter().map(|model| (*model).to_owned()).collect();
        self.shared.models.send_modify(|all| {
            let others = all.iter().filter(|(name, _)| name != service).cloned();
            *all = others.chain([(service.clone(), names)]).collect();
        });
    }

    /// Marks a service as up without a probe, for tests that run no probes.
    #[cfg(test)]
    pub fn set_up(&self, service: &ServiceName) {
        self.shared.on_probe(&self.shared.services[service], Probe::Answered);
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

/// A place at a service: running, or in line. Dropping it gives the place up.
pub struct Reservation {
    place: Place,
}

impl Reservation {
    /// Waits for our turn. Dropping the future leaves the line.
    pub async fn ready(self) -> Permit {
        match self.place {
            Place::In(permit) => permit,
            Place::Line(line) => line.ready().await,
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
    started_at: Instant,
}

impl Permit {
    /// Where the request goes.
    pub fn upstream(&self) -> &Upstream {
        &self.service.config.upstream
    }

    fn new(service: Arc<Service>) -> Permit {
        Permit { service, started_at: clock::now() }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut door = lock(&self.service.door);
        let next = door.admission.release(self.started_at, clock::now());
        door.let_in(next);
    }
}

enum Place {
    In(Permit),
    Line(InLine),
}

/// Leaves the line, or gives up the place it was just given, when dropped.
struct InLine {
    /// Taken when the wait is over.
    service: Option<Arc<Service>>,
    ticket: Ticket,
    turn: oneshot::Receiver<()>,
}

impl InLine {
    async fn ready(mut self) -> Permit {
        // The sender is dropped unused by nobody: the door keeps it until our turn, and we hold the door.
        let _ = (&mut self.turn).await;
        let service = self.service.take().expect("taken only here, and `self` is gone afterwards");
        Permit::new(service)
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if let Some(service) = self.service.take() {
            let mut door = lock(&service.door);
            door.line.remove(&self.ticket);
            let next = door.admission.abandon(self.ticket);
            door.let_in(next);
        }
    }
}

/// What the handles and the tasks of this part share. Every lock is held for one call, never across a wait.
struct Shared {
    services: BTreeMap<ServiceName, Arc<Service>>,
    offered: watch::Sender<Arc<[ServiceName]>>,
    models: watch::Sender<Models>,
    /// Capabilities, and the utilisation of the CPUs from 0 to 1.
    machine: Mutex<(Arc<Capabilities>, f64)>,
}

impl Shared {
    fn on_probe(&self, service: &Service, probe: Probe) {
        if !lock(&service.door).health.on_probe(probe) {
            return;
        }
        let offered = self.services.iter().filter(|(_, service)| lock(&service.door).health.is_up());
        self.offered.send_replace(offered.map(|(name, _)| name.clone()).collect());
        match lock(&service.door).health.is_up() {
            true => tracing::info!(service = %service.config.name, "service is offered"),
            false => tracing::warn!(service = %service.config.name, why = %probe, "service is not offered"),
        }
    }
}

struct Service {
    config: ServiceConfig,
    door: Mutex<Door>,
}

impl Service {
    fn new(config: ServiceConfig) -> Service {
        let admission = Admission::new(config.max_concurrency, config.queue);
        Service {
            config,
            door: Mutex::new(Door { admission, health: ServiceHealth::default(), line: BTreeMap::new() }),
        }
    }
}

struct Door {
    admission: Admission,
    health: ServiceHealth,
    /// How those in line are told that it is their turn.
    line: BTreeMap<Ticket, oneshot::Sender<()>>,
}

impl Door {
    fn let_in(&mut self, next: Option<Ticket>) {
        if let Some(turn) = next.and_then(|ticket| self.line.remove(&ticket)) {
            // Fails if they are leaving at this moment; then their leaving lets the next one in.
            let _ = turn.send(());
        }
    }
}

/// A panic elsewhere while a door was held leaves nothing half done in it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_service(max_concurrency: usize, queue: usize) -> (Handle, ServiceName) {
        let name = ServiceName::new("ocr").unwrap();
        let config = ServiceConfig {
            name: name.clone(),
            upstream: "http://127.0.0.1:9".parse().unwrap(),
            health: "/".into(),
            command: Vec::new(),
            max_concurrency,
            queue,
        };
        (Handle::new(vec![config], Capabilities::of(Default::default(), None)), name)
    }

    #[tokio::test]
    async fn the_permit_of_one_request_goes_to_the_next_in_line() {
        let (handle, ocr) = one_service(1, 1);
        handle.set_up(&ocr);
        let first = handle.reserve(&ocr).unwrap().ready().await;
        let second = handle.reserve(&ocr).unwrap();
        assert!(second.must_wait());
        assert!(matches!(handle.reserve(&ocr), Err(Refused::Full(_))));

        drop(first);

        second.ready().await;
        assert_eq!(handle.occupancy(), [(ocr, 0, 0)]);
    }

    #[tokio::test]
    async fn who_leaves_the_line_takes_no_place_with_them() {
        let (handle, ocr) = one_service(1, 2);
        handle.set_up(&ocr);
        let first = handle.reserve(&ocr).unwrap().ready().await;
        let (second, third) = (handle.reserve(&ocr).unwrap(), handle.reserve(&ocr).unwrap());

        drop(first);
        drop(second);

        third.ready().await;
        assert_eq!(handle.occupancy(), [(ocr, 0, 0)]);
    }

    #[tokio::test]
    async fn a_service_whose_upstream_is_gone_is_not_offered_and_this_is_told() {
        let (handle, ocr) = one_service(1, 0);
        let mut changes = handle.changes();
        assert!(matches!(handle.reserve(&ocr), Err(Refused::NotOffered)));

        handle.set_up(&ocr);
        assert_eq!(changes.borrow_and_update().as_ref(), std::slice::from_ref(&ocr));
        handle.on_unreachable(&ocr);

        assert!(changes.has_changed().unwrap());
        assert!(handle.offered().is_empty());
    }

    #[tokio::test]
    async fn a_full_service_is_a_fully_loaded_node() {
        let (handle, ocr) = one_service(2, 2);
        handle.set_up(&ocr);
        assert_eq!(handle.load().percent(), 0);

        let _one = handle.reserve(&ocr).unwrap();
        assert_eq!(handle.load().percent(), 50);
        let _all = [handle.reserve(&ocr).unwrap(), handle.reserve(&ocr).unwrap()];

        assert_eq!(handle.load().percent(), 100);
    }
}
