//! The commands of `wiremesh`, one file each.

mod agent;
mod cert;
pub mod demo;
pub mod failure;
mod ping;
pub mod socket;
mod view;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser};

use failure::Failure;
use view::View;

/// Variables that begin like options and are none.
pub(crate) const OTHER_VARIABLES: &[&str] = &["BIN", "SANDBOX"];

/// One service network out of many GPU machines
#[derive(Parser)]
#[command(name = "wiremesh", version, about, propagate_version = true)]
#[command(after_help = "Begin with:  wiremesh demo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Demo(demo::Args),
    Agent(agent::Args),
    /// Shows how this machine's agent is: identity, overlay, DHT, coordinator
    Status(view::Args),
    /// Lists whom this machine's agent exchanges packets with
    Peers(view::Args),
    /// Lists the services that this machine's agent knows of, and who offers them
    Services(view::Args),
    Ping(ping::Args),
    Cert(cert::Args),
    /// Prints completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Writes manual pages into a folder
    Manual {
        /// Where to
        folder: std::path::PathBuf,
    },
    #[command(hide = true)]
    DemoService(demo::service::Args),
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; everything else is bad usage.
            let exit = if error.use_stderr() { failure::USAGE } else { failure::DONE };
            let _ = error.print();
            return ExitCode::from(exit);
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.exit)
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        // Before there are threads: it makes namespaces for the whole process.
        Command::Demo(args) => Ok(demo::run(&args)?),
        Command::DemoService(args) => done(demo::service::run(&args)?),
        Command::Cert(args) => Ok(cert::run(&args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "wiremesh", &mut io::stdout());
            done(())
        }
        Command::Manual { folder } => done(clap_mangen::generate_to(Cli::command(), folder)?),
        command => done(runtime()?.block_on(run(command))?),
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    let out = &mut io::stdout();
    match command {
        Command::Agent(args) => agent::run(&args).await,
        Command::Status(args) => view::run(View::Status, &args, out).await,
        Command::Peers(args) => view::run(View::Peers, &args, out).await,
        Command::Services(args) => view::run(View::Services, &args, out).await,
        Command::Ping(args) => ping::run(&args, out).await,
        Command::Demo(_)
        | Command::DemoService(_)
        | Command::Cert(_)
        | Command::Completions { .. }
        | Command::Manual { .. } => Err(Failure::from(anyhow::anyhow!("this command runs without a runtime"))),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn done(_: ()) -> Result<ExitCode, Failure> {
    Ok(ExitCode::from(failure::DONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_is_explained() {
        let command = Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(sub.get_about().is_some(), "{} has no explanation", sub.get_name());
        }
    }
}
