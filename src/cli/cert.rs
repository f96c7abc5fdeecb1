//! `wiremesh cert`: the commands of `wiremesh-cert`, in this binary too.

use std::process::ExitCode;

use crate::clock;

/// Makes and inspects certificates without a coordinator: the commands of wiremesh-cert
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:  wiremesh cert print /var/lib/wiremesh/node.crt")]
pub struct Args {
    #[command(subcommand)]
    command: wiremesh_certs::cli::Command,
}

/// Runs it, and says what the process is to end with.
pub fn run(args: &Args) -> ExitCode {
    wiremesh_certs::cli::execute(&args.command, clock::unix(), &mut rand::rng())
}
