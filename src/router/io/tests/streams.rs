//! Bodies and answers as they come, how they end, and what it costs when nobody reads them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::mesh::*;

/// Far more than all windows and buffers on the way; far less than the bodies.
const FLAT: usize = 48 * 1024 * 1024;

#[tokio::test]
async fn bodies_and_answers_pass_piece_by_piece_in_both_directions_at_once() {
    let mesh = Mesh::new();
    let echo = upstream(async |request: Request<Incoming>| {
        Ok(Response::new(BodyExt::boxed(request.into_body().map_err(|e| e.to_string()))))
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(echo)).await;

    for known in [worker.by_overlay(), worker.by_tunnel()] {
        client.knows([known]);
        let (pieces, body) = piped();
        pieces.send(Ok("0".into())).await.unwrap();
        let mut answer = post(client.url("/service/ocr"), body).await.into_body();

        // Every piece is sent only after the one before it came back.
        for number in 1..20 {
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), (number - 1).to_string());
            pieces.send(Ok(number.to_string().into())).await.unwrap();
        }
        drop(pieces);
        assert_eq!(answer.collect().await.unwrap().to_bytes(), "19");
    }
}

#[tokio::test]
async fn an_upload_nobody_reads_stops_and_is_not_stored() {
    let mesh = Mesh::new();
    let deaf = upstream(async |request: Request<Incoming>| {
        std::future::pending::<()>().await;
        drop(request);
        Err("never".into())
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(deaf)).await;
    client.knows([worker.by_overlay()]);
    let (pieces, body) = piped();
    let asking = tokio::task::spawn(post(client.url("/service/ocr"), body));

    let sent = send_until_stuck(&pieces).await;

    assert!(sent < FLAT, "{sent} bytes were taken");
    asking.abort();
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_worker_and_nobody_else() {
    let mesh = Mesh::new();
    let (pieces, body) = piped();
    let (body, other) = (Arc::new(Mutex::new(Some(body))), named("quick").await.0);
    let endless = upstream(move |_| {
        let body = body.lock().unwrap().take();
        async move {
            match body {
                Some(body) => Ok(Response::new(body)),
                None => Ok(get(format!("http://{other}/"))
                    .await
                    .map(|body| BodyExt::boxed(body.map_err(|e| e.to_string())))),
            }
        }
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(endless)).await;
    client.knows([worker.by_overlay()]);
    let (answer, sent) = tokio::join!(get(client.url("/service/ocr")), send_until_stuck(&pieces));

    assert!(sent < FLAT, "{sent} bytes were taken");
    // Over the same connection between the agents.
    assert_eq!(read(get(client.url("/service/ocr")).await).await, "quick");
    drop(answer);
}

#[tokio::test]
async fn large_bodies_arrive_whole_both_ways() {
    let mesh = Mesh::new();
    let sum = upstream(async |request: Request<Incoming>| {
        let mut body = request.into_body();
        let mut sum = 0u64;
        while let Some(frame) = body.frame().await {
            sum += frame
                .map_err(|e| e.to_string())?
                .into_data()
                .map_or(0, |data| data.iter().map(|b| u64::from(*b)).sum());
        }
        let (pieces, answer) = piped();
        tokio::task::spawn(async move {
            for _ in 0..LARGE {
                let _ = pieces.send(Ok(Bytes::from(vec![1; 1024 * 1024]))).await;
            }
        });
        Ok(Response::builder().header("x-sum", sum.to_string()).body(answer).unwrap())
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(sum)).await;
    client.knows([worker.by_overlay()]);
    let (pieces, body) = piped();
    tokio::task::spawn(async move {
        for _ in 0..LARGE {
            let _ = pieces.send(Ok(Bytes::from(vec![1; 1024 * 1024]))).await;
        }
    });

    let answer = post(client.url("/service/ocr"), body).await;

    assert_eq!(said(&answer, "x-sum"), (LARGE << 20).to_string());
    let mut body = answer.into_body();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert_eq!(received, LARGE << 20);
}

const LARGE: usize = 64;

#[tokio::test]
async fn a_stream_of_events_that_breaks_says_so_and_never_ends_cleanly() {
    let mesh = Mesh::new();
    let (client, worker, pieces) = streaming(&mesh, "text/event-stream").await;

    for asked in [&worker, &client] {
        let (answer, ()) = tokio::join!(get(asked.url("/service/ocr")), async {
            pieces.send(Ok("data: 1\n\nda".into())).await;
            pieces.send(Err("dead".into())).await;
        });
        let (text, end) = until_the_end(answer).await;

        assert!(end.is_err(), "ended cleanly after {text}");
        assert!(text.starts_with("data: 1\n\nda\nevent: error\ndata: {\"error\""), "{text}");
        assert_eq!(text.matches("event: error").count(), 1);
        pieces.renew().await;
    }
    assert_eq!(client.router.counters().interrupted_answers.get(), 1);
}

#[tokio::test]
async fn any_other_answer_that_breaks_is_broken_for_the_client_too() {
    let mesh = Mesh::new();
    let (client, worker, pieces) = streaming(&mesh, "application/x-ndjson").await;

    for asked in [&worker, &client] {
        let (answer, ()) = tokio::join!(get(asked.url("/service/ocr")), async {
            pieces.send(Ok("{\"a\":1}\n".into())).await;
            pieces.send(Err("dead".into())).await;
        });
        let (text, end) = until_the_end(answer).await;

        assert!(end.is_err());
        assert_eq!(text, "{\"a\":1}\n");
        pieces.renew().await;
    }
}

#[tokio::test]
async fn an_answer_that_ends_before_its_end_is_broken_by_every_way() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;

    for head in [
        "content-length: 100",
        "transfer-encoding: chunked",
        "content-type: text/event-stream\r\ntransfer-encoding: chunked",
    ] {
        let cut = closing_after(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n")).await;
        let worker = mesh.agent("bob", 3, Service::ocr(cut)).await;
        for (asked, known) in
            [(&worker, None), (&client, Some(worker.by_overlay())), (&client, Some(worker.by_tunnel()))]
        {
            client.knows(known);
            let request = Request::post(asked.url("/service/ocr")).body(super::mesh::text("x")).unwrap();
            // What broke off at once may be broken before its head has left.
            let Ok(answer) = super::mesh::client().request(request).await else {
                assert!(!head.contains("event-stream"));
                continue;
            };
            let (text, end) = until_the_end(answer).await;

            assert!(end.is_err(), "{head}: ended cleanly after {text}");
            assert_eq!(text.contains("event: error"), head.contains("event-stream"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_its_worker_resets_is_broken_whatever_the_reason() {
    let client = Mesh::new().agent("alice", 2, None).await;
    for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR, h2::Reason::REFUSED_STREAM] {
        let resets = resetting(reason).await;
        client.knows([resets]);

        let (text, end) = until_the_end(post(client.url("/service/ocr"), super::mesh::text("x")).await).await;

        assert_eq!(text, "hello");
        assert!(end.is_err(), "{reason:?}: ended cleanly");
    }
}

#[tokio::test]
async fn a_worker_that_vanishes_in_mid_stream_is_noticed() {
    let mesh = Mesh::new();
    let (client, worker, pieces) = streaming(&mesh, "text/event-stream").await;
    let cable = Cable::to(worker.overlay).await;
    client.knows([crate::router::Worker { overlay: Some(cable.end), ..worker.by_overlay() }]);
    let (answer, ()) = tokio::join!(get(client.url("/service/ocr")), pieces.send(Ok("data: 1\n\n".into())));

    cable.cut();
    let (text, end) = tokio::time::timeout(Duration::from_secs(20), until_the_end(answer)).await.unwrap();

    assert!(end.is_err() && text.contains("event: error"), "{text}");
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_work_at_the_upstream_with_it() {
    let mesh = Mesh::new();
    let (client, worker, pieces) = streaming(&mesh, "text/plain").await;
    let receiver_gone = async || {
        let sender = pieces.sender.lock().await;
        tokio::time::timeout(Duration::from_secs(5), sender.closed()).await.unwrap();
    };

    for asked in [&worker, &client] {
        let (answer, ()) = tokio::join!(get(asked.url("/service/ocr")), pieces.send(Ok("x".into())));
        drop(answer);
        receiver_gone().await;
        pieces.renew().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_takes_the_work_with_it_too() {
    struct Gone(Arc<tokio::sync::Notify>, Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let mesh = Mesh::new();
    let (gone, begun) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (began, notify) = (Arc::new(tokio::sync::Notify::new()), gone.clone());
    let slow = upstream({
        let began = began.clone();
        move |_| {
            let watch = Gone(notify.clone(), begun.clone());
            let began = began.clone();
            async move {
                watch.1.fetch_add(1, Ordering::SeqCst);
                began.notify_one();
                std::future::pending::<()>().await;
                drop(watch);
                Err("never".into())
            }
        }
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(slow)).await;
    client.knows([worker.by_overlay()]);

    for asked in [&worker, &client] {
        let asking = tokio::task::spawn(post(asked.url("/service/ocr"), text("x")));
        began.notified().await;
        asking.abort();
        tokio::time::timeout(Duration::from_secs(5), gone.notified()).await.unwrap();
    }
    assert_eq!(client.router.counters().cancelled.get(), 1);
    assert_eq!(worker.services.occupancy()[0].1, 0);
}

#[tokio::test]
async fn an_upgraded_connection_passes_bytes_both_ways_on_every_path() {
    let mesh = Mesh::new();
    let echo = upstream(async |mut request: Request<Incoming>| {
        assert_eq!(request.headers()[header::UPGRADE], "echo");
        let turn = hyper::upgrade::on(&mut request);
        tokio::task::spawn(async move {
            let mut stream = TokioIo::new(turn.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..read].to_ascii_uppercase()).await.unwrap();
            }
        });
        let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        Ok(answer.header("sec-websocket-accept", "yes").body(text("")).unwrap())
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(echo)).await;

    for (asked, known) in [(&worker, None), (&client, Some(worker.by_overlay())), (&client, Some(worker.by_tunnel()))] {
        client.knows(known);
        let request = Request::get(asked.url("/service/ocr/ws"))
            .header("connection", "Upgrade")
            .header("upgrade", "echo")
            .body(text(""))
            .unwrap();
        let answer = super::mesh::client().request(request).await.unwrap();
        assert_eq!(answer.status(), 101);
        assert_eq!((said(&answer, "upgrade"), said(&answer, "sec-websocket-accept")), ("echo", "yes"));
        let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());

        for word in ["hello", "again"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            let mut back = [0; 5];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, word.to_ascii_uppercase().as_bytes());
        }
    }
}

/// The pieces of what an upstream answers next.
struct Pieces {
    sender: tokio::sync::Mutex<tokio::sync::mpsc::Sender<Result<Bytes, String>>>,
    body: Arc<Mutex<Option<Body>>>,
}

impl Pieces {
    async fn send(&self, piece: Result<Bytes, String>) {
        self.sender.lock().await.send(piece).await.unwrap();
    }

    /// The upstream's next answer has new pieces.
    async fn renew(&self) {
        let (sender, body) = piped();
        *self.body.lock().unwrap() = Some(body);
        *self.sender.lock().await = sender;
    }
}

/// An agent, a worker it knows, and the pieces of what the worker's upstream answers next.
async fn streaming(mesh: &Mesh, kind: &'static str) -> (Agent, Agent, Pieces) {
    let (sender, body) = piped();
    let pieces = Pieces { sender: tokio::sync::Mutex::new(sender), body: Arc::new(Mutex::new(Some(body))) };
    let bodies = pieces.body.clone();
    let address = upstream(move |_| {
        let body = bodies.lock().unwrap().take().unwrap();
        async move { Ok(Response::builder().header(header::CONTENT_TYPE, kind).body(body).unwrap()) }
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    client.knows([worker.by_overlay()]);
    (client, worker, pieces)
}

async fn until_the_end(answer: Response<Incoming>) -> (String, Result<(), hyper::Error>) {
    let mut body = answer.into_body();
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text.push_str(std::str::from_utf8(&frame.into_data().unwrap_or_default()).unwrap()),
            Err(error) => return (text, Err(error)),
        }
    }
    (text, Ok(()))
}

/// An upstream that says this, and closes.
async fn closing_after(said: String) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(said.as_bytes()).await;
        }
    });
    address
}

/// An agent that begins its answers and resets them.
async fn resetting(reason: h2::Reason) -> crate::router::Worker {
    let worker = nobody(9).await;
    let listener = tokio::net::TcpListener::bind(worker.overlay.unwrap()).await.unwrap();
    tokio::task::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head = Response::builder().header("x-wiremesh-worker", "bob").body(()).unwrap();
                    let mut body = respond.send_response(head, false).unwrap();
                    body.send_data(Bytes::from("hello"), false).unwrap();
                    tokio::task::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        body.send_reset(reason);
                    });
                }
            });
        }
    });
    worker
}

/// Sends a mebibyte at a time until nobody takes one for half a second.
async fn send_until_stuck(pieces: &tokio::sync::mpsc::Sender<Result<Bytes, String>>) -> usize {
    let mut sent = 0;
    let piece = Bytes::from(vec![7; 1024 * 1024]);
    while sent < 2 * FLAT
        && let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(500), pieces.send(Ok(piece.clone()))).await
    {
        sent += piece.len();
    }
    sent
}
