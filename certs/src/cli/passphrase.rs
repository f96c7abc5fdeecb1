//! Passphrases of authorities' keys: from a file, from the environment, or from somebody at the terminal, in this order.
//!
//! **Invariant:** standard input is read for a passphrase only where an option says `-`.

use std::{io, path::Path};

use zeroize::Zeroizing;

use super::{Console, Failure, Source};
use crate::passphrase_in;

/// The passphrase of the key that `--ca-key` names.
pub const VARIABLE: &str = "WIREMESH_CA_PASSPHRASE";

/// A key is not encrypted with fewer characters: what can be guessed protects nothing.
const MIN_CHARACTERS: usize = 8;

/// Who is asked for a passphrase that no file holds.
pub trait Keeper {
    /// The one in the environment, in [`VARIABLE`].
    fn environment(&self) -> Option<Result<Zeroizing<String>, &'static str>>;

    /// Asks at the terminal, and shows nothing of the answer. Fails if there is no terminal.
    fn ask(&mut self, question: &str) -> io::Result<Zeroizing<String>>;
}

/// Of a key that is there, and encrypted.
pub fn of_key(key: &Source, file: Option<&Source>, console: &mut Console<'_>) -> Result<Zeroizing<String>, Failure> {
    if let Some(known) = known(file, console)? {
        return Ok(known);
    }
    ask(console, &format!("passphrase of {key}: "), &format!("reading {key}"), "--passphrase-file")
}

/// Of a key that is to be made: `known` gives it, or it is asked for twice. `option` is the one that would have named a
/// file.
pub fn of_new_key(
    key: &Path,
    known: Option<Zeroizing<String>>,
    option: &str,
    console: &mut Console<'_>,
) -> Result<Zeroizing<String>, Failure> {
    let making = format!("encrypting {}", key.display());
    let passphrase = match known {
        Some(known) => known,
        None => {
            let first = ask(console, &format!("new passphrase for {}: ", key.display()), &making, option)?;
            let again = ask(console, "the same again: ", &making, option)?;
            if first != again {
                return Err(Failure::new(&making, "the two passphrases differ").hint("nothing was made: try again"));
            }
            first
        }
    };
    if passphrase.chars().count() < MIN_CHARACTERS {
        return Err(Failure::new(making, format!("a passphrase of fewer than {MIN_CHARACTERS} characters"))
            .hint("who finds the file can guess it: take several words"));
    }
    Ok(passphrase)
}

/// The one in the file, else in the environment, if any.
pub fn known(file: Option<&Source>, console: &mut Console<'_>) -> Result<Option<Zeroizing<String>>, Failure> {
    match (file, console.keeper.environment()) {
        (Some(file), _) => in_file(file, console).map(Some),
        (None, Some(Ok(given))) => {
            passphrase_in(&given).map(Some).map_err(|bad| Failure::usage(format!("reading {VARIABLE}"), bad))
        }
        (None, Some(Err(why))) => Err(Failure::usage(format!("reading {VARIABLE}"), why)),
        (None, None) => Ok(None),
    }
}

/// The first line of a file.
pub fn in_file(file: &Source, console: &mut Console<'_>) -> Result<Zeroizing<String>, Failure> {
    passphrase_in(&file.secret(console)?).map_err(|bad| {
        Failure::new(format!("reading {file}"), bad).hint("the first line of the file is the passphrase")
    })
}

fn ask(console: &mut Console<'_>, question: &str, doing: &str, option: &str) -> Result<Zeroizing<String>, Failure> {
    let answer = console.keeper.ask(question).map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => Failure::new(doing, "interrupted"),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Failure::new(doing, error),
        _ => Failure::new(doing, format!("it needs a passphrase, and there is no terminal to ask at ({error})"))
            .hint(format!("name a file that holds it: {option} FILE")),
    })?;
    passphrase_in(&answer).map_err(|bad| Failure::new(doing, bad))
}
