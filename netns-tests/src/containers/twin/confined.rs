//! A program that finds about what it would find in a container, and how to reach it with signals.

use std::{path::Path, process::Command};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use wiremesh::sandbox::Namespace;

use crate::{Process, children, containers::Container};

/// What Docker leaves to root in a container.
const CAPABILITIES: &[&str] = &[
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "net_bind_service",
    "net_raw",
    "sys_chroot",
    "mknod",
    "audit_write",
    "setfcap",
];
/// Its own name and those of others, no device, fewer rights; then the program, in the place of this shell.
const ENTER: &str = r#"
hostname "$1" || exit 125
mount --bind "$2" /etc/hosts || exit 125
if [ "$3" = no-tun ] && [ -d /dev/net ]; then mount -t tmpfs tmpfs /dev/net || exit 125; fi
capabilities="$4"; shift 4
exec setpriv --inh-caps=-all --bounding-set "$capabilities" -- "$@"
"#;

/// What there is to confine.
pub struct Confined<'a> {
    /// The program.
    pub wiremesh: &'a Path,
    /// Its configuration file.
    pub configuration: &'a Path,
    /// Its `/etc/hosts`.
    pub hosts: &'a Path,
    /// As it was asked for.
    pub container: &'a Container,
}

impl Confined<'_> {
    /// It, in this network: the first process of its PID namespace. Whoever ends the command ends all of it.
    pub fn command(&self, network: &Namespace) -> anyhow::Result<Command> {
        let mut capabilities = CAPABILITIES.to_vec();
        capabilities.extend(self.container.net_admin.then_some("net_admin"));
        let capabilities = format!("-all,+{}", capabilities.join(",+"));
        let tun = if self.container.tun { "tun" } else { "no-tun" };
        let mut command = network.command("unshare")?;
        command.args([
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
            "sh",
            "-c",
            ENTER,
            "sh",
        ]);
        command.arg(&self.container.name).arg(self.hosts).args([tun, &capabilities]);
        command.arg(self.wiremesh).arg(self.container.program.command()).arg("--config").arg(self.configuration);
        Ok(command)
    }
}

/// Sends a signal to the first process in there, as an engine does.
pub fn signal_first(confined: &Process, signal: Signal) -> anyhow::Result<()> {
    let first = children(confined.pid())?.first().copied().context("nothing runs in there")?;
    kill(first, signal).context("sending a signal")
}

/// Sends it to all that runs in there.
pub fn signal_all(confined: &Process, signal: Signal) -> anyhow::Result<()> {
    let mut to = children(confined.pid())?;
    while let Some(process) = to.pop() {
        kill(process, signal).context("sending a signal")?;
        to.extend(children(process)?);
    }
    Ok(())
}
