//! The clients: so many connections, each asking one question after the other, or holding a stream open.
//!
//! One thread and a few system calls for a question. What it can do at most is measured with everything else, as asking
//! the upstream itself.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, stream::FuturesUnordered};
use wiremesh::clock;

use crate::{
    http1::{Connection, post},
    statistics::percentile,
    tree::Tree,
    upstream::{nanos, question, stamp_of},
};

/// Connections are made and code is paged in for so long before anything counts.
const WARM_UP: Duration = Duration::from_millis(250);
/// A question that is not answered for so long has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// After a connection that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Whom to ask for what.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// For what.
    pub path: &'static str,
    /// The processes between the clients and the upstream.
    pub tree: Tree,
}

/// What came of asking for a while.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Answers a second.
    pub rate: f64,
    /// From a question to the end of its answer, in µs: the middle, and what one in a hundred exceeds.
    pub p50: f64,
    /// See above.
    pub p99: f64,
    /// Processor time of what is between for each of them, in µs.
    pub cpu_micros: f64,
    /// Resident memory of what is between, at the end.
    pub resident_mb: f64,
}

/// What came of streams.
#[derive(Clone, Debug)]
pub struct Streamed {
    /// From a question to the first event, in the middle, in µs.
    pub first_micros: f64,
    /// From the upstream to the client, in the middle, in µs.
    pub event_micros: f64,
    /// What one in a hundred exceeds.
    pub event_p99_micros: f64,
}

/// What came of holding streams open.
#[derive(Clone, Debug)]
pub struct Held {
    /// How many were open at once.
    pub open: usize,
    /// Resident memory then.
    pub resident_mb: f64,
}

/// Questions one after the other over each of so many connections, for so long.
pub async fn ask(target: &Target, connections: usize, length: Duration) -> anyhow::Result<Asked> {
    let request = post(target.address, target.path, &question("hello", false));
    let (counts, over) = (Cell::new(false), Cell::new(false));
    let (micros, failed) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let client = async || {
        let mut connection = None;
        while !over.get() {
            let asked_at = clock::now();
            let answered = tokio::time::timeout(ANSWER_LIMIT, one(&mut connection, target.address, &request));
            let answered = answered.await.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {ANSWER_LIMIT:?}")));
            match answered {
                Ok(()) if counts.get() => micros.borrow_mut().push(micros_since(asked_at)),
                Ok(()) => {}
                Err(error) => {
                    failed.borrow_mut().push(error);
                    connection = None;
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    };
    let clients: FuturesUnordered<_> = (0..connections).map(|_| client()).collect();
    let watch = async {
        tokio::time::sleep(WARM_UP).await;
        let (cpu, began_at) = (target.tree.cpu_time(), clock::now());
        counts.set(true);
        tokio::time::sleep(length).await;
        counts.set(false);
        over.set(true);
        (target.tree.cpu_time() - cpu, clock::now() - began_at, target.tree.resident_mb())
    };
    let ((), (cpu, took, resident_mb)) = futures::join!(clients.collect::<()>(), watch);

    let (micros, failed) = (micros.into_inner(), failed.into_inner());
    let count = micros.len();
    if let Some(why) = failed.first().filter(|_| failed.len() * 100 > count) {
        anyhow::bail!("{} of {} questions failed: {why:#}", failed.len(), failed.len() + count);
    }
    Ok(Asked {
        rate: count as f64 / took.as_secs_f64(),
        p50: percentile(&micros, 50.0).context("nothing was answered")?,
        p99: percentile(&micros, 99.0).context("nothing was answered")?,
        cpu_micros: cpu.as_secs_f64() * 1e6 / count as f64,
        resident_mb,
    })
}

/// So many streams at once, again and again for so long.
pub async fn stream(target: &Target, streams: usize, length: Duration) -> anyhow::Result<Streamed> {
    let request = post(target.address, target.path, &question("hello", true));
    let ends_at = clock::now() + WARM_UP + length;
    let (firsts, events) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let client = async || -> anyhow::Result<()> {
        let mut connection = None;
        let mut warm = false;
        while clock::now() < ends_at {
            let asked_at = clock::now();
            let mut first = None;
            let seen = |stamp: u64| {
                first.get_or_insert_with(|| micros_since(asked_at));
                if warm {
                    events.borrow_mut().push(nanos().saturating_sub(stamp) as f64 / 1000.0);
                }
            };
            let reading = events_of(&mut connection, target.address, &request, seen);
            tokio::time::timeout(ANSWER_LIMIT, reading).await??;
            firsts.borrow_mut().extend(first.filter(|_| warm));
            warm = true;
        }
        Ok(())
    };
    let clients: FuturesUnordered<_> = (0..streams).map(|_| client()).collect();
    for ended in clients.collect::<Vec<_>>().await {
        ended?;
    }
    let (firsts, events) = (firsts.into_inner(), events.into_inner());
    Ok(Streamed {
        first_micros: percentile(&firsts, 50.0).context("no stream began")?,
        event_micros: percentile(&events, 50.0).context("no event came")?,
        event_p99_micros: percentile(&events, 99.0).context("no event came")?,
    })
}

/// Opens so many streams and holds them until all have begun, or for so long.
pub async fn hold(target: &Target, streams: usize, limit: Duration) -> anyhow::Result<Held> {
    let request = post(target.address, target.path, &question("hello", true));
    let begun = Cell::new(0);
    let client = async || -> anyhow::Result<()> {
        let mut connection = Connection::to(target.address).await?;
        connection.write(&request).await?;
        let (status, head) = connection.answer().await?;
        anyhow::ensure!(status == 200, "status {status}");
        let mut body = head.body_of_answer();
        let mut first = true;
        while connection.piece(&mut body).await?.is_some() {
            begun.set(begun.get() + usize::from(first));
            first = false;
        }
        anyhow::bail!("it ended")
    };
    let mut clients: FuturesUnordered<_> = (0..streams).map(|_| client()).collect();
    let deadline = tokio::time::sleep(limit);
    let full = async {
        while begun.get() < streams {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What was needed to begin them may have gone again.
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let watch = async {
        tokio::select! { () = deadline => {}, () = full => {} }
    };
    tokio::pin!(watch);
    let mut why = None;
    let resident_mb = loop {
        tokio::select! {
            () = &mut watch => break target.tree.resident_mb(),
            Some(ended) = clients.next() => why = why.or(ended.err()),
        }
    };
    let open = begun.get();
    let why = why.map_or_else(|| format!("none began within {limit:?}"), |why| format!("{why:#}"));
    anyhow::ensure!(open > 0, "{why}");
    Ok(Held { open: clients.len().min(open), resident_mb })
}

/// One question and its whole answer.
async fn one(kept: &mut Option<Connection>, address: SocketAddr, request: &[u8]) -> anyhow::Result<()> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::to(address).await?,
    };
    connection.write(request).await?;
    let (status, head) = connection.answer().await?;
    let mut body = head.body_of_answer();
    while connection.piece(&mut body).await?.is_some() {}
    anyhow::ensure!(status == 200, "status {status}");
    if !head.closes {
        *kept = Some(connection);
    }
    Ok(())
}

/// One stream to its end. `seen` is told when each event was sent, as it comes.
async fn events_of(
    kept: &mut Option<Connection>,
    address: SocketAddr,
    request: &[u8],
    mut seen: impl FnMut(u64),
) -> anyhow::Result<()> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::to(address).await?,
    };
    connection.write(request).await?;
    let (status, head) = connection.answer().await?;
    anyhow::ensure!(status == 200, "status {status}");
    let (mut body, mut text) = (head.body_of_answer(), Vec::new());
    while let Some(piece) = connection.piece(&mut body).await? {
        text.extend_from_slice(&piece);
        while let Some(end) = text.windows(2).position(|bytes| bytes == b"\n\n") {
            if let Some(stamp) = stamp_of(&text[..end]) {
                seen(stamp);
            }
            text.drain(..end + 2);
        }
    }
    if !head.closes {
        *kept = Some(connection);
    }
    Ok(())
}

fn micros_since(instant: Instant) -> f64 {
    (clock::now() - instant).as_secs_f64() * 1e6
}
