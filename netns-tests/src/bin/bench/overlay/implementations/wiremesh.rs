//! Ours: a coordinator, and agents that join its mesh.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Process, client};
use serde_json::Value;
use wiremesh::sandbox::Namespace;
use wiremesh_certs::{WgPrivateKey, WgPublicKey};

use super::{Beside, Device, Running};
use crate::{
    overlay::{
        daemons::Daemons,
        place::{Place, SIDES, Side},
    },
    programs::until_ready,
};

const COORDINATOR_PORT: u16 = 8080;
const API: &str = "http://127.0.0.1:8000";
/// It makes keys, a CA and a database, on a machine that may have other things to do.
const START_LIMIT: Duration = Duration::from_secs(30);
/// What an operator's agent logs.
const LOG_FILTER: &str = "info";

/// wiremesh, in some build of it.
#[derive(Debug)]
pub struct Wiremesh;

/// A coordinator that runs, and how to join it.
pub struct Mesh {
    process: Process,
    program: PathBuf,
    folder: PathBuf,
}

/// One agent that is ready.
pub struct Agent {
    /// The program.
    pub process: Process,
    /// Its address on the overlay.
    pub address: IpAddr,
    /// Its WireGuard key.
    pub public_key: WgPublicKey,
}

impl Wiremesh {
    pub(super) fn start(&self, program: &Path, place: &Place, folder: &Path, number: usize) -> anyhow::Result<Running> {
        // The cable leads to it from both ends, and it has nothing to do while packets flow.
        let near = place.namespace(Side::Near);
        let mesh = Mesh::start(program, near, Side::Near.underlay().into(), folder)?;
        let mut agents = Vec::new();
        for side in SIDES {
            agents.push(mesh.agent(place.namespace(side), side.name(), number, place.overlay_mtu(), "")?);
        }
        let addresses = [agents[0].address, agents[1].address];
        Ok(Running {
            daemons: Daemons::new(agents.into_iter().map(|agent| agent.process))?,
            mtu: place.overlay_mtu(),
            addresses,
            _beside: Beside::Coordinator(mesh.process),
        })
    }

    pub(super) fn start_alone(
        &self,
        program: &Path,
        place: &Place,
        folder: &Path,
        number: usize,
        peers: &[(WgPublicKey, IpAddr)],
    ) -> anyhow::Result<Device> {
        let near = place.namespace(Side::Near);
        let mesh = Mesh::start(program, near, Side::Near.underlay().into(), folder)?;
        let mut configuration = String::new();
        for (key, address) in peers {
            writeln!(configuration, "\n[[overlay.peer]]\npublic_key = \"{key}\"\naddress = \"{address}\"")?;
        }
        let agent = mesh.agent(near, "alone", number, place.overlay_mtu(), &configuration)?;
        Ok(Device {
            daemons: Daemons::new([agent.process])?,
            public_key: agent.public_key,
            address: agent.address,
            _beside: Beside::Coordinator(mesh.process),
        })
    }
}

impl Mesh {
    /// A coordinator at `address`, which is in `namespace`.
    pub fn start(program: &Path, namespace: &Namespace, address: IpAddr, folder: &Path) -> anyhow::Result<Mesh> {
        let folder = folder.to_owned();
        let (data, listen) = (folder.join("data"), SocketAddr::new(address, COORDINATOR_PORT));
        let configuration =
            format!("data_dir = {data:?}\nlisten = \"{listen}\"\npublic_urls = [\"https://{listen}\"]\n");
        fs::write(folder.join("coordinator.toml"), configuration)?;
        let mut command = clean(namespace.command(program)?);
        command.arg("coordinator").arg("--config").arg(folder.join("coordinator.toml"));
        let mut process = Process::start("coordinator", command, &folder.join("coordinator.log"))?;
        until_ready(&mut process, START_LIMIT, || {
            namespace.run(|| TcpStream::connect((address, COORDINATOR_PORT)))??;
            Ok(())
        })?;
        Ok(Mesh { process, program: program.to_owned(), folder })
    }

    /// One more member, ready. `more` is added to its configuration.
    pub fn agent(
        &self,
        namespace: &Namespace,
        name: &str,
        number: usize,
        mtu: u32,
        more: &str,
    ) -> anyhow::Result<Agent> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let (state, token) = (folder.join("state"), folder.join("token"));
        fs::write(&token, self.token()?)?;
        let interface = format!("bench{number}");
        let configuration = format!(
            "name = {name:?}\nstate_dir = {state:?}\njoin_token_file = {token:?}\n\n\
             [overlay]\ninterface = {interface:?}\nmtu = {mtu}\n{more}"
        );
        let file = folder.join("agent.toml");
        fs::write(&file, configuration)?;
        let mut command = clean(namespace.command(&self.program)?);
        command.arg("agent").arg("--config").arg(&file);
        let mut process = Process::start(&format!("agent {name}"), command, &folder.join("agent.log"))?;
        let address = until_ready(&mut process, START_LIMIT, || ready(namespace))?;
        let key = fs::read_to_string(state.join("wireguard.key")).context("reading the agent's WireGuard key")?;
        Ok(Agent { process, address, public_key: WgPrivateKey::from_base64(&key)?.public() })
    }

    fn token(&self) -> anyhow::Result<String> {
        let mut command = clean(Command::new(&self.program));
        command.args(["token", "create", "--json", "--config"]).arg(self.folder.join("coordinator.toml"));
        let output = command.output().context("asking for a join token")?;
        anyhow::ensure!(output.status.success(), "token create: {}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).context("what token create printed")?;
        Ok(answer["token"].as_str().with_context(|| format!("no token in {answer}"))?.to_owned())
    }
}

/// The overlay address of the agent in `namespace`, once it is ready.
fn ready(namespace: &Namespace) -> anyhow::Result<IpAddr> {
    namespace.block_on(|| async {
        let client = client()?;
        client.get(format!("{API}/health/ready")).send().await?.error_for_status()?;
        let health: Value = client.get(format!("{API}/health")).send().await?.error_for_status()?.json().await?;
        health["vpn_ip"].as_str().with_context(|| format!("no vpn_ip in {health}"))?.parse().context("vpn_ip")
    })
}

/// Without what the caller's environment would tell it.
fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WIREMESH_")) {
        command.env_remove(name);
    }
    command.env("RUST_LOG", LOG_FILTER);
    command
}
