//! What the programs under test use: processor time, memory, wake-ups.

use std::{fs, time::Duration};

use netns_tests::Process;
use nix::unistd::Pid;

/// The programs of one implementation, one at each end. The kernel's own paths have none.
#[derive(Default)]
pub struct Daemons {
    watched: Vec<Watched>,
}

struct Watched {
    process: Process,
    /// Resident memory when it was ready and had nothing to do, in KiB.
    idle_kib: u64,
    /// The most seen since.
    peak_kib: u64,
}

/// Resident memory in MB (of 1,024 KiB): of the program that has most of it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Ready, without traffic.
    pub idle: f64,
    /// The most that was seen.
    pub peak: f64,
    /// What traffic added.
    pub added: f64,
}

impl Daemons {
    /// These, which run and are ready.
    pub fn new(processes: impl IntoIterator<Item = Process>) -> anyhow::Result<Daemons> {
        let watched = processes.into_iter().map(|process| {
            let idle_kib = process.memory_kib()?;
            Ok(Watched { process, idle_kib, peak_kib: idle_kib })
        });
        Ok(Daemons { watched: watched.collect::<anyhow::Result<_>>()? })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// An error with the end of its log if one of them has ended.
    pub fn expect_running(&mut self) -> anyhow::Result<()> {
        self.watched.iter_mut().try_for_each(|watched| watched.process.expect_running())
    }

    /// Processor time that all of them have used.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.watched.iter().map(|watched| watched.process.cpu_time()).sum()
    }

    /// Looks how much memory they have. To be called often while there is traffic.
    pub fn sample_memory(&mut self) -> anyhow::Result<()> {
        for watched in &mut self.watched {
            watched.peak_kib = watched.peak_kib.max(watched.process.memory_kib()?);
        }
        Ok(())
    }

    /// What was seen of their memory.
    pub fn memory(&self) -> Option<Memory> {
        let most = |kib: fn(&Watched) -> u64| Some(self.watched.iter().map(kib).max()? as f64 / 1024.0);
        Some(Memory {
            idle: most(|watched| watched.idle_kib)?,
            peak: most(|watched| watched.peak_kib)?,
            added: most(|watched| watched.peak_kib - watched.idle_kib)?,
        })
    }

    /// How often each of them has begun to wait for something so far. Each wait ends with a wake-up.
    pub fn waits(&self) -> anyhow::Result<Vec<u64>> {
        self.watched.iter().map(|watched| waits_of(watched.process.pid())).collect()
    }
}

/// Voluntary context switches of all threads.
pub fn waits_of(pid: Pid) -> anyhow::Result<u64> {
    let mut waits = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        waits += voluntary_switches(&status).unwrap_or_default();
    }
    Ok(waits)
}

fn voluntary_switches(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_voluntary_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";

        assert_eq!(voluntary_switches(status), Some(150));
    }
}
