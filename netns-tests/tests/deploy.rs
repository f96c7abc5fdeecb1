//! What `deploy/` holds fits together, and fits the program: its options, its commands, its ports, its folders. Needs no
//! engine, no cluster and no systemd; `deploy/check` lets those have their say.
//!
//! Each check takes the files as texts and answers with what is wrong, so that it can be shown to find what it is for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "deploy/commands.rs"]
mod commands;
#[path = "deploy/compose.rs"]
mod compose;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/kubernetes.rs"]
mod kubernetes;
#[path = "deploy/package.rs"]
mod package;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde_json::Value;
use wiremesh::{
    config::{self, Config},
    coordinator,
    settings::Layers,
};

/// Beside its answers in flight and its services, an agent that stops may need so long for the rest of it.
const REST: Duration = Duration::from_secs(20);

/// A check, and what is wrong by it.
type Check = fn(&Files) -> Vec<String>;

const CHECKS: [Check; 5] =
    [commands::problems, compose::problems, image::problems, kubernetes::problems, package::problems];

#[test]
fn what_is_deployed_fits_together_and_fits_the_program() {
    let files = Files::read();

    let problems: Vec<_> = CHECKS.iter().flat_map(|check| check(&files)).collect();

    assert!(problems.is_empty(), "{problems:#?}");
}

/// In which file, what is written otherwise, how, and what is said about it.
type Slip = (&'static str, &'static str, &'static str, &'static str);

#[test]
fn slips_are_found() {
    let files = Files::read();
    let slips = [commands::SLIPS, compose::SLIPS, image::SLIPS, kubernetes::SLIPS, package::SLIPS].concat();

    let unnoticed = slips.into_iter().filter_map(|(path, right, wrong, said)| {
        let mut files = files.clone();
        let text = files.texts.get_mut(path).unwrap_or_else(|| panic!("{path} is not there"));
        assert!(text.contains(right), "{path} does not say {right:?}");
        *text = text.replace(right, wrong);
        let problems: Vec<_> = CHECKS.iter().flat_map(|check| check(&files)).collect();
        let noticed = problems.iter().any(|problem| problem.contains(said));
        (!noticed).then(|| format!("{path}: {wrong:?}: {problems:?}"))
    });
    let unnoticed: Vec<_> = unnoticed.collect();

    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// The files of `deploy/` and the workspace's own, by their path from the root.
#[derive(Clone)]
struct Files {
    texts: BTreeMap<String, String>,
}

impl Files {
    fn read() -> Files {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut texts =
            BTreeMap::from([("Cargo.toml".to_owned(), fs::read_to_string(root.join("Cargo.toml")).unwrap())]);
        let mut folders = vec![root.join("deploy")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else {
                    let path = entry.strip_prefix(root).unwrap().display().to_string();
                    texts.insert(path, fs::read_to_string(&entry).unwrap());
                }
            }
        }
        Files { texts }
    }

    fn text(&self, path: &str) -> &str {
        self.texts.get(path).unwrap_or_else(|| panic!("{path} is not there"))
    }

    /// Those that lie in a folder, not below, and end so.
    fn in_folder<'a>(&'a self, folder: &'a str, ending: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let texts = self.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        texts.filter(move |(path, _)| {
            path.strip_prefix(folder).is_some_and(|name| !name.contains('/') && name.ends_with(ending))
        })
    }
}

/// The documents of a YAML file, without what is empty.
fn yaml(path: &str, text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|error| format!("{path}: {error}"))
}

/// An agent's configuration as its file and its environment give it.
fn agent(toml: &str, environment: Vec<(String, String)>) -> Result<Config, String> {
    let layers = Layers::new().file("agent.toml", toml).and_then(|layers| layers.environment(environment, &[]));
    layers.and_then(|layers| Config::read(layers, "node-1.example.com")).map_err(|bad| bad.to_string())
}

/// A coordinator's, as its image and its environment give it.
fn coordinator(files: &Files, environment: Vec<(String, String)>) -> Result<coordinator::Config, String> {
    let environment = image::stage(files, "coordinator").environment.into_iter().chain(environment);
    let layers = Layers::new().environment(environment, &[]);
    layers.and_then(coordinator::Config::from_layers).map_err(|bad| bad.to_string())
}

/// How long an agent of this configuration may take to stop.
fn stops_within(config: &Config) -> Duration {
    let services = config.services.iter().filter(|service| !service.command.is_empty());
    config.drain_grace + services.map(|service| service.stop_grace).max().unwrap_or_default() + REST
}

/// Its services' commands that are ours must be commands.
fn services(config: &Config) -> Vec<String> {
    let ours = config.services.iter().filter_map(|service| service.command.split_first());
    let ours = ours.filter(|(program, _)| *program == "wiremesh");
    ours.filter_map(|(_, arguments)| commands::refused(arguments)).collect()
}

fn default_state_dir() -> &'static str {
    config::DEFAULT_STATE_DIR
}

fn default_data_dir() -> String {
    coordinator::Config::from_layers(Layers::new()).unwrap().data_dir.display().to_string()
}

/// What a key says, as text; numbers and flags too.
fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The entries of a list of texts.
fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(words).collect()
}

/// The keys and values of a table.
fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
