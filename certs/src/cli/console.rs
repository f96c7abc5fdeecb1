//! Where a command reads and writes: files, or `-` for standard input and output.

use std::{
    convert::Infallible,
    fmt, fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use zeroize::Zeroizing;

use super::{Failure, Keeper};
use crate::files::{self, FileError, MAX_SECRET_BYTES};

/// More than any file these commands read: a full list of revocations, in base64.
pub const MAX_INPUT_BYTES: u64 = 2 * 1024 * 1024;

/// The streams of a command.
pub struct Console<'a> {
    /// Standard input.
    pub input: &'a mut dyn Read,
    /// Standard output.
    pub output: &'a mut dyn Write,
    /// Whether the output is for eyes that see colours.
    pub colours: bool,
    /// Who knows the passphrases that are in no file.
    pub keeper: &'a mut dyn Keeper,
}

impl Console<'_> {
    /// Writes text to standard output.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.output.write_all(text.as_bytes()).map_err(Failure::output)
    }

    fn read(&mut self, limit: u64, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        let reading = "reading standard input";
        self.input.take(limit + 1).read_to_end(bytes).map_err(|error| Failure::new(reading, error))?;
        if bytes.len() as u64 > limit {
            return Err(Failure::new(reading, format!("more than {limit} bytes")));
        }
        Ok(())
    }
}

/// A file to read, or standard input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// `-`
    Stdin,
    /// A path.
    File(PathBuf),
}

impl Source {
    /// All of it.
    pub fn bytes(&self, console: &mut Console<'_>) -> Result<Vec<u8>, Failure> {
        match self {
            Source::Stdin => {
                let mut bytes = Vec::new();
                console.read(MAX_INPUT_BYTES, &mut bytes)?;
                Ok(bytes)
            }
            Source::File(path) => files::read_bounded(path, MAX_INPUT_BYTES).map_err(|error| self.failure(&error)),
        }
    }

    /// Whether it is a file that is not there.
    pub fn is_missing(&self) -> bool {
        match self {
            Source::Stdin => false,
            Source::File(path) => fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound),
        }
    }

    /// All of it, as text.
    pub fn text(&self, console: &mut Console<'_>) -> Result<String, Failure> {
        String::from_utf8(self.bytes(console)?).map_err(|_| Failure::new(format!("reading {self}"), "it is not text"))
    }

    /// A secret text. Zeroed when dropped.
    pub fn secret(&self, console: &mut Console<'_>) -> Result<Zeroizing<String>, Failure> {
        match self {
            Source::Stdin => {
                let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize + 64));
                console.read(MAX_SECRET_BYTES, &mut bytes)?;
                let text = std::str::from_utf8(&bytes).map_err(|_| Failure::new("reading -", "it is not text"))?;
                Ok(Zeroizing::new(text.to_owned()))
            }
            Source::File(path) => files::read_secret(path).map_err(|error| self.failure(&error)),
        }
    }

    /// Standard input can be read only once.
    pub fn at_most_one_stdin(sources: &[&Source]) -> Result<(), Failure> {
        match sources.iter().filter(|source| ***source == Source::Stdin).count() {
            0 | 1 => Ok(()),
            _ => {
                Err(Failure::usage("reading -", "two options name standard input").hint("name a file for one of them"))
            }
        }
    }

    fn failure(&self, error: &FileError) -> Failure {
        Failure::file(format!("reading {self}"), error)
    }
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Source, Infallible> {
        Ok(if text == "-" { Source::Stdin } else { Source::File(text.into()) })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Stdin => f.write_str("-"),
            Source::File(path) => path.display().fmt(f),
        }
    }
}

/// A file to write, or standard output. For what may be public; private keys have `write_key`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sink {
    /// `-`
    Stdout,
    /// A path.
    File(PathBuf),
}

/// What to do when the file to be written is there already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Existing {
    /// Leave it and fail.
    Keep,
    /// Put the new one in its place, unless it is a private key.
    Replace,
}

impl Existing {
    /// As `--force` says.
    pub fn with_force(force: bool) -> Existing {
        if force { Existing::Replace } else { Existing::Keep }
    }
}

impl Sink {
    /// Fails if [`Sink::write`] would refuse: to be asked before anything else is made.
    pub fn check(&self, existing: Existing) -> Result<(), Failure> {
        let Sink::File(path) = self else { return Ok(()) };
        let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
        if existing == Existing::Keep {
            return Err(self.failure(&FileError::Exists(path.clone())));
        }
        if !found.is_file() {
            return Err(Failure::new(format!("writing {self}"), "it exists and is not an ordinary file"));
        }
        if is_private_key(path) {
            return Err(Failure::new(format!("writing {self}"), "it holds a key, which even --force does not replace")
                .hint("if the key is not needed any more, remove the file yourself"));
        }
        Ok(())
    }

    /// Writes text that may be public.
    pub fn write(&self, text: &str, existing: Existing, console: &mut Console<'_>) -> Result<(), Failure> {
        self.write_bytes(text.as_bytes(), existing, console)
    }

    /// Writes what may be public. What is there is replaced whole or not at all.
    pub fn write_bytes(&self, bytes: &[u8], existing: Existing, console: &mut Console<'_>) -> Result<(), Failure> {
        self.check(existing)?;
        match (self, existing) {
            (Sink::Stdout, _) => console.output.write_all(bytes).map_err(Failure::output),
            (Sink::File(path), Existing::Keep) => files::write_new(path, bytes).map_err(|error| self.failure(&error)),
            (Sink::File(path), Existing::Replace) => {
                files::replace(path, bytes, 0o644).map_err(|error| self.failure(&error))
            }
        }
    }

    fn failure(&self, error: &FileError) -> Failure {
        Failure::file(format!("writing {self}"), error)
    }
}

impl FromStr for Sink {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Sink, Infallible> {
        Ok(if text == "-" { Sink::Stdout } else { Sink::File(text.into()) })
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sink::Stdout => f.write_str("-"),
            Sink::File(path) => path.display().fmt(f),
        }
    }
}

/// A path for a private key, from an option: standard output is none.
pub fn key_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("a private key is written to a file of mode 0600 and nowhere else".to_owned()),
        path => Ok(path.into()),
    }
}

/// A path for one of several files that belong together, from an option: standard output is none.
pub fn file_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("this one is written to a file".to_owned()),
        path => Ok(path.into()),
    }
}

/// Fails if [`write_key`] would find a file in its way.
pub fn check_key_path(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(key_failure(path, &FileError::Exists(path.to_owned()))),
        Err(_) => Ok(()),
    }
}

/// Writes a private key to a new file of mode 0600.
pub fn write_key(path: &Path, text: &str) -> Result<(), Failure> {
    files::write_new_secret(path, text.as_bytes()).map_err(|error| key_failure(path, &error))
}

fn key_failure(path: &Path, error: &FileError) -> Failure {
    let failure = Failure::new(format!("writing {}", path.display()), error);
    match error {
        FileError::Exists(_) => {
            failure.hint("a private key is never replaced, not even with --force: name another file, or move it away")
        }
        FileError::Missing(_) | FileError::Unsuitable(..) | FileError::Io { .. } => failure,
    }
}

/// A PEM private key, or what `wg` would read as a key. A public WireGuard key looks the same and is spared too.
fn is_private_key(path: &Path) -> bool {
    let Ok(text) = files::read_secret(path) else { return false };
    text.contains("PRIVATE KEY-----") || crate::WgPrivateKey::from_base64(&text).is_ok()
}
