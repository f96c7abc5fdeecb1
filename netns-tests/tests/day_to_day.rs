//! What operators do every day: a drain that is called off, a signal that a rotation of logs sends, a configuration that is
//! tried first, a look at what is not running, a reader that leaves.

use std::{process::Output, time::Duration};

use anyhow::Context;
use netns_tests::{Agent, eventually, story};
use nix::sys::signal::Signal;

/// For what takes a moment.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_drain_that_is_called_off_leaves_a_worker_as_it_was() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let caller = lab.node("caller")?.join(&coordinator)?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        worker.expect_published()?;
        answered_by_the_worker(&caller)?;

        assert!(said(&worker, &["drain", "--wait"])?.contains("drained"));
        let status = said(&worker, &["status"])?;
        assert!(status.contains("draining") && status.contains("not offered: this node drains"), "{status}");
        assert!(!status.contains("health check"), "its upstream is well: {status}");
        let nowhere = worker.command(&["call", "nope"])?;
        let why = String::from_utf8_lossy(&nowhere.stderr).into_owned();
        assert!(why.contains("nobody offers"), "what was never here is not here because of the drain: {why}");
        assert_eq!(caller.post("/service/ocr/page", "hello")?.status, 503);

        assert!(said(&worker, &["drain", "--cancel"])?.contains("not draining"));

        answered_by_the_worker(&caller)?;
        let status = said(&worker, &["status"])?;
        assert!(status.contains("healthy") && !status.contains("drain"), "{status}");
        Ok(())
    });
}

#[test]
fn a_hangup_ends_neither_an_agent_nor_a_coordinator() {
    story(|lab| {
        let mut coordinator = lab.coordinator()?;
        let mut worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;

        worker.running()?.signal(Signal::SIGHUP)?;
        let running = coordinator.process.as_mut().context("it runs")?;
        running.signal(Signal::SIGHUP)?;

        let heard = |log: String| {
            anyhow::ensure!(log.contains("SIGHUP"), "not yet");
            Ok(())
        };
        eventually("the agent has heard it", LIMIT, || heard(worker.log()))?;
        eventually("the coordinator has heard it", LIMIT, || heard(running.log()))?;
        worker.running()?.expect_running()?;
        running.expect_running()?;
        assert_eq!(worker.post("/service/ocr/page", "hello")?.status, 200);
        coordinator.token()?;
        Ok(())
    });
}

#[test]
fn what_cannot_be_used_is_said_before_anything_is_started() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let folder = lab.folder("configuration")?;
        let check = |program: &str, text: &str| -> anyhow::Result<Output> {
            let file = folder.join(format!("{program}.toml"));
            std::fs::write(&file, text)?;
            Ok(lab.wiremesh(&node)?.args([program, "--check", "--config"]).arg(&file).output()?)
        };

        let agent = check("agent", "name = \"a\"\nstate_dir = \"/nowhere\"\n")?;
        let coordinator = check("coordinator", "data_dir = \"/nowhere\"\n")?;
        assert_eq!((agent.status.code(), coordinator.status.code()), (Some(0), Some(0)), "{agent:?} {coordinator:?}");
        assert!(!std::path::Path::new("/nowhere").exists(), "nothing was begun");

        for (program, text, told) in [
            (
                "agent",
                "[overlay]\nadvertise = [\"gpu1.example.com:51820\"]\n",
                "\"gpu1.example.com:51820\" is not an address",
            ),
            ("agent", "drain_grace = 30\n", "expected a duration in quotes"),
            ("coordinator", "listen = \"8080\"\n", "\"8080\" is not an address"),
        ] {
            let refused = check(program, text)?;
            let why = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(64), "{why}");
            assert!(why.contains(told) && why.contains(".toml"), "{why}");
        }
        Ok(())
    });
}

#[test]
fn a_command_says_whether_there_is_no_agent_or_one_that_waits() {
    story(|lab| {
        let mut coordinator = lab.coordinator()?;
        let token = coordinator.token()?;
        coordinator.stop();
        let mut waiting = lab.node("waiting")?.prepare(&token)?;
        let why = |agent: &Agent| -> anyhow::Result<String> {
            let looked = agent.command(&["ping", "somebody"])?;
            assert_eq!(looked.status.code(), Some(1));
            Ok(String::from_utf8(looked.stderr)?)
        };
        let not_running = why(&waiting)?;

        waiting.launch()?;

        assert!(not_running.contains("is it running") && not_running.matches("could not connect").count() == 1);
        eventually("the agent waits for a coordinator", LIMIT, || {
            let waits = why(&waiting)?;
            anyhow::ensure!(waits.contains("has not joined the mesh yet"), "{waits}");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn a_reader_that_leaves_ends_a_command_without_a_word() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        for arguments in [&["completions", "bash"][..], &["capabilities"], &["cert", "print", "--help"]] {
            let (reader, writer) = std::io::pipe()?;
            // It has left before anything is written.
            drop(reader);
            let ended = lab.wiremesh(&node)?.args(arguments).stdout(writer).output()?;
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!((ended.status.code(), said.as_ref()), (Some(0), ""), "{arguments:?}");
        }
        Ok(())
    });
}

fn answered_by_the_worker(caller: &Agent) -> anyhow::Result<()> {
    eventually("the worker answers", LIMIT, || {
        let answer = caller.post("/service/ocr/page", "hello")?;
        anyhow::ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(())
    })
}

fn said(agent: &Agent, arguments: &[&str]) -> anyhow::Result<String> {
    let ended = agent.command(arguments)?;
    anyhow::ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Ok(String::from_utf8(ended.stdout)?)
}
