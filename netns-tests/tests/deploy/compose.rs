//! The compose files: who waits for whom, what is mounted where, and whether that is where the program looks.

use std::time::Duration;

use serde_json::{Map, Value};
use wiremesh::{config::JoinTokenSource, settings::Span};

use super::{Files, Slip, commands, entries, image, stops_within, texts, words, yaml};

const ONE: &str = "deploy/compose.yaml";
const HOST: &str = "deploy/compose.host-network.yaml";
const OTHERS: &str = "deploy/compose.other-hosts.yaml";
const REMOTE: &str = "deploy/compose.remote-worker.yaml";

pub const SLIPS: &[Slip] = &[
    (ONE, "services:", "services: [", "deploy/compose.yaml: "),
    (ONE, "WIREMESH_API__LISTEN", "WIREMESH_API__LISTN", "there is no such option"),
    (ONE, "WIREMESH_PUBLIC_URLS: https", "WIREMESH_PUBLIC_URLS: http", "is not an https URL"),
    (ONE, "https://coordinator:8080", "https://coordinater:8080", "coordinator: nobody is called"),
    (ONE, "      - token-1:/join\n", "      - token-2:/join\n", "worker-1: its token is not made by token-1"),
    (ONE, "--name, worker-2", "--name, worker-3", "worker-2: its token is not made by token-2"),
    (ONE, "/join/token, --ensure]", "/join/token, --esnure]", "wiremesh token create"),
    (
        ONE,
        "      token-2:\n        condition",
        "      token-1:\n        condition",
        "worker-2: its token is not made by token-1",
    ),
    (
        ONE,
        "condition: service_completed_successfully",
        "condition: service_started",
        "waits for token-1 by service_started",
    ),
    (ONE, "condition: service_healthy", "condition: service_started", "waits for coordinator by service_started"),
    (
        ONE,
        "- worker-2:/var/lib/wiremesh\n",
        "- worker-2:/var/lib/wire\n",
        "worker-2: /var/lib/wiremesh is not on a volume",
    ),
    (ONE, "- worker-2:/var/lib/wiremesh\n", "- worker-1:/var/lib/wiremesh\n", "volume worker-2 is nobody's"),
    (ONE, "./compose/worker-1.toml", "./compose/worker-4.toml", "deploy/compose/worker-4.toml is not there"),
    (ONE, "8000}:8000", "8000}:8081", "worker-1: nothing listens on 8081/tcp"),
    (ONE, "stop_grace_period: 60s", "stop_grace_period: 30s", "has less than"),
    (ONE, "cap_add: [NET_ADMIN]", "cap_add: [NET_RAW]", "worker-1: no overlay without NET_ADMIN"),
    (ONE, "/dev/net/tun:/dev/net/tun", "/dev/null:/dev/net/tun", "worker-1: no overlay without /dev/net/tun"),
    (ONE, "target: agent", "target: agnet", "no stage agnet"),
    (ONE, "networks:\n  mesh:", "networks:\n  mash:", "network mesh is not declared"),
    (OTHERS, "  worker-2:\n", "  worker-5:\n", "worker-5: has no image"),
    (OTHERS, "51821:51820/udp", "51821:51280/udp", "nothing listens on 51280/udp"),
    (OTHERS, "${HOST_ADDRESS:?}:51822", "${HOST_ADDRESS:?}:51829", "worker-2: advertises"),
    (REMOTE, "secrets: [join_token]", "secrets: [join-token]", "secret join-token is not declared"),
    (REMOTE, "/run/secrets/join_token", "/run/secrets/token", "worker: nothing puts"),
    (HOST, "${LISTEN:-127.0.0.1}:8080", "${LISTEN:-localhost}:8080", "`listen`"),
    ("deploy/compose/worker-2.toml", "kind = \"generic\"", "knid = \"generic\"", "there is no such option"),
    (
        "deploy/compose/worker-1.toml",
        "\"checksum\", \"--listen\"",
        "\"checksums\", \"--listen\"",
        "wiremesh demo-service",
    ),
];

pub fn problems(files: &Files) -> Vec<String> {
    let read =
        |path: &str| yaml(path, files.text(path)).map(|documents| documents.into_iter().next().unwrap_or_default());
    let mut problems = Vec::new();
    for (path, _) in files.in_folder("deploy/", ".yaml") {
        // What stands beside another is read with it.
        let document = match path {
            OTHERS => read(ONE).and_then(|one| Ok(merged(one, read(OTHERS)?))),
            _ => read(path),
        };
        match document {
            Ok(document) => {
                problems.extend(of_file(files, &document).into_iter().map(|what| format!("{path}: {what}")))
            }
            Err(bad) => problems.push(bad),
        }
    }
    problems
}

fn of_file(files: &Files, document: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, service) in entries(&document["services"]) {
        let found = match words(&service["image"]) {
            image if image.contains("wiremesh-coordinator:") && service["command"].is_null() => {
                coordinator(files, document, service)
            }
            image if image.contains("wiremesh-coordinator:") => {
                commands::refused(&texts(&service["command"]).iter().map(|word| interpolated(word)).collect::<Vec<_>>())
                    .into_iter()
                    .collect()
            }
            image if image.contains("wiremesh:") => worker(files, document, service),
            _ => vec!["has no image".to_owned()],
        };
        let build = &service["build"];
        let stages = image::stages(files.text(image::DOCKERFILE));
        let built = build.is_null() || stages.contains(&words(&build["target"]));
        let unknown = (!built).then(|| format!("no stage {}", words(&build["target"])));
        problems.extend(found.into_iter().chain(unknown).map(|what| format!("{name}: {what}")));
    }
    problems.extend(declared(document));
    problems
}

/// What services name is declared, and what is declared is named.
fn declared(document: &Value) -> Vec<String> {
    let services = || entries(&document["services"]).map(|(_, service)| service);
    let volumes = services().flat_map(|service| mounts(service).into_iter().map(|(source, _)| source));
    let volumes: Vec<_> = volumes.filter(|source| !source.contains('/')).collect();
    let secrets: Vec<_> = services().flat_map(|service| texts(&service["secrets"])).collect();
    let networks: Vec<_> = services().flat_map(|service| texts(&service["networks"])).collect();
    let mut problems = Vec::new();
    for (kind, named) in [("volume", volumes), ("secret", secrets), ("network", networks)] {
        let declared: Vec<_> = entries(&document[format!("{kind}s")]).map(|(name, _)| name.clone()).collect();
        problems.extend(
            named.iter().filter(|name| !declared.contains(name)).map(|name| format!("{kind} {name} is not declared")),
        );
        problems.extend(
            declared.iter().filter(|name| !named.contains(name)).map(|name| format!("{kind} {name} is nobody's")),
        );
    }
    problems
}

fn coordinator(files: &Files, document: &Value, service: &Value) -> Vec<String> {
    let config = match super::coordinator(files, environment(service)) {
        Ok(config) => config,
        Err(bad) => return vec![bad],
    };
    let mut problems = Vec::new();
    if !mounts(service).iter().any(|(_, at)| *at == config.data_dir.display().to_string()) {
        problems.push(format!("{} is not on a volume", config.data_dir.display()));
    }
    for url in &config.public_urls {
        let (host, port) = url.trim_start_matches("https://").rsplit_once(':').unwrap_or_default();
        if !host.contains('.') && document["services"].get(host).is_none() {
            problems.push(format!("nobody is called {host}"));
        }
        if port != config.listen.port().to_string() {
            problems.push(format!("does not listen on the port of {url}"));
        }
    }
    let listens = format!("{}/tcp", config.listen.port());
    problems.extend(
        published(service)
            .into_iter()
            .filter(|(_, to)| *to != listens)
            .map(|(_, to)| format!("nothing listens on {to}")),
    );
    problems
}

fn worker(files: &Files, document: &Value, service: &Value) -> Vec<String> {
    let mounts = mounts(service);
    let mut problems = Vec::new();
    let file = mounts.iter().find(|(_, at)| at == "/etc/wiremesh/agent.toml");
    let file = file.map(|(source, _)| source.replacen("./", "deploy/", 1)).unwrap_or_default();
    let Some(toml) = files.texts.get(&file) else { return vec![format!("{file} is not there")] };
    let config = match super::agent(toml, environment(service)) {
        Ok(config) => config,
        Err(bad) => return vec![bad],
    };
    problems.extend(super::services(&config));
    if !mounts.iter().any(|(source, at)| *at == config.state_dir.display().to_string() && !source.contains('/')) {
        problems.push(format!("{} is not on a volume", config.state_dir.display()));
    }
    if !texts(&service["cap_add"]).contains(&"NET_ADMIN".to_owned()) {
        problems.push("no overlay without NET_ADMIN".to_owned());
    }
    if !texts(&service["devices"]).contains(&"/dev/net/tun:/dev/net/tun".to_owned()) {
        problems.push("no overlay without /dev/net/tun".to_owned());
    }
    let grace = words(&service["stop_grace_period"]).parse::<Span>().map_or(Duration::ZERO, |Span(grace)| grace);
    if grace < stops_within(&config) {
        problems.push(format!("has less than {:?} to stop", stops_within(&config)));
    }
    let port = |address: std::net::SocketAddr| format!("{}/tcp", address.port());
    let udp = format!("{}/udp", config.overlay.listen_port);
    let listens: Vec<_> =
        config.api.ingress.into_iter().chain([config.api.listen]).map(port).chain([udp.clone()]).collect();
    let published = published(service);
    problems.extend(
        published.iter().filter(|(_, to)| !listens.contains(to)).map(|(_, to)| format!("nothing listens on {to}")),
    );
    for advertised in &config.overlay.advertise {
        if !published.iter().any(|(from, to)| *to == udp && *from == advertised.port().to_string()) {
            problems.push(format!("advertises {advertised}, which does not lead to it"));
        }
    }
    problems.extend(token(document, service, &config));
    problems
}

/// A worker's token is where it looks for it, and is made by the one that it waits for.
fn token(document: &Value, service: &Value, config: &wiremesh::config::Config) -> Option<String> {
    let Some(JoinTokenSource::File(file)) = &config.join_token else { return Some("has no token".to_owned()) };
    let file = file.display().to_string();
    if texts(&service["secrets"]).iter().any(|secret| file == format!("/run/secrets/{secret}")) {
        return None;
    }
    let Some((volume, _)) = mounts(service).into_iter().find(|(_, at)| file.starts_with(&format!("{at}/"))) else {
        return Some(format!("nothing puts {file} there"));
    };
    let Some((maker, how)) = entries(&service["depends_on"]).next() else { return Some("waits for nobody".to_owned()) };
    let making = &document["services"][maker];
    for (whom, how, right) in [
        (maker.as_str(), &how["condition"], "service_completed_successfully"),
        ("coordinator", &making["depends_on"]["coordinator"]["condition"], "service_healthy"),
    ] {
        if how != right {
            return Some(format!("waits for {whom} by {}", words(how)));
        }
    }
    let command: Vec<_> = texts(&making["command"]).iter().map(|word| interpolated(word)).collect();
    let says = |option: &str, value: &str| command.windows(2).any(|two| two[0] == option && two[1] == value);
    let writes = mounts(making).into_iter().any(|(source, at)| source == volume && file.starts_with(&format!("{at}/")));
    let made = writes
        && says("--name", config.name.as_str())
        && says("--out", &file)
        && command.contains(&"--ensure".to_owned());
    (!made).then(|| format!("its token is not made by {maker}"))
}

fn environment(service: &Value) -> Vec<(String, String)> {
    entries(&service["environment"]).map(|(name, value)| (name.clone(), interpolated(&words(value)))).collect()
}

/// What is mounted, and where.
fn mounts(service: &Value) -> Vec<(String, String)> {
    let split = |mount: String| {
        let mut parts = mount.split(':').map(str::to_owned);
        Some((parts.next()?, parts.next()?))
    };
    texts(&service["volumes"]).into_iter().filter_map(split).collect()
}

/// The ports of the machine, and where they lead to: `8080/tcp`.
fn published(service: &Value) -> Vec<(String, String)> {
    let split = |port: String| {
        let port = interpolated(&port);
        let (from, to) = port.rsplit_once(':')?;
        let from = from.rsplit_once(':').map_or(from, |(_, from)| from);
        Some((from.to_owned(), if to.contains('/') { to.to_owned() } else { format!("{to}/tcp") }))
    };
    texts(&service["ports"]).into_iter().filter_map(split).collect()
}

/// As it is when only those variables are set that must be.
fn interpolated(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (variable, after) = rest.split_once('}').unwrap_or((rest, ""));
    let value = match (variable.split_once(":-"), variable.split_once(":?")) {
        (Some((_, default)), _) => default,
        (None, Some(("HOST_ADDRESS", _))) => "192.0.2.1",
        (None, Some(("WORKER_NAME", _))) => "worker-3",
        (None, _) => "",
    };
    format!("{before}{value}{}", interpolated(after))
}

/// As compose reads a file and one beside it: tables key by key, lists one after the other.
fn merged(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Object(mut one), Value::Object(other)) => {
            for (key, value) in other {
                let before = one.remove(&key).unwrap_or_default();
                one.insert(key, merged(before, value));
            }
            Value::Object(one)
        }
        (Value::Array(one), Value::Array(other)) => Value::Array(one.into_iter().chain(other).collect()),
        (one, Value::Null) => one,
        (_, Value::Object(other)) => merged(Value::Object(Map::new()), Value::Object(other)),
        (_, other) => other,
    }
}
