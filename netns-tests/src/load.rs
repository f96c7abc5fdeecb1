//! Clients of one agent that send requests at once, and what each of them saw.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use futures::{StreamExt, stream};

use wiremesh::{clock, sandbox::Namespace};

use crate::client;

/// For numbers that no other request of the story has.
static SENT: AtomicUsize = AtomicUsize::new(0);
/// A client gives up after so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is sent, over and over, until the story has seen enough.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Paths below the local API, in turn.
    pub paths: &'a [&'a str],
    /// So many are answered before something happens, and after it.
    pub around: usize,
}

/// How one request ended, as its sender saw it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What its `x-lab-request` was.
    pub id: String,
    /// None: no answer at all.
    pub status: Option<u16>,
    /// What the answer said about that.
    pub executed: String,
    /// Who answered.
    pub worker: String,
    /// The way there.
    pub path: String,
    /// Whether the answer came to its end; one that did not is seen to be broken.
    pub whole: bool,
    /// From sending to the end of the answer.
    pub took: Duration,
}

impl Load<'_> {
    /// So many requests are under way at once.
    pub const AT_ONCE: usize = 16;

    /// Sends to the agent of this namespace while something `happens`.
    pub fn send_while(
        &self,
        namespace: &Namespace,
        happens: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Outcome>> {
        let (answered, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let sending = scope.spawn(|| namespace.block_on(|| send_all(self.paths, &answered, &enough)));
            let wait_for = |number| {
                while answered.load(Ordering::Relaxed) < number && !sending.is_finished() {
                    thread::sleep(Duration::from_millis(1));
                }
            };
            wait_for(self.around);
            let happened = happens();
            wait_for(answered.load(Ordering::Relaxed) + self.around);
            enough.store(true, Ordering::Relaxed);
            let outcomes = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
            happened?;
            outcomes
        })
    }
}

impl Outcome {
    /// Whether it was answered well and to the end.
    pub fn is_well(&self) -> bool {
        self.status == Some(200) && self.whole
    }

    /// Compares what the callers were told with what was executed, by `x-lab-request`. An error names the first lie.
    pub fn compare(outcomes: &[Outcome], executions: &BTreeMap<String, u64>) -> anyhow::Result<()> {
        for outcome in outcomes {
            let times = executions.get(&outcome.id).copied().unwrap_or(0);
            anyhow::ensure!(times <= 1, "executed {times} times: {outcome:?}");
            match (outcome.status, outcome.executed.as_str()) {
                (None, _) => anyhow::bail!("never answered: {outcome:?}"),
                // Its client knows that something came of it.
                (Some(_), _) if !outcome.whole => {}
                (Some(200), _) => anyhow::ensure!(times == 1, "answered and not executed: {outcome:?}"),
                (_, "no") => anyhow::ensure!(times == 0, "executed against its answer: {outcome:?}"),
                (_, executed) => anyhow::ensure!(executed == "unknown", "says nothing about its end: {outcome:?}"),
            }
        }
        Ok(())
    }
}

async fn send_all(paths: &[&str], answered: &AtomicUsize, enough: &AtomicBool) -> anyhow::Result<Vec<Outcome>> {
    let client = client()?;
    let requests = paths.iter().cycle().take_while(|_| !enough.load(Ordering::Relaxed)).map(|path| {
        let (client, number) = (client.clone(), SENT.fetch_add(1, Ordering::Relaxed));
        async move {
            let started = clock::now();
            let mut outcome = Outcome {
                id: format!("request-{number}"),
                status: None,
                executed: String::new(),
                worker: String::new(),
                path: String::new(),
                whole: false,
                took: Duration::ZERO,
            };
            let request = client.post(format!("http://127.0.0.1:8000{path}")).header("x-lab-request", &outcome.id);
            let body = "x".repeat(1 + number * 37 % 20_000);
            if let Ok(response) = request.timeout(PATIENCE).body(body).send().await {
                let header = |name: &str| {
                    let value = response.headers().get(name).map_or(b"".as_slice(), |value| value.as_bytes());
                    String::from_utf8_lossy(value).into_owned()
                };
                outcome.executed = header("x-wiremesh-executed");
                outcome.worker = header("x-wiremesh-worker");
                outcome.path = header("x-wiremesh-path");
                outcome.status = Some(response.status().as_u16());
                outcome.whole = response.bytes().await.is_ok();
            }
            outcome.took = clock::now() - started;
            answered.fetch_add(1, Ordering::Relaxed);
            outcome
        }
    });
    Ok(stream::iter(requests).buffer_unordered(Load::AT_ONCE).collect().await)
}
