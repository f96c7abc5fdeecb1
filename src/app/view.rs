//! What the agent knows of itself, for people and programs: the socket, `/health`, `/stats` and `/metrics`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use wiremesh_certs::{GroupName, NodeName, OverlayIp, Rule, ServiceName, Trust, TrustStore};

use super::{copies::Copied, glue::Recorder, metrics, reach::Reach, standing::Standing};
use crate::{
    clock, directory, membership,
    overlay::{self, ping::PingFailed, ping::Pong},
    router::{self, DirectoryCounters, HealthReport, Status},
};

/// A peer heard within this time counts as heard lately.
const HEARD_LATELY: Duration = Duration::from_secs(60);
/// So long without a coordinator and the agent calls itself degraded: three heartbeats.
const COORDINATOR_MISSED_AFTER: Duration = Duration::from_secs(30);

/// The handles of all parts, to look at.
pub struct View {
    /// What we say about ourselves.
    pub recorder: Arc<Recorder>,
    /// Who offers what.
    pub directory: directory::Handle,
    /// Our place in the mesh.
    pub membership: membership::io::Handle,
    /// Who gets which request.
    pub router: router::io::Router,
    /// Whom we believe.
    pub trust: Arc<TrustStore>,
    /// Where local clients are answered.
    pub listen: SocketAddr,
    /// Where other nodes' requests end.
    pub ingress: Option<SocketAddr>,
    /// How others are reached from here.
    pub reach: Reach,
    /// Whether the operator wants an overlay.
    pub wants_overlay: bool,
    /// When the agent was started.
    pub started_at: Instant,
    /// Whether all listeners are up.
    pub ready: AtomicBool,
    /// Whether the agent ends: its draining is not called off.
    pub ending: AtomicBool,
}

impl View {
    /// For `wiremesh status`.
    pub async fn status(&self) -> Value {
        let (now, unix) = (clock::now(), clock::unix());
        let own = self.recorder.author.own();
        let (begin, end) = (own.not_before().0, own.not_after().0);
        let life = end.saturating_sub(begin).max(1);
        let overlay = self.overlay_status().await;
        let dht = self.directory.status();
        let coordinator = self.membership.status();
        let trust = self.trust.current();
        let standing = Standing::of(&own, &trust, unix);
        let authority = trust.authorities().iter().find(|known| known.fingerprint() == own.authority());
        json!({
            "name": own.name(),
            "id": own.id(),
            "mesh": trust.mesh(),
            "version": env!("CARGO_PKG_VERSION"),
            "state": self.state().as_str(),
            "troubles": self.troubles(),
            "uptime_secs": now.saturating_duration_since(self.started_at).as_secs(),
            "overlay_ip": overlay.as_ref().map(|_| own.address()),
            "identity": {
                "serial": own.serial(),
                "groups": own.groups(),
                "wireguard_key": own.wg(),
                "not_before": own.not_before().to_string(),
                "not_after": own.not_after().to_string(),
                "ends_in_secs": end.saturating_sub(unix.0),
                "used_percent": (unix.0.saturating_sub(begin) * 100 / life).min(100),
                "standing": standing.as_str(),
                "renew_at": coordinator.renew_at.to_string(),
                "renew_in_secs": coordinator.renew_at.0.saturating_sub(unix.0),
                "renew_why": coordinator.renew_why,
                "without_coordinator_until": own.not_after().to_string(),
            },
            "authority": {
                "fingerprint": own.authority(),
                "is_replaced": matches!(standing, Standing::Replaced | Standing::Retired),
                "successor": Some(trust.authority().fingerprint()).filter(|first| *first != own.authority()),
                "not_after": authority.map(|authority| authority.not_after().to_string()),
                "ends_in_secs": authority.map(|authority| authority.not_after().0.saturating_sub(unix.0)),
                "believed": trust.authorities().len(),
            },
            "list": {
                "number": trust.revocation_number(),
                "enforced": *self.membership.enforced().borrow(),
                "confirmed_secs_ago": coordinator.last_contact_age(now).map(|age| age.as_secs()),
            },
            "clock": {
                "ahead_secs": coordinator.clock.map(|offset| offset.seconds),
                "wrong": coordinator.clock.is_some_and(|offset| offset.is_wrong()),
            },
            "overlay": overlay.as_ref().map(|overlay| json!({
                "interface": overlay.interface,
                "mtu": overlay.mtu,
                "listen_port": overlay.listen_port,
                "endpoints": overlay.endpoints,
                "nearby": overlay.nearby,
                "peers": overlay.peers.len(),
                "peers_heard": overlay.peers.iter().filter(|peer| heard_lately(peer)).count(),
                "traffic": overlay.traffic,
                "dropped": overlay.dropped,
            })),
            "reach": self.reach,
            "tunnel": self.recorder.author.tunnel_url().map(|url| {
                let found = coordinator.tunnel.as_ref().filter(|found| found.url == *url);
                json!({
                    "url": url,
                    "leads_back": found.map(|found| found.leads_back),
                    "why": found.and_then(|found| found.why.as_ref()),
                    "looked_secs_ago": found.map(|found| unix.saturating_since(found.looked_at).as_secs()),
                })
            }),
            "dht": {
                "enabled": dht.dht_enabled,
                "connections": dht.connections,
                "members": dht.members,
                "contacts": dht.contacts,
                "absent": dht.absent,
                "stored_entries": dht.stored,
                "stored_by": dht.stored_by,
                "published": dht.stored_by > 0,
                "published_secs_ago": dht.published_secs_ago,
                "answered_secs_ago": dht.answered_secs_ago,
                "lookups": dht.lookups,
                "lookups_found": dht.lookups_found,
                "last_lookup_ms": dht.last_lookup_ms,
                "average_lookup_ms": dht.average_lookup_ms,
                "rejected": dht.rejected,
            },
            "coordinator": {
                "url": coordinator.coordinator,
                "connected": coordinator.is_connected(),
                "heard_secs_ago": coordinator.last_contact_age(now).map(|age| age.as_secs()),
                "failures": coordinator.failures,
                "last_error": coordinator.last_error,
                "renew_at": coordinator.renew_at.to_string(),
                "renewal_error": coordinator.renewal_error,
            },
            "keys": {
                "made_at": coordinator.keys_made_at.to_string(),
                "age_secs": unix.saturating_since(coordinator.keys_made_at).as_secs(),
                "rotate_at": coordinator.rotate_at.map(|at| at.to_string()),
                "copied": self.copied(),
            },
            "revocation_number": trust.revocation_number(),
            "services": self.own_services(),
            "policy": self.policy(),
            "api": { "listen": self.listen, "ingress": self.ingress },
        })
    }

    /// Returns when the parts that could hang have answered.
    pub async fn answers(&self) {
        self.overlay_status().await;
        self.directory.status();
    }

    /// For `wiremesh peers`.
    pub async fn peers(&self) -> Value {
        let peers = self.overlay_status().await.map(|overlay| overlay.peers).unwrap_or_default();
        json!({ "peers": peers })
    }

    /// For `wiremesh services`: what is offered here, and whatever is remembered of others.
    pub async fn services(&self) -> Value {
        let now_millis = clock::unix_millis();
        let mut services: BTreeMap<ServiceName, Vec<Value>> = BTreeMap::new();
        for entry in self.directory.remembered() {
            for service in &entry.record().services {
                services.entry(service.clone()).or_default().push(json!({
                    "name": entry.name(),
                    "address": entry.address(),
                    "load_percent": entry.record().load.percent(),
                    "tunnel_url": entry.record().tunnel_url,
                    "published_secs_ago": now_millis.saturating_sub(entry.sequence()) / 1000,
                }));
            }
        }
        let rows = services.into_iter().map(|(name, workers)| json!({ "name": name, "workers": workers }));
        json!({ "services": rows.collect::<Vec<_>>(), "offered_here": self.own_services() })
    }

    /// The address that a name or an address means.
    pub async fn address_of(&self, to: &str) -> Option<OverlayIp> {
        if let Ok(address) = to.parse::<OverlayIp>() {
            return self.trust.current().network().contains(&address.0).then_some(address);
        }
        let name: NodeName = to.parse().ok()?;
        if name == *self.recorder.author.own().name() {
            return Some(self.recorder.author.own().address());
        }
        Some(self.directory.resolve_name(&name).await?.address())
    }

    /// Whether it is the address of this node.
    pub fn is_ours(&self, address: OverlayIp) -> bool {
        self.recorder.author.own().address() == address
    }

    /// One round trip over the overlay.
    pub async fn ping(&self, to: OverlayIp) -> Result<Pong, PingFailed> {
        match &self.recorder.overlay {
            Some(overlay) => overlay.ping(to).await,
            None => Err(PingFailed::Stopped),
        }
    }

    /// For `/health`.
    pub fn health(&self) -> HealthReport {
        let own = self.recorder.author.own();
        HealthReport {
            status: self.state(),
            worker_id: own.name().clone(),
            vpn_ip: self.recorder.overlay.as_ref().map(|_| own.address()),
            services: self.recorder.services.offered(),
            dht_enabled: self.directory.status().dht_enabled,
            uptime: clock::now().saturating_duration_since(self.started_at),
        }
    }

    /// For `/stats`.
    pub fn directory_counters(&self) -> DirectoryCounters {
        let status = self.directory.status();
        DirectoryCounters {
            cache_hits: status.counters.cache_hits,
            cache_misses: status.counters.cache_misses,
            dht_lookups: status.counters.dht_lookups,
            http_lookups: status.counters.http_lookups,
            cache_size: status.services as u64,
        }
    }

    /// For `/metrics`.
    pub async fn metrics(&self) -> String {
        let mut registry = Registry::default();
        self.router.counters().register(&mut registry);
        self.recorder.services.register(&mut registry);
        let (own, trust) = (self.recorder.author.own(), self.trust.current());
        let authority = trust.authorities().iter().find(|authority| authority.fingerprint() == own.authority());
        let enforced = *self.membership.enforced().borrow();
        metrics::register_agent(&mut registry, self.recorder.services.load());
        metrics::register_lease(
            &mut registry,
            &metrics::Lease {
                ends: own.not_after(),
                authority_ends: authority.map(|authority| authority.not_after()),
                membership: self.membership.status(),
                enforced,
            },
        );
        metrics::register_directory(&mut registry, &self.directory.status());
        if let Some(overlay) = self.overlay_status().await {
            metrics::register_overlay(&mut registry, &overlay);
        }
        metrics::encode(&registry)
    }

    fn state(&self) -> Status {
        if !self.ready.load(Ordering::Relaxed) {
            Status::Starting
        } else if self.troubles().is_empty() {
            Status::Healthy
        } else {
            Status::Degraded
        }
    }

    /// What is not as it should be, in words.
    fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        let (own, unix, membership) = (self.recorder.author.own(), clock::unix(), self.membership.status());
        if let Some(offset) = membership.clock.filter(|offset| offset.is_wrong()) {
            troubles.push(format!(
                "this machine's clock is {offset} the coordinator's: set it; until then its records and proofs are refused, \
                 so that others do not find it and it cannot renew"
            ));
        }
        let standing = Standing::of(&own, &self.trust.current(), unix);
        if membership.is_revoked && standing != Standing::Revoked {
            troubles.push(
                "the coordinator refuses us because our certificate is revoked; if these are keys from before a change \
                 of keys, put the present ones back, else move the state directory away and join with a new token"
                    .to_owned(),
            );
        }
        troubles.extend(standing.trouble(&own, unix));
        if self.reach.is_less_than_wanted(self.wants_overlay) {
            let advice = self.reach.advice().map(|advice| format!("; what would help: {advice}")).unwrap_or_default();
            troubles.push(format!("requests take tunnel URLs alone: {}{advice}", self.reach.why));
        }
        if let Some(found) = membership.tunnel.as_ref().filter(|found| !found.leads_back) {
            let why = found.why.as_deref().unwrap_or("no reason given");
            troubles.push(format!("the tunnel URL {} does not lead back to this node: {why}", found.url));
        }
        let now = clock::now();
        let heard = membership.last_contact.unwrap_or(self.started_at);
        if now.saturating_duration_since(heard) > COORDINATOR_MISSED_AFTER {
            troubles.push("no coordinator answers: joining, renewing and revoking wait, the rest goes on".to_owned());
        }
        troubles.extend(self.copied().map(|copied| copied.trouble(own.name(), unix)));
        if self.recorder.leaving.load(Ordering::Relaxed) {
            troubles.push(
                "draining: services of this node take no new requests, until `wiremesh drain --cancel` or a restart"
                    .to_owned(),
            );
        } else {
            let not_offered = |service| Some(format!("{service} is not offered: {}", self.why_not_offered(service)?));
            troubles.extend(self.recorder.services.configured().filter_map(not_offered));
        }
        troubles
    }

    /// Why others do not get a service of this node from it; `None` if they do.
    fn why_not_offered(&self, service: &ServiceName) -> Option<String> {
        let (own, trust, services) = (self.recorder.author.own(), self.trust.current(), &self.recorder.services);
        Some(if !own.services().allows(service) {
            "our certificate does not allow it".to_owned()
        } else if !trust.may_offer(&own, service) {
            format!("the mesh's policy leaves it to {}", groups(rule(&trust, service).offer.as_ref()))
        } else if services.is_draining() {
            "this node drains".to_owned()
        } else if services.offered().contains(service) {
            return None;
        } else if services.is_starting(service) {
            "its command was just started".to_owned()
        } else {
            "its upstream fails the health check".to_owned()
        })
    }

    /// Who else uses our keys, by whoever found it out.
    fn copied(&self) -> Option<Copied> {
        let by_coordinator = self.membership.status().copied.map(Copied::from);
        by_coordinator.or_else(|| self.recorder.author.copied(clock::unix()))
    }

    /// What the mesh's policy says about the services of this node.
    fn policy(&self) -> Value {
        let (trust, own) = (self.trust.current(), self.recorder.author.own());
        let row = |service: &ServiceName| {
            let rule = rule(&trust, service);
            json!({
                "service": service,
                "may_offer": trust.may_offer(&own, service),
                "offered_by": rule.offer,
                "called_by": rule.call,
            })
        };
        self.recorder.services.configured().map(row).collect()
    }

    fn own_services(&self) -> Vec<Value> {
        let services = &self.recorder.services;
        let models = services.models();
        let row = |(name, running, waiting): (ServiceName, usize, usize)| {
            let (report, why_not) = (services.report(&name), self.why_not_offered(&name));
            let models = models.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, models)| models);
            json!({
                "offered": why_not.is_none(),
                "why_not": why_not,
                "state": report.map_or("down", |report| report.state.as_str()),
                "kind": services.kind(&name).map(|kind| kind.as_str()),
                "running": report.map_or(running, |report| report.running as usize),
                "waiting": waiting,
                "queued": report.map_or(waiting, |report| report.queued as usize),
                "capacity": report.map(|report| report.capacity),
                "load": report.map(|report| report.load.share()),
                "service_time_ms": report.map(|report| report.service_time_ms),
                "models": models,
                "name": name,
            })
        };
        services.occupancy().into_iter().map(row).collect()
    }

    async fn overlay_status(&self) -> Option<overlay::Status> {
        match &self.recorder.overlay {
            Some(overlay) => overlay.status().await,
            None => None,
        }
    }
}

fn rule<'a>(trust: &'a Trust, service: &ServiceName) -> &'a Rule {
    let policy = &trust.revocations().policy;
    policy.services.get(service).unwrap_or(&policy.otherwise)
}

/// Who is meant by one side of a rule.
fn groups(of: Option<&BTreeSet<GroupName>>) -> String {
    match of {
        None => "every member".to_owned(),
        Some(groups) if groups.is_empty() => "nobody".to_owned(),
        Some(groups) => groups.iter().map(|group| format!("the group {group}")).collect::<Vec<_>>().join(" or "),
    }
}

/// Whether a peer was heard in the last minute.
pub fn heard_lately(peer: &overlay::PeerStatus) -> bool {
    peer.heard_secs_ago.is_some_and(|age| age < HEARD_LATELY.as_secs_f64())
}
