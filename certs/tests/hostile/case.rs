//! One line of the table: a hostile thing, what became of it, and what must.

use wiremesh_certs::*;

/// A hostile thing that was tried.
pub struct Case {
    name: String,
    outcome: Result<(), Told>,
    reason: &'static str,
    says: String,
}

/// How something was refused.
#[derive(Debug, PartialEq)]
pub struct Told {
    /// In one stable word.
    pub reason: &'static str,
    /// In full.
    pub says: String,
}

impl Case {
    /// `outcome` must be refused for `reason`, in the words `says`.
    pub fn new<T, E: Into<Told>>(
        name: impl Into<String>,
        outcome: Result<T, E>,
        reason: &'static str,
        says: impl Into<String>,
    ) -> Case {
        Case { name: name.into(), outcome: outcome.map(drop).map_err(E::into), reason, says: says.into() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Each case ends as it must. All that do not are shown, not only the first.
pub fn hold(cases: Vec<Case>) {
    let wrong: Vec<String> = cases
        .into_iter()
        .filter_map(|Case { name, outcome, reason, says }| match outcome {
            Ok(()) => Some(format!("{name}: was believed")),
            Err(told) if told == Told { reason, says: says.clone() } => None,
            Err(told) => Some(format!("{name}: {}: {}\n    instead of {reason}: {says}", told.reason, told.says)),
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

impl From<Refused> for Told {
    fn from(refused: Refused) -> Told {
        Told { reason: refused.reason(), says: refused.to_string() }
    }
}

impl From<BadCertificate> for Told {
    fn from(bad: BadCertificate) -> Told {
        Refused::from(bad).into()
    }
}

impl From<BadEnvelope> for Told {
    fn from(bad: BadEnvelope) -> Told {
        Refused::from(bad).into()
    }
}

// The rest never reaches the one door. Their words are those with which the coordinator answers.

impl From<BadRequest> for Told {
    fn from(bad: BadRequest) -> Told {
        Told { reason: "bad_csr", says: bad.to_string() }
    }
}

impl From<BadToken> for Told {
    fn from(bad: BadToken) -> Told {
        Told { reason: "bad_token", says: bad.to_string() }
    }
}

impl From<SignError> for Told {
    fn from(error: SignError) -> Told {
        Told { reason: "not_signed", says: error.to_string() }
    }
}
