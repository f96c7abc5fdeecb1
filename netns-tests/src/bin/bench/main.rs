//! Benchmarks in the lab: real programs in namespaces, measured beside what they are compared with.
//!
//! ```text
//! cargo run --release -p netns-tests --bin bench -- basics
//! cargo run --release -p netns-tests --bin bench -- overlay
//! cargo run --release -p netns-tests --bin bench -- router
//! cargo run --release -p netns-tests --bin bench -- faults
//! ```
//!
//! Run by cargo it first has cargo build what it measures. Run by itself it measures what is beside it.

mod basics;
mod faults;
mod http1;
mod overlay;
mod programs;
mod router;
mod routers;
mod statistics;
mod table;
mod tree;
mod upstream;

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use clap::{Parser, Subcommand};
use netns_tests::{Lab, wiremesh_binary};
use wiremesh::sandbox::{self, Entered};

/// Measures wiremesh in namespaces of this machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Prints JSON and nothing else
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// What a request costs, a lookup, a start; what an idle agent needs
    Basics(basics::Options),
    /// The packet path, beside every other userspace WireGuard, nebula and the kernel
    ///
    /// Others are looked for in target/peers/bin (where `netns-tests/run --peers` installs them) and in PATH, or taken
    /// from where WIREGUARD_GO, BORINGTUN, GOTATUN and NEBULA say. WIREMESH_BIN names another wiremesh than the one
    /// beside this program.
    Overlay(overlay::Options),
    /// A request through wiremesh, beside nginx, haproxy and the routers for model servers
    ///
    /// Others are looked for in target/peers/bin (where `netns-tests/run --peers` installs them) and in PATH, or taken
    /// from where NGINX, HAPROXY, SGLANG_ROUTER, VLLM_ROUTER, SMG and LITELLM say.
    Router(router::Options),
    /// What is seen through wiremesh and the same routers when workers and clients fail
    Faults(faults::Options),
    /// The model server that the others are measured in front of
    #[command(hide = true)]
    Upstream(upstream::Arguments),
}

/// Set by a signal that asks us to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (&arguments.what, sandbox::scratch()) {
        (What::Upstream(arguments), _) => upstream::run(arguments).map(|()| ExitCode::SUCCESS),
        (_, Some(scratch)) => inside(&arguments, &scratch).map(|()| ExitCode::SUCCESS),
        (_, None) => build().and_then(|()| enter()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs this program again as the first process of a sandbox. How that ended.
fn enter() -> anyhow::Result<ExitCode> {
    match sandbox::enter(&[]) {
        Ok(Entered::Left(code)) => Ok(ExitCode::from(code)),
        Ok(Entered::Inside) => anyhow::bail!("inside and outside of the sandbox at once"),
        Err(refused) => {
            let hint = refused.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            anyhow::bail!("{:#}{hint}", anyhow::Error::new(refused))
        }
    }
}

/// Has cargo build the programs of the workspace, if it was cargo that started us: it knows of this one only. This one
/// may be built anew too, and a file that was replaced cannot be started again; so we become what was built.
fn build() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let this = std::env::current_exe()?;
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    anyhow::ensure!(command.status()?.success(), "building what is to be measured failed");
    let error = Command::new(&this).args(std::env::args_os().skip(1)).env_remove("CARGO").exec();
    Err(anyhow::Error::new(error).context(format!("starting {}", this.display())))
}

/// What is measured, as the first process of a sandbox.
fn inside(arguments: &Arguments, scratch: &Path) -> anyhow::Result<()> {
    // The first process of a process namespace ignores signals that it has no handler for. Everything ends with it.
    sandbox::on_signal(interrupted);
    thread::spawn(|| {
        while !INTERRUPTED.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(100));
        }
        std::process::exit(130);
    });
    match &arguments.what {
        What::Basics(options) => basics::run(&mut Lab::new(scratch)?, options, arguments.json),
        What::Overlay(options) => overlay::run(scratch, &wiremesh_binary()?, options, arguments.json),
        What::Router(options) => router::run(scratch, options, arguments.json),
        What::Faults(options) => faults::run(scratch, options, arguments.json),
        What::Upstream(_) => anyhow::bail!("it needs no sandbox"),
    }
}

extern "C" fn interrupted(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}
