//! How a refusal looks: a status, one stable word, what and why, what to do.

use std::{fmt, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use wiremesh_certs::Refused;

use crate::{
    api::{ErrorBody, ErrorResponse},
    coordinator::{enrolment::Refusal, io::store::StoreError, registry::RecordRefused},
};

/// A refusal.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// One stable word.
    pub kind: &'static str,
    /// What and why.
    pub message: String,
    hint: Option<String>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A refusal without a hint.
    pub fn new(status: StatusCode, kind: &'static str, message: impl fmt::Display) -> Problem {
        Problem { status, kind, message: message.to_string(), hint: None, retry_after: None }
    }

    /// The request is not what it should be.
    pub fn bad_request(kind: &'static str, message: impl fmt::Display) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, kind, message)
    }

    /// The request does not say who sends it, or not believably.
    pub fn unauthorized(message: impl fmt::Display) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// Who sends it may not do this.
    pub fn forbidden(kind: &'static str, message: impl fmt::Display) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, kind, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl fmt::Display) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The same with what to do about it.
    pub fn hint(mut self, hint: impl fmt::Display) -> Problem {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same with when to try again.
    pub fn retry_after(mut self, after: Duration) -> Problem {
        self.retry_after = Some(after);
        self
    }

    /// As it is sent.
    pub fn render(self, request_id: &str) -> Response {
        let body = ErrorResponse {
            detail: self.message.clone(),
            error: ErrorBody {
                kind: self.kind.to_owned(),
                message: self.message,
                hint: self.hint,
                request_id: request_id.to_owned(),
            },
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // What makes a browser ask for the admin key.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"wiremesh admin key\""));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// The middleware around all routes renders it, with the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Response {
        problem.into_response()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let status = match refused {
            // Known, and unwelcome: another proof would change nothing.
            Refused::Revoked { .. } => StatusCode::FORBIDDEN,
            Refused::TooManyProofs => StatusCode::TOO_MANY_REQUESTS,
            Refused::Envelope(_)
            | Refused::Certificate(_)
            | Refused::AnotherAuthority { .. }
            | Refused::AuthorityExceeded(_)
            | Refused::NotYetValid { .. }
            | Refused::Expired { .. }
            | Refused::OutsideNetwork { .. }
            | Refused::AnotherMesh(_)
            | Refused::WrongSignature
            | Refused::OlderRevocations { .. }
            | Refused::ProofForAnother(_)
            | Refused::StaleProof { .. }
            | Refused::ReplayedProof => StatusCode::UNAUTHORIZED,
        };
        let problem = Problem::new(status, refused.reason(), &refused);
        match refused.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match refusal {
            Refusal::UnknownToken
            | Refusal::TokenRevoked(_)
            | Refusal::TokenExpired { .. }
            | Refusal::TokenUsed { .. }
            | Refusal::Declined
            | Refusal::TokenForAnotherName { .. }
            | Refusal::CertificateRevoked(_)
            | Refusal::NotAMember(_)
            | Refusal::IdentityRevoked => StatusCode::FORBIDDEN,
            Refusal::NameReserved
            | Refusal::NameTaken { .. }
            | Refusal::WireGuardKeyTaken(_)
            | Refusal::AddressTaken(_)
            | Refusal::OtherName(_)
            | Refusal::NetworkFull(_) => StatusCode::CONFLICT,
        };
        Problem::new(status, refusal.kind(), &refusal).hint(refusal.hint())
    }
}

impl From<RecordRefused> for Problem {
    fn from(refused: RecordRefused) -> Problem {
        let status = match refused {
            RecordRefused::UnknownMember(_) => StatusCode::NOT_FOUND,
            RecordRefused::Superseded(_) => StatusCode::CONFLICT,
            RecordRefused::SomebodyElses { .. } | RecordRefused::ServiceNotAllowed(_) => StatusCode::FORBIDDEN,
            RecordRefused::Ended(_) | RecordRefused::FromTheFuture(_) => StatusCode::BAD_REQUEST,
        };
        let problem = Problem::new(status, refused.kind(), &refused);
        match refused {
            RecordRefused::ServiceNotAllowed(_) => {
                problem.hint("see [policy] in the coordinator's configuration, or join with a token that allows it")
            }
            _ => problem,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Refused(refusal) => refusal.into(),
            StoreError::Rekey(refusal) => refusal.into(),
            StoreError::NotFound(_) => Problem::not_found(&error),
            StoreError::Ambiguous(what) => Problem::new(StatusCode::CONFLICT, "ambiguous", what)
                .hint("wiremesh join list shows identities; compare with what the machine itself says"),
            StoreError::Full(what) => Problem::new(StatusCode::TOO_MANY_REQUESTS, "full", what),
            StoreError::Issue(issue) => Problem::new(StatusCode::CONFLICT, "not_issued", issue),
            StoreError::CannotRotate(why) => Problem::new(StatusCode::CONFLICT, "cannot_rotate", &why).hint(why.hint()),
            StoreError::Unbelieved(ref refused) => {
                let (problem, hint) = (Problem::new(StatusCode::CONFLICT, "unbelieved", &error), refused.hint());
                hint.into_iter().fold(problem, Problem::hint)
            }
            // What is wrong with the disk is the operator's business, not the caller's.
            StoreError::NoKey(_) | StoreError::Sign(_) | StoreError::Corrupt(_) | StoreError::Database(_) => {
                tracing::error!("{error}");
                Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store_unavailable",
                    "the coordinator cannot use its database",
                )
                .hint("see the coordinator's log")
            }
        }
    }
}
