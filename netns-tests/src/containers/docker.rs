//! A Docker Engine of the sandbox's own: it sees neither the machine's network nor another engine, and ends with the
//! sandbox. What it keeps is on the sandbox's scratch; only the images are kept from story to story, in a file.

mod cgroups;
mod cli;
mod compose;
mod daemon;
mod images;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use nix::unistd;
use wiremesh::sandbox::{Namespace, switch_loopback_on};

pub use cgroups::Leftovers;
use cli::Cli;
pub use compose::Compose;

use super::{Bridge, Container, Engine, MACHINE, Network, Paths};
use crate::Process;

/// An engine that runs.
pub struct Docker {
    cli: Cli,
    version: String,
    machine: Arc<Namespace>,
    folder: PathBuf,
    /// Of containers that run.
    namespaces: Mutex<BTreeMap<String, Arc<Namespace>>>,
    made: Mutex<BTreeMap<String, Container>>,
    _daemon: Process,
}

impl Docker {
    /// Starts one. Err inside: why there can be none here.
    pub fn start(scratch: &Path, folder: &Path, story: &str) -> anyhow::Result<Result<Docker, String>> {
        if !unistd::geteuid().is_root() || !in_the_first_user_namespace() {
            return Ok(Err("an engine needs to be root".to_owned()));
        }
        let Some(programs) = daemon::Programs::find() else {
            return Ok(Err("no dockerd is installed".to_owned()));
        };
        let machine = Arc::new(Namespace::current("the machine")?);
        switch_loopback_on(&machine, &[MACHINE])?;
        let (daemon, cli) = match daemon::start(&programs, scratch, &cgroups::parent_of(story)) {
            Ok(started) => started,
            Err(why) => return Ok(Err(format!("dockerd does not start: {why:#}"))),
        };
        if let Err(why) = images::provide(&cli, scratch)? {
            return Ok(Err(why));
        }
        let version = cli.run(&["version", "--format", "{{.Server.Version}}"])?;
        Ok(Ok(Docker {
            cli,
            version,
            machine,
            folder: folder.to_owned(),
            namespaces: Mutex::default(),
            made: Mutex::default(),
            _daemon: daemon,
        }))
    }

    /// What a container said goes where a failed story prints it.
    fn keep_logs(&self, name: &str) -> anyhow::Result<()> {
        let mut log = OpenOptions::new().create(true).append(true).open(self.folder.join(format!("{name}.log")))?;
        log.write_all(self.logs(name)?.as_bytes())?;
        Ok(())
    }

    /// It has another network from here on, or none.
    fn forget_namespace(&self, name: &str) {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn bridge_of(&self, name: &str) -> anyhow::Result<Bridge> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &made.get(name).with_context(|| format!("no container is called {name}"))?.network {
            Network::On(bridge, _) => Ok(bridge.clone()),
            Network::Machine => anyhow::bail!("{name} is on no bridge"),
        }
    }

    fn udp_rule(&self, what: &str, bridge: &Bridge) -> anyhow::Result<()> {
        let interface = bridge.interface();
        let rule = ["--wait", what, "FORWARD", "-i", &interface, "-o", &interface, "-p", "udp", "-j", "DROP"];
        let output = Command::new("iptables").args(rule).output().context("running iptables")?;
        anyhow::ensure!(output.status.success(), "iptables: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

impl Engine for Docker {
    fn describe(&self) -> String {
        format!("a Docker Engine, {}", self.version)
    }

    fn machine(&self) -> Arc<Namespace> {
        self.machine.clone()
    }

    fn compose(&self) -> Option<Compose> {
        Some(Compose::new(self.cli.clone()))
    }

    fn paths(&self, name: &str) -> Paths {
        let state = match name {
            "coordinator" => "/var/lib/wiremesh-coordinator",
            _ => "/var/lib/wiremesh",
        };
        Paths {
            state: state.into(),
            configuration: "/etc/wiremesh".into(),
            shared: "/shared".into(),
            service: images::SERVICE.into(),
        }
    }

    fn add_bridge(&self, bridge: &Bridge) -> anyhow::Result<()> {
        let (subnet, gateway) = (bridge.subnet().to_string(), bridge.gateway().to_string());
        let called = format!("com.docker.network.bridge.name={}", bridge.interface());
        self.cli.run(&[
            "network",
            "create",
            "--subnet",
            &subnet,
            "--gateway",
            &gateway,
            "--opt",
            &called,
            &bridge.name,
        ])?;
        Ok(())
    }

    fn run(&self, container: &Container) -> anyhow::Result<()> {
        let name = &container.name;
        let paths = self.paths(name);
        let mut arguments: Vec<String> =
            ["run", "--detach", "--name", name, "--hostname", name].map(str::to_owned).into();
        let mut option = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        match &container.network {
            Network::Machine => option("--network", "host".to_owned()),
            Network::On(bridge, address) => {
                option("--network", bridge.name.clone());
                option("--ip", address.to_string());
            }
        }
        if container.net_admin {
            option("--cap-add", "NET_ADMIN".to_owned());
        }
        if container.tun {
            option("--device", "/dev/net/tun".to_owned());
        }
        for published in &container.published {
            option("--publish", format!("{}:{}/{}", published.at, published.port, published.transport.as_str()));
        }
        for (variable, value) in &container.environment {
            option("--env", format!("{variable}={value}"));
        }
        option("--volume", format!("{name}-state:{}", paths.state.display()));
        for (what, at, mode) in [("etc", &paths.configuration, "ro"), ("shared", &paths.shared, "rw")] {
            let folder = self.folder.join(name).join(what);
            if folder.exists() {
                option("--volume", format!("{}:{}:{mode}", folder.display(), at.display()));
            }
        }
        if !container.health {
            arguments.push("--no-healthcheck".to_owned());
        }
        arguments.push(images::of(container.program).to_owned());
        self.cli.run(&arguments)?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), container.clone());
        Ok(())
    }

    fn start(&self, name: &str) -> anyhow::Result<()> {
        self.forget_namespace(name);
        self.cli.run(&["start", name])?;
        Ok(())
    }

    fn stop(&self, name: &str, grace: Duration) -> anyhow::Result<i32> {
        self.cli.run(&["stop", "--time", &grace.as_secs().to_string(), name])?;
        self.forget_namespace(name);
        let code = self.cli.run(&["inspect", "--format", "{{.State.ExitCode}}", name])?;
        code.parse().with_context(|| format!("an exit code: {code}"))
    }

    fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.cli.run(&["kill", name])?;
        self.forget_namespace(name);
        Ok(())
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.keep_logs(name)?;
        self.cli.run(&["rm", "--force", name])?;
        self.forget_namespace(name);
        Ok(())
    }

    fn pause(&self, name: &str) -> anyhow::Result<()> {
        self.cli.run(&["pause", name]).map(drop)
    }

    fn unpause(&self, name: &str) -> anyhow::Result<()> {
        self.cli.run(&["unpause", name]).map(drop)
    }

    fn disconnect(&self, name: &str) -> anyhow::Result<()> {
        self.cli.run(&["network", "disconnect", &self.bridge_of(name)?.name, name]).map(drop)
    }

    fn connect(&self, name: &str, address: IpAddr) -> anyhow::Result<()> {
        let address = address.to_string();
        self.cli.run(&["network", "connect", "--ip", &address, &self.bridge_of(name)?.name, name]).map(drop)
    }

    fn block_udp(&self, bridge: &Bridge) -> anyhow::Result<()> {
        bridges_pass_through_iptables()?;
        self.udp_rule("--insert", bridge)
    }

    fn pass_udp(&self, bridge: &Bridge) -> anyhow::Result<()> {
        self.udp_rule("--delete", bridge)
    }

    fn health(&self, name: &str) -> anyhow::Result<String> {
        self.cli.run(&["inspect", "--format", "{{.State.Health.Status}}", name])
    }

    fn exec(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        self.cli.output(&[&["exec", name, "wiremesh"], arguments].concat())
    }

    fn logs(&self, name: &str) -> anyhow::Result<String> {
        let output = self.cli.output(&["logs", name])?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn namespace(&self, name: &str) -> anyhow::Result<Arc<Namespace>> {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = namespaces.get(name) {
            return Ok(namespace.clone());
        }
        let pid: i32 = self.cli.run(&["inspect", "--format", "{{.State.Pid}}", name])?.parse()?;
        anyhow::ensure!(pid != 0, "{name} does not run:\n{}", last_lines(&self.logs(name)?));
        let namespace = Arc::new(Namespace::of_process(name, pid)?);
        namespaces.insert(name.to_owned(), namespace.clone());
        Ok(namespace)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for name in made.keys() {
            // One that was removed has none left to keep.
            let _ = self.keep_logs(name);
        }
    }
}

/// Root of the machine, and not of a user namespace: an engine needs to be that.
fn in_the_first_user_namespace() -> bool {
    let all = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    fs::read_to_string("/proc/self/uid_map").is_ok_and(all)
}

/// What goes from one port of a bridge to another meets the rules of iptables only where this is so.
fn bridges_pass_through_iptables() -> anyhow::Result<()> {
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if !Path::new(SWITCH).exists() {
        // Where there are modules and it is not loaded.
        let _ = Command::new("modprobe").arg("br_netfilter").output();
    }
    fs::write(SWITCH, "1").with_context(|| format!("{SWITCH}: does this kernel have br_netfilter?"))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
