//! What an attacker would send, made and signed as well as can be, each with the very words in which it is refused.
//!
//! | file | hostile |
//! |------|---------|
//! | [`certificates`] | certificates of nodes, rightly signed |
//! | [`forgeries`] | certificates of nodes whose bytes were changed, or that are none |
//! | [`authorities`] | authorities in a chain, and those to be trusted |
//! | [`coordinators`] | TLS certificates that would pass for the coordinator's |
//! | [`envelopes`] | signed messages of any kind |
//! | [`records`] | what a node says about itself |
//! | [`proofs`] | proofs of who sends a request |
//! | [`revocations`] | lists of what is no longer believed, and of who may do what |
//! | [`successions`] | lists of who is an authority from here on |
//! | [`renewals`] | certificates that ended, or hang on what is no longer believed |
//! | [`requests`] | requests for a certificate |
//! | [`tokens`] | join tokens |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authorities;
mod case;
mod certificates;
mod coordinators;
mod envelopes;
#[path = "../support/forge.rs"]
mod forge;
mod forgeries;
mod proofs;
mod records;
mod renewals;
mod requests;
mod revocations;
mod successions;
mod tokens;
mod world;

use std::collections::BTreeSet;

use case::Case;

/// Fewer cases than this are no table worth the name.
const AT_LEAST: usize = 60;

#[test]
fn there_are_enough_cases_and_no_two_of_one_name() {
    let cases = all();

    let names: BTreeSet<_> = cases.iter().map(Case::name).collect();

    assert!(cases.len() >= AT_LEAST, "{} cases", cases.len());
    assert_eq!(names.len(), cases.len(), "two cases of one name");
}

/// A reason that nothing is refused for is either dead or not tried.
#[test]
fn every_reason_to_refuse_is_tried() {
    let tried: BTreeSet<_> = all().iter().map(Case::reason).collect();

    let untried: Vec<_> = REASONS.iter().filter(|reason| !tried.contains(*reason)).collect();

    assert_eq!(untried, Vec::<&&str>::new());
}

/// Every word of `Refused::reason`, but that for too many proofs in a minute: that bound has a test beside it.
const REASONS: [&str; 14] = [
    "malformed",
    "bad_certificate",
    "another_authority",
    "authority_exceeded",
    "not_yet_valid",
    "expired",
    "revoked",
    "outside_network",
    "another_mesh",
    "wrong_signature",
    "older_revocations",
    "proof_for_another",
    "stale_proof",
    "replayed_proof",
];

fn all() -> Vec<Case> {
    [
        certificates::cases(),
        forgeries::cases(),
        authorities::cases(),
        coordinators::cases(),
        envelopes::cases(),
        records::cases(),
        proofs::cases(),
        revocations::cases(),
        successions::cases(),
        renewals::cases(),
        requests::cases(),
        tokens::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
