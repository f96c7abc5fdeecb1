//! Standard output whose reader may leave: `wiremesh audit | head -1`.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    process,
};

/// Standard output. When its reader has gone, whoever waits for the rest is nobody: the process ends, without a word.
#[derive(Debug)]
pub struct Stdout(io::Stdout);

impl Stdout {
    /// That of this process.
    #[expect(clippy::new_without_default, reason = "it is one of the process's streams, not a value")]
    pub fn new() -> Stdout {
        Stdout(io::stdout())
    }

    /// Whether a person reads it.
    pub fn is_terminal(&self) -> bool {
        self.0.is_terminal()
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).inspect_err(end_if_nobody_reads)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().inspect_err(end_if_nobody_reads)
    }
}

fn end_if_nobody_reads(error: &io::Error) {
    if error.kind() == ErrorKind::BrokenPipe {
        process::exit(0);
    }
}
