//! `wiremesh health`: whether this machine's agent or coordinator is ready, as an exit code for whatever watches it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::{agent, coordinator, failure::Failure, socket};

/// Says whether this machine's agent (or coordinator) is ready: exit code 0 if it is, 1 if not
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh health\n  wiremesh health --coordinator\n  \
    docker run --health-cmd 'wiremesh health' …")]
pub struct Args {
    /// Asks the coordinator of this machine, not the agent
    #[arg(long)]
    coordinator: bool,
    /// The agent's or coordinator's configuration file [default: as theirs, in /etc/wiremesh]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the agent keeps its keys and state [default: /var/lib/wiremesh]
    #[arg(long, value_name = "DIR", conflicts_with = "coordinator")]
    state_dir: Option<PathBuf>,
    /// Where the coordinator keeps its authority and database [default: /var/lib/wiremesh-coordinator]
    #[arg(long, value_name = "DIR", requires = "coordinator")]
    data_dir: Option<PathBuf>,
}

/// Asks it.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let (socket, path) = match args.coordinator {
        true => (coordinator::Where::of(args.config.clone(), args.data_dir.clone()).socket()?, "/health"),
        false => (agent::Where::of(args.config.clone(), args.state_dir.clone()).socket()?, "/health/ready"),
    };
    ask(&socket, path).await?;
    writeln!(out, "ready")?;
    Ok(())
}

/// Any failure is exit code 1: for whoever watches, an agent that is not there is as good as one that is not ready.
async fn ask(socket: &Path, path: &str) -> Result<(), Failure> {
    let status = socket::status_of(socket, path).await?;
    if status.is_success() { Ok(()) } else { Err(anyhow::anyhow!("not ready").into()) }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};

    use super::*;
    use crate::cli::failure::FAILED;

    #[tokio::test]
    async fn ready_not_ready_and_not_there_are_told_apart_from_well() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");

        assert_eq!(ask(&socket, "/ready").await.unwrap_err().exit, FAILED);

        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let pages = Router::new()
            .route("/ready", get(async || "ready\n"))
            .route("/busy", get(async || (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")));
        tokio::task::spawn(async move { axum::serve(listener, pages).await });

        assert!(ask(&socket, "/ready").await.is_ok());
        assert_eq!(ask(&socket, "/busy").await.unwrap_err().exit, FAILED);
    }
}
