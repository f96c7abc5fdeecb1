//! What servers of the known kinds say about themselves: their pages, with figures that a story sets.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{any, get},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A kind of server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Kind {
    Vllm,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Sglang,
    Tgi,
    Triton,
    Ollama,
}

/// What it is to say.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Figures {
    running: u32,
    waiting: u32,
    kv_percent: u32,
}

type Said = State<Arc<Mutex<Figures>>>;

/// llama.cpp's slots, and as many of the others as run at once.
const AT_ONCE: u32 = 2;

/// The pages of a server of this kind.
pub fn pages(kind: Kind) -> Router {
    let pages = Router::new().route("/say", any(say));
    let pages = match kind {
        Kind::Vllm => pages.route("/metrics", get(vllm)).route("/v1/models", get(models)),
        Kind::LlamaCpp => {
            pages.route("/slots", get(slots)).route("/props", get(props)).route("/v1/models", get(models))
        }
        Kind::Sglang => pages.route("/v1/loads", get(loads)).route("/v1/models", get(models)),
        Kind::Tgi => pages.route("/metrics", get(tgi)).route("/v1/models", get(models)),
        Kind::Triton => pages.route("/metrics", get(triton)).route("/v2", get(triton_server)),
        Kind::Ollama => pages.route("/", get(async || "Ollama is running")).route("/v1/models", get(models)),
    };
    // What it does not have is not there, and not a service's answer.
    let all = ["/metrics", "/slots", "/props", "/v1/loads", "/get_load", "/v2", "/v1/models"];
    let missing = all.into_iter().filter(|path| !has(kind, path));
    let pages = missing.fold(pages, |pages, path| pages.route(path, get(async || axum::http::StatusCode::NOT_FOUND)));
    pages.with_state(Arc::default())
}

fn has(kind: Kind, path: &str) -> bool {
    let own: &[&str] = match kind {
        Kind::Vllm | Kind::Tgi => &["/metrics", "/v1/models"],
        Kind::LlamaCpp => &["/slots", "/props", "/v1/models"],
        Kind::Sglang => &["/v1/loads", "/v1/models"],
        Kind::Triton => &["/metrics", "/v2"],
        Kind::Ollama => &["/v1/models"],
    };
    own.contains(&path)
}

async fn say(State(said): Said, Query(figures): Query<Figures>) {
    *said.lock().unwrap_or_else(PoisonError::into_inner) = figures;
}

fn figures(said: &Mutex<Figures>) -> Figures {
    *said.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn models() -> Json<Value> {
    Json(json!({"object": "list", "data": [{"id": "qwen3-8b", "object": "model", "owned_by": "lab"}]}))
}

async fn vllm(State(said): Said) -> String {
    let Figures { running, waiting, kv_percent } = figures(&said);
    let labels = "{engine=\"0\",model_name=\"qwen3-8b\"}";
    format!(
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n\
         # TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} {running}.0\n\
         # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{labels} {waiting}.0\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{labels} {}\n",
        f64::from(kv_percent) / 100.0
    )
}

async fn tgi(State(said): Said) -> String {
    let Figures { running, waiting, .. } = figures(&said);
    format!("# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size {running}\ntgi_queue_size {waiting}\n")
}

async fn triton(State(said): Said) -> String {
    let waiting = figures(&said).waiting;
    format!("nv_inference_pending_request_count{{model=\"resnet50\",version=\"1\"}} {waiting}\n")
}

async fn triton_server() -> Json<Value> {
    Json(json!({"name": "triton", "version": "2.60.0", "extensions": ["classification"]}))
}

async fn loads(State(said): Said) -> Json<Value> {
    let Figures { running, waiting, kv_percent } = figures(&said);
    Json(json!({"version": "0.5.9", "loads": [{
        "dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": waiting,
        "token_usage": f64::from(kv_percent) / 100.0, "max_running_requests": AT_ONCE,
    }]}))
}

async fn slots(State(said): Said) -> Json<Value> {
    let running = figures(&said).running;
    Json((0..AT_ONCE).map(|id| json!({"id": id, "n_ctx": 4096, "is_processing": id < running})).collect())
}

async fn props() -> Json<Value> {
    Json(json!({"total_slots": AT_ONCE, "model_path": "/models/qwen3-8b.gguf"}))
}
