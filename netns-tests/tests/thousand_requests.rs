//! A thousand requests with bodies while a worker restarts: every one has an honest answer and none runs twice.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use futures::{StreamExt, stream};
use netns_tests::{Agent, Lab, client, eventually, story_within};

const REQUESTS: usize = 1000;
/// Each takes its worker 50 ms, so that a restart falls among them.
const AT_ONCE: usize = 16;
/// When this many are answered, the worker restarts.
const RESTART_AFTER: usize = 200;
const LIMIT: Duration = Duration::from_secs(180);

/// How one request ended, as its sender saw it.
struct Outcome {
    id: String,
    /// None: no answer at all.
    status: Option<u16>,
    executed: String,
    /// What the worker said it was.
    worker: String,
}

#[test]
fn none_is_lost_or_executed_twice_while_a_worker_is_restarted() {
    story_within(LIMIT, |lab| {
        let (caller, workers) = mesh(lab)?;

        let outcomes = send_while(&caller, workers, |worker| {
            assert!(worker.terminate(Duration::from_secs(20))?.success());
            worker.start()
        })?;

        // An orderly restart finishes what it began: nobody has to be told anything.
        assert_eq!(count(&outcomes, |outcome| outcome.status == Some(200)), REQUESTS, "{}", summary(&outcomes));
        Ok(())
    });
}

#[test]
fn none_is_lost_silently_or_executed_twice_while_a_worker_is_killed_and_comes_back() {
    story_within(LIMIT, |lab| {
        let (caller, workers) = mesh(lab)?;

        let outcomes = send_while(&caller, workers, |worker| {
            worker.running()?.kill()?;
            worker.start()
        })?;

        // What was under way when it died may be lost, and then says so.
        assert!(
            count(&outcomes, |outcome| outcome.status == Some(200)) >= REQUESTS - AT_ONCE,
            "{}",
            summary(&outcomes)
        );
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
    eventually("requests are answered", Duration::from_secs(10), || caller.get("/service/sums/alive")?.expect_ok())?;
    Ok((caller, workers))
}

/// Sends them all, does `restart` to the first worker after a while, and checks what must hold in any case.
fn send_while(
    caller: &Agent,
    mut workers: [Agent; 2],
    restart: impl FnOnce(&mut Agent) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Outcome>> {
    let answered = AtomicUsize::new(0);
    let outcomes = thread::scope(|scope| {
        let sending = scope.spawn(|| caller.node.block_on(|| send_all(&answered)));
        while answered.load(Ordering::Relaxed) < RESTART_AFTER && !sending.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        restart(&mut workers[0])?;
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })?;

    let mut executions = BTreeMap::new();
    for worker in &workers {
        for (id, times) in worker.services[0].executions()?.requests {
            *executions.entry(id).or_insert(0) += times;
        }
    }
    for outcome in &outcomes {
        let times = executions.get(&outcome.id).copied().unwrap_or(0);
        let status = outcome.status.unwrap_or(0);
        assert!(times <= 1, "{} was executed {times} times", outcome.id);
        assert!(status != 0, "{} was never answered", outcome.id);
        match (status, outcome.executed.as_str()) {
            (200, _) => assert_eq!(times, 1, "{} was answered by {} and not executed", outcome.id, outcome.worker),
            (_, "no") => assert_eq!(times, 0, "{} was executed against its answer {status}", outcome.id),
            (_, "unknown") => {}
            (_, other) => panic!("{} was answered {status}, executed {other:?}", outcome.id),
        }
    }
    assert!(workers.iter().all(|worker| worker.services[0].executions().is_ok_and(|done| done.total > 50)));
    Ok(outcomes)
}

async fn send_all(answered: &AtomicUsize) -> anyhow::Result<Vec<Outcome>> {
    let client = client()?;
    let requests = (0..REQUESTS).map(|number| {
        let client = client.clone();
        async move {
            let id = format!("request-{number}");
            let request = client
                .post("http://127.0.0.1:8000/service/sums/slow?ms=50")
                .header("x-lab-request", &id)
                .timeout(Duration::from_secs(60))
                .body("x".repeat(1 + number * 37 % 20_000));
            let mut outcome = Outcome { id, status: None, executed: String::new(), worker: String::new() };
            if let Ok(response) = request.send().await {
                let header = |name| String::from_utf8_lossy(response.headers().get(name).map_or(b"", |v| v.as_bytes()));
                outcome.executed = header("x-wiremesh-executed").into_owned();
                outcome.worker = header("x-wiremesh-worker").into_owned();
                let status = response.status().as_u16();
                outcome.status = response.bytes().await.is_ok().then_some(status);
            }
            answered.fetch_add(1, Ordering::Relaxed);
            outcome
        }
    });
    Ok(stream::iter(requests).buffer_unordered(AT_ONCE).collect().await)
}

fn count(outcomes: &[Outcome], what: impl Fn(&Outcome) -> bool) -> usize {
    outcomes.iter().filter(|outcome| what(outcome)).count()
}

fn summary(outcomes: &[Outcome]) -> String {
    let mut by_kind = BTreeMap::new();
    for outcome in outcomes {
        *by_kind.entry((outcome.status, &outcome.executed, &outcome.worker)).or_insert(0) += 1;
    }
    format!("{by_kind:?}")
}
