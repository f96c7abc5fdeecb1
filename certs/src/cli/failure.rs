//! How a command says that it did not work: what failed, why, and what to do.

use std::{fmt, io, process::ExitCode};

use crate::{BadAuthority, IssueError, Refused, files::FileError};

/// What the program's end tells the one who started it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// It was done, or the answer is yes.
    Done,
    /// It could not be done.
    Failed,
    /// It was asked whether something is to be done, and it is not.
    No,
    /// It was done, and the answer is no.
    NotSo,
    /// It was asked in a way that cannot be right.
    Usage,
}

impl Exit {
    /// The number of it (interface, section 1).
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed | Exit::No => 1,
            Exit::NotSo => 2,
            Exit::Usage => 64,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        exit.code().into()
    }
}

/// Why a command did not do what it was asked. Its text is whole lines: `error: what: why`, and maybe `hint: …`.
#[derive(Debug)]
pub struct Failure {
    what: String,
    why: String,
    hint: Option<String>,
    /// What to tell the caller.
    pub exit: Exit,
}

impl Failure {
    /// It could not be done.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure { what: what.to_string(), why: why.to_string(), hint: None, exit: Exit::Failed }
    }

    /// It was asked in a way that cannot be right.
    pub fn usage(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Usage, ..Failure::new(what, why) }
    }

    /// The answer is no.
    pub fn refused(what: impl fmt::Display, refused: &Refused) -> Failure {
        Failure { exit: Exit::NotSo, hint: refused.hint().map(str::to_owned), ..Failure::new(what, refused) }
    }

    /// There is no such file, and that is an answer.
    pub fn not_there(what: impl fmt::Display) -> Failure {
        Failure { exit: Exit::NotSo, ..Failure::new(format!("reading {what}"), "there is no such file") }
    }

    /// With another exit status.
    pub fn exit(self, exit: Exit) -> Failure {
        Failure { exit, ..self }
    }

    /// With advice.
    pub fn hint(self, hint: impl fmt::Display) -> Failure {
        Failure { hint: Some(hint.to_string()), ..self }
    }

    /// A file could not be read or written.
    pub fn file(what: impl fmt::Display, error: &FileError) -> Failure {
        let failure = Failure::new(what, error);
        match error {
            FileError::Exists(_) => failure.hint("name another file, or add --force to replace it"),
            FileError::Missing(_) | FileError::Unsuitable(..) | FileError::Io { .. } => failure,
        }
    }

    /// The authority did not sign, for a reason that its own limits give.
    pub fn issue(what: impl fmt::Display, error: &IssueError) -> Failure {
        let failure = Failure::new(what, error);
        match error {
            IssueError::OutsideNetwork { network, .. } | IssueError::ReservedAddress { network, .. } => {
                failure.hint(format!("choose with --networks an address between the first and the last of {network}"))
            }
            IssueError::ReservedName => failure.hint("choose another --name"),
            IssueError::AuthorityNotValid { until, now, .. } if now >= until => {
                failure.hint(
                    "make a new one with \"wiremesh-cert ca\": below its root with --intermediate, else its nodes join anew",
                )
            }
            IssueError::AuthorityNotValid { .. } => failure.hint("set the clock of this machine"),
            IssueError::UnfitNetwork(_) => failure.hint("for example --networks 10.42.0.0/16"),
            IssueError::NotARoot => failure.hint("--ca-crt and --ca-key must be those of the mesh's root"),
            IssueError::NotWithin { own_network, .. } => failure.hint(format!("for example --networks {own_network}")),
            IssueError::TooShort => failure.hint("for example --duration 7d"),
            IssueError::WeakKey(_) => failure.hint("make new keys on the node with \"wiremesh-cert keygen\""),
            IssueError::TooLarge(_) | IssueError::WouldBeRefused(_) | IssueError::Encoding(_) => failure,
        }
    }

    /// Certificate and key of an authority could not be opened.
    pub fn authority(what: impl fmt::Display, error: &BadAuthority) -> Failure {
        let failure = Failure::new(what, error);
        match error {
            BadAuthority::KeyMismatch => failure.hint("--ca-crt and --ca-key must be the two files of one authority"),
            BadAuthority::Certificate(_) => failure.hint("\"wiremesh-cert print\" shows what a file holds"),
            BadAuthority::BrokenChain => failure.hint("--ca-crt is to hold its own certificate first, the root last"),
            BadAuthority::Key(_) => failure,
        }
    }

    /// Standard output did not take what was written.
    pub fn output(error: io::Error) -> Failure {
        Failure::new("standard output", error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}: {}", self.what, self.why)?;
        match &self.hint {
            Some(hint) => writeln!(f, "hint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let failure = Failure::new("signing worker-1", "no key").hint("make one");

        assert_eq!(failure.to_string(), "error: signing worker-1: no key\nhint: make one\n");
        let exits = [Exit::Done, Exit::Failed, Exit::No, Exit::NotSo, Exit::Usage];
        assert_eq!(exits.map(Exit::code), [0, 1, 1, 2, 64]);
    }
}
