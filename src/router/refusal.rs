//! What a client is told when it gets no worker's answer: the error table of the HTTP API.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::{BadModel, BadPath, ModelName, STALLED_AFTER, Target, headers::MAX_HEADER_BYTES};

/// When to ask again for a service nobody offers: workers join all the time.
const MISSING_FOR: Duration = Duration::from_secs(5);
/// When to ask again if every worker is known but none was reached.
const UNREACHABLE_FOR: Duration = Duration::from_secs(2);
/// When to ask again if too many bodies are being read: most take a moment.
const ROOM_AGAIN_IN: Duration = Duration::from_secs(1);

/// Whether the request was executed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Executed {
    /// Surely not, and it will not be.
    No,
    /// Nobody can tell.
    Unknown,
}

impl Executed {
    /// The value of `x-wiremesh-executed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Executed::No => "no",
            Executed::Unknown => "unknown",
        }
    }
}

/// Why a request gets no worker's answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Nobody offers the service.
    #[error("nobody offers the service {0}")]
    ServiceNotFound(wiremesh_certs::ServiceName),
    /// Nobody serves the model; these are served.
    #[error("nobody serves the model {model}{}", also(nearby))]
    ModelNotFound {
        /// What was asked for.
        model: ModelName,
        /// Names like it.
        nearby: Vec<ModelName>,
    },
    /// The request does not say which model.
    #[error(transparent)]
    Model(#[from] BadModel),
    /// Some are known to offer it, none was reached.
    #[error("no worker for {target} could be reached: {why}")]
    NobodyReached {
        /// What was asked for.
        target: Target,
        /// How the last attempt ended.
        why: String,
    },
    /// All who offer it are full.
    #[error("all workers that offer the service are full")]
    Full(Duration),
    /// It cannot be told yet what is asked for: too many bodies are being read for that.
    #[error(
        "too many requests have to be read before it is known what they ask for: name the model in the header x-wiremesh-model"
    )]
    NoRoom,
    /// A worker died before it answered; the request may have reached it.
    #[error("the worker was lost before it answered: {0}")]
    Interrupted(String),
    /// The client did not go on with its request; part of it may have been executed.
    #[error("nothing came of the request's body for {} s while others waited for its place", STALLED_AFTER.as_secs())]
    Stalled,
    /// The same call was here before.
    #[error("this call has reached this worker before")]
    Duplicate,
    /// The request came back to where it started, or from more than one hop.
    #[error("the request has made its one hop across the mesh")]
    HopLimit,
    /// The path names no service, or tries to leave it.
    #[error("malformed path: {0}")]
    Path(#[from] BadPath),
    /// One of our own headers does not parse.
    #[error("malformed header {0}")]
    Header(&'static str),
    /// The headers are too large.
    #[error("the request's headers are larger than {MAX_HEADER_BYTES} bytes")]
    HeadersTooLarge,
    /// The ingress got no proof, or a bad one.
    #[error("a proof of membership is needed: {0}")]
    NoProof(String),
    /// The API key is missing or wrong.
    #[error("an API key is needed: authorization: Bearer ...")]
    NoKey,
    /// We know who asks, and they may not.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// We know who asks, and the mesh's policy does not let them.
    #[error("the mesh's policy does not let {who} call {target}")]
    NotAllowed {
        /// Who asks.
        who: String,
        /// What was asked for.
        target: Target,
    },
    /// This agent takes nothing new, and nobody else offers what was asked for.
    #[error("this agent takes no new requests: it is draining, or stops")]
    Draining,
    /// There is no such page.
    #[error("there is nothing at this path; services are at /service/NAME")]
    NotFound,
    /// There is a page, and it is for another method.
    #[error("this path is used with another method")]
    Method,
}

impl Refusal {
    /// The status code.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::ServiceNotFound(_) | Refusal::NobodyReached { .. } | Refusal::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Full(_) | Refusal::NoRoom => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Interrupted(_) => StatusCode::BAD_GATEWAY,
            Refusal::Stalled => StatusCode::REQUEST_TIMEOUT,
            Refusal::Duplicate => StatusCode::CONFLICT,
            Refusal::HopLimit => StatusCode::LOOP_DETECTED,
            Refusal::Path(_) | Refusal::Header(_) | Refusal::Model(_) => StatusCode::BAD_REQUEST,
            Refusal::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refusal::NoProof(_) | Refusal::NoKey => StatusCode::UNAUTHORIZED,
            Refusal::Forbidden(_) | Refusal::NotAllowed { .. } => StatusCode::FORBIDDEN,
            Refusal::NotFound | Refusal::ModelNotFound { .. } => StatusCode::NOT_FOUND,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// The `type` in the body, and the label in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::ServiceNotFound(_) => "service_not_found",
            Refusal::ModelNotFound { .. } => "model_not_found",
            Refusal::Model(bad) => bad.kind(),
            Refusal::NobodyReached { .. } => "no_worker_reached",
            Refusal::Full(_) => "overloaded",
            Refusal::NoRoom => "no_room_to_read",
            Refusal::Interrupted(_) => "upstream_interrupted",
            Refusal::Stalled => "client_stalled",
            Refusal::Duplicate => "duplicate_call",
            Refusal::HopLimit => "hop_limit",
            Refusal::Path(_) => "malformed_path",
            Refusal::Header(_) => "malformed_header",
            Refusal::HeadersTooLarge => "headers_too_large",
            Refusal::NoProof(_) => "no_proof",
            Refusal::NoKey => "no_key",
            Refusal::Forbidden(_) => "forbidden",
            Refusal::NotAllowed { .. } => "not_allowed",
            Refusal::Draining => "draining",
            Refusal::NotFound => "not_found",
            Refusal::Method => "method_not_allowed",
        }
    }

    /// Whether what was asked for was done.
    pub fn executed(&self) -> Executed {
        match self {
            Refusal::Interrupted(_) | Refusal::Stalled | Refusal::Duplicate => Executed::Unknown,
            _ => Executed::No,
        }
    }

    /// When to ask again, in whole seconds, if that makes sense.
    pub fn retry_after_secs(&self) -> Option<u64> {
        let after = match self {
            Refusal::ServiceNotFound(_) => MISSING_FOR,
            Refusal::NobodyReached { .. } | Refusal::Draining => UNREACHABLE_FOR,
            Refusal::Full(after) => *after,
            Refusal::NoRoom => ROOM_AGAIN_IN,
            _ => return None,
        };
        Some((after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1))
    }

    /// The JSON body.
    pub fn body(&self, request_id: &str) -> String {
        let mut error = json!({
            "type": self.kind(),
            "message": self.to_string(),
            // What clients of OpenAI's API read.
            "code": self.kind(),
            "param": matches!(self, Refusal::Model(_) | Refusal::ModelNotFound { .. }).then_some("model"),
            "request_id": request_id,
            "executed": self.executed().as_str(),
        });
        if let Some(seconds) = self.retry_after_secs() {
            error["retry_after"] = seconds.into();
        }
        match self {
            Refusal::ServiceNotFound(service) => error["service"] = service.as_str().into(),
            Refusal::NobodyReached { target, .. } | Refusal::NotAllowed { target, .. } => {
                error[target.kind()] = target.as_str().into()
            }
            // As OpenAI says it; the `code` tells them apart.
            Refusal::ModelNotFound { .. } | Refusal::Model(_) => error["type"] = "invalid_request_error".into(),
            _ => {}
        }
        json!({ "error": error }).to_string()
    }
}

/// What is served instead, as the end of a sentence.
fn also(nearby: &[ModelName]) -> String {
    match nearby {
        [] => String::new(),
        names => format!("; served are {}", names.iter().map(ModelName::as_str).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_table() {
        let ocr = || "ocr".parse::<wiremesh_certs::ServiceName>().unwrap();
        for (refusal, status, kind, executed, retry) in [
            (Refusal::ServiceNotFound(ocr()), 503, "service_not_found", "no", true),
            (
                Refusal::NobodyReached { target: Target::Service(ocr()), why: String::new() },
                503,
                "no_worker_reached",
                "no",
                true,
            ),
            (Refusal::Full(Duration::from_millis(2500)), 429, "overloaded", "no", true),
            (Refusal::NoRoom, 429, "no_room_to_read", "no", true),
            (Refusal::Interrupted(String::new()), 502, "upstream_interrupted", "unknown", false),
            (Refusal::Stalled, 408, "client_stalled", "unknown", false),
            (Refusal::Duplicate, 409, "duplicate_call", "unknown", false),
            (Refusal::HopLimit, 508, "hop_limit", "no", false),
            (Refusal::Path(BadPath::Service), 400, "malformed_path", "no", false),
            (Refusal::HeadersTooLarge, 431, "headers_too_large", "no", false),
            (Refusal::NoProof(String::new()), 401, "no_proof", "no", false),
            (Refusal::Forbidden(String::new()), 403, "forbidden", "no", false),
            (
                Refusal::NotAllowed { who: "carol".into(), target: Target::Service(ocr()) },
                403,
                "not_allowed",
                "no",
                false,
            ),
        ] {
            let body: serde_json::Value = serde_json::from_str(&refusal.body("r-1")).unwrap();

            assert_eq!((refusal.status().as_u16(), refusal.kind()), (status, kind));
            assert_eq!(body["error"]["type"], kind);
            assert_eq!(body["error"]["code"], kind);
            assert_eq!(body["error"]["request_id"], "r-1");
            assert_eq!(body["error"]["executed"], executed);
            assert_eq!(body["error"].get("retry_after").is_some(), retry, "{kind}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_model_is_told_as_clients_of_openai_expect_it() {
        let name = |text| ModelName::new(text).unwrap();
        let unknown = Refusal::ModelNotFound { model: name("llama"), nearby: vec![name("llama-3"), name("qwen")] };
        let body: serde_json::Value = serde_json::from_str(&unknown.body("r-1")).unwrap();

        assert_eq!(unknown.status(), 404);
        assert_eq!(
            body["error"],
            json!({"type": "invalid_request_error", "code": "model_not_found", "param": "model",
                   "message": "nobody serves the model llama; served are llama-3, qwen",
                   "request_id": "r-1", "executed": "no"})
        );
        assert_eq!(Refusal::Model(BadModel::Missing).status(), 400);
    }

    #[test]
    fn a_part_of_a_second_is_a_second() {
        assert_eq!(Refusal::Full(Duration::from_millis(2100)).retry_after_secs(), Some(3));
        assert_eq!(Refusal::Full(Duration::ZERO).retry_after_secs(), Some(1));
    }
}
