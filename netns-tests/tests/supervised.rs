//! What starts and stops an agent, systemd or a container's engine, is told what it asks for, and left no zombies.

use std::{fs, os::unix::net::UnixDatagram, time::Duration};

use anyhow::Context;
use netns_tests::{Agent, children, eventually, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// For what takes a moment.
const LIMIT: Duration = Duration::from_secs(20);
/// What the supervisor wants to hear of an agent at least so often.
const WATCHDOG: Duration = Duration::from_millis(600);

#[test]
fn systemd_hears_that_an_agent_is_ready_alive_and_stopping() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let path = lab.folder("supervisor")?.join("notify");
        let supervisor = UnixDatagram::bind(&path)?;
        supervisor.set_read_timeout(Some(LIMIT))?;
        let mut worker = lab
            .node("worker-1")?
            .serving("ocr")
            .with_environment("NOTIFY_SOCKET", path.to_str().context("a path of ours")?)
            .with_environment("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
            .join(&coordinator)?;

        assert_eq!(heard(&supervisor)?, "READY=1");
        for _ in 0..3 {
            assert_eq!(heard(&supervisor)?, "WATCHDOG=1");
        }
        worker.terminate(LIMIT)?;

        let rest = std::iter::from_fn(|| Some(heard(&supervisor)))
            .find(|said| !matches!(said, Ok(said) if said == "WATCHDOG=1"));
        assert_eq!(rest.context("nothing more was heard")??, "STOPPING=1");
        Ok(())
    });
}

#[test]
fn an_agent_that_is_a_container_s_first_process_ends_as_asked_and_leaves_no_zombies() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        // The service leaves a child of a child behind in a session of its own, which nobody knows of.
        let script = "(setsid sh -c 'sleep 0.2; exit 3' &); exec sleep 1000";
        let command = format!(
            "[[service]]\nname = \"words\"\nupstream = \"http://127.0.0.1:1\"\ncommand = [\"sh\", \"-c\", {script:?}]\n"
        );
        let mut worker =
            lab.node("worker-1")?.as_the_first_process().with_configuration(&command).join(&coordinator)?;
        let first = first_process(&mut worker)?;
        eventually("the service runs", LIMIT, || {
            anyhow::ensure!(descendants(first)?.iter().any(|(name, _)| name == "sleep"));
            Ok(())
        })?;

        eventually("the orphan is gone without a trace", LIMIT, || {
            let left = descendants(first)?;
            anyhow::ensure!(left.len() == 2 && left.iter().all(|(_, state)| *state != 'Z'), "{left:?}");
            Ok(())
        })?;
        kill(first, Signal::SIGTERM)?;

        let status = worker.running()?.wait(LIMIT)?;
        assert!(status.success(), "{status}");
        assert!(worker.log().contains("SIGTERM"), "the agent itself was told");
        Ok(())
    });
}

#[test]
fn a_service_has_none_of_the_power_that_systemd_gave_its_agent() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let told = lab.folder("told")?.join("status");
        let script = format!("cat /proc/self/status > {}; exec sleep 1000", told.display());
        let command = format!(
            "[[service]]\nname = \"words\"\nupstream = \"http://127.0.0.1:1\"\ncommand = [\"sh\", \"-c\", {script:?}]\n"
        );
        let worker =
            lab.node("worker-1")?.with_an_ambient_capability().with_configuration(&command).join(&coordinator)?;

        let ambient = eventually("the service says what it may do", LIMIT, || {
            let status = fs::read_to_string(&told)?;
            status.lines().find_map(|line| Some(line.strip_prefix("CapAmb:")?.trim().to_owned())).context("not yet")
        })?;

        assert_eq!(u64::from_str_radix(&ambient, 16)?, 0, "{ambient}");
        assert!(!worker.command_json(&["status"])?["overlay"].is_null(), "the agent itself has what it needs");
        Ok(())
    });
}

#[test]
fn the_first_process_ends_as_what_it_runs_for_does() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let wiremesh = netns_tests::wiremesh_binary()?;
        let ended = |arguments: &[&str]| -> anyhow::Result<Option<i32>> {
            let mut command = node.command("unshare")?;
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(&wiremesh).args(arguments);
            Ok(command.output()?.status.code())
        };

        assert_eq!(ended(&["agent", "--config", "/nowhere/agent.toml"])?, Some(64));
        assert_eq!(ended(&["coordinator", "--data-dir", "/proc/nowhere"])?, Some(1));
        Ok(())
    });
}

fn heard(supervisor: &UnixDatagram) -> anyhow::Result<String> {
    let mut message = [0; 256];
    let len = supervisor.recv(&mut message).context("nothing was heard")?;
    Ok(String::from_utf8_lossy(&message[..len]).trim_end().to_owned())
}

/// The agent's first process, as we see it from outside.
fn first_process(worker: &mut Agent) -> anyhow::Result<Pid> {
    let outside = worker.running()?.pid();
    children(outside)?.first().copied().context("the namespace has no first process")
}

/// All that runs below a process, itself left out: names and states.
fn descendants(of: Pid) -> anyhow::Result<Vec<(String, char)>> {
    let mut found = Vec::new();
    for child in children(of)? {
        let stat = fs::read_to_string(format!("/proc/{child}/stat"))?;
        let (name, rest) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")).context("a process")?;
        found.push((name.to_owned(), rest.chars().next().context("a state")?));
        found.extend(descendants(child)?);
    }
    Ok(found)
}
