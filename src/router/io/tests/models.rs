//! The OpenAI-shaped face: who answers for a model, what the upstream sees, what is listed.

use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use wiremesh_certs::{ModelTag, Offer};

use super::mesh::*;

const CHAT: &str = "/v1/chat/completions";

/// An upstream that says what it was sent: path, headers of ours, body.
async fn mirror(name: &'static str) -> std::net::SocketAddr {
    upstream(move |request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let ours: Vec<&str> =
            parts.headers.keys().map(|name| name.as_str()).filter(|name| *name == "x-wiremesh-model").collect();
        let length = parts.headers.get(header::CONTENT_LENGTH).map(|length| length.to_str().unwrap().to_owned());
        let said = json!({"who": name, "path": parts.uri.to_string(), "ours": ours, "content_length": length});
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        let answer = Response::builder().header("x-said", said.to_string()).header("x-wiremesh-model", "forged");
        Ok(answer.body(text(body)).unwrap())
    })
    .await
}

fn by(model: &str) -> Offer {
    Offer::Model(ModelTag::of(model))
}

fn chat(model: &str) -> String {
    json!({"messages": [{"role": "user", "content": "\"model\":\"no\""}], "model": model, "stream": false}).to_string()
}

#[tokio::test]
async fn the_model_in_the_body_picks_the_service_here_or_elsewhere_and_the_body_goes_on_as_it_came() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, Service::ocr(mirror("alice").await)).await;
    let worker = mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await;
    client.serves(&["small"]);
    worker.serves(&["large", "large-2"]);

    for (known, model, who, path) in [
        (worker.by_overlay(), "small", "alice", "local"),
        (worker.by_overlay(), "large", "bob", "overlay"),
        (worker.by_tunnel(), "large", "bob", "tunnel"),
    ] {
        client.knows_by(by("large"), [known]);
        let body = chat(model);
        let answer = post(client.url(&format!("{CHAT}?x=1")), text(body.clone())).await;

        assert_eq!(answer.status(), 200);
        assert_eq!(["x-wiremesh-worker", "x-wiremesh-path"].map(|name| said(&answer, name)), [who, path]);
        assert_eq!(said(&answer, "x-wiremesh-model"), "");
        let seen: Value = serde_json::from_str(said(&answer, "x-said")).unwrap();
        assert_eq!(
            seen,
            json!({"who": who, "path": format!("{CHAT}?x=1"), "ours": [], "content_length": body.len().to_string()})
        );
        assert_eq!(read(answer).await, body);
    }
}

#[tokio::test]
async fn a_model_behind_much_else_is_found_and_all_of_the_body_arrives() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await;
    worker.serves(&["large"]);
    client.knows_by(by("large"), [worker.by_overlay()]);
    let content = "x".repeat(3 * 1024 * 1024);
    let body = json!({"messages": [{"role": "user", "content": content}], "model": "large"}).to_string();

    for _ in 0..3 {
        let answer = post(client.url(CHAT), text(body.clone())).await;

        assert_eq!(answer.status(), 200);
        assert!(read(answer).await == body);
    }
}

#[tokio::test]
async fn the_model_part_of_a_form_and_the_query_of_a_conversation_pick_the_service_too() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, Service::ocr(mirror("alice").await)).await;
    client.serves(&["whisper-1"]);
    let form = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n\0\r\n--\r\n\
                --b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b--\r\n";

    let request = Request::post(client.url("/v1/audio/transcriptions"))
        .header("content-type", "multipart/form-data; boundary=b")
        .body(text(form))
        .unwrap();
    let transcribed = super::mesh::client().request(request).await.unwrap();
    let spoken = get(client.url("/v1/realtime?model=whisper-1")).await;

    assert_eq!((transcribed.status(), spoken.status()), (http::StatusCode::OK, http::StatusCode::OK));
    assert_eq!(read(transcribed).await, form);
}

#[tokio::test]
async fn who_asks_for_no_model_or_one_that_nobody_serves_is_told_so_as_openai_does() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, Service::ocr(mirror("alice").await)).await;
    client.serves(&["llama-3.1-8b"]);
    client.knows([]);

    for (body, status, code) in [
        (chat("llama-3.1"), 404, "model_not_found"),
        ("{}".into(), 400, "model_missing"),
        ("model=x".into(), 400, "malformed_body"),
        ("".into(), 400, "malformed_body"),
        ("{\"model\":7}".into(), 400, "model_malformed"),
    ] {
        let answer = post(client.url(CHAT), text(body)).await;

        assert_eq!(answer.status(), status);
        assert_eq!(said(&answer, "x-wiremesh-executed"), "no");
        let id = said(&answer, "x-request-id").to_owned();
        let error = json(answer).await["error"].take();
        assert_eq!(
            (&error["code"], &error["param"], &error["request_id"]),
            (&json!(code), &json!("model"), &json!(id))
        );
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["message"].as_str().unwrap().contains("llama-3.1-8b"), status == 404, "{error}");
    }
    assert_eq!(get(client.url("/v1/nothing")).await.status(), 404);
}

#[tokio::test]
async fn a_worker_that_no_longer_serves_the_model_is_asked_once_and_another_answers() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let (former, worker) = (
        mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await,
        mesh.agent("carol", 4, Service::ocr(mirror("carol").await)).await,
    );
    former.serves(&["other"]);
    worker.serves(&["large"]);
    client.knows_by(by("large"), [former.by_overlay(), worker.by_tunnel()]);

    let answer = post(client.url(CHAT), text(chat("large"))).await;

    assert_eq!((answer.status(), said(&answer, "x-wiremesh-worker")), (http::StatusCode::OK, "carol"));
    assert_eq!(*client.directory.forgotten.lock().unwrap(), [former.id]);
}

#[tokio::test]
async fn models_are_listed_over_all_workers_and_another_node_is_told_of_our_own_alone() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, Service::ocr(mirror("alice").await)).await;
    let bob = mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await;
    let carol = mesh.agent("carol", 4, Service::ocr(mirror("carol").await)).await;
    client.serves(&["small"]);
    bob.serves(&["org/large", "small"]);
    carol.serves(&["whisper"]);
    client.knows_by(Offer::AnyModel, [bob.by_overlay(), carol.by_tunnel(), nobody(9).await]);

    let all = json(get(client.url("/v1/models")).await).await;
    let one = json(get(client.url("/v1/models/org/large")).await).await;
    let none = get(client.url("/v1/models/huge")).await;
    let own = json(get(format!("http://{}/v1/models", client.overlay)).await).await;

    let ids = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&all), ["org/large", "small", "whisper"]);
    assert_eq!(all["data"][1]["workers"], json!(["alice", "bob"]));
    assert_eq!((&one["id"], &one["object"]), (&json!("org/large"), &json!("model")));
    assert_eq!(none.status(), 404);
    assert_eq!(json(none).await["error"]["code"], "model_not_found");
    assert_eq!(ids(&own), ["small"]);
}

#[tokio::test]
async fn a_model_that_had_no_room_in_its_workers_record_is_found_by_the_lists() {
    let mesh = Mesh::new();
    let client = mesh.agent("alice", 2, None).await;
    let worker = mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await;
    worker.serves(&["seventeenth"]);
    client.knows_by(Offer::AnyModel, [worker.by_overlay()]);

    let answer = post(client.url(CHAT), text(chat("seventeenth"))).await;

    assert_eq!((answer.status(), said(&answer, "x-wiremesh-worker")), (http::StatusCode::OK, "bob"));
}

#[tokio::test]
async fn a_forwarded_request_for_a_model_is_answered_here_or_refused() {
    let mesh = Mesh::new();
    let worker = mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await;
    worker.serves(&["large"]);
    worker.knows_by(by("other"), [worker.by_overlay()]);
    let asked = |model: &'static str| {
        let request = Request::post(format!("http://{}{CHAT}", worker.overlay)).header("x-wiremesh-model", model);
        super::mesh::client().request(request.body(text("not read")).unwrap())
    };

    let (served, other) = (asked("large").await.unwrap(), asked("other").await.unwrap());

    assert_eq!(served.status(), 200);
    assert_eq!((other.status(), said(&other, "x-wiremesh-executed")), (http::StatusCode::NOT_FOUND, "no"));
    assert_eq!(read(served).await, "not read");
}

#[tokio::test]
async fn bodies_of_other_nodes_are_read_a_little_and_take_no_room_from_our_own_clients() {
    let mesh = Mesh::new();
    let agent = mesh.agent("bob", 3, Service::ocr(mirror("bob").await)).await;
    agent.serves(&["large"]);
    let overlay = format!("http://{}{CHAT}", agent.overlay);

    // Whoever begins and stalls has a share of the places, also if policy forbids it everything.
    mesh.rule(None, Some(&[]));
    let (key, _) = mesh.member("mallory", 66);
    mesh.speaks(&key);
    let mut stalled = Vec::new();
    let refused = loop {
        let (pieces, body) = piped();
        pieces.send(Ok("{\"messages\": [\"".into())).await.unwrap();
        let mut asking = Box::pin(post(overlay.clone(), body));
        match tokio::time::timeout(std::time::Duration::from_millis(100), &mut asking).await {
            Ok(answer) => break answer,
            Err(_) => stalled.push((asking, pieces)),
        }
    };
    assert!((1..=64).contains(&stalled.len()), "{} are being read", stalled.len());
    assert_eq!((refused.status().as_u16(), said(&refused, "x-wiremesh-refused")), (429, "no_room_to_read"));

    // Another has its own share, a small body is served, and of a long one no more is read.
    mesh.rule(None, None);
    let (key, _) = mesh.member("alice", 2);
    mesh.speaks(&key);
    assert_eq!(post(overlay.clone(), text(chat("large"))).await.status(), 200);
    let long = json!({"messages": ["x".repeat(512 * 1024)], "model": "large"}).to_string();
    let too_far = post(overlay, text(long.clone())).await;
    assert_eq!(too_far.status(), 400);
    assert!(json(too_far).await["error"]["message"].as_str().unwrap().contains("x-wiremesh-model"));
    assert_eq!(post(agent.url(CHAT), text(long)).await.status(), 200);
}

#[tokio::test]
async fn who_finds_too_many_waiting_for_room_is_told_to_come_back() {
    use crate::router::io::replay::{ALL_AHEAD_BYTES, MAX_WAITING_FOR_ROOM, NotRead, Room};
    let room = Room::new();
    let all = room.take(ALL_AHEAD_BYTES).await.unwrap();
    let mut waiting = Box::pin(futures::future::join_all((0..MAX_WAITING_FOR_ROOM).map(|_| room.take(1))));
    assert!(futures::poll!(&mut waiting).is_pending());

    assert!(matches!(room.take(1).await, Err(NotRead::NoRoom)));

    drop(all);
    assert!(waiting.await.iter().all(Result::is_ok));
}
