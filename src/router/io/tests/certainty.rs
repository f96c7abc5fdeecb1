//! What a caller learns of its call from the worker, and what it does with it: no request is executed twice.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use wiremesh_certs::{Load, NodeId};

use super::{mesh::*, workers::wait_until};
use crate::{clock, router::Worker};

const CALL: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn a_caller_is_told_what_its_call_is_doing() {
    let mesh = Mesh::new();
    let (begun, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = upstream({
        let (begun, finish) = (begun.clone(), finish.clone());
        move |_| {
            let (begun, finish) = (begun.clone(), finish.clone());
            async move {
                begun.notify_one();
                finish.notified().await;
                Ok(Response::new(text("done")))
            }
        }
    })
    .await;
    let worker =
        mesh.agent("bob", 3, Some(Service { name: "ocr", upstream: slow, max_concurrency: 1, queue: 1 })).await;
    let ocr = "ocr".parse().unwrap();
    let taken = worker.services.reserve(&ocr).unwrap().ready().await.unwrap();

    let calling = tokio::task::spawn(call(worker.overlay, CALL));
    wait_until(|| worker.services.occupancy()[0].2 == 1).await;
    assert_eq!(state_of(worker.overlay, CALL).await, "queued");
    drop(taken);
    begun.notified().await;
    assert_eq!(state_of(worker.overlay, CALL).await, "running");
    finish.notify_one();
    assert_eq!(read(calling.await.unwrap()).await, "done");
    wait_until(|| worker.services.occupancy()[0].1 == 0).await;
    assert_eq!(state_of(worker.overlay, CALL).await, "done");

    let _full = [worker.services.reserve(&ocr), worker.services.reserve(&ocr)];
    let other = "fedcba9876543210fedcba9876543210";
    assert_eq!(call(worker.overlay, other).await.status(), 429);
    assert_eq!(state_of(worker.overlay, other).await, "refused");
}

#[tokio::test]
async fn a_call_that_was_asked_about_before_it_came_is_not_executed_when_it_comes() {
    let mesh = Mesh::new();
    let (address, count) = named("there").await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;

    assert_eq!(state_of(worker.overlay, CALL).await, "never-seen");

    assert_eq!(call(worker.overlay, CALL).await.status(), 409);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn only_members_may_ask_about_calls() {
    let worker = Mesh::new().agent("bob", 3, None).await;

    assert_eq!(get(format!("http://{}/calls/{CALL}", worker.ingress)).await.status(), 401);
    assert_eq!(get(format!("http://{}/calls/{CALL}", worker.local)).await.status(), 404);
    assert_eq!(get(format!("http://{}/calls/nonsense", worker.overlay)).await.status(), 400);
}

#[tokio::test]
async fn what_a_worker_says_of_a_lost_call_decides_whether_it_is_repeated() {
    for (state, since_ms, status, executions) in [
        ("never-seen", 60_000, 200, 1),
        ("refused", 0, 200, 1),
        // It restarted after the call was sent: it would not know.
        ("never-seen", 0, 502, 0),
        ("queued", 0, 502, 0),
        ("running", 0, 502, 0),
        ("done", 0, 502, 0),
    ] {
        let mesh = Mesh::new();
        let client = mesh.agent("alice", 2, None).await;
        let (address, count) = named("good").await;
        let good = mesh.agent("carol", 4, Service::ocr(address)).await;
        // Takes the body, and breaks off.
        let bad = fake_agent(Arc::new(move |request: Request<Incoming>| {
            async move {
                if request.uri().path().starts_with("/calls/") {
                    return Ok(word(state, since_ms));
                }
                request.into_body().collect().await.map_err(|e| e.to_string())?;
                Err("broken".into())
            }
            .boxed()
        }))
        .await;
        client.knows([bad, good.by_tunnel()]);

        let answer = post(client.url("/service/ocr"), text("body")).await;

        assert_eq!(answer.status(), status, "{state} {since_ms}");
        assert_eq!(count.load(Ordering::SeqCst), executions, "{state} {since_ms}");
        if status == 502 {
            assert_eq!(said(&answer, "x-wiremesh-executed"), "unknown");
        }
    }
}

#[tokio::test]
async fn a_call_its_worker_never_saw_although_the_connection_lives_is_repeated_by_another() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let good = mesh.agent("carol", 4, Service::ocr(named("good").await.0)).await;
    let forgetful = fake_agent(Arc::new(|request: Request<Incoming>| {
        async move {
            match request.uri().path() {
                "/health/live" => Ok(agents(text("live\n"))),
                path if path.starts_with("/calls/") => Ok(word("never-seen", 60_000)),
                _ => std::future::pending().await,
            }
        }
        .boxed()
    }))
    .await;
    client.knows([forgetful, good.by_tunnel()]);

    let answer = post(client.url("/service/ocr"), text("body")).await;

    assert_eq!(read(answer).await, "good");
}

#[tokio::test]
async fn an_agent_that_says_nothing_of_a_call_twice_is_wedged_and_one_that_lost_the_answer_is_not_waited_for() {
    for (answers, asked) in [(None, 2), (Some("done"), 2)] {
        let client = Mesh::new().agent("alice", 2, None).await;
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = questions.clone();
        let wedged = fake_agent(Arc::new(move |request: Request<Incoming>| {
            let counted = counted.clone();
            async move {
                match request.uri().path() {
                    "/health/live" => Ok(agents(text("live\n"))),
                    path if path.starts_with("/calls/") => {
                        counted.fetch_add(1, Ordering::SeqCst);
                        match answers {
                            Some(state) => Ok(word(state, 0)),
                            None => std::future::pending().await,
                        }
                    }
                    _ => std::future::pending().await,
                }
            }
            .boxed()
        }))
        .await;
        client.knows([wedged]);

        let answer = post(client.url("/service/ocr"), text("body")).await;

        assert_eq!((answer.status().as_u16(), said(&answer, "x-wiremesh-executed")), (502, "unknown"));
        assert!(questions.load(Ordering::SeqCst) >= asked);
    }
}

#[tokio::test]
async fn of_a_large_body_nothing_is_sent_before_the_worker_has_taken_the_call() {
    const LARGE: usize = 4 << 20;
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (seen, seen_when_asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (counted, noted) = (seen.clone(), seen_when_asked.clone());
    let worker = fake_agent(Arc::new(move |request: Request<Incoming>| {
        let (counted, noted) = (counted.clone(), noted.clone());
        async move {
            if request.uri().path().starts_with("/calls/") {
                let mut noted = noted.lock().unwrap();
                noted.push(counted.load(Ordering::SeqCst));
                return Ok(word(if noted.len() < 3 { "queued" } else { "running" }, 0));
            }
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                let bytes = frame.map_err(|e| e.to_string())?.into_data().map_or(0, |data| data.len());
                counted.fetch_add(bytes, Ordering::SeqCst);
            }
            Ok(agents(text("taken")))
        }
        .boxed()
    }))
    .await;
    client.knows([worker]);

    let answer = post(client.url("/service/ocr"), text(vec![7; LARGE])).await;

    assert_eq!(read(answer).await, "taken");
    assert_eq!(*seen_when_asked.lock().unwrap(), [0, 0, 0]);
    assert_eq!(seen.load(Ordering::SeqCst), LARGE);
}

#[tokio::test]
async fn a_large_body_refused_by_one_worker_goes_whole_to_the_next() {
    const LARGE: usize = 4 << 20;
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let length = upstream(async |request: Request<Incoming>| {
        let body = request.into_body().collect().await.map_err(|e| e.to_string())?;
        Ok(Response::new(text(body.to_bytes().len().to_string())))
    })
    .await;
    let full = Service { name: "ocr", upstream: length, max_concurrency: 1, queue: 0 };
    let full = mesh.agent("bob", 3, Some(full)).await;
    let _taken = full.services.reserve(&"ocr".parse().unwrap()).unwrap();
    let free = mesh.agent("carol", 4, Service::ocr(length)).await;
    client.knows([full.by_overlay(), free.by_tunnel()]);

    let answer = post(client.url("/service/ocr"), text(vec![7; LARGE])).await;

    assert_eq!(said(&answer, "x-wiremesh-worker"), "carol");
    assert_eq!(read(answer).await, LARGE.to_string());
    client.knows([free.by_tunnel()]);
    assert_eq!(read(post(client.url("/service/ocr"), text(vec![7; LARGE])).await).await, LARGE.to_string());
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_told_once_a_worker_has_taken_the_call() {
    let mesh = Mesh::new();
    let clients = [mesh.agent("alice", 2, None).await, mesh.agent("carol", 4, None).await];
    let one = Service { name: "ocr", upstream: named("there").await.0, max_concurrency: 1, queue: 0 };
    let worker = mesh.agent("bob", 3, Some(one)).await;
    let taken = || worker.services.reserve(&"ocr".parse().unwrap()).unwrap();

    let [by_overlay, by_tunnel] = &clients;
    by_overlay.knows([worker.by_overlay()]);
    by_tunnel.knows([worker.by_tunnel()]);
    for asked in [&worker, by_overlay, by_tunnel] {
        let (mut connection, told) = expecting(asked.local).await;
        assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
        connection.write_all(b"hello").await.unwrap();
        let answer = said_next(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        wait_until(|| worker.services.occupancy()[0].1 == 0).await;

        let taken = taken();
        let (_, refused) = expecting(asked.local).await;
        assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
        drop(taken);
    }
}

#[tokio::test]
async fn a_draining_agents_clients_are_answered_by_others_and_what_waits_in_its_line_is_finished() {
    let mesh = Mesh::new();
    let one = Service { name: "ocr", upstream: named("first").await.0, max_concurrency: 1, queue: 1 };
    let first = mesh.agent("bob", 3, Some(one)).await;
    let second = mesh.agent("carol", 4, Service::ocr(named("second").await.0)).await;
    first.knows([second.by_overlay()]);
    second.knows([first.by_overlay()]);
    let taken = first.services.reserve(&"ocr".parse().unwrap()).unwrap().ready().await.unwrap();
    let waiting = tokio::task::spawn(post(first.url("/service/ocr"), text("x")));
    wait_until(|| first.services.occupancy()[0].2 == 1).await;

    first.router.drain();

    assert_eq!(said(&post(first.url("/service/ocr"), text("x")).await, "x-wiremesh-worker"), "carol");
    let refused = call(first.overlay, CALL).await;
    assert_eq!((refused.status().as_u16(), said(&refused, "x-wiremesh-executed")), (503, "no"));
    assert_eq!(json(refused).await["error"]["type"], "draining");
    assert_eq!(state_of(first.overlay, CALL).await, "refused");
    drop(taken);
    assert_eq!(read(waiting.await.unwrap()).await, "first");
}

#[tokio::test]
async fn a_request_from_afar_leaves_the_line_with_its_client() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, count) = named("there").await;
    let one = Service { name: "ocr", upstream: address, max_concurrency: 1, queue: 1 };
    let worker = mesh.agent("bob", 3, Some(one)).await;
    let taken = worker.services.reserve(&"ocr".parse().unwrap()).unwrap().ready().await.unwrap();

    for known in [worker.by_overlay(), worker.by_tunnel()] {
        client.knows([known]);
        let asking = tokio::task::spawn(post(client.url("/service/ocr"), text("x")));
        wait_until(|| worker.services.occupancy()[0].2 == 1).await;
        asking.abort();
        wait_until(|| worker.services.occupancy()[0].2 == 0).await;
    }

    drop(taken);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn repeats_end_with_their_budget() {
    let client = Mesh::new().agent("alice", 2, None).await;
    let refuses = || async {
        fake_agent(Arc::new(|_| {
            let refusal = Response::builder().status(503).header("x-wiremesh-worker", "fake");
            std::future::ready(Ok(refusal.header("x-wiremesh-executed", "no").body(text("")).unwrap())).boxed()
        }))
        .await
    };
    client.knows([refuses().await, Worker { id: NodeId([78; 32]), ..refuses().await }]);

    for _ in 0..100 {
        assert_eq!(post(client.url("/service/ocr"), text("x")).await.status(), 503);
    }

    let counters = client.router.counters();
    assert_eq!(counters.retries.get() + counters.retries_denied.get(), 100);
    assert!(counters.retries_denied.get() > 0, "{} repeats", counters.retries.get());
}

/// A POST for the service `ocr` as another agent sends it.
async fn call(worker: SocketAddr, call: &str) -> Response<Incoming> {
    let request =
        Request::post(format!("http://{worker}/service/ocr")).header("x-wiremesh-via", format!("alice;{call}"));
    client().request(request.body(text("x")).unwrap()).await.unwrap()
}

async fn state_of(worker: SocketAddr, call: &str) -> String {
    let told = json(get(format!("http://{worker}/calls/{call}")).await).await;
    assert_eq!(told["call"], call);
    assert!(told["since_ms"].is_u64());
    told["state"].as_str().unwrap().to_owned()
}

/// Sends the head of a request that waits to be told to go on with its body, and reads what is said to it.
async fn expecting(agent: SocketAddr) -> (TcpStream, String) {
    let mut connection = TcpStream::connect(agent).await.unwrap();
    let head =
        format!("POST /service/ocr HTTP/1.1\r\nhost: {agent}\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let said = said_next(&mut connection).await;
    (connection, said)
}

async fn said_next(connection: &mut TcpStream) -> String {
    let mut buffer = [0; 4096];
    let read = connection.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

fn word(state: &str, since_ms: u64) -> Response<Body> {
    agents(text(format!(r#"{{"call":"{CALL}","state":"{state}","since_ms":{since_ms}}}"#)))
}

/// As an agent answers.
fn agents(body: Body) -> Response<Body> {
    Response::builder().header("x-wiremesh-worker", "fake").body(body).unwrap()
}

type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, String>> + Send + Sync>;

/// What looks like an agent of the mesh, and does as `handler` says. What that returns an error for resets its stream.
pub async fn fake_agent(handler: Handler) -> Worker {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let handler = handler.clone();
            let service = service_fn(move |request| handler(request));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::task::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    Worker {
        id: NodeId([77; 32]),
        name: "fake".parse().unwrap(),
        overlay: Some(address),
        tunnel: None,
        load: Load::default(),
        published_at: clock::unix(),
    }
}
