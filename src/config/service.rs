//! `[[service]]`: what an agent offers, from the words of its configuration to types that cannot be wrong.

use std::time::Duration;

use serde::Deserialize;
use wiremesh_certs::ServiceName;

use crate::{
    services::{self, Expected, Kind},
    settings::{BadSettings, Span},
};

/// What a service's upstream is called that is to be recognised.
const AUTO: &str = "auto";
/// How long one command may hold up the end of the agent.
const MAX_STOP_GRACE: Duration = Duration::from_secs(600);

/// `[[service]]`
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// What others ask for.
    pub name: ServiceName,
    /// Where requests go, http.
    pub upstream: String,
    /// The path of its health probe.
    pub health: String,
    /// The answers to it that mean healthy.
    pub health_status: Expected,
    /// What the upstream is; `None`: to be found out.
    pub kind: Option<Kind>,
    /// Where the upstream shows its metrics; `None`: where its kind does.
    pub metrics_port: Option<u16>,
    /// What to run, if the agent supervises it.
    pub command: Vec<String>,
    /// How long the command may take to end after SIGTERM.
    pub stop_grace: Duration,
    /// Requests at once; `None`: as many as the upstream says.
    pub max_concurrency: Option<u32>,
    /// Requests that may wait for their turn.
    pub queue: u32,
}

/// The same as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceFile {
    name: ServiceName,
    upstream: String,
    #[serde(default = "root_path")]
    health: String,
    #[serde(default)]
    health_status: Vec<String>,
    #[serde(default = "auto")]
    kind: String,
    #[serde(default)]
    metrics_port: u16,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default = "stop_grace")]
    stop_grace: Span,
    max_concurrency: Option<u32>,
    #[serde(default = "sixteen")]
    queue: u32,
}

fn root_path() -> String {
    "/".to_owned()
}

fn auto() -> String {
    AUTO.to_owned()
}

fn stop_grace() -> Span {
    Span(services::DEFAULT_STOP_GRACE)
}

fn sixteen() -> u32 {
    16
}

/// Checks what types alone cannot, and that each is there once.
pub(super) fn check(services: Vec<ServiceFile>) -> Result<Vec<ServiceConfig>, BadSettings> {
    if services.len() > wiremesh_certs::MAX_SERVICES {
        return Err(BadSettings::about("service", "an agent offers at most 16 services"));
    }
    let mut names = std::collections::BTreeSet::new();
    services
        .into_iter()
        .map(|service| {
            let about = |key: &str, what: &str| BadSettings::about(&format!("service.{}.{key}", service.name), what);
            if !names.insert(service.name.clone()) {
                return Err(about("name", "this service is there twice"));
            }
            let upstream: http::Uri = service.upstream.parse().map_err(|_| about("upstream", "not a URL"))?;
            if upstream.scheme_str() != Some("http") || upstream.authority().is_none() {
                return Err(about("upstream", "an http URL is needed: \"http://127.0.0.1:11434\""));
            }
            if !service.health.starts_with('/') {
                return Err(about("health", "a path begins with '/'"));
            }
            if service.max_concurrency == Some(0) {
                return Err(about("max_concurrency", "at least 1; without it, as many as the upstream says"));
            }
            if service.stop_grace.0 > MAX_STOP_GRACE {
                return Err(about("stop_grace", "at most 10m: what stops the agent does not wait longer"));
            }
            let health_status =
                Expected::of(&service.health_status).map_err(|bad| about("health_status", &bad.to_string()))?;
            let kind = match service.kind.as_str() {
                AUTO => None,
                kind => Some(kind.parse().map_err(|()| {
                    let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
                    about("kind", &format!("{kind:?} is none; known are auto, {}", known.join(", ")))
                })?),
            };
            Ok(ServiceConfig {
                name: service.name,
                upstream: service.upstream,
                health: service.health,
                health_status,
                kind,
                metrics_port: (service.metrics_port != 0).then_some(service.metrics_port),
                command: service.command,
                stop_grace: service.stop_grace.0,
                max_concurrency: service.max_concurrency,
                queue: service.queue,
            })
        })
        .collect()
}
