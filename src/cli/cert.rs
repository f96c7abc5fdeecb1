//! `wiremesh cert`: the commands of `wiremesh-cert` in this binary too, and those that need a coordinator.

pub mod adoption;
mod list;
mod rotate;

use std::process::ExitCode;

use wiremesh_certs::cli::Stdout;

use super::{
    failure::{self, Failure},
    renew, revoke, runtime,
};
use crate::clock;

/// Makes and inspects certificates without a coordinator; with one, renews, revokes and lists them, and replaces the CA
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
    List(list::Args),
    Rotate(rotate::Args),
}

/// Runs it, and says what the process is to end with.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let out = &mut Stdout::new();
    let exit = match &args.command {
        Command::Shared(command) => {
            return Ok(wiremesh_certs::cli::execute(command, clock::unix(), &mut rand::rng()));
        }
        Command::Renew(args) => runtime()?.block_on(renew::run(args, out)).map(|()| failure::DONE)?,
        Command::Revoke(args) => runtime()?.block_on(revoke::run(args, out))?,
        Command::List(args) => runtime()?.block_on(list::run(args, clock::unix(), out)).map(|()| failure::DONE)?,
        Command::Rotate(args) => runtime()?.block_on(rotate::run(args, out))?,
    };
    Ok(ExitCode::from(exit))
}
