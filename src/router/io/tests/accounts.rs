//! What is told of a request when it has ended, and what an upstream sees of its trace.

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::mesh::*;
use crate::router::{Line, Outcome, Side, Span, io::Audience};

#[tokio::test]
async fn a_request_over_the_overlay_is_a_line_at_both_agents() {
    let (mesh, mut lines, _) = heard();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    client.knows([nobody(9).await, worker.by_overlay()]);
    mesh.speaks(&client.key);

    let answer = post(client.url("/service/ocr/v1"), text("body")).await;
    let id = said(&answer, "x-request-id").to_owned();
    assert_eq!(read(answer).await, "there");

    let (mut at_bob, mut at_alice) = (lines.recv().await.unwrap(), lines.recv().await.unwrap());
    if at_bob.from.is_none() {
        std::mem::swap(&mut at_bob, &mut at_alice);
    }
    for line in [&at_alice, &at_bob] {
        assert_eq!((line.id.as_str(), line.service.as_deref(), line.method.as_str()), (&*id, Some("ocr"), "POST"));
        assert_eq!((line.request_bytes, line.answer_bytes, line.status), (4, 5, Some(200)));
        assert_eq!((line.worker.as_deref(), line.outcome), (Some("bob"), Outcome::Ok));
        assert!(line.head_ms <= line.first_byte_ms && line.first_byte_ms <= Some(line.duration_ms), "{line:?}");
    }
    assert_eq!([at_alice.from.as_deref(), at_bob.from.as_deref()], [None, Some("alice")]);
    assert_eq!([at_alice.path.as_deref(), at_bob.path.as_deref()], [Some("overlay"), Some("local")]);
    assert!((1..=2).contains(&at_alice.attempts) && at_bob.attempts == 1, "{at_alice:?} {at_bob:?}");
}

#[tokio::test]
async fn who_sent_a_request_on_is_who_the_door_let_in_whatever_name_it_bears() {
    let (mesh, mut lines, _) = heard();
    let echo = upstream(async |request: Request<_>| {
        Ok(Response::new(text(request.headers()["x-wiremesh-via"].as_bytes().to_vec())))
    })
    .await;
    let worker = mesh.agent("bob", 3, Service::ocr(echo)).await;
    let (mallory, chain) = mesh.member("mallory", 66);
    let call = |n: u8| format!("{n:032x}");
    let forged = |n: u8| Some(format!("alice;{}", call(n)));
    let ask = async |url: String, path: &str, via: Option<String>, proof: Option<String>| {
        let mut request = Request::get(format!("{url}{path}"));
        for (name, value) in [("x-wiremesh-via", via), ("authorization", proof)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let seen = read(client().request(request.body(text("")).unwrap()).await.unwrap()).await;
        seen.split_once(';').map(|(name, call)| (name.to_owned(), call.to_owned())).unwrap()
    };
    let (overlay, ingress) = (format!("http://{}", worker.overlay), format!("http://{}", worker.ingress));
    let audience = worker.id.to_hex();
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9);
    let mut proof = || {
        wiremesh_certs::proof_header(&mallory, &chain, &audience, "GET", "/service/ocr", crate::clock::unix(), &mut rng)
            .ok()
    };

    mesh.speaks(&mallory);
    for (url, via, proof, id) in [
        (&overlay, forged(1), None, Some(call(1))),
        (&overlay, None, None, None),
        (&ingress, forged(2), proof(), Some(call(2))),
        (&ingress, None, proof(), None),
    ] {
        let (name, seen) = ask(url.clone(), "/service/ocr", via, proof).await;

        assert_eq!((name.as_str(), lines.recv().await.unwrap().from.as_deref()), ("mallory", Some("mallory")));
        assert!(id.is_none_or(|id| id == seen), "the call is the one that its caller asks about");
    }

    // A standard WireGuard peer has no name, and what a client of ours says is no member's word.
    *mesh.register.speaks.lock().unwrap() = None;
    for (url, sees, from) in [(overlay, "bob", Some("127.0.0.1")), (worker.url(""), "alice", None)] {
        let (name, _) = ask(url, "/service/ocr", forged(from.map_or(3, |_| 4)), None).await;

        assert_eq!((name.as_str(), lines.recv().await.unwrap().from.as_deref()), (sees, from));
    }
}

#[tokio::test]
async fn the_outcome_tells_a_refusal_from_a_broken_answer_and_from_a_client_that_left() {
    let (mesh, mut lines, _) = heard();
    let broken = upstream(async |_| {
        let (pieces, body) = piped();
        pieces.try_send(Ok("one".into())).unwrap();
        tokio::task::spawn(async move { pieces.send(Err("broken".into())).await });
        Ok(Response::new(body))
    })
    .await;
    let endless = upstream(async |_| {
        let (pieces, body) = piped();
        tokio::task::spawn(async move { while pieces.send(Ok("more".into())).await.is_ok() {} });
        Ok(Response::new(body))
    })
    .await;
    let agent = mesh.agent("alice", 2, None).await;

    assert_eq!(get(agent.url("/service/ocr")).await.status(), 503);
    let line = lines.recv().await.unwrap();
    assert_eq!((line.outcome, line.attempts), (Outcome::Refused("service_not_found"), 0));
    assert_eq!(line.worker, None);

    let breaks = mesh.agent("bob", 3, Service::ocr(broken)).await;
    assert!(get(breaks.url("/service/ocr")).await.into_body().collect().await.is_err());
    let line = lines.recv().await.unwrap();
    assert_eq!((line.outcome, line.status, line.answer_bytes), (Outcome::Interrupted, Some(200), 3));

    let streams = mesh.agent("carol", 4, Service::ocr(endless)).await;
    let mut answer = get(streams.url("/service/ocr")).await.into_body();
    answer.frame().await.unwrap().unwrap();
    drop(answer);
    let line = lines.recv().await.unwrap();
    assert_eq!((line.outcome, line.status), (Outcome::Cancelled, Some(200)));
    assert!(line.answer_bytes >= 4);
}

#[tokio::test]
async fn a_request_whose_client_leaves_before_an_answer_is_told_too() {
    let (mesh, mut lines, _) = heard();
    let (reached, mut is_reached) = mpsc::unbounded_channel();
    let silent = upstream(move |_| {
        let _ = reached.send(());
        std::future::pending()
    })
    .await;
    let agent = mesh.agent("alice", 2, Service::ocr(silent)).await;

    let asking = tokio::task::spawn(get(agent.url("/service/ocr")));
    is_reached.recv().await.unwrap();
    asking.abort();

    let line = lines.recv().await.unwrap();
    assert_eq!((line.outcome, line.status, line.attempts), (Outcome::Cancelled, None, 1));
}

#[tokio::test]
async fn a_full_access_log_holds_up_nobody_and_what_is_dropped_is_counted() {
    let (sender, lines) = mpsc::channel(1);
    let mut mesh = Mesh::new();
    mesh.audience.lines = Some(sender);
    let agent = mesh.agent("alice", 2, Service::ocr(named("here").await.0)).await;

    for _ in 0..3 {
        assert_eq!(read(get(agent.url("/service/ocr")).await).await, "here");
    }
    agent.stop.cancel();
    while agent.router.counters().dropped_lines.get() < 2 {
        tokio::task::yield_now().await;
    }

    assert_eq!(lines.len(), 1);
}

#[tokio::test]
async fn a_traced_request_is_one_tree_of_spans_across_agents_and_its_upstream_sees_the_innermost() {
    let (mesh, _lines, mut spans) = heard();
    let echo = upstream(async |request: Request<_>| {
        let said = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        Ok(Response::new(text(format!("{} {}", said("traceparent"), said("tracestate")))))
    })
    .await;
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(echo)).await;
    client.knows([worker.by_overlay()]);

    let request = Request::get(client.url("/service/ocr"))
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("tracestate", "a=1")
        .body(text(""))
        .unwrap();
    let seen = read(super::mesh::client().request(request).await.unwrap()).await;

    let mut all = Vec::new();
    while all.len() < 4 {
        all.push(spans.recv().await.unwrap());
    }
    let child_of = |parent: &str| -> &Span {
        let is_child = |span: &&Span| span.parent.is_some_and(|id| id.to_string() == parent);
        all.iter().find(is_child).unwrap_or_else(|| panic!("nothing within {parent}: {all:?}"))
    };
    let at_alice = child_of("00f067aa0ba902b7");
    let attempt = child_of(&at_alice.id.to_string());
    let at_bob = child_of(&attempt.id.to_string());
    let innermost = child_of(&at_bob.id.to_string());
    assert_eq!(
        [at_alice, attempt, at_bob, innermost].map(|span| span.side),
        [Side::Server, Side::Client, Side::Server, Side::Client]
    );
    assert_eq!([attempt, innermost].map(|span| span.name.as_str()), ["attempt overlay", "upstream"]);
    assert_eq!(seen, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01 a=1", innermost.id));
}

#[tokio::test]
async fn without_tracing_a_good_trace_passes_unchanged_and_a_malformed_one_ends() {
    let mesh = Mesh::new();
    let echo = upstream(async |request: Request<_>| {
        Ok(Response::new(text(format!("{:?}", request.headers().get("traceparent")))))
    })
    .await;
    let agent = mesh.agent("alice", 2, Service::ocr(echo)).await;
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    for (sent, seen) in [(good, format!("Some({good:?})")), ("00-nonsense", "None".to_owned())] {
        let request = Request::get(agent.url("/service/ocr")).header("traceparent", sent).body(text("")).unwrap();

        assert_eq!(read(client().request(request).await.unwrap()).await, seen);
    }
}

#[tokio::test]
async fn the_time_of_every_hop_is_told_in_order() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;

    for (asked, known, expected) in [
        (&worker, None, &["queue upstream total"][..]),
        (&client, Some(worker.by_overlay()), &["queue upstream", "connect worker total"]),
        (&client, Some(worker.by_tunnel()), &["queue upstream", "worker total"]),
    ] {
        client.knows(known);

        let answer = get(asked.url("/service/ocr")).await;

        let names = |value: &http::HeaderValue| {
            let entries = value.to_str().unwrap().split(", ").map(|entry| entry.split_once(";dur=").unwrap());
            entries.map(|(name, took)| took.parse::<f64>().map(|_| name).unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(answer.headers().get_all("server-timing").iter().map(names).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn a_local_client_that_asks_is_told_why_its_request_went_where_it_went_and_others_are_not() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(named("there").await.0)).await;
    client.knows([worker.by_overlay()]);
    let ask = async |url: String, asks: &str| {
        let request = Request::get(url).header("x-wiremesh-explain", asks).body(text("")).unwrap();
        said(&super::mesh::client().request(request).await.unwrap(), "x-wiremesh-route").to_owned()
    };

    let told = ask(client.url("/service/ocr"), "1").await;
    assert!(told.starts_with("source=dht; bob/overlay score="), "{told}");
    assert!(told.contains(" load=0.00 age="), "{told}");
    assert!(told.ends_with("; tried=bob/overlay"), "{told}");
    assert_eq!(ask(worker.url("/service/ocr"), "1").await, "source=local; tried=bob/local");
    assert_eq!(ask(client.url("/service/ocr"), "0").await, "");
    assert_eq!(ask(format!("http://{}/service/ocr", worker.overlay), "1").await, "");
}

/// A mesh of agents that tell of their requests, and of every trace.
fn heard() -> (Mesh, mpsc::Receiver<Line>, mpsc::Receiver<Span>) {
    let (lines, heard_lines) = mpsc::channel(100);
    let (spans, heard_spans) = mpsc::channel(100);
    let mut mesh = Mesh::new();
    mesh.audience = Audience { lines: Some(lines), spans: Some(spans), sample: 1.0 };
    (mesh, heard_lines, heard_spans)
}
