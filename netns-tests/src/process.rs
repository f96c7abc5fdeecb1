//! A program that runs on a node, with its log.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wiremesh::clock;

/// What the programs of a story log: much of ours, little of the libraries under it.
pub(crate) const LOG_FILTER: &str = "info,wiremesh=debug,libp2p_kad=warn,libp2p_swarm=warn,quinn=warn,sqlx=warn,\
    netlink_packet_route=error,netlink_proto=error";

/// One running program. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says goes to the end of `log`.
    pub fn start(what: &str, mut command: Command, log: &Path) -> anyhow::Result<Process> {
        let file: File = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {what}"))?;
        Ok(Process { what: what.to_owned(), child, log: log.to_owned() })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid(), signal).with_context(|| format!("sending {signal} to {}", self.what))
    }

    /// Ends it at once, as a crash or a pulled plug would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = clock::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(clock::now() < deadline, "{} still runs after {limit:?}", self.what);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// An error with the end of its log if it has ended.
    pub fn expect_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} has ended: {status}\n{}", self.what, self.log_tail(20)),
        }
    }

    /// Its number inside the sandbox.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Resident memory, in KiB.
    pub fn memory_kib(&self) -> anyhow::Result<u64> {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory it ever had, in KiB.
    pub fn peak_memory_kib(&self) -> anyhow::Result<u64> {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, field: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("not there: not running?")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// Processor time used so far.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let after_name = stat.rsplit_once(") ").context("a line of /proc/PID/stat")?.1;
        let fields: Vec<&str> = after_name.split(' ').collect();
        let ticks = |at: usize| fields.get(at).context("a field of /proc/PID/stat")?.parse().context("ticks");
        let (user, system): (u64, u64) = (ticks(11)?, ticks(12)?);
        // USER_HZ is 100 on every architecture that Linux runs on in practice.
        Ok(Duration::from_millis((user + system) * 10))
    }

    /// Everything it said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that a process started, whichever of its threads it was.
pub fn children(of: Pid) -> anyhow::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{of}/task"))? {
        // A thread may end while we look.
        let text = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().map(str::parse::<i32>).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(children.into_iter().map(Pid::from_raw).collect())
}
