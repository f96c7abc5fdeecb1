//! A mesh's coordinator in a container.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::Context;
use serde_json::Value;

use super::{Bridge, Container, Ground, Network, Program, Worker};
use crate::{eventually, fetch_in, process::LOG_FILTER};

const NAME: &str = "coordinator";
const PORT: u16 = 8080;
/// It makes a CA and a database first, in a container that its engine makes first.
const START_LIMIT: Duration = Duration::from_secs(30);
/// For a worker to report.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// A coordinator that runs.
pub struct Coordinator {
    ground: Ground,
    container: Container,
    /// Where agents reach it: one for each bridge, if it is on the machine's network.
    urls: Vec<String>,
}

impl Coordinator {
    /// One on the machine's own network, at its addresses on these bridges, with more lines of configuration.
    pub fn on_the_machine(ground: &Ground, bridges: &[&Bridge], more: &str) -> anyhow::Result<Coordinator> {
        let urls = bridges.iter().map(|bridge| format!("https://{}:{PORT}", bridge.gateway())).collect();
        let listen = match bridges {
            [bridge] => bridge.gateway().to_string(),
            _ => "0.0.0.0".to_owned(),
        };
        Coordinator::start(ground, Network::Machine, urls, &listen, more)
    }

    /// One in a container of its own on a bridge, which others there reach by its name.
    pub fn on_a_bridge(ground: &Ground, bridge: &Bridge, more: &str) -> anyhow::Result<Coordinator> {
        let network = Network::On(bridge.clone(), ground.next_address(bridge));
        Coordinator::start(ground, network, vec![format!("https://{NAME}:{PORT}")], "0.0.0.0", more)
    }

    fn start(
        ground: &Ground,
        network: Network,
        urls: Vec<String>,
        listen: &str,
        more: &str,
    ) -> anyhow::Result<Coordinator> {
        let paths = ground.engine.paths(NAME);
        let configuration = format!(
            "data_dir = {:?}\nlisten = \"{listen}:{PORT}\"\npublic_urls = {urls:?}\npublic_discovery = true\n{more}\n",
            paths.state
        );
        fs::write(ground.folder(NAME, "etc")?.join("coordinator.toml"), configuration)?;
        let container = Container {
            name: NAME.to_owned(),
            program: Program::Coordinator,
            network,
            net_admin: false,
            tun: false,
            published: Vec::new(),
            environment: vec![("RUST_LOG".to_owned(), LOG_FILTER.to_owned())],
            health: false,
        };
        ground.engine.run(&container)?;
        let coordinator = Coordinator { ground: ground.clone(), container, urls };
        coordinator.wait_ready()?;
        Ok(coordinator)
    }

    /// Takes its container away and makes another with the same state, at another address.
    pub fn replace(&mut self) -> anyhow::Result<()> {
        self.remove()?;
        self.come_back_elsewhere()
    }

    /// Takes its container away.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.ground.engine.remove(NAME)
    }

    /// A new container with the same state, at another address of its bridge.
    pub fn come_back_elsewhere(&mut self) -> anyhow::Result<()> {
        if let Network::On(bridge, address) = &mut self.container.network {
            *address = self.ground.next_address(bridge);
        }
        self.ground.engine.run(&self.container)?;
        self.wait_ready()
    }

    /// Starts it again after it was stopped or killed.
    pub fn start_again(&self) -> anyhow::Result<()> {
        self.ground.engine.start(NAME)?;
        self.wait_ready()
    }

    /// Asks it to end, and says how it did.
    pub fn stop(&self, grace: Duration) -> anyhow::Result<i32> {
        self.ground.engine.stop(NAME, grace)
    }

    /// A token with which `name` may join once.
    pub fn token_for(&self, name: &str) -> anyhow::Result<String> {
        let created = self.command_json(&["token", "create", "--name", name, "--json"])?;
        Ok(created["token"].as_str().with_context(|| format!("no token in {created}"))?.to_owned())
    }

    /// What `wiremesh audit` tells of one kind: the names of whom it concerns, oldest first.
    pub fn audit(&self, kind: &str) -> anyhow::Result<Vec<String>> {
        let output = self.ground.engine.exec(NAME, &["audit", "--json"])?;
        anyhow::ensure!(output.status.success(), "audit: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("audit")?;
        let of_the_kind = rows.iter().filter(|row| row["kind"] == kind);
        Ok(of_the_kind.filter_map(|row| Some(row["name"].as_str()?.to_owned())).collect())
    }

    /// GET from it, from the machine.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let address = match &self.container.network {
            Network::On(_, address) => format!("https://{address}:{PORT}"),
            Network::Machine => self.urls[0].clone(),
        };
        let machine = self.ground.engine.machine();
        fetch_in(&machine, reqwest::Method::GET, &format!("{address}{path}"), &[], "", REQUEST_LIMIT)?.json()
    }

    /// The names of the members that offer a service, as the registry has them.
    pub fn offering(&self, service: &str) -> anyhow::Result<Vec<String>> {
        let found = self.get(&format!("/api/services/discover/{service}"))?;
        let workers = found["workers"].as_array().map_or(&[][..], Vec::as_slice);
        let mut names: Vec<_> = workers.iter().filter_map(|w| Some(w["worker_id"].as_str()?.to_owned())).collect();
        names.sort();
        Ok(names)
    }

    /// Waits until its registry has a worker that offers a service.
    pub fn expect_offering(&self, service: &str, worker: &Worker) -> anyhow::Result<()> {
        eventually(&format!("{} is known to offer {service}", worker.name()), SETTLE_LIMIT, || {
            let offering = self.offering(service)?;
            anyhow::ensure!(offering.iter().any(|name| name == worker.name()), "{offering:?}");
            Ok(())
        })
    }

    /// Its address, if it has a network of its own.
    pub fn address(&self) -> Option<IpAddr> {
        match &self.container.network {
            Network::On(_, address) => Some(*address),
            Network::Machine => None,
        }
    }

    /// What it said.
    pub fn log(&self) -> anyhow::Result<String> {
        self.ground.engine.logs(NAME)
    }

    fn command_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.ground.engine.exec(NAME, arguments)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&stdout).with_context(|| format!("{arguments:?} printed {stdout}"))
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        eventually("the coordinator answers", START_LIMIT, || self.get("/health").map(drop))
    }
}
