//! `wiremesh agent`, and how the other commands find the one that runs.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::{
    app,
    config::Config,
    settings::{BadSettings, Layers},
    telemetry,
};

/// Read if it is there and no other is named.
const DEFAULT_CONFIG: &str = "/etc/wiremesh/agent.toml";
/// The predecessor's variables, still understood: what they were called, what they are.
const OLD_VARIABLES: [(&str, &str); 2] = [("WORKER_ID", "name"), ("COORDINATOR_URL", "coordinators")];

/// Where the agent's options are
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Where {
    /// The agent's configuration file [default: /etc/wiremesh/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the agent keeps its keys and state [default: /var/lib/wiremesh]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Runs the agent of this machine
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh agent --config agent.toml\n  \
    wiremesh agent --name worker-1 --state-dir ./state --join-token-file token\n  \
    wiremesh agent --check && systemctl restart wiremesh-agent")]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// The node's name, a DNS label [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// A file that holds the join token; needed until the agent has joined
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<String>,
    /// Where clients of this machine are answered [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Reads the configuration, says whether it can be used, and starts nothing
    #[arg(long)]
    check: bool,
}

/// Runs the agent until it is told to stop.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let layers = layers(&args.at)?
        .set_if("name", args.name.as_ref(), "--name")
        .and_then(|layers| layers.set_if("join_token_file", args.join_token_file.as_ref(), "--join-token-file"))
        .and_then(|layers| layers.set_if("api.listen", args.listen.as_ref(), "--listen"))
        .map_err(Failure::usage)?;
    let config = read(layers)?;
    if args.check {
        writeln!(out, "the configuration can be used: {} with {} services", config.name, config.services.len())?;
        return Ok(());
    }
    telemetry::start();
    app::run(config).await
}

impl Where {
    /// The agent that these name; none: the usual one.
    pub fn of(config: Option<PathBuf>, state_dir: Option<PathBuf>) -> Where {
        Where { config, state_dir }
    }

    /// The state directory of the agent that is meant.
    pub fn state_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(state_dir) = &self.state_dir {
            return Ok(state_dir.clone());
        }
        Ok(read(layers(self)?)?.state_dir)
    }

    /// The socket of the agent that is meant.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        Ok(self.state_dir()?.join(app::SOCKET))
    }
}

/// File, environment and the flags that all commands share.
fn layers(at: &Where) -> Result<Layers, Failure> {
    let mut layers = Layers::new();
    if let Some(path) = at.config.as_deref().or_else(|| Some(Path::new(DEFAULT_CONFIG)).filter(|path| path.exists())) {
        // It may hold a join token.
        let text = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .with_context(|| format!("could not read the configuration {}", path.display()))
            .map_err(Failure::usage)?;
        layers = layers.file(&path.display().to_string(), &text).map_err(Failure::usage)?;
    }
    for (old, option) in OLD_VARIABLES {
        if let Ok(value) = std::env::var(old) {
            layers = layers.set(option, value, old).map_err(Failure::usage)?;
        }
    }
    layers
        .environment(std::env::vars_os().filter_map(as_text), super::OTHER_VARIABLES)
        .and_then(|layers| {
            layers.set_if("state_dir", at.state_dir.as_ref().map(|path| path.display().to_string()), "--state-dir")
        })
        .map_err(Failure::usage)
}

fn read(layers: Layers) -> Result<Config, Failure> {
    let host_name = nix::unistd::gethostname().unwrap_or_default();
    Config::read(layers, &host_name.to_string_lossy()).map_err(|bad: BadSettings| Failure::usage(bad))
}

fn as_text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}
