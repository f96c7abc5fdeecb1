//! A real agent before upstreams of every kind: what they say shows, and what happens to them is survived.

use std::{fmt::Write as _, thread, time::Duration};

use anyhow::Context;
use netns_tests::{Agent, Lab, eventually, fetch, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::Value;

/// For an agent to have found out what it is to know: a few of its beats.
const LEARN_WITHIN: Duration = Duration::from_secs(15);
/// For an upstream's end or return to show.
const NOTICE_WITHIN: Duration = Duration::from_secs(3);
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
const FIRST_PORT: u16 = 9100;

#[test]
fn what_upstreams_of_every_kind_say_shows() {
    story(|lab| {
        let kinds = ["vllm", "llama.cpp", "sglang", "tgi", "triton", "ollama"];
        let mut configuration = String::new();
        for (port, kind) in (FIRST_PORT..).zip(kinds) {
            writeln!(configuration, "{}kind = \"auto\"", run_by_the_agent(lab, &name_of(kind), port, Some(kind)))?;
            if kind == "triton" {
                // The lab's stand-in shows its metrics where it serves.
                writeln!(configuration, "metrics_port = {port}")?;
            }
        }
        let worker = joined(lab, &configuration)?;

        for (port, kind) in (FIRST_PORT..).zip(kinds) {
            let service = name_of(kind);
            let row = eventually(&format!("{kind} is recognised"), LEARN_WITHIN, || {
                let row = row_of(&worker, &service)?;
                anyhow::ensure!(row["kind"] == kind && row["state"] == "ready", "{row}");
                Ok(row)
            })?;
            assert_eq!(row["running"], 0, "{row}");
            let lists = kind != "triton";
            eventually("its models are known", LEARN_WITHIN, || {
                let row = row_of(&worker, &service)?;
                let models = row["models"].as_array().map(Vec::len);
                anyhow::ensure!(models == Some(usize::from(lists)), "{row}");
                Ok(())
            })?;

            say(&worker, port, "running=2&waiting=3&kv_percent=70")?;
            let (running, queued) = match kind {
                "ollama" => (0, 0),
                "triton" => (0, 3),
                "llama.cpp" => (2, 0),
                _ => (2, 3),
            };
            eventually(&format!("what {kind} says shows"), LEARN_WITHIN, || {
                let row = row_of(&worker, &service)?;
                anyhow::ensure!(row["running"] == running && row["queued"] == queued, "{row}");
                Ok(())
            })?;
            let load = worker.stats()?["load"].as_f64().context("no load in /stats")?;
            match kind {
                // 5 of 64 run or wait, and the cache is the fuller.
                "vllm" => assert!((0.69..0.75).contains(&load), "{load}"),
                "llama.cpp" | "sglang" => assert!(load > 0.99, "{load}"),
                _ => {}
            }
            say(&worker, port, "running=0")?;
            eventually("it is idle again", LEARN_WITHIN, || {
                let row = row_of(&worker, &service)?;
                anyhow::ensure!(row["running"] == 0 && row["queued"] == 0, "{row}");
                Ok(())
            })?;
        }
        assert_eq!(row_of(&worker, "llama-cpp")?["capacity"], 2);
        assert_eq!(row_of(&worker, "ollama")?["capacity"], 4);
        assert_eq!(worker.health()?["services"].as_array().map(Vec::len), Some(kinds.len()));
        Ok(())
    });
}

#[test]
fn a_command_that_is_killed_loses_nothing_that_only_waited() {
    story(|lab| {
        let service = run_by_the_agent(lab, "ocr", FIRST_PORT, None);
        let worker = joined(lab, &format!("{service}kind = \"generic\"\nmax_concurrency = 1\nqueue = 8\n"))?;
        let post = |path: &'static str| {
            let (node, url) = (worker.node.clone(), format!("http://127.0.0.1:8000/service/ocr{path}"));
            thread::spawn(move || fetch(&node, Method::POST, &url, &[], "x", REQUEST_LIMIT))
        };

        let running = post("/slow?ms=50000");
        eventually("it runs", LEARN_WITHIN, || at_the_door(&worker, 1, 0))?;
        let waiting: Vec<_> = (0..5).map(|_| post("/slow?ms=10")).collect();
        eventually("they wait", LEARN_WITHIN, || at_the_door(&worker, 1, 5))?;
        kill(pid_of_the_command(&worker)?, Signal::SIGKILL)?;

        let lost = running.join().expect("no panic")?;
        assert_eq!((lost.status, lost.header("x-wiremesh-executed")), (502, "unknown"), "{}", lost.text());
        assert_eq!(worker.health()?["services"].as_array().map(Vec::len), Some(1), "it is offered all the same");
        let late = post("/slow?ms=10");
        for request in waiting.into_iter().chain([late]) {
            let answer = request.join().expect("no panic")?;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        at_the_door(&worker, 0, 0)
    });
}

#[test]
fn an_upstream_that_goes_is_not_offered_and_one_that_returns_is() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let mut worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        let offers = |worker: &Agent, services: usize| {
            let health = worker.health()?;
            anyhow::ensure!(health["services"].as_array().map(Vec::len) == Some(services), "{health}");
            Ok(())
        };
        eventually("it is offered", LEARN_WITHIN, || offers(&worker, 1))?;

        worker.services[0].process.kill()?;
        eventually("it is not offered", NOTICE_WITHIN, || offers(&worker, 0))?;
        assert_eq!(worker.post("/service/ocr", "x")?.status, 503);

        worker.services[0].start_again()?;
        eventually("it is offered again", NOTICE_WITHIN, || offers(&worker, 1))?;
        worker.post("/service/ocr", "x")?.expect_ok()?;
        Ok(())
    });
}

/// A service whose upstream the agent runs itself: the lab's, which may say that it is of some kind.
fn run_by_the_agent(lab: &Lab, name: &str, port: u16, speaks: Option<&str>) -> String {
    let program = lab.service_program().display().to_string();
    let listen = format!("127.0.0.1:{port}");
    let mut command = vec![program.as_str(), "--listen", &listen, "--who", "worker", "--service", name];
    command.extend(speaks.into_iter().flat_map(|kind| ["--speaks", kind]));
    format!(
        "[[service]]\nname = {name:?}\nupstream = \"http://{listen}\"\nhealth = \"/alive\"\n\
         health_status = [\"200\"]\ncommand = {command:?}\n"
    )
}

/// An agent with these services, once all of them are offered.
fn joined(lab: &mut Lab, configuration: &str) -> anyhow::Result<Agent> {
    let coordinator = lab.coordinator()?;
    let worker = lab.node("worker")?.with_configuration(configuration).join(&coordinator)?;
    let services = configuration.matches("[[service]]").count();
    eventually("all are offered", LEARN_WITHIN, || {
        let health = worker.health()?;
        anyhow::ensure!(health["services"].as_array().map(Vec::len) == Some(services), "{health}");
        Ok(())
    })?;
    Ok(worker)
}

/// The name of the service that is of this kind.
fn name_of(kind: &str) -> String {
    kind.replace('.', "-")
}

/// What the agent says about one of its services.
fn row_of(worker: &Agent, service: &str) -> anyhow::Result<Value> {
    let services = worker.command_json(&["services"])?;
    let rows = services["offered_here"].as_array().context("no offered_here")?;
    rows.iter().find(|row| row["name"] == service).cloned().with_context(|| format!("no {service} in {services}"))
}

fn at_the_door(worker: &Agent, running: u64, waiting: u64) -> anyhow::Result<()> {
    let row = row_of(worker, "ocr")?;
    anyhow::ensure!(row["running"] == running && row["waiting"] == waiting, "{row}");
    Ok(())
}

/// Makes an upstream say these figures.
fn say(worker: &Agent, port: u16, figures: &str) -> anyhow::Result<()> {
    let url = format!("http://127.0.0.1:{port}/say?{figures}");
    fetch(&worker.node, Method::POST, &url, &[], "", REQUEST_LIMIT)?.expect_ok().map(|_| ())
}

/// The number of the process that the agent started last.
fn pid_of_the_command(worker: &Agent) -> anyhow::Result<Pid> {
    let log = worker.log();
    let line = log.lines().rfind(|line| line.contains("command started")).context("no command was started")?;
    // What logs in colour writes the equals sign in one of its own.
    let digits: String =
        line.rsplit("pid").next().unwrap_or_default().replace("\u{1b}[0m", "").replace("\u{1b}[2m", "");
    let digits: String = digits.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Ok(Pid::from_raw(digits.parse().with_context(|| format!("no pid in {line}"))?))
}
