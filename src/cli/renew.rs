//! `wiremesh cert renew`: this machine's agent renews its certificate now.

use std::{io::Write, path::Path};

use serde::Deserialize;

use super::{agent::Where, failure::Failure, socket};

/// Has this machine's agent renew its certificate now, and not when half of its life is over
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh cert renew\n  wiremesh cert renew --json")]
pub struct Args {
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// As the agent tells it.
#[derive(Debug, Deserialize, serde::Serialize)]
struct Renewed {
    not_after: String,
}

/// Renews, and says until when.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    renew(&args.at.socket()?, args.json, out).await
}

async fn renew(socket: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let renewed: Renewed = socket::post(socket, "/renew", &serde_json::json!({})).await?;
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&renewed)?)?,
        false => writeln!(out, "renewed: the certificate is valid until {}", renewed.not_after)?,
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use axum::{Json, Router, http::StatusCode, routing::post};
    use serde_json::{Value, json};

    use super::*;

    async fn said(status: StatusCode, answer: Value, json: bool) -> Result<String, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let page = post(async move || (status, Json(answer)));
        tokio::task::spawn(async move { axum::serve(listener, Router::new().route("/renew", page)).await });
        let mut out = Vec::new();
        renew(&socket, json, &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn the_new_end_is_said() {
        let answer = json!({ "not_after": "2027-01-15T08:00:00Z" });

        let text = said(StatusCode::OK, answer.clone(), false).await.unwrap();
        let printed = said(StatusCode::OK, answer.clone(), true).await.unwrap();

        assert_eq!(text, "renewed: the certificate is valid until 2027-01-15T08:00:00Z\n");
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), answer);
    }

    #[tokio::test]
    async fn why_not_is_said_with_what_to_do() {
        let answer = json!({ "error": { "message": "no coordinator is known", "hint": "name one" } });

        let failure = said(StatusCode::BAD_GATEWAY, answer, false).await.unwrap_err();

        assert_eq!(failure.to_string(), "error: no coordinator is known\nhint: name one");
    }
}
