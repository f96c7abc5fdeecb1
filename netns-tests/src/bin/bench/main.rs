//! Benchmarks in the lab: real programs in namespaces, measured beside what they are compared with.
//!
//! ```text
//! cargo build --release --workspace --bins && target/release/bench basics
//! cargo build --release --workspace --bins && target/release/bench overlay
//! ```

mod basics;
mod overlay;

use std::{
    path::Path,
    process::ExitCode,
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
}

/// Set by a signal that asks us to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match sandbox::scratch() {
        Some(scratch) => inside(&arguments, &scratch),
        None => match sandbox::enter(&[]) {
            Ok(Entered::Left(code)) => return ExitCode::from(code),
            Ok(Entered::Inside) => Err(anyhow::anyhow!("inside and outside of the sandbox at once")),
            Err(refused) => {
                let hint = refused.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                Err(anyhow::anyhow!("{:#}{hint}", anyhow::Error::new(refused)))
            }
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
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
    }
}

extern "C" fn interrupted(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}
