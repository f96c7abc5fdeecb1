//! What a client is answered: headers, errors, the pages.

use std::time::Duration;

use http::{Request, Response, StatusCode, header};

use super::mesh::*;

#[tokio::test]
async fn a_service_of_this_node_is_answered_here() {
    let mesh = Mesh::new();
    let agent = mesh.agent("alice", 2, Service::ocr(named("here").await.0)).await;

    let answer = get(agent.url("/service/ocr")).await;

    assert_eq!(answer.status(), 200);
    assert_eq!(
        ["x-wiremesh-worker", "x-wiremesh-path", "x-wiremesh-source"].map(|name| said(&answer, name)),
        ["alice", "local", "local"]
    );
    assert_eq!(said(&answer, "x-request-id").len(), 32);
    assert_eq!(read(answer).await, "here");
    assert_eq!(agent.router.counters().local.get(), 1);
}

#[tokio::test]
async fn another_nodes_service_is_answered_over_the_overlay_and_by_the_tunnel_if_that_is_the_only_way() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;

    for (known, path) in [(worker.by_overlay(), "overlay"), (worker.by_tunnel(), "tunnel")] {
        client.knows([known]);
        let answer = post(client.url("/service/ocr/v1?x=1"), text("body")).await;

        assert_eq!(
            ["x-wiremesh-worker", "x-wiremesh-path", "x-wiremesh-source"].map(|name| said(&answer, name)),
            ["bob", path, "dht"]
        );
        assert_eq!(read(answer).await, "there");
    }

    assert_eq!(client.router.counters().forwarded.get(), 2);
    assert_eq!(client.router.counters().forwarded_by_tunnel.get(), 1);
    assert_eq!(worker.router.counters().inbound.get(), 2);
    assert_eq!(worker.router.counters().local.get() + client.router.counters().failed.get(), 0);
}

#[tokio::test]
async fn end_to_end_headers_are_kept_and_others_are_not_on_every_path() {
    let mesh = Mesh::new();
    let echo = upstream(async |request: Request<_>| {
        let mut seen: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .chain([request.uri().to_string(), request.method().to_string()])
            .collect();
        seen.sort();
        let answer = Response::builder()
            .status(StatusCode::IM_A_TEAPOT)
            .header("x-custom-answer", "kept")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .header("x-wiremesh-worker", "forged")
            .header("x-wiremesh-executed", "no")
            .header("keep-alive", "timeout=1");
        Ok(answer.body(text(seen.join("\n"))).unwrap())
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(echo)).await;

    for (asked, known) in [(&worker, None), (&client, Some(worker.by_overlay())), (&client, Some(worker.by_tunnel()))] {
        client.knows(known);
        let request = Request::put(asked.url("/service/ocr/a%20b/c?q=%2F&q=2"))
            .header("authorization", "Bearer of-the-client")
            .header("x-custom", "1")
            .header("x-custom", "2")
            .header("connection", "x-private")
            .header("x-private", "hop")
            .header("te", "trailers")
            .header("x-wiremesh-path", "forged")
            .header("x-request-id", "mine-1")
            .body(text("hello"))
            .unwrap();
        let answer = super::mesh::client().request(request).await.unwrap();

        assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(said(&answer, "x-custom-answer"), "kept");
        assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(said(&answer, "x-wiremesh-worker"), "bob");
        assert_eq!(said(&answer, "x-wiremesh-executed"), "");
        assert_eq!(said(&answer, "x-request-id"), "mine-1");
        assert_eq!(said(&answer, "keep-alive"), "");
        let seen = read(answer).await;
        for expected in
            ["/a%20b/c?q=%2F&q=2", "PUT", "x-custom: 1", "x-custom: 2", "content-length: 5", "x-request-id: mine-1"]
        {
            assert!(seen.lines().any(|line| line == expected), "{expected} in {seen}");
        }
        assert!(seen.lines().any(|line| line == "authorization: Bearer of-the-client"), "{seen}");
        assert!(seen.lines().any(|line| line == format!("x-forwarded-host: {}", asked.local)), "{seen}");
        for unexpected in ["x-private", "te:", "x-wiremesh-path", "x-wiremesh-authorization"] {
            assert!(!seen.lines().any(|line| line.starts_with(unexpected)), "{unexpected} in {seen}");
        }
    }
}

#[tokio::test]
async fn nobody_offers_it() {
    let agent = Mesh::new().agent("alice", 2, None).await;

    let answer = get(agent.url("/service/ocr")).await;

    assert_eq!(answer.status(), 503);
    assert_eq!((said(&answer, "retry-after"), said(&answer, "x-wiremesh-executed")), ("5", "no"));
    let id = said(&answer, "x-request-id").to_owned();
    let body = json(answer).await;
    assert_eq!(body["error"]["type"], "service_not_found");
    assert_eq!(body["error"]["request_id"], id);
    assert_eq!(agent.router.counters().failed.get(), 1);
}

#[tokio::test]
async fn malformed_paths_large_headers_and_unknown_pages_are_refused() {
    let agent = Mesh::new().agent("alice", 2, None).await;

    for (path, status, kind) in [
        ("/service/No_Name", 400, "malformed_path"),
        ("/service/ocr/../x", 400, "malformed_path"),
        ("/service/ocr/%zz", 400, "malformed_path"),
        ("/nothing", 404, "not_found"),
    ] {
        let answer = get(agent.url(path)).await;
        assert_eq!(answer.status(), status, "{path}");
        let id = said(&answer, "x-request-id").to_owned();
        let error = &json(answer).await["error"];
        assert_eq!(error["type"], kind);
        assert!(!id.is_empty() && error["request_id"] == id, "{path}: {error}");
    }
    let posted = Request::post(agent.url("/health")).body(text("")).unwrap();
    let answer = client().request(posted).await.unwrap();
    assert_eq!(answer.status(), 405);
    assert_eq!(json(answer).await["error"]["type"], "method_not_allowed");
    let large = Request::get(agent.url("/service/ocr")).header("x-large", "x".repeat(40_000)).body(text("")).unwrap();
    let answer = client().request(large).await.unwrap();
    assert_eq!(answer.status(), 431);
    assert_eq!(json(answer).await["error"]["type"], "headers_too_large");
}

#[tokio::test]
async fn a_forwarded_request_is_never_forwarded_on() {
    let mesh = Mesh::new();
    let agent = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    agent.knows([worker.worker()]);
    let call = "0123456789abcdef0123456789abcdef";

    for (vias, status) in [
        (&[format!("carol;{call}")][..], 503),
        (&[format!("alice;{call}")], 508),
        (&[format!("carol;{call}"), format!("dave;{call}")], 508),
        (&["nonsense".into()], 400),
    ] {
        let url = format!("http://{}/service/ocr", agent.overlay);
        let request = vias.iter().fold(Request::get(url), |request, via| request.header("x-wiremesh-via", via));
        let answer = client().request(request.body(text("")).unwrap()).await.unwrap();

        assert_eq!(answer.status(), status, "{vias:?}");
        assert_eq!(said(&answer, "x-wiremesh-executed"), "no");
    }
}

#[tokio::test]
async fn an_upstream_that_leads_back_to_its_agent_is_a_loop_not_a_storm() {
    let mesh = Mesh::new();
    let agent = mesh.agent("alice", 2, None).await;
    let leads_back = upstream({
        let url = agent.url("/service/ocr");
        move |request: Request<hyper::body::Incoming>| {
            let via = request.headers()["x-wiremesh-via"].clone();
            let url = url.clone();
            async move {
                let request = Request::get(url).header("x-wiremesh-via", via).body(text("")).unwrap();
                let answer = client().request(request).await.map_err(|e| e.to_string())?;
                Ok(answer.map(|body| {
                    http_body_util::BodyExt::boxed(http_body_util::BodyExt::map_err(body, |e| e.to_string()))
                }))
            }
        }
    })
    .await;
    let worker = mesh.agent("bob", 3, Service::ocr(leads_back)).await;
    agent.knows([worker.by_overlay()]);
    mesh.speaks(&agent.key);

    let answer = get(agent.url("/service/ocr")).await;

    assert_eq!(answer.status(), 508);
    assert_eq!(said(&answer, "x-wiremesh-worker"), "bob");
}

#[tokio::test]
async fn the_same_call_is_executed_once() {
    let mesh = Mesh::new();
    let (address, count) = named("there").await;
    let worker = mesh.agent("bob", 3, Service::ocr(address)).await;
    let ask = async || {
        let url = format!("http://{}/service/ocr", worker.overlay);
        let via = "alice;0123456789abcdef0123456789abcdef";
        client().request(Request::post(url).header("x-wiremesh-via", via).body(text("x")).unwrap()).await.unwrap()
    };

    assert_eq!(ask().await.status(), 200);
    let again = ask().await;

    assert_eq!((again.status().as_u16(), said(&again, "x-wiremesh-executed")), (409, "unknown"));
    assert_eq!(json(again).await["error"]["type"], "duplicate_call");
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_pages_have_their_documented_shapes() {
    let agent = Mesh::new().agent("alice", 2, Service::ocr(named("here").await.0)).await;

    let health = json(get(agent.url("/health")).await).await;
    let stats = json(get(agent.url("/stats")).await).await;

    assert_eq!(
        (&health["status"], &health["worker_id"], &health["services"][0]),
        (&"healthy".into(), &"alice".into(), &"ocr".into())
    );
    assert_eq!(stats["routing"]["local_requests"], 0);
    assert!(stats["capabilities"]["cpu_cores"].is_u64());
    assert_eq!(get(agent.url("/health/live")).await.status(), 200);
    assert_eq!(get(agent.url("/health/ready")).await.status(), 200);
    assert!(read(get(agent.url("/metrics")).await).await.ends_with("# EOF\n"));
    agent.router.drain();
    assert_eq!(get(agent.url("/health/ready")).await.status(), 503);
    assert_eq!(json(get(agent.url("/service/ocr")).await).await["error"]["type"], "draining");
}

#[tokio::test]
async fn when_stopped_the_answer_in_flight_ends_and_nobody_new_is_let_in() {
    let mesh = Mesh::new();
    let (pieces, body) = piped();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let slow = upstream(move |_| {
        let body = body.clone();
        async move { Ok(Response::new(body.lock().unwrap().take().unwrap())) }
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let mut worker = mesh.agent("bob", 3, Service::ocr(slow)).await;
    client.knows([worker.by_overlay()]);
    pieces.send(Ok("one ".into())).await.unwrap();
    let answer = get(client.url("/service/ocr")).await;

    worker.router.drain();
    worker.stop.cancel();
    let refused = get(client.url("/service/ocr")).await;
    pieces.send(Ok("two".into())).await.unwrap();
    drop(pieces);

    assert_eq!(refused.status(), 503);
    assert_eq!(read(answer).await, "one two");
    for served in worker.served.drain(..) {
        tokio::time::timeout(Duration::from_secs(4), served).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_answer_without_length_and_one_to_head_pass_unchanged() {
    let mesh = Mesh::new();
    let sized =
        upstream(async |_| Ok(Response::builder().header(header::CONTENT_LENGTH, "5").body(text("12345")).unwrap()))
            .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(sized)).await;
    client.knows([worker.by_overlay()]);

    let head = Request::head(client.url("/service/ocr")).body(text("")).unwrap();
    let answer = super::mesh::client().request(head).await.unwrap();

    assert_eq!(said(&answer, "content-length"), "5");
    assert_eq!(read(answer).await, "");
    assert_eq!(said(&get(client.url("/service/ocr")).await, "content-length"), "5");
}

#[tokio::test]
async fn who_would_be_asked_is_told_in_order_without_asking_anybody() {
    let mesh = Mesh::new();
    let (address, count) = named("here").await;
    let agent = mesh.agent("alice", 2, Service::ocr(address)).await;
    let worker = mesh.agent("bob", 3, None).await;
    agent.knows([worker.worker()]);

    let plan = json(get(agent.url("/routes/ocr")).await).await;

    let ways = plan["ways"].as_array().unwrap();
    let paths: Vec<_> = ways.iter().map(|way| way["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["local", "overlay", "tunnel"]);
    assert!(ways[1]["age_seconds"].as_u64().unwrap() < 60);
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(get(format!("http://{}/routes/ocr", agent.overlay)).await.status(), 404);
}
