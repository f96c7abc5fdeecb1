//! `wiremesh keys`: what this machine does with its own keys.

use std::{io::Write, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{agent::Where, failure::Failure, socket};
use crate::clock;

/// How often is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longer than answers in flight may take to end unless configured otherwise, and a start.
const PATIENCE: Duration = Duration::from_secs(120);

/// Changes the keys of this machine
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh keys rotate\n  wiremesh keys rotate --config agent.toml --json")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Makes a new identity key and a new WireGuard key, has them certified and starts the agent with them
    ///
    /// Name, address, groups and services stay. Requests in flight are finished first; the keys before are revoked and
    /// erased.
    #[command(after_help = "Example:\n  wiremesh keys rotate --json")]
    Rotate(Rotate),
}

#[derive(Clone, Debug, clap::Args)]
struct Rotate {
    /// Prints a JSON object for every step
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// The identities, as the agent tells them.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Keys {
    present: String,
    next: String,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Certified,
    Changed,
}

/// Does it; returns when the agent runs with the new keys.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let Command::Rotate(args) = &args.command;
    rotate(&args.at.socket()?, args.json, out).await
}

async fn rotate(socket: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let keys: Keys = socket::post(socket, "/keys/rotate", &serde_json::json!({})).await?;
    print(Step::Certified, &keys, json, out)?;
    let deadline = clock::now() + PATIENCE;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Between the two starts nobody answers.
        let status: Result<Value, Failure> = socket::get(socket, "/status").await;
        if status.is_ok_and(|status| status["id"] == keys.next.as_str() && status["state"] != "starting") {
            return print(Step::Changed, &keys, json, out);
        }
        if clock::now() >= deadline {
            let waited = PATIENCE.as_secs();
            return Err(Failure::from(anyhow::anyhow!("the agent does not run with its new keys after {waited} s"))
                .hint("the new keys are on disk, and any start uses them; its log says what it waits for"));
        }
    }
}

fn print(step: Step, keys: &Keys, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let (present, next) = (short(&keys.present), short(&keys.next));
    match (json, step) {
        (true, _) => {
            let line = serde_json::json!({ "step": step, "present": keys.present, "next": keys.next });
            writeln!(out, "{line}")?;
        }
        (false, Step::Certified) => {
            writeln!(out, "new keys are certified ({next}); finishing what is in flight, then starting with them")?;
        }
        (false, Step::Changed) => {
            writeln!(out, "changed keys: {present} is {next} from here on; name and address stay")?
        }
    }
    // Who waits wants to see it.
    out.flush()?;
    Ok(())
}

fn short(identity: &str) -> &str {
    identity.get(..8).unwrap_or(identity)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use axum::{
        Json, Router,
        routing::{get, post},
    };

    use super::*;

    /// An agent that has its new keys when its status is asked for the third time.
    fn agent(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let socket = folder.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (present, next) = ("a".repeat(64), "b".repeat(64));
        let keys = Keys { present: present.clone(), next: next.clone() };
        let asked = Arc::new(AtomicU64::new(0));
        let status = async move || {
            let id = if asked.fetch_add(1, Ordering::SeqCst) < 2 { &present } else { &next };
            Json(serde_json::json!({ "id": id, "state": "healthy" }))
        };
        let pages =
            Router::new().route("/keys/rotate", post(async move || Json(keys.clone()))).route("/status", get(status));
        tokio::task::spawn(async move { axum::serve(listener, pages).await });
        socket
    }

    #[tokio::test(start_paused = true)]
    async fn it_returns_when_the_agent_runs_with_its_new_keys() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();

        rotate(&agent(&folder), false, &mut out).await.unwrap();

        let printed = String::from_utf8(out).unwrap();
        assert!(printed.starts_with("new keys are certified (bbbbbbbb)"), "{printed}");
        assert!(printed.ends_with("changed keys: aaaaaaaa is bbbbbbbb from here on; name and address stay\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn with_json_each_step_is_an_object() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();

        rotate(&agent(&folder), true, &mut out).await.unwrap();

        let steps: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&steps[0]["step"], &steps[1]["step"]), (&"certified".into(), &"changed".into()));
    }
}
