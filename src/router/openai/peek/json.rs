//! The model of a JSON object (RFC 8259), by a scanner of one byte after the other.
//!
//! ```text
//! Start ─{─► Key ─"…"─► Colon ─:─► Value ─"…" of "model"─► found
//!              ▲                     ├─ "…", [ … ], { … }, 1 ─► After
//!              └────────── , ────────┴───────────────────────────┘  } ends it
//! ```
//!
//! What is skipped is not checked further than is needed to skip it: the upstream reads it again.

use super::{Peeked, named};
use crate::router::openai::{BadModel, MAX_MODEL_BYTES};

const MODEL: &[u8] = b"model";

/// Where the scanner is.
#[derive(Default)]
pub struct JsonPeek {
    state: State,
    text: Text,
    /// The key just read is the wanted one.
    is_model: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    /// Before the object.
    #[default]
    Start,
    /// Before a key; an object may end here only if it is empty, which is not checked.
    Key,
    /// In a key.
    InKey,
    /// Behind a key.
    Colon,
    /// Before a value.
    Value,
    /// In the text that is the model.
    InModel,
    /// In a text that is skipped, so many brackets deep.
    InText(u32),
    /// Within arrays and objects that are skipped, so many brackets deep.
    Nested(u32),
    /// In a number, `true`, `false` or `null`.
    Scalar,
    /// Behind a value.
    After,
}

impl JsonPeek {
    pub fn push(&mut self, piece: &[u8]) -> Peeked {
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            // Nearly all of a large body: nothing in it but its end matters.
            if let State::InText(_) = self.state
                && !self.text.escaped
            {
                let Some(ends) = piece[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')) else {
                    return Peeked::More;
                };
                at += ends + 1;
                self.skip(piece[at - 1]);
                continue;
            }
            at += 1;
            match self.step(byte) {
                Ok(None) => {}
                Ok(Some(found)) => return found,
                Err(why) => return Peeked::Bad(BadModel::Body(why)),
            }
        }
        Peeked::More
    }

    /// The object never ended.
    pub fn end(&self) -> BadModel {
        BadModel::Body(if self.state == State::Start { "it is empty" } else { "it breaks off" })
    }

    /// In a text that is skipped.
    fn skip(&mut self, byte: u8) {
        match byte {
            _ if self.text.escaped => self.text.escaped = false,
            b'\\' => self.text.escaped = true,
            b'"' => {
                self.state = match self.state {
                    State::InText(0) => State::After,
                    State::InText(depth) => State::Nested(depth),
                    other => other,
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, byte: u8) -> Result<Option<Peeked>, &'static str> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.state = match (self.state, byte) {
            (State::InText(_), _) => {
                self.skip(byte);
                return Ok(None);
            }
            (State::InKey, _) => {
                if !self.text.push(byte)? {
                    return Ok(None);
                }
                self.is_model = self.text.take().is_some_and(|key| key == MODEL);
                State::Colon
            }
            (State::InModel, _) => {
                if !self.text.push(byte)? {
                    return Ok(None);
                }
                let captured = self.text.take();
                return Ok(Some(captured.map_or(Peeked::Bad(BadModel::NotAName), named)));
            }
            (State::Start | State::Key | State::Colon | State::Value | State::After, _) if is_space => return Ok(None),
            (State::Start, b'{') => State::Key,
            (State::Start, _) => return Err("it does not begin with {"),
            (State::Key, b'"') => {
                self.text = Text::default();
                State::InKey
            }
            (State::Key | State::After | State::Scalar, b'}') => return Ok(Some(Peeked::Bad(BadModel::Missing))),
            (State::Key, _) => return Err("a key is missing"),
            (State::Colon, b':') => State::Value,
            (State::Colon, _) => return Err("a colon is missing"),
            (State::Value, b'"') => {
                self.text = Text::default();
                if self.is_model { State::InModel } else { State::InText(0) }
            }
            (State::Value, _) if self.is_model => return Ok(Some(Peeked::Bad(BadModel::NotAName))),
            (State::Value, b'{' | b'[') => State::Nested(1),
            (State::Value, b',' | b'}' | b']' | b':') => return Err("a value is missing"),
            (State::Value, _) => State::Scalar,
            (State::Nested(depth), b'"') => {
                self.text = Text::default();
                State::InText(depth)
            }
            (State::Nested(depth), b'{' | b'[') => State::Nested(depth.saturating_add(1)),
            (State::Nested(1), b'}' | b']') => State::After,
            (State::Nested(depth), b'}' | b']') => State::Nested(depth - 1),
            (State::Nested(depth), _) => State::Nested(depth),
            (State::After | State::Scalar, b',') => State::Key,
            (State::After, _) => return Err("a comma is missing"),
            (State::Scalar, _) => State::Scalar,
        };
        Ok(None)
    }
}

/// One text being read: its bytes with escapes resolved, as long as it may be a name.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// It is longer than any name: only its end is still of interest.
    is_long: bool,
    escaped: bool,
    /// Digits of a `\u` escape that are still to come, and its value so far.
    unicode: Option<(u8, u32)>,
    /// The first half of a surrogate pair.
    high: Option<u32>,
}

impl Text {
    /// The next byte. True if it was the quote at the end.
    fn push(&mut self, byte: u8) -> Result<bool, &'static str> {
        if let Some((left, value)) = self.unicode {
            let digit = char::from(byte).to_digit(16).ok_or("a bad \\u escape")?;
            let value = value * 16 + digit;
            if left > 1 {
                self.unicode = Some((left - 1, value));
            } else {
                self.unicode = None;
                self.code_unit(value)?;
            }
            return Ok(false);
        }
        if self.escaped {
            self.escaped = false;
            if byte == b'u' {
                self.unicode = Some((4, 0));
                return Ok(false);
            }
            let meant = match byte {
                b'"' | b'\\' | b'/' => byte,
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                _ => return Err("a bad escape"),
            };
            self.whole()?;
            self.keep(&[meant]);
            return Ok(false);
        }
        match byte {
            b'\\' => self.escaped = true,
            b'"' => {
                self.whole()?;
                return Ok(true);
            }
            0..0x20 => return Err("a control character in a text"),
            _ => {
                self.whole()?;
                self.keep(&[byte]);
            }
        }
        Ok(false)
    }

    /// A whole UTF-16 code unit was escaped.
    fn code_unit(&mut self, unit: u32) -> Result<(), &'static str> {
        let code = match (self.high.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00),
            (None, 0xd800..=0xdbff) => {
                self.high = Some(unit);
                return Ok(());
            }
            (None, _) => unit,
            (Some(_), _) => return Err("half a surrogate pair"),
        };
        let character = char::from_u32(code).ok_or("half a surrogate pair")?;
        self.keep(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// What comes is no second half of a pair: none may be open.
    fn whole(&self) -> Result<(), &'static str> {
        if self.high.is_some() { Err("half a surrogate pair") } else { Ok(()) }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.is_long |= self.bytes.len() + bytes.len() > MAX_MODEL_BYTES;
        if !self.is_long {
            self.bytes.extend(bytes);
        }
    }

    /// What was read, unless it is too long.
    fn take(&mut self) -> Option<Vec<u8>> {
        let text = std::mem::take(self);
        (!text.is_long).then_some(text.bytes)
    }
}
