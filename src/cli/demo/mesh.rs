//! The demo's mesh: a coordinator and three agents, each the program that is running, each on a node of its own.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::request::{self, Answer};
use crate::{
    cli::failure::Failure,
    clock,
    sandbox::{Network, Node},
};

/// From the start of a program until it must be ready.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Lines of each log that are shown after a failure.
const LOG_TAIL_LINES: usize = 15;
const COORDINATOR_PORT: u16 = 8080;
const API_PORT: u16 = 8000;
const INGRESS_PORT: u16 = 8001;
const SERVICE_PORT: u16 = 9000;

/// The three workers and what each offers.
pub const WORKERS: [(&str, &str); 3] = [("alpha", "checksum"), ("beta", "words"), ("gamma", "primes")];

/// Everything that runs.
pub struct Mesh {
    /// The switch, for cutting.
    pub network: Network,
    folder: PathBuf,
    programs: Vec<(String, Child)>,
}

/// One agent.
#[derive(Clone)]
pub struct Worker {
    /// The node it is on.
    pub node: Node,
    /// Its address on the overlay.
    pub overlay_ip: IpAddr,
}

impl Mesh {
    /// An empty network whose nodes keep their files in `folder`.
    pub fn new(folder: &Path) -> anyhow::Result<Mesh> {
        Ok(Mesh { network: Network::new()?, folder: folder.to_owned(), programs: Vec::new() })
    }

    /// Starts the coordinator on a node of its own.
    pub fn start_coordinator(&mut self) -> anyhow::Result<Node> {
        let node = self.network.add("coordinator")?;
        let (folder, address) = (self.folder_of("coordinator")?, node.address());
        let data = folder.join("data");
        fs::write(
            folder.join("coordinator.toml"),
            format!(
                "data_dir = {data:?}\n\
                 listen = \"{address}:{COORDINATOR_PORT}\"\n\
                 public_urls = [\"https://{address}:{COORDINATOR_PORT}\"]\n"
            ),
        )?;
        let mut command = wiremesh(&node)?;
        command.arg("coordinator").arg("--config").arg(folder.join("coordinator.toml"));
        self.start("coordinator", command)?;
        self.wait("the coordinator listens", "coordinator", || {
            node.run(|| TcpStream::connect((address, COORDINATOR_PORT)))??;
            Ok(())
        })?;
        Ok(node)
    }

    /// Starts an agent and the service that it offers, with a fresh join token, and waits until it is ready.
    pub fn start_worker(&mut self, coordinator: &Node, name: &str, service: &str) -> anyhow::Result<Worker> {
        let node = self.network.add(name)?;
        let (folder, address) = (self.folder_of(name)?, node.address());
        let (state, token) = (folder.join("state"), folder.join("token"));
        fs::write(&token, self.join_token(coordinator, name)?)?;
        fs::write(
            folder.join("agent.toml"),
            format!(
                "name = \"{name}\"\nstate_dir = {state:?}\njoin_token_file = {token:?}\n\n\
                 [api]\nlisten = \"127.0.0.1:{API_PORT}\"\n\
                 ingress = \"{address}:{INGRESS_PORT}\"\ntunnel_url = \"http://{address}:{INGRESS_PORT}\"\n\n\
                 [[service]]\nname = \"{service}\"\nupstream = \"http://127.0.0.1:{SERVICE_PORT}\"\nhealth = \"/\"\n"
            ),
        )?;
        let mut offered = wiremesh(&node)?;
        offered.args(["demo-service", service, "--listen", &format!("127.0.0.1:{SERVICE_PORT}")]);
        self.start(service, offered)?;
        // An agent that finds nobody at its upstream would look again only seconds later.
        self.wait(&format!("{service} listens"), service, || {
            node.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, SERVICE_PORT)))??;
            Ok(())
        })?;
        let mut agent = wiremesh(&node)?;
        agent.arg("agent").arg("--config").arg(folder.join("agent.toml"));
        self.start(name, agent)?;

        self.wait(&format!("{name} is ready"), name, || {
            let answer = request::get(&node, API_PORT, "/health/ready")?;
            anyhow::ensure!(answer.status == 200, "{}", answer.text());
            let health: serde_json::Value = serde_json::from_slice(&request::get(&node, API_PORT, "/health")?.body)?;
            anyhow::ensure!(health["services"][0] == service, "{service} is not offered: {health}");
            Ok(())
        })?;
        let health: serde_json::Value = serde_json::from_slice(&request::get(&node, API_PORT, "/health")?.body)?;
        let overlay_ip = health["vpn_ip"].as_str().context("the agent has no overlay address")?.parse()?;
        Ok(Worker { node, overlay_ip })
    }

    /// Waits until others can find this worker in the table inside the overlay.
    pub fn wait_published(&mut self, worker: &Worker) -> anyhow::Result<()> {
        let name = worker.node.name();
        let config = self.folder.join(name).join("agent.toml");
        self.wait(&format!("{name} is in the DHT"), name, || {
            let output = wiremesh(&worker.node)?.args(["status", "--json", "--config"]).arg(&config).output()?;
            anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
            let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            anyhow::ensure!(status["dht"]["published"] == true, "its record is not published: {}", status["dht"]);
            Ok(())
        })
    }

    /// Ends the coordinator as a crash would.
    pub fn stop_coordinator(&mut self) -> anyhow::Result<()> {
        let at = self.programs.iter().position(|(name, _)| name == "coordinator").context("there is no coordinator")?;
        let (_, mut child) = self.programs.remove(at);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The end of every log, for whoever has to find out what went wrong.
    pub fn print_logs(&self, out: &mut impl Write) -> io::Result<()> {
        let mut logs: Vec<_> = fs::read_dir(&self.folder)?.flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for path in logs {
            let log = fs::read(&path)?;
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            writeln!(out, "\n── {name}: the last of {} lines ──", lines.len())?;
            for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
                writeln!(out, "{line}")?;
            }
        }
        Ok(())
    }

    /// Commands for another terminal.
    pub fn print_how_to_reach(&self, out: &mut impl Write) -> io::Result<()> {
        let program = std::env::current_exe()?;
        let (program, folder) = (program.display(), self.folder.display());
        writeln!(out, "\nThe mesh is still running. From another terminal:\n")?;
        for command in ["status", "peers", "services", "ping beta", "call words --data 'to be or not to be' -v"] {
            let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
            let line = format!("  {program} {name} --config {folder}/alpha/agent.toml {rest}");
            writeln!(out, "{}", line.trim_end())?;
        }
        // Alpha's loopback is the sandbox's own; its socket is a file.
        writeln!(
            out,
            "  curl --unix-socket {folder}/alpha/state/agent.sock http://alpha/service/primes -d 600851475143"
        )?;
        writeln!(out, "\nLogs: {folder}/*.log\nCtrl-C ends it and removes everything.")?;
        out.flush()
    }

    fn join_token(&self, coordinator: &Node, name: &str) -> anyhow::Result<String> {
        let config = self.folder.join("coordinator/coordinator.toml");
        let mut command = wiremesh(coordinator)?;
        command.args(["token", "create", "--json", "--name", name, "--config"]).arg(config);
        let output = command.output().context("running wiremesh token create")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "wiremesh token create: {}", said.trim());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("reading the join token")?;
        Ok(answer["token"].as_str().context("token create printed no token")?.to_owned())
    }

    fn folder_of(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    fn start(&mut self, name: &str, mut command: Command) -> anyhow::Result<()> {
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        self.programs.push((name.to_owned(), child));
        Ok(())
    }

    /// Asks until it is so, or the program has ended, or time is up.
    fn wait(&mut self, what: &str, program: &str, mut ask: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let deadline: Instant = clock::now() + START_LIMIT;
        while let Err(error) = ask() {
            let child = self.programs.iter_mut().find(|(name, _)| name == program);
            if let Some(status) = child.map(|(_, child)| child.try_wait()).transpose()?.flatten() {
                anyhow::bail!("{program} has ended: {status}");
            }
            if clock::now() >= deadline {
                return Err(error.context(format!("{what}: not within {START_LIMIT:?}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Worker {
    /// A request to this agent's local API, as a client on its machine would make it.
    pub fn ask(&self, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
        request::post(&self.node, API_PORT, path, body)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for (_, child) in &mut self.programs {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Fails, with a hint, if no TUN device can be made here.
pub fn check_tun() -> Result<(), Failure> {
    const DEVICE: &str = "/dev/net/tun";
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "chmod 0666 /dev/net/tun, as distributions have it, or run as root",
                _ => "modprobe tun; in a container: --device /dev/net/tun",
            };
            Err(Failure::from(anyhow::Error::new(error).context(format!("could not open {DEVICE}"))).hint(hint))
        }
    }
}

/// This same program on a node, without the options that the caller's environment holds.
fn wiremesh(node: &Node) -> anyhow::Result<Command> {
    let mut command = node.command(std::env::current_exe()?)?;
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WIREMESH_")) {
        command.env_remove(name);
    }
    Ok(command)
}
