//! `dockerd`, in the sandbox.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use nix::mount::{MsFlags, mount};

use super::cli::Cli;
use crate::{Process, eventually, story::ENGINE_FOLDER};

/// It takes one or two seconds, on a machine that has nothing else to do.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What an engine consists of.
pub struct Programs {
    dockerd: PathBuf,
    docker: PathBuf,
}

impl Programs {
    /// The daemon, and the client that came with it: another on the path may be newer than the daemon likes.
    pub fn find() -> Option<Programs> {
        let dockerd = ["/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/local/bin/dockerd"].map(PathBuf::from);
        let dockerd = dockerd.into_iter().find(|path| path.exists())?;
        let beside = dockerd.with_file_name("docker");
        let docker = [beside, "/usr/bin/docker".into(), "/usr/local/bin/docker".into()];
        let docker = docker.into_iter().find(|path| path.exists())?;
        Some(Programs { dockerd, docker })
    }
}

/// Starts it and waits until it answers.
pub fn start(programs: &Programs, scratch: &Path, cgroup: &str) -> anyhow::Result<(Process, Cli)> {
    // It and containerd look for their sockets there, whatever they are told.
    anyhow::ensure!(scratch.starts_with("/run"), "the sandbox needs a /run of its own");
    let folder = scratch.join(ENGINE_FOLDER);
    fs::create_dir_all(&folder)?;
    // Both write a little here too.
    for of_the_machine in ["/etc", "/opt"] {
        cover(Path::new(of_the_machine), &folder)?;
    }
    let configuration = folder.join("daemon.json");
    fs::write(&configuration, "{}")?;
    let cli =
        Cli { program: programs.docker.clone(), socket: folder.join("socket"), configuration: folder.join("client") };
    let mut command = Command::new(&programs.dockerd);
    command.arg("--config-file").arg(configuration);
    command.arg("--data-root").arg(folder.join("data")).arg("--exec-root").arg(folder.join("exec"));
    command.arg("--pidfile").arg(folder.join("pid")).arg("--host").arg(format!("unix://{}", cli.socket.display()));
    // Stories make their own bridges.
    command.args(["--bridge", "none", "--cgroup-parent", cgroup, "--exec-opt", "native.cgroupdriver=cgroupfs"]);
    let mut daemon = Process::start("dockerd", command, &folder.join("dockerd.said"))?;
    let answers = || {
        daemon.expect_running()?;
        cli.run(&["version", "--format", "{{.Server.Version}}"])
    };
    eventually("dockerd answers", START_LIMIT, answers).with_context(|| daemon.log_tail(5))?;
    Ok((daemon, cli))
}

/// From here on what is written in a folder goes into the scratch, for this sandbox alone.
fn cover(folder: &Path, scratch: &Path) -> anyhow::Result<()> {
    let name = folder.file_name().context("a folder has a name")?;
    let (upper, work) = (scratch.join("over").join(name), scratch.join("work").join(name));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let layers = format!("lowerdir={},upperdir={},workdir={}", folder.display(), upper.display(), work.display());
    mount(Some("overlay"), folder, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .with_context(|| format!("mounting over {}", folder.display()))
}
