//! `wiremesh drain`: this machine's agent finishes what it has begun, and others answer what comes next.

use std::{io::Write, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use super::{agent::Where, failure::Failure, socket};

/// How often is looked what is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Lets this machine's agent finish what it has begun and take nothing new, until --cancel or a restart
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  wiremesh drain --wait && systemctl stop wiremesh-agent\n  wiremesh drain --cancel"
)]
pub struct Args {
    /// Returns when nothing is in flight any more
    #[arg(long)]
    wait: bool,
    /// Calls a drain off: its services take requests again
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Prints a JSON object for every change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// How far it is, as the agent tells it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Progress {
    draining: bool,
    in_flight: u64,
}

/// Begins to drain; with `--wait` returns at its end. With `--cancel` ends it.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    if args.cancel {
        let progress = socket::delete(&args.at.socket()?, "/drain").await?;
        return print(progress, args.json, out);
    }
    drain(&args.at.socket()?, args.wait, args.json, out).await
}

async fn drain(socket: &Path, wait: bool, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let mut progress: Progress = socket::post(socket, "/drain", &serde_json::json!({})).await?;
    print(progress, json, out)?;
    while wait && progress.in_flight > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
        let before = std::mem::replace(&mut progress, socket::get(socket, "/drain").await?);
        if progress != before {
            print(progress, json, out)?;
        }
    }
    Ok(())
}

fn print(progress: Progress, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    match (json, progress.in_flight) {
        (false, _) if !progress.draining => writeln!(out, "not draining: services take requests")?,
        (true, _) => writeln!(out, "{}", serde_json::to_string(&progress)?)?,
        (false, 0) => writeln!(out, "drained: nothing is in flight")?,
        (false, 1) => writeln!(out, "draining: 1 request is in flight")?,
        (false, more) => writeln!(out, "draining: {more} requests are in flight")?,
    }
    // Who waits wants to see it.
    out.flush()?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use axum::{Json, Router, routing::get};

    use super::*;

    /// An agent that has two requests in flight when it is told to drain, and one less each time it is asked.
    fn agent(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let socket = folder.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let left = Arc::new(AtomicU64::new(2));
        let asked = left.clone();
        let tell = |in_flight| Json(Progress { draining: true, in_flight });
        let pages = get(async move || tell(asked.fetch_sub(1, Ordering::SeqCst) - 1));
        let pages = pages.post(async move || tell(left.load(Ordering::SeqCst)));
        tokio::task::spawn(async move { axum::serve(listener, Router::new().route("/drain", pages)).await });
        socket
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_tells_every_change_and_returns_when_nothing_is_in_flight() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();

        drain(&agent(&folder), true, false, &mut out).await.unwrap();

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "draining: 2 requests are in flight\ndraining: 1 request is in flight\ndrained: nothing is in flight\n"
        );
    }

    #[test]
    fn what_does_not_drain_is_not_called_drained() {
        let mut out = Vec::new();

        print(Progress { draining: false, in_flight: 0 }, false, &mut out).unwrap();

        assert_eq!(out, b"not draining: services take requests\n");
    }

    #[tokio::test(start_paused = true)]
    async fn without_waiting_it_returns_when_draining_has_begun() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();

        drain(&agent(&folder), false, true, &mut out).await.unwrap();

        assert_eq!(String::from_utf8(out).unwrap(), "{\"draining\":true,\"in_flight\":2}\n");
    }
}
