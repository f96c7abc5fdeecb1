//! What one part wants another to look like: the directory as the router's phone book, the coordinator as the
//! directory's last resort, the agent's view as the router's pages.

use std::sync::Arc;

use futures::future::BoxFuture;
use wiremesh_certs::{IdentityKey, NodeId, NodeRecord, Offer, Signed, proof_header};

use super::{glue::Recorder, view::View};
use crate::{
    clock, directory,
    directory::io::Sought,
    membership,
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
}

impl router::Find for PhoneBook {
    fn find<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, router::Found> {
        Box::pin(async move {
            let Some(answer) = self.directory.find(offer).await else {
                return router::Found { workers: Vec::new(), source: router::Source::Cache };
            };
            let others = answer.workers.iter().filter(|entry| entry.id() != self.me);
            router::Found {
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
