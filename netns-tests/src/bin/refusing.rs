//! Becomes a program to which the kernel refuses things: `refusing udp-receive tun-offloads -- wiremesh agent …`.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Context;
use netns_tests::Refused;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    for argument in arguments.by_ref().take_while(|argument| argument != "--") {
        argument.to_string_lossy().parse::<Refused>()?.apply()?;
    }
    let program = arguments.next().context("no program to become")?;
    Err(Command::new(&program).args(arguments).exec()).with_context(|| format!("becoming {}", program.display()))
}
