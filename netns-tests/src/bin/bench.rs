//! Benchmarks in the lab: real programs in namespaces, measured beside what they are compared with.
//!
//! ```text
//! cargo build --release --workspace --bins && target/release/bench basics
//! ```

#[path = "bench/basics.rs"]
mod basics;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use netns_tests::Lab;
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match sandbox::scratch() {
        Some(scratch) => Lab::new(&scratch).and_then(|mut lab| match &arguments.what {
            What::Basics(options) => basics::run(&mut lab, options, arguments.json),
        }),
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
