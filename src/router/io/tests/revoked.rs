//! What runs when its member is revoked, renews, or may no longer: streams, upgraded connections, and who is known.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wiremesh_certs::{Chain, IdentityKey, proof_header};

use super::mesh::*;
use crate::clock;

/// Within this everything is cut: far less than any time-out of a connection.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_member_that_is_revoked_while_it_is_answered_is_cut_off_and_its_work_ends() {
    let mesh = Mesh::new();
    let endless = Endless::start().await;
    let worker = mesh.agent("bob", 3, Service::ocr(endless.address)).await;
    let (key, chain) = mesh.member("carol", 4);
    mesh.speaks(&key);
    let mut by_ingress = ask_ingress(&worker, &key, &chain).await;
    let mut by_overlay = get(format!("http://{}/service/ocr", worker.overlay)).await;
    goes_on(&mut by_ingress).await;
    goes_on(&mut by_overlay).await;

    mesh.revoke(&key);
    worker.router.trust_changed();

    is_cut(by_ingress).await;
    is_cut(by_overlay).await;
    endless.is_left().await;
}

#[tokio::test]
async fn an_idle_connection_of_a_revoked_member_is_closed_too() {
    let mesh = Mesh::new();
    let worker = mesh.agent("bob", 3, None).await;
    let (key, _) = mesh.member("carol", 4);
    mesh.speaks(&key);
    let mut connection = tokio::net::TcpStream::connect(worker.overlay).await.unwrap();
    let asked = format!("GET /health/live HTTP/1.1\r\nhost: {}\r\n\r\n", worker.overlay);
    connection.write_all(asked.as_bytes()).await.unwrap();
    assert!(connection.read(&mut [0; 1024]).await.unwrap() > 0);

    mesh.revoke(&key);
    worker.router.trust_changed();

    let closed = tokio::time::timeout(AT_ONCE, connection.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
}

#[tokio::test]
async fn what_policy_no_longer_lets_a_member_call_is_cut_and_what_it_does_goes_on() {
    let mesh = Mesh::new();
    let endless = Endless::start().await;
    let worker = mesh.agent("bob", 3, Service::ocr(endless.address)).await;
    let (key, chain) = mesh.member_of("carol", 4, &["apps"], DAY);
    let (other, other_chain) = mesh.member_of("dave", 5, &["staff"], DAY);
    mesh.speaks(&other);
    mesh.rule(None, Some(&["apps", "staff"]));
    let mut forbidden = ask_ingress(&worker, &key, &chain).await;
    let mut by_ingress = ask_ingress(&worker, &other, &other_chain).await;
    let mut by_overlay = get(format!("http://{}/service/ocr", worker.overlay)).await;
    goes_on(&mut forbidden).await;

    mesh.rule(None, Some(&["staff"]));
    worker.router.trust_changed();

    is_cut(forbidden).await;
    goes_on(&mut by_ingress).await;
    goes_on(&mut by_overlay).await;
}

#[tokio::test]
async fn a_stream_goes_on_past_the_end_of_a_certificate_that_was_renewed_and_is_cut_at_the_end_of_the_last() {
    let mesh = Mesh::new();
    let endless = Endless::start().await;
    let worker = mesh.agent("bob", 3, Service::ocr(endless.address)).await;
    let short = Duration::from_secs(4);
    let (key, chain) = mesh.member_of("carol", 4, &[], short);
    let ends_at = clock::now() + short;
    let mut answer = ask_ingress(&worker, &key, &chain).await;
    goes_on(&mut answer).await;

    mesh.certify(&key, "carol", 4, &[], 2 * short);
    while clock::now() < ends_at + Duration::from_secs(1) {
        goes_on(&mut answer).await;
    }

    tokio::time::sleep(short).await;
    is_cut(answer).await;
}

#[tokio::test]
async fn the_answer_of_a_worker_that_is_revoked_breaks_off_by_whichever_way_it_comes() {
    let mesh = Mesh::new();
    let endless = Endless::start().await;
    let client = mesh.agent("alice", 2, None).await;
    for (last_byte, way) in [(3, Agent::by_overlay as fn(&Agent) -> _), (4, Agent::by_tunnel)] {
        let worker = mesh.agent(&format!("worker-{last_byte}"), last_byte, Service::ocr(endless.address)).await;
        client.knows([way(&worker)]);
        let mut answer = get(client.url("/service/ocr")).await;
        goes_on(&mut answer).await;

        // Its own agent has not heard of it, or does not care.
        mesh.revoke(&worker.key);
        client.router.trust_changed();

        is_cut(answer).await;
        endless.is_left().await;
    }
}

#[tokio::test]
async fn nobody_waits_for_the_answer_of_a_revoked_worker_or_asks_it_what_became_of_the_call() {
    let mesh = Mesh::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let silent = upstream(move |_: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<Result<Response<Body>, String>>()
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(silent)).await;
    client.knows([worker.by_tunnel()]);
    let asking = tokio::task::spawn(post(client.url("/service/ocr"), text("once")));
    eventually(|| asked.load(Ordering::SeqCst) == 1).await;

    mesh.revoke(&worker.key);
    client.router.trust_changed();

    let answer = tokio::time::timeout(AT_ONCE, asking).await.expect("nobody waits").unwrap();
    assert_eq!((answer.status().as_u16(), said(&answer, "x-wiremesh-executed")), (502, "unknown"));
}

#[tokio::test]
async fn an_upgraded_connection_ends_with_either_member() {
    let mesh = Mesh::new();
    let echo = upstream(async |request: Request<Incoming>| {
        tokio::task::spawn(async move {
            let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let mut byte = [0; 1];
            while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
        });
        Ok(Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(text(""))
            .unwrap())
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    for (last_byte, worker_leaves) in [(3, true), (4, false)] {
        let worker = mesh.agent(&format!("worker-{last_byte}"), last_byte, Service::ocr(echo)).await;
        mesh.speaks(&client.key);
        client.knows([worker.by_overlay()]);
        let request =
            Request::get(client.url("/service/ocr")).header("connection", "upgrade").header("upgrade", "echo");
        let answer = super::mesh::client().request(request.body(text("")).unwrap()).await.unwrap();
        let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();

        let (leaves, hears) = if worker_leaves { (&worker, &client) } else { (&client, &worker) };
        mesh.revoke(&leaves.key);
        hears.router.trust_changed();

        let ended = tokio::time::timeout(AT_ONCE, stream.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}

#[tokio::test]
async fn a_worker_that_is_no_member_any_more_is_no_longer_probed_or_remembered() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let gone = nobody(9).await;
    client.knows([gone.clone()]);
    for _ in 0..3 {
        assert_eq!(get(client.url("/service/ocr")).await.status(), 503);
    }
    assert_eq!(client.router.ejected_ways(), 1);

    client.router.trust_changed();

    assert_eq!(client.router.ejected_ways(), 0);
}

/// An upstream whose answers never end.
struct Endless {
    address: std::net::SocketAddr,
    running: Arc<AtomicUsize>,
}

impl Endless {
    async fn start() -> Endless {
        let running = Arc::new(AtomicUsize::new(0));
        let counted = running.clone();
        let address = upstream(move |_: Request<Incoming>| {
            let counted = counted.clone();
            async move {
                let (pieces, body) = piped();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::task::spawn(async move {
                    while pieces.send(Ok("x".into())).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    counted.fetch_sub(1, Ordering::SeqCst);
                });
                Ok(Response::new(body))
            }
        })
        .await;
        Endless { address, running }
    }

    /// Nobody hears it any more, and it has noticed.
    async fn is_left(&self) {
        eventually(|| self.running.load(Ordering::SeqCst) == 0).await;
    }
}

async fn ask_ingress(worker: &Agent, key: &IdentityKey, chain: &Chain) -> Response<Incoming> {
    let audience = worker.id.to_hex();
    let proof = proof_header(key, chain, &audience, "GET", "/service/ocr", clock::unix(), &mut rand::rng()).unwrap();
    let request = Request::get(format!("http://{}/service/ocr", worker.ingress)).header("authorization", proof);
    client().request(request.body(text("")).unwrap()).await.unwrap()
}

async fn goes_on(answer: &mut Response<Incoming>) {
    assert_eq!(answer.status(), 200);
    assert!(answer.body_mut().frame().await.unwrap().is_ok());
}

/// Whatever was on its way comes first.
async fn is_cut(mut answer: Response<Incoming>) {
    let cut = async { while let Some(Ok(_)) = answer.body_mut().frame().await {} };
    tokio::time::timeout(AT_ONCE, cut).await.expect("the answer is cut");
}

async fn eventually(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(AT_ONCE, waiting).await.expect("it comes true");
}
