//! What the mesh's policy lets others have of us, and us of them.

use std::sync::atomic::Ordering;

use http::{Request, Response};
use hyper::body::Incoming;
use wiremesh_certs::{IdentityKey, ModelTag, Offer, proof_header};

use super::mesh::*;
use crate::clock;

#[tokio::test]
async fn a_caller_that_policy_forbids_is_refused_by_whichever_way_it_comes_and_asks_nobody_else() {
    let mesh = Mesh::new();
    let (first, asked_first) = named("first").await;
    let (second, asked_second) = named("second").await;
    let client = mesh.agent("alice", 2, None).await;
    let workers = [mesh.agent("bob", 3, Service::ocr(first)).await, mesh.agent("carol", 4, Service::ocr(second)).await];
    mesh.speaks(&client.key);
    mesh.rule(None, Some(&["apps"]));

    for way in [Agent::by_overlay, Agent::by_tunnel] {
        client.knows(workers.iter().map(way));
        let answer = get(client.url("/service/ocr")).await;

        assert_eq!((answer.status().as_u16(), said(&answer, "x-wiremesh-executed")), (403, "no"));
        let error = &json(answer).await["error"];
        assert_eq!((error["type"].as_str(), error["service"].as_str()), (Some("not_allowed"), Some("ocr")));
        assert_eq!(error["message"], "the mesh's policy does not let alice call the service ocr");
    }
    let refused = workers.iter().map(|worker| failures(worker, "not_allowed")).collect::<Vec<_>>();
    assert_eq!(refused.iter().sum::<u64>(), 2, "each request was refused once: {refused:?}");
    assert_eq!((asked_first.load(Ordering::SeqCst), asked_second.load(Ordering::SeqCst)), (0, 0));
    assert_eq!(client.router.ejected_ways(), 0, "who refuses is well");
    assert!(client.directory.forgotten.lock().unwrap().is_empty(), "and offers it still");
}

#[tokio::test]
async fn who_is_in_the_group_is_answered_by_whichever_way_it_comes() {
    let mesh = Mesh::new();
    let client = mesh.agent_of("alice", 2, &["apps"], None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    mesh.speaks(&client.key);
    mesh.rule(None, Some(&["apps"]));

    for known in [worker.by_overlay(), worker.by_tunnel()] {
        client.knows([known]);
        assert_eq!(read(get(client.url("/service/ocr")).await).await, "there");
    }
}

#[tokio::test]
async fn a_wireguard_peer_without_a_certificate_is_in_no_group_and_who_is_no_peer_gets_nothing() {
    let mesh = Mesh::new();
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    let url = || format!("http://{}/service/ocr", worker.overlay);

    assert_eq!(get(url()).await.status(), 200, "everything is open to everybody in the mesh");
    mesh.rule(None, Some(&["apps"]));
    assert_eq!(json(get(url()).await).await["error"]["type"], "not_allowed");
    mesh.speaks(&IdentityKey::generate(&mut rand::rng()));
    assert_eq!(json(get(url()).await).await["error"]["type"], "forbidden");
}

#[tokio::test]
async fn a_local_client_has_its_nodes_own_service_whatever_policy_says() {
    let mesh = Mesh::new();
    let agent = mesh.agent("alice", 2, Service::ocr(named("own").await.0)).await;
    agent.directory.forbidden.store(true, Ordering::Relaxed);
    mesh.rule(Some(&[]), Some(&[]));

    assert_eq!(read(get(agent.url("/service/ocr")).await).await, "own");
    assert_eq!(get(agent.url("/service/asr")).await.status(), 403, "and nobody else's");
}

#[tokio::test]
async fn what_this_node_may_not_call_is_refused_before_anybody_is_asked() {
    let mesh = Mesh::new();
    let (address, count) = named("there").await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    client.knows([worker.worker()]);
    client.directory.forbidden.store(true, Ordering::Relaxed);

    let answer = get(client.url("/service/ocr")).await;

    assert_eq!(said(&answer, "x-wiremesh-worker"), "alice");
    assert_eq!(json(answer).await["error"]["type"], "not_allowed");
    assert_eq!((failures(&worker, "not_allowed"), count.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test]
async fn a_worker_that_may_not_offer_a_service_refuses_it_to_others_and_lists_no_models_of_it() {
    let mesh = Mesh::new();
    let (address, count) = named("there").await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    worker.serves(&["llama"]);
    client.knows([worker.by_overlay()]);
    let listed = async || json(get(format!("http://{}/v1/models", worker.overlay)).await).await["data"].clone();
    assert_eq!(listed().await.as_array().unwrap().len(), 1);

    mesh.rule(Some(&["gpu"]), None);

    assert_eq!(get(client.url("/service/ocr")).await.status(), 503);
    assert_eq!(listed().await.as_array().unwrap().len(), 0);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    assert_eq!(*client.directory.forgotten.lock().unwrap(), [worker.id]);
}

#[tokio::test]
async fn a_model_is_called_by_the_service_that_serves_it_and_asked_for_elsewhere_if_that_is_forbidden() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let chat = |upstream| Some(Service { name: "chat", upstream, max_concurrency: 9, queue: 9 });
    let closed = mesh.agent("bob", 3, Service::ocr(named("closed").await.0)).await;
    let open = mesh.agent("carol", 4, chat(named("open").await.0)).await;
    for worker in [&closed, &open] {
        worker.serves(&["llama"]);
    }
    mesh.speaks(&client.key);
    mesh.rule(None, Some(&["apps"]));
    let asked = async |workers: &[&Agent]| {
        let llama = Offer::Model(ModelTag::of("llama"));
        client.knows_by(llama, workers.iter().map(|worker| worker.by_overlay()));
        let body = text(r#"{"model": "llama", "messages": []}"#);
        post(client.url("/v1/chat/completions"), body).await
    };

    let refused: Response<Incoming> = asked(&[&closed]).await;
    assert_eq!((refused.status().as_u16(), &json(refused).await["error"]["type"]), (403, &"not_allowed".into()));
    for _ in 0..8 {
        assert_eq!(read(asked(&[&closed, &open]).await).await, "open");
    }
}

#[tokio::test]
async fn the_pages_are_for_every_member() {
    let mesh = Mesh::new();
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    let (key, chain) = mesh.member("dave", 5);
    mesh.speaks(&key);
    mesh.rule(Some(&[]), Some(&[]));

    for page in ["/health", "/v1/models", "/calls/00000000000000000000000000000001"] {
        let audience = worker.id.to_hex();
        let proof = proof_header(&key, &chain, &audience, "GET", page, clock::unix(), &mut rand::rng()).unwrap();
        let by_proof = Request::get(format!("http://{}{page}", worker.ingress)).header("authorization", proof);

        assert_eq!(get(format!("http://{}{page}", worker.overlay)).await.status(), 200, "{page}");
        assert_eq!(client().request(by_proof.body(text("")).unwrap()).await.unwrap().status(), 200, "{page}");
    }
}

/// Requests that an agent refused for this reason.
fn failures(agent: &Agent, reason: &'static str) -> u64 {
    agent.router.counters().failed_by.get_or_create(&crate::router::counters::Reason { reason }).get()
}
