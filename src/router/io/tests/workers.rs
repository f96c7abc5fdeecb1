//! Workers that are gone, full, silent or slow, and what becomes of the request.

use std::{sync::atomic::Ordering, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;

use super::mesh::*;
use crate::router::Worker;

#[tokio::test]
async fn a_worker_that_is_not_there_is_replaced_in_the_same_request_and_forgotten() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, count) = named("there").await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    let gone = nobody(9).await;

    for _ in 0..20 {
        client.knows([gone.clone(), worker.by_overlay()]);
        assert_eq!(read(post(client.url("/service/ocr"), text("body")).await).await, "there");
    }

    assert_eq!(count.load(Ordering::SeqCst), 20);
    assert_eq!(client.router.counters().forwarded.get(), 20);
    assert!(client.directory.forgotten.lock().unwrap().iter().all(|id| *id == gone.id));
    // Three failures close it; before, each makes it less likely to be chosen.
    assert!((1..=3).contains(&client.router.counters().retries.get()));
}

#[tokio::test]
async fn if_nobody_is_reached_it_was_not_executed() {
    let client = Mesh::new().agent("alice", 2, None).await;
    client.knows([nobody(9).await, nobody(10).await]);

    let answer = post(client.url("/service/ocr"), text("body")).await;

    assert_eq!((answer.status().as_u16(), said(&answer, "x-wiremesh-executed")), (503, "no"));
    assert_eq!(json(answer).await["error"]["type"], "no_worker_reached");
}

#[tokio::test]
async fn what_may_have_been_executed_is_not_repeated_elsewhere_unless_it_is_idempotent() {
    let mesh = Mesh::new();
    let dies = upstream(async |request: Request<Incoming>| {
        http_body_util::BodyExt::collect(request.into_body()).await.map_err(|e| e.to_string())?;
        Err("dead".into())
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let bad = mesh.agent("bob", 3, Service::ocr(dies)).await;
    let (address, count) = named("good").await;
    let good = mesh.agent("carol", 4, Service::ocr(address)).await;
    let busy = Worker { load: wiremesh_certs::Load::from_share(1.0), ..good.by_overlay() };

    client.knows([bad.worker()]);
    let answer = post(client.url("/service/ocr"), text("body")).await;
    assert_eq!((answer.status().as_u16(), said(&answer, "x-wiremesh-executed")), (502, "unknown"));
    assert_eq!(json(answer).await["error"]["type"], "upstream_interrupted");

    client.knows([bad.worker(), busy]);
    for _ in 0..5 {
        assert_eq!(read(get(client.url("/service/ocr")).await).await, "good");
    }
    assert_eq!(count.load(Ordering::SeqCst), 5);
    // The worker was there all the time.
    assert_eq!(client.router.ejected_ways(), 0);
}

#[tokio::test]
async fn a_full_worker_is_followed_by_another_and_if_all_are_full_the_client_is_told_when_to_return() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, _) = named("full").await;
    let full = Service { name: "ocr", upstream: address, max_concurrency: 1, queue: 0 };
    let full = mesh.agent("bob", 3, Some(full)).await;
    let free = mesh.agent("carol", 4, Service::ocr(named("free").await.0)).await;
    let ocr = "ocr".parse().unwrap();
    let _taken = full.services.reserve(&ocr).unwrap();

    client.knows([full.by_overlay()]);
    let answer = post(client.url("/service/ocr"), text("x")).await;
    assert_eq!((answer.status().as_u16(), said(&answer, "x-wiremesh-executed")), (429, "no"));
    assert_eq!(said(&answer, "retry-after"), "1");

    client.knows([full.by_overlay(), free.by_overlay()]);
    for _ in 0..10 {
        assert_eq!(read(post(client.url("/service/ocr"), text("x")).await).await, "free");
    }
    // Full here, free elsewhere.
    full.knows([free.by_overlay()]);
    assert_eq!(said(&post(full.url("/service/ocr"), text("x")).await, "x-wiremesh-worker"), "carol");
    full.knows([]);
    assert_eq!(post(full.url("/service/ocr"), text("x")).await.status(), 429);
    assert!(client.directory.forgotten.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_request_waits_in_line_and_leaves_it_with_its_client() {
    let mesh = Mesh::new();
    let one = Service { name: "ocr", upstream: named("here").await.0, max_concurrency: 1, queue: 1 };
    let agent = mesh.agent("alice", 2, Some(one)).await;
    let ocr = "ocr".parse().unwrap();
    let taken = agent.services.reserve(&ocr).unwrap().ready().await.unwrap();

    let leaving = tokio::task::spawn(get(agent.url("/service/ocr")));
    wait_until(|| agent.services.occupancy()[0].2 == 1).await;
    leaving.abort();
    wait_until(|| agent.services.occupancy()[0].2 == 0).await;
    let waiting = tokio::task::spawn(get(agent.url("/service/ocr")));
    wait_until(|| agent.services.occupancy()[0].2 == 1).await;
    drop(taken);

    assert_eq!(read(waiting.await.unwrap()).await, "here");
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_no_longer_offered_and_others_answer() {
    let mesh = Mesh::new();
    let gone = nobody(1).await.overlay.unwrap();
    let agent = mesh.agent("alice", 2, Service::ocr(gone)).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    agent.knows([worker.by_overlay()]);

    let answer = post(agent.url("/service/ocr"), text("x")).await;

    assert_eq!(said(&answer, "x-wiremesh-worker"), "bob");
    assert!(agent.services.offered().is_empty());
}

#[tokio::test]
async fn a_warm_overlay_connection_that_dies_is_replaced_by_the_tunnel_and_found_again_when_mended() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, count) = named("there").await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    let cable = Cable::to(worker.overlay).await;
    client.knows([Worker { overlay: Some(cable.end), ..worker.worker() }]);
    let prober = tokio::task::spawn(client.router.clone().run(client.stop.clone()));
    assert_eq!(said(&post(client.url("/service/ocr"), text("1")).await, "x-wiremesh-path"), "overlay");

    cable.cut();
    let asked_at = crate::clock::now();
    let answer = post(client.url("/service/ocr"), text("2")).await;
    assert_eq!(said(&answer, "x-wiremesh-path"), "tunnel");
    assert!(asked_at.elapsed() < Duration::from_secs(3));
    // Known now: no further request waits for it.
    assert_eq!(said(&post(client.url("/service/ocr"), text("3")).await, "x-wiremesh-path"), "tunnel");
    assert_eq!(client.router.counters().unanswered_questions.get(), 1);

    cable.mend();
    wait_until(|| client.router.ejected_ways() == 0).await;
    let mut asked = 3;
    loop {
        asked += 1;
        assert!(asked < 1000, "the failure is never forgotten");
        if said(&post(client.url("/service/ocr"), text("4")).await, "x-wiremesh-path") == "overlay" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The second request reached the worker by both ways in the end, and was executed once.
    assert_eq!(count.load(Ordering::SeqCst), asked);
    client.stop.cancel();
    prober.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_overlay_that_swallows_the_first_packet_already_is_replaced_by_the_tunnel() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    // A listener whose line is full lets further connections wait unanswered.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&std::net::SocketAddr::from(([127, 0, 0, 8], 0)).into()).unwrap();
    deaf.listen(0).unwrap();
    let address = deaf.local_addr().unwrap().as_socket().unwrap();
    let _in_line = std::net::TcpStream::connect(address).unwrap();
    client.knows([Worker { overlay: Some(address), ..worker.worker() }]);

    let asked_at = crate::clock::now();
    let answer = post(client.url("/service/ocr"), text("x")).await;

    assert_eq!(said(&answer, "x-wiremesh-path"), "tunnel");
    assert!(asked_at.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_connection_that_died_during_a_pause_is_no_danger_to_a_request_that_must_not_be_repeated() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, count) = named("there").await;
    let first = mesh.agent("bob", 3, Service::ocr(address)).await;
    let second = mesh.agent("carol", 4, Service::ocr(address)).await;
    let cable = Cable::to(first.overlay).await;
    client.knows([Worker { overlay: Some(cable.end), ..first.by_overlay() }]);
    post(client.url("/service/ocr"), text("1")).await;
    let busy = Worker { load: wiremesh_certs::Load::from_share(1.0), ..second.by_tunnel() };
    client.knows([Worker { overlay: Some(cable.end), ..first.by_overlay() }, busy]);

    cable.cut();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let answer = post(client.url("/service/ocr"), text("2")).await;

    assert_eq!(said(&answer, "x-wiremesh-worker"), "carol");
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn many_requests_at_once_share_a_few_connections_and_are_all_answered() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, count) = named("there").await;
    let service = Service { name: "ocr", upstream: address, max_concurrency: 50, queue: 500 };
    let worker = mesh.agent("bob", 3, Some(service)).await;
    client.knows([worker.by_overlay()]);

    let asking = (0..300).map(|_| async { post(client.url("/service/ocr"), text("x")).await.status() });
    let answered = futures::future::join_all(asking).await;

    assert!(answered.iter().all(|status| *status == 200));
    assert_eq!(count.load(Ordering::SeqCst), 300);
    assert_eq!(client.router.counters().in_flight.get(), 0);
}

#[tokio::test]
async fn a_slow_worker_that_answers_questions_is_left_alone() {
    let mesh = Mesh::new();
    let (finish, finished) = tokio::sync::watch::channel(false);
    let slow = upstream(move |_| {
        let mut finished = finished.clone();
        async move {
            finished.wait_for(|done| *done).await.map_err(|e| e.to_string())?;
            Ok(Response::new(text("at last")))
        }
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(slow)).await;
    client.knows([worker.worker()]);
    let asking = tokio::task::spawn(post(client.url("/service/ocr"), text("x")));

    // Long enough for two questions.
    tokio::time::sleep(Duration::from_millis(3000)).await;
    finish.send_replace(true);

    let answer = asking.await.unwrap();
    assert_eq!(said(&answer, "x-wiremesh-path"), "overlay");
    assert_eq!(read(answer).await, "at last");
    assert_eq!(client.router.counters().retries.get() + client.router.counters().unanswered_questions.get(), 0);
}

#[tokio::test]
async fn an_agent_that_restarts_loses_no_request() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (address, count) = named("there").await;
    let first = mesh.agent("bob", 3, Service::ocr(address)).await;
    let second = mesh.agent("carol", 4, Service::ocr(address)).await;
    client.knows([first.by_overlay(), second.by_overlay()]);
    let url = client.url("/service/ocr");
    let asking = tokio::task::spawn(async move {
        let mut answered = 0;
        for _ in 0..300 {
            let answer = post(url.clone(), text("x")).await;
            assert_eq!(answer.status(), 200);
            answered += 1;
        }
        answered
    });

    wait_until(|| count.load(Ordering::SeqCst) > 100).await;
    first.router.drain();
    first.stop.cancel();

    assert_eq!(asking.await.unwrap(), 300);
    assert_eq!(count.load(Ordering::SeqCst), 300);
}

#[tokio::test]
async fn an_error_page_of_the_tunnel_itself_is_no_answer_of_a_worker() {
    let mesh = Mesh::new();
    let page = upstream(async |_| Ok(Response::builder().status(530).body(text("<h1>tunnel error")).unwrap())).await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    let broken = Worker { tunnel: Some(format!("http://{page}").parse().unwrap()), ..nobody(9).await };
    client.knows([Worker { overlay: None, ..broken }]);

    assert_eq!(post(client.url("/service/ocr"), text("x")).await.status(), 502);
    client.knows([worker.by_tunnel()]);
    assert_eq!(read(post(client.url("/service/ocr"), text("x")).await).await, "there");
}

pub async fn wait_until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it never came true");
}
