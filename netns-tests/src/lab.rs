//! The lab of one story: a network, and where the programs are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Context;
use wiremesh::sandbox::{Network, Node};

use crate::{Agent, Coordinator, Refused};

/// Names another `wiremesh` than the one that cargo built.
const BINARY: &str = "WIREMESH_BIN";

/// One switch, and around it what the story asks for.
#[derive(Debug)]
pub struct Lab {
    /// The switch and its cables, for cutting.
    pub network: Network,
    place: Arc<Place>,
}

/// Where a lab keeps its files and finds its programs.
#[derive(Debug)]
pub(crate) struct Place {
    scratch: PathBuf,
    wiremesh: PathBuf,
    refusing: PathBuf,
    pub service: PathBuf,
}

impl Lab {
    /// A lab that keeps its files in `scratch`. Stories are given one; a program that has entered a sandbox makes its own.
    pub fn new(scratch: &Path) -> anyhow::Result<Lab> {
        let wiremesh = wiremesh_binary()?;
        let (refusing, service) = (beside_the_tests("refusing")?, beside_the_tests("service")?);
        let place = Place { scratch: scratch.to_owned(), wiremesh, refusing, service };
        Ok(Lab { network: Network::new()?, place: Arc::new(place) })
    }

    /// A coordinator that runs, on a node of its own.
    pub fn coordinator(&mut self) -> anyhow::Result<Coordinator> {
        self.coordinator_with("coordinator", "")
    }

    /// A coordinator with more configuration, for when there are several or the defaults do not do.
    pub fn coordinator_with(&mut self, name: &str, configuration: &str) -> anyhow::Result<Coordinator> {
        Coordinator::start(self.network.add(name)?, self.place.clone(), configuration)
    }

    /// A node that an agent will run on.
    pub fn node(&mut self, name: &str) -> anyhow::Result<Agent> {
        Agent::new(self.network.add(name)?, self.place.clone())
    }

    /// A node without anything on it.
    pub fn bare_node(&mut self, name: &str) -> anyhow::Result<Node> {
        self.network.add(name)
    }

    /// The program that the lab's services are, for an agent that runs its own.
    pub fn service_program(&self) -> &Path {
        &self.place.service
    }

    /// A `wiremesh` command on a node.
    pub fn wiremesh(&self, node: &Node) -> anyhow::Result<Command> {
        self.place.wiremesh(node)
    }

    /// A folder for a node's files, gone with the lab. Logs (`*.log`) in it are printed when the story fails.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.place.folder(name)
    }
}

impl Place {
    /// A `wiremesh` command for a node, without what the caller's environment would tell it.
    pub(crate) fn wiremesh(&self, node: &Node) -> anyhow::Result<Command> {
        self.wiremesh_refused(node, &[])
    }

    /// The same for a node whose kernel refuses things.
    pub(crate) fn wiremesh_refused(&self, node: &Node, refused: &[Refused]) -> anyhow::Result<Command> {
        let mut command = match refused {
            [] => node.command(&self.wiremesh)?,
            refused => {
                let mut command = node.command(&self.refusing)?;
                command.args(refused.iter().map(Refused::to_string)).arg("--").arg(&self.wiremesh);
                command
            }
        };
        without_our_environment(&mut command);
        Ok(command)
    }

    /// The same, started by another program. Whoever ends the command ends it.
    pub(crate) fn wiremesh_under(&self, node: &Node, starter: &[&str]) -> anyhow::Result<Command> {
        let (program, arguments) = starter.split_first().context("nothing to start it")?;
        let mut command = node.command(program)?;
        command.args(arguments).arg(&self.wiremesh);
        without_our_environment(&mut command);
        Ok(command)
    }

    pub(crate) fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.scratch.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }
}

pub(crate) fn without_our_environment(command: &mut Command) {
    // Whatever the tests themselves run in, the lab's nodes are machines of one site.
    command.env("container", "lab");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WIREMESH_")) {
        command.env_remove(name);
    }
}

/// The `wiremesh` that is tested and measured: the one that `WIREMESH_BIN` names, or that cargo built.
pub fn wiremesh_binary() -> anyhow::Result<PathBuf> {
    let wiremesh = match std::env::var_os(BINARY) {
        Some(path) => PathBuf::from(path),
        None => beside_the_tests("wiremesh")?,
    };
    anyhow::ensure!(wiremesh.exists(), "{} is not there: run netns-tests/run, which builds it", wiremesh.display());
    Ok(wiremesh)
}

/// A program in the folder that cargo builds into: tests are in `deps` under it, other programs in it.
pub(crate) fn beside_the_tests(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("a program is in a folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.join(name))
}
