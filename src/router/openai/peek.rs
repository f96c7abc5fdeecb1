//! Finds the model that a request names, in the pieces of its body as they come.
//!
//! A scanner remembers where in the text it is and, of what it has seen, at most one name. It looks at every byte once
//! and ends at the model: what stands behind it is nobody's business here.

mod form;
mod json;

use self::{form::FormPeek, json::JsonPeek};
use super::{BadModel, ModelName};

/// What is known after a piece.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Peeked {
    /// Not there yet: the next piece is wanted.
    More,
    /// This is the model.
    Model(ModelName),
    /// There is none, for this reason.
    Bad(BadModel),
}

/// A scanner for one body.
pub enum Peek {
    /// For a JSON object: the text of its own `"model"`, the first if there are several.
    Json(JsonPeek),
    /// For a form in parts: the part of the name `model`.
    Form(Box<FormPeek>),
}

impl Peek {
    /// For JSON.
    pub fn json() -> Peek {
        Peek::Json(JsonPeek::default())
    }

    /// For `multipart/form-data` with whatever parameters `content_type` has.
    pub fn form(content_type: &str) -> Peek {
        Peek::Form(Box::new(FormPeek::new(content_type)))
    }

    /// The next piece of the body. After anything but [`Peeked::More`] the scan is over.
    pub fn push(&mut self, piece: &[u8]) -> Peeked {
        match self {
            Peek::Json(json) => json.push(piece),
            Peek::Form(form) => form.push(piece),
        }
    }

    /// The body has ended: why no model was found in it.
    pub fn end(&self) -> BadModel {
        match self {
            Peek::Json(json) => json.end(),
            Peek::Form(_) => BadModel::Body("the form breaks off"),
        }
    }
}

/// What was captured, as a model's name.
fn named(captured: Vec<u8>) -> Peeked {
    match String::from_utf8(captured).ok().and_then(|text| ModelName::new(&text)) {
        Some(model) => Peeked::Model(model),
        None => Peeked::Bad(BadModel::NotAName),
    }
}

#[cfg(test)]
mod tests;
