//! Ours: a coordinator, the agent of the clients, and one agent beside each worker.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Agent, Coordinator, Lab, eventually};
use nix::{sys::signal::Signal, unistd::Pid};
use reqwest::Method;

use crate::{
    tree::Tree,
    upstream::{UPSTREAM_PORT, Upstream, question},
};

/// What an operator's agents log.
const LOG_FILTER: &str = "info";
/// The local API of an agent.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
/// For a mesh of three to know of each other.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// More than anybody asks at once.
const MAX_CONCURRENCY: u32 = 4096;

/// Agents that run.
pub struct Mesh {
    client: Agent,
    workers: Vec<Agent>,
    _coordinator: Coordinator,
}

impl Mesh {
    /// A mesh of the agent on the clients' node and one on the node of each upstream. The client's agent itself offers
    /// `beside`, if there is one, as the service `near`; all others offer `far`.
    pub fn start(
        lab: &mut Lab,
        client: Agent,
        beside: Option<&Upstream>,
        workers: impl IntoIterator<Item = Agent>,
    ) -> anyhow::Result<Mesh> {
        let coordinator = lab.coordinator()?;
        let near = beside.map(|upstream| service("near", upstream.local())).unwrap_or_default();
        let client = client.logging(LOG_FILTER).with_configuration(&near).join(&coordinator)?;
        let far = service("far", (Ipv4Addr::LOCALHOST, UPSTREAM_PORT).into());
        let join = |agent: Agent| agent.logging(LOG_FILTER).with_configuration(&far).join(&coordinator);
        let workers: Vec<Agent> = workers.into_iter().map(join).collect::<anyhow::Result<_>>()?;
        for agent in workers.iter().chain([&client]) {
            agent.expect_published()?;
        }
        let mesh = Mesh { client, workers, _coordinator: coordinator };
        if beside.is_some() {
            mesh.expect_answer(Mesh::NEAR, 1)?;
        }
        mesh.expect_answer(Mesh::FAR, mesh.workers.len())?;
        Ok(mesh)
    }

    /// What clients ask for to be answered beside them.
    pub const NEAR: &str = "/service/near/v1/chat/completions";
    /// What clients ask for to be answered over the overlay.
    pub const FAR: &str = "/service/far/v1/chat/completions";

    /// Where clients ask.
    pub fn address(&self) -> SocketAddr {
        API
    }

    /// The agent of the clients.
    pub fn client(&self) -> anyhow::Result<Tree> {
        Ok(Tree::of([pid(&self.client)?]))
    }

    /// All agents.
    pub fn all(&self) -> anyhow::Result<Tree> {
        let pids = self.workers.iter().chain([&self.client]).map(pid);
        Ok(Tree::of(pids.collect::<anyhow::Result<Vec<Pid>>>()?))
    }

    /// Ends all agents and starts them again.
    pub fn start_anew(&mut self) -> anyhow::Result<()> {
        let mut agents: Vec<&mut Agent> = self.workers.iter_mut().chain([&mut self.client]).collect();
        agents.iter_mut().for_each(|agent| agent.process = None);
        agents.iter_mut().try_for_each(|agent| agent.launch())?;
        agents.iter_mut().try_for_each(|agent| agent.wait_ready())?;
        agents.iter().try_for_each(|agent| agent.expect_published())?;
        self.expect_answer(Mesh::FAR, self.workers.len())
    }

    /// Stops the agent of a worker where it is, or lets it go on.
    pub fn signal(&self, worker: usize, signal: Signal) -> anyhow::Result<()> {
        let agent = self.workers.get(worker).context("there is no such worker")?;
        agent.process.as_ref().context("it does not run")?.signal(signal)
    }

    /// Waits until the service is answered, by each of so many workers.
    fn expect_answer(&self, path: &str, workers: usize) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        eventually("all workers answer", SETTLE_LIMIT, || {
            let json = [("content-type", "application/json")];
            let answer = self.client.request(Method::POST, path, &json, &question("hello", false))?.expect_ok()?;
            seen.insert(answer.header("x-wiremesh-worker").to_owned());
            anyhow::ensure!(seen.len() >= workers, "{seen:?}");
            Ok(())
        })
    }
}

fn pid(agent: &Agent) -> anyhow::Result<Pid> {
    Ok(agent.process.as_ref().context("an agent does not run")?.pid())
}

fn service(name: &str, upstream: SocketAddr) -> String {
    format!(
        "[[service]]\nname = {name:?}\nupstream = \"http://{upstream}\"\nhealth = \"/health\"\n\
         max_concurrency = {MAX_CONCURRENCY}\nqueue = {MAX_CONCURRENCY}\n"
    )
}
