//! Who has a place at a service and does nothing, while others want one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::mesh::*;
use crate::{clock, router::STALLED_AFTER};

#[tokio::test]
async fn members_whose_bodies_do_not_come_lose_their_places_when_somebody_wants_one() {
    let mesh = Mesh::new();
    let agent = mesh.agent("bob", 3, crowded(named("there").await.0)).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        stalled.push(
            says(agent.overlay, "POST /service/ocr HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nx").await,
        );
    }
    until(|| occupancy(&agent) == (2, 0)).await;

    a_minute_later(&agent);
    assert_eq!(occupancy(&agent), (2, 0), "nobody wants their places");
    let asking = tokio::task::spawn(get(agent.url("/service/ocr")));
    until(|| occupancy(&agent) == (2, 1)).await;
    agent.router.shared.stalls.look(clock::now());
    assert_eq!(occupancy(&agent), (2, 1), "a minute is not over");

    until(|| {
        a_minute_later(&agent);
        asking.is_finished()
    })
    .await;
    assert_eq!(read(asking.await.unwrap()).await, "there");
    until(|| {
        a_minute_later(&agent);
        occupancy(&agent).0 <= 1
    })
    .await;
    let mut told = String::new();
    for mut stream in stalled {
        let mut said = vec![0; 4096];
        if let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut said)).await {
            told.push_str(&String::from_utf8_lossy(&said[..read]));
        }
    }
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("client_stalled"), "{told}");
    assert!(told.contains("x-wiremesh-executed: unknown"), "{told}");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_place_and_its_answer_never_ends_cleanly() {
    struct Open(Arc<AtomicUsize>);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let open = Arc::new(AtomicUsize::new(0));
    let counted = open.clone();
    let endless = upstream(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let open = Open(counted.clone());
        let pieces = futures::stream::repeat_with(move || {
            let _open = &open;
            Ok::<_, String>(Frame::data(Bytes::from_static(&[b'x'; 65536])))
        });
        async move { Ok(Response::new(BodyExt::boxed(StreamBody::new(pieces)))) }
    })
    .await;
    let mesh = Mesh::new();
    let agent = mesh.agent("bob", 3, crowded(endless)).await;
    let mut unread = Vec::new();
    for _ in 0..2 {
        unread.push(says(agent.overlay, "GET /service/ocr HTTP/1.1\r\nhost: x\r\n\r\n").await);
    }
    until(|| open.load(Ordering::SeqCst) == 2).await;
    // What is on the way has filled all there is between them.
    tokio::time::sleep(Duration::from_millis(300)).await;

    a_minute_later(&agent);
    assert_eq!(occupancy(&agent), (2, 0), "a reader that pauses holds nobody up");
    let asking = tokio::task::spawn(get(agent.url("/service/ocr")));
    until(|| occupancy(&agent) == (2, 1)).await;
    until(|| {
        a_minute_later(&agent);
        asking.is_finished()
    })
    .await;

    assert_eq!(asking.await.unwrap().status(), 200);
    until(|| open.load(Ordering::SeqCst) <= 1).await;
    let mut ends = Vec::new();
    for stream in &mut unread {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        ends.push(read.is_ok() && answer.starts_with(b"HTTP/1.1 200 ") && !answer.ends_with(b"0\r\n\r\n"));
    }
    assert!(ends.contains(&true), "one was cut, in the middle of its answer");
}

#[tokio::test]
async fn who_waits_for_its_answer_or_has_an_upgraded_connection_keeps_its_place_however_long() {
    let slow = upstream(async |mut request: Request<Incoming>| {
        if !request.headers().contains_key("upgrade") {
            request.into_body().collect().await.map_err(|error| error.to_string())?;
            return std::future::pending().await;
        }
        let turn = hyper::upgrade::on(&mut request);
        tokio::task::spawn(async move {
            let _open = turn.await;
            std::future::pending::<()>().await;
        });
        let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        Ok(answer.body(text("")).unwrap())
    })
    .await;
    let mesh = Mesh::new();
    let agent = mesh.agent("bob", 3, crowded(slow)).await;
    let _silent = says(agent.overlay, "POST /service/ocr HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").await;
    let upgrade = "GET /service/ocr HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let mut upgraded = says(agent.overlay, upgrade).await;
    upgraded.read_exact(&mut [0; 64]).await.unwrap();
    let _waits = tokio::task::spawn(get(agent.url("/service/ocr")));
    until(|| occupancy(&agent) == (2, 1)).await;

    for _ in 0..20 {
        a_minute_later(&agent);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert_eq!(occupancy(&agent), (2, 1));
}

/// Two at once, and two more may wait.
fn crowded(upstream: std::net::SocketAddr) -> Option<Service> {
    Some(Service { name: "ocr", upstream, max_concurrency: 2, queue: 2 })
}

/// A connection on which this was sent.
async fn says(to: std::net::SocketAddr, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream
}

fn a_minute_later(agent: &Agent) {
    agent.router.shared.stalls.look(clock::now() + STALLED_AFTER);
}

/// How many requests run, and how many wait.
fn occupancy(agent: &Agent) -> (usize, usize) {
    let (_, running, waiting) = agent.services.occupancy()[0];
    (running, waiting)
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it comes to be so");
}
