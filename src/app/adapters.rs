//! What one part wants another to look like: the directory as the router's phone book, the coordinator as the
//! directory's last resort, the agent's view as the router's pages.

use std::sync::Arc;

use futures::future::BoxFuture;
use wiremesh_certs::{
    IdentityKey, NodeId, NodeRecord, Offer, OverlayIp, ServiceName, Signed, Trust, TrustStore, Verified, proof_header,
};

use super::{glue::Recorder, view::View};
use crate::{
    clock, directory,
    directory::io::Sought,
    membership, overlay,
    router::{self, DirectoryCounters, HealthReport},
};

/// The directory as the router asks it. We are not among the workers: the router has asked us first.
pub struct PhoneBook {
    /// Who offers what.
    pub directory: directory::Handle,
    /// Ourselves.
    pub me: NodeId,
    /// Where agents listen on their overlay address.
    pub overlay_port: u16,
    /// The mesh's policy.
    pub trust: Arc<TrustStore>,
    /// Who we are at the moment.
    pub recorder: Arc<Recorder>,
}

impl router::Find for PhoneBook {
    fn find<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, router::Found> {
        Box::pin(async move {
            let nobody = |forbidden| router::Found { workers: Vec::new(), source: router::Source::Cache, forbidden };
            let (own, trust) = (self.recorder.author.own(), self.trust.current());
            if let Offer::Service(service) = offer
                && !trust.may_call(&own, service)
            {
                return nobody(true);
            }
            let Some(answer) = self.directory.find(offer).await else { return nobody(false) };
            let others: Vec<_> = answer.workers.iter().filter(|entry| entry.id() != self.me).collect();
            let callable =
                |entry: &&&directory::Entry| may_call_there(&trust, &own, offer, entry.verified(), entry.record());
            let forbidden = !others.is_empty() && !others.iter().any(|entry| callable(&entry));
            let others = others.iter().filter(callable);
            router::Found {
                forbidden,
                workers: others
                    .map(|entry| router::Worker::of(entry.verified(), entry.record(), self.overlay_port))
                    .collect(),
                source: match answer.source {
                    directory::Source::Cache => router::Source::Cache,
                    directory::Source::Dht => router::Source::Dht,
                    directory::Source::Http => router::Source::Http,
                },
            }
        })
    }

    fn forget(&self, offer: &Offer, worker: &NodeId) {
        self.directory.forget(offer, worker);
    }
}

/// Whether a worker has what was looked for by any service that we may call. Lists of models are for all members.
fn may_call_there(trust: &Trust, own: &Verified, offer: &Offer, worker: &Verified, record: &NodeRecord) -> bool {
    let callable = |service: &ServiceName| trust.may_offer(worker, service) && trust.may_call(own, service);
    matches!(offer, Offer::AnyModel) || record.services_for(offer).any(callable)
}

/// The other members as the router asks who they are: peers of the overlay, and whoever the directory has heard of.
pub struct Acquaintances {
    /// Whose addresses those are.
    pub overlay: Option<overlay::Handle>,
    /// Everybody else.
    pub directory: directory::Handle,
    /// Whom we believe.
    pub trust: Arc<TrustStore>,
    /// Who we are at the moment.
    pub recorder: Arc<Recorder>,
}

impl router::Members for Acquaintances {
    fn own(&self) -> Verified {
        self.recorder.author.own()
    }

    fn whose(&self, address: OverlayIp) -> router::Whose {
        match self.overlay.as_ref().and_then(|overlay| overlay.whose(address)) {
            Some(overlay::PeerSource::Verified(member)) => router::Whose::Member(member),
            Some(overlay::PeerSource::Configured) => router::Whose::Stranger,
            None => router::Whose::Nobody,
        }
    }

    fn known(&self, member: &NodeId) -> Option<Verified> {
        let (trust, unix) = (self.trust.current(), clock::unix());
        let is_believed = |known: &Verified| known.is_valid_at(unix) && !trust.is_revoked(known);
        let as_peer = self.overlay.as_ref().and_then(|overlay| overlay.certificate(member)).filter(is_believed);
        as_peer.into_iter().chain(self.directory.member(member)).max_by_key(Verified::not_before)
    }

    fn latest<'a>(&'a self, member: &'a Verified) -> BoxFuture<'a, Option<Verified>> {
        Box::pin(async move { Some(self.directory.resolve_name(member.name()).await?.verified().clone()) })
    }
}

/// The coordinator as the directory asks it.
pub struct Coordinator(pub membership::io::Client);

impl directory::Discover for Coordinator {
    fn discover<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, anyhow::Result<Vec<Signed<NodeRecord>>>> {
        Box::pin(async move { Ok(self.0.discover(offer).await?.into_iter().map(|worker| worker.record).collect()) })
    }

    fn node<'a>(&'a self, sought: &'a Sought) -> BoxFuture<'a, anyhow::Result<Option<Signed<NodeRecord>>>> {
        Box::pin(async move {
            Ok(match sought {
                Sought::Address(address) => self.0.node_at(*address).await?,
                Sought::Name(name) => self.0.node(name).await?,
            })
        })
    }
}

/// The agent's view as the router's pages show it.
pub struct Pages(pub Arc<View>);

impl router::Report for Pages {
    fn health(&self) -> HealthReport {
        self.0.health()
    }

    fn directory(&self) -> DirectoryCounters {
        self.0.directory_counters()
    }

    fn metrics(&self) -> BoxFuture<'_, String> {
        Box::pin(self.0.metrics())
    }
}

/// Proofs for ingress listeners, made with our key and whatever certificate we have at the moment.
pub fn prove(key: Arc<IdentityKey>, recorder: Arc<Recorder>) -> router::Prove {
    Arc::new(move |worker, method, path| {
        let chain = recorder.author.chain();
        let now = clock::unix();
        Ok(proof_header(&key, &chain, &worker.to_hex(), method.as_str(), path, now, &mut rand::rng())?)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::{
        AllowedServices, Authority, CaParameters, Claims, Load, ModelOffer, ModelTag, Policy, RevocationList, Rule,
        UnixTime, generate_keys,
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn a_worker_is_asked_for_a_model_if_a_service_that_serves_it_there_may_be_offered_and_called() {
        let (mut trust, authority) = mesh();
        let [caller, worker] = [(1, "apps"), (2, "gpu")].map(|(n, group)| member(&trust, &authority, n, group));
        let only = |group: &str| Some([group.parse().unwrap()].into());
        let policy = Policy {
            services: [
                ("llm".parse().unwrap(), Rule { offer: None, call: only("staff") }),
                ("chat".parse().unwrap(), Rule { offer: only("gpu"), call: only("apps") }),
                ("asr".parse().unwrap(), Rule { offer: only("audio"), call: None }),
            ]
            .into(),
            ..Policy::default()
        };
        let list = RevocationList { number: 1, policy, ..RevocationList::default() };
        trust.apply_revocations(&authority.sign_revocations(&list).unwrap(), NOW).unwrap();
        let may_call = |offer: Offer| may_call_there(&trust, &caller, &offer, &worker, &record());

        let by_model = ["of-llm", "of-chat", "of-asr", "of-both", "of-none"];
        let callable = by_model.map(|model| may_call(Offer::Model(ModelTag::of(model))));
        assert_eq!(callable, [false, true, false, true, false]);
        assert!(may_call(Offer::AnyModel), "what is served at all is for everybody to know");
        assert!(!may_call(Offer::Service("llm".parse().unwrap())));
    }

    fn record() -> NodeRecord {
        let model = |service, name| ModelOffer { service, tag: ModelTag::of(name) };
        NodeRecord {
            sequence: NOW.0 * 1000,
            expires_at: NOW.plus(Duration::from_secs(60)),
            endpoints: Vec::new(),
            services: ["llm", "chat", "asr"].map(|name| name.parse().unwrap()).into(),
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: vec![
                model(0, "of-llm"),
                model(1, "of-chat"),
                model(2, "of-asr"),
                model(0, "of-both"),
                model(1, "of-both"),
            ],
            revocations: 0,
            nearby: Vec::new(),
        }
    }

    fn mesh() -> (Trust, Authority) {
        let parameters = CaParameters {
            mesh: "lab".parse().unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400),
        };
        let authority = Authority::create(&parameters, NOW, &mut rand::rng()).unwrap();
        (Trust::new(authority.certificate().clone()), authority)
    }

    fn member(trust: &Trust, authority: &Authority, number: u8, group: &str) -> Verified {
        let (key, wg) = generate_keys(&mut rand::rng());
        let claims = Claims {
            identity: key.id(),
            wg: wg.public(),
            name: format!("node-{number}").parse().unwrap(),
            address: OverlayIp([10, 42, 0, number].into()),
            groups: vec![group.parse().unwrap()],
            services: AllowedServices::Any,
            lifetime: Duration::from_secs(3600),
        };
        trust.verify(&authority.issue(&claims, NOW, &mut rand::rng()).unwrap(), NOW).unwrap()
    }
}
