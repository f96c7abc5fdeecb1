//! The twin of an engine: the same bridges on the same machine, and on them processes with the rights, the devices and the
//! names that containers would have. It has no images and no user but root, and its own relays for published ports.

mod confined;
mod relay;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use nix::sys::signal::Signal;
use wiremesh::sandbox::{self, Cut, Namespace, Node, Traffic, switch_loopback_on};

use super::{Bridge, Container, Engine, MACHINE, Network, Paths};
use crate::{
    Process,
    lab::{beside_the_tests, wiremesh_binary, without_our_environment},
};
use confined::Confined;
use relay::Relay;

/// What an engine says of a program that did not end in time.
const KILLED: i32 = 137;

/// Processes in the place of containers.
pub struct Twin {
    why: String,
    machine: Arc<Namespace>,
    folder: PathBuf,
    wiremesh: PathBuf,
    service: PathBuf,
    state: Mutex<State>,
}

/// What there is.
#[derive(Default)]
struct State {
    bridges: BTreeMap<String, sandbox::Network>,
    containers: BTreeMap<String, Running>,
    /// UDP that is cut, by bridge.
    cuts: BTreeMap<String, Vec<Cut>>,
}

/// One container that was made.
struct Running {
    container: Container,
    /// None: it is on the machine's network.
    node: Option<Node>,
    /// None: it has ended.
    process: Option<Process>,
    /// Its published ports.
    relays: Vec<Relay>,
}

impl Twin {
    /// A machine without containers.
    pub fn new(folder: &Path, why: &str) -> anyhow::Result<Twin> {
        let machine = Arc::new(Namespace::new("machine")?);
        switch_loopback_on(&machine, &[MACHINE])?;
        let (wiremesh, service) = (wiremesh_binary()?, beside_the_tests("service")?);
        let (why, folder) = (why.to_owned(), folder.to_owned());
        Ok(Twin { why, machine, folder, wiremesh, service, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the program of a container on a node of its own.
    fn launch(&self, state: &mut State, container: Container) -> anyhow::Result<()> {
        let node = match &container.network {
            Network::Machine => None,
            Network::On(bridge, address) => Some(state.bridge(&bridge.name)?.add_at(&container.name, *address)?),
        };
        let configuration = self.configuration(&container.name)?;
        let confined = Confined {
            wiremesh: &self.wiremesh,
            configuration: &configuration,
            hosts: &self.hosts(),
            container: &container,
        };
        let mut command = match &node {
            Some(node) => confined.command(node.namespace())?,
            None => confined.command(&self.machine)?,
        };
        without_our_environment(&mut command);
        // As engines say it, for whoever looks.
        command.env("container", "docker").envs(container.environment.iter().cloned());
        let log = self.log_of(&container.name);
        let process = Process::start(&container.name, command, &log)?;
        let mut relays = Vec::new();
        if let Network::On(bridge, address) = &container.network {
            for published in &container.published {
                relays.push(Relay::start(&self.machine, *published, bridge.gateway(), *address)?);
            }
        }
        let name = container.name.clone();
        state.containers.insert(name, Running { container, node, process: Some(process), relays });
        self.write_hosts(state)
    }

    /// What every container finds under the names of the others.
    fn write_hosts(&self, state: &State) -> anyhow::Result<()> {
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for Running { container, .. } in state.containers.values() {
            if let Network::On(_, address) = &container.network {
                writeln!(text, "{address} {}", container.name)?;
            }
        }
        // In place: containers have this very file.
        fs::write(self.hosts(), text).context("writing the names of containers")
    }

    fn hosts(&self) -> PathBuf {
        self.folder.join("hosts")
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn configuration(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.paths(name).configuration;
        let files = ["agent.toml", "coordinator.toml"].map(|file| folder.join(file));
        files.into_iter().find(|path| path.exists()).with_context(|| format!("{name} has no configuration"))
    }
}

impl Engine for Twin {
    fn describe(&self) -> String {
        format!("the twin of an engine ({})", self.why)
    }

    fn machine(&self) -> Arc<Namespace> {
        self.machine.clone()
    }

    fn paths(&self, name: &str) -> Paths {
        let folder = self.folder.join(name);
        Paths {
            state: folder.join("state"),
            configuration: folder.join("etc"),
            shared: folder.join("shared"),
            service: self.service.clone(),
        }
    }

    fn add_bridge(&self, bridge: &Bridge) -> anyhow::Result<()> {
        let network = sandbox::Network::bridge(&self.machine, &bridge.interface(), bridge.subnet())?;
        self.state().bridges.insert(bridge.name.clone(), network);
        Ok(())
    }

    fn run(&self, container: &Container) -> anyhow::Result<()> {
        if !self.hosts().exists() {
            fs::write(self.hosts(), "")?;
        }
        let mut state = self.state();
        anyhow::ensure!(!state.containers.contains_key(&container.name), "{} is there already", container.name);
        self.launch(&mut state, container.clone())
    }

    fn start(&self, name: &str) -> anyhow::Result<()> {
        let mut state = self.state();
        let container = state.take(name)?;
        self.launch(&mut state, container)
    }

    fn stop(&self, name: &str, grace: Duration) -> anyhow::Result<i32> {
        let mut process = self.state().container(name)?.process.take().context("it does not run")?;
        confined::signal_first(&process, Signal::SIGTERM)?;
        match process.wait(grace) {
            Ok(status) => Ok(status.code().unwrap_or(KILLED)),
            Err(_) => {
                process.kill()?;
                Ok(KILLED)
            }
        }
    }

    fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.state().container(name)?.process.take().context("it does not run")?.kill()
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.state().take(name).map(drop)
    }

    fn pause(&self, name: &str) -> anyhow::Result<()> {
        confined::signal_all(self.state().container(name)?.running()?, Signal::SIGSTOP)
    }

    fn unpause(&self, name: &str) -> anyhow::Result<()> {
        confined::signal_all(self.state().container(name)?.running()?, Signal::SIGCONT)
    }

    fn disconnect(&self, name: &str) -> anyhow::Result<()> {
        let mut state = self.state();
        let (bridge, node) = state.container(name)?.on_a_bridge()?;
        let node = node.clone();
        state.bridge(&bridge)?.take_out(&node)
    }

    fn connect(&self, name: &str, address: IpAddr) -> anyhow::Result<()> {
        let mut state = self.state();
        let (bridge, node) = state.container(name)?.on_a_bridge()?;
        let mut node = node.clone();
        state.bridge(&bridge)?.put_back(&mut node, address)?;
        let running = state.container(name)?;
        running.node = Some(node);
        if let Network::On(_, now_at) = &mut running.container.network {
            *now_at = address;
        }
        self.write_hosts(&state)
    }

    fn block_udp(&self, bridge: &Bridge) -> anyhow::Result<()> {
        let mut state = self.state();
        let nodes = state.containers.values().filter(|running| running.is_on(bridge));
        let cuts =
            nodes.filter_map(|running| Some(running.node.as_ref()?.cut(Traffic::Udp))).collect::<Result<_, _>>()?;
        state.cuts.insert(bridge.name.clone(), cuts);
        Ok(())
    }

    fn pass_udp(&self, bridge: &Bridge) -> anyhow::Result<()> {
        let cuts = self.state().cuts.remove(&bridge.name).unwrap_or_default();
        cuts.into_iter().try_for_each(Cut::restore)
    }

    fn health(&self, name: &str) -> anyhow::Result<String> {
        let ended = self.exec(name, &["health"])?.status;
        Ok(if ended.success() { "healthy" } else { "unhealthy" }.to_owned())
    }

    fn exec(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.namespace(name)?.command(&self.wiremesh)?;
        without_our_environment(&mut command);
        command.args(arguments).arg("--config").arg(self.configuration(name)?);
        command.output().with_context(|| format!("running wiremesh {arguments:?}"))
    }

    fn logs(&self, name: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.log_of(name))?).into_owned())
    }

    fn namespace(&self, name: &str) -> anyhow::Result<Arc<Namespace>> {
        let mut state = self.state();
        let running = state.container(name)?;
        running.running()?.expect_running()?;
        match &running.node {
            Some(node) => Ok(node.shared_namespace()),
            None => Ok(self.machine.clone()),
        }
    }
}

impl State {
    fn bridge(&mut self, name: &str) -> anyhow::Result<&mut sandbox::Network> {
        self.bridges.get_mut(name).with_context(|| format!("no bridge is called {name}"))
    }

    fn container(&mut self, name: &str) -> anyhow::Result<&mut Running> {
        self.containers.get_mut(name).with_context(|| format!("no container is called {name}"))
    }

    /// Ends a container if it runs, and takes its cable away.
    fn take(&mut self, name: &str) -> anyhow::Result<Container> {
        let running = self.containers.remove(name).with_context(|| format!("no container is called {name}"))?;
        let Running { container, node, process, relays } = running;
        drop((process, relays));
        if let (Network::On(bridge, _), Some(node)) = (&container.network, &node) {
            self.bridge(&bridge.name)?.take_out(node)?;
        }
        Ok(container)
    }
}

impl Running {
    fn running(&mut self) -> anyhow::Result<&mut Process> {
        let name = &self.container.name;
        self.process.as_mut().with_context(|| format!("{name} does not run"))
    }

    fn on_a_bridge(&self) -> anyhow::Result<(String, &Node)> {
        match (&self.container.network, &self.node) {
            (Network::On(bridge, _), Some(node)) => Ok((bridge.name.clone(), node)),
            _ => anyhow::bail!("{} is on no bridge", self.container.name),
        }
    }

    fn is_on(&self, bridge: &Bridge) -> bool {
        matches!(&self.container.network, Network::On(on, _) if on.name == bridge.name)
    }
}
