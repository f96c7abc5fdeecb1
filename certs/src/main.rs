//! `wiremesh-cert`: the certificate commands alone, for an offline machine.

use std::{process::ExitCode, time::SystemTime};

use wiremesh_certs::{UnixTime, cli};

fn main() -> ExitCode {
    match cli::parse::<cli::Cli>() {
        Ok(arguments) => cli::execute(&arguments.command, now(), &mut rand::rng()),
        Err(code) => code,
    }
}

/// The one place of this program that reads the clock.
#[expect(clippy::disallowed_methods, reason = "the shell of the program, where time comes from")]
fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
