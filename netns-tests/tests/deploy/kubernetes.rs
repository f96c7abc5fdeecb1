//! The manifests: what names what, and whether probes, ports and folders are the program's.

use std::time::Duration;

use serde_json::Value;
use wiremesh::config::JoinTokenSource;

use super::{Files, Slip, image, stops_within, texts, words, yaml};

const FOLDER: &str = "deploy/kubernetes/";
const KUSTOMIZATION: &str = "deploy/kubernetes/kustomization.yaml";
const AGENT: &str = "deploy/kubernetes/agent.yaml";
const GPU: &str = "deploy/kubernetes/agent-gpu.yaml";
const CONFIG: &str = "deploy/kubernetes/agent-config.yaml";
const COORDINATOR: &str = "deploy/kubernetes/coordinator.yaml";

pub const SLIPS: &[Slip] = &[
    (KUSTOMIZATION, "  - agent-gpu.yaml\n", "", "agent-gpu.yaml is not in the kustomization"),
    (KUSTOMIZATION, "- agent.yaml", "- agents.yaml", "agents.yaml is not there"),
    (AGENT, "path: /health/ready", "path: /health/redy", "asks for /health/redy"),
    (AGENT, "host: 127.0.0.1", "host: 127.0.0.2", "asks 127.0.0.2:8000"),
    (AGENT, "value: /run/secrets/wiremesh/token", "value: /run/secrets/token", "nothing puts /run/secrets/token there"),
    (AGENT, "add: [NET_ADMIN]", "add: [NET_RAW]", "no overlay without NET_ADMIN"),
    (AGENT, "mountPath: /dev/net/tun", "mountPath: /dev/tun", "/dev/net/tun is not mounted"),
    (AGENT, "mountPath: /var/lib/wiremesh", "mountPath: /var/lib/wire", "/var/lib/wiremesh is not mounted"),
    (AGENT, "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 30", "has less than"),
    (AGENT, "containerPort: 51820", "containerPort: 51280", "nothing listens on 51280"),
    (AGENT, "            - name: state\n", "            - name: stat\n", "volume stat is not declared"),
    (AGENT, "            name: wiremesh-agent\n", "            name: wiremesh-agnet\n", "no ConfigMap wiremesh-agnet"),
    (AGENT, "automountServiceAccountToken: false", "automountServiceAccountToken: true", "has a token of the cluster"),
    (
        GPU,
        "matchLabels:\n      app.kubernetes.io/name: wiremesh-agent-gpu\n",
        "matchLabels:\n      app.kubernetes.io/name: gpu\n",
        "selects other pods",
    ),
    (GPU, "image: wiremesh:latest", "image: wiremess:latest", "wiremess is no image of the kustomization"),
    (CONFIG, "listen = \"127.0.0.1:8000\"", "listen = \"0.0.0.0:8000\"", "others can reach this address"),
    (CONFIG, "demo-service\", \"checksum", "demo-service\", \"checksums", "wiremesh demo-service checksums"),
    (COORDINATOR, "WIREMESH_NETWORK", "WIREMESH_NETWROK", "there is no such option"),
    (COORDINATOR, "path: /health\n", "path: /healthy\n", "asks for /healthy"),
    (COORDINATOR, "scheme: HTTPS", "scheme: HTTP", "asks without TLS"),
    (COORDINATOR, "containerPort: 8080", "containerPort: 8081", "nothing listens on 8081"),
    (COORDINATOR, "https://wiremesh-coordinator.", "https://wiremesh-coordinater.", "no Service wiremesh-coordinater"),
    (COORDINATOR, "runAsUser: 10001", "runAsUser: 10002", "is not the image's user"),
];

/// Answers of an agent's API that need no key.
const AGENT_PROBES: [&str; 2] = ["/health/live", "/health/ready"];

pub fn problems(files: &Files) -> Vec<String> {
    let (mut problems, mut objects) = (Vec::new(), Vec::new());
    for (path, text) in files.in_folder(FOLDER, ".yaml").filter(|(path, _)| *path != KUSTOMIZATION) {
        match yaml(path, text) {
            Ok(documents) => objects.extend(documents),
            Err(bad) => problems.push(bad),
        }
    }
    let kustomization = match yaml(KUSTOMIZATION, files.text(KUSTOMIZATION)) {
        Ok(documents) => documents.into_iter().next().unwrap_or_default(),
        Err(bad) => return vec![bad],
    };
    let resources: Vec<_> = texts(&kustomization["resources"]).iter().map(|name| format!("{FOLDER}{name}")).collect();
    let missing = resources.iter().filter(|path| !files.texts.contains_key(*path));
    problems.extend(missing.map(|path| format!("{path} is not there")));
    let others = files.in_folder(FOLDER, ".yaml").map(|(path, _)| path).filter(|path| *path != KUSTOMIZATION);
    let left_out = others.filter(|path| !resources.iter().any(|known| known == path));
    problems.extend(left_out.map(|path| format!("{path} is not in the kustomization")));

    for object in &objects {
        let name = words(&object["metadata"]["name"]);
        let found = match object["kind"].as_str() {
            Some("DaemonSet") => agent(&objects, object),
            Some("StatefulSet") => coordinator(files, &objects, object),
            Some("Namespace" | "ConfigMap" | "Service") => Vec::new(),
            _ => vec!["is of a kind that nobody looks at".to_owned()],
        };
        problems.extend(found.into_iter().map(|what| format!("{FOLDER}: {name}: {what}")));
        let images = kustomization["images"].as_array().into_iter().flatten().map(|image| words(&image["name"]));
        let images: Vec<_> = images.collect();
        let used = container(object)["image"].as_str().and_then(|image| image.split(':').next());
        let unknown = used.filter(|used| !images.iter().any(|image| image == used));
        problems.extend(unknown.map(|used| format!("{used} is no image of the kustomization")));
    }
    problems
}

fn agent(objects: &[Value], object: &Value) -> Vec<String> {
    let (pod, container) = (&object["spec"]["template"]["spec"], container(object));
    let mut problems = of_pod(object);
    let map = pod["volumes"].as_array().into_iter().flatten().find_map(|volume| volume["configMap"]["name"].as_str());
    let Some(map) = named(objects, "ConfigMap", map.unwrap_or_default()) else {
        return vec![format!("no ConfigMap {}", map.unwrap_or_default())];
    };
    let toml = words(&map["data"]["agent.toml"]);
    let config = match super::agent(&toml, environment(container)) {
        Ok(config) => config,
        Err(bad) => return vec![bad],
    };
    problems.extend(super::services(&config));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        let asked = format!("{}:{}", words(&get["host"]), words(&get["port"]));
        if asked != config.api.listen.to_string() {
            problems.push(format!("{probe} asks {asked}, where nothing listens"));
        }
        if !AGENT_PROBES.contains(&words(&get["path"]).as_str()) {
            problems.push(format!("{probe} asks for {}", words(&get["path"])));
        }
    }
    let mut folders =
        vec![config.state_dir.display().to_string(), "/dev/net/tun".to_owned(), "/etc/wiremesh".to_owned()];
    if let Some(JoinTokenSource::File(file)) = &config.join_token {
        let mounted = mounts(container).any(|at| file.starts_with(at));
        problems.extend((!mounted).then(|| format!("nothing puts {} there", file.display())));
    }
    folders.retain(|folder| !mounts(container).any(|at| at == folder));
    problems.extend(folders.iter().map(|folder| format!("{folder} is not mounted")));
    if !texts(&container["securityContext"]["capabilities"]["add"]).contains(&"NET_ADMIN".to_owned()) {
        problems.push("no overlay without NET_ADMIN".to_owned());
    }
    let ports = container["ports"].as_array().into_iter().flatten().map(|port| &port["containerPort"]);
    problems.extend(
        ports.filter(|port| **port != config.overlay.listen_port).map(|port| format!("nothing listens on {port}")),
    );
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap_or_default());
    if grace < stops_within(&config) {
        problems.push(format!("has less than {:?} to stop", stops_within(&config)));
    }
    problems
}

fn coordinator(files: &Files, objects: &[Value], object: &Value) -> Vec<String> {
    let (pod, container) = (&object["spec"]["template"]["spec"], container(object));
    let mut problems = of_pod(object);
    let config = match super::coordinator(files, environment(container)) {
        Ok(config) => config,
        Err(bad) => return vec![bad],
    };
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        if get["path"] != "/health" {
            problems.push(format!("{probe} asks for {}", words(&get["path"])));
        }
        if get["scheme"] != "HTTPS" {
            problems.push(format!("{probe} asks without TLS"));
        }
    }
    let ports = container["ports"].as_array().into_iter().flatten().map(|port| &port["containerPort"]);
    problems
        .extend(ports.filter(|port| **port != config.listen.port()).map(|port| format!("nothing listens on {port}")));
    for url in &config.public_urls {
        let service = url.trim_start_matches("https://").split('.').next().unwrap_or_default();
        if named(objects, "Service", service).is_none() {
            problems.push(format!("no Service {service}"));
        }
    }
    if !mounts(container).any(|at| at == config.data_dir.display().to_string()) {
        problems.push(format!("{} is not mounted", config.data_dir.display()));
    }
    let user = image::stage(files, "coordinator").user.unwrap_or_default();
    let (uid, gid) = (words(&pod["securityContext"]["runAsUser"]), words(&pod["securityContext"]["fsGroup"]));
    if user != format!("{uid}:{gid}") {
        problems.push(format!("{uid}:{gid} is not the image's user"));
    }
    problems
}

/// What holds for every pod.
fn of_pod(object: &Value) -> Vec<String> {
    let (spec, pod) = (&object["spec"], &object["spec"]["template"]["spec"]);
    let mut problems = Vec::new();
    if spec["selector"]["matchLabels"] != spec["template"]["metadata"]["labels"] {
        problems.push("selects other pods than its own".to_owned());
    }
    if pod["automountServiceAccountToken"] != false {
        problems.push("has a token of the cluster".to_owned());
    }
    let volumes = pod["volumes"].as_array().into_iter().flatten().map(|volume| words(&volume["name"]));
    let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    let declared: Vec<_> = volumes.chain(claims.map(|claim| words(&claim["metadata"]["name"]))).collect();
    let mounted = container(object)["volumeMounts"].as_array().into_iter().flatten().map(|mount| words(&mount["name"]));
    problems
        .extend(mounted.filter(|name| !declared.contains(name)).map(|name| format!("volume {name} is not declared")));
    problems
}

fn container(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]["containers"][0]
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

fn environment(container: &Value) -> Vec<(String, String)> {
    let variables = container["env"].as_array().into_iter().flatten();
    variables.map(|variable| (words(&variable["name"]), words(&variable["value"]))).collect()
}

fn mounts(container: &Value) -> impl Iterator<Item = &str> {
    container["volumeMounts"].as_array().into_iter().flatten().filter_map(|mount| mount["mountPath"].as_str())
}
