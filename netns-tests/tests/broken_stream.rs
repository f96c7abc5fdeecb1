//! A worker that dies in the middle of an answer: the client is told, and the next request goes to another.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use netns_tests::{Agent, Lab, client, story};

/// How long a client may wait for the news that its worker is gone.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn an_event_stream_whose_worker_is_killed_ends_with_an_error_event_and_no_clean_end() {
    story(|lab| {
        let (caller, mut workers) = mesh(lab)?;

        let (text, ended) = cut_short(&caller, &mut workers, "/service/chat/sse?every_ms=20")?;

        assert!(text.contains("data: tick 3"), "{text}");
        assert!(text.contains("event: error"), "no error event in {:?}", tail(&text));
        assert!(ended.is_err(), "the stream ended as if it were whole: {:?}", tail(&text));
        goes_to_the_other(&caller, &workers)
    });
}

#[test]
fn a_download_whose_worker_is_killed_is_aborted() {
    story(|lab| {
        let (caller, mut workers) = mesh(lab)?;

        let (_, ended) = cut_short(&caller, &mut workers, "/service/chat/download?bytes=100000000000")?;

        assert!(ended.is_err(), "the stream ended as if it were whole");
        goes_to_the_other(&caller, &workers)
    });
}

fn mesh(lab: &mut Lab) -> anyhow::Result<(Agent, Vec<Agent>)> {
    let coordinator = lab.coordinator()?;
    let caller = lab.node("caller")?.join(&coordinator)?;
    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        workers.push(lab.node(name)?.serving("chat").join(&coordinator)?);
    }
    for worker in &workers {
        worker.expect_published()?;
    }
    Ok((caller, workers))
}

/// Opens a stream, kills the agent that answers it, and reads to the end: what came, and how it ended. The killed one
/// is taken out of `workers`.
fn cut_short(
    caller: &Agent,
    workers: &mut Vec<Agent>,
    path: &str,
) -> anyhow::Result<(String, Result<(), reqwest::Error>)> {
    let url = format!("http://127.0.0.1:8000{path}");
    let (name_out, name_in) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            caller.node.block_on(|| async move {
                let response = client()?.get(url).send().await?.error_for_status()?;
                let worker = response.headers().get("x-wiremesh-worker").context("no worker named")?.to_str()?;
                let worker = worker.to_owned();
                let mut pieces = response.bytes_stream();
                let mut text = Vec::new();
                let mut told = false;
                loop {
                    let piece = tokio::time::timeout(NOTICED_WITHIN, pieces.next()).await;
                    match piece.context("nothing came and nobody said why")? {
                        Some(Ok(piece)) if text.len() < 1_000_000 => text.extend_from_slice(&piece),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Ok((lossy(&text), Err(error))),
                        None => return Ok((lossy(&text), Ok(()))),
                    }
                    if !told && (text.len() > 500_000 || lossy(&text).contains("tick 5")) {
                        told = true;
                        name_out.send(worker.clone())?;
                    }
                }
            })
        });
        let worker = name_in.recv_timeout(NOTICED_WITHIN).context("the stream did not begin")?;
        let at = workers.iter().position(|one| one.name() == worker).context("an unknown worker answered")?;
        workers.remove(at).running()?.kill()?;
        reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    })
}

fn goes_to_the_other(caller: &Agent, left: &[Agent]) -> anyhow::Result<()> {
    let answer = caller.get("/service/chat")?.expect_ok()?;

    assert_eq!(answer.header("x-wiremesh-worker"), left[0].name());
    assert!(answer.took < Duration::from_secs(5), "{:?}", answer.took);
    Ok(())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(300);
    text.get(start..).unwrap_or(text)
}
