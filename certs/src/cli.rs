//! The certificate commands: each is a function of its arguments, the time, chance and its streams.
//!
//! ```text
//! ca ──► root.crt, root.key ──► ca --intermediate ──► ca.crt, ca.key         the authority's machine
//!                                                        │
//! keygen ──► identity.key, wireguard.key                 │                    the node's machine
//!                 │                                      ▼
//!              request ──► node.req ──────────────────► sign ──► node.crt ──► verify, print, list
//!
//! needs-renewal ──► renew ──► node.crt                               where time or trust ends
//! revoke ──► revocations.bin ──► verify, list, renew
//! rotate ──► next.crt, next.key, cross.crt
//! ```
//!
//! **Invariant:** a private key is written to a new file of mode 0600 and nowhere else: never to standard output, never
//! over an existing file, not even with `--force`.

mod ca;
mod console;
pub(crate) mod describe;
mod failure;
pub(crate) mod found;
mod keygen;
mod life;
mod list;
mod needs_renewal;
mod passphrase;
mod print;
mod renew;
mod request;
mod revocations;
mod revoke;
mod rotate;
mod sheet;
mod sign;
mod signer;
mod span;
mod stdout;
mod terminal;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use rand::RngCore;

pub use console::{Console, Sink, Source};
pub use failure::{Exit, Failure};
pub use passphrase::Keeper;
pub use span::{Span, spell};
pub use stdout::Stdout;

use self::{console::Existing, sheet::Sheet};
use crate::UnixTime;

/// Issues and inspects the certificates of a wiremesh mesh. Needs no network: it also runs on an offline machine.
///
/// Exit status: 0 done, 1 failed, 2 refused (what was to be verified is not so) or not there, 64 bad usage. Of
/// needs-renewal: 0 yes, 1 no.
#[derive(Debug, Parser)]
#[command(
    name = "wiremesh-cert",
    version,
    after_help = "Example, the whole life of a certificate:
  wiremesh-cert ca --name lab --networks 10.42.0.0/16
  wiremesh-cert keygen
  wiremesh-cert request --name worker-1 --out-req worker-1.req
  wiremesh-cert sign --in-req worker-1.req --networks 10.42.0.7
  wiremesh-cert verify --crt worker-1.crt
  wiremesh-cert print worker-1.crt
  wiremesh-cert needs-renewal worker-1.crt && wiremesh-cert renew --crt worker-1.crt --force
  wiremesh-cert revoke --crt worker-1.crt

Where a coordinator runs, it renews, revokes and rotates: \"wiremesh cert --help\"."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Whole,
}

/// All that `wiremesh-cert` does.
#[derive(Debug, Subcommand)]
pub enum Whole {
    /// What `wiremesh cert` does too.
    #[command(flatten)]
    Shared(Command),
    /// What `wiremesh cert` asks the coordinator for.
    #[command(flatten)]
    Offline(Offline),
}

/// The certificate commands, for `wiremesh-cert` and `wiremesh cert` alike.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a mesh's authority: its certificate and its private key
    Ca(ca::Args),
    /// Make a node's two private keys, on the node itself
    Keygen(keygen::Args),
    /// Make a request for a certificate, which proves that the node has its identity key
    Request(request::Args),
    /// Sign a node's certificate
    Sign(sign::Args),
    /// Show what a certificate, request, join token or signed message says, without believing it
    Print(print::Args),
    /// Check a node's certificate as every member of the mesh does, and say which check fails
    Verify(verify::Args),
    /// Tell whether it is time to renew a certificate
    NeedsRenewal(needs_renewal::Args),
}

/// What is done with the authority's files where there is no coordinator; `wiremesh cert` has online commands of the
/// same names.
#[derive(Debug, Subcommand)]
pub enum Offline {
    /// Sign a fresh certificate for what an old one says
    Renew(renew::Args),
    /// Put certificates and identities on the signed list of what is not believed any more
    Revoke(revoke::Args),
    /// List the certificates in folders and files, those that end first first
    List(list::Args),
    /// Make the next authority of a mesh, and what leads to it from the present one
    Rotate(rotate::Args),
}

/// What can be run: a function of itself, the time, chance and its streams. `rng` must be a cryptographic one.
pub trait Run {
    /// Runs it. On success the exit status may still be an answer.
    fn run(&self, now: UnixTime, rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<Exit, Failure>;
}

impl Run for Whole {
    fn run(&self, now: UnixTime, rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<Exit, Failure> {
        match self {
            Whole::Shared(command) => command.run(now, rng, console),
            Whole::Offline(command) => command.run(now, rng, console),
        }
    }
}

impl Run for Command {
    fn run(&self, now: UnixTime, rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<Exit, Failure> {
        match self {
            Command::Ca(args) => ca::run(args, now, rng, console)?,
            Command::Keygen(args) => keygen::run(args, rng, console)?,
            Command::Request(args) => request::run(args, console)?,
            Command::Sign(args) => sign::run(args, now, rng, console)?,
            Command::Print(args) => print::run(args, now, console)?,
            Command::Verify(args) => verify::run(args, now, console)?,
            Command::NeedsRenewal(args) => return needs_renewal::run(args, now, console),
        }
        Ok(Exit::Done)
    }
}

impl Run for Offline {
    fn run(&self, now: UnixTime, rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<Exit, Failure> {
        match self {
            Offline::Renew(args) => renew::run(args, now, rng, console)?,
            Offline::Revoke(args) => revoke::run(args, now, console)?,
            Offline::List(args) => list::run(args, now, console)?,
            Offline::Rotate(args) => rotate::run(args, now, rng, console)?,
        }
        Ok(Exit::Done)
    }
}

/// Writes what a command made where it was asked to, and then says so, unless standard output holds the thing itself.
/// As JSON both go there, the thing in the field `text`.
fn deliver(
    text: &str,
    out: &Sink,
    existing: Existing,
    sheet: Sheet,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match (out, json) {
        (Sink::Stdout, true) => console.print(&sheet.field("text", text).text(true)),
        (Sink::Stdout, false) => console.print(text),
        (Sink::File(_), _) => {
            out.write(text, existing, console)?;
            console.print(&sheet.text(json))
        }
    }
}

/// Runs one command on the streams of this process and says how it went there: for `main`.
pub fn execute(command: &impl Run, now: UnixTime, rng: &mut dyn RngCore) -> ExitCode {
    let (mut input, mut output) = (io::stdin().lock(), Stdout::new());
    let colours = output.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut console = Console { input: &mut input, output: &mut output, colours, keeper: &mut terminal::Person };
    let outcome = command
        .run(now, rng, &mut console)
        .and_then(|exit| console.output.flush().map(|()| exit).map_err(Failure::output));
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // Nowhere is left to complain if this fails.
            let _ = write!(io::stderr().lock(), "{failure}");
            failure.exit.into()
        }
    }
}

/// Reads the arguments of this process. On bad ones, and for `--help`, the answer was printed and the exit code is given.
pub fn parse<C: Parser>() -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| {
        let _ = error.print();
        if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS }
    })
}
