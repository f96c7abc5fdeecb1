//! `wiremesh demo-service`: something to offer while a mesh is tried out. Small, but real work with real answers.

use std::{collections::BTreeMap, net::SocketAddr};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A text that is counted is held in memory.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Trial division up to the root of this takes a second or so.
const MAX_NUMBER: u64 = 1 << 60;

/// Runs a small HTTP service, to try a mesh with
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh demo-service words --listen 127.0.0.1:9000\n  \
    curl http://127.0.0.1:9000/ -d 'to be or not to be'")]
pub struct Args {
    /// What it does
    #[arg(value_enum)]
    kind: Kind,
    /// Where it listens
    #[arg(long)]
    listen: SocketAddr,
}

/// What the services do with a body.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Kind {
    /// Its SHA-256, computed as it comes.
    Checksum,
    /// The words of a text, counted.
    Words,
    /// The prime factors of a number.
    Primes,
}

/// Serves until the process is ended.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.listen).await?;
        axum::serve(listener, router(args.kind)).await?;
        Ok(())
    })
}

fn router(kind: Kind) -> Router {
    let work = move |body: Body| async move {
        let done = match kind {
            Kind::Checksum => checksum(body).await,
            Kind::Words => text(body).await.map(|text| words(&text)),
            Kind::Primes => match text(body).await {
                Ok(text) => primes(&text),
                Err(refusal) => Err(refusal),
            },
        };
        match done {
            Ok(answer) => Json(answer).into_response(),
            Err(why) => refusal(why),
        }
    };
    Router::new().route("/", get(async || "ready\n").post(work))
}

async fn checksum(body: Body) -> Result<Value, &'static str> {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| "the body broke off")?;
        bytes += piece.len();
        hasher.update(&piece);
    }
    Ok(json!({ "bytes": bytes, "sha256": hex::encode(hasher.finalize()) }))
}

fn words(text: &str) -> Value {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    let most = counts.iter().max_by_key(|(_, count)| **count).map(|(word, _)| word);
    json!({ "words": counts.values().sum::<u64>(), "distinct": counts.len(), "most_frequent": most })
}

fn primes(text: &str) -> Result<Value, &'static str> {
    let number: u64 = text.trim().parse().map_err(|_| "not a whole number")?;
    if !(2..=MAX_NUMBER).contains(&number) {
        return Err("not between 2 and 2^60");
    }
    let (mut rest, mut divisor, mut factors) = (number, 2, Vec::new());
    while divisor * divisor <= rest {
        while rest % divisor == 0 {
            factors.push(divisor);
            rest /= divisor;
        }
        divisor += 1;
    }
    if rest > 1 {
        factors.push(rest);
    }
    Ok(json!({ "number": number, "factors": factors }))
}

async fn text(body: Body) -> Result<String, &'static str> {
    let bytes = to_bytes(body, MAX_TEXT_BYTES).await.map_err(|_| "the body is too long or broke off")?;
    String::from_utf8(bytes.into()).map_err(|_| "the body is not text")
}

fn refusal(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": { "type": "bad_request", "message": why } }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_multiply_to_the_number() {
        let answer = primes("600851475143\n").unwrap();

        assert_eq!(answer["factors"], json!([71, 839, 1471, 6857]));
        assert!(primes("1").is_err() && primes("seven").is_err());
    }

    #[test]
    fn words_are_counted_without_regard_to_case() {
        let answer = words("To be, or not to be.");

        assert_eq!(answer["words"], 6);
        assert_eq!(answer["distinct"], 4);
    }
}
