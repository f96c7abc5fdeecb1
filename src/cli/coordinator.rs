//! `wiremesh coordinator`, and how the other commands find the one that runs.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::failure::Failure;
use crate::{
    coordinator::{self, Config},
    settings::Layers,
    telemetry,
};

/// Read if it is there and no other is named.
const DEFAULT_CONFIG: &str = "/etc/wiremesh/coordinator.toml";
/// Variables that begin like options and are none.
const OTHER_VARIABLES: &[&str] = &["BIN", "SANDBOX", "CA_PASSPHRASE"];

/// Where the coordinator's options are
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Where {
    /// The coordinator's configuration file [default: /etc/wiremesh/coordinator.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the coordinator keeps its authority and database [default: /var/lib/wiremesh-coordinator]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the coordinator; makes the mesh's authority and the database on first start
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh coordinator --config coordinator.toml\n  \
    wiremesh coordinator --data-dir ./data --listen 0.0.0.0:8080 --public-url https://203.0.113.1:8080")]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// Where HTTPS is served [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where agents reach it; may be given several times
    #[arg(long = "public-url", value_name = "URL")]
    public_urls: Vec<String>,
    /// Reads the configuration, says whether it can be used, and starts nothing
    #[arg(long)]
    check: bool,
}

/// Runs the coordinator until it is told to stop.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let public_urls = (!args.public_urls.is_empty()).then(|| args.public_urls.join(","));
    let layers = layers(&args.at)?
        .set_if("listen", args.listen.as_ref(), "--listen")
        .and_then(|layers| layers.set_if("public_urls", public_urls, "--public-url"))
        .map_err(Failure::usage)?;
    let config = Config::from_layers(layers).map_err(Failure::usage)?;
    if args.check {
        writeln!(out, "the configuration can be used: mesh {} with {}", config.mesh, config.network)?;
        return Ok(());
    }
    telemetry::start();
    coordinator::io::run(config).await.inspect_err(telemetry::last_words).map_err(Failure::from)
}

impl Where {
    /// The coordinator that these name; none: the usual one.
    pub fn of(config: Option<PathBuf>, data_dir: Option<PathBuf>) -> Where {
        Where { config, data_dir }
    }

    /// The operator's socket of the coordinator that is meant.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(data_dir) = &self.data_dir {
            return Ok(data_dir.join(coordinator::io::SOCKET));
        }
        let config = Config::from_layers(layers(self)?).map_err(Failure::usage)?;
        Ok(config.data_dir.join(coordinator::io::SOCKET))
    }
}

fn layers(at: &Where) -> Result<Layers, Failure> {
    let mut layers = Layers::new();
    if let Some(path) = at.config.as_deref().or_else(|| Some(Path::new(DEFAULT_CONFIG)).filter(|path| path.exists())) {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("could not read the configuration {}", path.display()))
            .map_err(Failure::usage)?;
        layers = layers.file(&path.display().to_string(), &text).map_err(Failure::usage)?;
    }
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    layers
        .environment(variables, OTHER_VARIABLES)
        .and_then(|layers| {
            layers.set_if("data_dir", at.data_dir.as_ref().map(|path| path.display().to_string()), "--data-dir")
        })
        .map_err(Failure::usage)
}
