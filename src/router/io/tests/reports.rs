//! How workers do, and who hears of it.

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use wiremesh_certs::ServiceName;

use super::{mesh::*, workers::wait_until};
use crate::{
    clock,
    router::{State, Work, fleet::FRESH_FOR, io::lock},
};

#[tokio::test]
async fn other_agents_are_told_on_every_answer_how_a_worker_does_and_clients_are_not() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let one = Service { name: "ocr", upstream: named("there").await.0, max_concurrency: 1, queue: 0 };
    let worker = mesh.agent("bob", 3, Some(one)).await;
    client.knows([worker.by_overlay()]);

    let answer = ask(&worker, "00000000000000000000000000000001").await;
    let work: Work = said(&answer, "x-wiremesh-load").parse().unwrap();
    assert_eq!((answer.status().as_u16(), work.capacity, work.running), (200, 1, 1));
    read(answer).await;
    assert_eq!(said(&get(client.url("/service/ocr")).await, "x-wiremesh-load"), "");

    wait_until(|| worker.services.occupancy()[0].1 == 0).await;
    let _taken = worker.services.reserve(&ocr()).unwrap();
    let refused = ask(&worker, "00000000000000000000000000000002").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(said(&refused, "x-wiremesh-load").parse::<Work>().unwrap().running, 1);
}

#[tokio::test]
async fn whoever_follows_a_service_hears_at_once_how_it_does_and_at_each_change_until_it_drains() {
    let worker = Mesh::new().agent("bob", 3, Service::ocr(named("there").await.0)).await;
    let mut lines = get(format!("http://{}/reports/ocr", worker.overlay)).await.into_body();

    assert_eq!(line(&mut lines).await.unwrap().running, 0);
    let _taken = worker.services.reserve(&ocr()).unwrap();
    assert_eq!(line(&mut lines).await.unwrap().running, 1);
    worker.router.drain();
    assert_eq!(line(&mut lines).await.unwrap().state, State::Draining);
    assert_eq!(line(&mut lines).await, None);

    for (path, status) in [("/reports/chat", 404), ("/reports/No_Name", 400)] {
        assert_eq!(get(format!("http://{}{path}", worker.overlay)).await.status(), status);
    }
    assert_eq!(get(format!("http://{}/reports/ocr", worker.local)).await.status(), 404);
}

#[tokio::test]
async fn a_worker_that_requests_go_to_is_followed() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    client.knows([worker.by_overlay()]);
    let running = tokio::task::spawn(client.router.clone().run(client.stop.clone()));
    read(post(client.url("/service/ocr"), text("x")).await).await;

    // Nobody asks for anything any more: what is heard was said unasked.
    let known = || lock(&client.router.shared.fleet).consider(&ocr(), worker.id, clock::now()).report;
    for taken in 1..4 {
        let _places: Vec<_> = (0..taken).map(|_| worker.services.reserve(&ocr()).unwrap()).collect();
        wait_until(|| known().is_some_and(|(work, _)| work.running == taken)).await;
    }
    client.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_that_was_silent_for_long_is_asked_how_it_does_when_it_is_considered_and_gets_no_work_for_it() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let counted = [named("there").await, named("over there").await];
    let workers = [
        mesh.agent("bob", 3, Service::ocr(counted[0].0)).await,
        mesh.agent("carol", 4, Service::ocr(counted[1].0)).await,
    ];
    client.knows(workers.iter().map(Agent::by_overlay));
    let long_ago = clock::now() - 2 * FRESH_FOR;
    let busy: Work = "c=100;r=70;q=0;l=70;s=10;st=ready".parse().unwrap();
    for worker in &workers {
        lock(&client.router.shared.fleet).on_report(&ocr(), worker.id, busy, long_ago);
    }
    let running = tokio::task::spawn(client.router.clone().run(client.stop.clone()));

    read(post(client.url("/service/ocr"), text("x")).await).await;

    for worker in &workers {
        let known = || lock(&client.router.shared.fleet).consider(&ocr(), worker.id, clock::now());
        wait_until(|| known().report.is_some_and(|(work, age)| work.running <= 1 && age < FRESH_FOR)).await;
        assert!(known().rtt(crate::router::Path::Overlay) > 0.0);
    }
    let executed: usize = counted.iter().map(|(_, count)| count.load(std::sync::atomic::Ordering::SeqCst)).sum();
    assert_eq!(executed, 1);
    client.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_does_not_wait_in_our_line_while_another_worker_is_idle_unless_that_says_no() {
    let mesh = Mesh::new();
    let one = Service { name: "ocr", upstream: named("here").await.0, max_concurrency: 1, queue: 9 };
    let agent = mesh.agent("alice", 2, Some(one)).await;
    let full = Service { name: "ocr", upstream: named("there").await.0, max_concurrency: 1, queue: 0 };
    let worker = mesh.agent("bob", 3, Some(full)).await;
    agent.knows([worker.by_overlay()]);
    let idle: Work = "c=100;r=0;q=0;l=0;s=10;st=ready".parse().unwrap();
    lock(&agent.router.shared.fleet).on_report(&ocr(), worker.id, idle, clock::now());
    let taken = agent.services.reserve(&ocr()).unwrap().ready().await.unwrap();

    assert_eq!(read(post(agent.url("/service/ocr"), text("x")).await).await, "there");

    let _full = worker.services.reserve(&ocr()).unwrap();
    lock(&agent.router.shared.fleet).on_report(&ocr(), worker.id, idle, clock::now());
    let waiting = tokio::task::spawn(post(agent.url("/service/ocr"), text("x")));
    wait_until(|| agent.services.occupancy()[0].2 == 1).await;
    drop(taken);
    assert_eq!(read(waiting.await.unwrap()).await, "here");
}

#[tokio::test]
async fn what_is_in_flight_at_a_worker_is_known_to_the_end_of_its_body() {
    let mesh = Mesh::new();
    let (pieces, body) = piped();
    let body = std::sync::Mutex::new(Some(body));
    let slow = upstream({
        let body = std::sync::Arc::new(body);
        move |_| {
            let body = body.lock().unwrap().take().unwrap();
            async move { Ok(Response::new(body)) }
        }
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(slow)).await;
    client.knows([worker.by_overlay()]);
    let own = || lock(&client.router.shared.fleet).consider(&ocr(), worker.id, clock::now()).own;

    pieces.send(Ok("x".into())).await.unwrap();
    let answer = get(client.url("/service/ocr")).await;
    assert_eq!(own(), 1);
    drop(pieces);
    read(answer).await;
    wait_until(|| own() == 0).await;
}

#[tokio::test]
async fn how_long_requests_take_is_learned_from_their_whole_answers() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;

    for known in [worker.by_overlay(), worker.by_tunnel()] {
        client.knows([known]);
        read(post(client.url("/service/ocr"), text("x")).await).await;
        let known = || lock(&client.router.shared.fleet).consider(&ocr(), worker.id, clock::now());
        wait_until(|| known().own == 0).await;
        assert!(known().service_time.is_some_and(|seconds| seconds < 60.0));
        assert_eq!(known().failures, 0.0);
    }
}

async fn ask(worker: &Agent, call: &str) -> Response<Incoming> {
    let request = Request::post(format!("http://{}/service/ocr", worker.overlay));
    let request = request.header("x-wiremesh-via", format!("alice;{call}")).body(text("x")).unwrap();
    client().request(request).await.unwrap()
}

async fn line(lines: &mut Incoming) -> Option<Work> {
    let frame = lines.frame().await?.unwrap().into_data().unwrap();
    Some(std::str::from_utf8(&frame).unwrap().trim_end().parse().unwrap())
}

fn ocr() -> ServiceName {
    "ocr".parse().unwrap()
}
