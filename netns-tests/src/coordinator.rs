//! A coordinator on a node of the lab.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;
use wiremesh::sandbox::Node;

use crate::{Process, eventually, lab::Place, process::LOG_FILTER};

const PORT: u16 = 8080;
/// It makes a CA and a database first.
const START_LIMIT: Duration = Duration::from_secs(20);

/// `wiremesh coordinator`, running.
#[derive(Debug)]
pub struct Coordinator {
    /// The node it is on.
    pub node: Node,
    /// The program, while it runs.
    pub process: Option<Process>,
    log_filter: String,
    folder: PathBuf,
    place: Arc<Place>,
}

/// What a join token may be used for.
#[derive(Clone, Debug, Default)]
pub struct TokenOptions {
    /// How long it is good for, as the command takes it.
    pub ttl: Option<&'static str>,
    /// For how many joins.
    pub uses: Option<u32>,
    /// The only name that may be joined with it.
    pub name: Option<String>,
    /// Groups of whoever joins with it.
    pub groups: &'static [&'static str],
    /// What whoever joins with it may offer.
    pub services: &'static [&'static str],
    /// Whether whoever joins with it waits for an operator.
    pub approve: bool,
}

impl Coordinator {
    pub(crate) fn start(node: Node, place: Arc<Place>, configuration: &str) -> anyhow::Result<Coordinator> {
        let folder = place.folder(node.name())?;
        let data = folder.join("data");
        let address = SocketAddr::from((node.address(), PORT));
        fs::write(
            folder.join("coordinator.toml"),
            format!(
                "data_dir = {data:?}\nlisten = \"{address}\"\npublic_urls = [\"https://{address}\"]\n{configuration}\n"
            ),
        )?;
        let mut coordinator = Coordinator { node, process: None, log_filter: LOG_FILTER.to_owned(), folder, place };
        coordinator.restart()?;
        Ok(coordinator)
    }

    /// Starts it (again) and waits until it accepts connections.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop();
        let mut command = self.place.wiremesh(&self.node)?;
        command.arg("coordinator").arg("--config").arg(self.config()).env("RUST_LOG", &self.log_filter);
        let log = self.folder.join("coordinator.log");
        let mut process = Process::start("coordinator", command, &log)?;
        let address = (self.node.address(), PORT);
        eventually("the coordinator listens", START_LIMIT, || {
            process.expect_running()?;
            self.node.run(|| TcpStream::connect(address))??;
            Ok(())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// It will log this much from its next start on.
    pub fn set_log_filter(&mut self, filter: &str) {
        self.log_filter = filter.to_owned();
    }

    /// Ends it without warning.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// `https://…` as members know it.
    pub fn url(&self) -> String {
        format!("https://{}", SocketAddr::from((self.node.address(), PORT)))
    }

    /// A token for one join.
    pub fn token(&self) -> anyhow::Result<String> {
        self.token_with(&TokenOptions::default())
    }

    /// A token with options.
    pub fn token_with(&self, options: &TokenOptions) -> anyhow::Result<String> {
        let mut arguments = vec!["token".to_owned(), "create".to_owned(), "--json".to_owned()];
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                arguments.extend([format!("--{name}"), value]);
            }
        };
        option("ttl", options.ttl.map(str::to_owned));
        option("uses", options.uses.map(|uses| uses.to_string()));
        option("name", options.name.clone());
        options.groups.iter().for_each(|group| option("group", Some((*group).to_owned())));
        options.services.iter().for_each(|service| option("service", Some((*service).to_owned())));
        arguments.extend(options.approve.then(|| "--approve".to_owned()));
        let answer = self.command_json(&arguments)?;
        Ok(answer["token"].as_str().with_context(|| format!("no token in {answer}"))?.to_owned())
    }

    /// What `wiremesh audit` tells, oldest first.
    pub fn audit(&self) -> anyhow::Result<Vec<Value>> {
        let output = self.command(&["audit".to_owned(), "--json".to_owned()])?;
        anyhow::ensure!(output.status.success(), "audit: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("audit printed {line}"))).collect()
    }

    /// Revokes a member with all its certificates, as its operator, through the coordinator's socket.
    pub fn revoke(&self, name: &str) -> anyhow::Result<()> {
        let socket = self.data().join("coordinator.sock");
        let body = serde_json::json!({ "name": name });
        self.node.block_on(|| async {
            let revoked: Result<Value, _> = wiremesh::cli::socket::post(&socket, "/revocations", &body).await;
            revoked.map(drop).map_err(|failure| failure.error.context("revoking"))
        })
    }

    /// Runs a `wiremesh` command beside it, with its configuration.
    pub fn command(&self, arguments: &[String]) -> anyhow::Result<Output> {
        let mut command: Command = self.place.wiremesh(&self.node)?;
        command.args(arguments).arg("--config").arg(self.config());
        command.output().with_context(|| format!("running wiremesh {arguments:?}"))
    }

    /// What a `wiremesh` command with `--json` prints.
    pub fn command_json(&self, arguments: &[String]) -> anyhow::Result<Value> {
        let output = self.command(arguments)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&stdout).with_context(|| format!("{arguments:?} printed {stdout}"))
    }

    /// The folder with its CA and database.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("coordinator.toml")
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
