//! The commands of `wiremesh`, one file each.

mod agent;
mod audit;
mod call;
mod capabilities;
mod cert;
mod coordinator;
pub mod demo;
mod drain;
pub mod failure;
mod health;
mod init;
mod join;
mod keys;
mod ping;
mod renew;
mod revoke;
pub mod socket;
mod table;
mod token;
mod view;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, Parser};

use failure::Failure;
use view::View;
use wiremesh_certs::{cli::Stdout, no_core_dumps};

use crate::clock;

/// Variables that begin like options and are none.
pub(crate) const OTHER_VARIABLES: &[&str] = &["BIN", "SANDBOX", "CA_PASSPHRASE"];

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
    #[command(flatten)]
    Networked(Networked),
    #[command(flatten)]
    Local(Local),
}

/// Commands that run until they are stopped, or talk to one that does.
#[derive(clap::Subcommand)]
enum Networked {
    Coordinator(coordinator::Args),
    Agent(agent::Args),
    Token(token::Args),
    Join(join::Args),
    Audit(audit::Args),
    /// Shows how this machine's agent is: identity, overlay, DHT, coordinator
    #[command(after_help = "Examples:\n  wiremesh status --watch\n  wiremesh status --json | jq .coordinator")]
    Status(view::Args),
    /// Lists whom this machine's agent exchanges packets with
    #[command(after_help = "Examples:\n  wiremesh peers\n  wiremesh peers --config agent.toml --json")]
    Peers(view::Args),
    /// Lists the services that this machine's agent knows of, and who offers them
    #[command(after_help = "Examples:\n  wiremesh services\n  wiremesh services --watch")]
    Services(view::Args),
    Call {
        #[command(flatten)]
        at: agent::Where,
        #[command(flatten)]
        call: call::Args,
    },
    Ping(ping::Args),
    Drain(drain::Args),
    Health(health::Args),
    Keys(keys::Args),
}

/// Commands that need no runtime, or their own.
#[derive(clap::Subcommand)]
enum Local {
    Demo(demo::Args),
    Capabilities(capabilities::Args),
    Cert(Box<cert::Args>),
    /// Prints completions for a shell
    #[command(after_help = "Example:\n  wiremesh completions bash > /etc/bash_completion.d/wiremesh")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Writes manual pages into a folder
    #[command(after_help = "Example:\n  wiremesh manual /usr/local/share/man/man1 && man wiremesh-call")]
    Manual {
        /// Where to; made if it is not there
        folder: std::path::PathBuf,
    },
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
    // Keys, tokens and passphrases are in the memory of all of these. A demo makes namespaces, for which the kernel wants
    // processes that can be looked into; the agents that it starts say this for themselves.
    if matches!(&cli.command, Command::Networked(_) | Command::Local(Local::Cert(_)))
        && let Err(error) = no_core_dumps()
    {
        let _ = writeln!(io::stderr(), "warning: a crash may write this program's memory to disk: {error}");
    }
    // Only these run for long, and start others.
    if matches!(&cli.command, Command::Networked(Networked::Agent(_) | Networked::Coordinator(_))) {
        match init::serve_as_first() {
            Ok(None) => {}
            Ok(Some(ended)) => return ended,
            Err(error) => {
                let _ = writeln!(io::stderr(), "error: could not serve as the first process: {error}");
                return ExitCode::from(failure::FAILED);
            }
        }
    }
    // The power over the network that systemd gives is the agent's, not that of the services it starts. Its threads inherit
    // this; what the agent itself may do stays as it is. A kernel that knows no ambient capabilities has given none.
    if matches!(&cli.command, Command::Networked(Networked::Agent(_))) {
        let _ = rustix::thread::clear_ambient_capability_set();
    }
    let ended = match cli.command {
        Command::Local(command) => local(command),
        Command::Networked(command) => {
            runtime().and_then(|runtime| runtime.block_on(networked(command))).map(ExitCode::from)
        }
    };
    ended.unwrap_or_else(|failure| {
        let _ = writeln!(io::stderr(), "{failure}");
        ExitCode::from(failure.exit)
    })
}

async fn networked(command: Networked) -> Result<u8, Failure> {
    let out = &mut Stdout::new();
    match command {
        Networked::Coordinator(args) => coordinator::run(&args, out).await?,
        Networked::Agent(args) => agent::run(&args, out).await?,
        Networked::Token(args) => token::run(&args, clock::unix(), out).await?,
        Networked::Join(args) => join::run(&args, clock::unix(), out).await?,
        Networked::Audit(args) => audit::run(&args, clock::unix(), out).await?,
        Networked::Status(args) => view::run(View::Status, &args, out).await?,
        Networked::Peers(args) => view::run(View::Peers, &args, out).await?,
        Networked::Services(args) => view::run(View::Services, &args, out).await?,
        Networked::Call { at, call } => return call::run(&call, &at.socket()?, out, &mut io::stderr()).await,
        Networked::Ping(args) => ping::run(&args, out).await?,
        Networked::Drain(args) => drain::run(&args, out).await?,
        Networked::Health(args) => health::run(&args, out).await?,
        Networked::Keys(args) => keys::run(&args, out).await?,
    }
    Ok(failure::DONE)
}

fn local(command: Local) -> Result<ExitCode, Failure> {
    match command {
        // Before there are threads: it makes namespaces for the whole process.
        Local::Demo(args) => return demo::run(&args),
        Local::Capabilities(args) => capabilities::run(&args, &mut Stdout::new()).map(drop)?,
        Local::DemoService(args) => demo::service::run(&args)?,
        Local::Cert(args) => return cert::run(&args),
        Local::Completions { shell } => {
            // Into memory first: it panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wiremesh", &mut script);
            Stdout::new().write_all(&script)?;
        }
        Local::Manual { folder } => std::fs::create_dir_all(&folder)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
            .with_context(|| format!("could not write manual pages into {}", folder.display()))?,
    }
    Ok(ExitCode::from(failure::DONE))
}

/// The runtime of one command.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
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
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", sub.get_name());
        }
    }
}
