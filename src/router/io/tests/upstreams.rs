//! Connections to the upstream: kept, left when they are closed, and no obstacle to a client that sends before it reads.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::mesh::*;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_next_request_goes_over_the_same_connection_however_the_answer_ended() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let (address, accepted) = saying(answer).await;
        let agent = Mesh::new().agent("alice", 2, Service::ocr(address)).await;

        for _ in 0..3 {
            let body = read(post(agent.url("/service/ocr"), text("x")).await).await;
            assert_eq!(body, if answer.contains("204") { "" } else { "hello" });
        }

        assert_eq!(accepted.load(Ordering::SeqCst), 1, "{answer}");
    }
}

#[tokio::test]
async fn a_connection_that_its_upstream_has_closed_carries_no_other_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let closed = Arc::new(Notify::new());
    let closes = closed.clone();
    tokio::task::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            // It does not say that it will close.
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            drop(stream);
            closes.notify_one();
        }
    });
    let agent = Mesh::new().agent("alice", 2, Service::ocr(address)).await;

    for _ in 0..5 {
        let answer = post(agent.url("/service/ocr"), text("x")).await;
        assert_eq!((answer.status().as_u16(), read(answer).await.as_str()), (200, "ok"));
        closed.notified().await;
        // The agent hears of it as soon as its runtime looks at its sockets.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_does_not_stand_in_its_own_way() {
    /// More than the buffers of all the sockets on the way.
    const BYTES: usize = 24 * 1024 * 1024;
    const UPLOADED: u8 = 0xff;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let received = tokio::task::spawn(async move {
            let (mut buffer, mut uploaded) = (vec![0; 64 * 1024], 0);
            while uploaded < BYTES {
                let read = reading.read(&mut buffer).await.unwrap();
                // No byte of a head is like those of the body.
                uploaded += buffer[..read].iter().filter(|byte| **byte == UPLOADED).count();
            }
        });
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\n\r\n");
        writing.write_all(head.as_bytes()).await.unwrap();
        writing.write_all(&vec![b'y'; BYTES - 1]).await.unwrap();
        // An answer that ends before its request has come may cut the rest of both off.
        received.await.unwrap();
        writing.write_all(b"y").await.unwrap();
        std::future::pending::<()>().await;
    });
    let agent = Mesh::new().agent("alice", 2, Service::ocr(address)).await;

    let mut client = TcpStream::connect(agent.local).await.unwrap();
    let head = format!("POST /service/ocr HTTP/1.1\r\nhost: localhost\r\ncontent-length: {BYTES}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let sent = tokio::time::timeout(SOON, client.write_all(&vec![UPLOADED; BYTES])).await;
    sent.expect("the upload goes on while the answer waits").unwrap();

    let mut answer = vec![0; BYTES];
    let read = tokio::time::timeout(SOON, BufReader::new(client).read_exact(&mut answer)).await;
    assert_eq!(read.expect("the answer comes").unwrap(), BYTES);
}

/// An upstream that gives the same answer to every request, which fits one segment, and counts its connections.
async fn saying(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = accepted.clone();
    tokio::task::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::task::spawn(async move {
                let mut request = [0; 4096];
                let mut held = 0;
                while let Ok(read @ 1..) = stream.read(&mut request[held..]).await {
                    held += read;
                    if request[..held].ends_with(b"\r\n\r\nx") {
                        held = 0;
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    (address, accepted)
}
