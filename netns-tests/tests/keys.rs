//! Keys that change under requests, keys that were changed and come back, and keys that are used twice.

use std::{
    fs,
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Agent, Coordinator, Lab, eventually, fetch, story_within};
use serde_json::Value;
use wiremesh::{clock, sandbox::Node};

const LIMIT: Duration = Duration::from_secs(150);
/// For a worker with new keys to be reached again.
const AGAIN_WITHIN: Duration = Duration::from_secs(10);
/// For both to be told, with a heartbeat every second.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// For it to be over when one of them is stopped.
const OVER_WITHIN: Duration = Duration::from_secs(25);
const QUICK: &str = "heartbeat_interval = \"1s\"";

#[test]
fn keys_change_under_requests_and_the_old_ones_are_refused_when_they_come_back() {
    story_within(LIMIT, |lab| {
        let (coordinator, client, mut worker) = two(lab)?;
        let before = worker.command_json(&["status"])?;
        let address = worker.overlay_ip()?;
        let backup = lab.folder("backup")?;
        copy_folder(&worker.state(), &backup)?;
        let pid = worker.running()?.pid();

        let asking = Asking::begin(&client.node);
        asking.answered(20)?;
        let output = worker.command(&["keys", "rotate"])?;
        let printed = said(&output);
        assert!(output.status.success(), "{printed}");
        assert!(printed.contains("new keys are certified") && printed.contains("name and address stay"), "{printed}");
        let changed_at = clock::now();
        asking.answered(20).context("after the change")?;
        let took = clock::now() - changed_at;
        println!("answered again {took:?} after the command returned");
        let outcome = asking.end()?;

        println!("{} answered, {} refused", outcome.answered, outcome.refused);
        assert_eq!(outcome.wrong, Vec::<String>::new(), "an answer was wrong");
        assert!(took < AGAIN_WITHIN, "{took:?}");
        let after = worker.command_json(&["status"])?;
        assert_ne!(after["id"], before["id"]);
        assert_ne!(after["identity"]["wireguard_key"], before["identity"]["wireguard_key"]);
        assert_eq!((&after["name"], worker.overlay_ip()?), (&before["name"], address));
        assert_eq!(worker.running()?.pid(), pid, "it is the same process");
        let left: Vec<_> = names(&worker.state())?.into_iter().filter(|name| is_leftover(name)).collect();
        assert_eq!(left, Vec::<String>::new(), "keys of the change lie about");
        // The service behind it never noticed.
        assert!(worker.services[0].executions()?.total > 0);

        // Somebody puts the old keys back.
        worker.terminate(Duration::from_secs(20))?;
        let present = lab.folder("present")?;
        copy_folder(&worker.state(), &present)?;
        replace_folder(&worker.state(), &backup)?;
        worker.launch()?;
        eventually("the old keys are refused, and it says so", AGAIN_WITHIN, || {
            if let Ok(status) = worker.command_json(&["status"]) {
                let troubles = status["troubles"].to_string();
                anyhow::ensure!(troubles.contains("revoked"), "{status}");
                return Ok(());
            }
            // It may also have learnt so from its own copy of the list, and not start at all.
            anyhow::ensure!(worker.log().contains("is revoked"), "it does not say so");
            Ok(())
        })?;
        let echo = client.post("/service/echo/echo", "hello")?;
        assert_ne!(echo.status, 200, "an agent with old keys is reached");

        // And the present ones again.
        worker.process = None;
        replace_folder(&worker.state(), &present)?;
        worker.start()?;
        answered(&client)?;
        drop(coordinator);
        Ok(())
    });
}

#[test]
fn keys_are_changed_with_the_coordinator_away_and_back() {
    story_within(LIMIT, |lab| {
        let (mut coordinator, client, worker) = two(lab)?;
        let before = worker.command_json(&["status"])?["id"].clone();

        coordinator.stop();
        let output = worker.command(&["keys", "rotate"])?;
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("hint: the present keys stay in use"), "{}", said(&output));
        answered(&client)?;
        coordinator.restart()?;
        let lines = worker.command(&["keys", "rotate", "--json"])?;

        let steps: Vec<Value> = said(&lines).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(steps.len(), 2, "{}", said(&lines));
        assert_eq!((&steps[0]["step"], &steps[1]["step"]), (&"certified".into(), &"changed".into()));
        assert_eq!((&steps[1]["present"], &steps[1]["next"]), (&before, &worker.command_json(&["status"])?["id"]));
        answered(&client)
    });
}

#[test]
fn a_state_directory_that_runs_on_a_second_machine_is_told_to_both_and_to_the_operator() {
    story_within(LIMIT, |lab| {
        let (coordinator, client, mut worker) = two(lab)?;
        let twin = lab.node("twin")?.called("worker").prepare(&coordinator.token()?)?;
        copy_folder(&worker.state(), &twin.state())?;
        let mut twin = twin;

        twin.start()?;
        for (agent, other) in [(&worker, &twin), (&twin, &worker)] {
            eventually("it is told of the other", TOLD_WITHIN, || {
                let status = agent.command_json(&["status"])?;
                let from = &status["keys"]["copied"]["seen_from"];
                anyhow::ensure!(*from == other.node.address().to_string(), "{}", status["keys"]);
                let told = said(&agent.command(&["status"])?);
                anyhow::ensure!(told.contains("another machine runs with this machine's keys"), "{told}");
                Ok(())
            })?;
        }
        let log = fs::read_to_string(coordinator.folder().join("coordinator.log"))?;
        assert_eq!(log.matches("two machines use the keys of this member").count(), 1, "the operator is told once");
        let page = fetch(&client.node, reqwest::Method::GET, &coordinator.url(), &[], "", TOLD_WITHIN)?.text();
        assert!(page.contains("its keys are used twice"), "{page}");

        twin.terminate(Duration::from_secs(20))?;
        eventually("it is over", OVER_WITHIN, || {
            let status = worker.command_json(&["status"])?;
            anyhow::ensure!(status["keys"]["copied"].is_null(), "{}", status["keys"]);
            Ok(())
        })?;
        worker.running()?.expect_running()
    });
}

#[test]
fn a_copy_is_found_out_without_the_coordinator() {
    story_within(Duration::from_secs(240), |lab| {
        let (mut coordinator, client, worker) = two(lab)?;
        let twin = lab.node("twin")?.called("worker").prepare(&coordinator.token()?)?;
        copy_folder(&worker.state(), &twin.state())?;
        coordinator.stop();
        let mut twin = twin;
        twin.start()?;

        eventually("one of them finds the other's records", Duration::from_secs(180), || {
            let told = [&worker, &twin].into_iter().any(|agent| {
                let status = agent.command_json(&["status"]).unwrap_or_default();
                status["keys"]["copied"]["found_by"] == "directory"
            });
            anyhow::ensure!(told, "not yet");
            Ok(())
        })?;
        drop(client);
        Ok(())
    });
}

fn two(lab: &mut Lab) -> anyhow::Result<(Coordinator, Agent, Agent)> {
    let coordinator = lab.coordinator_with("coordinator", &format!("{QUICK}\npublic_discovery = true"))?;
    let client = lab.node("client")?.join(&coordinator)?;
    let worker = lab.node("worker")?.serving("echo").join(&coordinator)?;
    client.expect_dht_contacts(1)?;
    answered(&client)?;
    Ok((coordinator, client, worker))
}

fn answered(client: &Agent) -> anyhow::Result<()> {
    eventually("the worker answers", AGAIN_WITHIN, || {
        let answer = client.post("/service/echo/echo", "hello")?.expect_ok()?;
        anyhow::ensure!(answer.text() == "hello", "{}", answer.text());
        Ok(())
    })
}

/// Somebody who asks without a pause and compares every answer.
struct Asking {
    stop: Arc<AtomicBool>,
    answered: Arc<std::sync::atomic::AtomicUsize>,
    thread: thread::JoinHandle<anyhow::Result<Outcome>>,
}

#[derive(Default)]
struct Outcome {
    answered: usize,
    refused: usize,
    wrong: Vec<String>,
}

impl Asking {
    fn begin(node: &Node) -> Asking {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (node, stopped) = (node.clone(), stop.clone());
        let counted: Arc<std::sync::atomic::AtomicUsize> = Arc::clone(&answered);
        let thread = thread::spawn(move || {
            let mut outcome = Outcome::default();
            let url = "http://127.0.0.1:8000/service/echo/echo";
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let body = format!("request {number}");
                let limit = Duration::from_secs(30);
                match fetch(&node, reqwest::Method::POST, url, &[], &body, limit) {
                    Ok(answer) if answer.status == 200 && answer.text() == body => {
                        outcome.answered += 1;
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(answer) if answer.status == 200 => {
                        outcome.wrong.push(format!("{body}: {:?}", answer.text()));
                    }
                    // Not answered is not wrong: nobody offered it for a moment.
                    Ok(_) | Err(_) => outcome.refused += 1,
                }
            }
            Ok(outcome)
        });
        Asking { stop, answered, thread }
    }

    /// Waits for so many more answers.
    fn answered(&self, more: usize) -> anyhow::Result<()> {
        let until = self.answered.load(Ordering::Relaxed) + more;
        eventually("requests are answered", AGAIN_WITHIN * 2, || {
            let answered = self.answered.load(Ordering::Relaxed);
            anyhow::ensure!(answered >= until, "{answered} of {until}");
            Ok(())
        })
    }

    fn end(self) -> anyhow::Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn is_leftover(name: &str) -> bool {
    name.ends_with(".next") || name.ends_with(".old")
}

fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Files alone: a socket is not copied.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn replace_folder(folder: &Path, with: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(folder)?;
    copy_folder(with, folder)
}
