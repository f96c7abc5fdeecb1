//! `docker-compose` for the story's engine, with the files of `deploy/`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::Context;

use super::{cli::Cli, images};
use crate::containers::Program;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/compose.yaml");
const PROJECT: &str = "mesh";

/// `deploy/compose.yaml` on the story's engine, with the images that the story made.
pub struct Compose {
    cli: Cli,
}

impl Compose {
    pub(super) fn new(cli: Cli) -> Compose {
        Compose { cli }
    }

    /// What a command of compose printed. An error quotes what it said instead.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "docker-compose {arguments:?}: {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// How a command of compose ended and what it said.
    pub fn output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new("docker-compose");
        command.args(["--file", FILE, "--project-name", PROJECT, "--ansi", "never"]).args(arguments);
        command.env("DOCKER_HOST", format!("unix://{}", self.cli.socket.display()));
        command.env("DOCKER_CONFIG", &self.cli.configuration).env("COMPOSE_INTERACTIVE_NO_CLI", "1");
        command.env("WIREMESH_IMAGE", images::of(Program::Agent));
        command.env("WIREMESH_COORDINATOR_IMAGE", images::of(Program::Coordinator));
        command.output().context("running docker-compose: netns-tests/run installs it (Debian: docker-compose)")
    }

    /// A file in the volume of a service, as the machine's root sees it.
    pub fn file_in_volume(&self, volume: &str, name: &str) -> anyhow::Result<String> {
        let volume = format!("{PROJECT}_{volume}");
        let folder = self.cli.run(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume])?;
        let path = PathBuf::from(folder).join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}
