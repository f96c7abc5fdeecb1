//! The model of a form in parts (`multipart/form-data`, RFC 7578), by a scanner of one byte after the other.
//!
//! ```text
//! Content ─ CR LF -- boundary ─► Delimiter ─ CR LF ─► Headers ─ empty line ─► Content of a part
//!   ▲ the part named "model": captured     └─ -- ─► the form is over             │
//!   └────────────────────────────────────────────────────────────────────────────┘
//! ```

use super::{Peeked, named};
use crate::router::openai::{BadModel, MAX_MODEL_BYTES};

/// The longest boundary (RFC 2046, 5.1.1).
const MAX_BOUNDARY_BYTES: usize = 70;
/// The headers of one part.
const MAX_PART_HEADER_BYTES: usize = 4 * 1024;

/// Where the scanner is.
pub struct FormPeek {
    /// `CR LF -- boundary`; empty if the content type names none.
    delimiter: Vec<u8>,
    /// So many bytes of it stand directly behind us. Begins as if a line had just ended.
    matched: usize,
    state: State,
    /// The content of the part named model, or the headers of a part.
    kept: Vec<u8>,
}

enum State {
    /// In a part, or before the first.
    Content { is_model: bool },
    /// Behind a delimiter.
    Delimiter,
    /// In the headers of a part.
    Headers,
}

impl FormPeek {
    pub fn new(content_type: &str) -> FormPeek {
        let boundary = parameter(content_type, "boundary").filter(|b| (1..=MAX_BOUNDARY_BYTES).contains(&b.len()));
        let delimiter = boundary.map(|boundary| [b"\r\n--", boundary.as_bytes()].concat()).unwrap_or_default();
        FormPeek { delimiter, matched: 2, state: State::Content { is_model: false }, kept: Vec::new() }
    }

    pub fn push(&mut self, piece: &[u8]) -> Peeked {
        if self.delimiter.is_empty() {
            return Peeked::Bad(BadModel::Body("its content type names no boundary"));
        }
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            // Nearly all of a large body: a file.
            if let (State::Content { is_model: false }, 0) = (&self.state, self.matched) {
                let Some(skipped) = piece[at..].iter().position(|byte| *byte == b'\r') else { return Peeked::More };
                at += skipped + 1;
                self.matched = 1;
                continue;
            }
            at += 1;
            if let Some(found) = self.step(byte) {
                return found;
            }
        }
        Peeked::More
    }

    fn step(&mut self, byte: u8) -> Option<Peeked> {
        match self.state {
            State::Content { is_model } => {
                if is_model {
                    if self.kept.len() > MAX_MODEL_BYTES + self.delimiter.len() {
                        return Some(Peeked::Bad(BadModel::NotAName));
                    }
                    self.kept.push(byte);
                }
                // A delimiter has one CR, its first byte: there is no shorter beginning of it within.
                self.matched = match byte {
                    _ if self.delimiter.get(self.matched) == Some(&byte) => self.matched + 1,
                    b'\r' => 1,
                    _ => 0,
                };
                if self.matched == self.delimiter.len() {
                    self.matched = 0;
                    let mut content = std::mem::take(&mut self.kept);
                    if is_model {
                        content.truncate(content.len().saturating_sub(self.delimiter.len()));
                        return Some(named(content));
                    }
                    self.state = State::Delimiter;
                }
            }
            State::Delimiter => {
                self.kept.push(byte);
                match self.kept.as_slice() {
                    [.., b'\n'] => {
                        self.kept.clear();
                        self.state = State::Headers;
                    }
                    b"--" => return Some(Peeked::Bad(BadModel::Missing)),
                    kept if kept.len() > MAX_BOUNDARY_BYTES => return Some(malformed()),
                    _ => {}
                }
            }
            State::Headers => {
                self.kept.push(byte);
                if self.kept.ends_with(b"\r\n\r\n") || self.kept == b"\r\n" {
                    let is_model = is_model(&self.kept);
                    self.kept.clear();
                    self.state = State::Content { is_model };
                } else if self.kept.len() > MAX_PART_HEADER_BYTES {
                    return Some(malformed());
                }
            }
        }
        None
    }
}

fn malformed() -> Peeked {
    Peeked::Bad(BadModel::Body("a part of the form is malformed"))
}

/// Whether these are the headers of the part `model`.
fn is_model(headers: &[u8]) -> bool {
    String::from_utf8_lossy(headers).lines().any(|line| {
        let Some((name, value)) = line.split_once(':') else { return false };
        name.trim().eq_ignore_ascii_case("content-disposition") && parameter(value, "name").as_deref() == Some("model")
    })
}

/// A parameter of a header's value: `kind; name=value; name="value"`.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, next) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(';').unwrap_or(after.len())),
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value.trim().to_owned());
        }
        rest = next.split_once(';')?.1;
    }
}
