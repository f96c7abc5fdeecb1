//! `print`: shows what a file says, without believing it.

use super::{Console, Failure, Source, describe, span::moment};
use crate::UnixTime;

/// Of `print`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert print worker-1.crt
  wiremesh-cert print --json - < ca.crt

Knows certificates and chains, requests, keys, join tokens (without their secret), signed records, proofs and lists of
revocations, in PEM, DER, CBOR or base64. What is shown is what the file claims: \"verify\" tells whether it is so.")]
pub struct Args {
    /// The file; - for standard input
    #[arg(value_name = "FILE", required_unless_present = "path", conflicts_with = "path")]
    file: Option<Source>,
    /// The same, as nebula-cert has it
    #[arg(long, value_name = "FILE")]
    path: Option<Source>,
    /// As of this time instead of now: 2027-01-15T08:00:00Z, 2027-01-15 or @SECONDS
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<UnixTime>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows it.
pub fn run(args: &Args, now: UnixTime, console: &mut Console<'_>) -> Result<(), Failure> {
    let Some(source) = args.file.as_ref().or(args.path.as_ref()) else {
        return Err(Failure::usage("printing", "needs a file"));
    };
    let bytes = zeroize::Zeroizing::new(source.bytes(console)?);
    let sheet = describe::describe(&bytes, args.at.unwrap_or(now))
        .map_err(|why| Failure::new(format!("reading {source}"), why))?;
    console.print(&sheet.text(args.json))
}
