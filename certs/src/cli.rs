//! The certificate commands: each is a function of its arguments, the time, chance and its streams.
//!
//! ```text
//! ca ──► ca.crt, ca.key                                   the authority's machine
//!           │
//! keygen ──► identity.key, wireguard.key                  the node's machine
//!           │
//! request ──► node.req ──► sign ──► node.crt ──► verify, print
//! ```
//!
//! **Invariant:** a private key is written to a new file of mode 0600 and nowhere else: never to standard output, never
//! over an existing file, not even with `--force`.

mod ca;
mod console;
mod describe;
mod failure;
mod keygen;
mod print;
mod request;
mod sheet;
mod sign;
mod span;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use rand::RngCore;

pub use console::{Console, Sink, Source};
pub use failure::{Exit, Failure};
pub use span::{Span, spell};

use self::{console::Existing, sheet::Sheet};
use crate::UnixTime;

/// Issues and inspects the certificates of a wiremesh mesh. Needs no network: it also runs on an offline machine.
///
/// Exit status: 0 done, 1 failed, 2 refused (what was to be verified is not so), 64 bad usage.
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
  wiremesh-cert print worker-1.crt"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
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
}

/// Runs one command. `rng` must be a cryptographic one.
pub fn run(command: &Command, now: UnixTime, rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    match command {
        Command::Ca(args) => ca::run(args, now, rng, console),
        Command::Keygen(args) => keygen::run(args, rng, console),
        Command::Request(args) => request::run(args, console),
        Command::Sign(args) => sign::run(args, now, rng, console),
        Command::Print(args) => print::run(args, now, console),
        Command::Verify(args) => verify::run(args, now, console),
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
pub fn execute(command: &Command, now: UnixTime, rng: &mut dyn RngCore) -> ExitCode {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let colours = output.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut console = Console { input: &mut input, output: &mut output, colours };
    let outcome = run(command, now, rng, &mut console).and_then(|()| console.output.flush().map_err(Failure::output));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
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
