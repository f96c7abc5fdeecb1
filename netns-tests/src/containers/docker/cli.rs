//! The engine's own command-line client, as everybody talks to it.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::Context;

/// `docker`, of the one engine of this sandbox.
#[derive(Clone, Debug)]
pub struct Cli {
    /// The client.
    pub program: PathBuf,
    /// Where the engine listens.
    pub socket: PathBuf,
    /// The client's own files.
    pub configuration: PathBuf,
}

impl Cli {
    /// What a command printed. An error quotes what it said instead.
    pub fn run(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<String> {
        let output = self.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        anyhow::ensure!(output.status.success(), "docker {}: {}: {}", words.join(" "), output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// How a command ended and what it said.
    pub fn output(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Output> {
        self.command().args(arguments).output().context("running docker")
    }

    /// A command to be completed.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--host").arg(format!("unix://{}", self.socket.display())).stdin(Stdio::null());
        command.env("DOCKER_CONFIG", &self.configuration).env("DOCKER_BUILDKIT", "1").env_remove("DOCKER_CONTEXT");
        command
    }
}
