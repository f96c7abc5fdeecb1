//! An agent on a node of the lab, and the services it offers.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, ExitStatus, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::Value;
use wiremesh::sandbox::Node;

use crate::{Answer, Coordinator, Process, Refused, Service, eventually, fetch, lab::Place, process::LOG_FILTER};

/// Where the agent's local API listens on every node.
const API: &str = "http://127.0.0.1:8000";
const INGRESS_PORT: u16 = 8001;
const FIRST_SERVICE_PORT: u16 = 9000;
/// From start to ready. The target is 3 s on a machine that has nothing else to do.
const START_LIMIT: Duration = Duration::from_secs(20);
/// For a mesh of a few nodes to know about a newcomer.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// For one request whose answer a story waits for.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// The file that says what an agent's own clock shows.
const CLOCK: &str = "clock";

/// `wiremesh agent`: first described, then joined, then talked to.
#[derive(Debug)]
pub struct Agent {
    /// The node it is on.
    pub node: Node,
    /// The program, while it runs.
    pub process: Option<Process>,
    /// What it offers, in the order of [`Agent::serving`].
    pub services: Vec<Service>,
    offered: Vec<Offered>,
    tunnel: bool,
    dht: bool,
    called: Option<String>,
    configuration: String,
    refused: Vec<Refused>,
    /// Has a clock of its own.
    own_clock: bool,
    /// What starts it, as a container's engine or systemd would; empty: nothing does.
    under: &'static [&'static str],
    environment: Vec<(String, String)>,
    log_filter: String,
    folder: PathBuf,
    place: Arc<Place>,
}

/// A service that it will offer.
#[derive(Debug)]
struct Offered {
    name: String,
    max_concurrency: usize,
    /// With commas between them; none is a server that knows no models.
    models: String,
}

impl Agent {
    pub(crate) fn new(node: Node, place: Arc<Place>) -> anyhow::Result<Agent> {
        let folder = place.folder(node.name())?;
        Ok(Agent {
            node,
            process: None,
            services: Vec::new(),
            offered: Vec::new(),
            tunnel: false,
            dht: true,
            called: None,
            configuration: String::new(),
            refused: Vec::new(),
            own_clock: false,
            under: &[],
            environment: Vec::new(),
            log_filter: LOG_FILTER.to_owned(),
            folder,
            place,
        })
    }

    /// It will offer a service of this name, answered by a real server on its node.
    pub fn serving(self, service: &str) -> Agent {
        self.serving_at_once(service, 64)
    }

    /// Like [`Agent::serving`], with at most so many requests at once.
    pub fn serving_at_once(mut self, service: &str, max_concurrency: usize) -> Agent {
        self.offered.push(Offered { name: service.to_owned(), max_concurrency, models: String::new() });
        self
    }

    /// Like [`Agent::serving`], by an OpenAI-like server of these models.
    pub fn serving_models(mut self, service: &str, models: &[&str]) -> Agent {
        self.offered.push(Offered { name: service.to_owned(), max_concurrency: 64, models: models.join(",") });
        self
    }

    /// It will have an ingress on the underlay, and say so in its `tunnel_url`.
    pub fn with_tunnel(mut self) -> Agent {
        self.tunnel = true;
        self
    }

    /// It will neither use nor be in the DHT.
    pub fn without_dht(mut self) -> Agent {
        self.dht = false;
        self
    }

    /// It will call itself so, and not as its node is called.
    pub fn called(mut self, name: &str) -> Agent {
        self.called = Some(name.to_owned());
        self
    }

    /// More lines for the end of its configuration file.
    pub fn with_configuration(mut self, lines: &str) -> Agent {
        self.configuration = lines.to_owned();
        self
    }

    /// It will log this much, and not as much as helps to understand a story that failed.
    pub fn logging(mut self, filter: &str) -> Agent {
        self.log_filter = filter.to_owned();
        self
    }

    /// Its kernel will refuse these things.
    pub fn refused(mut self, refused: &[Refused]) -> Agent {
        self.refused = refused.to_owned();
        self
    }

    /// It will be the first process of a PID namespace, as in a container.
    pub fn as_the_first_process(mut self) -> Agent {
        self.under = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];
        self
    }

    /// It will have its power over the network as systemd gives it: whatever it starts has it too, unless it gives it up.
    pub fn with_an_ambient_capability(mut self) -> Agent {
        self.under = &["setpriv", "--inh-caps", "+net_admin", "--ambient-caps", "+net_admin", "--"];
        self
    }

    /// It will have this in its environment.
    pub fn with_environment(mut self, name: &str, value: &str) -> Agent {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its clock is not the machine's: [`Agent::set_clock`] sets it.
    pub fn with_a_clock_of_its_own(mut self) -> anyhow::Result<Agent> {
        self.own_clock = true;
        self.set_clock("+0")?;
        Ok(self)
    }

    /// Sets its clock, also while it runs: "+1h" is an hour ahead of the others'. Monotonic time goes on as it is.
    pub fn set_clock(&self, offset: &str) -> anyhow::Result<()> {
        let path = self.folder.join(CLOCK);
        // Whole or not at all: it is read at every look at the clock.
        let written = path.with_extension("new");
        fs::write(&written, offset)?;
        fs::rename(&written, &path).context("setting a clock")
    }

    /// Joins the mesh of `coordinator` with a fresh token and waits until the agent is ready.
    pub fn join(self, coordinator: &Coordinator) -> anyhow::Result<Agent> {
        let token = coordinator.token()?;
        let mut agent = self.prepare(&token)?;
        agent.start()?;
        Ok(agent)
    }

    /// Writes its configuration and starts its services, not the agent.
    pub fn prepare(mut self, token: &str) -> anyhow::Result<Agent> {
        fs::write(self.folder.join("token"), token)?;
        for (port, Offered { name, models, .. }) in (FIRST_SERVICE_PORT..).zip(&self.offered) {
            let service = Service::start(&self.node, name, port, models, &self.place.service, &self.folder)?;
            self.services.push(service);
        }
        fs::write(self.config(), self.configuration_file()?)?;
        Ok(self)
    }

    /// Starts the agent (again) and waits until it is ready.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the agent (again) without waiting.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        self.process = None;
        let mut command = match self.under {
            [] => self.place.wiremesh_refused(&self.node, &self.refused)?,
            under => self.place.wiremesh_under(&self.node, under)?,
        };
        command.envs(self.environment.iter().cloned());
        command.arg("agent").arg("--config").arg(self.config()).env("RUST_LOG", &self.log_filter);
        if self.own_clock {
            command.env("LD_PRELOAD", libfaketime()?).env("FAKETIME_TIMESTAMP_FILE", self.folder.join(CLOCK));
            command
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1");
        }
        let what = format!("agent {}", self.name());
        self.process = Some(Process::start(&what, command, &self.folder.join("agent.log"))?);
        Ok(())
    }

    /// Waits until the agent says that it is ready.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        eventually(&format!("{} is ready", self.name()), START_LIMIT, || {
            self.running()?.expect_running()?;
            let answer = self.get("/health/ready")?;
            anyhow::ensure!(answer.status == 200, "{} says {}: {}", self.name(), answer.status, answer.text());
            Ok(())
        })
    }

    /// Ends the agent as an operator would, and says how it ended.
    pub fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let process = self.running()?;
        process.signal(Signal::SIGTERM)?;
        process.wait(limit)
    }

    /// Ends the agent and its services without warning, as a power cut would.
    pub fn power_off(&mut self) {
        self.process = None;
        self.services.clear();
    }

    /// Ends the agent alone without warning; its services go on.
    pub fn power_off_agent(&mut self) {
        self.process = None;
    }

    /// Takes its join token away, as is good after a join.
    pub fn forget_token(&self) -> anyhow::Result<()> {
        fs::remove_file(self.folder.join("token")).context("removing a token")
    }

    /// Gives it another join token.
    pub fn give_token(&self, token: &str) -> anyhow::Result<()> {
        fs::write(self.folder.join("token"), token).context("writing a token")
    }

    /// The agent's process.
    pub fn running(&mut self) -> anyhow::Result<&mut Process> {
        let name = self.node.name().to_owned();
        self.process.as_mut().with_context(|| format!("the agent on {name} was not started"))
    }

    /// GET from its local API.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(reqwest::Method::GET, path, &[], "")
    }

    /// POST to its local API.
    pub fn post(&self, path: &str, body: &str) -> anyhow::Result<Answer> {
        self.request(reqwest::Method::POST, path, &[], body)
    }

    /// Any request to its local API.
    pub fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> anyhow::Result<Answer> {
        fetch(&self.node, method, &format!("{API}{path}"), headers, body, REQUEST_LIMIT)
    }

    /// `/health`.
    pub fn health(&self) -> anyhow::Result<Value> {
        self.get("/health")?.json()
    }

    /// `/stats`.
    pub fn stats(&self) -> anyhow::Result<Value> {
        self.get("/stats")?.json()
    }

    /// One counter under `routing` in `/stats`.
    pub fn routing(&self, counter: &str) -> anyhow::Result<u64> {
        let stats = self.stats()?;
        stats["routing"][counter].as_u64().with_context(|| format!("no routing.{counter} in {stats}"))
    }

    /// The sum of every sample in `/metrics` whose name begins so and whose labels hold `label`.
    pub fn metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let text = self.get("/metrics")?.text();
        let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        Ok(samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// Waits until so many others are in its DHT table.
    pub fn expect_dht_contacts(&self, contacts: u64) -> anyhow::Result<()> {
        eventually(&format!("{} has {contacts} DHT contacts", self.name()), SETTLE_LIMIT, || {
            let status = self.command_json(&["status"])?;
            let has = status["dht"]["contacts"].as_u64().with_context(|| format!("no dht.contacts in {status}"))?;
            anyhow::ensure!(has >= contacts, "{has}");
            Ok(())
        })
    }

    /// Waits until others can find it: its record is in the table of at least one other.
    pub fn expect_published(&self) -> anyhow::Result<()> {
        eventually(&format!("{} has published its record", self.name()), SETTLE_LIMIT, || {
            let status = self.command_json(&["status"])?;
            let stored =
                status["dht"]["published"].as_bool().with_context(|| format!("no dht.published in {status}"))?;
            anyhow::ensure!(stored, "not yet");
            Ok(())
        })
    }

    /// Its address on the overlay.
    pub fn overlay_ip(&self) -> anyhow::Result<IpAddr> {
        let health = self.health()?;
        let text = health["vpn_ip"].as_str().with_context(|| format!("no vpn_ip in {health}"))?;
        text.parse().with_context(|| format!("vpn_ip {text}"))
    }

    /// Runs a `wiremesh` command on its node, with its configuration.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command: Command = self.place.wiremesh(&self.node)?;
        command.args(arguments).arg("--config").arg(self.config());
        command.output().with_context(|| format!("running wiremesh {arguments:?}"))
    }

    /// What a `wiremesh` command with `--json` prints.
    pub fn command_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments = [arguments, &["--json"]].concat();
        let output = self.command(&arguments)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&stdout).with_context(|| {
            format!("wiremesh {arguments:?} printed {stdout:?} and {:?}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// What it is called in the mesh.
    pub fn name(&self) -> &str {
        self.called.as_deref().unwrap_or(self.node.name())
    }

    /// The folder with its keys.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// Everything the agent logged, over all its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    fn configuration_file(&self) -> anyhow::Result<String> {
        let (name, ingress) = (self.name(), SocketAddr::from((self.node.address(), INGRESS_PORT)));
        let (state, token) = (self.state(), self.folder.join("token"));
        let mut text = format!("name = {name:?}\nstate_dir = {state:?}\njoin_token_file = {token:?}\n");
        writeln!(text, "\n[dht]\nenabled = {}", self.dht)?;
        writeln!(text, "\n[api]\nlisten = \"127.0.0.1:8000\"")?;
        if self.tunnel {
            writeln!(text, "ingress = \"{ingress}\"\ntunnel_url = \"http://{ingress}\"")?;
        }
        for (Offered { name: service, max_concurrency, models }, running) in self.offered.iter().zip(&self.services) {
            let upstream = running.url();
            writeln!(text, "\n[[service]]\nname = {service:?}\nupstream = {upstream:?}\nhealth = \"/alive\"")?;
            // Nothing but what a story asks for is to be counted there.
            let kind = if models.is_empty() { "generic" } else { "openai" };
            writeln!(text, "kind = {kind:?}\nmax_concurrency = {max_concurrency}\nqueue = 256")?;
        }
        writeln!(text, "\n{}", self.configuration)?;
        Ok(text)
    }
}

/// What stands between a program and the machine's clock: Debian's `libfaketime`, for programs with threads.
fn libfaketime() -> anyhow::Result<PathBuf> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found = places.map(|place| PathBuf::from(place).join("faketime/libfaketimeMT.so.1"));
    let found = found.into_iter().find(|path| path.exists());
    found.context("libfaketime is not installed: netns-tests/run installs it (Debian: faketime)")
}
