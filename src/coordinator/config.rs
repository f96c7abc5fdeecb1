//! The coordinator's configuration: parsed once, into values that cannot be wrong.

mod policy;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use wiremesh_certs::{MAX_URLS, MIN_LIFETIME, MeshName, Policy, ServiceName};

use crate::{
    settings::{BadSettings, Layers, Place, Span},
    words,
};

/// Where a coordinator keeps its authority and database, unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/wiremesh-coordinator";

/// Services an operator may describe.
pub const MAX_CATALOG: usize = 1024;
/// The shortest heartbeat interval: below it the coordinator would be the busiest part of the mesh.
pub const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// The longest: a dead worker stays in answers for three of them.
pub const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(600);
/// Revocations are kept for as long: beyond a year nobody waits for a machine to come back.
pub const MAX_RENEWAL_WINDOW: Duration = Duration::from_secs(365 * 86_400);
/// Of certificates, if neither their life nor the longest partition is given.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// Address bits that a network must have left for its members.
const MIN_HOST_BITS: u8 = 2;

/// What a coordinator is told when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where authority, admin key, database and socket are.
    pub data_dir: PathBuf,
    /// Where HTTPS is served.
    pub listen: SocketAddr,
    /// Where agents reach it, for tokens and heartbeats.
    pub public_urls: Vec<String>,
    /// The mesh's name, used when its authority is made.
    pub mesh: MeshName,
    /// The overlay network, used when the authority is made.
    pub network: IpNet,
    /// The database file; `None`: in the data directory.
    pub database: Option<PathBuf>,
    /// How long a node certificate lives.
    pub certificate_lifetime: Duration,
    /// How long after its end a certificate may still be renewed, by proof of its key.
    pub renewal_window: Duration,
    /// Where the passphrase of the authority's key is, if that is encrypted and the environment does not say it.
    pub ca_passphrase_file: Option<PathBuf>,
    /// How long the authority lives, used when it is made.
    pub authority_lifetime: Duration,
    /// Whether reading the registry needs no identity and no key.
    pub public_discovery: bool,
    /// Whether members' tunnel URLs are looked at, and whether they lead back to them.
    pub check_tunnels: bool,
    /// How often nodes are to send heartbeats.
    pub heartbeat_interval: Duration,
    /// What the operator says about services.
    pub catalog: BTreeMap<ServiceName, CatalogEntry>,
    /// Who may offer and who may call them.
    pub policy: Policy,
}

/// What the operator says about one service.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct CatalogEntry {
    /// A number or a word, passed on as it is.
    pub tier: Option<serde_json::Value>,
    /// What a worker needs for it, passed on as it is.
    pub requires: Vec<String>,
}

impl Config {
    /// Reads the layers and checks what types alone cannot.
    pub fn from_layers(layers: Layers) -> Result<Config, BadSettings> {
        let file: File = layers.read()?;
        let public_urls = file.public_urls.iter().map(|url| public_url(url)).collect::<Result<Vec<_>, _>>();
        let public_urls = public_urls.map_err(|why| BadSettings::about("public_urls", why))?;
        if public_urls.len() > MAX_URLS {
            return Err(BadSettings::about("public_urls", format!("more than {MAX_URLS} of them")));
        }
        let network = file.network.trunc();
        if network.max_prefix_len() - network.prefix_len() < MIN_HOST_BITS {
            return Err(BadSettings::about("network", format!("{network} has no room for members")));
        }
        let certificate_lifetime = certificate_lifetime(file.certificate_lifetime, file.max_partition_time)?;
        if file.renewal_window.0 > MAX_RENEWAL_WINDOW {
            let most = Span(MAX_RENEWAL_WINDOW);
            return Err(BadSettings::about("renewal_window", format!("must be at most {most}")));
        }
        if file.authority_lifetime.0 < certificate_lifetime {
            return Err(BadSettings::about("authority_lifetime", "must not be shorter than certificate_lifetime"));
        }
        let interval = file.heartbeat_interval.0;
        if !(MIN_HEARTBEAT_INTERVAL..=MAX_HEARTBEAT_INTERVAL).contains(&interval) {
            return Err(BadSettings::about("heartbeat_interval", "must be between 1s and 10m"));
        }
        if file.catalog.len() > MAX_CATALOG {
            return Err(BadSettings::about("catalog", format!("more than {MAX_CATALOG} services")));
        }
        for (service, entry) in &file.catalog {
            if entry.tier.as_ref().is_some_and(|tier| !tier.is_string() && !tier.is_number()) {
                let path = format!("catalog.{service}.tier");
                return Err(BadSettings::about(&path, "must be a word or a number"));
            }
        }
        Ok(Config {
            data_dir: file.data_dir,
            listen: file.listen.0,
            public_urls,
            mesh: file.mesh,
            network,
            database: database(&file.database)?,
            certificate_lifetime,
            renewal_window: file.renewal_window.0,
            ca_passphrase_file: file.ca_passphrase_file.filter(|path| !path.as_os_str().is_empty()),
            authority_lifetime: file.authority_lifetime.0,
            public_discovery: file.public_discovery,
            check_tunnels: file.check_tunnels,
            heartbeat_interval: interval,
            catalog: file.catalog,
            policy: policy::policy(file.policy)?,
        })
    }
}

/// The options as written. Lives no longer than [`Config::from_layers`].
#[derive(Deserialize)]
#[serde(default)]
struct File {
    data_dir: PathBuf,
    listen: Place,
    public_urls: Vec<String>,
    mesh: MeshName,
    network: IpNet,
    database: String,
    certificate_lifetime: Option<Span>,
    max_partition_time: Span,
    renewal_window: Span,
    ca_passphrase_file: Option<PathBuf>,
    authority_lifetime: Span,
    public_discovery: bool,
    check_tunnels: bool,
    heartbeat_interval: Span,
    catalog: BTreeMap<ServiceName, CatalogEntry>,
    policy: policy::Section,
}

impl Default for File {
    fn default() -> File {
        let day = Duration::from_secs(86_400);
        File {
            data_dir: PathBuf::from(DEFAULT_DATA_DIR),
            listen: Place((Ipv4Addr::LOCALHOST, 8080).into()),
            public_urls: Vec::new(),
            mesh: MeshName::new("wiremesh").expect("a DNS label"),
            network: IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, 42, 0, 0), 16).expect("16 is a prefix length")),
            database: "sqlite".to_owned(),
            certificate_lifetime: None,
            max_partition_time: Span(Duration::ZERO),
            renewal_window: Span(30 * day),
            ca_passphrase_file: None,
            authority_lifetime: Span(3650 * day),
            public_discovery: false,
            check_tunnels: true,
            heartbeat_interval: Span(Duration::from_secs(10)),
            catalog: BTreeMap::new(),
            policy: policy::Section::new(),
        }
    }
}

/// Agents renew when between five and six tenths of a certificate's life are over: whoever must do without a coordinator
/// from then on has four tenths left.
fn certificate_lifetime(wanted: Option<Span>, partition: Span) -> Result<Duration, BadSettings> {
    let needed = partition.0.checked_mul(5).map(|five| five / 2);
    let needed = needed.ok_or_else(|| BadSettings::about("max_partition_time", "is longer than anything lives"))?;
    let lifetime = match wanted {
        Some(wanted) if wanted.0 < needed => {
            let why = format!(
                "must be at least {} if agents are to be {partition} without a coordinator (max_partition_time): \
                 they renew when up to six tenths of it are over",
                Span(needed)
            );
            return Err(BadSettings::about("certificate_lifetime", why));
        }
        Some(wanted) => wanted.0,
        None if needed.is_zero() => DEFAULT_LIFETIME,
        None => needed.max(MIN_LIFETIME),
    };
    if lifetime < MIN_LIFETIME {
        let least = Span(MIN_LIFETIME);
        return Err(BadSettings::about("certificate_lifetime", format!("must be at least {least}")));
    }
    Ok(lifetime)
}

/// Agents pin the mesh's authority and sign the path they ask for, so it must be https and nothing but a place. The error
/// says why it is not.
pub fn public_url(text: &str) -> Result<String, String> {
    let bad = |why: &str| format!("{} {why}", words::few(format_args!("{text:?}")));
    let url: http::Uri = text.parse().map_err(|_| bad("is not a URL"))?;
    let authority = url.authority().filter(|_| url.scheme_str() == Some("https"));
    let authority = authority.ok_or_else(|| bad("is not an https URL"))?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || authority.as_str().contains('@') {
        return Err(bad("has more than scheme, host and port"));
    }
    Ok(format!("https://{authority}"))
}

fn database(text: &str) -> Result<Option<PathBuf>, BadSettings> {
    if text == "sqlite" {
        return Ok(None);
    }
    if let Some(path) = text.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
        return Ok(Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path))));
    }
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return Err(BadSettings::about("database", "this build has no PostgreSQL; use \"sqlite\""));
    }
    Err(BadSettings::about("database", "must be \"sqlite\" or \"sqlite:PATH\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Layers::new().file("coordinator.toml", text).and_then(Config::from_layers).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_file_is_a_good_configuration_and_holds_the_defaults() {
        let example = parse(include_str!("../../deploy/coordinator.example.toml")).unwrap();
        let defaults = parse("").unwrap();

        assert_eq!(Config { catalog: BTreeMap::new(), ..example }.debugged(), defaults.debugged());
    }

    #[test]
    fn the_example_file_names_every_option() {
        let example: toml::Table = include_str!("../../deploy/coordinator.example.toml").parse().unwrap();

        for option in [
            "data_dir",
            "listen",
            "public_urls",
            "mesh",
            "network",
            "database",
            "certificate_lifetime",
            "max_partition_time",
            "renewal_window",
            "ca_passphrase_file",
            "authority_lifetime",
            "public_discovery",
            "check_tunnels",
            "heartbeat_interval",
            "catalog",
            "policy",
        ] {
            assert!(example.contains_key(option), "{option}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_option() {
        for (text, expected) in [
            ("public_urls = ['http://a']", "`public_urls`: \"http://a\" is not an https URL"),
            ("public_urls = ['https://a?x=1']", "`public_urls`: \"https://a?x=1\" has more than"),
            ("network = '10.0.0.0/31'", "`network`: 10.0.0.0/31 has no room for members"),
            ("certificate_lifetime = '1s'", "`certificate_lifetime`: must be at least 10s"),
            ("renewal_window = '2y'", "`renewal_window`: must be at most 1y"),
            (
                "max_partition_time = '3d'\ncertificate_lifetime = '7d'",
                "`certificate_lifetime`: must be at least 7d12h if agents are to be 3d without a coordinator",
            ),
            ("authority_lifetime = '1d'", "`authority_lifetime`: must not be shorter"),
            ("heartbeat_interval = '0s'", "`heartbeat_interval`: must be between"),
            ("database = 'postgres://x'", "`database`: this build has no PostgreSQL"),
            ("database = 'mysql'", "`database`: must be"),
            ("[catalog.ocr]\ntier = true", "`catalog.ocr.tier`: must be a word or a number"),
            (
                "[policy.ocr]\nofer = ['gpu']",
                "coordinator.toml: `policy.ocr.ofer`: there is no such option; did you mean `offer`?",
            ),
            ("[policy.'a b']\noffer = ['gpu']", "coordinator.toml: `policy"),
            ("[policy.ocr]\ncall = ['a b']", "coordinator.toml: `policy.ocr.call.0`: "),
            (
                "publik_discovery = true",
                "coordinator.toml: `publik_discovery`: there is no such option; did you mean `public_discovery`?",
            ),
            ("mesh = 'A b'", "coordinator.toml: `mesh`: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_longest_partition_alone_says_how_long_certificates_live() {
        let lifetime = |text: &str| parse(text).map(|config| Span(config.certificate_lifetime).to_string());

        assert_eq!(lifetime("").as_deref(), Ok("7d"));
        assert_eq!(lifetime("max_partition_time = '4d'").as_deref(), Ok("10d"));
        assert_eq!(lifetime("max_partition_time = '1s'").as_deref(), Ok("10s"), "nobody could renew sooner");
        let both = "max_partition_time = '2d'\ncertificate_lifetime = '7d'";
        assert_eq!(lifetime(both).as_deref(), Ok("7d"), "longer than it must be");
    }

    #[test]
    fn policy_names_the_groups_that_may_offer_and_call() {
        let text = "[policy.llm-inference]\noffer = ['gpu']\ncall = ['apps', 'staff']\n[policy.'*']\ncall = []";
        let (llm, ocr) = (ServiceName::new("llm-inference").unwrap(), ServiceName::new("ocr").unwrap());
        let (gpu, staff) = ("gpu".parse().unwrap(), "staff".parse().unwrap());

        let policy = parse(text).unwrap().policy;

        assert!(policy.may_offer(&llm, std::slice::from_ref(&gpu)) && !policy.may_offer(&llm, &[]));
        assert!(policy.may_call(&llm, &[staff]) && !policy.may_call(&llm, &[gpu]));
        assert!(policy.may_offer(&ocr, &[]) && !policy.may_call(&ocr, &[]));
        assert!(parse("").unwrap().policy.is_open());
    }

    #[test]
    fn a_policy_has_bounds() {
        let names = |count: usize| (0..count).map(|n| format!("'g{n}'")).collect::<Vec<_>>().join(",");
        let rules = |count: usize| (0..count).map(|n| format!("[policy.s{n}]\n")).collect::<String>();
        let long = |n: usize| (0..5).map(|g| format!("'{g}{}'", "g".repeat(n))).collect::<Vec<_>>().join(",");
        let wide = |n: usize| (0..1000).map(|s| format!("[policy.s{s}]\ncall = [{}]\n", long(n))).collect::<String>();

        for (text, expected) in [
            (format!("[policy.ocr]\noffer = [{}]", names(33)), "`policy.ocr.offer`: more than 32 groups"),
            (rules(1025), "`policy`: more than 1024 services"),
            (wide(60), "`policy`: its names are longer than 256 KiB together"),
        ] {
            assert_eq!(parse(&text).unwrap_err(), expected);
        }
        assert!(parse(&wide(40)).is_ok());
    }

    #[test]
    fn the_environment_reaches_every_level() {
        let variables = [("WIREMESH_LISTEN", "[::]:9"), ("WIREMESH_CATALOG__OCR__REQUIRES", "gpu,ram")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));

        let config = Config::from_layers(Layers::new().environment(variables, &[]).unwrap()).unwrap();

        assert_eq!(config.listen, "[::]:9".parse().unwrap());
        assert_eq!(config.catalog[&ServiceName::new("ocr").unwrap()].requires, ["gpu", "ram"]);
    }

    impl Config {
        fn debugged(&self) -> String {
            format!("{self:?}")
        }
    }
}
