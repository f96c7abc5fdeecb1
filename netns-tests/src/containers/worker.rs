//! An agent in a container, and the services it runs there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};
use wiremesh::{clock, sandbox::Namespace};

use super::{Bridge, Container, Coordinator, Ground, Network, Program, Published};
use crate::{Answer, eventually, fetch_in, process::LOG_FILTER};

/// Where the agent's local API listens in every container.
const API: &str = "http://127.0.0.1:8000";
const INGRESS_PORT: u16 = 8001;
const FIRST_SERVICE_PORT: u16 = 9000;
/// From nothing to ready, on a machine that is busy with another story.
const START_LIMIT: Duration = Duration::from_secs(40);
/// For a mesh of a few nodes to know about a newcomer.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// For one request whose answer a story waits for.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// `wiremesh agent` in a container: first described, then joined, then talked to.
pub struct Worker {
    ground: Ground,
    container: Container,
    services: Vec<String>,
    tunnel_url: Option<String>,
    key: bool,
    configuration: String,
    /// It was not seen to offer its services before.
    offers_since: Option<Instant>,
}

impl Worker {
    pub(super) fn new(ground: Ground, name: &str, bridge: &Bridge, address: IpAddr) -> Worker {
        let container = Container {
            name: name.to_owned(),
            program: Program::Agent,
            network: Network::On(bridge.clone(), address),
            net_admin: true,
            tun: true,
            published: Vec::new(),
            environment: vec![("RUST_LOG".to_owned(), LOG_FILTER.to_owned())],
            health: false,
        };
        Worker {
            ground,
            container,
            services: Vec::new(),
            tunnel_url: None,
            key: false,
            configuration: String::new(),
            offers_since: None,
        }
    }

    /// It will run a service of this name and offer it.
    pub fn serving(mut self, service: &str) -> Worker {
        self.services.push(service.to_owned());
        self
    }

    /// It will have an ingress that its bridge reaches, and say so in its `tunnel_url`.
    pub fn with_tunnel(self) -> Worker {
        let url = format!("http://{}:{INGRESS_PORT}", self.address());
        self.with_tunnel_at(&url)
    }

    /// It will have an ingress, and say that this URL leads there.
    pub fn with_tunnel_at(mut self, url: &str) -> Worker {
        self.tunnel_url = Some(url.to_owned());
        self
    }

    /// It will be made without `--cap-add NET_ADMIN`.
    pub fn without_net_admin(mut self) -> Worker {
        self.container.net_admin = false;
        self
    }

    /// It will be made without `--device /dev/net/tun`.
    pub fn without_tun(mut self) -> Worker {
        self.container.tun = false;
        self
    }

    /// Its local API will be reached from beyond its loopback, with a key.
    pub fn with_a_key(mut self) -> Worker {
        self.key = true;
        self
    }

    /// One of its ports will be the machine's, too.
    pub fn publishing(mut self, published: Published) -> Worker {
        self.container.published.push(published);
        self
    }

    /// The engine will ask it for its health, as the image says.
    pub fn watched(mut self) -> Worker {
        self.container.health = true;
        self
    }

    /// More lines for the end of its configuration file.
    pub fn with_configuration(mut self, lines: &str) -> Worker {
        self.configuration = lines.to_owned();
        self
    }

    /// Makes its container, joins the mesh of `coordinator` with a token for its name, and waits until it is ready.
    pub fn join(mut self, coordinator: &Coordinator) -> anyhow::Result<Worker> {
        let folder = self.ground.folder(self.name(), "etc")?;
        fs::write(folder.join("token"), coordinator.token_for(self.name())?)?;
        fs::write(folder.join("agent.toml"), self.configuration_file()?)?;
        self.shared()?;
        self.ground.engine.run(&self.container)?;
        self.wait_ready()?;
        Ok(self)
    }

    /// Waits until the agent says that it is ready, and offers its services.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let expected = json!(self.services.iter().collect::<BTreeSet<_>>());
        let mut asked_at = clock::now();
        let offers_since = eventually(&format!("{} is ready", self.name()), START_LIMIT, || {
            let before = std::mem::replace(&mut asked_at, clock::now());
            let ready = self.get("/health/ready")?;
            anyhow::ensure!(ready.status == 200, "{}: {}", ready.status, ready.text());
            let health = self.health()?;
            anyhow::ensure!(health["services"] == expected, "{health}");
            Ok(before)
        })?;
        self.offers_since = Some(offers_since);
        Ok(())
    }

    /// Asks its container to end, ends it after `grace`, and says how it did.
    pub fn stop(&self, grace: Duration) -> anyhow::Result<i32> {
        self.ground.engine.stop(self.name(), grace)
    }

    /// Ends its container at once.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.ground.engine.kill(self.name())
    }

    /// Starts its container after it has ended.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.ground.engine.start(self.name())?;
        self.wait_ready()
    }

    /// Another container in place of this one, with the same state and address.
    pub fn replace(&mut self) -> anyhow::Result<()> {
        self.remove()?;
        self.create_again()
    }

    /// Makes another container with the same state, after [`Worker::remove`].
    pub fn create_again(&mut self) -> anyhow::Result<()> {
        self.ground.engine.run(&self.container)?;
        self.wait_ready()
    }

    /// Takes its container away, whatever it does.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.ground.engine.remove(self.name())
    }

    /// Lets it stand still.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.ground.engine.pause(self.name())
    }

    /// Lets it go on.
    pub fn unpause(&self) -> anyhow::Result<()> {
        self.ground.engine.unpause(self.name())
    }

    /// Takes it off its bridge.
    pub fn disconnect(&self) -> anyhow::Result<()> {
        self.ground.engine.disconnect(self.name())
    }

    /// Puts it on its bridge again, where it was.
    pub fn reconnect(&self) -> anyhow::Result<()> {
        self.ground.engine.connect(self.name(), self.address())
    }

    /// Puts it on its bridge again, at another address.
    pub fn reconnect_elsewhere(&mut self) -> anyhow::Result<()> {
        if let Network::On(bridge, address) = &mut self.container.network {
            *address = self.ground.next_address(bridge);
        }
        self.reconnect()
    }

    /// GET from its local API, from inside its container.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, path, &[], "")
    }

    /// POST to its local API, from inside its container.
    pub fn post(&self, path: &str, body: &str) -> anyhow::Result<Answer> {
        self.request(Method::POST, path, &[], body)
    }

    /// Any request to its local API, from inside its container.
    pub fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> anyhow::Result<Answer> {
        let namespace = self.namespace()?;
        let bearer = self.key.then(|| self.api_key()).transpose()?.map(|key| format!("Bearer {key}"));
        let authorization = bearer.as_deref().map(|bearer| ("authorization", bearer));
        let headers: Vec<_> = headers.iter().copied().chain(authorization).collect();
        fetch_in(&namespace, method, &format!("{API}{path}"), &headers, body, REQUEST_LIMIT)
    }

    /// Its container's network.
    pub fn namespace(&self) -> anyhow::Result<Arc<Namespace>> {
        self.ground.engine.namespace(self.name())
    }

    /// `/health`.
    pub fn health(&self) -> anyhow::Result<Value> {
        self.get("/health")?.json()
    }

    /// `/stats`.
    pub fn stats(&self) -> anyhow::Result<Value> {
        self.get("/stats")?.json()
    }

    /// What `wiremesh status` says, asked inside its container.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.command_json(&["status"])
    }

    /// What a `wiremesh` command with `--json` prints, run inside its container.
    pub fn command_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments = [arguments, &["--json"]].concat();
        let output = self.ground.engine.exec(self.name(), &arguments)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&stdout).with_context(|| {
            format!("wiremesh {arguments:?} printed {stdout:?} and {:?}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// How a `wiremesh` command ends, run inside its container.
    pub fn exit_code(&self, arguments: &[&str]) -> anyhow::Result<Option<i32>> {
        Ok(self.ground.engine.exec(self.name(), arguments)?.status.code())
    }

    /// Waits until others can find it: its record, with its services, is in the table of at least one other.
    pub fn expect_published(&self) -> anyhow::Result<()> {
        let offers_since = self.offers_since.context("it was not started")?;
        eventually(&format!("{} has published its record", self.name()), SETTLE_LIMIT, || {
            let asked_at = clock::now();
            let dht = &self.status()?["dht"];
            let age = dht["published_secs_ago"].as_f64().with_context(|| format!("not yet: {dht}"))?;
            let offered_for = (asked_at - offers_since).as_secs_f64();
            anyhow::ensure!(dht["published"] == true && age <= offered_for, "{dht}");
            Ok(())
        })
    }

    /// Waits until the engine, too, has found out that it is well, where it was made to be watched.
    pub fn expect_watched_and_well(&self) -> anyhow::Result<()> {
        eventually(&format!("{} is healthy for its engine", self.name()), SETTLE_LIMIT, || {
            let health = self.ground.engine.health(self.name())?;
            anyhow::ensure!(health == "healthy", "it is {health}");
            Ok(())
        })
    }

    /// How often which request was executed here, over all its containers' lives.
    pub fn executions(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut executions = BTreeMap::new();
        for service in &self.services {
            let journal = fs::read_to_string(self.shared()?.join(journal(service))).unwrap_or_default();
            journal.lines().for_each(|id| *executions.entry(id.to_owned()).or_default() += 1);
        }
        Ok(executions)
    }

    /// The key of its local API, which the agent has made.
    pub fn api_key(&self) -> anyhow::Result<String> {
        let key = fs::read_to_string(self.shared()?.join("api.key")).context("reading the key of an API")?;
        Ok(key.trim().to_owned())
    }

    /// What it is called in the mesh, and by its engine.
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// Its address on its bridge.
    pub fn address(&self) -> IpAddr {
        match &self.container.network {
            Network::On(_, address) => *address,
            Network::Machine => IpAddr::from([127, 0, 0, 1]),
        }
    }

    /// Its address on the overlay.
    pub fn overlay_ip(&self) -> anyhow::Result<String> {
        let health = self.health()?;
        Ok(health["vpn_ip"].as_str().with_context(|| format!("no vpn_ip in {health}"))?.to_owned())
    }

    /// What it said, since its container was made.
    pub fn log(&self) -> anyhow::Result<String> {
        self.ground.engine.logs(self.name())
    }

    /// The folder that its container and the story share.
    fn shared(&self) -> anyhow::Result<PathBuf> {
        self.ground.folder(self.name(), "shared")
    }

    fn configuration_file(&self) -> anyhow::Result<String> {
        let paths = self.ground.engine.paths(self.name());
        let (name, state, token) = (self.name(), &paths.state, paths.configuration.join("token"));
        let mut text = format!("name = {name:?}\nstate_dir = {state:?}\njoin_token_file = {token:?}\n\n[api]\n");
        match self.key {
            true => writeln!(text, "listen = \"0.0.0.0:8000\"\nkey_file = {:?}", paths.shared.join("api.key"))?,
            false => writeln!(text, "listen = \"127.0.0.1:8000\"")?,
        }
        if let Some(url) = &self.tunnel_url {
            writeln!(text, "ingress = \"0.0.0.0:{INGRESS_PORT}\"\ntunnel_url = {url:?}")?;
        }
        for (port, service) in (FIRST_SERVICE_PORT..).zip(&self.services) {
            let listen = format!("127.0.0.1:{port}");
            let (program, journal) = (&paths.service, paths.shared.join(journal(service)));
            writeln!(text, "\n[[service]]\nname = {service:?}\nupstream = \"http://{listen}\"\nhealth = \"/alive\"")?;
            // Nothing but what a story asks for is to be counted there.
            writeln!(text, "kind = \"generic\"\nmax_concurrency = 64\nqueue = 256")?;
            writeln!(
                text,
                "command = [{program:?}, \"--listen\", {listen:?}, \"--who\", {name:?}, \"--service\", {service:?}, \
                 \"--journal\", {journal:?}]"
            )?;
        }
        writeln!(text, "\n{}", self.configuration)?;
        Ok(text)
    }
}

fn journal(service: &str) -> String {
    format!("{service}.executions")
}
