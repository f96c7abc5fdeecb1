//! `wiremesh-cert`: the certificate commands alone, for an offline machine.

use std::{process::ExitCode, time::SystemTime};

use wiremesh_certs::{UnixTime, cli, no_core_dumps};

fn main() -> ExitCode {
    // It goes on without: on a kernel that does not know this, there is nothing else to be done.
    let _ = no_core_dumps();
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
