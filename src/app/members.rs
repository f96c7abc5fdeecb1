//! What our place in the mesh brings, passed on: a new certificate, revocations, members to meet; and what the
//! coordinator and the disk should know of us in return.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{Notify, mpsc, watch};
use wiremesh_certs::{NodeRecord, ServiceName, Signed, TrustStore};

use super::glue::Recorder;
use crate::{
    api::Seed,
    clock,
    config::Config,
    directory, membership, router,
    task::{CancellationToken, Tasks},
};

/// How often it is looked whether other members are worth knowing after a restart.
const KEEP_CONTACTS_EVERY: Duration = Duration::from_secs(5);

/// Members called back at a time because they asked for us; beyond it they have to reach us alone.
const MAX_CALLS: usize = 32;

/// Starts everything in this file, and the membership itself.
pub fn start(
    config: &Config,
    session: membership::io::Session,
    recorder: &Arc<Recorder>,
    directory: &directory::Handle,
    router: router::io::Router,
    renewed: Arc<Notify>,
    tasks: &Tasks,
) -> membership::io::Handle {
    let membership = session.handle();
    let (sender, events) = mpsc::channel(membership::io::MAX_EVENTS);
    let sources = sources(config, recorder);
    tasks.spawn("membership", |stop| session.run(sources, sender, stop));
    let follow = Follow {
        recorder: recorder.clone(),
        directory: directory.clone(),
        membership: membership.clone(),
        trust: recorder.trust.clone(),
        router,
        renewed,
    };
    tasks.spawn("membership events", |stop| follow.run(events, stop));
    let (directory, handle, dht_port) = (directory.clone(), membership.clone(), config.dht.port);
    tasks.spawn("keep contacts", |stop| keep_contacts(directory, handle, dht_port, stop));
    let (services, models) = (recorder.services.changes(), recorder.services.models_changes());
    let handle = membership.clone();
    tasks.spawn("announce", |stop| announce(services, models, handle, stop));
    membership
}

/// Passes on what our place in the mesh brings: a new certificate, revocations, people to meet.
struct Follow {
    recorder: Arc<Recorder>,
    directory: directory::Handle,
    membership: membership::io::Handle,
    trust: Arc<TrustStore>,
    router: router::io::Router,
    renewed: Arc<Notify>,
}

impl Follow {
    async fn run(
        self,
        mut events: mpsc::Receiver<membership::io::Event>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut calling = FuturesUnordered::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = calling.next() => continue,
                event = events.recv() => event,
            };
            match event {
                // A call waits for its answer, a revocation does not wait for a call.
                Some(membership::io::Event::Introductions(records)) => {
                    self.directory.add_contacts(&records);
                    let room = MAX_CALLS.saturating_sub(calling.len());
                    calling.extend(records.into_iter().take(room).map(|record| self.call(record)));
                }
                Some(event) => self.handle(event).await,
                None => {
                    stop.cancelled().await;
                    return Ok(());
                }
            }
        }
    }

    async fn handle(&self, event: membership::io::Event) {
        match event {
            membership::io::Event::Renewed(own) => {
                if let Err(error) = self.directory.set_chain(own.chain()) {
                    tracing::error!("the renewed certificate cannot be used for the DHT: {error:#}");
                }
                self.recorder.author.set_own(own);
                self.renewed.notify_one();
            }
            membership::io::Event::RevocationsChanged => {
                let number = self.trust.current().revocation_number();
                self.directory.trust_changed();
                if let Some(overlay) = &self.recorder.overlay {
                    overlay.trust_changed().await;
                    // What is asked after a command is answered after it: from here on it is done.
                    overlay.status().await;
                }
                self.router.trust_changed();
                self.membership.acknowledge(number);
                // Our record says which list we enforce, and offers what we may offer now.
                self.renewed.notify_one();
            }
            membership::io::Event::Seeds(seeds) => {
                self.directory.add_contacts(&records_of(&seeds));
            }
            // Said in the log by the membership itself, and shown by the status.
            membership::io::Event::CoordinatorReached | membership::io::Event::CoordinatorLost => {}
            // Answered by calls, which have time.
            membership::io::Event::Introductions(_) => {}
        }
    }

    /// They are about to call us: calling them too opens the way through a NAT on our side.
    async fn call(&self, record: Signed<NodeRecord>) {
        let Some(overlay) = &self.recorder.overlay else { return };
        let Ok(opened) = self.trust.current().open(&record, clock::unix()) else { return };
        let address = opened.by.address();
        overlay.upsert_peer(opened.by, opened.payload).await;
        if let Err(why) = overlay.ping(address).await {
            tracing::debug!(%address, %why, "introduced, and not reached yet");
        }
    }
}

/// Hands the members worth knowing after a restart to the membership, which keeps them on disk: when others are known, or
/// the known are elsewhere, not whenever one publishes again.
async fn keep_contacts(
    directory: directory::Handle,
    membership: membership::io::Handle,
    dht_port: u16,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut kept = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(KEEP_CONTACTS_EVERY) => {}
        }
        let contacts = directory.contacts();
        let places = contacts.iter().map(|entry| (entry.id(), entry.record().endpoints.clone())).collect();
        if kept != places {
            membership.keep_seeds(seeds_of(contacts, dht_port));
            kept = places;
        }
    }
}

/// Contacts as the membership keeps them.
pub fn seeds_of(contacts: Vec<directory::Entry>, dht_port: u16) -> Vec<Seed> {
    let seed = |entry: directory::Entry| Seed {
        worker_id: entry.name().clone(),
        vpn_ip: entry.address(),
        tunnel_url: entry.record().tunnel_url.clone(),
        dht_port,
        record: entry.signed().clone(),
    };
    contacts.into_iter().map(seed).collect()
}

/// The coordinator hears at once of services and models that came or went.
async fn announce(
    mut services: watch::Receiver<Arc<[ServiceName]>>,
    mut models: watch::Receiver<crate::services::Models>,
    membership: membership::io::Handle,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = services.changed() => changed?,
            changed = models.changed() => changed?,
        }
        membership.announce();
    }
}

fn sources(config: &Config, recorder: &Arc<Recorder>) -> membership::io::Sources {
    let overlay = recorder.overlay.is_some();
    let (recorder, services) = (recorder.clone(), recorder.services.clone());
    let capabilities = move || match serde_json::to_value(&*services.capabilities()) {
        Ok(serde_json::Value::Object(capabilities)) => capabilities,
        _ => serde_json::Map::new(),
    };
    membership::io::Sources {
        record: Box::new(move || recorder.record()),
        capabilities: Box::new(capabilities),
        dht_port: (config.dht.enabled && overlay).then_some(config.dht.port),
    }
}

/// What seeds say of themselves.
pub fn records_of(seeds: &[Seed]) -> Vec<Signed<NodeRecord>> {
    seeds.iter().map(|seed| seed.record.clone()).collect()
}
