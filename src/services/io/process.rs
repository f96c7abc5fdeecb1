//! Runs a service's command: restarted when it ends, its output in our log, stopped by SIGTERM and then SIGKILL.
//!
//! The command leads a process group of its own, so that what it starts is stopped with it.

use std::{process::Stdio, time::Duration};

use anyhow::Context;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, clock, open_files, services::ServiceConfig};

/// A process that ran this long before it ended is restarted as if it had never failed.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// What the agent may have been given its join token in.
const JOIN_TOKEN_VARIABLE: &str = "WIREMESH_JOIN_TOKEN";
const RESTART_BASE: Duration = Duration::from_secs(1);
const RESTART_CAP: Duration = Duration::from_secs(60);
/// How often it is looked whether what the command left behind is gone, after it was killed, and how many times.
const REAP_EVERY: Duration = Duration::from_millis(10);
const REAP_TRIES: u32 = 50;
/// The longest line of output that is logged; the rest of a longer one is another line.
const MAX_LINE_BYTES: usize = 4096;

/// Runs the command until `stop`. Whenever it ended before that, `ended` is told, then it is started again.
pub(super) async fn run(config: &ServiceConfig, ended: impl Fn(), stop: CancellationToken) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(RESTART_BASE, RESTART_CAP, seed_of(config.name.as_str()));
    while !stop.is_cancelled() {
        let started_at = clock::now();
        match once(config, &stop).await {
            Ok(_) if stop.is_cancelled() => break,
            Ok(status) => tracing::warn!(service = %config.name, %status, "command ended; starting it again"),
            Err(error) => tracing::warn!(service = %config.name, "command does not start: {error:#}"),
        }
        ended();
        if clock::now().saturating_duration_since(started_at) >= STABLE_AFTER {
            backoff.reset();
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
    Ok(())
}

/// Runs the command until it ends or is asked to.
async fn once(config: &ServiceConfig, stop: &CancellationToken) -> anyhow::Result<std::process::ExitStatus> {
    let (program, arguments) = config.command.split_first().context("the command is empty")?;
    let mut command = Command::new(program);
    if let Some(files) = open_files::before() {
        // SAFETY: between fork and exec it makes one system call, and allocates nothing.
        unsafe { command.pre_exec(move || files.put_back()) };
    }
    let mut child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        // A join token that the agent was given in its environment is not the command's.
        .env_remove(JOIN_TOKEN_VARIABLE)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let output = child.stdout.take();
    let errors = child.stderr.take();
    tracing::info!(service = %config.name, pid = group.map(Pid::as_raw), "command started");

    let status = {
        let copying = async {
            tokio::join!(copy(output, config, "stdout"), copy(errors, config, "stderr"));
            // The pipes may close before the process ends; it is the end of the process that counts.
            std::future::pending::<()>().await;
        };
        tokio::pin!(copying);
        tokio::select! {
            status = child.wait() => status?,
            () = &mut copying => unreachable!("copying never ends"),
            () = stop.cancelled() => tokio::select! {
                status = end(&mut child, group, config.stop_grace) => status?,
                () = &mut copying => unreachable!("copying never ends"),
            },
        }
    };
    // What the command itself started and left behind.
    if let Some(group) = group {
        let _ = killpg(group, Signal::SIGKILL);
        reap(group).await;
    }
    Ok(status)
}

/// Where we are the first process, as in a container, whatever the command left behind becomes our child, and a zombie
/// for as long as we do not ask how it ended.
async fn reap(group: Pid) {
    for _ in 0..REAP_TRIES {
        match waitpid(Pid::from_raw(-group.as_raw()), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => tokio::time::sleep(REAP_EVERY).await,
            Ok(_) => {}
            // None of the group is our child, or none is left.
            Err(_) => return,
        }
    }
}

/// SIGTERM to the whole group, SIGKILL after the grace.
async fn end(child: &mut Child, group: Option<Pid>, grace: Duration) -> std::io::Result<std::process::ExitStatus> {
    if let Some(group) = group {
        // Fails only if the group is gone already.
        let _ = killpg(group, Signal::SIGTERM);
    }
    match tokio::time::timeout(grace, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            tracing::warn!("command ignores SIGTERM; killed");
            if let Some(group) = group {
                let _ = killpg(group, Signal::SIGKILL);
            }
            child.wait().await
        }
    }
}

async fn copy(stream: Option<impl AsyncRead + Unpin>, config: &ServiceConfig, name: &'static str) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::with_capacity(MAX_LINE_BYTES, stream);
    let mut line = Vec::new();
    loop {
        let Ok(part) = lines.fill_buf().await else { return };
        if part.is_empty() {
            return;
        }
        let room = MAX_LINE_BYTES - line.len();
        let (taken, complete) = match part.iter().take(room).position(|&byte| byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (part.len().min(room), part.len() >= room),
        };
        line.extend_from_slice(&part[..taken]);
        lines.consume(taken);
        if complete {
            tracing::info!(service = %config.name, stream = name, "{}", String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
}

/// Services that failed together are not restarted together; chance enough for that is in their names.
fn seed_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use super::*;
    use crate::services::Upstream;

    fn shell(script: &str) -> ServiceConfig {
        let upstream = "http://127.0.0.1:9".parse::<Upstream>().unwrap();
        ServiceConfig {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..ServiceConfig::new("ocr".parse().unwrap(), upstream)
        }
    }

    async fn run_until(config: ServiceConfig, stop: CancellationToken) -> anyhow::Result<()> {
        run(&config, || {}, stop).await
    }

    #[tokio::test]
    async fn a_command_that_is_asked_to_stop_gets_sigterm_and_may_clean_up() {
        let folder = tempfile::tempdir().unwrap();
        let (ready, cleaned) = (folder.path().join("ready"), folder.path().join("cleaned"));
        let script = format!(
            "trap 'touch {}; exit 0' TERM; touch {}; while :; do sleep 0.05; done",
            cleaned.display(),
            ready.display()
        );
        let stop = CancellationToken::new();
        let running = tokio::task::spawn(run_until(shell(&script), stop.clone()));
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        stop.cancel();

        running.await.unwrap().unwrap();
        assert!(cleaned.exists());
    }

    #[tokio::test]
    async fn a_command_may_open_as_many_files_as_before_the_agent_raised_its_own_limit() {
        let folder = tempfile::tempdir().unwrap();
        let limit = folder.path().join("limit");
        let before = open_files::raise_from_few();
        let stop = CancellationToken::new();
        let script = format!("ulimit -Sn > {0}.new; mv {0}.new {0}; sleep 1000", limit.display());
        let running = tokio::task::spawn(run_until(shell(&script), stop.clone()));

        while !limit.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        stop.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&limit).unwrap().trim(), before.to_string());
        assert!(open_files::limit() > before, "and the agent may open more");
    }

    #[tokio::test]
    async fn a_command_that_ends_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let stop = CancellationToken::new();
        let running = tokio::task::spawn(run_until(shell(&format!("echo run >> {}", count.display())), stop.clone()));

        while std::fs::read_to_string(&count).unwrap_or_default().lines().count() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        stop.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_a_command_started_ends_with_it_and_its_end_is_told_before_it_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let child = folder.path().join("child");
        let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}", child.display());
        let config = shell(&script);
        let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let stop = CancellationToken::new();

        tokio::select! {
            _ = run(&config, || ended.send(()).unwrap(), stop.clone()) => panic!("not asked to stop"),
            end = ends.recv() => end.unwrap(),
        }

        let pid = std::fs::read_to_string(&child).unwrap();
        let process = format!("/proc/{}/stat", pid.trim());
        // Whose child it became then has still to ask how it ended.
        let alive = || std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z "));
        while alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_command_that_ignores_sigterm_is_killed_after_its_grace() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let script = format!("trap '' TERM; touch {}; while :; do sleep 0.05; done", ready.display());
        let config = ServiceConfig { stop_grace: Duration::from_millis(50), ..shell(&script) };
        let stop = CancellationToken::new();
        let running = tokio::task::spawn(run_until(config, stop.clone()));
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        stop.cancel();

        running.await.unwrap().unwrap();
    }
}
