//! The environment of this process and the person at its terminal, asked for what is not to be seen.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::passphrase::{Keeper, VARIABLE};
use crate::MAX_PASSPHRASE_BYTES;

/// What Ctrl-C types.
const INTERRUPT: u8 = 3;

/// Whoever started this process.
pub struct Person;

impl Keeper for Person {
    fn environment(&self) -> Option<Result<Zeroizing<String>, &'static str>> {
        let value = env::var_os(VARIABLE)?;
        Some(value.into_string().map(Zeroizing::new).map_err(|_| "it is not UTF-8"))
    }

    fn ask(&mut self, question: &str) -> io::Result<Zeroizing<String>> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        // Before anybody is invited to type.
        let quiet = Quiet::of(&terminal)?;
        (&terminal).write_all(question.as_bytes())?;
        let answer = read_line(&terminal);
        drop(quiet);
        (&terminal).write_all(b"\n")?;
        answer
    }
}

/// A terminal that shows nothing of what is typed, for as long as this is there. Ctrl-C ends the line instead of the
/// process, which would leave the terminal as it is now.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Quiet<'_> {
    fn of(terminal: &File) -> io::Result<Quiet<'_>> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ISIG;
        quiet.local_modes |= LocalModes::ICANON;
        quiet.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Flushed: what was typed beyond the line was not meant for whoever reads next.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// One line, which a terminal gives with one read.
fn read_line(mut terminal: &File) -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; MAX_PASSPHRASE_BYTES + 2]);
    let length = terminal.read(&mut *bytes)?;
    let line = &bytes[..length];
    match line.strip_suffix(b"\n").unwrap_or(line) {
        [.., INTERRUPT] => Err(io::ErrorKind::Interrupted.into()),
        [] if length == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        line => match std::str::from_utf8(line) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "what was typed is not UTF-8")),
        },
    }
}
