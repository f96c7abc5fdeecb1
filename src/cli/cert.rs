//! `wiremesh cert`: the commands of `wiremesh-cert` in this binary too, and those that need a coordinator.

use std::{io, process::ExitCode};

use super::{
    failure::{self, Failure},
    renew, revoke, runtime,
};
use crate::clock;

/// Makes and inspects certificates without a coordinator, renews and revokes them with one
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:  wiremesh cert print /var/lib/wiremesh/node.crt

What this asks a coordinator for, \"wiremesh-cert\" does with the authority's files: revoke, renew, list, rotate.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Shared(wiremesh_certs::cli::Command),
    Revoke(revoke::Args),
    Renew(renew::Args),
}

/// Runs it, and says what the process is to end with.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.command {
        Command::Shared(command) => Ok(wiremesh_certs::cli::execute(command, clock::unix(), &mut rand::rng())),
        Command::Revoke(args) => {
            runtime()?.block_on(revoke::run(args, &mut io::stdout()))?;
            Ok(ExitCode::from(failure::DONE))
        }
        Command::Renew(args) => {
            runtime()?.block_on(renew::run(args, &mut io::stdout()))?;
            Ok(ExitCode::from(failure::DONE))
        }
    }
}
