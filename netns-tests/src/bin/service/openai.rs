//! What the service does as an OpenAI-like server, if it was given models: enough for a client of that API to be content.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::Server;

/// Words of a streamed answer, and the time between them.
const WORDS: [&str; 4] = ["all", "of", "it", "streamed"];
const WORD_EVERY: Duration = Duration::from_millis(30);

/// `GET /v1/models`
pub async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    let entry = |id: &String| json!({"id": id, "object": "model", "created": 1, "owned_by": server.who});
    Json(json!({"object": "list", "data": server.models.iter().map(entry).collect::<Vec<_>>()}))
}

/// `POST /v1/chat/completions`: says who answers, by which model, and how long the question was; in words, if it is to be
/// streamed.
pub async fn chat(State(server): State<Arc<Server>>, Json(asked): Json<Value>) -> Response {
    if !server.serves(&asked) {
        return StatusCode::IM_A_TEAPOT.into_response();
    }
    let base = |object: &str| json!({"id": "chatcmpl-1", "object": object, "created": 1, "model": asked["model"]});
    if asked["stream"] == true {
        let chunk = |delta: Value, finish: Value| {
            let mut chunk = base("chat.completion.chunk");
            chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
            chunk.to_string()
        };
        let words = WORDS.map(|word| chunk(json!({"role": "assistant", "content": format!("{word} ")}), Value::Null));
        let events: Vec<String> =
            words.into_iter().chain([chunk(json!({}), "stop".into()), "[DONE]".to_owned()]).collect();
        let events = stream::iter(events).then(|event| async move {
            tokio::time::sleep(WORD_EVERY).await;
            Ok::<_, Infallible>(Event::default().data(event))
        });
        return Sse::new(events).into_response();
    }
    let length = asked["messages"][0]["content"].as_str().map_or(0, str::len);
    let said = format!("{} by {}: {length} bytes", server.who, asked["model"].as_str().unwrap_or_default());
    let mut answer = base("chat.completion");
    answer["choices"] =
        json!([{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]);
    answer["usage"] = json!({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2});
    Json(answer).into_response()
}

/// `POST /v1/embeddings`
pub async fn embeddings(State(server): State<Arc<Server>>, Json(asked): Json<Value>) -> Response {
    if !server.serves(&asked) {
        return StatusCode::IM_A_TEAPOT.into_response();
    }
    // The first is what the client that asks for base64 wants: one 1.0 as a 32-bit float.
    let embedding = if asked["encoding_format"] == "base64" { json!("AACAPw==") } else { json!([1.0]) };
    Json(json!({"object": "list", "model": asked["model"], "usage": {"prompt_tokens": 1, "total_tokens": 1},
                "data": [{"object": "embedding", "index": 0, "embedding": embedding}]}))
    .into_response()
}

/// `POST /v1/audio/transcriptions`: says how long the form was.
pub async fn transcriptions(State(server): State<Arc<Server>>, form: Bytes) -> Json<Value> {
    Json(json!({"text": format!("{} heard {} bytes", server.who, form.len())}))
}

/// `GET /v1/realtime`: becomes a connection that says again what it is told.
#[expect(clippy::disallowed_methods, reason = "what it starts ends with its client")]
pub async fn realtime(headers: HeaderMap, mut request: Request) -> Response {
    let Some(protocol) = headers.get(header::UPGRADE).cloned() else {
        return StatusCode::UPGRADE_REQUIRED.into_response();
    };
    let turn = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(turned) = turn.await else { return };
        let (mut reading, mut writing) = tokio::io::split(TokioIo::new(turned));
        // It ends when the client goes.
        let _ = tokio::io::copy(&mut reading, &mut writing).await;
    });
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::UPGRADE, protocol);
    answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    answer
}
