//! The units of systemd and the Debian package that brings them.

use std::time::Duration;

use wiremesh::settings::Span;

use super::{Files, Slip, commands, default_data_dir, default_state_dir, stops_within};

const FOLDER: &str = "deploy/systemd/";
const AGENT: &str = "deploy/systemd/wiremesh-agent.service";
const COORDINATOR: &str = "deploy/systemd/wiremesh-coordinator.service";

pub const SLIPS: &[Slip] = &[
    (AGENT, "ExecStart=/usr/bin/wiremesh agent", "ExecStart=/usr/bin/wiremesh agnet", "wiremesh agnet"),
    (AGENT, "ExecStart=/usr/bin/wiremesh", "ExecStart=/usr/local/bin/wiremesh", "is not what the package installs"),
    (AGENT, "StateDirectory=wiremesh\n", "StateDirectory=wire\n", "keeps /var/lib/wire"),
    (AGENT, "TimeoutStopSec=90s", "TimeoutStopSec=30s", "has less than"),
    (AGENT, "KillMode=mixed\n", "", "ends services before what they have in flight"),
    (
        AGENT,
        "/run/credentials/wiremesh-agent.service/wiremesh.join-token",
        "/run/credentials/wiremesh.join-token",
        "names no credential",
    ),
    (AGENT, "ConditionPathExists=/etc/wiremesh/agent.toml", "ConditionPathExists=/etc/agent.toml", "starts without"),
    (
        COORDINATOR,
        "StateDirectory=wiremesh-coordinator\n",
        "StateDirectory=coordinator\n",
        "keeps /var/lib/coordinator",
    ),
    (COORDINATOR, "Type=notify", "Type=simple", "is not asked whether it is ready"),
    (
        "Cargo.toml",
        "unit-name = \"wiremesh-agent\", enable = false",
        "unit-name = \"wiremesh-agent\", enable = true",
        "begins by itself",
    ),
    (
        "Cargo.toml",
        "unit-name = \"wiremesh-coordinator\"",
        "unit-name = \"wiremesh-coordinater\"",
        "wiremesh-coordinater.service is not there",
    ),
    ("Cargo.toml", "\"deploy/*.example.toml\"", "\"deploy/*.exmaple.toml\"", "deploy/*.exmaple.toml is nothing"),
];

pub fn problems(files: &Files) -> Vec<String> {
    let cargo: toml::Table = files.text("Cargo.toml").parse().unwrap();
    let package = &cargo["package"]["metadata"]["deb"];
    let mut problems = Vec::new();
    let mut installed = Vec::new();
    for asset in package["assets"].as_array().into_iter().flatten() {
        let source = asset[0].as_str().unwrap_or_default();
        let target = asset[1].as_str().unwrap_or_default();
        match source.split_once('*') {
            None if source.starts_with("target/release/") => {
                installed.push(format!("/{target}{}", source.trim_start_matches("target/release/")));
            }
            Some((folder, ending)) if files.in_folder(folder, ending).next().is_none() => {
                problems.push(format!("Cargo.toml: {source} is nothing"));
            }
            _ => {}
        }
    }
    let mut known = Vec::new();
    for unit in package["systemd-units"].as_array().into_iter().flatten() {
        let path = format!("{FOLDER}{}.service", unit["unit-name"].as_str().unwrap_or_default());
        if !files.texts.contains_key(&path) {
            problems.push(format!("Cargo.toml: {path} is not there"));
        }
        if unit["enable"].as_bool() != Some(false) || unit["start"].as_bool() != Some(false) {
            problems.push(format!("Cargo.toml: {path} begins by itself"));
        }
        known.push(path);
    }
    for (path, text) in files.in_folder(FOLDER, ".service") {
        if !known.iter().any(|known| known == path) {
            problems.push(format!("{path} is in no package"));
        }
        problems.extend(of_unit(path, text, &installed).into_iter().map(|what| format!("{path}: {what}")));
    }
    problems
}

fn of_unit(path: &str, text: &str, installed: &[String]) -> Vec<String> {
    let said = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let mut problems = Vec::new();
    let mut command = said("ExecStart").unwrap_or_default().split_whitespace().map(str::to_owned);
    let program = command.next().unwrap_or_default();
    if !installed.contains(&program) {
        problems.push(format!("{program} is not what the package installs"));
    }
    problems.extend(commands::refused(&command.collect::<Vec<_>>()));

    let is_agent = path == AGENT;
    let (folder, file) = match is_agent {
        true => (default_state_dir().to_owned(), "/etc/wiremesh/agent.toml"),
        false => (default_data_dir(), "/etc/wiremesh/coordinator.toml"),
    };
    let kept = format!("/var/lib/{}", said("StateDirectory").unwrap_or_default());
    if kept != folder {
        problems.push(format!("keeps {kept}, and the program looks into {folder}"));
    }
    if said("ConditionPathExists") != Some(file) {
        problems.push(format!("starts without {file}"));
    }
    if said("Type") != Some("notify") || said("WatchdogSec").is_none() {
        problems.push("is not asked whether it is ready, or still works".to_owned());
    }
    if is_agent {
        let limit =
            said("TimeoutStopSec").and_then(|limit| limit.parse::<Span>().ok()).map_or(Duration::ZERO, |span| span.0);
        let needed = stops_within(&super::agent("", Vec::new()).unwrap());
        if limit < needed {
            problems.push(format!("has less than {needed:?} to stop"));
        }
        if said("KillMode") != Some("mixed") {
            problems.push("ends services before what they have in flight".to_owned());
        }
    }
    // Where its comments say that the program finds a credential.
    let unit = path.trim_start_matches(FOLDER);
    let place = format!("/run/credentials/{unit}/{}", said("LoadCredential").unwrap_or_default());
    if !text.contains(&format!("\"{place}\"")) {
        problems.push(format!("names no credential at {place}"));
    }
    problems
}
