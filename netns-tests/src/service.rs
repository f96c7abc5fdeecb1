//! The services that the lab's workers offer: `src/bin/service.rs`, one process each.

use std::{collections::BTreeMap, net::TcpStream, path::Path, time::Duration};

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
    pub(crate) fn start(
        node: &Node,
        name: &str,
        port: u16,
        models: &str,
        program: &Path,
        folder: &Path,
    ) -> anyhow::Result<Service> {
        let mut command = node.command(program)?;
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--who", node.name(), "--service", name]);
        if !models.is_empty() {
            command.args(["--models", models]);
        }
        let mut process = Process::start(&format!("service {name}"), command, &folder.join(format!("{name}.log")))?;
        eventually("the service listens", LIMIT, || {
            process.expect_running()?;
            node.run(|| TcpStream::connect(("127.0.0.1", port)))??;
            Ok(())
        })?;
        Ok(Service { process, node: node.clone(), port })
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
