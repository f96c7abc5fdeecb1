//! A service to be found and reached: says who answered, counts what it executed, streams both ways.
//!
//! | path | answer |
//! |---|---|
//! | `/alive` | 200, not counted |
//! | `/count` | what was executed, by `x-lab-request`; not counted |
//! | `/echo` | the body, as it comes |
//! | `/upload` | how many bytes came |
//! | `/download?bytes=N` | N bytes |
//! | `/sse?every_ms=50&count=N` | N events `tick I` |
//! | `/slow?ms=N` | who answered, after N ms |
//! | `/status?code=N` | who answered, with that status |
//! | `/v1/models` and a few calls below `/v1/` | as OpenAI's API, with `--models` |
//! | anything else | who answered, and what was asked |
//!
//! With `--speaks` it also says about itself what servers of that kind say, and `/say?running=N&waiting=N` makes it say
//! other figures; none of that is counted.

mod openai;
mod speaks;

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fs::{File, OpenOptions},
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{any, get, post},
};
use clap::Parser;
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};

/// Bodies of downloads go out in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// A service for the lab.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// The node it is on.
    #[arg(long)]
    who: String,
    /// The service it answers for.
    #[arg(long)]
    service: String,
    /// The models it serves, as an OpenAI-like server.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// What it says that it is.
    #[arg(long)]
    speaks: Option<speaks::Kind>,
    /// A file that gets a line with the `x-lab-request` of each request before it is executed: it survives whatever happens
    /// to us.
    #[arg(long)]
    journal: Option<PathBuf>,
}

/// Who this is and what it did.
struct Server {
    who: String,
    service: String,
    models: Vec<String>,
    executed: Mutex<BTreeMap<String, u64>>,
    journal: Option<File>,
}

impl Server {
    /// Whether the model that a request names is one of ours.
    fn serves(&self, asked: &Value) -> bool {
        self.models.iter().any(|model| asked["model"] == model.as_str())
    }
}

type Parameters = Query<HashMap<String, u64>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments { listen, who, service, models, speaks, journal } = Arguments::parse();
    let journal = journal.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
    let server = Arc::new(Server { who, service, models, executed: Mutex::new(BTreeMap::new()), journal });
    let counted = Router::new()
        .route("/echo", any(async |body: Body| body))
        .route("/upload", any(upload))
        .route("/download", any(download))
        .route("/sse", any(ticks))
        .route("/slow", any(slow))
        .route("/status", any(status))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/audio/transcriptions", post(openai::transcriptions))
        .route("/v1/realtime", get(openai::realtime))
        .fallback(answer)
        .layer(middleware::from_fn_with_state(server.clone(), count));
    let app = counted.route("/alive", get(async || "alive")).route("/count", get(executions));
    let app = if server.models.is_empty() { app } else { app.route("/v1/models", get(openai::models)) };
    let app = match speaks {
        Some(kind) => app.with_state(server).merge(speaks::pages(kind)),
        None => app.with_state(server),
    };
    let listener = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn count(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let id = request.headers().get("x-lab-request").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    if let Some(mut journal) = server.journal.as_ref()
        && let Err(error) = journal.write_all(format!("{id}\n").as_bytes())
    {
        eprintln!("an execution is not in the journal: {error}");
    }
    *server.executed.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default() += 1;
    next.run(request).await
}

async fn executions(State(server): State<Arc<Server>>) -> Json<Value> {
    let executed = server.executed.lock().unwrap_or_else(PoisonError::into_inner);
    Json(json!({ "total": executed.values().sum::<u64>(), "requests": *executed }))
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Result<Json<Value>, StatusCode> {
    let (parts, body) = request.into_parts();
    let bytes = length(body).await?;
    Ok(Json(json!({
        "who": server.who,
        "service": server.service,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "headers": names_and_values(&parts.headers),
        "bytes": bytes,
    })))
}

async fn upload(body: Body) -> Result<Json<Value>, StatusCode> {
    Ok(Json(json!({ "bytes": length(body).await? })))
}

async fn download(Query(parameters): Parameters) -> Body {
    let bytes = parameters.get("bytes").copied().unwrap_or_default();
    let pieces = bytes / PIECE_BYTES as u64;
    let rest = usize::try_from(bytes % PIECE_BYTES as u64).unwrap_or_default();
    let piece = Bytes::from(vec![0x77; PIECE_BYTES]);
    let last = piece.slice(..rest);
    let body = stream::iter(0..pieces).map(move |_| piece.clone()).chain(stream::once(async { last }));
    Body::from_stream(body.map(Ok::<_, Infallible>))
}

async fn ticks(Query(parameters): Parameters) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let every = Duration::from_millis(parameters.get("every_ms").copied().unwrap_or(50));
    let count = parameters.get("count").copied().unwrap_or(u64::MAX);
    Sse::new(stream::iter(0..count).then(move |number| async move {
        tokio::time::sleep(every).await;
        Ok(Event::default().data(format!("tick {number}")))
    }))
}

async fn slow(server: State<Arc<Server>>, Query(parameters): Parameters, request: Request) -> Response {
    tokio::time::sleep(Duration::from_millis(parameters.get("ms").copied().unwrap_or_default())).await;
    answer(server, request).await.into_response()
}

async fn status(server: State<Arc<Server>>, Query(parameters): Parameters, request: Request) -> Response {
    let code = parameters.get("code").and_then(|code| u16::try_from(*code).ok());
    let code = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::BAD_REQUEST);
    (code, answer(server, request).await).into_response()
}

/// Reads a body to its end without keeping it.
async fn length(body: Body) -> Result<u64, StatusCode> {
    let mut pieces = body.into_data_stream();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        bytes += piece.map_err(|_| StatusCode::BAD_REQUEST)?.len() as u64;
    }
    Ok(bytes)
}

fn names_and_values(headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
