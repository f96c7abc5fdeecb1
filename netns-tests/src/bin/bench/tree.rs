//! What programs use together with every process that they started: processor time, memory.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wiremesh::clock;

/// A program that is asked to end has so long.
const END_LIMIT: Duration = Duration::from_secs(3);

/// Programs and their descendants.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    roots: Vec<Pid>,
}

/// One line of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// Of the process and of its children that have ended and were waited for.
    ticks: u64,
    pages: u64,
    has_ended: bool,
}

impl Tree {
    /// Of these.
    pub fn of(roots: impl IntoIterator<Item = Pid>) -> Tree {
        Tree { roots: roots.into_iter().collect() }
    }

    /// Processor time used so far.
    pub fn cpu_time(&self) -> Duration {
        let ticks: u64 = self.processes().iter().map(|(_, stat)| stat.ticks).sum();
        // USER_HZ is 100 on every architecture that Linux runs on in practice.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory in MB (of 1,024 KiB), what they share counted for each.
    pub fn resident_mb(&self) -> f64 {
        let pages: u64 = self.processes().iter().map(|(_, stat)| stat.pages).sum();
        pages as f64 * page_bytes() as f64 / (1024.0 * 1024.0)
    }

    /// Asks the programs to end, and ends what has not ended after a while.
    pub fn end(&self) {
        let all = self.processes();
        for root in &self.roots {
            // It may have ended by itself.
            let _ = kill(*root, Signal::SIGTERM);
        }
        let deadline = clock::now() + END_LIMIT;
        while all.iter().any(|(pid, _)| runs(*pid)) && clock::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        for (pid, _) in all.iter().filter(|(pid, _)| runs(*pid)) {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        // Nothing outlives a SIGKILL, but the signal takes a moment.
        while all.iter().any(|(pid, _)| runs(*pid)) && clock::now() < deadline + END_LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn processes(&self) -> Vec<(Pid, Stat)> {
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let all: Vec<(i32, Stat)> = numbers.filter_map(|number| Some((number, stat(number)?))).collect();
        let mut wanted: BTreeSet<i32> = self.roots.iter().map(|pid| pid.as_raw()).collect();
        loop {
            let before = wanted.len();
            let more = all.iter().filter(|(_, stat)| wanted.contains(&stat.parent)).map(|(number, _)| *number);
            let more: Vec<i32> = more.collect();
            wanted.extend(more);
            if wanted.len() == before {
                break;
            }
        }
        all.into_iter()
            .filter(|(number, _)| wanted.contains(number))
            .map(|(n, stat)| (Pid::from_raw(n), stat))
            .collect()
    }
}

fn stat(number: i32) -> Option<Stat> {
    Stat::parse(&fs::read_to_string(format!("/proc/{number}/stat")).ok()?)
}

fn runs(pid: Pid) -> bool {
    stat(pid.as_raw()).is_some_and(|stat| !stat.has_ended)
}

fn page_bytes() -> u64 {
    // SAFETY: asks for a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

impl Stat {
    fn parse(line: &str) -> Option<Stat> {
        let fields: Vec<&str> = line.trim_end().rsplit_once(") ")?.1.split(' ').collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Stat {
            has_ended: matches!(fields.first(), Some(&("Z" | "X"))),
            parent: fields.get(1)?.parse().ok()?,
            ticks: number(11)? + number(12)? + number(13)? + number(14)?,
            pages: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_program_is_called() {
        let line = "77 (a) R (b) S 5 77 77 0 -1 0 0 0 0 0 10 20 3 4 20 0 3 0 9 1000000 250 18446744073709551615 1";

        assert_eq!(Stat::parse(line), Some(Stat { parent: 5, ticks: 37, pages: 250, has_ended: false }));
    }

    #[test]
    fn a_program_counts_with_what_it_started() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let tree = Tree::of([Pid::from_raw(shell.id().cast_signed())]);
        while tree.processes().len() < 2 {
            thread::sleep(Duration::from_millis(5));
        }

        assert!(tree.resident_mb() > 0.0);
        let all = tree.processes();
        tree.end();

        shell.wait().unwrap();
        assert!(all.iter().all(|(pid, _)| !runs(*pid)));
    }
}
