//! What a request asks for, read from its first line and headers; the model it names comes from its body.

use std::fmt;

use http::{Method, uri::PathAndQuery};
use wiremesh_certs::{Offer, ServiceName};

use super::openai::ModelName;

/// Where services are found in the HTTP API.
const PREFIX: &str = "/service/";

/// Why a path is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadPath {
    /// Nothing after `/service/`, or what stands there is no service name.
    #[error("no valid service name in the path")]
    Service,
    /// `.` and `..` could lead out of the upstream's base path.
    #[error("the path has a segment \".\" or \"..\"")]
    DotSegment,
    /// A `%` that two hexadecimal digits do not follow, or that stands for a control character.
    #[error("the path has a bad percent escape")]
    Escape,
}

/// Who has to answer a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// Whoever offers the service.
    Service(ServiceName),
    /// Whoever serves the model, by whichever service.
    Model(ModelName),
}

impl Target {
    /// What workers are looked for by.
    pub fn offer(&self) -> Offer {
        match self {
            Target::Service(service) => Offer::Service(service.clone()),
            Target::Model(model) => Offer::Model(model.tag()),
        }
    }

    /// The name alone.
    pub fn as_str(&self) -> &str {
        match self {
            Target::Service(service) => service.as_str(),
            Target::Model(model) => model.as_str(),
        }
    }

    /// What it is the name of, as a field of errors and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::Service(_) => "service",
            Target::Model(_) => "model",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {}", self.kind(), self.as_str())
    }
}

/// What a request asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Needs {
    /// Who has to answer.
    pub target: Target,
    /// What the upstream gets to see: path and query, without the service.
    pub path: PathAndQuery,
    /// Whether executing it twice does no more than executing it once (RFC 9110, 9.2.2).
    pub repeatable: bool,
}

impl Needs {
    /// Reads `/service/{type}[/{path}][?query]`. `None` if the path is not below `/service/`.
    pub fn of(method: &Method, path: &PathAndQuery) -> Option<Result<Needs, BadPath>> {
        let rest = path.as_str().strip_prefix(PREFIX)?;
        Some(Needs::of_rest(method, path, rest))
    }

    /// Of a request of the OpenAI face: the upstream gets to see all of the path.
    pub fn of_model(method: &Method, path: &PathAndQuery, model: ModelName) -> Result<Needs, BadPath> {
        check(path.path())?;
        Ok(Needs { target: Target::Model(model), path: path.clone(), repeatable: is_idempotent(method) })
    }

    fn of_rest(method: &Method, whole: &PathAndQuery, rest: &str) -> Result<Needs, BadPath> {
        let name_ends = rest.find(['/', '?']).unwrap_or(rest.len());
        let (name, tail) = rest.split_at(name_ends);
        let service = ServiceName::new(name).map_err(|_| BadPath::Service)?;

        let path_ends = tail.find('?').unwrap_or(tail.len());
        check(&tail[..path_ends])?;
        let path = if tail.starts_with('/') {
            PathAndQuery::try_from(tail)
        } else if tail.is_empty() {
            Ok(PathAndQuery::from_static("/"))
        } else {
            PathAndQuery::try_from(format!("/{tail}"))
        };
        debug_assert!(path.is_ok(), "part of a valid path is valid: {whole}");
        Ok(Needs {
            target: Target::Service(service),
            path: path.map_err(|_| BadPath::Escape)?,
            repeatable: is_idempotent(method),
        })
    }
}

/// Idempotent methods of RFC 9110. What we do not know is not.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

fn check(path: &str) -> Result<(), BadPath> {
    // Nearly every path: nothing escaped, no dot at the beginning of a segment.
    if !path.contains(['%', '\\']) && !path.contains("/.") {
        return Ok(());
    }
    // Some servers take an escaped slash, or a backslash, for one that separates.
    let decoded = decode(path)?;
    let mut segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    if segments.any(|segment| segment == b"." || segment == b"..") { Err(BadPath::DotSegment) } else { Ok(()) }
}

fn decode(path: &str) -> Result<Vec<u8>, BadPath> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(BadPath::Escape);
        let byte = (digit()? * 16 + digit()?) as u8;
        if byte.is_ascii_control() {
            return Err(BadPath::Escape);
        }
        decoded.push(byte);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(path: &str) -> Option<Result<Needs, BadPath>> {
        Needs::of(&Method::POST, &path.parse().unwrap())
    }

    #[test]
    fn the_upstream_sees_what_stands_behind_the_service() {
        for (path, upstream) in [
            ("/service/ocr", "/"),
            ("/service/ocr/", "/"),
            ("/service/ocr?a=b", "/?a=b"),
            ("/service/ocr/v1/scan?a=%20&b=..", "/v1/scan?a=%20&b=.."),
            ("/service/ocr//x", "//x"),
            ("/service/ocr/a%2Fb/.well-known", "/a%2Fb/.well-known"),
        ] {
            let needs = needs(path).unwrap().unwrap();

            assert_eq!((needs.target.as_str(), needs.path.as_str()), ("ocr", upstream));
        }
    }

    #[test]
    fn a_malformed_path_is_refused_with_its_reason() {
        for (path, why) in [
            ("/service/", BadPath::Service),
            ("/service/?x", BadPath::Service),
            ("/service//x", BadPath::Service),
            ("/service/No_Such/x", BadPath::Service),
            ("/service/ocr/../admin", BadPath::DotSegment),
            ("/service/ocr/%2e%2E/admin", BadPath::DotSegment),
            ("/service/ocr/.", BadPath::DotSegment),
            ("/service/ocr/a%2F..%2fadmin", BadPath::DotSegment),
            ("/service/ocr/..\\admin", BadPath::DotSegment),
            ("/service/ocr/%2e%2e%5Cadmin", BadPath::DotSegment),
            ("/service/ocr/%zz", BadPath::Escape),
            ("/service/ocr/%2", BadPath::Escape),
            ("/service/ocr/%0d%0aX", BadPath::Escape),
        ] {
            assert_eq!(needs(path), Some(Err(why)), "{path}");
        }
    }

    #[test]
    fn what_is_not_below_service_is_somebody_elses() {
        assert_eq!(needs("/health"), None);
        assert_eq!(needs("/services"), None);
    }

    #[test]
    fn only_idempotent_methods_are_repeatable() {
        let repeatable = |method| Needs::of(&method, &"/service/ocr".parse().unwrap()).unwrap().unwrap().repeatable;

        assert!([Method::GET, Method::PUT, Method::DELETE].into_iter().all(repeatable));
        assert!(![Method::POST, Method::PATCH].into_iter().any(repeatable));
    }

    proptest::proptest! {
        #[test]
        fn any_path_is_read_or_refused_and_what_is_read_begins_with_a_slash(path in "/service/[a-z]{1,8}[!-~]{0,40}") {
            if let Ok(parsed) = path.parse::<PathAndQuery>()
                && let Some(Ok(needs)) = Needs::of(&Method::GET, &parsed)
            {
                proptest::prop_assert!(needs.path.as_str().starts_with('/'));
            }
        }
    }
}
