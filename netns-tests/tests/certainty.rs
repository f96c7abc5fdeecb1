//! POSTs in flight while their worker is killed, stands still, loses its path or drains: none is executed twice, and every
//! answer says the truth about that.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Agent, Lab, Load, Outcome, Traffic, eventually, story};
use nix::sys::signal::Signal;

/// So many are answered before something happens, and after it.
const AROUND: usize = 200;

#[test]
fn none_is_executed_twice_while_the_agent_of_their_worker_is_killed() {
    story(|lab| {
        let (caller, mut workers) = mesh(lab)?;

        let outcomes = send_while(&caller, "/service/sums/slow?ms=20", || {
            workers[0].running()?.kill()?;
            Ok(())
        })?;

        let lost = check(&outcomes, &workers)?;
        assert!(lost <= Load::AT_ONCE, "{lost} of {} were lost", outcomes.len());
        Ok(())
    });
}

#[test]
fn none_is_executed_twice_while_the_agent_of_their_worker_stands_still_and_goes_on() {
    story(|lab| {
        let (caller, mut workers) = mesh(lab)?;

        let outcomes = send_while(&caller, "/service/sums/slow?ms=20", || {
            workers[0].running()?.signal(Signal::SIGSTOP)?;
            // Longer than any caller waits for its word.
            thread::sleep(Duration::from_secs(8));
            workers[0].running()?.signal(Signal::SIGCONT)
        })?;

        // What it had been sent is executed late or not at all, and nobody else did it in between.
        eventually("it answers again", Duration::from_secs(20), || workers[0].get("/health/live")?.expect_ok())?;
        let lost = check(&outcomes, &workers)?;
        assert!(lost <= 2 * Load::AT_ONCE, "{lost} of {} were lost", outcomes.len());
        Ok(())
    });
}

#[test]
fn what_a_worker_never_saw_because_its_path_died_is_repeated_through_its_tunnel_and_executed_once() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let caller = lab.node("caller")?.join(&coordinator)?;
        let workers = [lab.node("worker")?.serving("sums").with_tunnel().join(&coordinator)?];
        workers[0].expect_published()?;
        caller.post("/service/sums", "first")?.expect_ok()?;

        let mut cut = None;
        let outcomes = send_while(&caller, "/service/sums", || {
            cut = Some(lab.network.cut(&caller.node, &workers[0].node, Traffic::Udp)?);
            Ok(())
        })?;
        // What is still under way over the dead path arrives after all.
        cut.context("the path was not cut")?.restore()?;
        eventually("back on the overlay", Duration::from_secs(40), || {
            let answer = caller.post("/service/sums", "last")?.expect_ok()?;
            anyhow::ensure!(answer.header("x-wiremesh-path") == "overlay", "still by {}", answer.route());
            Ok(())
        })?;

        check(&outcomes, &workers)?;
        let never_seen = caller.metric("wiremesh_router_cleared_up_total", "never-seen")?;
        assert!(never_seen >= 1.0, "nobody promised anything: {:?}", summary(&outcomes));
        Ok(())
    });
}

#[test]
fn none_is_lost_while_their_worker_drains_and_its_own_clients_are_answered_by_the_other() {
    story(|lab| {
        let (caller, workers) = mesh(lab)?;

        let outcomes = send_while(&caller, "/service/sums/slow?ms=20", || {
            let told = socket(&workers[0], "POST", "/drain")?;
            anyhow::ensure!(told.contains("\"draining\":true"), "{told}");
            Ok(())
        })?;

        assert_eq!(check(&outcomes, &workers)?, 0, "{:?}", summary(&outcomes));
        eventually("nothing is under way", Duration::from_secs(10), || {
            let told = socket(&workers[0], "GET", "/drain")?;
            anyhow::ensure!(told.contains("\"in_flight\":0"), "{told}");
            Ok(())
        })?;
        let done = workers[0].services[0].executions()?.total;
        for _ in 0..10 {
            assert_eq!(caller.post("/service/sums", "x")?.expect_ok()?.header("x-wiremesh-worker"), "worker-2");
            assert_eq!(workers[0].post("/service/sums", "x")?.expect_ok()?.header("x-wiremesh-worker"), "worker-2");
        }
        assert_eq!(workers[0].services[0].executions()?.total, done);
        Ok(())
    });
}

fn mesh(lab: &mut Lab) -> anyhow::Result<(Agent, [Agent; 2])> {
    let coordinator = lab.coordinator()?;
    let caller = lab.node("caller")?.join(&coordinator)?;
    let workers = [
        lab.node("worker-1")?.serving("sums").join(&coordinator)?,
        lab.node("worker-2")?.serving("sums").join(&coordinator)?,
    ];
    for worker in &workers {
        worker.expect_published()?;
    }
    eventually("both answer", Duration::from_secs(20), || {
        caller.post("/service/sums", "x")?.expect_ok()?;
        anyhow::ensure!(workers.iter().all(|worker| worker.services[0].executions().is_ok_and(|done| done.total > 0)));
        Ok(())
    })?;
    Ok((caller, workers))
}

/// Sends POSTs to `path` until `happens` has happened and more were answered.
fn send_while(
    caller: &Agent,
    path: &str,
    happens: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Outcome>> {
    Load { paths: &[path], around: AROUND }.send_while(caller.node.namespace(), happens)
}

/// Compares what the callers were told with what was executed; how many were not answered by a worker.
fn check(outcomes: &[Outcome], workers: &[Agent]) -> anyhow::Result<usize> {
    let mut executions = BTreeMap::new();
    for worker in workers {
        for (id, times) in worker.services[0].executions()?.requests {
            *executions.entry(id).or_insert(0) += times;
        }
    }
    Outcome::compare(outcomes, &executions)?;
    Ok(outcomes.iter().filter(|outcome| !outcome.is_well()).count())
}

/// What an agent says on its socket.
fn socket(agent: &Agent, method: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(agent.state().join("agent.sock"))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn summary(outcomes: &[Outcome]) -> BTreeMap<(Option<u16>, &str, bool), usize> {
    let mut by_kind = BTreeMap::new();
    for outcome in outcomes {
        *by_kind.entry((outcome.status, outcome.executed.as_str(), outcome.whole)).or_insert(0) += 1;
    }
    by_kind
}
