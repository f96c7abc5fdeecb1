//! The routers that others use: which of them are installed here, and how each is started.
//!
//! Each gets the simplest configuration that somebody would run: connections to the workers are kept, no access log, no
//! buffering of answers, as many processes or threads as there are processors, workers probed as often as wiremesh does
//! where that can be had.

mod litellm;
mod mesh;
mod nginx;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Process, fetch};
use reqwest::Method;
use wiremesh::sandbox::Node;

pub use self::mesh::Mesh;
use crate::{
    programs::{Missing, found, until_ready, version_of},
    tree::Tree,
    upstream::question,
};

/// Python needs its time to load.
const START_LIMIT: Duration = Duration::from_secs(90);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What all of them understand, and some understand nothing else.
pub const CHAT: &str = "/v1/chat/completions";
/// How often workers are probed, in seconds.
const PROBE_EVERY_SECS: u32 = 2;

/// Ours, as results call it: one agent, its service beside it.
pub const WIREMESH: &str = "wiremesh";
/// Ours over the overlay: two agents.
pub const WIREMESH_TWO_HOPS: &str = "wiremesh-overlay";
/// What ours is measured by.
pub const NGINX: &str = "nginx";

/// One router that can be measured here.
#[derive(Clone, Debug)]
pub struct Router {
    /// What it is called in the results.
    pub name: &'static str,
    /// What it says about its version.
    pub version: String,
    program: PathBuf,
    kind: Kind,
}

/// How it is configured and started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    Haproxy,
    Sglang,
    Vllm,
    Smg,
    Litellm,
}

/// A router at work, on the node of its clients. Ended when dropped.
pub struct Running {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// What they ask it for.
    pub path: &'static str,
    process: Process,
}

/// Name, program, variable that says where it is, and kind.
const ALL: [(&str, &str, &str, Kind); 6] = [
    (NGINX, "nginx", "NGINX", Kind::Nginx),
    ("haproxy", "haproxy", "HAPROXY", Kind::Haproxy),
    ("sglang-router", "sglang-router", "SGLANG_ROUTER", Kind::Sglang),
    ("vllm-router", "vllm-router", "VLLM_ROUTER", Kind::Vllm),
    ("smg", "smg", "SMG", Kind::Smg),
    ("litellm", "litellm", "LITELLM", Kind::Litellm),
];

impl Router {
    /// All that are wanted. Those that are not installed come as a sentence that says so.
    pub fn all(wanted: impl Fn(&str) -> bool) -> Vec<Result<Router, Missing>> {
        let wanted = ALL.into_iter().filter(|(name, ..)| wanted(name));
        wanted
            .map(|(name, program, variable, kind)| {
                let program = found(name, program, variable)?;
                Ok(Router { name, version: kind.version(name, &program), program, kind })
            })
            .collect()
    }

    /// What all of them are called.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|(name, ..)| *name)
    }

    /// Whether `pip` installs it.
    pub fn is_packaged_for_python(name: &str) -> bool {
        let kind = ALL.iter().find(|(other, ..)| *other == name).map(|(.., kind)| *kind);
        matches!(kind, Some(Kind::Sglang | Kind::Vllm | Kind::Smg | Kind::Litellm))
    }

    /// Whether it takes so long to start that one does so once.
    pub fn starts_slowly(&self) -> bool {
        self.kind == Kind::Litellm
    }

    /// Starts it on a node, in front of these workers, and waits until a question is answered through it.
    pub fn start(&self, node: &Node, workers: &[SocketAddr], port: u16, folder: &Path) -> anyhow::Result<Running> {
        fs::create_dir_all(folder)?;
        let mut command = node.command(&self.program)?;
        self.kind.configure(&mut command, workers, port, folder)?;
        // Whatever it keeps goes with the sandbox.
        command.env("HOME", folder).env_remove("PYTHONPATH").current_dir(folder);
        let process = Process::start(self.name, command, &folder.join("router.log"))?;
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut running = Running { address, path: CHAT, process };
        until_ready(&mut running.process, START_LIMIT, || {
            let url = format!("http://{address}{CHAT}");
            let json = [("content-type", "application/json"), ("authorization", "Bearer sk-bench")];
            fetch(node, Method::POST, &url, &json, &question("hello", false), ANSWER_LIMIT)?.expect_ok()?;
            Ok(())
        })
        .with_context(|| format!("{} said:\n{}", self.name, last_lines(&running.process.log())))?;
        Ok(running)
    }
}

impl Running {
    /// Its processes.
    pub fn tree(&self) -> Tree {
        Tree::of([self.process.pid()])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tree().end();
    }
}

impl Kind {
    fn configure(self, command: &mut Command, workers: &[SocketAddr], port: u16, folder: &Path) -> anyhow::Result<()> {
        match self {
            Kind::Nginx => nginx::configure(command, workers, port, folder),
            Kind::Haproxy => {
                let file = folder.join("haproxy.cfg");
                fs::write(&file, haproxy(workers, port))?;
                command.arg("-db").arg("-f").arg(file);
                Ok(())
            }
            Kind::Sglang | Kind::Smg => {
                command.arg("launch");
                model_router(command, workers, port);
                Ok(())
            }
            Kind::Vllm => {
                model_router(command, workers, port);
                Ok(())
            }
            Kind::Litellm => litellm::configure(command, workers, port, folder),
        }
    }

    fn version(self, name: &str, program: &Path) -> String {
        match self {
            Kind::Nginx | Kind::Haproxy => version_of(program, "-v"),
            // Not all of them say it themselves; the Python beside them knows.
            Kind::Sglang | Kind::Vllm | Kind::Smg | Kind::Litellm => {
                let script = program.canonicalize().unwrap_or(program.to_owned());
                let print = format!("import importlib.metadata as m; print('{name}', m.version('{name}'))");
                let output = Command::new(script.with_file_name("python")).args(["-c", &print]).output();
                let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
                said.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "of unknown version".to_owned())
            }
        }
    }
}

/// How many processes or threads each may have.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// These three have one ancestor, and its options.
fn model_router(command: &mut Command, workers: &[SocketAddr], port: u16) {
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--policy", "round_robin", "--log-level", "error"]);
    command.args(["--prometheus-port", &(port + 1).to_string()]);
    command.args(["--worker-startup-check-interval", "1"]);
    command.args(["--health-check-interval-secs", &PROBE_EVERY_SECS.to_string()]);
    command.arg("--worker-urls").args(workers.iter().map(|worker| format!("http://{worker}")));
}

fn haproxy(workers: &[SocketAddr], port: u16) -> String {
    let threads = processors();
    let workers = workers.iter().enumerate().map(|(number, worker)| {
        format!("    server worker{number} {worker} check inter {PROBE_EVERY_SECS}s pool-max-conn 256\n")
    });
    format!(
        "global\n    maxconn 8192\n    nbthread {threads}\n\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n    \
         option http-keep-alive\n    option http-no-delay\n    http-reuse safe\n\n\
         frontend clients\n    bind 127.0.0.1:{port}\n    default_backend workers\n\n\
         backend workers\n    balance leastconn\n    option httpchk GET /health\n{}",
        workers.collect::<String>()
    )
}

/// Enough of a log to see why a program does not start.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
