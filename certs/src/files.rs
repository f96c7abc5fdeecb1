//! Files on disk: secrets that are never overwritten, replacements that are whole or not at all, reads with a bound.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::keys;

/// Larger than any key, certificate chain, record list or revocation list.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Larger than any private key or join token.
pub const MAX_SECRET_BYTES: u64 = 16 * 1024;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There already is such a file, and it may be somebody's key.
    #[error("{path} exists already and is not overwritten", path = .0.display())]
    Exists(PathBuf),
    /// There is none.
    #[error("{path} does not exist", path = .0.display())]
    Missing(PathBuf),
    /// Beyond its limit, or not UTF-8 where text is expected.
    #[error("{path} is not a file of this kind ({why})", path = .0.display(), why = .1)]
    Unsuitable(PathBuf, &'static str),
    /// The operating system refused.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

impl FileError {
    fn of(path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| match source.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists(path.to_owned()),
            io::ErrorKind::NotFound => FileError::Missing(path.to_owned()),
            _ => FileError::Io { path: path.to_owned(), source },
        }
    }

    /// Whether the file is simply not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, FileError::Missing(_))
    }
}

/// Writes a secret: mode 0600 from its first byte, refused if the file exists, on disk when this returns.
pub fn write_new_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    create(path, bytes, 0o600)
}

/// Writes a public file (mode 0644), refused if it exists.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    create(path, bytes, 0o644)
}

/// Puts `bytes` in place of the file, if any: readers see the old contents or the new, never a part, also after a crash.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let name = path.file_name().ok_or(FileError::Unsuitable(path.to_owned(), "no file name"))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let _ = fs::remove_file(&temporary);
    create(&temporary, bytes, mode)?;
    fs::rename(&temporary, path).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        FileError::of(path)(error)
    })?;
    sync_directory(path)
}

/// A secret text file. Zeroed when dropped.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    // With all the room it may need from the start: a buffer that grows leaves its old contents behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize + 64));
    read_into(path, MAX_SECRET_BYTES, &mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::Unsuitable(path.to_owned(), "not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The passphrase in a file: its first line. Zeroed when dropped.
pub fn read_passphrase(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let text = read_secret(path)?;
    keys::passphrase_in(&text).map_err(|_| FileError::Unsuitable(path.to_owned(), "its first line is no passphrase"))
}

/// At most `limit` bytes; a longer file is refused, not cut.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    read_into(path, limit, &mut bytes)?;
    Ok(bytes)
}

/// A text file of at most [`MAX_FILE_BYTES`].
pub fn read_text(path: &Path) -> Result<String, FileError> {
    String::from_utf8(read_bounded(path, MAX_FILE_BYTES)?)
        .map_err(|_| FileError::Unsuitable(path.to_owned(), "not text"))
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(FileError::of(path))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // A half-written file must not stand in the way of the next attempt (disk full).
        let _ = fs::remove_file(path);
        return Err(FileError::of(path)(error));
    }
    sync_directory(path)
}

/// Makes a new or renamed directory entry survive a crash.
fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(FileError::of(directory))
}

fn read_into(path: &Path, limit: u64, bytes: &mut Vec<u8>) -> Result<(), FileError> {
    let file = File::open(path).map_err(FileError::of(path))?;
    file.take(limit + 1).read_to_end(bytes).map_err(FileError::of(path))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::Unsuitable(path.to_owned(), "too long"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_readable_by_its_owner_only_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.key");

        write_new_secret(&path, b"first").unwrap();
        let again = write_new_secret(&path, b"second");

        assert!(matches!(again, Err(FileError::Exists(_))));
        assert_eq!(read_secret(&path).unwrap().as_str(), "first");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_passphrase_is_read_without_the_end_of_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        fs::write(&path, "two words\nnot this\n").unwrap();

        assert_eq!(read_passphrase(&path).unwrap().as_str(), "two words");

        fs::write(&path, "\n").unwrap();
        assert!(matches!(read_passphrase(&path), Err(FileError::Unsuitable(..))));
    }

    #[test]
    fn a_replacement_leaves_no_other_file_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.crt");

        replace(&path, b"first", 0o644).unwrap();
        replace(&path, b"second", 0o644).unwrap();

        assert_eq!(read_text(&path).unwrap(), "second");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big");
        fs::write(&path, [0; 11]).unwrap();

        assert!(matches!(read_bounded(&path, 10), Err(FileError::Unsuitable(..))));
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
    }
}
