//! The services that the lab's workers offer: `src/bin/service/`, one process each.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use reqwest::Method;
use serde::Deserialize;
use wiremesh::sandbox::Node;

use crate::{Process, eventually, fetch};

const LIMIT: Duration = Duration::from_secs(10);

/// A real HTTP server on a node's loopback.
#[derive(Debug)]
pub struct Service {
    /// The server.
    pub process: Process,
    node: Node,
    port: u16,
    name: String,
    program: PathBuf,
    folder: PathBuf,
}

/// What a service has done since it started.
#[derive(Clone, Debug, Deserialize)]
pub struct Executions {
    /// Requests that it began to work on.
    pub total: u64,
    /// The same by the `x-lab-request` header that they carried.
    pub requests: BTreeMap<String, u64>,
}

impl Service {
    pub(crate) fn start(node: &Node, name: &str, port: u16, program: &Path, folder: &Path) -> anyhow::Result<Service> {
        let process = launch(node, name, port, program, folder)?;
        let (program, folder) = (program.to_owned(), folder.to_owned());
        let mut service = Service { process, node: node.clone(), port, name: name.to_owned(), program, folder };
        service.wait_listening()?;
        Ok(service)
    }

    /// Starts it again after it has ended.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.node, &self.name, self.port, &self.program, &self.folder)?;
        self.wait_listening()
    }

    fn wait_listening(&mut self) -> anyhow::Result<()> {
        eventually("the service listens", LIMIT, || {
            self.process.expect_running()?;
            self.node.run(|| TcpStream::connect(("127.0.0.1", self.port)))??;
            Ok(())
        })
    }

    /// Where it listens, on its node.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it has done, asked directly.
    pub fn executions(&self) -> anyhow::Result<Executions> {
        let url = format!("{}/count", self.url());
        fetch(&self.node, Method::GET, &url, &[], "", LIMIT)?.json().context("asking a service what it did")
    }
}

fn launch(node: &Node, name: &str, port: u16, program: &Path, folder: &Path) -> anyhow::Result<Process> {
    let mut command = node.command(program)?;
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--who", node.name(), "--service", name]);
    Process::start(&format!("service {name}"), command, &folder.join(format!("{name}.log")))
}
