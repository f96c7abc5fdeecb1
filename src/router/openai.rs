//! The OpenAI-shaped face: which requests come in by it, and which model they name.
//!
//! ```text
//! POST /v1/chat/completions ──► the model, read in passing from the body ──► the service that serves it, here or elsewhere
//! GET  /v1/models           ──► what is served here, and what every worker says it serves
//! ```
//!
//! The body goes on as it came: the scanners in [`mod@peek`] look at its beginning and take nothing out.

mod listing;
mod peek;

use std::fmt;

use http::{HeaderMap, HeaderValue, Method, header, uri::PathAndQuery};
pub use listing::{Listed, Served, nearby, read_listing};
pub use peek::{Peek, Peeked};
use wiremesh_certs::ModelTag;

/// Everything of this face is found below it.
pub const PREFIX: &str = "/v1/";
/// The longest name of a model.
pub const MAX_MODEL_BYTES: usize = 256;

/// Requests that name a model in their body: these, and whatever is below those that end in a slash.
const CALLS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/moderations",
    "/v1/audio/",
    "/v1/images/",
];
/// A connection that becomes a conversation names its model in the query.
const REALTIME: &str = "/v1/realtime";

/// The name of a model, as the upstream that serves it says it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ModelName(String);

/// Why a request names no model.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadModel {
    /// Neither the body nor a header does.
    #[error("the request names no model: put \"model\" into the body")]
    Missing,
    /// What stands there is no text, or too long for a name.
    #[error("\"model\" must be a text of 1 to {MAX_MODEL_BYTES} bytes without control characters")]
    NotAName,
    /// Not what the content type says, or broken.
    #[error("the body is neither a JSON object nor a form with a \"model\": {0}")]
    Body(&'static str),
    /// It may stand further behind.
    #[error(
        "no \"model\" within the first {0} bytes of the body: put it first, or name it in the header x-wiremesh-model"
    )]
    TooFar(usize),
}

impl BadModel {
    /// One stable word, the `code` of the error.
    pub fn kind(&self) -> &'static str {
        match self {
            BadModel::Missing => "model_missing",
            BadModel::NotAName => "model_malformed",
            BadModel::Body(_) => "malformed_body",
            BadModel::TooFar(_) => "model_too_far",
        }
    }
}

impl ModelName {
    /// `None` for what no model is called: nothing, too much, control characters, spaces around it.
    pub fn new(text: &str) -> Option<ModelName> {
        let good =
            (1..=MAX_MODEL_BYTES).contains(&text.len()) && text.trim() == text && !text.chars().any(char::is_control);
        good.then(|| ModelName(text.to_owned()))
    }

    /// As it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How workers that serve it are found.
    pub fn tag(&self) -> ModelTag {
        ModelTag::of(&self.0)
    }

    /// As the header between agents.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(self.0.as_bytes()).expect("a name has no control characters")
    }

    /// From the header between agents.
    pub fn from_header(value: &HeaderValue) -> Option<ModelName> {
        ModelName::new(std::str::from_utf8(value.as_bytes()).ok()?)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a request of this face says which model it is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Names {
    /// In its body.
    InBody,
    /// In its query.
    InQuery(Option<ModelName>),
}

/// Whether a request is one for a model, and where it names it. `None` for pages and for what is not ours.
pub fn call(method: &Method, path: &PathAndQuery) -> Option<Names> {
    let is_it = |call: &str| path.path() == call || (call.ends_with('/') && path.path().starts_with(call));
    match *method {
        Method::POST if CALLS.into_iter().any(is_it) => Some(Names::InBody),
        Method::GET if path.path() == REALTIME => Some(Names::InQuery(in_query(path.query().unwrap_or_default()))),
        _ => None,
    }
}

/// The scanner for a body of this content type.
pub fn peek(headers: &HeaderMap) -> Peek {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("multipart/form-data")) {
        true => Peek::form(kind),
        false => Peek::json(),
    }
}

fn in_query(query: &str) -> Option<ModelName> {
    let (_, model) = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "model")?;
    ModelName::new(&model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_model_in_its_body_is_a_call_and_pages_are_not() {
        for (method, path, names) in [
            (Method::POST, "/v1/chat/completions", Some(Names::InBody)),
            (Method::POST, "/v1/audio/transcriptions?x", Some(Names::InBody)),
            (Method::POST, "/v1/images/edits", Some(Names::InBody)),
            (Method::GET, "/v1/realtime?model=a%2Fb", Some(Names::InQuery(ModelName::new("a/b")))),
            (Method::GET, "/v1/realtime", Some(Names::InQuery(None))),
            (Method::GET, "/v1/models", None),
            (Method::GET, "/v1/chat/completions", None),
            (Method::POST, "/v1/completions/x", None),
            (Method::POST, "/service/v1/chat/completions", None),
        ] {
            assert_eq!(call(&method, &path.parse().unwrap()), names, "{method} {path}");
        }
    }

    #[test]
    fn a_name_survives_the_header_between_agents() {
        for name in ["gpt-oss:20b", "org/Modell-ä", "x y"] {
            let name = ModelName::new(name).unwrap();
            assert_eq!(ModelName::from_header(&name.header()), Some(name));
        }
        for bad in ["", " x", "a\nb", &"x".repeat(MAX_MODEL_BYTES + 1)] {
            assert_eq!(ModelName::new(bad), None);
        }
    }
}
