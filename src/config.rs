//! The agent's configuration: read from a file, the environment and flags into types that cannot be wrong.

mod service;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use wiremesh_certs::{NodeName, TunnelUrl, WgPublicKey};
use zeroize::Zeroizing;

use crate::{
    settings::{BadSettings, Layers, Place, Span},
    telemetry::access_log,
};
pub use service::ServiceConfig;
use service::ServiceFile;

/// Where an agent keeps its keys, certificate and what it remembers, unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/wiremesh";
/// Overlay packets of this size fit through any path, with WireGuard around them. QUIC needs 1,200 bytes of payload.
pub const MIN_OVERLAY_MTU: u16 = 1280;
/// The shortest life of an agent's keys.
const MIN_ROTATION: Duration = Duration::from_secs(3600);
/// New keys more often than this cost more than they protect.
const MIN_REKEY_AFTER: Duration = Duration::from_secs(1);
/// WireGuard makes new keys at this age by itself.
const MAX_REKEY_AFTER: Duration = Duration::from_secs(120);

/// Everything an agent is told by its operator.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in the mesh.
    pub name: NodeName,
    /// Where it keeps what must survive a restart.
    pub state_dir: PathBuf,
    /// A join token, or the file that holds one. Needed until the agent has joined.
    pub join_token: Option<JoinTokenSource>,
    /// Coordinators to try, besides those in the token.
    pub coordinators: Vec<String>,
    /// How long answers in flight may take to end when the agent is asked to stop.
    pub drain_grace: Duration,
    /// How often it changes its keys; `None`: only when told to.
    pub rotate_keys_every: Option<Duration>,
    /// The network of packets.
    pub overlay: OverlayConfig,
    /// The table of who offers what.
    pub dht: DhtConfig,
    /// Its HTTP listeners.
    pub api: ApiConfig,
    /// What it tells a collector.
    pub telemetry: TelemetryConfig,
    /// What it offers.
    pub services: Vec<ServiceConfig>,
}

/// Where the join token is.
#[derive(Clone)]
pub enum JoinTokenSource {
    /// In the configuration itself.
    Text(Zeroizing<String>),
    /// In a file of its own.
    File(PathBuf),
}

impl std::fmt::Debug for JoinTokenSource {
    /// Does not show the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JoinTokenSource::Text(_) => f.write_str("Text(…)"),
            JoinTokenSource::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// `[overlay]`
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// False: other nodes are reached by their tunnel URLs alone.
    pub enabled: bool,
    /// Whether the agent is not to run without it.
    pub required: bool,
    /// Name of the TUN interface.
    pub interface: String,
    /// UDP, both address families.
    pub listen_port: u16,
    /// `None`: derived from the underlay.
    pub mtu: Option<u16>,
    /// Endpoints others should try first.
    pub advertise: Vec<SocketAddr>,
    /// WireGuard peers that are configured by hand and have no certificate.
    pub peers: Vec<StandardPeer>,
    /// The age at which sessions get new keys.
    pub rekey_after: Duration,
    /// `[overlay.offload]`
    pub offload: OffloadConfig,
}

/// `[overlay.offload]`: what the kernel may do with many packets at once. Where it cannot, packets go one by one whatever
/// is said here; turning one off tells whether it is the one that breaks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct OffloadConfig {
    /// The interface hands over and takes large packets.
    pub tun: bool,
    /// One send carries many datagrams.
    pub udp_send: bool,
    /// One receive carries many datagrams.
    pub udp_receive: bool,
}

impl Default for OffloadConfig {
    fn default() -> OffloadConfig {
        OffloadConfig { tun: true, udp_send: true, udp_receive: true }
    }
}

/// `[[overlay.peer]]`: a standard WireGuard peer, believed because the operator of this agent says so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StandardPeer {
    /// Its key.
    pub public_key: WgPublicKey,
    /// The inner addresses that are its own.
    pub allowed: Vec<IpNet>,
    /// Where it is, if it does not call first.
    pub endpoint: Option<SocketAddr>,
    /// How often something is sent to keep a NAT on the way open, in seconds.
    pub keepalive_secs: Option<u16>,
}

/// `[dht]`
#[derive(Clone, Debug)]
pub struct DhtConfig {
    /// False: services are found through the coordinator alone.
    pub enabled: bool,
    /// UDP, on the overlay address.
    pub port: u16,
}

/// `[api]`
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// For clients on this machine.
    pub listen: SocketAddr,
    /// For other nodes, on the overlay address.
    pub overlay_port: u16,
    /// Where a public tunnel ends; every request there needs proof.
    pub ingress: Option<SocketAddr>,
    /// The public URL that leads to `ingress`.
    pub tunnel_url: Option<TunnelUrl>,
    /// The key that clients of `listen` must show.
    pub key_file: Option<PathBuf>,
    /// Where a line is written for each request.
    pub access_log: Option<access_log::To>,
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// The base URL of an OpenTelemetry collector that takes spans over HTTP.
    pub otlp_endpoint: Option<String>,
    /// What this service is called in traces.
    pub service_name: String,
    /// How many of the traces that begin here are recorded, 0 to 1.
    pub sample: f64,
}

impl Config {
    /// Reads what was given. `host_name` serves as the name if none was given.
    pub fn read(layers: Layers, host_name: &str) -> Result<Config, BadSettings> {
        let file: File = layers.read()?;
        let name = match file.name {
            Some(name) => name,
            None => label_from(host_name).ok_or_else(|| {
                BadSettings::about(
                    "name",
                    format!("not given, and the host name {host_name:?} does not make a DNS label"),
                )
            })?,
        };
        let join_token = match (file.join_token, file.join_token_file) {
            (Some(_), Some(_)) => {
                return Err(BadSettings::about("join_token", "given, and join_token_file too; one is enough"));
            }
            (Some(text), None) => Some(JoinTokenSource::Text(Zeroizing::new(text))),
            (None, Some(path)) => Some(JoinTokenSource::File(path)),
            (None, None) => None,
        };
        for url in &file.coordinators {
            if !url.starts_with("https://") {
                return Err(BadSettings::about("coordinators", format!("{url:?} is not an https URL")));
            }
        }
        Ok(Config {
            name,
            state_dir: file.state_dir,
            join_token,
            coordinators: file.coordinators,
            drain_grace: file.drain_grace.0,
            rotate_keys_every: rotation(file.rotate_keys_every.0)?,
            overlay: file.overlay.check()?,
            dht: DhtConfig { enabled: file.dht.enabled, port: file.dht.port },
            api: file.api.check()?,
            telemetry: file.telemetry.check()?,
            services: service::check(file.service)?,
        })
    }
}

/// Each change starts the agent's parts anew and leaves an identity on the revocation list: not something to be done all
/// the time.
fn rotation(every: Duration) -> Result<Option<Duration>, BadSettings> {
    match every {
        Duration::ZERO => Ok(None),
        every if every < MIN_ROTATION => {
            Err(BadSettings::about("rotate_keys_every", "0s (never by itself) or at least 1h"))
        }
        every => Ok(Some(every)),
    }
}

/// The file as written. Lives no longer than [`Config::read`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<NodeName>,
    state_dir: PathBuf,
    join_token: Option<String>,
    join_token_file: Option<PathBuf>,
    coordinators: Vec<String>,
    drain_grace: Span,
    rotate_keys_every: Span,
    overlay: OverlayFile,
    dht: DhtFile,
    api: ApiFile,
    telemetry: TelemetryFile,
    service: Vec<ServiceFile>,
}

impl Default for File {
    fn default() -> File {
        File {
            name: None,
            state_dir: DEFAULT_STATE_DIR.into(),
            join_token: None,
            join_token_file: None,
            coordinators: Vec::new(),
            drain_grace: Span(Duration::from_secs(30)),
            rotate_keys_every: Span(Duration::ZERO),
            overlay: OverlayFile::default(),
            dht: DhtFile::default(),
            api: ApiFile::default(),
            telemetry: TelemetryFile::default(),
            service: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OverlayFile {
    enabled: bool,
    required: bool,
    interface: String,
    listen_port: u16,
    mtu: u16,
    advertise: Vec<Place>,
    rekey_after: Span,
    offload: OffloadConfig,
    peer: Vec<PeerFile>,
}

impl Default for OverlayFile {
    fn default() -> OverlayFile {
        OverlayFile {
            enabled: true,
            required: false,
            interface: "wiremesh0".to_owned(),
            listen_port: 51820,
            mtu: 0,
            advertise: Vec::new(),
            rekey_after: Span(MAX_REKEY_AFTER),
            offload: OffloadConfig::default(),
            peer: Vec::new(),
        }
    }
}

impl OverlayFile {
    fn check(self) -> Result<OverlayConfig, BadSettings> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if self.interface.is_empty() || self.interface.len() > 15 || !self.interface.bytes().all(good) {
            return Err(BadSettings::about(
                "overlay.interface",
                "an interface name has 1 to 15 letters, digits, '-', '_', '.'",
            ));
        }
        if self.listen_port == 0 {
            return Err(BadSettings::about("overlay.listen_port", "0 is no port: others must know where to send"));
        }
        if self.mtu != 0 && self.mtu < MIN_OVERLAY_MTU {
            return Err(BadSettings::about("overlay.mtu", "0 (from the underlay) or at least 1280"));
        }
        if self.advertise.len() > wiremesh_certs::MAX_ENDPOINTS {
            return Err(BadSettings::about("overlay.advertise", "at most 8 endpoints fit into a record"));
        }
        if self.rekey_after.0 < MIN_REKEY_AFTER || self.rekey_after.0 > MAX_REKEY_AFTER {
            return Err(BadSettings::about(
                "overlay.rekey_after",
                "between 1s and 120s, as long as WireGuard's keys may live",
            ));
        }
        Ok(OverlayConfig {
            enabled: self.enabled,
            required: self.required,
            interface: self.interface,
            listen_port: self.listen_port,
            mtu: (self.mtu != 0).then_some(self.mtu),
            advertise: self.advertise.into_iter().map(|place| place.0).collect(),
            peers: self.peer.into_iter().map(PeerFile::check).collect::<Result<_, _>>()?,
            rekey_after: self.rekey_after.0,
            offload: self.offload,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerFile {
    public_key: WgPublicKey,
    address: Addresses,
    endpoint: Option<Place>,
    keepalive: Option<Span>,
}

/// One address or network, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Several(Vec<String>),
}

impl PeerFile {
    fn check(self) -> Result<StandardPeer, BadSettings> {
        let texts = match self.address {
            Addresses::One(text) => vec![text],
            Addresses::Several(texts) => texts,
        };
        let network = |text: &String| {
            text.parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| BadSettings::about("overlay.peer.address", format!("{text:?} is no address or network")))
        };
        let allowed = texts.iter().map(network).collect::<Result<Vec<_>, _>>()?;
        if allowed.is_empty() {
            return Err(BadSettings::about("overlay.peer.address", "at least one address is needed"));
        }
        let keepalive_secs = match self.keepalive {
            None => None,
            Some(Span(keepalive)) => {
                let seconds = u16::try_from(keepalive.as_secs()).ok().filter(|seconds| *seconds > 0);
                let bad = || BadSettings::about("overlay.peer.keepalive", "between 1s and 18h");
                Some(seconds.ok_or_else(bad)?)
            }
        };
        Ok(StandardPeer {
            public_key: self.public_key,
            allowed,
            endpoint: self.endpoint.map(|place| place.0),
            keepalive_secs,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DhtFile {
    enabled: bool,
    port: u16,
}

impl Default for DhtFile {
    fn default() -> DhtFile {
        DhtFile { enabled: true, port: 8468 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApiFile {
    listen: Place,
    overlay_port: u16,
    ingress: String,
    tunnel_url: String,
    key_file: PathBuf,
    allow_anonymous: bool,
    access_log: String,
}

impl Default for ApiFile {
    fn default() -> ApiFile {
        ApiFile {
            listen: Place((Ipv4Addr::LOCALHOST, 8000).into()),
            overlay_port: 8000,
            ingress: String::new(),
            tunnel_url: String::new(),
            key_file: PathBuf::new(),
            allow_anonymous: false,
            access_log: String::new(),
        }
    }
}

impl ApiFile {
    fn check(self) -> Result<ApiConfig, BadSettings> {
        let given = |text: &str| !text.is_empty();
        let key_file = (!self.key_file.as_os_str().is_empty()).then_some(self.key_file);
        if !self.listen.0.ip().is_loopback() && key_file.is_none() && !self.allow_anonymous {
            return Err(BadSettings::about(
                "api.listen",
                "others can reach this address: name a key_file, or say allow_anonymous = true",
            ));
        }
        let ingress = given(&self.ingress)
            .then(|| self.ingress.parse().map_err(|_| BadSettings::about("api.ingress", "not an address with a port")))
            .transpose()?;
        let tunnel_url = given(&self.tunnel_url)
            .then(|| self.tunnel_url.parse().map_err(|bad| BadSettings::about("api.tunnel_url", bad)))
            .transpose()?;
        if tunnel_url.is_some() && ingress.is_none() {
            return Err(BadSettings::about(
                "api.tunnel_url",
                "it must lead somewhere: set api.ingress, \"127.0.0.1:8001\"",
            ));
        }
        let access_log = match self.access_log.as_str() {
            "" => None,
            "-" => Some(access_log::To::Stdout),
            path => Some(access_log::To::File(path.into())),
        };
        Ok(ApiConfig {
            listen: self.listen.0,
            overlay_port: self.overlay_port,
            ingress,
            tunnel_url,
            key_file,
            access_log,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TelemetryFile {
    otlp_endpoint: String,
    service_name: String,
    sample: f64,
}

impl Default for TelemetryFile {
    fn default() -> TelemetryFile {
        TelemetryFile { otlp_endpoint: String::new(), service_name: "wiremesh".to_owned(), sample: 1.0 }
    }
}

impl TelemetryFile {
    fn check(self) -> Result<TelemetryConfig, BadSettings> {
        let otlp_endpoint = (!self.otlp_endpoint.is_empty()).then_some(self.otlp_endpoint);
        if let Some(endpoint) = &otlp_endpoint {
            let url: Option<http::Uri> = endpoint.parse().ok();
            let is_good = |url: &http::Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.query().is_none();
            if !url.as_ref().is_some_and(is_good) {
                return Err(BadSettings::about(
                    "telemetry.otlp_endpoint",
                    "an http or https URL is needed: \"http://127.0.0.1:4318\"",
                ));
            }
        }
        if self.service_name.is_empty() {
            return Err(BadSettings::about(
                "telemetry.service_name",
                "traces of a service without a name are not found",
            ));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(BadSettings::about("telemetry.sample", "a share between 0 and 1"));
        }
        Ok(TelemetryConfig { otlp_endpoint, service_name: self.service_name, sample: self.sample })
    }
}

/// A host name made into a DNS label: its first label, in lower case, other characters as '-'.
fn label_from(host_name: &str) -> Option<NodeName> {
    let label = host_name.split('.').next()?.to_ascii_lowercase();
    let label: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    NodeName::new(label.trim_matches('-')).ok()
}

#[cfg(test)]
mod tests;
