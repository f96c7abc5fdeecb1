//! How a command ends other than well: an exit code, what failed and why, and what to do.

use std::fmt;

/// Done.
pub const DONE: u8 = 0;
/// Something failed.
pub const FAILED: u8 = 1;
/// What was asked for is not there, or not so.
pub const NOT_SO: u8 = 2;
/// Bad usage or configuration.
pub const USAGE: u8 = 64;

/// Why a command did not end well.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: u8,
    /// What failed and why.
    pub error: anyhow::Error,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// The asked thing is not there or not so.
    pub fn not_so(error: impl Into<anyhow::Error>) -> Failure {
        Failure { exit: NOT_SO, error: error.into(), hint: None }
    }

    /// Bad usage or configuration.
    pub fn usage(error: impl Into<anyhow::Error>) -> Failure {
        Failure { exit: USAGE, error: error.into(), hint: None }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { exit: FAILED, error: error.into(), hint: None }
    }
}

impl fmt::Display for Failure {
    /// `error: what failed: why`, then the hint on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {:#}", self.error)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let error = Err::<(), _>(std::io::Error::other("no route")).context("could not reach the agent").unwrap_err();

        let failure = Failure::from(error).hint("start it: wiremesh agent");

        assert_eq!(failure.to_string(), "error: could not reach the agent: no route\nhint: start it: wiremesh agent");
        assert_eq!(failure.exit, FAILED);
    }
}
